/* Store buffering, shown on the hardware: going to sleep against publishing (tail / sleeper bit), and the client's sleep against a completion
 * (done map / client_asleep) or, in want of a row, against a worker that passes a cancelled one (head / client_asleep). Each side stores, then
 * looks at the other's word; if both looks are satisfied before both stores are seen, the sleeper sleeps beside work. x86 does that with any store
 * that is not seq_cst, and with no read-modify-write. Nobody else moves, so one lost wake-up is a standstill.
 *
 *   litmus [-t seconds] [tail | asleep | listen | head]     all without a name; listen: the client sleeps in poll, as an event loop does */
#include "kit.h"

#include <pthread.h>
#include <sched.h>

#define STANDSTILL (2 * SECOND)

static struct ipc_segment S;
static struct ipc_client C;
static uint64_t length = 3 * SECOND;
static int worker_sleeps; /* 1: the worker goes to sleep and the client spins; 0: the other way round */
static int wire, in_loop, in_want;

static cpu_set_t allowed;
/* The n-th of the CPUs that this process may use: each thread has its own, or nothing is ever at the same time. */
static void on_cpu(int n) {
    for (int cpu = 0; cpu < CPU_SETSIZE; cpu++) {
        if (!CPU_ISSET(cpu, &allowed) || n--) continue;
        cpu_set_t set;
        CPU_ZERO(&set);
        CPU_SET(cpu, &set);
        sched_setaffinity(0, sizeof(set), &set);
        return;
    }
}

/* The two must meet within some ten nanoseconds. Who is about to sleep waits a little, longer after each round in which it was asleep in time,
 * shorter after each in which it was not: so most rounds are close. Who is in want of a row would always be too late: there the worker waits. */
static _Atomic int delay;
static void drift(uint64_t *random) {
    for (volatile uint64_t k = (uint64_t)atomic_load_explicit(&delay, memory_order_relaxed) + mix((*random)++) % 64; k; k--) {}
}
static void balance(int slept) {
    int d = atomic_load_explicit(&delay, memory_order_relaxed) + (slept ? 1 : -1);
    atomic_store_explicit(&delay, d < 0 ? 0 : d > 20000 ? 20000 : d, memory_order_relaxed);
}

static void wait_before_claim(const char *step) {
    static uint64_t random = 3;
    if (!strcmp(step, "claim:read")) drift(&random);
}

static void *worker(void *unused) {
    struct ipc_worker w;
    uint64_t random = 1;
    (void)unused;
    on_cpu(1);
    ipc_worker_init(&w, &S, 0, 0);
    for (int code; (code = ipc_claim(&w)) != IPC_STOP;) {
        if (code == 0) {
            CHECK(complete(&w, 0, "x", 1) == 0, "done");
        } else if (worker_sleeps) {
            drift(&random);
            w.worked = 0; /* never on guard: a guard looks every millisecond, which would turn a lost wake-up into a slow one */
            ipc_worker_wait(&w, 0, 10 * SECOND);
        } else {
            ipc_pause();
        }
    }
    return NULL;
}

static void await_done(uint64_t start, uint64_t *random) {
    int row;
    while ((row = ipc_next_done(&C)) < 0) {
        if (worker_sleeps || in_want) {
            ipc_pause();
        } else {
            drift(random);
            if (in_loop) sleep_in_loop(&C, wire, STANDSTILL);
            else ipc_client_wait(&C, 0, STANDSTILL);
        }
        CHECK(ipc_now() - start < STANDSTILL, worker_sleeps ? "the worker is not asleep beside a task" : "the client is not asleep beside a result");
    }
    ipc_release_row(&C, (uint32_t)row);
}

/* A row that is cancelled can be used again when head has passed it, and there is no other one. */
static int publish_when_cooled(uint64_t start, const struct ipc_task *task) {
    int row;
    while ((row = ipc_publish(&C, task)) == IPC_FULL) {
        CHECK(ipc_next_done(&C) == IPC_EMPTY, "nothing is done"); /* who has not looked so far would not sleep */
        ipc_client_wait(&C, 0, STANDSTILL);
        CHECK(ipc_now() - start < STANDSTILL, "the client is not asleep beside a row that has cooled");
    }
    return row;
}

static void litmus(const char *name) {
    pthread_t thread;
    int cancelled = 0;
    uint64_t random = 7, end = ipc_now() + length, n = 0, sleeps = 0;
    struct ipc_task task = {0}; /* no arguments */
    worker_sleeps = !strcmp(name, "tail");
    in_loop = !strcmp(name, "listen");
    in_want = !strcmp(name, "head");
    ipc_failpoint = in_want ? wait_before_claim : NULL;
    atomic_store(&delay, 0);
    memset(&S, 0, sizeof(S));
    fresh_segment(&S, in_want ? 1 : 4, 1, 1, 2);
    wire = fresh_wire(&S);
    ipc_client_init(&C, &S);
    pthread_create(&thread, NULL, worker, NULL);
    for (uint64_t start; (start = ipc_now()) < end; n++) {
        trying("litmus %s, round %llu", name, (unsigned long long)n);
        _Atomic uint32_t *bell = worker_sleeps ? &S.slot[0].bell : &S.header->client_bell;
        uint32_t before = atomic_load_explicit(bell, memory_order_relaxed);
        int row = publish_when_cooled(start, &task);
        CHECK(row >= 0, "published");
        if (worker_sleeps) ipc_flush_wakes(&C);
        int slept = atomic_load_explicit(bell, memory_order_relaxed) != before;
        if (cancelled) balance(!slept);
        cancelled = in_want && ipc_cancel(&C, (uint32_t)row);
        if (!cancelled) await_done(start, &random);
        if (!in_want) balance(slept = atomic_load_explicit(bell, memory_order_relaxed) != before);
        sleeps += (uint64_t)slept;
    }
    ipc_stop_workers(&S);
    pthread_join(thread, NULL);
    printf("litmus %-6s %9llu rounds, %llu woken, none lost\n", name, (unsigned long long)n, (unsigned long long)sleeps);
}

int main(int argc, char **argv) {
    int option;
    while ((option = getopt(argc, argv, "t:")) != -1) {
        if (option != 't') return 2;
        length = (uint64_t)(atof(optarg) * 1e9);
    }
    sched_getaffinity(0, sizeof(allowed), &allowed);
    on_cpu(0);
    static const char *const names[] = {"tail", "asleep", "listen", "head"};
    for (size_t k = 0; k < sizeof(names) / sizeof(*names); k++)
        if (optind == argc || !strcmp(argv[optind], names[k])) litmus(names[k]);
    return 0;
}
