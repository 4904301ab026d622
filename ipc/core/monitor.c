/* The monitor's steps: who lives in a slot, who died, which task is over its deadline, which has a memory limit. It never settles a row. */
#include "core.h"

#include <string.h>

int ipc_may_fork(struct ipc_segment *s, uint32_t slot, uint32_t generation) {
    return generation - atomic_load_explicit(&s->slot[slot].settled, memory_order_acquire) < IPC_DEATHS;
}

void ipc_slot_begin(struct ipc_segment *s, uint32_t slot, uint32_t generation) {
    struct ipc_slot *line = &s->slot[slot];
    atomic_store_explicit(&line->phase, IPC_STARTING, memory_order_relaxed);
    atomic_store_explicit(&line->started_word, 0, memory_order_relaxed);
    atomic_store_explicit(&line->user_ns, 0, memory_order_relaxed);
    atomic_store_explicit(&line->system_ns, 0, memory_order_relaxed);
    atomic_store_explicit(&line->generation, generation, memory_order_release);
}

void ipc_slot_forked(struct ipc_segment *s, uint32_t slot, int32_t pid) { atomic_store_explicit(&s->slot[slot].pid, pid, memory_order_release); }

void ipc_record_death(struct ipc_segment *s, uint32_t slot, const struct ipc_death *death) {
    struct ipc_header *h = s->header;
    uint64_t bit = UINT64_C(1) << (slot & 63);
    /* The dead's bits first: a wake spent on the dead is passed on by the rings below, and its successor's bit must not be wiped. */
    atomic_fetch_and_explicit(&h->sleepers[slot >> 6], ~bit, memory_order_seq_cst);
    atomic_fetch_and_explicit(&h->spinners[slot >> 6], ~bit, memory_order_seq_cst);
    ipc_book_death(s, slot, ipc_now());
    uint32_t guard = slot + 1;
    atomic_compare_exchange_strong_explicit(&h->guard, &guard, 0, memory_order_seq_cst, memory_order_relaxed);
    atomic_store_explicit(&s->slot[slot].pid, 0, memory_order_relaxed);
    s->slot[slot].deaths[death->generation % IPC_DEATHS] = *death;
    /* SYNC POINT: release after waitid and after the record: who sees `reaped` sees the record and all stores of the dead. */
    atomic_store_explicit(&s->slot[slot].reaped, death->generation + 1, memory_order_release);
    atomic_fetch_add_explicit(&h->deaths, 1, memory_order_seq_cst);
    /* Unconditional: the dead may have taken a bit and died before it rang. */
    ipc_ring_client(s);
    for (uint32_t k = 0; k < s->slots; k++) ipc_ring_slot(s, k);
}

int ipc_claimed_by(struct ipc_segment *s, uint32_t slot, struct ipc_running *out) {
    struct ipc_slot *line = &s->slot[slot];
    uint32_t row = atomic_load_explicit(&line->intent, memory_order_relaxed), generation = atomic_load_explicit(&line->generation, memory_order_relaxed);
    if (row >= s->rows) return 0;
    /* intent is stored before the claim, so a claim that is visible here has its intent; an intent alone proves nothing. */
    uint64_t word = atomic_load_explicit(&s->row[row].word, memory_order_acquire);
    uint32_t state = ipc_word_state(word);
    if (state != IPC_RUNNING && state != IPC_STORING && state != IPC_CONDEMNED) return 0;
    if (ipc_word_slot(word) != slot || ipc_word_generation(word) != (generation & IPC_MASK(IPC_GENERATION_BITS))) return 0;
    uint64_t stamped = atomic_load_explicit(&line->started_word, memory_order_acquire);
    *out = (struct ipc_running){slot, generation, row, atomic_load_explicit(&s->row[row].timeout_ms, memory_order_relaxed), word,
                                stamped == ipc_word_with_state(word, IPC_RUNNING) ? atomic_load_explicit(&line->started, memory_order_relaxed) : 0,
                                atomic_load_explicit(&line->progress, memory_order_relaxed)};
    return 1;
}

int ipc_running(struct ipc_segment *s, uint32_t slot, struct ipc_running *out) {
    return ipc_claimed_by(s, slot, out) && ipc_word_state(out->word) != IPC_STORING;
}

uint64_t ipc_deadlines(struct ipc_segment *s, struct ipc_watch *watch, uint64_t now, struct ipc_running *expired, uint32_t most, uint32_t *count) {
    struct ipc_header *h = s->header;
    *count = 0;
    uint64_t shortest = (uint64_t)atomic_load_explicit(&h->shortest_ms, memory_order_acquire) * 1000000u;
    if (atomic_load_explicit(&h->armed, memory_order_seq_cst) == 0)
        return atomic_load_explicit(&h->monitor_idle, memory_order_relaxed) || shortest == 0 ? UINT64_MAX : now + shortest;
    /* A task claimed after this look cannot be over its deadline before the shortest deadline has passed. */
    uint64_t next = now + shortest;
    for (uint32_t slot = 0; slot < s->slots; slot++) {
        struct ipc_running r;
        if (!ipc_running(s, slot, &r) || ipc_word_state(r.word) != IPC_RUNNING || r.timeout_ms == 0) continue;
        if (watch->word[slot] != r.word) {
            watch->word[slot] = r.word;
            watch->seen[slot] = now;
        }
        if (r.started == 0) r.started = watch->seen[slot];
        uint64_t deadline = r.started + (uint64_t)r.timeout_ms * 1000000u;
        if (deadline <= now) {
            if (*count < most)
                expired[(*count)++] = r;
            else
                next = now; /* more than fit: look again at once */
        } else if (deadline < next) {
            next = deadline;
        }
    }
    return next;
}

uint32_t ipc_limited(struct ipc_segment *s, struct ipc_limited *out) {
    uint32_t n = 0;
    for (uint32_t slot = 0; slot < s->slots; slot++) {
        struct ipc_running r;
        if (!ipc_running(s, slot, &r) || ipc_word_state(r.word) != IPC_RUNNING) continue;
        uint64_t limit = atomic_load_explicit(&s->row[r.row].memory_limit, memory_order_relaxed);
        if (limit == 0) continue;
        struct ipc_slot *line = &s->slot[slot];
        /* May be those of a later task by now. Then this one's word has changed before, and nobody can condemn it any more. */
        out[n++] = (struct ipc_limited){slot, r.generation, r.row, r.word, limit, r.started,
                                        atomic_load_explicit(&line->anonymous, memory_order_relaxed),
                                        atomic_load_explicit(&line->dirtied, memory_order_relaxed),
                                        atomic_load_explicit(&line->faults, memory_order_relaxed),
                                        atomic_load_explicit(&line->peak, memory_order_relaxed)};
    }
    return n;
}

void ipc_retire(struct ipc_segment *s, uint32_t slot, uint32_t generation) {
    /* SYNC POINT: before the ring; a worker loads its bell, then looks at this: it sees it, or does not sleep on the bell that it has loaded. */
    atomic_store_explicit(&s->slot[slot].retire, generation, memory_order_seq_cst);
    ipc_ring_slot(s, slot);
}

uint32_t ipc_leaver(struct ipc_segment *s) { return atomic_load_explicit(&s->header->leaver, memory_order_acquire); }

void ipc_next_leaver(struct ipc_segment *s) {
    /* seq_cst, then the bells, as above: who sleeps may leave now. */
    atomic_store_explicit(&s->header->leaver, 0, memory_order_seq_cst);
    for (uint32_t k = 0; k < s->slots; k++) ipc_ring_slot(s, k);
}

void ipc_set_renewed(struct ipc_segment *s, uint32_t count) {
    atomic_store_explicit(&s->header->renewed, count, memory_order_release);
    ipc_ring_client(s);
}

uint32_t ipc_renewed(struct ipc_segment *s) { return atomic_load_explicit(&s->header->renewed, memory_order_acquire); }

void ipc_stop_workers(struct ipc_segment *s) {
    atomic_store_explicit(&s->header->stop, 1, memory_order_seq_cst);
    for (uint32_t k = 0; k < s->slots; k++) ipc_ring_slot(s, k);
}
