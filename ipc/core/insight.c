/* Where the time goes, and what is counted of each function. A slot's figures have one writer: its worker, and the monitor when that is dead and
 * its successor not forked yet. So they are plain loads and stores, and whoever reads them beside that may be off by one task. They may also be
 * damaged: nothing is decided by them, and no reader runs out of bounds or in a circle. */
#define _GNU_SOURCE
#include "core.h"

#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

static uint64_t load(const _Atomic uint64_t *word) { return atomic_load_explicit(word, memory_order_relaxed); }
static void add(_Atomic uint64_t *word, uint64_t n) { atomic_store_explicit(word, load(word) + n, memory_order_relaxed); }

/* ---- spans */

static uint32_t shift_of(const struct ipc_spans *spans) { return IPC_SPAN_SHIFT + (atomic_load_explicit(&spans->folds, memory_order_relaxed) & 31); }

/* A kill in the middle of it, which takes 100 ns, may double what this slot says of its time; readers know how much there was at most. */
static void fold(struct ipc_spans *spans, uint32_t shift) {
    for (uint32_t k = 0; k < IPC_SPANS; k++) {
        uint64_t both = k < IPC_SPANS / 2 ? load(&spans->busy[2 * k]) + load(&spans->busy[2 * k + 1]) : 0;
        atomic_store_explicit(&spans->busy[k], both, memory_order_relaxed);
    }
    atomic_store_explicit(&spans->folds, shift - IPC_SPAN_SHIFT + 1, memory_order_relaxed);
}

void ipc_spend(struct ipc_spans *spans, uint64_t from, uint64_t to) {
    if (to >> (IPC_SPAN_SHIFT + 31)) return; /* damage: two hundred days for each span */
    uint32_t shift = shift_of(spans); /* read once: it may be damaged at any moment, and what follows is an index */
    for (; to >> shift >= IPC_SPANS; shift++) fold(spans, shift);
    for (uint64_t end; from < to; from = end) {
        uint64_t k = from >> shift;
        end = (k + 1) << shift;
        if (end > to) end = to;
        add(&spans->busy[k], end - from);
    }
}

void ipc_book(struct ipc_segment *s, uint32_t slot, uint64_t from, uint64_t to, struct ipc_span *now) {
    struct ipc_spans *spans = &s->slot[slot].spans;
    now->to = 0;
    if (from < s->created || to <= from) return;
    ipc_spend(spans, from - s->created, to - s->created);
    uint64_t span = UINT64_C(1) << shift_of(spans), k = (to - s->created) / span;
    if (k < IPC_SPANS) *now = (struct ipc_span){s->created + k * span, s->created + (k + 1) * span, &spans->busy[k]};
}

/* ---- a slot */

void ipc_book_death(struct ipc_segment *s, uint32_t slot, uint64_t now) {
    struct ipc_slot *line = &s->slot[slot];
    struct ipc_running r;
    struct ipc_span span;
    if (ipc_claimed_by(s, slot, &r) && r.started) ipc_book(s, slot, r.started, now, &span);
    if (atomic_load_explicit(&line->phase, memory_order_relaxed) != IPC_STARTING) atomic_store_explicit(&line->since, now, memory_order_relaxed);
}

void ipc_book_usage(struct ipc_segment *s, uint32_t slot, uint64_t cpu_ns, uint64_t peak) {
    struct ipc_slot *line = &s->slot[slot];
    add(&line->used_ns, cpu_ns);
    if (peak > load(&line->used_most)) atomic_store_explicit(&line->used_most, peak, memory_order_relaxed);
}

void ipc_cpu_time(uint64_t *user_ns, uint64_t *system_ns) {
    *user_ns = *system_ns = 0;
    for (int who = 0; who < 2; who++) {
        struct rusage usage;
        if (getrusage(who ? RUSAGE_CHILDREN : RUSAGE_SELF, &usage) < 0) continue;
        *user_ns += (uint64_t)usage.ru_utime.tv_sec * 1000000000u + (uint64_t)usage.ru_utime.tv_usec * 1000u;
        *system_ns += (uint64_t)usage.ru_stime.tv_sec * 1000000000u + (uint64_t)usage.ru_stime.tv_usec * 1000u;
    }
}

static uint16_t since(uint64_t now, uint64_t before) { return ipc_brief(now > before ? now - before : 0); }

void ipc_book_spent(struct ipc_segment *s, uint32_t slot, uint32_t generation, uint64_t user_ns, uint64_t system_ns, uint64_t resident) {
    struct ipc_slot *line = &s->slot[slot];
    struct ipc_running r;
    struct ipc_spent spent = {.user = since(user_ns, load(&line->user_ns)), .system = since(system_ns, load(&line->system_ns)), .resident = ipc_brief(resident)};
    if (ipc_claimed_by(s, slot, &r) && r.started) spent.run = since(ipc_now(), r.started);
    line->spent[generation % IPC_DEATHS] = spent; /* published with the record, by the release of `reaped` */
}

void ipc_slot_times(struct ipc_segment *s, uint32_t slot, uint64_t now, struct ipc_times *out) {
    struct ipc_slot *line = &s->slot[slot];
    uint32_t phase = atomic_load_explicit(&line->phase, memory_order_acquire);
    uint64_t since = load(&line->since);
    struct ipc_running r;
    *out = (struct ipc_times){load(&line->start_ns), 0, load(&line->wait_ns), IPC_IS_IDLE};
    for (uint32_t k = 0; k < IPC_SPANS; k++) out->busy_ns += load(&line->spans.busy[k]);
    if (atomic_load_explicit(&line->pid, memory_order_relaxed) == 0)
        out->doing = IPC_REPLACED;
    else if (phase == IPC_STARTING || phase == IPC_LEAVING)
        out->doing = phase == IPC_STARTING ? IPC_IS_STARTING : IPC_IS_LEAVING;
    if (out->doing == IPC_REPLACED || out->doing == IPC_IS_STARTING) {
        if (now > since) out->start_ns += now - since;
    } else if (ipc_claimed_by(s, slot, &r)) {
        out->doing = ipc_word_state(r.word) == IPC_STORING ? IPC_IS_WAITING : IPC_IS_BUSY;
        if (r.started && r.started < now) out->busy_ns += now - r.started;
    }
}

void ipc_slot_spans(struct ipc_segment *s, uint32_t slot, uint64_t now, struct ipc_spans *out) {
    struct ipc_slot *line = &s->slot[slot];
    struct ipc_running r;
    atomic_store_explicit(&out->folds, shift_of(&line->spans) - IPC_SPAN_SHIFT, memory_order_relaxed);
    for (uint32_t k = 0; k < IPC_SPANS; k++) atomic_store_explicit(&out->busy[k], load(&line->spans.busy[k]), memory_order_relaxed);
    int alive = atomic_load_explicit(&line->pid, memory_order_relaxed) != 0; /* of the dead it is booked */
    if (alive && ipc_claimed_by(s, slot, &r) && r.started >= s->created) ipc_spend(out, r.started - s->created, now - s->created);
}

uint64_t ipc_resident(uint64_t *peak) {
    struct rusage usage;
    if (getrusage(RUSAGE_SELF, &usage) == 0 && (uint64_t)usage.ru_maxrss * 1024 > *peak) return *peak = (uint64_t)usage.ru_maxrss * 1024;
    char text[128], *resident; /* "size resident shared ...", in pages */
    int fd = open("/proc/self/statm", O_RDONLY | O_CLOEXEC);
    if (fd < 0) return 0;
    ssize_t n = read(fd, text, sizeof(text) - 1);
    close(fd);
    text[n > 0 ? n : 0] = 0;
    strtoull(text, &resident, 10);
    return strtoull(resident, NULL, 10) * (uint64_t)sysconf(_SC_PAGESIZE);
}

/* ---- a function */

void ipc_count(struct ipc_tally *t, int failed, struct ipc_spent spent) {
    uint64_t ns = ipc_from_brief(spent.run), bytes = ipc_from_brief(spent.resident);
    if (t->count++ == 0 || ns < t->shortest_ns) t->shortest_ns = ns;
    if (ns > t->longest_ns) t->longest_ns = ns;
    if (bytes) {
        t->user_ns += ipc_from_brief(spent.user);
        t->system_ns += ipc_from_brief(spent.system);
    }
    if (bytes > t->resident) t->resident = bytes;
    t->failed += failed != 0;
    t->total_ns += ns;
    t->took[spent.run >> IPC_TOOK_SHIFT]++;
}

uint64_t ipc_quantile(const struct ipc_tally *t, double q) {
    uint64_t before = 0, ns = 0;
    double rank = q * (double)t->count;
    for (uint32_t k = 0; k < sizeof(t->took) / sizeof(*t->took); k++) {
        uint64_t n = t->took[k];
        if (n && (double)(before + n) >= rank) { /* as if those of one class stood at equal distances */
            double low = (double)ipc_from_brief((uint16_t)(k << IPC_TOOK_SHIFT)), high = (double)ipc_from_brief((uint16_t)((k + 1) << IPC_TOOK_SHIFT));
            ns = (uint64_t)(low + (high - low) * (rank - (double)before) / (double)n);
            break;
        }
        before += n;
    }
    return ns < t->shortest_ns ? t->shortest_ns : ns > t->longest_ns ? t->longest_ns : ns;
}
