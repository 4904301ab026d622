/* A worker is killed at every step that the core names, at its 1st, 2nd, ... occurrence, alone and beside a second worker. Then the monitor and
 * the client do their steps and the ledger must add up: a task is either READY and costs nothing, or claimed and costs exactly one attempt, or
 * DONE exactly once; nothing is held at the end, and nobody needs a timeout.
 *
 *   failpoints step ...     every step given must be reached, so that a new one in the sources cannot be forgotten */
#include "kit.h"

#include <sched.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>

#define ROWS 6u
#define UNITS 24u
#define LONG (3 * SECOND) /* nobody may need that long: reaching it is a lost wake-up */

static struct ipc_segment S;
static struct driver D;
static struct desk desk;
static int wire, in_loop; /* how the client sleeps */

/* ---- workers are processes */

static struct { const char *step; uint32_t occurrence; } doom;

static void dying_hook(const char *step) {
    if (strcmp(step, doom.step) || --doom.occurrence) return;
    kill(getpid(), SIGKILL);
}

/* What a task has kept is dropped after the next claim, and before a sleep. */
static void serve(struct ipc_worker *w) {
    struct kept kept = {0};
    for (;;) {
        int code = ipc_claim(w);
        drop_kept(w, &kept);
        if (code == IPC_STOP) _exit(0);
        if (code == IPC_EMPTY) ipc_worker_wait(w, 0, 5 * LONG); /* long, so that who is not woken is missed */
        else CHECK(work_and_keep(w, &desk, &kept) == 0, "a worker does its work");
    }
}

/* One of its wakers may die between taking its bit and ringing: here a process that does nothing else. */
static void wake_the_other(void) {
    while (!ipc_wake_slot(&S, 1)) sched_yield(); /* until it is asleep */
    _exit(0);
}

struct process { pid_t pid; uint32_t generation; };
static struct process crew[2];

static void forks(uint32_t slot, uint32_t generation, int doomed, int waker) {
    CHECK(ipc_may_fork(&S, slot, generation), "there is room in the death log");
    ipc_slot_begin(&S, slot, generation);
    pid_t pid = fork();
    CHECK(pid >= 0, "fork");
    if (pid == 0) {
        struct ipc_worker w;
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        if (doomed) ipc_failpoint = dying_hook;
        if (waker) wake_the_other();
        ipc_worker_init(&w, &S, slot, generation);
        serve(&w);
    }
    ipc_slot_forked(&S, slot, pid);
    crew[slot] = (struct process){pid, generation};
}

/* 1 if the process in the slot has ended; what it left is recorded, as the monitor does. */
static int reaped(uint32_t slot, int options, int *status) {
    pid_t pid = waitpid(crew[slot].pid, status, options);
    CHECK(pid >= 0, "waitpid");
    if (pid == 0) return 0;
    crew[slot].pid = 0;
    return 1;
}

/* ---- the parent is client and monitor */

static uint32_t claimed_by_the_dead(void) {
    uint32_t n = 0;
    for (uint32_t row = 0; row < ROWS; row++) {
        uint64_t w = word_of(&S, row);
        uint32_t state = ipc_word_state(w);
        n += (state == IPC_RUNNING || state == IPC_STORING) && ipc_word_slot(w) == 0 && ipc_word_generation(w) == 0;
    }
    return n;
}

static int client_sleep(uint64_t timeout) { return in_loop ? sleep_in_loop(&D.c, wire, timeout) : ipc_client_wait(&D.c, 0, timeout); }

static void client_round(uint64_t timeout) {
    driver_collect(&D);
    driver_settle(&D);
    driver_retry(&D);
    while (D.views > 1) driver_drop(&D, 0);
    if (driver_live(&D) == 0) return;
    ipc_flush_wakes(&D.c);
    int code = client_sleep(timeout);
    CHECK(code != IPC_EMPTY || timeout < LONG, "no step of the dead leaves anybody asleep beside work");
}

static void submit_some(void) {
    static const struct job jobs[] = {
        {.size = 100},
        {.size = 70000, .args_len = 70000},  /* two units in, kept; two units out, adopted */
        {.size = 300, .items = 3},           /* from the row's body into a run */
        {.size = 60000, .items = 3},         /* from a run into a larger one */
        {.size = 10, .timeout_ms = 60000, .memory_limit = 1u << 30},
    };
    for (size_t k = 0; k < sizeof(jobs) / sizeof(*jobs); k++) CHECK(driver_submit(&D, jobs[k]) >= 0, "all of them find rows and room");
}

/* In the futex, as /proc tells: the sleeper bit alone is set some steps before. */
static int asleep(uint32_t slot) {
    char path[64], state = 0;
    snprintf(path, sizeof(path), "/proc/%d/stat", (int)crew[slot].pid);
    FILE *f = fopen(path, "r");
    if (!f) return 0;
    if (fscanf(f, "%*d %*s %c", &state) != 1) state = 0;
    fclose(f);
    return state == 'S' && atomic_load(&S.header->sleepers[0]) >> slot & 1;
}

/* One run; returns 1 if the doomed process was killed, 0 if it never came to the k-th occurrence. */
static int run(const char *step, uint32_t occurrence, int mate, int waker, int loop) {
    int status, killed = 0, ended = 0;
    trying("kill at %s, occurrence %u, %s%s%s", step, occurrence, mate ? "beside another worker" : "alone", waker ? ", as a waker" : "",
           loop ? ", the client in an event loop" : "");
    fresh_segment(&S, ROWS, 2, UNITS, 2);
    wire = fresh_wire(&S);
    in_loop = loop;
    driver_open(&D, &S, D.last_id);
    D.adopts = 1;
    doom.step = step;
    doom.occurrence = occurrence;
    if (mate && waker) forks(1, 0, 0, 0); /* it goes to sleep first */
    else submit_some();
    atomic_store(&S.header->listening, (uint32_t)loop);
    atomic_store(&S.header->client_asleep, 1); /* the first completion finds the client asleep */
    forks(0, 0, 1, waker);
    if (mate && !waker) forks(1, 0, 0, 0);
    for (int rounds = 0; !ended;) { /* two rounds of work with a sleep behind each: into the futex, and up from it */
        if (waker) ended = reaped(0, 0, &status);
        else if ((ended = reaped(0, WNOHANG, &status))) break;
        else if (driver_live(&D)) client_round(1000000);
        else if (!asleep(0)) sched_yield();
        else if (rounds++) break;
        else submit_some();
    }
    if (ended) {
        killed = WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL;
        CHECK(killed || (waker && WIFEXITED(status) && WEXITSTATUS(status) == 0), "a worker ends only by the kill");
        uint32_t owed = claimed_by_the_dead(), charged = (uint32_t)D.charged;
        CHECK(owed <= 1, "a worker runs one task at a time");
        if (waker) submit_some(); /* for which the other must wake up, and be awake for good */
        uint32_t bell = atomic_load(&S.header->client_bell), others = atomic_load(&S.slot[1].bell);
        struct ipc_death death = {0, 1, status, IPC_DIED, 0};
        rung(wire);
        atomic_store(&S.header->listening, (uint32_t)loop);
        ipc_record_death(&S, 0, &death);
        CHECK(atomic_load(&S.header->client_bell) != bell && atomic_load(&S.slot[1].bell) != others, "a death rings everybody");
        int rings = rung(wire); /* one more by another worker, if it has just done something */
        CHECK(mate && loop ? rings >= 1 : rings == loop, "and the wire, if somebody listens");
        CHECK(!(atomic_load(&S.header->sleepers[0]) & 1) && atomic_load(&S.header->guard) != 1, "nobody counts on the dead");
        if (!waker) CHECK(driver_settle(&D) == owed && D.charged == charged + owed, "who was claimed pays one attempt, nobody else");
        if (!mate) forks(0, 1, 0, 0);
        /* What the dead owed was rung by the monitor; the client's own wakes would hide it. */
        if (waker) while (driver_live(&D)) { driver_collect(&D); if (driver_live(&D)) CHECK(client_sleep(LONG) != IPC_EMPTY, "a wake-up that the dead had taken is passed on"); driver_settle(&D); }
        while (driver_live(&D)) client_round(LONG);
        submit_some(); /* the pool is as good as new */
        while (driver_live(&D)) client_round(LONG);
    }
    ipc_stop_workers(&S);
    for (uint32_t slot = 0; slot < 2; slot++) {
        if (!crew[slot].pid) continue;
        reaped(slot, 0, &status);
        if (slot == 0 && !ended && WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL) { /* on its way out */
            struct ipc_death death = {0, 1, status, IPC_DIED, 0};
            ipc_record_death(&S, 0, &death);
            CHECK(driver_settle(&D) == 0, "an idle worker's death costs nobody an attempt");
            killed = 1;
        } else {
            CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0, "the living stop by themselves");
        }
    }
    CHECK(atomic_load(&S.header->sleepers[0]) == 0, "nobody's bit is left");
    check_all_free(&D);
    return killed;
}

int main(int argc, char **argv) {
    uint32_t kills = 0;
    alarm(120);
    for (int a = 1; a < argc; a++) {
        uint32_t before = kills;
        for (int loop = 0; loop < 2; loop++) {
            for (uint32_t k = 1; run(argv[a], k, 0, 0, loop); k++) kills++;
            for (uint32_t k = 1; run(argv[a], k, 1, 0, loop); k++) kills++;
            for (uint32_t k = 1; run(argv[a], k, 1, 1, loop); k++) kills++;
        }
        printf("%-18s %3u kills\n", argv[a], kills - before);
        trying("%s", argv[a]);
        CHECK(kills > before, "every step named in the core is reached by some run");
    }
    printf("failpoints: %d steps, %u kills, 0 lost, 0 double\n", argc - 1, kills);
    return argc < 2;
}
