/* What the kernel says of the memory of a process, and what a worker notes of its own before a task with a limit starts. Files of /proc are
 * opened anew each time: a task may have closed our descriptors and opened files of its own under the same numbers. */
#define _GNU_SOURCE
#include "core.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#define PART 8 /* what is less than this part of the limit is not worth the slow look */

static int open_of(uint32_t pid, const char *name) {
    char path[64];
    if (pid)
        snprintf(path, sizeof(path), "/proc/%u/%s", pid, name);
    else
        snprintf(path, sizeof(path), "/proc/self/%s", name);
    return open(path, O_RDONLY | O_CLOEXEC);
}

int ipc_memory_of(uint32_t pid, struct ipc_memory *memory) {
    char text[256];
    int fd = open_of(pid, "statm");
    if (fd < 0) return IPC_EMPTY;
    ssize_t length = read(fd, text, sizeof(text) - 1);
    close(fd);
    if (length <= 0) return IPC_EMPTY;
    text[length] = 0;
    unsigned long long size, resident, shared, page = (unsigned long long)sysconf(_SC_PAGESIZE);
    if (sscanf(text, "%llu %llu %llu", &size, &resident, &shared) != 3) return IPC_EMPTY;
    memory->shared = shared * page;
    memory->anonymous = resident > shared ? (resident - shared) * page : 0; /* the kernel does not count both at one moment */
    return 0;
}

/* One line of smaps: either the head of a mapping, `from-to rwxp ...`, whose last letter says whether it is private, or `Name:  number kB`. */
static uint64_t dirtied_in(const char *line, int *private) {
    static const char name[] = "Private_Dirty:";
    if ((*line >= '0' && *line <= '9') || (*line >= 'a' && *line <= 'f')) {
        const char *space = strchr(line, ' ');
        *private = space && strlen(space) > 4 && space[4] == 'p';
    } else if (*private && strncmp(line, name, sizeof(name) - 1) == 0) {
        return strtoull(line + sizeof(name) - 1, NULL, 10) * 1024;
    }
    return 0;
}

int ipc_dirtied_of(uint32_t pid, uint64_t *bytes) {
    char text[8192]; /* more than the longest line, which names a file */
    size_t have = 0;
    ssize_t got;
    int private = 0, fd = open_of(pid, "smaps");
    if (fd < 0) return IPC_EMPTY;
    *bytes = 0;
    while ((got = read(fd, text + have, sizeof(text) - 1 - have)) > 0) {
        char *line = text, *end;
        have += (size_t)got;
        text[have] = 0;
        for (; (end = strchr(line, '\n')); line = end + 1) {
            *end = 0;
            *bytes += dirtied_in(line, &private);
        }
        have -= (size_t)(line - text);
        memmove(text, line, have);
    }
    close(fd);
    return got < 0 ? IPC_EMPTY : 0;
}

/* Pages that it has inherited and writes to for the first time change nothing in the count of its anonymous memory. They are found by the slow
 * look only, which is taken again when faults, or memory that was given back, may have made the last one wrong by much. */
static uint64_t dirtied_before(struct ipc_worker *w, uint64_t anonymous, uint64_t faults) {
    uint64_t much = w->memory_limit / PART, page = (uint64_t)sysconf(_SC_PAGESIZE);
    if (anonymous <= much) return UINT64_MAX; /* nothing that it could have inherited matters */
    if (!w->dirtied || (faults - w->dirtied_faults) * page > much || anonymous + much < w->dirtied_anonymous) {
        if (ipc_dirtied_of(0, &w->dirtied) < 0) return UINT64_MAX;
        w->dirtied_faults = faults;
        w->dirtied_anonymous = anonymous;
    }
    return w->dirtied;
}

void ipc_note_memory(struct ipc_worker *w) {
    struct ipc_slot *line = &w->s->slot[w->slot];
    struct rusage own, others;
    getrusage(RUSAGE_SELF, &own);
    getrusage(RUSAGE_CHILDREN, &others); /* whoever waits for us gets the larger of both */
    uint64_t faults = (uint64_t)own.ru_minflt, peak = (uint64_t)(own.ru_maxrss > others.ru_maxrss ? own.ru_maxrss : others.ru_maxrss) * 1024;
    struct ipc_memory memory = {peak, 0}; /* where it cannot be read: at least not too little, which would blame the task for what others did */
    ipc_memory_of(0, &memory);
    atomic_store_explicit(&line->anonymous, memory.anonymous, memory_order_relaxed);
    atomic_store_explicit(&line->dirtied, dirtied_before(w, memory.anonymous, faults), memory_order_relaxed);
    atomic_store_explicit(&line->faults, faults, memory_order_relaxed);
    atomic_store_explicit(&line->peak, peak, memory_order_relaxed); /* all published by the release of started_word */
}
