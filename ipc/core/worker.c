/* A worker's steps. It may be killed between any two instructions: the row word says at every moment who owns the row, and everything else it
 * writes is either overwritten by its successor or settled by the client after the monitor has waited for the process. */
#include "core.h"

#include <string.h>
#include <unistd.h>

#define GUARD_NS 1000000u
#define GUARD_LOOKS 20

void ipc_worker_init(struct ipc_worker *w, struct ipc_segment *s, uint32_t slot, uint32_t generation) {
    memset(w, 0, sizeof(*w));
    w->s = s;
    w->slot = slot;
    w->generation = generation;
    w->pid = (int32_t)getpid();
}

/* ---- claim */

void ipc_set_phase(struct ipc_worker *w, uint32_t phase) {
    struct ipc_slot *line = &w->s->slot[w->slot];
    uint64_t now = ipc_now(), since = atomic_load_explicit(&line->since, memory_order_relaxed);
    if (phase == IPC_IDLE && atomic_load_explicit(&line->phase, memory_order_relaxed) == IPC_STARTING && now > since)
        atomic_store_explicit(&line->start_ns, atomic_load_explicit(&line->start_ns, memory_order_relaxed) + now - since, memory_order_relaxed);
    atomic_store_explicit(&line->phase, phase, memory_order_release);
    if (phase != IPC_LEAVING) return;
    /* It may have been woken for a row that it does not claim now, and leaving may take long. */
    struct ipc_header *h = w->s->header;
    uint64_t head = atomic_load_explicit(&h->head, memory_order_acquire), tail = atomic_load_explicit(&h->tail, memory_order_acquire);
    if (head < tail) ipc_wake_workers(w->s, tail - head);
}

static int retired(struct ipc_worker *w) { return atomic_load_explicit(&w->s->slot[w->slot].retire, memory_order_seq_cst) > w->generation; }

/* It is to leave, and takes its turn. */
static int leaves(struct ipc_worker *w) {
    uint32_t nobody = 0, us = w->generation << 16 | (w->slot + 1);
    return retired(w) && atomic_compare_exchange_strong_explicit(&w->s->header->leaver, &nobody, us, memory_order_seq_cst, memory_order_relaxed);
}

/* Our CPU time: at most once each IPC_LOOK_NS, so that short items do not pay for it. */
static void look(struct ipc_worker *w, uint64_t now) {
    struct ipc_slot *line = &w->s->slot[w->slot];
    ipc_cpu_time(&w->user_ns, &w->system_ns);
    w->looked = now;
    atomic_store_explicit(&line->user_ns, w->user_ns, memory_order_relaxed); /* for the monitor, should the item end in a death */
    atomic_store_explicit(&line->system_ns, w->system_ns, memory_order_relaxed);
}

static void stamp(struct ipc_worker *w, uint64_t now) {
    struct ipc_slot *line = &w->s->slot[w->slot];
    if (w->memory_limit) ipc_note_memory(w);
    w->started = w->memory_limit ? ipc_now() : now; /* what the look at memory took is not the task's */
    w->s->row[w->row].started = w->started; /* published with the result, or by the death */
    atomic_store_explicit(&line->started, w->started, memory_order_relaxed);
    /* release: a monitor that reads this word sees its start; until then it counts from when it first saw the claim. */
    atomic_store_explicit(&line->started_word, w->word, memory_order_release);
    if (now - w->looked >= IPC_LOOK_NS) look(w, now); /* after that: who sees the claim shall soon see its start */
}

int ipc_claim(struct ipc_worker *w) {
    struct ipc_segment *s = w->s;
    struct ipc_header *h = s->header;
    struct ipc_slot *line = &s->slot[w->slot];
    for (;;) {
        if (atomic_load_explicit(&h->stop, memory_order_acquire) || leaves(w)) return IPC_STOP;
        uint64_t head = atomic_load_explicit(&h->head, memory_order_acquire);
        /* SYNC POINT: acquire after head; the entry and READY of every position below tail are visible, so a failed claim means "taken". */
        uint64_t tail = atomic_load_explicit(&h->tail, memory_order_acquire);
        if (head >= tail || tail - head > s->ring_mask + 1) { /* more than the ring holds: head has moved since, or damage */
            w->ended = 0;
            return IPC_EMPTY;
        }
        uint64_t entry = atomic_load_explicit(&s->ring[head & s->ring_mask], memory_order_relaxed);
        uint32_t row = (uint32_t)entry, seq = (uint32_t)(entry >> 32);
        IPC_POINT("claim:read");
        int claimed = 0;
        if (row < s->rows) {
            atomic_store_explicit(&line->intent, row, memory_order_relaxed); /* published by the CAS below */
            /* The word does not name the row: the start of an earlier task must not be taken for that of this one. */
            atomic_store_explicit(&line->started_word, 0, memory_order_relaxed);
            atomic_store_explicit(&line->progress, IPC_NO_PROGRESS, memory_order_relaxed); /* nor its progress */
            uint64_t ready = ipc_word(IPC_READY, 0, 0, seq, 0);
            w->word = ipc_word(IPC_RUNNING, w->slot, w->generation, seq, 0);
            /* Strong: a spurious failure would be taken for "not ready", and head would move past a live entry. acq_rel: see the arguments. */
            claimed = atomic_compare_exchange_strong_explicit(&s->row[row].word, &ready, w->word, memory_order_acq_rel, memory_order_acquire);
            IPC_POINT("claim:owned");
        }
        /* Whether or not it was ours: a claimer that died before this step is helped. */
        int moved = atomic_compare_exchange_strong_explicit(&h->head, &head, head + 1, memory_order_seq_cst, memory_order_relaxed);
        if (!claimed) {
            /* A cancelled or settled row may be used again now, and no DONE will say so: the client may sleep in want of just that (seq_cst above
             * and here: it says that it sleeps, then looks at head). */
            if (moved && atomic_load_explicit(&h->client_asleep, memory_order_seq_cst) == 2 &&
                atomic_exchange_explicit(&h->client_asleep, 0, memory_order_seq_cst))
                ipc_ring_client(s);
            continue;
        }
        w->worked = 1;
        struct ipc_row *r = &s->row[row];
        w->row = row;
        r->pid = w->pid;
        w->items = r->items <= IPC_MAX_ITEMS ? r->items : 0;
        w->timeout_ms = atomic_load_explicit(&r->timeout_ms, memory_order_relaxed);
        w->memory_limit = atomic_load_explicit(&r->memory_limit, memory_order_relaxed);
        w->flags = r->flags;
        w->attempt = r->attempt;
        w->used = 0;
        w->offering = w->keep = 0;
        w->args_units = 0;
        w->area = r->body;
        w->room = IPC_INLINE;
        /* One look at the clock for the end of a task and the start of the next: what is between them is little. A deadline gets its own. */
        stamp(w, w->ended && !w->timeout_ms ? w->ended : ipc_now());
        IPC_POINT("claim:stamped");
        return 0;
    }
}

int ipc_claimed(struct ipc_worker *w, struct ipc_task *task) {
    struct ipc_segment *s = w->s;
    struct ipc_row *r = &s->row[w->row];
    *task = (struct ipc_task){.fn = r->fn, .fn_generation = r->fn_generation, .fn_unit = r->fn_unit, .fn_len = r->fn_len, .args = r->body,
                              .args_len = r->args_len, .items = w->items, .timeout_ms = w->timeout_ms, .flags = r->flags, .attempt = r->attempt};
    task->args_unit = r->args_unit;
    if (task->args_unit == IPC_NO_UNIT) {
        if (task->args_len > IPC_INLINE) return IPC_DAMAGED;
    } else {
        if (task->args_len > (uint64_t)s->units * IPC_UNIT_SIZE || task->args_unit + ipc_units_for(task->args_len) > s->units) return IPC_DAMAGED;
        task->args = s->payload + (uint64_t)task->args_unit * IPC_UNIT_SIZE;
        task->args_units = (uint32_t)ipc_units_for(task->args_len);
    }
    w->args_unit = task->args_unit;
    w->args_units = task->args_units;
    if (task->fn && (task->fn_unit >= s->units || task->fn_unit + ipc_units_for(task->fn_len) > s->units)) return IPC_DAMAGED;
    return 0;
}

/* ---- complete */

static int change(struct ipc_worker *w, uint64_t to) {
    uint64_t from = w->word;
    IPC_POINT("complete:change");
    /* SYNC POINT: release publishes the result; a CAS, because the monitor may have condemned us between its look and its kill. */
    if (!atomic_compare_exchange_strong_explicit(&w->s->row[w->row].word, &from, to, memory_order_acq_rel, memory_order_acquire)) return IPC_LOST;
    w->word = to;
    return 0;
}

static void tell_client(struct ipc_worker *w, uint32_t row) {
    struct ipc_header *h = w->s->header;
    IPC_POINT("complete:done");
    atomic_fetch_or_explicit(&h->done[row / 64], UINT64_C(1) << (row & 63), memory_order_seq_cst);
    IPC_POINT("complete:hinted");
    /* SYNC POINT: seq_cst; we set the hint, then look whether the client sleeps; it says that it sleeps, then looks at the hints. */
    atomic_fetch_or_explicit(&h->done_summary, UINT64_C(1) << (row / 64), memory_order_seq_cst);
    IPC_POINT("complete:summed");
    if (atomic_load_explicit(&h->client_asleep, memory_order_seq_cst) && atomic_exchange_explicit(&h->client_asleep, 0, memory_order_seq_cst)) {
        IPC_POINT("complete:taken");
        ipc_ring_client(w->s);
    }
}

/* Busy since `started`. */
static void spend(struct ipc_worker *w, uint64_t now) {
    struct ipc_span *span = &w->span;
    if (w->started >= span->from && now < span->to)
        atomic_store_explicit(span->busy, atomic_load_explicit(span->busy, memory_order_relaxed) + now - w->started, memory_order_relaxed);
    else
        ipc_book(w->s, w->slot, w->started, now, span);
}

/* The current item ends now. */
static struct ipc_spent account(struct ipc_worker *w) {
    struct ipc_slot *line = &w->s->slot[w->slot];
    uint64_t now = ipc_now(), ns = now - w->started;
    atomic_store_explicit(&line->tasks, atomic_load_explicit(&line->tasks, memory_order_relaxed) + 1, memory_order_relaxed);
    spend(w, now);
    w->ended = now;
    struct ipc_spent spent = {.run = ipc_brief(ns)};
    if (ns >= IPC_LOOK_NS) {
        uint64_t user = w->user_ns, system = w->system_ns;
        look(w, now);
        spent.user = ipc_brief(w->user_ns - user);
        spent.system = ipc_brief(w->system_ns - system);
        spent.resident = ipc_brief(ipc_resident(&w->peak));
    }
    return spent;
}

/* Time without room is nobody's run time: the item starts so much later. */
static void waited(struct ipc_worker *w, uint64_t ns) {
    struct ipc_slot *line = &w->s->slot[w->slot];
    w->started += ns;
    atomic_store_explicit(&line->started, w->started, memory_order_relaxed);
    atomic_store_explicit(&line->wait_ns, atomic_load_explicit(&line->wait_ns, memory_order_relaxed) + ns, memory_order_relaxed);
}

/* A chunk that waits for room offers its committed items; when the client has taken them their run is given back. */
static void offer_items(struct ipc_worker *w) {
    struct ipc_row *r = &w->s->row[w->row];
    uint32_t committed = ipc_word_item(w->word) - 1;
    if (w->used == 0) return;
    if (!w->offering) {
        w->offering = 1; /* until it is taken: the client may be reading, so the frames stay where they are, and the row in STORING */
        atomic_store_explicit(&r->offered, committed, memory_order_release);
        tell_client(w, w->row);
    }
    if (atomic_load_explicit(&r->drained, memory_order_acquire) != committed) return;
    uint64_t old = atomic_load_explicit(&r->result_ref, memory_order_relaxed);
    atomic_store_explicit(&r->result_len, 0, memory_order_relaxed);
    atomic_store_explicit(&r->result_ref, 0, memory_order_release);
    if (old) ipc_units_free(w->s, (uint32_t)(old >> 32), (uint32_t)old, ipc_owner(w->row, ipc_word_seq(w->word)));
    w->area = r->body;
    w->room = IPC_INLINE;
    w->used = 0;
    w->offering = 0;
}

/* Room for `length` more bytes of results (with their frame, in a chunk). Enters STORING: from here on no deadline, because waiting for room is
 * the pool's fault, not the task's. */
static int grow(struct ipc_worker *w, uint64_t length) {
    struct ipc_segment *s = w->s;
    struct ipc_row *r = &s->row[w->row];
    uint64_t owner = ipc_owner(w->row, ipc_word_seq(w->word));
    if (!ipc_units_could_fit(s, ipc_units_for(length))) return IPC_TOO_LARGE;
    if (ipc_word_state(w->word) == IPC_RUNNING && change(w, ipc_word_with_state(w->word, IPC_STORING)) < 0) return IPC_LOST;
    for (;;) {
        uint64_t count = ipc_units_for(w->used + length);
        if (w->items && count * 2 <= s->units / 4) count *= 2; /* a chunk that has outgrown its room will grow again */
        int64_t unit = w->offering ? IPC_NO_ROOM : ipc_units_take_result(s, count, owner);
        if (unit < 0) {
            if (atomic_load_explicit(&s->header->stop, memory_order_acquire)) return IPC_STOP;
            offer_items(w);
            if (w->used + length <= w->room) return 0;
            if (!w->offering && !ipc_units_could_fit(s, ipc_units_for(length))) return IPC_TOO_LARGE; /* the function store has grown meanwhile */
            _Atomic uint32_t *bell = &s->slot[w->slot].bell;
            uint64_t before = ipc_now();
            ipc_futex_wait(bell, atomic_load_explicit(bell, memory_order_relaxed), 1000000); /* no one rings for room: look again every 1 ms */
            waited(w, ipc_now() - before);
            continue;
        }
        unsigned char *area = s->payload + (uint64_t)unit * IPC_UNIT_SIZE;
        memcpy(area, w->area, w->used);
        uint64_t old = atomic_load_explicit(&r->result_ref, memory_order_relaxed);
        IPC_POINT("store:copied");
        /* One word, and release after the copy: at a death here either the old run or the new one holds all committed results. */
        atomic_store_explicit(&r->result_ref, (uint64_t)unit << 32 | count, memory_order_release);
        if (old) ipc_units_free(s, (uint32_t)(old >> 32), (uint32_t)old, owner);
        w->area = area;
        w->room = count * IPC_UNIT_SIZE;
        return 0;
    }
}

int ipc_begin_items(struct ipc_worker *w) {
    int code = change(w, ipc_word(IPC_RUNNING, w->slot, w->generation, ipc_word_seq(w->word), 1));
    uint64_t now = ipc_now();
    spend(w, now); /* the decoding */
    if (code == 0) stamp(w, now);
    return code;
}

static int finish(struct ipc_worker *w) {
    uint32_t row = w->row;
    /* Before the row is done: then the client frees what is the row's. After a death in between both are freed, each by its own rule. */
    if (w->keep) ipc_units_give(w->s, w->args_unit, w->args_units, ipc_owner(row, ipc_word_seq(w->word)), ipc_owner_kept(w->slot, w->generation));
    int code = change(w, ipc_word_with_state(w->word, IPC_DONE));
    if (code == 0) tell_client(w, row);
    return code;
}

int ipc_commit(struct ipc_worker *w, uint32_t kind, const struct ipc_piece *piece, uint32_t pieces) {
    struct ipc_row *r = &w->s->row[w->row];
    uint32_t item = ipc_word_item(w->word);
    uint64_t length = ipc_pieces_length(piece, pieces);
    if (w->used + IPC_FRAME + length > w->room) {
        int code = grow(w, IPC_FRAME + length);
        if (code < 0) return code;
    }
    struct ipc_frame frame = {ipc_frame_word(kind, length), account(w)};
    memcpy(w->area + w->used, &frame, IPC_FRAME);
    ipc_pieces_copy(w->area + w->used + IPC_FRAME, piece, pieces);
    IPC_POINT("commit:written");
    w->used += IPC_FRAME + length;
    atomic_store_explicit(&r->result_len, w->used, memory_order_relaxed);
    if (item == w->items) return finish(w);
    /* Before the word: who sees the next item running does not take this one's progress for its. */
    atomic_store_explicit(&w->s->slot[w->slot].progress, IPC_NO_PROGRESS, memory_order_relaxed);
    int code = change(w, ipc_word(IPC_RUNNING, w->slot, w->generation, ipc_word_seq(w->word), item + 1));
    if (code == 0) stamp(w, w->ended);
    return code;
}

int ipc_complete(struct ipc_worker *w, uint32_t kind, const struct ipc_piece *piece, uint32_t pieces) {
    struct ipc_row *r = &w->s->row[w->row];
    uint64_t length = ipc_pieces_length(piece, pieces);
    if (length > w->room) {
        int code = grow(w, length);
        if (code < 0) return code;
    }
    ipc_pieces_copy(w->area, piece, pieces);
    IPC_POINT("complete:written");
    r->kind = kind;
    atomic_store_explicit(&r->result_len, length, memory_order_relaxed);
    r->spent = account(w);
    return finish(w);
}

void ipc_progress(struct ipc_worker *w, double x) {
    uint64_t bits = IPC_NO_PROGRESS;
    if (x == x) memcpy(&bits, &x, sizeof(bits));
    atomic_store_explicit(&w->s->slot[w->slot].progress, bits, memory_order_relaxed);
}

/* ---- sleep */

static int ready(struct ipc_header *h) {
    return atomic_load_explicit(&h->head, memory_order_seq_cst) < atomic_load_explicit(&h->tail, memory_order_seq_cst) ||
           atomic_load_explicit(&h->stop, memory_order_seq_cst);
}

static int spin(struct ipc_worker *w, uint64_t spin_ns) {
    struct ipc_segment *s = w->s;
    struct ipc_header *h = s->header;
    uint32_t awake = s->slots - ipc_count_bits(h->sleepers, s->slots);
    if (!atomic_load_explicit(&h->client_asleep, memory_order_relaxed)) awake++;
    if (spin_ns == 0 || awake > s->cores) return 0; /* only where a core is left over */
    uint64_t bit = UINT64_C(1) << (w->slot & 63);
    int found = 0;
    atomic_fetch_or_explicit(&h->spinners[w->slot >> 6], bit, memory_order_seq_cst);
    for (uint64_t end = ipc_now() + spin_ns; !found && ipc_now() < end;)
        for (int k = 0; k < 32 && !(found = ready(h)); k++) ipc_pause();
    /* Cleared before the sleeper bit is set and tail looked at again: a client that counted on us has its task seen. */
    atomic_fetch_and_explicit(&h->spinners[w->slot >> 6], ~bit, memory_order_seq_cst);
    return found;
}

/* Sleep with the sleeper bit set. One sleeper at a time is the guard: it looks at the ring every GUARD_NS, so that the client may put off wakes
 * (ipc_flush_wakes). It retires after GUARD_LOOKS looks without any movement, so an idle pool sleeps wholly. */
static int sleep_marked(struct ipc_worker *w, uint32_t seen, uint64_t timeout_ns) {
    struct ipc_segment *s = w->s;
    struct ipc_header *h = s->header;
    _Atomic uint32_t *bell = &s->slot[w->slot].bell;
    uint32_t nobody = 0;
    if (!w->worked || !atomic_compare_exchange_strong_explicit(&h->guard, &nobody, w->slot + 1, memory_order_seq_cst, memory_order_relaxed))
        return ipc_futex_wait(bell, seen, timeout_ns);
    IPC_POINT("guard:set");
    uint64_t head = atomic_load_explicit(&h->head, memory_order_acquire);
    int code, stale = 0;
    for (int looks = 0; (code = ipc_futex_wait(bell, seen, GUARD_NS)) == IPC_EMPTY; looks++) {
        uint64_t now = atomic_load_explicit(&h->head, memory_order_acquire);
        stale = now == head;
        if (ready(h) && stale) break;
        /* One worker more, and we stay on guard: who is woken claims one row and passes nothing on. Ourselves if nobody else sleeps. */
        if (ready(h)) ipc_wake_workers(s, 1);
        if (!stale || ready(h)) looks = 0;
        head = now;
        if (looks < GUARD_LOOKS) continue;
        w->worked = 0;
        break;
    }
    /* SYNC POINT: seq_cst; we resign, then look at the ring (the caller does); the client moves tail, then looks for a guard. */
    atomic_store_explicit(&h->guard, 0, memory_order_seq_cst);
    IPC_POINT("guard:resigned");
    /* Wakes were put off because we were on guard, and now nobody is: wake for every row, however our watch ended. */
    if (ready(h)) {
        ipc_wake_slot(s, w->slot); /* our own bit first, or we would wake ourselves */
        uint64_t now = atomic_load_explicit(&h->head, memory_order_acquire), tail = atomic_load_explicit(&h->tail, memory_order_acquire);
        if (now < tail) ipc_wake_workers(s, tail - now);
    }
    return code;
}

int ipc_worker_wait(struct ipc_worker *w, uint64_t spin_ns, uint64_t timeout_ns) {
    struct ipc_header *h = w->s->header;
    struct ipc_slot *line = &w->s->slot[w->slot];
    uint64_t bit = UINT64_C(1) << (w->slot & 63);
    if (ready(h) || spin(w, spin_ns)) return 0;
    uint32_t seen = atomic_load_explicit(&line->bell, memory_order_seq_cst);
    IPC_POINT("sleep:seen");
    /* SYNC POINT: seq_cst; we set the bit, then look at tail; the client moves tail, then looks at the bits. */
    atomic_fetch_or_explicit(&h->sleepers[w->slot >> 6], bit, memory_order_seq_cst);
    IPC_POINT("sleep:marked");
    int code = 0;
    /* SYNC POINT: our bell was loaded before; a monitor that retires us, or lets the next one leave, rings it afterwards. */
    int turn = retired(w) && !atomic_load_explicit(&h->leaver, memory_order_seq_cst);
    if (!ready(h) && !turn) {
        atomic_store_explicit(&line->parks, atomic_load_explicit(&line->parks, memory_order_relaxed) + 1, memory_order_relaxed);
        code = sleep_marked(w, seen, timeout_ns);
    }
    atomic_fetch_and_explicit(&h->sleepers[w->slot >> 6], ~bit, memory_order_seq_cst);
    return ready(h) ? 0 : code;
}
