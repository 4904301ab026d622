/* The protocol under real threads over one mapping: a client, N workers, a monitor. Waits last 10 s and nothing ever polls for the client, so a
 * lost wake-up is a standstill, and the watchdog reports a standstill. Clean under TSan, ASan and UBSan.
 *
 *   threads [-t seconds a phase] [-s seed] [-w seconds of standstill] [phase ...] */
#include "kit.h"

#include <pthread.h>
#include <sched.h>
#include <semaphore.h>

#define MOST_WORKERS 8u

struct phase {
    const char *name, *promise;
    uint32_t workers, rows, units, cores;
    uint32_t payload, chunks, cancels, kills, deadlines; /* per cent of the jobs, of the rounds, of the monitor's looks */
    uint32_t together;                                   /* 1: bursts of jobs that wait for each other, everybody sleeps in between */
    uint32_t spin_us, guard;                             /* guard: 1 = sleepers look at the ring every millisecond, which hides what is lost */
    uint32_t holds;                                      /* per cent of the arguments that tasks keep; and results become views */
};

static const struct phase phases[] = {
    {"small", "each task runs once and gives its own bytes", 3, 8, 16, 2, 0, 0, 0, 0, 0, 0, 0, 1, 0},
    {"payload", "values too big for a row arrive whole", 3, 8, 24, 2, 60, 0, 0, 0, 0, 0, 0, 1, 0},
    {"chunks", "a chunk gives one result for each item", 3, 8, 24, 2, 15, 70, 0, 0, 0, 0, 0, 1, 0},
    {"cancels", "a task is cancelled or run, never both", 3, 4, 16, 2, 10, 10, 60, 0, 0, 0, 0, 1, 0},
    {"condemns", "a condemned task pays one attempt, a finished one none", 3, 8, 24, 2, 20, 40, 10, 20, 20, 0, 0, 1, 0},
    {"crowded", "chunks that wait for room hand over what they have, and nobody waits for ever", 3, 6, 6, 2, 10, 80, 0, 0, 0, 0, 0, 1, 0},
    {"held", "what tasks keep and what the program holds stays as it is, and is given back once", 3, 8, 48, 2, 70, 10, 10, 10, 10, 0, 0, 1, 50},
    {"sleep1", "no wake-up is lost, one worker", 1, 1, 4, 2, 0, 0, 0, 0, 0, 1, 0, 0, 0},
    {"sleep2", "no wake-up is lost, two workers", 2, 4, 4, 2, 0, 0, 0, 0, 0, 1, 0, 0, 0},
    {"sleep8", "no wake-up is lost, eight workers", 8, 8, 4, 2, 0, 0, 0, 0, 0, 1, 0, 0, 0},
    {"spin", "a spinning worker counts as awake and never misses its task", 2, 4, 4, 64, 0, 0, 5, 0, 0, 1, 20, 0, 0},
    {"guard", "wakes put off because of a guard are made good", 8, 8, 4, 2, 0, 0, 0, 0, 0, 1, 0, 1, 0},
};

static const struct phase *P;
static struct ipc_segment S;
static struct driver D;
static struct ipc_watch Watch;
static uint64_t phase_ns = 1000000000, seed = 1;
static int standstill = 5; /* seconds without any progress */
static _Atomic uint64_t progress;
static _Atomic uint32_t monitor_bell, monitor_quits, claims[64], busy[64], started[64];
static uint64_t sleeps, deaths_seen;
static _Atomic uint64_t condemned; /* by the monitor's thread and by ours */

static uint64_t draw(uint64_t *state) { return mix((*state)++); }
static int chance(uint64_t *state, uint32_t per_cent) { return draw(state) % 100 < per_cent; }

/* ---- workers */

struct thread {
    pthread_t id;
    uint32_t slot, generation;
    struct desk desk;
};
static struct thread workers[MOST_WORKERS];

/* Everybody of a group is running at the same time, or the watchdog barks: nobody of them may still be asleep. */
static void meet_group(const struct job *j) {
    if (!j->group_size) return;
    _Atomic uint32_t *count = &started[j->group % 64];
    atomic_fetch_add(count, 1);
    while (atomic_load(count) < j->group_size) sched_yield();
}

static void *worker_thread(void *argument) {
    struct thread *t = argument;
    struct ipc_worker w;
    uint64_t random = seed + t->slot * 1000 + t->generation;
    struct kept kept[3] = {0};
    ipc_worker_init(&w, &S, t->slot, t->generation);
    for (;;) {
        int code = ipc_claim(&w);
        for (uint32_t k = 0; k < 3; k++) /* all of it where it might be waited for */
            if (code < 0 || chance(&random, 30)) drop_kept(&w, &kept[k]);
        if (code == IPC_STOP) return NULL;
        if (code == IPC_EMPTY) {
            if (!P->guard) w.worked = 0;
            ipc_worker_wait(&w, chance(&random, 50) ? P->spin_us * 1000 : 0, 10 * SECOND);
            continue;
        }
        struct job j;
        CHECK(atomic_exchange(&busy[w.row], 1) == 0, "a task never runs twice at the same time");
        atomic_fetch_add(&claims[w.row], 1);
        read_order(&w, &j);
        meet_group(&j);
        for (uint64_t k = draw(&random) % (P->together ? 40 : 200); k; k--) ipc_pause();
        uint32_t row = w.row;
        atomic_store(&busy[row], 0);
        struct kept *keep = &kept[draw(&random) % 3];
        do { /* too large: as long as views are in the way */
            if (chance(&random, P->holds) && !keep->units) code = work_and_keep(&w, &t->desk, keep);
            else code = give_results(&w, &j, &t->desk);
        } while (P->holds && code == IPC_TOO_LARGE && sched_yield() == 0);
        CHECK(code == 0 || code == IPC_LOST, "a result is stored or the worker learns that it was condemned");
        atomic_fetch_add(&progress, 1);
        if (code == IPC_LOST) return NULL; /* claims nothing more: the monitor kills it */
    }
}

static void start_worker(uint32_t slot, uint32_t generation) {
    struct thread *t = &workers[slot];
    t->slot = slot;
    t->generation = generation;
    ipc_slot_begin(&S, slot, generation);
    CHECK(pthread_create(&t->id, NULL, worker_thread, t) == 0, "a thread starts");
    ipc_slot_forked(&S, slot, (int32_t)slot + 1);
}

/* ---- monitor: condemns at random moments and over deadlines, "waits for the process", records the death, starts the next generation */

static void bury(uint32_t slot) {
    struct thread *t = &workers[slot];
    pthread_join(t->id, NULL);
    struct ipc_death death = {t->generation, (int32_t)slot + 1, 9, IPC_KILLED, 0};
    ipc_record_death(&S, slot, &death);
    while (!ipc_may_fork(&S, slot, t->generation + 1)) sched_yield(); /* the client settles */
    start_worker(slot, t->generation + 1);
    atomic_fetch_add(&progress, 1);
}

static void *monitor_thread(void *argument) {
    (void)argument;
    uint64_t random = seed + 77;
    while (!atomic_load(&monitor_quits)) {
        uint32_t bell = atomic_load(&monitor_bell), count = 0;
        struct ipc_running r, expired[MOST_WORKERS];
        if (P->deadlines) /* from 0 to 2 s in the future: of tasks with a deadline of 1 s about half are over */
            ipc_deadlines(&S, &Watch, ipc_now() + draw(&random) % (2 * SECOND), expired, MOST_WORKERS, &count);
        for (uint32_t k = 0; k < count; k++)
            if (chance(&random, P->deadlines)) condemned += (uint64_t)ipc_condemn(&S, expired[k].row, expired[k].word);
        for (uint32_t slot = 0; slot < S.slots; slot++)
            if (ipc_running(&S, slot, &r) && ipc_word_state(r.word) == IPC_CONDEMNED && r.generation == workers[slot].generation) bury(slot);
        ipc_futex_wait(&monitor_bell, bell, 500000);
    }
    return NULL;
}

/* ---- client */

static struct job random_job(uint64_t *random) {
    struct job j = {.size = (uint32_t)(draw(random) % 300)};
    if (chance(random, P->payload)) {
        uint64_t big = draw(random) % 150000 + IPC_INLINE;
        if (P->units < 8) big %= 3 * IPC_UNIT_SIZE;
        if (chance(random, 50)) j.size = (uint32_t)big; else j.args_len = (uint32_t)big;
    }
    if (chance(random, P->chunks)) {
        j.items = (uint32_t)(draw(random) % 5 + 1);
        if (P->units < 8) j.size = (uint32_t)(draw(random) % 60000), j.args_len = 0; /* up to 5 units of 6 */
        if (j.size > 60000) j.size = 60000;
    }
    if (P->deadlines && chance(random, 50)) j.timeout_ms = 1000;
    return j;
}

static int submit(struct job j) {
    int row = driver_submit(&D, j);
    CHECK(row >= 0 || row == IPC_FULL || row == IPC_NO_ROOM || (P->holds && row == IPC_TOO_LARGE), "a job that fits is refused only for want of rows or room");
    return row >= 0;
}

static uint32_t group;
static void submit_round(uint64_t *random) {
    if (!P->together) {
        for (uint64_t n = draw(random) % (P->rows + 2) + 1; n && submit(random_job(random)); n--) {}
        return;
    }
    /* A burst for each of which a worker must be awake at the same time. The last round is over: all are asleep or about to be. */
    if (driver_live(&D)) return;
    uint32_t n = (uint32_t)(draw(random) % P->workers + 1);
    atomic_store(&started[++group % 64], 0);
    struct job j = {.size = 16, .group = group, .group_size = n};
    for (uint32_t k = 0; k < n; k++) {
        while (!submit(j)) sched_yield(); /* rows cool until a worker has passed their entries */
        if (chance(random, 20)) ipc_flush_wakes(&D.c);
        if (chance(random, P->cancels)) { /* a stale entry between live ones; it counts for nobody */
            struct job alone = {.size = 16};
            int row = driver_submit(&D, alone);
            if (row >= 0) driver_cancel(&D, (uint32_t)row);
        }
    }
}

static void check_ledger(void) {
    uint64_t claimed = 0;
    for (uint32_t row = 0; row < S.rows; row++) claimed += atomic_load(&claims[row]);
    CHECK(claimed == D.done + D.charged, "claims = completed + charged attempts");
}

static void interfere(uint64_t *random) {
    uint32_t row = (uint32_t)(draw(random) % P->rows);
    if (!P->together && chance(random, P->cancels) && D.job[row].id) driver_cancel(&D, row);
    if (chance(random, P->kills) && D.job[row].id && ipc_condemn(&S, row, word_of(&S, row))) { /* Future.kill: condemn, then tell the monitor */
        condemned++;
        atomic_fetch_add(&monitor_bell, 1);
    }
}

/* Whether the phase has met what it is for: on a busy machine that takes longer than its time. */
static int met(void) {
    return (!P->cancels || D.cancelled) && (!P->kills || condemned) && (!P->holds || D.adopted) && (P->units != 6 || D.drained);
}

static void client(void) {
    uint64_t random = seed + 5, end = ipc_now() + phase_ns;
    for (;;) {
        uint64_t now = ipc_now();
        int open = now < end || (!met() && now < end + 5 * SECOND);
        if (open) submit_round(&random);
        if (!open && driver_live(&D) == 0) return;
        interfere(&random);
        if (driver_collect(&D)) atomic_fetch_add(&progress, 1);
        deaths_seen += driver_settle(&D);
        driver_retry(&D);
        while (D.views && chance(&random, 60)) driver_drop(&D, (uint32_t)(draw(&random) % D.views));
        if (D.c.in_flight == 0) {
            if (chance(&random, 1)) ipc_trim(&D.c);
            if (D.waiting) sched_yield(); /* tasks have kept the room that this needs */
            continue;
        }
        ipc_flush_wakes(&D.c);
        if (!P->together && chance(&random, 30)) continue;
        while (D.views) driver_drop(&D, 0); /* a worker may want their room */
        int code = ipc_client_wait(&D.c, chance(&random, 50) ? P->spin_us * 1000 : 0, 10 * SECOND);
        CHECK(code != IPC_EMPTY, "no wake-up is lost (the client slept for 10 s beside work in flight)");
        sleeps++;
    }
}

/* ---- watchdog and main */

static void *watchdog(void *argument) {
    sem_t *over = argument;
    uint64_t last = 0;
    for (int still = 0; still < standstill; still++) {
        struct timespec t;
        clock_gettime(CLOCK_REALTIME, &t);
        t.tv_sec++;
        if (sem_timedwait(over, &t) == 0) return NULL;
        uint64_t now = atomic_load(&progress);
        if (now != last) still = -1;
        last = now;
    }
    fprintf(stderr, "standstill in phase %s: head %llu tail %llu sleepers %llx client asleep %u done %llx\n", P->name,
            (unsigned long long)atomic_load(&S.header->head), (unsigned long long)atomic_load(&S.header->tail),
            (unsigned long long)atomic_load(&S.header->sleepers[0]), atomic_load(&S.header->client_asleep),
            (unsigned long long)atomic_load(&S.header->done_summary));
    for (uint32_t row = 0; row < S.rows; row++) fprintf(stderr, "  row %u state %u\n", row, ipc_word_state(word_of(&S, row)));
    fprintf(stderr, "broken promise: no wake-up is lost\n");
    _exit(1);
}

static void run(const struct phase *p) {
    pthread_t monitor, dog;
    sem_t over;
    uint32_t first = p->kills ? 65533 : 0; /* close to the end of the row word's 16 bits: their wrap is part of the test */
    P = p;
    trying("phase %s, seed %llu", p->name, (unsigned long long)seed);
    memset(&S, 0, sizeof(S));
    memset(&Watch, 0, sizeof(Watch));
    fresh_segment(&S, p->rows, p->workers, p->units, p->cores);
    driver_open(&D, &S, D.last_id);
    D.adopts = p->holds != 0;
    for (uint32_t row = 0; row < p->rows; row++) {
        D.c.seq[row] = (uint32_t)IPC_MASK(IPC_SEQ_BITS) - 20; /* the same for the uses of a row */
        atomic_store(&claims[row], 0);
    }
    sleeps = deaths_seen = condemned = 0;
    sem_init(&over, 0, 0);
    atomic_store(&monitor_quits, 0);
    for (uint32_t slot = 0; slot < p->workers; slot++) {
        atomic_store(&S.slot[slot].reaped, first);
        atomic_store(&S.slot[slot].settled, first);
        start_worker(slot, first);
    }
    pthread_create(&monitor, NULL, monitor_thread, NULL);
    pthread_create(&dog, NULL, watchdog, &over);
    client();
    atomic_store(&monitor_quits, 1);
    pthread_join(monitor, NULL);
    while (driver_settle(&D)) {}
    ipc_stop_workers(&S);
    for (uint32_t slot = 0; slot < p->workers; slot++) pthread_join(workers[slot].id, NULL);
    sem_post(&over);
    pthread_join(dog, NULL);

    struct ipc_worker last; /* stale entries of cancelled tasks: whoever comes next helps them away */
    atomic_store(&S.header->stop, 0);
    ipc_worker_init(&last, &S, 0, workers[0].generation + 1);
    CHECK(ipc_claim(&last) == IPC_EMPTY, "nothing is left to claim");
    check_ledger();
    check_all_free(&D);
    CHECK(condemned == D.charged, "each condemnation is charged exactly once, and nothing else");
    CHECK(atomic_load(&S.header->sleepers[0]) == 0 && atomic_load(&S.header->spinners[0]) == 0, "nobody's bit is left");
    printf("%-9s %8llu done %7llu cancelled %6llu condemned %7llu waits, heals 0: %s\n", p->name, (unsigned long long)D.done,
           (unsigned long long)D.cancelled, (unsigned long long)condemned, (unsigned long long)sleeps, p->promise);
    CHECK(!p->cancels || D.cancelled, "cancels happened");
    CHECK(!p->kills || D.charged, "deaths happened");
    CHECK(!p->holds || D.adopted, "results were adopted");
    CHECK(p->units != 6 || D.drained, "some results were handed over early");
    munmap(S.header, ipc_segment_size(S.rows, S.slots, S.units));
    munmap(S.payload, (size_t)S.units * IPC_UNIT_SIZE);
}

int main(int argc, char **argv) {
    int option;
    setlinebuf(stdout);
    while ((option = getopt(argc, argv, "t:s:w:")) != -1) {
        if (option == 't') phase_ns = (uint64_t)(atof(optarg) * 1e9);
        else if (option == 'w') standstill = atoi(optarg);
        else if (option == 's') seed = strtoull(optarg, NULL, 10);
        else return 2;
    }
    for (size_t k = 0; k < sizeof(phases) / sizeof(*phases); k++) {
        int wanted = optind == argc;
        for (int a = optind; a < argc; a++) wanted |= !strcmp(argv[a], phases[k].name);
        if (wanted) run(&phases[k]);
    }
    return 0;
}
