/* Store buffering, shown on the hardware: going to sleep against publishing (tail / sleeper bit), and the client's sleep against a completion
 * (done map / client_asleep). Each side stores, then looks at the other's word; if both looks are satisfied before both stores are seen, the
 * sleeper sleeps beside work. x86 does that with any store that is not seq_cst. Sleeps last 10 s, so one lost wake-up is a standstill.
 *
 *   litmus [-t seconds] [tail | asleep]     both without a name */
#include "kit.h"

#include <pthread.h>
#include <sched.h>

#define STANDSTILL (2 * SECOND)

static struct ipc_segment S;
static struct ipc_client C;
static uint64_t length = 3 * SECOND;
static int worker_sleeps; /* 1: the worker goes to sleep and the client spins; 0: the other way round */

static void on_cpu(int cpu) {
    cpu_set_t set, mine;
    CPU_ZERO(&set);
    CPU_SET(cpu, &set);
    if (sched_getaffinity(0, sizeof(mine), &mine) == 0 && CPU_ISSET(cpu, &mine)) sched_setaffinity(0, sizeof(set), &set);
}

/* The two must meet within some ten nanoseconds: every round tries another distance. */
static void drift(uint64_t *random, uint64_t most) {
    for (volatile uint64_t k = mix((*random)++) % most; k; k--) {}
}

static void *worker(void *unused) {
    struct ipc_worker w;
    uint64_t random = 1;
    (void)unused;
    on_cpu(1);
    ipc_worker_init(&w, &S, 0, 0);
    for (int code; (code = ipc_claim(&w)) != IPC_STOP;) {
        if (code == 0) {
            if (!worker_sleeps) drift(&random, 600);
            CHECK(ipc_complete(&w, 0, "x", 1) == 0, "done");
        } else if (worker_sleeps) {
            drift(&random, 60);
            w.worked = 0; /* never on guard: a guard looks every millisecond, which would turn a lost wake-up into a slow one */
            ipc_worker_wait(&w, 0, 10 * SECOND);
        } else {
            ipc_pause();
        }
    }
    return NULL;
}

static void await_done(uint64_t start) {
    int row;
    while ((row = ipc_next_done(&C)) < 0) {
        if (!worker_sleeps) {
            CHECK(ipc_client_wait(&C, 0, STANDSTILL) != IPC_EMPTY, "the client is not asleep beside a result");
        } else {
            ipc_pause();
            CHECK(ipc_now() - start < STANDSTILL, "the worker is not asleep beside a task");
        }
    }
    ipc_release_row(&C, (uint32_t)row);
}

static void litmus(const char *name) {
    pthread_t thread;
    uint64_t random = 7, end = ipc_now() + length, n = 0;
    struct ipc_task task = {.task = 1, .args = (const unsigned char *)"", .args_len = 0};
    worker_sleeps = !strcmp(name, "tail");
    memset(&S, 0, sizeof(S));
    fresh_segment(&S, 4, 1, 1, 2);
    ipc_client_init(&C, &S);
    pthread_create(&thread, NULL, worker, NULL);
    for (uint64_t start; (start = ipc_now()) < end; n++) {
        trying("litmus %s, round %llu", name, (unsigned long long)n);
        if (worker_sleeps) drift(&random, 400);
        CHECK(ipc_publish(&C, &task) >= 0, "published");
        if (worker_sleeps) ipc_flush_wakes(&C);
        await_done(start);
    }
    ipc_stop_workers(&S);
    pthread_join(thread, NULL);
    printf("litmus %-6s %9llu rounds, %llu parks, none lost\n", name, (unsigned long long)n,
           (unsigned long long)(worker_sleeps ? atomic_load(&S.slot[0].parks) : atomic_load(&S.header->client_bell)));
}

int main(int argc, char **argv) {
    int option;
    while ((option = getopt(argc, argv, "t:")) != -1) {
        if (option != 't') return 2;
        length = (uint64_t)(atof(optarg) * 1e9);
    }
    on_cpu(0);
    if (optind == argc || !strcmp(argv[optind], "tail")) litmus("tail");
    if (optind == argc || !strcmp(argv[optind], "asleep")) litmus("asleep");
    return 0;
}
