/* Each step of the core, many times: what is between COUNT's braces is counted by callgrind, and written out under a name. Client and worker are one
 * process here, so nothing waits and nothing is left to chance. The loops are counted too: two or three instructions. */
#include "core.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <valgrind/callgrind.h>

#define ROWS 64u
#define SLOTS 2u
#define UNITS 256u
#define ROUNDS 50u
#define ITEMS 100u

static struct ipc_segment s;
static struct ipc_client client;
static struct ipc_worker worker;
static unsigned char argument[8];
static const struct ipc_piece piece = {argument, sizeof(argument)};

#define EACH for (uint32_t k = 0; k < ROWS; k++)
#define COUNT(...)                \
    do {                          \
        CALLGRIND_TOGGLE_COLLECT; \
        __VA_ARGS__               \
        CALLGRIND_TOGGLE_COLLECT; \
    } while (0)

/* What was counted since the last time is so many operations of that name. */
static void was(const char *name, uint32_t operations) {
    char text[100];
    snprintf(text, sizeof(text), "%s=%u", name, operations);
    CALLGRIND_DUMP_STATS_AT(text);
}

static void must(int true, const char *what) {
    if (true) return;
    fprintf(stderr, "broken: %s\n", what);
    exit(1);
}

static void *memory(size_t size) {
    void *p = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    must(p != MAP_FAILED, "memory");
    return p;
}

static void begin(void) {
    size_t size = ipc_segment_size(ROWS, SLOTS, UNITS);
    void *base = memory(size), *payload = memory((size_t)UNITS * IPC_UNIT_SIZE);
    must(ipc_segment_create(base, size, ROWS, SLOTS, UNITS, 2) == 0 && ipc_segment_attach(&s, base, size, payload) == 0, "a segment");
    s.wire = -1;
    ipc_client_init(&client, &s);
    ipc_worker_init(&worker, &s, 0, 0);
    ipc_set_phase(&worker, IPC_IDLE);
}

static struct ipc_task task(uint32_t items) {
    return (struct ipc_task){.piece = &piece, .pieces = 1, .items = items, .attempt = 1};
}

static void publish(uint32_t items) {
    struct ipc_task t = task(items);
    must(ipc_publish(&client, &t) >= 0, "a row is free");
}

static void claim(void) {
    struct ipc_task t;
    must(ipc_claim(&worker) == 0 && ipc_claimed(&worker, &t) == 0, "there is something to claim");
}

static void complete(void) { must(ipc_complete(&worker, 0, &piece, 1) == 0, "it is completed"); }

static void collect(void) {
    struct ipc_result r;
    int row = ipc_next_done(&client);
    must(row >= 0 && ipc_read_result(&client, (uint32_t)row, &r) == 0, "there is a result");
    ipc_release_row(&client, (uint32_t)row);
}

/* The life of single tasks, counted up to one of its steps. */
enum step { NONE, PUBLISH, FLUSH, CLAIM, COMPLETE, COLLECT, ALL };
static void tasks(const char *name, enum step step) {
#define STEP(which, ...)                       \
    do {                                       \
        if (step == which || step == ALL) {    \
            COUNT(__VA_ARGS__);                \
        } else {                               \
            __VA_ARGS__                        \
        }                                      \
    } while (0)
    for (uint32_t round = 0; round < ROUNDS; round++) {
        STEP(PUBLISH, EACH publish(0););
        STEP(FLUSH, EACH ipc_flush_wakes(&client););
        EACH {
            STEP(CLAIM, claim(););
            STEP(COMPLETE, complete(););
        }
        STEP(COLLECT, EACH collect(););
    }
    if (step != NONE) was(name, ROUNDS * ROWS);
}

/* A cancelled task, from its publication on. */
static void cancelled(void) {
    for (uint32_t round = 0; round < ROUNDS; round++) {
        EACH publish(0);
        COUNT(EACH must(ipc_cancel(&client, k), "it was not claimed"););
        must(ipc_claim(&worker) == IPC_EMPTY, "nobody is left");
    }
    was("cancel", ROUNDS * ROWS);
}

static void chunks(void) {
    for (uint32_t round = 0; round < ROUNDS; round++) {
        publish(ITEMS);
        claim();
        must(ipc_begin_items(&worker) == 0, "the items begin");
        COUNT(for (uint32_t k = 0; k < ITEMS; k++) must(ipc_commit(&worker, 0, &piece, 1) == 0, "an item is committed"););
        collect();
    }
    was("chunk: item", ROUNDS * ITEMS);
}

static void payload(const char *name, uint32_t count) {
    /* Behind others, as it is in a pool at work. */
    int64_t before = ipc_units_take(&s, 0, UNITS, 16, ipc_owner(1, 1));
    uint64_t owner = ipc_owner(0, 1);
    COUNT(for (uint32_t k = 0; k < 1000; k++) {
        int64_t unit = ipc_units_take(&s, 0, UNITS, count, owner);
        must(unit >= 0, "room");
        ipc_units_free(&s, (uint32_t)unit, count, owner);
    });
    ipc_units_free(&s, (uint32_t)before, 16, ipc_owner(1, 1));
    was(name, 1000);
}

/* The other worker says that it sleeps, but does not: what the waker does is counted, the kernel's part is not. */
static void wakes(void) {
    for (uint32_t k = 0; k < 1000; k++) {
        atomic_fetch_or(&s.header->sleepers[0], 2);
        COUNT(must(ipc_wake_workers(&s, 1) == 1, "it sleeps"););
    }
    was("wake: a worker", 1000);
    COUNT(for (uint32_t k = 0; k < 1000; k++) must(ipc_wake_workers(&s, 1) == 0, "all are awake"););
    was("wake: nobody sleeps", 1000);
    for (uint32_t k = 0; k < 1000; k++) {
        atomic_store(&s.header->client_asleep, 1);
        COUNT(ipc_ring_client(&s););
    }
    was("wake: the client", 1000);
    COUNT(for (uint32_t k = 0; k < 1000; k++) {
        struct ipc_look look;
        ipc_client_look(&client, &look);
    });
    was("client: look before a sleep", 1000);
}

/* Known work: if this one has changed, it is not ours that has. */
static void reference(void) {
    volatile uint64_t seed = 88172645463325252u;
    uint64_t x = seed;
    COUNT(for (uint32_t k = 0; k < 1000; k++) {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
    });
    seed = x;
    was("reference: xorshift", 1000);
}

int main(void) {
    begin();
    tasks("", NONE); /* what happens once only has happened */
    reference();
    tasks("task: publish", PUBLISH);
    tasks("task: flush wakes", FLUSH);
    tasks("task: claim", CLAIM);
    tasks("task: complete", COMPLETE);
    tasks("task: collect", COLLECT);
    tasks("task: all of it", ALL);
    chunks();
    cancelled();
    payload("payload: take and free 64 KiB", 1);
    payload("payload: take and free 1 MiB", 16);
    wakes();
    return 0;
}
