/* The client's steps: publish, sweep, settle, cancel, condemn, sleep. One thread at a time (the caller holds a lock), but for ipc_client_spin and
 * ipc_client_sleep, which touch nothing private but `wanted`. The client is never killed alone: its death ends the pool. So its private arrays are the
 * truth, and the segment is checked against them. */
#include "core.h"

#include <string.h>

#define JUDGE_NS 20000u    /* how long to watch the head before judging how fast the awake workers are */
#define WARM_UNITS 256u    /* of each half: 16 MiB */
#define BACKLOG_NS 100000u /* ready rows that will be gone so soon are not worth a wake */

void ipc_client_init(struct ipc_client *c, struct ipc_segment *s) {
    memset(c, 0, sizeof(*c));
    c->s = s;
    for (uint32_t row = s->rows; row > 0; row--) c->free_row[c->free_count++] = row - 1;
}

static uint64_t load_word(struct ipc_segment *s, uint32_t row) {
    /* SYNC POINT: acquire pairs with the worker's release CAS; what it wrote before is visible. */
    return atomic_load_explicit(&s->row[row].word, memory_order_acquire);
}

/* ---- rows: a row is used again only when head has passed its last entry, so each row has at most one entry in the ring */

static int head_has_passed(struct ipc_client *c, uint32_t row) {
    /* seq_cst: in want of a row we say that we sleep, then look at head; the worker moves head, then looks whether we sleep. */
    return atomic_load_explicit(&c->s->header->head, memory_order_seq_cst) > c->position[row];
}

static void put_row(struct ipc_client *c, uint32_t row) {
    if (head_has_passed(c, row))
        c->free_row[c->free_count++] = row;
    else
        c->cooling[c->cooling_count++] = row;
}

static int row_has_cooled(struct ipc_client *c) {
    for (uint32_t k = 0; k < c->cooling_count; k++)
        if (head_has_passed(c, c->cooling[k])) return 1;
    return 0;
}

/* No row is free. Another thread may be asleep, but not in want of a row: it is now. Or it has looked, and is about to say that it sleeps: seq_cst; we
 * count, then look whether it sleeps; it says so, then looks whether we have counted. */
static void want_row(struct ipc_client *c) {
    struct ipc_header *h = c->s->header;
    uint32_t asleep = 1;
    c->wanting = 1;
    atomic_fetch_add_explicit(&c->wanted, 1, memory_order_seq_cst);
    /* SYNC POINT: seq_cst; we say that a row is wanted, then look at head; the worker moves head, then looks whether a row is wanted. */
    if (atomic_compare_exchange_strong_explicit(&h->client_asleep, &asleep, 2, memory_order_seq_cst, memory_order_seq_cst) && row_has_cooled(c))
        ipc_ring_client(c->s);
}

static int take_row(struct ipc_client *c, uint32_t *row) {
    if (c->free_count == 0) {
        uint32_t kept = 0;
        for (uint32_t k = 0; k < c->cooling_count; k++) {
            if (head_has_passed(c, c->cooling[k]))
                c->free_row[c->free_count++] = c->cooling[k];
            else
                c->cooling[kept++] = c->cooling[k];
        }
        c->cooling_count = kept;
    }
    if (c->free_count == 0) return 0;
    *row = c->free_row[--c->free_count];
    return 1;
}

/* ---- publish */

static int store_args(struct ipc_client *c, uint32_t row, uint32_t seq, const struct ipc_task *task) {
    uint64_t count = ipc_units_for(ipc_pieces_length(task->piece, task->pieces));
    int64_t unit = ipc_units_take(c->s, 0, c->s->units / 2, count, ipc_owner(row, seq));
    /* What workers have kept may never come back: only what is in flight is worth waiting for. */
    if (unit == IPC_NO_ROOM && c->args_units == 0) return IPC_TOO_LARGE;
    if (unit < 0) return (int)unit;
    ipc_pieces_copy(c->s->payload + (uint64_t)unit * IPC_UNIT_SIZE, task->piece, task->pieces);
    c->args_ref[row][0] = (uint32_t)unit;
    c->args_ref[row][1] = (uint32_t)count;
    c->args_units += (uint32_t)count;
    if (unit + (int64_t)count > c->top_args) c->top_args = (uint32_t)(unit + (int64_t)count);
    return 0;
}

static void arm(struct ipc_client *c, uint32_t row, uint32_t look_ms) {
    struct ipc_header *h = c->s->header;
    c->deadline[row] = 1;
    uint32_t shortest = atomic_load_explicit(&h->shortest_ms, memory_order_relaxed);
    if (shortest == 0 || look_ms < shortest) {
        atomic_store_explicit(&h->shortest_ms, look_ms, memory_order_release);
        c->shortened = 1; /* the monitor may sleep for the former one */
    }
    /* seq_cst: "armed, then is the monitor idle?" against the monitor's "idle, then is something armed?" */
    atomic_store_explicit(&h->armed, ++c->armed, memory_order_seq_cst);
}

/* How soon after its claim the task may be over one of its limits, at the earliest; 0: it has none. */
static uint32_t ms_to_look(const struct ipc_task *task) {
    if (!task->memory_limit && !(task->flags & IPC_CAPTURE)) return task->timeout_ms;
    uint64_t ms = task->memory_limit ? task->memory_limit / (IPC_FILL_RATE / 1000) : IPC_LOOK_MS;
    if (ms < 1) ms = 1;
    if (ms > IPC_LOOK_MS) ms = IPC_LOOK_MS;
    return task->timeout_ms && task->timeout_ms < ms ? task->timeout_ms : (uint32_t)ms;
}

static void enter(struct ipc_client *c, uint32_t row) {
    c->position[row] = c->tail;
    atomic_store_explicit(&c->s->ring[c->tail & c->s->ring_mask], (uint64_t)c->seq[row] << 32 | row, memory_order_relaxed);
    c->tail++;
    /* SYNC POINT: seq_cst publishes the entry and orders it before the look at the sleepers; the sleeper sets its bit, then looks at tail. With
     * release only, both looks may be satisfied early (store buffering, x86 too), and the task would wait for a timeout. */
    atomic_store_explicit(&c->s->header->tail, c->tail, memory_order_seq_cst);
}

static void fill_row(struct ipc_client *c, uint32_t row, const struct ipc_task *task, uint64_t args_len) {
    struct ipc_row *r = &c->s->row[row];
    r->started = 0;
    r->fn = task->fn;
    r->fn_generation = task->fn_generation;
    r->fn_unit = task->fn_unit;
    r->fn_len = task->fn_len;
    r->args_len = args_len;
    r->items = task->items;
    atomic_store_explicit(&r->timeout_ms, task->timeout_ms, memory_order_relaxed);
    atomic_store_explicit(&r->memory_limit, task->memory_limit, memory_order_relaxed);
    r->flags = task->flags;
    r->attempt = task->attempt;
    r->kind = 0;
    r->spent = (struct ipc_spent){0};
    atomic_store_explicit(&r->result_ref, 0, memory_order_relaxed);
    atomic_store_explicit(&r->result_len, 0, memory_order_relaxed);
    atomic_store_explicit(&r->offered, 0, memory_order_relaxed);
    atomic_store_explicit(&r->drained, 0, memory_order_relaxed);
}

int ipc_publish(struct ipc_client *c, const struct ipc_task *task) {
    struct ipc_segment *s = c->s;
    struct ipc_header *h = s->header;
    uint32_t row;
    c->wanting = 0;
    if (!take_row(c, &row)) {
        want_row(c);
        return IPC_FULL;
    }
    struct ipc_row *r = &s->row[row];
    uint32_t seq = (c->seq[row] + 1) & (uint32_t)IPC_MASK(IPC_SEQ_BITS);
    c->args_ref[row][1] = 0;
    uint64_t args_len = ipc_pieces_length(task->piece, task->pieces);
    if (args_len > IPC_INLINE) {
        int code = store_args(c, row, seq, task);
        if (code < 0) {
            c->free_row[c->free_count++] = row;
            return code;
        }
        r->args_unit = c->args_ref[row][0];
    } else {
        ipc_pieces_copy(r->body, task->piece, task->pieces);
        r->args_unit = IPC_NO_UNIT;
    }
    fill_row(c, row, task, args_len);
    uint32_t look_ms = ms_to_look(task);
    if (look_ms) arm(c, row, look_ms);
    c->seq[row] = seq;
    c->items[row] = task->items;
    c->drained[row] = 0;
    c->since[row] = task->since ? task->since : ipc_now();
    c->published[row] = ipc_word(IPC_READY, 0, 0, seq, 0);
    c->in_flight++;
    /* SYNC POINT: release; whoever claims (acquire) sees the arguments. */
    atomic_store_explicit(&r->word, c->published[row], memory_order_release);
    enter(c, row);
    if (ipc_count_bits(h->sleepers, s->slots) == s->slots) ipc_wake_workers(s, 1);
    if ((c->tail & 15) == 0) ipc_flush_wakes(c);
    return (int)row;
}

/* Owed before the client sleeps or returns to user code: one awake worker for each ready row, as far as there are sleepers.
 *
 * A wake costs more than a short task, so it is put off while the head moves so fast that the backlog will be gone in BACKLOG_NS. Only while a
 * guard sleeps: it looks at the ring every millisecond, so a misjudged row (a long task behind short ones) waits for a millisecond at most.
 * A spinning worker counts as awake: it clears its bit before it sets its sleeper bit and then looks at tail again; so does a guard that retires. */
unsigned ipc_flush_wakes(struct ipc_client *c) {
    struct ipc_header *h = c->s->header;
    uint64_t head = atomic_load_explicit(&h->head, memory_order_acquire);
    c->too_early = 0;
    if (head >= c->tail) return 0;
    uint64_t ready = c->tail - head, spinning = ipc_count_bits(h->spinners, c->s->slots);
    uint32_t sleepers = ipc_count_bits(h->sleepers, c->s->slots), awake = c->s->slots - sleepers;
    if (ready <= spinning || sleepers == 0) return 0;
    uint64_t most = ready; /* not less the spinners: one of them may have its sleeper bit set by now, and be counted twice */
    if (atomic_load_explicit(&h->guard, memory_order_seq_cst)) {
        uint64_t now = ipc_now(), ns = now - c->judged_at, moved = head - c->judged_head;
        c->too_early = ns < JUDGE_NS;
        if (c->too_early) return 0;
        c->judged_at = now;
        c->judged_head = head;
        if (moved && ready * ns <= moved * BACKLOG_NS) return 0;
        if (moved && most > ready * ns / (moved * BACKLOG_NS)) most = ready * ns / (moved * BACKLOG_NS);
        /* Beyond the cores more workers make nothing faster unless tasks block, and then the guard wakes them all. */
        uint64_t useful = awake < c->s->cores ? c->s->cores - awake : 1;
        if (most > useful) most = useful;
    }
    return ipc_wake_workers(c->s, most);
}

/* ---- collect */

int ipc_next_done(struct ipc_client *c) {
    struct ipc_header *h = c->s->header;
    for (;;) {
        while (c->swept_summary) {
            uint32_t k = (uint32_t)__builtin_ctzll(c->swept_summary);
            while (c->swept[k]) {
                uint32_t row = k * 64 + (uint32_t)__builtin_ctzll(c->swept[k]);
                c->swept[k] &= c->swept[k] - 1;
                /* A bit is a hint, never proof: only the row word says DONE. */
                if (row >= c->s->rows || !c->published[row]) continue;
                uint64_t word = load_word(c->s, row);
                if (ipc_word_seq(word) != c->seq[row]) continue;
                if (ipc_word_state(word) == IPC_DONE || ipc_offers(c, row)) return (int)row;
            }
            c->swept_summary &= ~(UINT64_C(1) << k);
        }
        if (atomic_load_explicit(&h->done_summary, memory_order_relaxed) == 0) return IPC_EMPTY;
        /* The worker sets its bit first and the summary second; we take them in the other order, so a bit set after our look at its word has
         * its summary bit set again. */
        uint64_t summary = atomic_exchange_explicit(&h->done_summary, 0, memory_order_seq_cst);
        for (; summary; summary &= summary - 1) {
            uint32_t k = (uint32_t)__builtin_ctzll(summary);
            c->swept[k] |= atomic_exchange_explicit(&h->done[k], 0, memory_order_seq_cst);
            if (c->swept[k]) c->swept_summary |= UINT64_C(1) << k;
        }
    }
}

/* It could not be taken now: a hint as its worker's, which is found when all others were. */
void ipc_not_taken(struct ipc_client *c, uint32_t row) {
    struct ipc_header *h = c->s->header;
    atomic_fetch_or_explicit(&h->done[row / 64], UINT64_C(1) << (row & 63), memory_order_seq_cst);
    atomic_fetch_or_explicit(&h->done_summary, UINT64_C(1) << (row / 64), memory_order_seq_cst);
}

/* A chunk without room for its next result offers what it has committed, so that no chunk can hold room that another one waits for. Its frames
 * are those of items drained+1 .. offered. */
int ipc_offers(struct ipc_client *c, uint32_t row) {
    if (!c->items[row] || ipc_word_state(load_word(c->s, row)) != IPC_STORING) return 0;
    /* SYNC POINT: acquire pairs with the worker's release of `offered`: the frames are whole. */
    uint32_t offered = atomic_load_explicit(&c->s->row[row].offered, memory_order_acquire);
    return offered > c->drained[row] && offered <= c->items[row] ? (int)(offered - c->drained[row]) : 0;
}

void ipc_drained(struct ipc_client *c, uint32_t row, uint32_t items) {
    c->drained[row] += items;
    /* SYNC POINT: release after the copy: the worker that sees it may free the run that held the frames. */
    atomic_store_explicit(&c->s->row[row].drained, c->drained[row], memory_order_release);
}

int ipc_read_result(struct ipc_client *c, uint32_t row, struct ipc_result *result) {
    struct ipc_segment *s = c->s;
    struct ipc_row *r = &s->row[row];
    uint64_t word = load_word(s, row), ref = atomic_load_explicit(&r->result_ref, memory_order_acquire);
    uint64_t room = IPC_INLINE;
    result->data = r->body;
    result->length = atomic_load_explicit(&r->result_len, memory_order_acquire);
    result->kind = r->kind;
    result->started = r->started;
    result->pid = r->pid;
    result->spent = r->spent;
    result->slot = ipc_word_slot(word);
    result->generation = ipc_word_generation(word);
    result->unit = result->units = 0;
    if (ref) {
        uint64_t unit = ref >> 32, count = ref & UINT32_MAX;
        if (unit + count > s->units) return IPC_DAMAGED;
        for (uint64_t k = unit; k < unit + count; k++)
            if (atomic_load_explicit(&s->owner[k], memory_order_acquire) != ipc_owner(row, c->seq[row])) return IPC_DAMAGED;
        room = count * IPC_UNIT_SIZE;
        result->data = s->payload + unit * IPC_UNIT_SIZE;
        if (unit + count > c->top_result) c->top_result = (uint32_t)(unit + count);
        result->unit = (uint32_t)unit;
        result->units = (uint32_t)count;
    }
    return result->length <= room ? 0 : IPC_DAMAGED;
}

/* The result becomes a value that the client's program holds for as long as it likes. At most half of the room for results may be held so, or
 * there would be none for results on their way. */
int ipc_adopt(struct ipc_client *c, uint32_t row, struct ipc_result *result) {
    uint32_t count = (uint32_t)ipc_units_for(result->length);
    if (c->view_units + count > c->s->units / 4) return 0;
    ipc_units_give(c->s, result->unit, count, ipc_owner(row, c->seq[row]), IPC_OWNER_VIEW);
    result->units = count; /* those beyond its length are freed with the row */
    c->view_units += count;
    return 1;
}

/* The program holds it no more; the next trim may punch it out. */
void ipc_dropped(struct ipc_client *c, uint32_t unit, uint32_t count) {
    c->view_units -= count;
    if (unit + count > c->top_result) c->top_result = unit + count;
}

static void forget(struct ipc_client *c, uint32_t row) {
    struct ipc_segment *s = c->s;
    uint64_t owner = ipc_owner(row, c->seq[row]);
    if (c->args_ref[row][1]) {
        ipc_units_free(s, c->args_ref[row][0], c->args_ref[row][1], owner);
        c->args_units -= c->args_ref[row][1];
        c->args_ref[row][1] = 0;
    }
    uint64_t ref = atomic_load_explicit(&s->row[row].result_ref, memory_order_acquire);
    if (ref) ipc_units_free(s, (uint32_t)(ref >> 32), (uint32_t)ref, owner); /* frees what is owned by this row, whatever the reference says */
    if (c->deadline[row]) {
        c->deadline[row] = 0;
        atomic_store_explicit(&s->header->armed, --c->armed, memory_order_seq_cst);
    }
    c->published[row] = 0;
    c->in_flight--;
}

void ipc_release_row(struct ipc_client *c, uint32_t row) {
    struct ipc_segment *s = c->s;
    uint32_t state = ipc_word_state(load_word(s, row));
    if (state == IPC_STORING || state == IPC_CONDEMNED) /* its worker is dead and may have taken units that no reference names yet */
        ipc_units_free_all(s, ipc_owner(row, c->seq[row]));
    forget(c, row);
    atomic_store_explicit(&s->row[row].word, ipc_word(IPC_FREE, 0, 0, c->seq[row], 0), memory_order_release);
    put_row(c, row);
}

int ipc_cancel(struct ipc_client *c, uint32_t row) {
    uint64_t ready = c->published[row];
    if (!ready || !atomic_compare_exchange_strong_explicit(&c->s->row[row].word, &ready, ipc_word(IPC_FREE, 0, 0, c->seq[row], 0),
                                                           memory_order_acq_rel, memory_order_acquire))
        return 0;
    forget(c, row);
    put_row(c, row); /* its entry is stale now: the seq in it will not match, a worker skips it */
    return 1;
}

int ipc_condemn(struct ipc_segment *s, uint32_t row, uint64_t word) {
    if (row >= s->rows || ipc_word_state(word) != IPC_RUNNING) return 0;
    return atomic_compare_exchange_strong_explicit(&s->row[row].word, &word, ipc_word_with_state(word, IPC_CONDEMNED), memory_order_acq_rel,
                                                   memory_order_acquire);
}

/* ---- settle */

int ipc_next_dead(struct ipc_client *c, uint32_t *slot, uint32_t *reaped) {
    struct ipc_segment *s = c->s;
    uint32_t deaths = atomic_load_explicit(&s->header->deaths, memory_order_seq_cst);
    if (deaths == c->deaths_seen) return IPC_EMPTY;
    for (uint32_t k = 0; k < s->slots; k++) {
        /* SYNC POINT: acquire; the monitor waited for the process before it stored this, so all stores of the dead are visible below. */
        uint32_t n = atomic_load_explicit(&s->slot[k].reaped, memory_order_acquire);
        if (n == atomic_load_explicit(&s->slot[k].settled, memory_order_relaxed)) continue;
        *slot = k;
        *reaped = n;
        return 1;
    }
    c->deaths_seen = deaths; /* only now: everything that died before the load above is settled */
    return IPC_EMPTY;
}

uint32_t ipc_settle(struct ipc_client *c, uint32_t slot, uint32_t reaped, struct ipc_settled *out, uint32_t most) {
    struct ipc_segment *s = c->s;
    uint32_t n = 0;
    for (uint32_t row = 0; row < s->rows && n < most; row++) {
        if (!c->published[row]) continue;
        uint64_t word = load_word(s, row);
        uint32_t state = ipc_word_state(word), generation = ipc_word_generation(word);
        if (state == IPC_READY || state == IPC_FREE || ipc_word_slot(word) != slot) continue;
        if ((int16_t)(uint16_t)(generation - reaped) >= 0) continue; /* the living successor's: hands off */
        if (state == IPC_DONE) { /* finished before its worker died: it counts, with or without its hint */
            c->swept[row / 64] |= UINT64_C(1) << (row & 63);
            c->swept_summary |= UINT64_C(1) << (row / 64);
            continue;
        }
        out[n++] = (struct ipc_settled){row, state, ipc_word_item(word), generation};
    }
    return n;
}

void ipc_settled(struct ipc_client *c, uint32_t slot, uint32_t reaped) {
    ipc_units_free_kept(c->s, slot, reaped);
    atomic_store_explicit(&c->s->slot[slot].settled, reaped, memory_order_release);
}

/* ---- sleep: looking at the client's private words (one thread at a time) is apart from sleeping (beside threads that publish) */

void ipc_client_look(struct ipc_client *c, struct ipc_look *look) {
    *look = (struct ipc_look){.wanted_now = &c->wanted, .wanted = atomic_load_explicit(&c->wanted, memory_order_relaxed), .deaths_seen = c->deaths_seen,
                              .swept = c->swept_summary != 0, .too_early = c->too_early, .wanting = c->wanting};
    if (!c->wanting) return;
    look->cooling = UINT64_MAX;
    for (uint32_t k = 0; k < c->cooling_count; k++)
        if (c->position[c->cooling[k]] < look->cooling) look->cooling = c->position[c->cooling[k]];
    if (!row_has_cooled(c)) return;
    look->swept = 1;
    c->wanting = 0; /* said once: if nothing waits for a row any more, no publish would take it back, and we would never sleep */
}

static int something_to_do(struct ipc_segment *s, const struct ipc_look *look) {
    struct ipc_header *h = s->header;
    if (look->wanting && atomic_load_explicit(&h->head, memory_order_seq_cst) > look->cooling) return 1;
    return look->swept || atomic_load_explicit(&h->done_summary, memory_order_seq_cst) ||
           atomic_load_explicit(&h->deaths, memory_order_seq_cst) != look->deaths_seen;
}

int ipc_client_spin(struct ipc_segment *s, const struct ipc_look *look, uint64_t spin_ns) {
    if (something_to_do(s, look)) return 1;
    /* Only where a core is left for us: a spinning client that takes a worker's core makes both slower. */
    if (spin_ns == 0 || s->slots - ipc_count_bits(s->header->sleepers, s->slots) >= s->cores) return 0;
    for (uint64_t end = ipc_now() + spin_ns; ipc_now() < end;)
        for (int k = 0; k < 32; k++) {
            if (something_to_do(s, look)) return 1;
            ipc_pause();
        }
    return 0;
}

int ipc_client_sleep(struct ipc_segment *s, const struct ipc_look *look, uint64_t *timeout_ns) {
    struct ipc_header *h = s->header;
    /* Too early to judge the wakes: a nap, and look again, or the second task of a burst would wait for the guard. */
    int nap = look->too_early && *timeout_ns > JUDGE_NS;
    uint32_t seen = atomic_load_explicit(&h->client_bell, memory_order_seq_cst);
    /* SYNC POINT: seq_cst; we say that we sleep, then look; a worker says that it is done, then looks whether we sleep. */
    atomic_store_explicit(&h->client_asleep, look->wanting ? 2 : 1, memory_order_seq_cst);
    /* The same with a thread that has found no row since we looked: it counts, then takes note of our sleep. */
    int news = something_to_do(s, look) || atomic_load_explicit(look->wanted_now, memory_order_seq_cst) != look->wanted;
    int code = news ? 0 : ipc_futex_wait(&h->client_bell, seen, nap ? JUDGE_NS : *timeout_ns);
    atomic_store_explicit(&h->client_asleep, 0, memory_order_seq_cst);
    if (something_to_do(s, look)) return 0;
    *timeout_ns = nap && code == IPC_EMPTY ? *timeout_ns - JUDGE_NS : 0;
    return code;
}

int ipc_client_listen(struct ipc_client *c) {
    struct ipc_header *h = c->s->header;
    struct ipc_look look;
    ipc_flush_wakes(c);
    ipc_client_look(c, &look);
    /* SYNC POINT: seq_cst, both before the look. A worker says that it is done, then takes the sleep, then looks whether we listen: what it takes
     * too early to ring the wire for, the look below finds. From here to the loop's own wait nothing is looked at: the wire keeps what was sent. */
    atomic_store_explicit(&h->listening, 1, memory_order_seq_cst);
    atomic_store_explicit(&h->client_asleep, look.wanting ? 2 : 1, memory_order_seq_cst);
    if (something_to_do(c->s, &look)) {
        ipc_client_heard(c->s);
        return 1;
    }
    return look.too_early; /* asleep, but who has published so much must judge its wakes soon, or the second task of a burst waits for the guard */
}

void ipc_client_heard(struct ipc_segment *s) {
    /* The caller looks afterwards. Who has taken the sleep and finds nobody listening has said its news before these stores, so they are seen. */
    atomic_store_explicit(&s->header->client_asleep, 0, memory_order_seq_cst);
    atomic_store_explicit(&s->header->listening, 0, memory_order_seq_cst);
}

int ipc_client_wait(struct ipc_client *c, uint64_t spin_ns, uint64_t timeout_ns) {
    struct ipc_look look;
    ipc_client_look(c, &look);
    if (ipc_client_spin(c->s, &look, spin_ns)) return 0;
    int code;
    do {
        ipc_flush_wakes(c);
        ipc_client_look(c, &look);
        code = ipc_client_sleep(c->s, &look, &timeout_ns);
    } while (code == IPC_EMPTY && timeout_ns);
    return code;
}

/* Whether the word of a published row is one that somebody may still move on: as published, done, or owned by a worker that is alive or not yet
 * settled, and that does not sleep. Any other word would stay for ever: it was damaged. */
static int word_can_be(struct ipc_client *c, uint32_t row, uint64_t word) {
    struct ipc_segment *s = c->s;
    uint32_t state = ipc_word_state(word), k = ipc_word_slot(word), generation = ipc_word_generation(word);
    if (word == c->published[row]) return 1;
    if (ipc_word_seq(word) != c->seq[row] || state < IPC_RUNNING || state > IPC_CONDEMNED || k >= s->slots) return 0;
    if (state == IPC_DONE) return 1;
    uint32_t settled = atomic_load_explicit(&s->slot[k].settled, memory_order_relaxed);
    uint32_t latest = atomic_load_explicit(&s->slot[k].generation, memory_order_acquire); /* stored before the fork, so before any claim */
    if ((int16_t)(uint16_t)(generation - settled) < 0 || (int16_t)(uint16_t)(latest - generation) < 0) return 0;
    /* A worker's bit is taken before it claims, and a dead one's before the next one is forked. So a bit between two looks at one and the same
     * word means that its owner sleeps. */
    if (!(atomic_load_explicit(&s->header->sleepers[k >> 6], memory_order_seq_cst) >> (k & 63) & 1)) return 1;
    return generation != (latest & IPC_MASK(IPC_GENERATION_BITS)) || load_word(s, row) != word;
}

int ipc_idle_scan(struct ipc_client *c) {
    struct ipc_segment *s = c->s;
    struct ipc_header *h = s->header;
    int healed = 0;
    uint64_t head = atomic_load_explicit(&h->head, memory_order_acquire); /* before the words: past an entry, its claim is visible */
    int entered = 0;
    for (uint32_t k = 0; k < (s->rows + 63) / 64; k++) {
        uint64_t hinted = atomic_load_explicit(&h->done[k], memory_order_seq_cst) | c->swept[k], lost = 0;
        for (uint32_t row = k * 64; row < s->rows && row < k * 64 + 64; row++) {
            if (!c->published[row]) continue;
            uint64_t word = load_word(s, row);
            if (!word_can_be(c, row, word)) return IPC_DAMAGED;
            /* A worker between its CAS and its hint is not a fault; one that has been there, in the same use of the row, for a whole bounded wait is. */
            uint64_t bit = UINT64_C(1) << (row & 63);
            int unhinted = ipc_word_state(word) == IPC_DONE && !(hinted & bit);
            if (unhinted && c->suspect[row] == c->published[row]) lost |= bit;
            c->suspect[row] = unhinted ? c->published[row] : 0;
            if (word != c->published[row] || head <= c->position[row]) continue;
            enter(c, row); /* ready, but its entry is spent: it was damaged, nobody would ever claim the row */
            entered = 1;
            healed++;
        }
        if (!lost) continue;
        c->swept[k] |= lost;
        c->swept_summary |= UINT64_C(1) << k;
        healed += __builtin_popcountll(lost);
    }
    if (entered)
        ipc_wake_workers(s, UINT64_MAX);
    else if (head < c->tail && head + 1 == c->idle_head)
        healed += (int)ipc_wake_workers(s, UINT64_MAX);
    c->idle_head = head < c->tail ? head + 1 : 0;
    c->healed += (unsigned)healed;
    return healed;
}

/* A few units stay warm for what comes next: the first touch of a page costs many times what copying into it does. */
void ipc_trim(struct ipc_client *c) {
    if (c->in_flight) return;
    uint32_t half = c->s->units / 2;
    /* What is held now is punched out by the next trim after it was dropped. */
    if (c->top_args > WARM_UNITS) c->top_args = ipc_units_trim(c->s, WARM_UNITS, c->top_args);
    if (c->top_result > half + WARM_UNITS) c->top_result = ipc_units_trim(c->s, half + WARM_UNITS, c->top_result);
}
