/* What the C tests share: a small segment, a client that keeps a ledger of its jobs, and workers whose every byte can be checked.
 *
 * A job's arguments say what its result must be, and no id is used twice, so a stale, torn or swapped result never looks right. The ledger's
 * law: a job ends exactly once (done or cancelled), and pays one attempt exactly for each death that met its row after the claim. */
#ifndef KIT_H
#define KIT_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "core.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <poll.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#pragma GCC diagnostic ignored "-Wunused-function" /* no test uses all of it */

static char context[256]; /* what was being tried, for the message of a failure */

__attribute__((format(printf, 1, 2))) static void trying(const char *format, ...) {
    va_list list;
    va_start(list, format);
    vsnprintf(context, sizeof(context), format, list);
    va_end(list);
}

__attribute__((noreturn)) static void broken(const char *file, int line, const char *condition, const char *promise) {
    fprintf(stderr, "%s:%d: broken promise: %s\n  not true: %s\n  trying: %s\n", file, line, promise, condition, context);
    _exit(1);
}
#define CHECK(condition, promise) do { if (!(condition)) broken(__FILE__, __LINE__, #condition, promise); } while (0)

#define SECOND UINT64_C(1000000000)

/* ---- segment */

static void *map_shared(size_t size) {
    void *p = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    CHECK(p != MAP_FAILED, "memory for the test");
    return p;
}

/* Maps on first use of `s`, wipes on every use: everything but the payload, whose stale bytes belong to other ids and are welcome. */
static void fresh_segment(struct ipc_segment *s, uint32_t rows, uint32_t slots, uint32_t units, uint32_t cores) {
    size_t size = ipc_segment_size(rows, slots, units);
    void *base = s->header ? (void *)s->header : map_shared(size);
    unsigned char *payload = s->header ? s->payload : map_shared((size_t)units * IPC_UNIT_SIZE);
    CHECK(ipc_segment_create(base, size, rows, slots, units, cores) == 0, "a segment can be created");
    CHECK(ipc_segment_attach(s, base, size, payload) == 0, "a fresh segment can be attached");
}

/* A wire for this segment, in this process and in those that it forks; returns the end that an event loop polls. */
static int fresh_wire(struct ipc_segment *s) {
    static int ends[2] = {-1, -1};
    if (ends[0] >= 0) close(ends[0]), close(ends[1]);
    CHECK(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, ends) == 0, "a wire");
    CHECK(ipc_set_wire(s, ends[1]) == 0, "it is a file");
    return ends[0];
}

static int rung(int wire) { /* bytes that were on the wire */
    char bytes[4096];
    ssize_t n = read(wire, bytes, sizeof(bytes));
    return n < 0 ? 0 : (int)n;
}

/* As ipc_client_wait, for a client that sleeps in poll. Workers may have to be woken soon (ipc_client_listen says when): it looks again at once. */
static int sleep_in_loop(struct ipc_client *c, int wire, uint64_t timeout) {
    struct pollfd fd = {.fd = wire, .events = POLLIN};
    int code = 0;
    if (!ipc_client_listen(c)) code = poll(&fd, 1, (int)((timeout + 999999) / 1000000)) > 0 ? 0 : IPC_EMPTY;
    rung(wire);
    ipc_client_heard(c->s);
    return code;
}

static inline uint64_t word_of(struct ipc_segment *s, uint32_t row) { return atomic_load_explicit(&s->row[row].word, memory_order_acquire); }

/* ---- bytes that can be recognised */

static inline uint64_t mix(uint64_t x) {
    x += UINT64_C(0x9e3779b97f4a7c15);
    x = (x ^ x >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
    x = (x ^ x >> 27) * UINT64_C(0x94d049bb133111eb);
    return x ^ x >> 31;
}
static inline uint64_t pattern_at(uint64_t id, uint32_t item, uint64_t k) { return mix(id ^ (uint64_t)item << 48) + k * UINT64_C(0x2545f4914f6cdd1d); }
static void pattern_fill(unsigned char *to, uint64_t length, uint64_t id, uint32_t item) {
    for (uint64_t at = 0; at < length; at += 8) {
        uint64_t w = pattern_at(id, item, at);
        memcpy(to + at, &w, length - at < 8 ? length - at : 8);
    }
}
static int pattern_is(const unsigned char *from, uint64_t length, uint64_t id, uint32_t item) {
    for (uint64_t at = 0; at < length; at += 8) {
        uint64_t w = pattern_at(id, item, at);
        if (memcmp(from + at, &w, length - at < 8 ? length - at : 8)) return 0;
    }
    return 1;
}
static inline uint32_t kind_of(uint64_t id, uint32_t item) { return (uint32_t)(mix(id + item) & 0x7f); }
#define ARGUMENTS 0xffffu /* stands for an item number in the pattern of arguments */

/* ---- jobs and the ledger */

struct job { /* the first bytes of its arguments are this struct */
    uint64_t id;
    uint32_t items, base; /* 0: a single task; base: items that stand from earlier attempts, or were drained (the ledger's copy only) */
    uint32_t size, args_len, timeout_ms, attempts;
    uint64_t memory_limit;
    uint32_t group, group_size; /* jobs of one group wait for each other while they run */
};
#define MOST_BYTES (IPC_UNIT_SIZE * 4)

static int complete(struct ipc_worker *w, uint32_t kind, const void *data, uint64_t length) {
    struct ipc_piece piece = {data, length};
    return ipc_complete(w, kind, &piece, 1);
}
static int commit(struct ipc_worker *w, uint32_t kind, const void *data, uint64_t length) {
    struct ipc_piece piece = {data, length};
    return ipc_commit(w, kind, &piece, 1);
}

struct view { /* a result that the client's program holds */
    uint64_t id, length;
    uint32_t unit, count;
};
#define MOST_VIEWS 64u

struct driver {
    struct ipc_client c;
    struct ipc_segment *s;
    struct job job[IPC_MAX_ROWS], backlog[IPC_MAX_ROWS]; /* by row, id 0 = none; jobs to be published again */
    uint32_t waiting;
    uint64_t last_id, submitted, done, cancelled, charged, drained;
    int adopts; /* results in units become views, as long as there may be more of them */
    struct view view[MOST_VIEWS];
    uint32_t views;
    uint64_t adopted;
    unsigned char args[MOST_BYTES];
};

static void driver_open(struct driver *d, struct ipc_segment *s, uint64_t last_id) {
    memset(d->job, 0, sizeof(d->job));
    d->s = s;
    d->waiting = d->views = 0;
    d->adopts = 0;
    d->adopted = 0;
    d->submitted = d->done = d->cancelled = d->charged = d->drained = 0;
    d->last_id = last_id;
    ipc_client_init(&d->c, s);
}

static int driver_publish(struct driver *d, struct job j) {
    if (j.args_len < sizeof(j)) j.args_len = sizeof(j);
    memcpy(d->args, &j, sizeof(j));
    pattern_fill(d->args + sizeof(j), j.args_len - sizeof(j), j.id, ARGUMENTS);
    struct ipc_piece piece = {d->args, j.args_len};
    struct ipc_task t = {.fn_generation = (uint32_t)j.id, .piece = &piece, .pieces = 1, .items = j.items ? j.items - j.base : 0,
                         .timeout_ms = j.timeout_ms, .memory_limit = j.memory_limit, .attempt = (uint16_t)(j.attempts + 1)};
    int row = ipc_publish(&d->c, &t);
    if (row < 0) return row;
    CHECK(d->job[row].id == 0, "a row in flight is not used again");
    CHECK(d->c.tail - atomic_load(&d->s->header->head) <= d->s->rows, "the ring cannot overflow");
    d->job[row] = j;
    return row;
}

static int driver_submit(struct driver *d, struct job j) {
    j.id = d->last_id + 1;
    int row = driver_publish(d, j);
    if (row >= 0) d->last_id++, d->submitted++;
    return row;
}

static uint64_t driver_live(struct driver *d) { return d->submitted - d->done - d->cancelled; }

/* The first `count` frames of a chunk are the results of items base+1 .. base+count, and nothing else. Returns their length. */
static uint64_t check_frames(const struct ipc_result *r, const struct job *j, uint32_t count) {
    uint64_t at = 0;
    for (uint32_t k = 0; k < count; k++) {
        struct ipc_frame frame;
        uint32_t item = j->base + k + 1;
        CHECK(r->length >= at + IPC_FRAME + j->size, "a committed result is there");
        memcpy(&frame, r->data + at, IPC_FRAME);
        CHECK(ipc_frame_kind(frame.word) == kind_of(j->id, item) && ipc_frame_length(frame.word) == j->size, "a committed frame is whole");
        CHECK(pattern_is(r->data + at + IPC_FRAME, j->size, j->id, item), "a committed result is right");
        at += IPC_FRAME + j->size;
    }
    return at;
}

static void driver_adopt(struct driver *d, uint32_t row, struct ipc_result *r) {
    if (!d->adopts || !r->units || d->views == MOST_VIEWS || !ipc_adopt(&d->c, row, r)) return;
    d->view[d->views++] = (struct view){d->job[row].id, r->length, r->unit, r->units};
    d->adopted++;
}

/* The program lets go of one of its values. */
static void driver_drop(struct driver *d, uint32_t k) {
    struct view v = d->view[k];
    CHECK(pattern_is(d->s->payload + (uint64_t)v.unit * IPC_UNIT_SIZE, v.length, v.id, 0), "nobody writes into a value that the program holds");
    d->view[k] = d->view[--d->views];
    d->c.view_units -= v.count;
    ipc_units_free(d->s, v.unit, v.count, IPC_OWNER_VIEW);
}

/* Takes what is finished; returns how many. */
static uint32_t driver_collect(struct driver *d) {
    uint32_t n = 0;
    for (int row; (row = ipc_next_done(&d->c)) >= 0; n++) {
        struct job *j = &d->job[row];
        struct ipc_result r;
        CHECK(j->id, "only a row in flight is handed out");
        uint32_t offered = (uint32_t)ipc_offers(&d->c, (uint32_t)row);
        CHECK(offered || ipc_word_state(word_of(d->s, (uint32_t)row)) == IPC_DONE, "a done bit is a hint, only the word says DONE");
        CHECK(ipc_read_result(&d->c, (uint32_t)row, &r) == 0, "a result lies inside its room");
        if (offered) { /* a chunk that waits for room hands over what it has */
            check_frames(&r, j, offered);
            j->base += offered;
            ipc_drained(&d->c, (uint32_t)row, offered);
            d->drained += offered;
            continue;
        }
        if (j->items) {
            CHECK(check_frames(&r, j, j->items - j->base) == r.length, "a chunk has as many results as items");
        } else {
            CHECK(r.kind == kind_of(j->id, 0) && r.length == j->size, "a result belongs to its task");
            CHECK(pattern_is(r.data, r.length, j->id, 0), "a result has the right bytes");
            driver_adopt(d, (uint32_t)row, &r);
        }
        memset(j, 0, sizeof(*j));
        ipc_release_row(&d->c, (uint32_t)row);
        d->done++;
    }
    return n;
}

/* What waits to be published again, as far as there are rows and room. */
static void driver_retry(struct driver *d) {
    while (d->waiting) {
        int row = driver_publish(d, d->backlog[d->waiting - 1]);
        if (row < 0) return;
        d->waiting--;
    }
}

/* Settles every recorded death: who was claimed pays one attempt, keeps its committed items and is published again. Returns attempts charged. */
static uint32_t driver_settle(struct driver *d) {
    uint32_t charged = 0, slot, reaped;
    while (ipc_next_dead(&d->c, &slot, &reaped) == 1) {
        struct ipc_death death = d->s->slot[slot].deaths[(reaped - 1) % IPC_DEATHS];
        CHECK(death.generation == reaped - 1, "the death log names the last of the dead");
        struct ipc_settled x;
        while (ipc_settle(&d->c, slot, reaped, &x, 1)) {
            struct job *j = &d->job[x.row], next = *j;
            struct ipc_result r;
            CHECK(j->id, "only a row in flight is settled");
            CHECK(x.state == IPC_RUNNING || x.state == IPC_STORING || x.state == IPC_CONDEMNED, "only a claimed task is charged");
            if (j->items && x.item > 1) {
                uint32_t drained = d->c.drained[x.row];
                CHECK(x.item <= d->c.items[x.row] && x.item - 1 >= drained, "a dead chunk was at one of its items");
                CHECK(ipc_read_result(&d->c, x.row, &r) == 0, "what a dead chunk had committed lies inside its room");
                check_frames(&r, j, x.item - 1 - drained);
                next.base += x.item - 1 - drained;
            }
            next.attempts++;
            memset(j, 0, sizeof(*j));
            ipc_release_row(&d->c, x.row);
            d->backlog[d->waiting++] = next;
            charged++;
        }
        ipc_settled(&d->c, slot, reaped);
    }
    d->charged += charged;
    driver_retry(d);
    return charged;
}

static int driver_cancel(struct driver *d, uint32_t row) {
    if (!d->job[row].id || !ipc_cancel(&d->c, row)) return 0;
    memset(&d->job[row], 0, sizeof(d->job[row]));
    d->cancelled++;
    return 1;
}

/* Every unit is free or has an owner that lives: a row in flight, a value of the program, a worker whose death is not settled. And what these own
 * is theirs. Not while a worker is between two steps. */
static void check_units(struct driver *d) {
    struct ipc_segment *s = d->s;
    uint32_t viewed = 0;
    for (uint32_t k = 0; k < s->units; k++) {
        uint64_t owner = atomic_load(&s->owner[k]);
        if (owner == IPC_OWNER_VIEW) {
            viewed++;
            CHECK(k >= s->units / 2, "results stay in their half");
        } else if (owner >> 60 == IPC_OWNER_KEPT >> 60) {
            uint32_t slot = (uint32_t)(owner >> 32) & 0xffff, generation = (uint32_t)owner;
            CHECK(k < s->units / 2, "arguments stay in their half");
            CHECK(slot < s->slots && (int32_t)(generation - atomic_load(&s->slot[slot].settled)) >= 0, "what the dead have kept is freed with them");
        } else if (owner) {
            uint32_t row = (uint32_t)(owner >> 32) & 0x7fffffff;
            CHECK(owner >> 63 && row < s->rows && d->c.published[row] && d->c.seq[row] == (uint32_t)owner, "no unit outlives its row");
        }
    }
    for (uint32_t k = 0; k < d->views; k++)
        for (uint32_t u = d->view[k].unit; u < d->view[k].unit + d->view[k].count; u++, viewed--)
            CHECK(atomic_load(&s->owner[u]) == IPC_OWNER_VIEW, "a value that the program holds keeps its units");
    CHECK(viewed == 0, "no view without a value");
    for (uint32_t row = 0; row < s->rows; row++)
        for (uint32_t u = d->c.args_ref[row][0]; d->c.published[row] && u < d->c.args_ref[row][0] + d->c.args_ref[row][1]; u++) {
            uint64_t owner = atomic_load(&s->owner[u]), word = word_of(s, row);
            uint64_t runner = ipc_owner_kept(ipc_word_slot(word), ipc_word_generation(word));
            int dead = (int32_t)(ipc_word_generation(word) - atomic_load(&s->slot[ipc_word_slot(word)].settled)) < 0;
            CHECK(owner == ipc_owner(row, d->c.seq[row]) || ipc_word_state(word) == IPC_DONE || (owner == runner && !dead),
                  "arguments belong to their row, or to the worker that runs it");
        }
}

/* With every worker idle and everything collected nothing is held: no row, no unit, no entry, no bit that would need a heal. */
static void check_all_free(struct driver *d) {
    struct ipc_segment *s = d->s;
    check_units(d);
    while (d->views) driver_drop(d, 0);
    CHECK(d->c.view_units == 0, "every view is given back");
    CHECK(driver_live(d) == 0 && d->waiting == 0 && d->c.in_flight == 0, "every task ends");
    for (uint32_t row = 0; row < s->rows; row++) CHECK(ipc_word_state(word_of(s, row)) == IPC_FREE, "all rows are free at the end");
    CHECK(d->c.free_count + d->c.cooling_count == s->rows, "no row is lost");
    CHECK(ipc_units_used(s) == 0, "all payload units are free at the end");
    CHECK(d->c.args_units == 0 && d->c.armed == 0 && atomic_load(&s->header->armed) == 0, "room and deadlines of arguments are given back");
    CHECK(atomic_load(&s->header->head) == d->c.tail && atomic_load(&s->header->tail) == d->c.tail, "every entry is spent");
    CHECK(ipc_idle_scan(&d->c) == 0 && ipc_idle_scan(&d->c) == 0 && d->c.healed == 0, "nothing needs a heal");
}

/* ---- work */

struct desk { /* a worker's private memory */
    unsigned char out[MOST_BYTES];
};

static void read_order(struct ipc_worker *w, struct job *j) {
    struct ipc_task t;
    CHECK(ipc_claimed(w, &t) == 0, "a claimed row points inside its room");
    CHECK(t.args_len >= sizeof(*j), "arguments arrive whole");
    memcpy(j, t.args, sizeof(*j));
    CHECK((uint32_t)j->id == t.fn_generation && j->args_len == t.args_len, "arguments belong to their task");
    CHECK(t.attempt == j->attempts + 1 && t.items == (j->items ? j->items - j->base : 0), "the row says what was published");
    CHECK(pattern_is(t.args + sizeof(*j), t.args_len - sizeof(*j), j->id, ARGUMENTS), "arguments have the right bytes");
}

static int give_results(struct ipc_worker *w, const struct job *j, struct desk *desk) {
    if (!j->items) {
        pattern_fill(desk->out, j->size, j->id, 0);
        return complete(w, kind_of(j->id, 0), desk->out, j->size);
    }
    int code = ipc_begin_items(w);
    for (uint32_t item = j->base + 1; code == 0 && item <= j->items; item++) {
        pattern_fill(desk->out, j->size, j->id, item);
        code = commit(w, kind_of(j->id, item), desk->out, j->size);
    }
    return code;
}

static int work(struct ipc_worker *w, struct desk *desk) {
    struct job j;
    read_order(w, &j);
    return give_results(w, &j, desk);
}

/* Arguments that a task holds beyond its end. */
struct kept {
    struct job job;
    uint32_t unit, units; /* 0: none */
};

static int work_and_keep(struct ipc_worker *w, struct desk *desk, struct kept *kept) {
    kept->units = 0;
    read_order(w, &kept->job);
    uint32_t unit = w->args_unit, units = w->args_units;
    w->keep = units != 0;
    int code = give_results(w, &kept->job, desk);
    if (code == 0) kept->unit = unit, kept->units = units;
    return code;
}

static void drop_kept(struct ipc_worker *w, struct kept *kept) {
    const struct job *j = &kept->job;
    const unsigned char *args = w->s->payload + (uint64_t)kept->unit * IPC_UNIT_SIZE;
    if (!kept->units) return;
    for (uint32_t k = kept->unit; k < kept->unit + kept->units; k++)
        CHECK(atomic_load(&w->s->owner[k]) == ipc_owner_kept(w->slot, w->generation), "what a task keeps is its worker's");
    CHECK(pattern_is(args + sizeof(*j), j->args_len - sizeof(*j), j->id, ARGUMENTS), "nobody writes into what a task keeps");
    ipc_units_free(w->s, kept->unit, kept->units, ipc_owner_kept(w->slot, w->generation));
    kept->units = 0;
}

#endif
