/* The segment itself, and what anybody may look at; and the process. */
#include "view.h"

#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <unistd.h>

FUNCTION(segment_size) {
    (void)module;
    if (n != 3) return PyErr_Format(PyExc_TypeError, "size(rows, slots, units)");
    uint32_t rows = number32(args[0]), slots = number32(args[1]), units = number32(args[2]);
    CHECK;
    return PyLong_FromSize_t(ipc_segment_size(rows, slots, units));
}

static void *map(int fd, size_t *size) {
    struct stat st;
    if (fstat(fd, &st) < 0) return MAP_FAILED;
    *size = (size_t)st.st_size;
    return mmap(NULL, *size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
}

FUNCTION(create) {
    (void)module;
    if (n != 5) return PyErr_Format(PyExc_TypeError, "create(fd, rows, slots, units, cores)");
    uint32_t fd = number32(args[0]), rows = number32(args[1]), slots = number32(args[2]), units = number32(args[3]), cores = number32(args[4]);
    CHECK;
    size_t size;
    void *base = map((int)fd, &size);
    if (base == MAP_FAILED) return PyErr_SetFromErrno(PyExc_OSError);
    int code = ipc_segment_create(base, size, rows, slots, units, cores);
    munmap(base, size);
    if (code < 0) return PyErr_Format(PyExc_ValueError, "impossible sizes: %u rows, %u slots, %zu bytes", rows, slots, size);
    Py_RETURN_NONE;
}

FUNCTION(attach) {
    (void)module;
    if (n != 2) return PyErr_Format(PyExc_TypeError, "attach(control_fd, payload_fd)");
    uint32_t control = number32(args[0]), payload = number32(args[1]);
    CHECK;
    struct view *v = calloc(1, sizeof(*v));
    if (!v) return PyErr_NoMemory();
    void *base = map((int)control, &v->control_size);
    if (base != MAP_FAILED) v->control = base;
    void *room = map((int)payload, &v->payload_size);
    if (room != MAP_FAILED) v->payload = room;
    PyObject *capsule = PyCapsule_New(v, CAPSULE, view_destroy);
    if (!capsule || base == MAP_FAILED || room == MAP_FAILED) {
        Py_XDECREF(capsule);
        return PyErr_SetFromErrno(PyExc_OSError);
    }
    if (ipc_segment_attach(&v->s, v->control, v->control_size, v->payload) < 0 || (uint64_t)v->s.units * IPC_UNIT_SIZE > v->payload_size) {
        Py_DECREF(capsule);
        return damaged("this is not a segment of this version");
    }
    return capsule;
}

FUNCTION(forget) { /* in a forked child, where the control segment is not mapped: never touch it, not even to unmap */
    (void)module;
    if (n != 1) return PyErr_Format(PyExc_TypeError, "forget(segment)");
    struct view *v = PyCapsule_GetPointer(args[0], CAPSULE);
    if (!v) return NULL;
    v->control = v->payload = NULL;
    Py_RETURN_NONE;
}

FUNCTION(forked) { /* in the parent, before a fork: what is held now may be looked at by the child */
    (void)module, (void)args, (void)n;
    forks++;
    Py_RETURN_NONE;
}

FUNCTION(retire) { /* the workers are gone: only values that are held still cost memory */
    VIEW(1, CLIENT);
    v->retired = 1;
    ipc_units_free_but(&v->s, IPC_OWNER_VIEW);
    ipc_units_trim(&v->s, 0, v->s.units);
    Py_RETURN_NONE;
}

FUNCTION(dont_fork) {
    VIEW(1, ANY);
    if (madvise(v->control, v->control_size, MADV_DONTFORK) < 0) return PyErr_SetFromErrno(PyExc_OSError);
    v->only = getpid();
    Py_RETURN_NONE;
}

FUNCTION(counters) {
    VIEW(1, ANY);
    struct ipc_header *h = v->s.header;
    uint64_t head = atomic_load(&h->head), tail = atomic_load(&h->tail);
    uint32_t functions = ipc_units_of(&v->s, IPC_OWNER_FUNCTION), views = ipc_units_of(&v->s, IPC_OWNER_VIEW), kept = ipc_units_of(&v->s, IPC_OWNER_KEPT);
    return Py_BuildValue("{s:I,s:I,s:K,s:I,s:I,s:I,s:I,s:I,s:K,s:I,s:K,s:K}", "rows", v->s.rows, "slots", v->s.slots, "ready", tail > head ? tail - head : 0,
                         "sleepers", ipc_count_bits(h->sleepers, v->s.slots), "units", ipc_units_used(&v->s), "functions", functions, "views", views,
                         "kept", kept, "healed", v->client ? (unsigned long long)v->client->healed : 0ULL, "in_flight",
                         v->client ? v->client->in_flight : 0, "copied", (unsigned long long)v->copied, "created", (unsigned long long)v->s.created);
}

FUNCTION(slot_info) {
    VIEW(2, ANY);
    uint32_t slot = slot_of(v, args[1]);
    CHECK;
    struct ipc_slot *l = &v->s.slot[slot];
    return Py_BuildValue("{s:i,s:I,s:I,s:K,s:K,s:I}", "pid", (int)atomic_load(&l->pid), "generation", atomic_load(&l->generation), "phase",
                         atomic_load(&l->phase), "tasks", (unsigned long long)atomic_load(&l->tasks), "parks",
                         (unsigned long long)atomic_load(&l->parks), "reaped", atomic_load(&l->reaped));
}

FUNCTION(slot_times) { /* slot_times(segment, slot, now) */
    VIEW(3, ANY);
    uint32_t slot = slot_of(v, args[1]);
    uint64_t now = number(args[2], UINT64_MAX);
    CHECK;
    struct ipc_slot *l = &v->s.slot[slot];
    struct ipc_times t;
    ipc_slot_times(&v->s, slot, now, &t);
    return Py_BuildValue("{s:i,s:i,s:K,s:K,s:K,s:K,s:K,s:K,s:K}", "pid", (int)atomic_load(&l->pid), "doing", (int)t.doing, "start_ns",
                         (unsigned long long)t.start_ns, "busy_ns", (unsigned long long)t.busy_ns, "wait_ns", (unsigned long long)t.wait_ns, "tasks",
                         (unsigned long long)atomic_load(&l->tasks), "used_ns", (unsigned long long)atomic_load(&l->used_ns), "used_most",
                         (unsigned long long)atomic_load(&l->used_most), "since", (unsigned long long)atomic_load(&l->since));
}

FUNCTION(slot_spans) { /* slot_spans(segment, slot, now) -> (ns of a span, [busy ns of each span until now]) */
    VIEW(3, ANY);
    uint32_t slot = slot_of(v, args[1]);
    uint64_t now = number(args[2], UINT64_MAX);
    CHECK;
    struct ipc_spans spans;
    ipc_slot_spans(&v->s, slot, now, &spans);
    uint64_t span = UINT64_C(1) << (IPC_SPAN_SHIFT + spans.folds), count = now > v->s.created ? (now - v->s.created) / span + 1 : 0;
    PyObject *busy = PyList_New(count < IPC_SPANS ? (Py_ssize_t)count : (Py_ssize_t)IPC_SPANS);
    for (Py_ssize_t k = 0; busy && k < PyList_Size(busy); k++) {
        PyObject *ns = PyLong_FromUnsignedLongLong(spans.busy[k]);
        if (!ns || PyList_SetItem(busy, k, ns) < 0) Py_CLEAR(busy);
    }
    return busy ? Py_BuildValue("(KN)", (unsigned long long)span, busy) : NULL;
}

FUNCTION(book_usage) { /* book_usage(segment, slot, cpu_ns, peak): of a process that was waited for */
    VIEW(4, ANY);
    uint32_t slot = slot_of(v, args[1]);
    uint64_t cpu = number(args[2], UINT64_MAX), peak = number(args[3], UINT64_MAX);
    CHECK;
    ipc_book_usage(&v->s, slot, cpu, peak);
    Py_RETURN_NONE;
}

FUNCTION(book_spent) { /* book_spent(segment, slot, generation, user_ns, system_ns, resident): of a dead worker, before its death record */
    VIEW(6, ANY);
    uint32_t slot = slot_of(v, args[1]), generation = number32(args[2]);
    uint64_t user = number(args[3], UINT64_MAX), system = number(args[4], UINT64_MAX), resident = number(args[5], UINT64_MAX);
    CHECK;
    ipc_book_spent(&v->s, slot, generation, user, system, resident);
    Py_RETURN_NONE;
}

FUNCTION(room) { /* bytes of the payload */
    VIEW(1, ANY);
    return PyLong_FromUnsignedLongLong((uint64_t)v->s.units * IPC_UNIT_SIZE);
}

FUNCTION(ring_client) {
    VIEW(1, ANY);
    ipc_ring_client(&v->s);
    Py_RETURN_NONE;
}

FUNCTION(set_wire) { /* set_wire(segment, fd) */
    VIEW(2, ANY);
    uint32_t fd = number32(args[1]);
    CHECK;
    if (ipc_set_wire(&v->s, (int)fd) < 0) return PyErr_SetFromErrno(PyExc_OSError);
    Py_RETURN_NONE;
}

FUNCTION(wire) {
    VIEW(1, ANY);
    return PyLong_FromLong(v->s.wire);
}

/* ---- the process */

FUNCTION(memory) { /* memory(pid) -> (anonymous, shared) */
    (void)module;
    if (n != 1) return PyErr_Format(PyExc_TypeError, "memory(pid)");
    uint32_t pid = number32(args[0]);
    CHECK;
    struct ipc_memory memory = {0, 0};
    ipc_memory_of(pid, &memory);
    return Py_BuildValue("(KK)", (unsigned long long)memory.anonymous, (unsigned long long)memory.shared);
}

FUNCTION(dirtied) { /* dirtied(pid) -> bytes */
    (void)module;
    if (n != 1) return PyErr_Format(PyExc_TypeError, "dirtied(pid)");
    uint32_t pid = number32(args[0]);
    CHECK;
    uint64_t bytes = 0;
    return PyLong_FromUnsignedLongLong(ipc_dirtied_of(pid, &bytes) < 0 ? 0 : bytes);
}

FUNCTION(punch) { /* punch(fd, offset, length): give the memory, or the disk, of a part of a file back, which reads as zeros then */
    (void)module;
    if (n != 3) return PyErr_Format(PyExc_TypeError, "punch(fd, offset, length)");
    uint32_t fd = number32(args[0]);
    uint64_t offset = number(args[1], INT64_MAX), length = number(args[2], INT64_MAX);
    CHECK;
    if (fallocate((int)fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)offset, (off_t)length) < 0) return PyErr_SetFromErrno(PyExc_OSError);
    Py_RETURN_NONE;
}

FUNCTION(flush_stdio) { /* what C code has printed through stdio and not written yet */
    (void)module, (void)args, (void)n;
    fflush(stdout);
    fflush(stderr);
    Py_RETURN_NONE;
}

FUNCTION(die_with_parent) { /* die_with_parent(signal): PR_SET_PDEATHSIG; compare getppid() afterwards */
    (void)module;
    if (n != 1) return PyErr_Format(PyExc_TypeError, "die_with_parent(signal)");
    unsigned long signal = number32(args[0]);
    CHECK;
    if (prctl(PR_SET_PDEATHSIG, signal) < 0) return PyErr_SetFromErrno(PyExc_OSError);
    Py_RETURN_NONE;
}

static _Atomic pid_t awaited; /* lock-free, so a handler may read it */

static void parent_thread_died(int number) {
    (void)number;
    if (getppid() != atomic_load(&awaited)) _exit(1); /* else it was only the thread that had started us */
}

FUNCTION(exit_with_parent) { /* exit_with_parent(pid): by a handler in C, for a call into C can take as long as it likes */
    (void)module;
    if (n != 1) return PyErr_Format(PyExc_TypeError, "exit_with_parent(pid)");
    uint32_t parent = number32(args[0]);
    CHECK;
    if (!parent) {
        if (prctl(PR_SET_PDEATHSIG, 0) < 0) return PyErr_SetFromErrno(PyExc_OSError);
        Py_RETURN_NONE;
    }
    struct sigaction action = {.sa_flags = SA_RESTART | SA_ONSTACK};
    action.sa_handler = parent_thread_died;
    atomic_store(&awaited, (pid_t)parent);
    if (sigaction(SIGRTMAX - 2, &action, NULL) < 0 || prctl(PR_SET_PDEATHSIG, SIGRTMAX - 2) < 0) return PyErr_SetFromErrno(PyExc_OSError);
    parent_thread_died(0); /* it may have died before the line above */
    Py_RETURN_NONE;
}

FUNCTION(become_subreaper) {
    (void)module, (void)args, (void)n;
    if (prctl(PR_SET_CHILD_SUBREAPER, 1) < 0) return PyErr_SetFromErrno(PyExc_OSError);
    Py_RETURN_NONE;
}

PyMethodDef segment_methods[] = {
    ENTRY("size", segment_size), ENTRY("create", create), ENTRY("attach", attach), ENTRY("forget", forget), ENTRY("forked", forked),
    ENTRY("retire", retire), ENTRY("dont_fork", dont_fork), ENTRY("counters", counters), ENTRY("slot_info", slot_info),
    ENTRY("ring_client", ring_client), ENTRY("set_wire", set_wire), ENTRY("wire", wire), ENTRY("room", room), ENTRY("slot_times", slot_times),
    ENTRY("slot_spans", slot_spans), ENTRY("book_usage", book_usage), ENTRY("book_spent", book_spent), ENTRY("memory", memory),
    ENTRY("punch", punch), ENTRY("flush_stdio", flush_stdio), ENTRY("dirtied", dirtied), ENTRY("die_with_parent", die_with_parent),
    ENTRY("exit_with_parent", exit_with_parent), ENTRY("become_subreaper", become_subreaper),
    {NULL, NULL, 0, NULL},
};
