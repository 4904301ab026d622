/* Sleeping and waking. A bell is a counter that is also a futex: the sleeper reads it, says that it sleeps, looks once more, and waits for
 * the value to change. A waker that dies between taking the bit and ringing is repaired by the monitor, which rings everybody after a death. */
#define _GNU_SOURCE
#include "core.h"

#include <errno.h>
#include <limits.h>
#include <linux/futex.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#ifdef IPC_FAILPOINTS
void (*ipc_failpoint)(const char *step);
#endif

uint64_t ipc_now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * UINT64_C(1000000000) + (uint64_t)t.tv_nsec;
}

/* Not FUTEX_PRIVATE: the word is shared between processes. */
int ipc_futex_wait(_Atomic uint32_t *word, uint32_t seen, uint64_t timeout_ns) {
    struct timespec t = {(time_t)(timeout_ns / 1000000000u), (long)(timeout_ns % 1000000000u)};
    if (syscall(SYS_futex, word, FUTEX_WAIT, seen, &t, NULL, 0) == 0 || errno == EAGAIN) return 0;
    return errno == EINTR ? IPC_SIGNAL : IPC_EMPTY;
}

static void ring(_Atomic uint32_t *bell) {
    atomic_fetch_add_explicit(bell, 1, memory_order_seq_cst);
    IPC_POINT("ring:counted");
    syscall(SYS_futex, bell, FUTEX_WAKE, INT_MAX, NULL, NULL, 0);
}

void ipc_ring_slot(struct ipc_segment *s, uint32_t slot) { ring(&s->slot[slot].bell); }

static int wire_is_ours(const struct ipc_segment *s) {
    struct stat st;
    return s->wire >= 0 && fstat(s->wire, &st) == 0 && st.st_dev == s->wire_device && st.st_ino == s->wire_file;
}

int ipc_set_wire(struct ipc_segment *s, int fd) {
    struct stat st;
    if (fstat(fd, &st) < 0) return -1;
    s->wire = fd;
    s->wire_device = st.st_dev;
    s->wire_file = st.st_ino;
    return 0;
}

void ipc_ring_client(struct ipc_segment *s) {
    atomic_store_explicit(&s->header->client_asleep, 0, memory_order_seq_cst);
    ring(&s->header->client_bell);
    /* SYNC POINT: seq_cst; our news was said before. A client that says later that it listens looks at the news after that; one that listens no
     * more is awake, and looks too, or sleeps on the bell. */
    if (!atomic_load_explicit(&s->header->listening, memory_order_seq_cst)) return;
    IPC_POINT("ring:wire");
    /* A task may have closed the wire and opened something of its own under that number: that gets nothing, and the loop's timer finds what is done.
     * A full wire (EAGAIN) has not been heard yet, and will be. */
    if (wire_is_ours(s)) send(s->wire, "", 1, MSG_DONTWAIT | MSG_NOSIGNAL);
}

unsigned ipc_count_bits(const _Atomic uint64_t *words, uint32_t bits) {
    unsigned n = 0;
    for (uint32_t k = 0; k < (bits + 63) / 64; k++)
        n += (unsigned)__builtin_popcountll(atomic_load_explicit(&words[k], memory_order_seq_cst));
    return n;
}

int ipc_wake_slot(struct ipc_segment *s, uint32_t slot) {
    uint64_t bit = UINT64_C(1) << (slot & 63);
    /* Whoever takes the bit owes the bell: nobody is woken twice, and a bit that is gone means that a bell is on its way. */
    if (!(atomic_fetch_and_explicit(&s->header->sleepers[slot >> 6], ~bit, memory_order_seq_cst) & bit)) return 0;
    IPC_POINT("wake:taken");
    ring(&s->slot[slot].bell);
    return 1;
}

unsigned ipc_wake_workers(struct ipc_segment *s, uint64_t most) {
    unsigned woken = 0;
    /* The guard last: as long as it sleeps, a ready row is looked at within a millisecond. */
    uint32_t guard = atomic_load_explicit(&s->header->guard, memory_order_seq_cst);
    for (uint32_t k = 0; k < (s->slots + 63) / 64 && woken < most; k++) {
        /* seq_cst: second half of the Dekker pair; see ipc_publish and ipc_worker_wait. */
        uint64_t word = atomic_load_explicit(&s->header->sleepers[k], memory_order_seq_cst);
        while (word && woken < most) {
            uint32_t slot = k * 64 + (uint32_t)__builtin_ctzll(word); /* lowest first: the warmest worker */
            word &= word - 1;
            if (slot < s->slots && slot + 1 != guard) woken += (unsigned)ipc_wake_slot(s, slot);
        }
    }
    if (woken < most && guard && guard <= s->slots) woken += (unsigned)ipc_wake_slot(s, guard - 1);
    return woken;
}
