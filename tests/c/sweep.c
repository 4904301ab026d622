/* A worker process is stopped after every single instruction of what it does, by ptrace: k = 0, 1, 2, ... until the end. At each k, with a fresh
 * segment and a fresh process:
 *
 *   kill      SIGKILL; then the monitor's and the client's steps
 *   mate      the same, but a second worker first takes whatever there is to take
 *   stall     it stands still while a second worker and the client do everything and use the rows again; then it goes on
 *   condemn   the monitor condemns what it runs; then it goes on
 *   publish   (where it goes to sleep) a task is published; then it goes on and must not sleep over it
 *
 * The ledger of kit.h must add up each time, and a system call counts as one instruction. One pass single-steps through and notes the address
 * of every instruction; then each moment k is reached by a hardware breakpoint on that address, because stepping there every time would
 * take minutes (n squared steps, and a trap costs 20 us in a virtual machine).
 *
 *   sweep [scenario ...] */
#include "kit.h"

#include <linux/futex.h>
#include <sched.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/user.h>
#include <sys/wait.h>

#ifndef __x86_64__
#error "the sweep knows the debug registers of x86-64 only"
#endif

#define ROWS 2u
#define UNITS 8u

enum manner { KILL, MATE, STALL, CONDEMN, PUBLISH, MANNERS };
static const char *const manner_names[MANNERS] = {"kill", "mate", "stall", "condemn", "publish"};

struct scenario {
    const char *name;
    struct job job[2];
    int sleeps, guard;        /* nothing is published at first; it sleeps on guard */
    int keeps;                /* its task keeps its arguments, and the client adopts what is in units */
    unsigned manners;         /* bit set */
    const char *must_meet[8]; /* classes of row states that a kill must have met */
};
#define ALL (1u << KILL | 1u << MATE | 1u << STALL | 1u << CONDEMN)
static const struct scenario scenarios[] = {
    {"small", {{.size = 40, .timeout_ms = 60000}, {.size = 20}}, 0, 0, 0, ALL, {"READY", "RUNNING 0", "DONE"}},
    {"payload", {{.size = 500}, {.size = 20}}, 0, 0, 0, ALL, {"READY", "RUNNING 0", "STORING 0", "DONE"}},
    {"chunk", {{.size = 210, .items = 2}, {.size = 20}}, 0, 0, 0, ALL, {"READY", "RUNNING 0", "RUNNING 1", "RUNNING 2", "STORING 2", "DONE"}},
    {"keeps", {{.size = 40, .args_len = 70000}, {.size = 500, .args_len = 500}}, 0, 0, 1, ALL, {"READY", "RUNNING 0", "some", "all", "DONE all"}},
    {"keeps2", {{.size = 500, .args_len = 70000}, {.size = 20}}, 0, 0, 1, ALL, {"READY", "RUNNING 0", "STORING 0", "some", "all", "DONE all"}},
    {"sleep", {{.size = 20}}, 1, 0, 0, 1u << KILL | 1u << PUBLISH, {"unmarked", "marked", "RUNNING 0", "DONE"}},
    {"guard", {{.size = 20}}, 1, 1, 0, 1u << KILL | 1u << PUBLISH, {"unmarked", "marked", "on guard", "RUNNING 0", "DONE"}},
};

static struct ipc_segment S;
static struct driver D;
static struct desk desk;
static struct { _Atomic uint32_t ended; _Atomic int code; } *tracee;
static uint32_t first_row; /* of the job that the tracee is meant to do */

/* A clock of our own, with the linker's help. By the machine's the way is another each time: what took longer is counted elsewhere, and
 * clock_gettime itself begins again now and then; then moments that were traced do not come in the run that is to die there. */
static uint64_t now_ns = SECOND;
uint64_t __real_ipc_now(void);
uint64_t __wrap_ipc_now(void) { return now_ns += 1000; }

/* ---- the tracee */

static const struct scenario *scene;

/* What is swept. The bytes of the results are prepared before, so that only the core's instructions are met. */
__attribute__((noinline)) static int swept(struct ipc_worker *w, const struct job *j, unsigned char (*result)[512]) {
    struct job read;
    int code = ipc_claim(w);
    if (scene->sleeps && code == IPC_EMPTY) {
        w->worked = scene->guard;
        if ((code = ipc_worker_wait(w, 0, 3 * SECOND / 2)) < 0) return code;
        code = ipc_claim(w);
    }
    if (code < 0) return code;
    struct ipc_task t;
    if ((code = ipc_claimed(w, &t)) < 0) return code;
    memcpy(&read, t.args, sizeof(read));
    if (read.id != j->id) return -100; /* another task: only where somebody else was faster */
    w->keep = scene->keeps;
    if (!j->items) return complete(w, kind_of(j->id, 0), result[0], j->size);
    if ((code = ipc_begin_items(w)) < 0) return code;
    for (uint32_t item = 1; code == 0 && item <= j->items; item++) code = commit(w, kind_of(j->id, item), result[item], j->size);
    return code;
}

static void be_traced(const struct job *j) {
    static unsigned char result[4][512];
    struct ipc_worker w;
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (ptrace(PTRACE_TRACEME, 0, NULL, NULL) < 0) _exit(2);
    for (uint32_t item = 0; item < 4; item++) pattern_fill(result[item], j->size, j->id, item);
    ipc_worker_init(&w, &S, 0, 0);
    __asm__ volatile("int3" ::: "memory");
    int code = swept(&w, j, result);
    atomic_store_explicit(&tracee->ended, 1, memory_order_release);
    if (code == -100) code = work(&w, &desk); /* what it claimed instead it does as well */
    atomic_store(&tracee->code, code);
    _exit(0);
}

/* ---- the tracer */

#define LONGEST 20000u
static uint64_t address[LONGEST]; /* of the instruction that comes next at moment k */
static uint32_t moments, sleeping_at; /* how many; the moment of the futex wait, 0 = none */
static uint64_t adopted;
static int missed; /* the moment did not come: the kernel said something else, as that it has not slept */

/* 1 stopped, 0 ended */
static int wait_stop(pid_t pid) {
    int status;
    CHECK(waitpid(pid, &status, __WALL) == pid, "waitpid");
    if (WIFSTOPPED(status)) CHECK(WSTOPSIG(status) == SIGTRAP, "the tracee stops at its instruction");
    else CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0, "or runs to its end");
    return WIFSTOPPED(status);
}

static void publish_the_job(void) {
    first_row = (uint32_t)driver_submit(&D, scene->job[0]);
    CHECK(first_row < ROWS, "there is a row");
    ipc_flush_wakes(&D.c);
}

static pid_t fork_tracee(const struct job *j) {
    atomic_store(&tracee->ended, 0);
    atomic_store(&tracee->code, -99);
    pid_t pid = fork();
    CHECK(pid >= 0, "fork");
    if (pid == 0) be_traced(j);
    CHECK(wait_stop(pid), "the tracee comes to the marker");
    return pid;
}

static void kill_it(pid_t pid) {
    int status;
    kill(pid, SIGKILL);
    do CHECK(waitpid(pid, &status, __WALL) == pid, "waitpid"); while (WIFSTOPPED(status));
    CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL, "it dies of the kill");
}

static void trace(pid_t pid) {
    for (moments = sleeping_at = 0; !atomic_load_explicit(&tracee->ended, memory_order_acquire); moments++) {
        struct user_regs_struct r;
        CHECK(moments < LONGEST && ptrace(PTRACE_GETREGS, pid, NULL, &r) == 0, "registers");
        const unsigned char *code = (const unsigned char *)r.rip; /* parent and child have the same image */
        address[moments] = r.rip;
        int sleeps = code[0] == 0x0f && code[1] == 0x05 && r.rax == SYS_futex && (r.rsi & FUTEX_CMD_MASK) == FUTEX_WAIT;
        CHECK(ptrace(PTRACE_SINGLESTEP, pid, NULL, NULL) == 0, "single step");
        if (sleeps) { /* it is in the system call now, or about to find its bell rung */
            sleeping_at = moments;
            publish_the_job();
        }
        CHECK(wait_stop(pid), "one step at a time");
    }
    kill_it(pid);
}

/* From moment `from` to moment `to`. 0 if it ended on the way. */
static int advance(pid_t pid, uint32_t from, uint32_t to, int publish) {
    uint32_t times = 0, inside = 0;
    for (uint32_t k = from + 1; k <= to; k++) times += address[k] == address[to] && address[k - 1] != address[k];
    while (inside < to && address[to - inside - 1] == address[to]) inside++; /* `rep movs` traps at each round, but breaks only at the first */
    CHECK(ptrace(PTRACE_POKEUSER, pid, offsetof(struct user, u_debugreg[0]), address[to]) == 0, "a breakpoint");
    CHECK(ptrace(PTRACE_POKEUSER, pid, offsetof(struct user, u_debugreg[7]), 1) == 0, "is enabled");
    for (; times; times--) {
        CHECK(ptrace(PTRACE_CONT, pid, NULL, NULL) == 0, "it goes on");
        if (publish) publish_the_job();
        publish = 0;
        if (!wait_stop(pid)) return 0;
    }
    for (; inside; inside--) {
        CHECK(ptrace(PTRACE_SINGLESTEP, pid, NULL, NULL) == 0, "single step");
        CHECK(wait_stop(pid), "one round more");
    }
    return 1;
}

/* To moment k, or to the end if that comes first. */
static int go_to(pid_t pid, uint32_t k) {
    int within = 1, asleep = sleeping_at && k > sleeping_at;
    if (asleep) within = advance(pid, 0, sleeping_at, 0);
    if (within && k < moments) within = advance(pid, asleep ? sleeping_at : 0, k, asleep);
    if (within && k < moments) return 1;
    if (within) {
        ptrace(PTRACE_POKEUSER, pid, offsetof(struct user, u_debugreg[7]), 0);
        ptrace(PTRACE_CONT, pid, NULL, NULL);
        if (asleep) publish_the_job();
        CHECK(!wait_stop(pid), "it runs to its end");
    }
    missed = k < moments;
    return 0;
}

static int let_it_end(pid_t pid, int within) {
    if (within) {
        ptrace(PTRACE_POKEUSER, pid, offsetof(struct user, u_debugreg[7]), 0);
        ptrace(PTRACE_CONT, pid, NULL, NULL);
        CHECK(!wait_stop(pid), "it runs to its end");
    }
    return atomic_load(&tracee->code);
}

/* ---- client, monitor and the other worker are the parent */

/* Units of arguments that the tracee has made its own. */
static uint32_t kept_by_tracee(void) {
    uint32_t n = 0;
    for (uint32_t k = 0; k < UNITS; k++) n += atomic_load(&S.owner[k]) == ipc_owner_kept(0, 0);
    return n;
}

static void works_off(uint32_t slot, uint32_t generation) {
    struct ipc_worker w;
    ipc_worker_init(&w, &S, slot, generation);
    while (ipc_claim(&w) == 0) CHECK(work(&w, &desk) == 0, "a worker does its work");
}

static void bury_and_settle(uint32_t owed) {
    struct ipc_death death = {0, 1, 9, IPC_DIED, 0};
    uint64_t charged = D.charged;
    ipc_record_death(&S, 0, &death);
    driver_collect(&D); /* sweep before settle, as the client does */
    /* What is free by now is taken again: a unit that is freed twice is missed by its new owner. */
    if (scene->keeps) driver_submit(&D, (struct job){.size = 30, .args_len = 600});
    check_units(&D);
    CHECK(driver_settle(&D) == owed && D.charged == charged + owed, "who was claimed pays one attempt, nobody else");
    CHECK(kept_by_tracee() == 0, "what the dead had kept is free");
    check_units(&D);
}

#define CLASSES 64
static struct { char name[32]; uint64_t count; } met[CLASSES];

static void meet(const char *name) {
    int k = 0;
    while (met[k].name[0] && strcmp(met[k].name, name)) k++;
    CHECK(k < CLASSES - 1, "few classes");
    snprintf(met[k].name, sizeof(met[k].name), "%s", name);
    met[k].count++;
}

/* The class of the moment of death: the state of the row that the tracee works on, or where it is on its way to sleep. */
static void meet_class(void) {
    static const char *const names[] = {"FREE", "READY", "RUNNING", "STORING", "DONE", "CONDEMNED", "?", "?"};
    char name[32];
    uint64_t w = word_of(&S, first_row);
    uint32_t state = ipc_word_state(w);
    if (scene->sleeps && driver_live(&D) == 0)
        snprintf(name, sizeof(name), "%s", atomic_load(&S.header->guard) ? "on guard" : atomic_load(&S.header->sleepers[0]) & 1 ? "marked" : "unmarked");
    else if (kept_by_tracee()) snprintf(name, sizeof(name), "%s%s", state == IPC_DONE ? "DONE " : "", kept_by_tracee() < 2 ? "some" : "all");
    else if (state == IPC_RUNNING || state == IPC_STORING) snprintf(name, sizeof(name), "%s %u", names[state], ipc_word_item(w));
    else snprintf(name, sizeof(name), "%s", names[state]);
    meet(name);
}

static uint32_t claimed_by_tracee(void) {
    uint32_t n = 0;
    for (uint32_t row = 0; row < ROWS; row++) {
        uint64_t w = word_of(&S, row);
        uint32_t state = ipc_word_state(w);
        n += (state == IPC_RUNNING || state == IPC_STORING || state == IPC_CONDEMNED) && ipc_word_slot(w) == 0;
    }
    return n;
}

static void finish(void) {
    if (kept_by_tracee()) bury_and_settle(0); /* its task kept them to its end */
    works_off(0, 1);
    driver_collect(&D);
    driver_retry(&D);
    works_off(0, 1);
    driver_collect(&D);
    check_all_free(&D);
    CHECK(D.submitted == D.done, "each task is done exactly once");
    adopted += D.adopted;
}

static pid_t stage(void) {
    fresh_segment(&S, ROWS, 2, UNITS, 2);
    for (uint32_t k = 0; k < 2; k++) atomic_store(&S.slot[k].spans.folds, 20); /* hours: no task stands in two of them, however slowly it is traced */
    driver_open(&D, &S, D.last_id);
    D.adopts = scene->keeps;
    struct job mine = scene->job[0];
    mine.id = D.last_id + 1;
    if (!scene->sleeps) {
        first_row = (uint32_t)driver_submit(&D, scene->job[0]);
        CHECK(driver_submit(&D, scene->job[1]) >= 0, "there are two rows");
    }
    atomic_store(&S.header->client_asleep, 1); /* so that the completion rings */
    return fork_tracee(&mine);
}

static void killed_at(enum manner manner, pid_t pid) {
    uint32_t owed = claimed_by_tracee();
    kill_it(pid);
    if (manner == KILL) meet_class();
    CHECK(owed == claimed_by_tracee() && owed <= 1, "a worker runs one task at a time");
    if (manner == MATE) {
        works_off(1, 0);
        driver_collect(&D);
        CHECK(driver_live(&D) <= 1, "only what the dead one held or had just finished has to wait for its settlement");
    }
    bury_and_settle(owed);
    CHECK(!(atomic_load(&S.header->sleepers[0]) & 1) && atomic_load(&S.header->guard) == 0, "nobody counts on the dead");
    if (driver_live(&D) == 0 && scene->sleeps) publish_the_job();
}

static void stalled_at(pid_t pid) {
    works_off(1, 0);
    driver_collect(&D);
    for (int n = 0; n < 3 && driver_submit(&D, (struct job){.size = 30}) >= 0; n++) { /* its row and its entry are used again, if they are free */
        works_off(1, 0);
        driver_collect(&D);
    }
    driver_submit(&D, (struct job){.size = 30}); /* one is left for whoever comes first */
    int code = let_it_end(pid, 1);
    CHECK(code == 0 || code == IPC_EMPTY, "who stood still goes on as if nothing had been");
    CHECK(D.charged == 0, "and nobody pays for it");
}

static void condemned_at(pid_t pid, int within) {
    struct ipc_running r;
    int condemned = ipc_running(&S, 0, &r) && ipc_word_state(r.word) == IPC_RUNNING && ipc_condemn(&S, r.row, r.word);
    if (condemned) meet("CONDEMNED");
    CHECK(within || !condemned, "a finished task is never condemned");
    int code = let_it_end(pid, within);
    CHECK(code == (condemned ? IPC_LOST : 0), "a condemned worker learns it, another ends as usual");
    CHECK(claimed_by_tracee() == (uint32_t)condemned, "a condemned task is never done");
    bury_and_settle((uint32_t)condemned);
}

static void published_at(pid_t pid, int within) {
    if (driver_live(&D) == 0) publish_the_job();
    uint64_t start = __real_ipc_now();
    CHECK(let_it_end(pid, within) == 0 && __real_ipc_now() - start < SECOND, "a task published at this moment is not slept over");
    CHECK(driver_collect(&D) == 1, "and done");
}

static void at(enum manner manner, uint32_t k) {
    trying("%s, %s at instruction %u", scene->name, manner_names[manner], k);
    pid_t pid = stage();
    missed = 0;
    int within = go_to(pid, k);
    if (manner == CONDEMN) condemned_at(pid, within);
    else if (manner == PUBLISH) published_at(pid, within);
    else if (within && manner == STALL) stalled_at(pid);
    else if (within) killed_at(manner, pid);
    finish();
}

int main(int argc, char **argv) {
    uint64_t points = 0, never = 0;
    cpu_set_t one;
    alarm(170);
    setlinebuf(stdout);
    CPU_ZERO(&one);
    CPU_SET(sched_getcpu(), &one); /* tracer and tracee take turns: on one CPU a turn is a switch, not an interrupt */
    sched_setaffinity(0, sizeof(one), &one);
    tracee = map_shared(4096);
    for (size_t n = 0; n < sizeof(scenarios) / sizeof(*scenarios); n++) {
        int wanted = argc == 1;
        for (int a = 1; a < argc; a++) wanted |= !strcmp(argv[a], scenarios[n].name);
        if (!wanted) continue;
        scene = &scenarios[n];
        memset(met, 0, sizeof(met));
        adopted = 0;
        for (int manner = 0; manner < MANNERS; manner++) {
            if (!(scene->manners >> manner & 1)) continue;
            trying("%s, traced", scene->name);
            uint32_t gone = 1; /* moments that never came: what was traced was a way that is rarely gone */
            for (int round = 0; gone && round < 5; round++) {
                uint32_t before = gone = moments = 0;
                do before = moments, trace(stage());
                while (moments != before);
                for (uint32_t k = 0; k <= moments; k++) { /* the last one is past the end */
                    int tries = 0;
                    do at((enum manner)manner, k);
                    while (missed && ++tries < 20);
                    gone += (uint32_t)missed;
                }
            }
            never += gone;
            printf("%-8s %-8s %5u instructions\n", scene->name, manner_names[manner], moments);
            points += moments;
        }
        printf("%-8s met", scene->name);
        for (int k = 0; met[k].name[0]; k++) printf("%s %s %llu", k ? "," : "", met[k].name, (unsigned long long)met[k].count);
        printf("\n");
        for (int k = 0; k < 8 && scene->must_meet[k]; k++) {
            int found = 0;
            for (int i = 0; met[i].name[0]; i++) found |= !strcmp(met[i].name, scene->must_meet[k]);
            trying("%s, class %s", scene->name, scene->must_meet[k]);
            CHECK(found, "every class of states is met");
        }
        CHECK(!scene->keeps == !adopted, "results are adopted");
        if (scene->manners >> CONDEMN & 1) {
            int k = 0;
            while (met[k].name[0] && strcmp(met[k].name, "CONDEMNED")) k++;
            CHECK(met[k].count, "tasks are condemned");
        }
    }
    CHECK(never * 100 <= points, "the tracee does the same each time");
    printf("sweep: %llu moments (%llu missed), 0 lost, 0 double\n", (unsigned long long)points, (unsigned long long)never);
    return points == 0;
}
