/* ipc._core: the core for Python, in the limited API. One capsule a process and segment; functions check bounds and roles, nothing else is
 * decided here. The GIL is released only while waiting, and by workers while they copy what does not fit into a row; so every other call is
 * atomic for Python threads. Stubs and the meaning of each function: _core.pyi. */
#define _GNU_SOURCE
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "core/core.h"
#include "scalars.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#define CAPSULE "ipc.segment"
#define TALLY "ipc.tally"
#define VALUE 0u           /* the kind of a pickle, as in pool/codec.py */
#define FILL_NS 1000000u   /* a slow input does not make a chunk wait for longer */
#define VIEW_BYTES 32768u /* a smaller result is copied: cheaper than a run of its own for as long as somebody holds it */

static PyObject *Damaged;
static int in_item; /* in a worker: the code of a task runs, called by run_items */

struct view {
    struct ipc_segment s;
    void *control, *payload;
    size_t control_size, payload_size;
    struct ipc_client *client;
    struct ipc_worker *worker;
    struct ipc_watch *watch;
    struct run *args;     /* of the claimed row, while something holds them (borrowed) */
    uint32_t kept;        /* worker: units that tasks have kept */
    int pinned;           /* worker: a child of the task may still look into the arguments */
    uint64_t copied;      /* client: results that were copied only because too much room is held by values */
    struct tally *tally;  /* client: of `counts`, or NULL */
    PyObject *counts;
    uint16_t number[IPC_MAX_ROWS]; /* client: of the function of each row, in the tally */
    int retired;          /* client: the workers are gone, so freed units are punched out at once */
    pid_t only;           /* the control segment is mapped in this process only; 0: also in what it forks */
};

static void unmap(struct view *v) {
    /* In a forked child something else may have been mapped at the control segment's place. */
    if (v->control && (!v->only || v->only == getpid())) munmap(v->control, v->control_size);
    if (v->payload) munmap(v->payload, v->payload_size);
    v->control = v->payload = NULL;
}

static void destroy(PyObject *capsule) {
    struct view *v = PyCapsule_GetPointer(capsule, CAPSULE);
    if (!v) return;
    unmap(v);
    free(v->client);
    free(v->worker);
    free(v->watch);
    Py_XDECREF(v->counts);
    free(v);
}

/* ---- a run of payload units as a Python object with the buffer interface. Whatever looks into the run (memoryviews, arrays) holds the object;
 * when it goes, the run is free. */

struct run {
    PyObject_HEAD
    PyObject *capsule; /* keeps the mapping */
    struct view *v;
    unsigned char *data;
    uint64_t length, owner;
    uint32_t unit, count, forks;
    int readonly;
};

static PyTypeObject *Run;
static uint32_t forks; /* of this process, while it held runs or not */

static PyObject *run_new(PyObject *capsule, struct view *v, unsigned char *data, uint64_t length, uint32_t unit, uint32_t count, uint64_t owner) {
    struct run *run = PyObject_New(struct run, Run);
    if (!run) return NULL;
    Py_INCREF(capsule);
    run->capsule = capsule;
    run->v = v;
    run->data = data;
    run->length = length;
    run->unit = unit;
    run->count = count;
    run->owner = owner;
    run->forks = forks;
    run->readonly = 0;
    return (PyObject *)run;
}

static int has_children(void) {
    siginfo_t info;
    return waitid(P_ALL, 0, &info, WEXITED | WNOHANG | WNOWAIT) == 0 || errno != ECHILD;
}

/* Called from any thread, wherever the last reference goes: one store a unit, no lock, no memory. */
static void run_release(struct run *run) {
    struct view *v = run->v;
    if (!v->control) return; /* a forked child's copy */
    if (v->args == run) { /* the row's, so the client's to free */
        v->args = NULL;
        v->pinned = run->forks != forks && has_children();
        return;
    }
    /* This process has forked since: its child may look into the run. A client's children may live for ever, so the run is theirs for good. */
    if (run->forks != forks && (v->client || has_children())) return;
    if (v->retired) madvise(run->data, (size_t)run->count * IPC_UNIT_SIZE, MADV_REMOVE);
    ipc_units_free(&v->s, run->unit, run->count, run->owner);
    if (v->client) ipc_dropped(v->client, run->unit, run->count);
    if (v->worker) v->kept -= run->count;
}

static void run_dealloc(PyObject *self) {
    struct run *run = (struct run *)self;
    PyTypeObject *type = Py_TYPE(self);
    run_release(run);
    Py_DECREF(run->capsule);
    PyObject_Free(self);
    Py_DECREF(type);
}

static int run_buffer(PyObject *self, Py_buffer *buffer, int flags) {
    struct run *run = (struct run *)self;
    return PyBuffer_FillInfo(buffer, self, run->data, (Py_ssize_t)run->length, run->readonly, flags);
}

static Py_ssize_t run_length(PyObject *self) { return (Py_ssize_t)((struct run *)self)->length; }

static PyType_Slot run_slots[] = {
    {Py_tp_dealloc, (void *)run_dealloc}, {Py_bf_getbuffer, (void *)run_buffer}, {Py_sq_length, (void *)run_length}, {0, NULL}};
static PyType_Spec run_spec = {.name = "ipc.Run", .basicsize = sizeof(struct run), .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION,
                               .slots = run_slots};

enum role { ANY, CLIENT, WORKER };

/* The view behind argument 0, with the number of arguments and the role checked. */
static struct view *view_of(PyObject *const *args, Py_ssize_t given, Py_ssize_t wanted, enum role role) {
    if (given != wanted) {
        PyErr_Format(PyExc_TypeError, "expected %zd arguments, got %zd", wanted, given);
        return NULL;
    }
    struct view *v = PyCapsule_GetPointer(args[0], CAPSULE);
    if (v && (!v->control || (role == CLIENT && !v->client) || (role == WORKER && !v->worker))) {
        PyErr_SetString(PyExc_ValueError, "the segment is not open in this process in this role");
        return NULL;
    }
    return v;
}

static uint64_t number(PyObject *o, uint64_t most) {
    unsigned long long n = PyLong_AsUnsignedLongLong(o);
    if (n > most && !PyErr_Occurred()) PyErr_Format(PyExc_OverflowError, "%llu is more than %llu", n, (unsigned long long)most);
    return n;
}
static uint32_t number32(PyObject *o) { return (uint32_t)number(o, UINT32_MAX); }
static uint32_t row_of(struct view *v, PyObject *o) { return (uint32_t)number(o, v->s.rows - 1); }
static uint32_t slot_of(struct view *v, PyObject *o) { return (uint32_t)number(o, v->s.slots - 1); }

static PyObject *damaged(const char *what) {
    PyErr_SetString(Damaged, what);
    return NULL;
}

#define FUNCTION(name) static PyObject *name(PyObject *module, PyObject *const *args, Py_ssize_t n)
#define VIEW(count, role)                                  \
    (void)module;                                          \
    struct view *v = view_of(args, n, count, role);        \
    if (!v) return NULL
#define CHECK if (PyErr_Occurred()) return NULL

/* ---- what the client counts of each function, and which items were the slowest: in its own memory, so the death of a worker costs nothing */

#define TALLIES 256u /* functions by number; 0: all that have no number of their own */
#define SLOWEST 5u

struct tally {
    struct ipc_tally of[TALLIES];
    uint64_t slow[SLOWEST]; /* ns, in no order */
    uint32_t quickest;      /* which of them is the least */
    PyObject *found;        /* the list for (record, item, ns, slot) of what has just been slower than one of them */
};

static void tally_destroy(PyObject *capsule) {
    struct tally *t = PyCapsule_GetPointer(capsule, TALLY);
    if (!t) return;
    Py_DECREF(t->found);
    free(t);
}

static struct tally *tally_of(PyObject *capsule) { return PyCapsule_GetPointer(capsule, TALLY); }

/* Count an item of the task whose record this is. -1 with an exception set: no memory. */
static int count_item(struct tally *t, uint32_t number, PyObject *record, uint32_t item, uint32_t kind, uint16_t run, uint16_t resident, uint32_t slot) {
    if (!t) return 0;
    ipc_count(&t->of[number], (kind & IPC_FAILED_KINDS) != 0, run, resident);
    uint64_t ns = ipc_from_brief(run);
    if (ns <= t->slow[t->quickest]) return 0;
    t->slow[t->quickest] = ns;
    for (uint32_t k = 0; k < SLOWEST; k++)
        if (t->slow[k] < t->slow[t->quickest]) t->quickest = k;
    PyObject *entry = Py_BuildValue("(OIKI)", record, item, (unsigned long long)ns, slot);
    int failed = !entry || PyList_Append(t->found, entry) < 0;
    Py_XDECREF(entry);
    return failed ? -1 : 0;
}

FUNCTION(new_tally) { /* tally(found) */
    (void)module;
    if (n != 1 || !PyList_CheckExact(args[0])) return PyErr_Format(PyExc_TypeError, "tally(list)");
    struct tally *t = calloc(1, sizeof(*t));
    if (!t) return PyErr_NoMemory();
    t->found = Py_NewRef(args[0]);
    PyObject *capsule = PyCapsule_New(t, TALLY, tally_destroy);
    if (!capsule) {
        Py_DECREF(t->found);
        free(t);
    }
    return capsule;
}

FUNCTION(count) { /* count(tally, number, record, item, kind, ns, slot): an item that had no row */
    (void)module;
    if (n != 7) return PyErr_Format(PyExc_TypeError, "count(tally, number, record, item, kind, ns, slot)");
    struct tally *t = tally_of(args[0]);
    if (!t) return NULL;
    uint32_t of = (uint32_t)number(args[1], TALLIES - 1), item = number32(args[3]), kind = number32(args[4]), slot = number32(args[6]);
    uint64_t ns = number(args[5], UINT64_MAX);
    CHECK;
    uint64_t peak = 0;
    if (count_item(t, of, args[2], item, kind, ipc_brief(ns), ns < 1000000 ? 0 : ipc_brief(ipc_resident(&peak)), slot) < 0) return NULL;
    Py_RETURN_NONE;
}

FUNCTION(counted) { /* counted(tally, number) -> (count, failed, total_ns, p50, p95, longest_ns, resident) */
    (void)module;
    if (n != 2) return PyErr_Format(PyExc_TypeError, "counted(tally, number)");
    struct tally *t = tally_of(args[0]);
    if (!t) return NULL;
    uint32_t of = (uint32_t)number(args[1], TALLIES - 1);
    CHECK;
    const struct ipc_tally *f = &t->of[of];
    return Py_BuildValue("(KKKKKKK)", (unsigned long long)f->count, (unsigned long long)f->failed, (unsigned long long)f->total_ns,
                         (unsigned long long)ipc_quantile(f, 0.5), (unsigned long long)ipc_quantile(f, 0.95), (unsigned long long)f->longest_ns,
                         (unsigned long long)f->resident);
}

/* ---- segment */

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
    PyObject *capsule = PyCapsule_New(v, CAPSULE, destroy);
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

/* ---- client */

FUNCTION(open_client) {
    VIEW(1, ANY);
    if (!v->client && !(v->client = malloc(sizeof(*v->client)))) return PyErr_NoMemory();
    ipc_client_init(v->client, &v->s);
    Py_RETURN_NONE;
}

FUNCTION(count_into) { /* count_into(segment, tally): what is collected from now on */
    VIEW(2, CLIENT);
    if (!(v->tally = tally_of(args[1]))) return NULL;
    Py_XDECREF(v->counts);
    v->counts = Py_NewRef(args[1]);
    Py_RETURN_NONE;
}

/* Bytes of `o`, pinned by `view` when it is not a bytes object (then view->obj is set and must be released). */
static const unsigned char *bytes_of(PyObject *o, Py_buffer *view, uint64_t *length) {
    char *data;
    Py_ssize_t size;
    view->obj = NULL;
    if (PyBytes_CheckExact(o)) {
        if (PyBytes_AsStringAndSize(o, &data, &size) < 0) return NULL;
        *length = (uint64_t)size;
        return (unsigned char *)data;
    }
    if (PyObject_GetBuffer(o, view, PyBUF_SIMPLE) < 0) return NULL;
    *length = (uint64_t)view->len;
    return view->buf;
}

/* The pieces behind `o`: a bytes-like object, or a tuple of them. Pinned until drop_pieces. */
struct pieces {
    uint32_t count;
    struct ipc_piece *piece, first[8];
    Py_buffer *pin, pins[8];
};

static void drop_pieces(struct pieces *p) {
    for (uint32_t k = 0; k < p->count; k++)
        if (p->pin[k].obj) PyBuffer_Release(&p->pin[k]);
    if (p->pin != p->pins) free(p->pin);
    if (p->piece != p->first) free(p->piece);
}

static int pieces_of(PyObject *o, struct pieces *p) {
    int one = !PyTuple_CheckExact(o);
    Py_ssize_t count = one ? 1 : PyTuple_Size(o);
    p->count = 0;
    p->piece = p->first;
    p->pin = p->pins;
    if (count > 8) {
        p->piece = malloc((size_t)count * sizeof(*p->piece));
        p->pin = malloc((size_t)count * sizeof(*p->pin));
    }
    if (!p->piece || !p->pin || count > INT32_MAX) {
        drop_pieces(p);
        PyErr_NoMemory();
        return -1;
    }
    for (Py_ssize_t k = 0; k < count; k++, p->count++) {
        PyObject *from = one ? o : PyTuple_GetItem(o, k);
        p->piece[k].data = bytes_of(from, &p->pin[k], &p->piece[k].length);
        if (PyErr_Occurred()) {
            drop_pieces(p);
            return -1;
        }
    }
    return 0;
}

static int set_record(PyObject *tasks, uint32_t row, PyObject *record) {
    Py_INCREF(record);
    return PyList_SetItem(tasks, (Py_ssize_t)row, record);
}

FUNCTION(publish) { /* publish(segment, tasks, record, fn, generation, unit, len, args, items, timeout_ms, flags, attempt, number=0, memory_limit=0, since=0) */
    VIEW(n > 12 && n <= 15 ? n : 12, CLIENT);
    uint16_t counted_as = n > 12 ? (uint16_t)number(args[12], TALLIES - 1) : 0;
    struct ipc_task t = {.fn = number32(args[3]), .fn_generation = number32(args[4]), .fn_unit = number32(args[5]), .fn_len = number32(args[6]),
                         .items = (uint32_t)number(args[8], IPC_MAX_ITEMS), .timeout_ms = number32(args[9]), .flags = (uint16_t)number(args[10], UINT16_MAX),
                         .attempt = (uint16_t)number(args[11], UINT16_MAX), .memory_limit = n > 13 ? number(args[13], UINT64_MAX) : 0, .since = n > 14 ? number(args[14], UINT64_MAX) : 0};
    CHECK;
    struct pieces pieces;
    if (pieces_of(args[7], &pieces) < 0) return NULL;
    t.piece = pieces.piece;
    t.pieces = pieces.count;
    int row = ipc_publish(v->client, &t);
    drop_pieces(&pieces);
    if (row >= 0) v->number[row] = counted_as;
    /* In the same call as the publication: a signal handler that raises cannot come between a row and its record. */
    if (row >= 0 && set_record(args[1], (uint32_t)row, args[2]) < 0) return NULL;
    return PyLong_FromLong(row);
}

/* A result's bytes: a view of its run if it is large and there is room for views, else a copy, which its reader may write to if it is packed. */
static PyObject *result_data(struct view *v, PyObject *capsule, uint32_t row, struct ipc_result *r) {
    if (r->units && r->length >= VIEW_BYTES && ipc_adopt(v->client, row, r)) {
        PyObject *run = run_new(capsule, v, v->s.payload + (uint64_t)r->unit * IPC_UNIT_SIZE, r->length, r->unit, r->units, IPC_OWNER_VIEW);
        if (run) return run;
        ipc_units_free(&v->s, r->unit, r->units, IPC_OWNER_VIEW);
        v->client->view_units -= r->units;
        return NULL;
    }
    v->copied += r->units && r->length >= VIEW_BYTES;
    if (r->kind & IPC_PACKED_KIND) return PyByteArray_FromStringAndSize((const char *)r->data, (Py_ssize_t)r->length);
    return PyBytes_FromStringAndSize((const char *)r->data, (Py_ssize_t)r->length);
}

/* What Python gets to know of an item, as bytes: FACTS in pool/account.py. */
struct facts {
    uint64_t run, wait, user, system, resident; /* ns, bytes; resident 0: as in ipc_spent */
    int32_t pid;
    uint32_t slot;
};

static struct facts facts_of(struct view *v, uint32_t row, const struct ipc_result *r, uint64_t run, uint64_t started, struct ipc_spent spent) {
    uint64_t since = v->client->since[row];
    return (struct facts){run, started > since ? started - since : 0, ipc_from_brief(spent.user), ipc_from_brief(spent.system),
                          ipc_from_brief(spent.resident), r->pid, r->slot};
}

/* Run times of frames: of all, of the last one; and whether one of them is no value. */
struct took { uint64_t all, last; int failed; };

/* `whole`, and then the facts of each item in `list`, if one of them has failed; `end`: when the last of them ended. */
static PyObject *chunk_facts(struct view *v, uint32_t row, const struct ipc_result *r, struct facts whole, PyObject *list, struct took took, uint64_t end) {
    Py_ssize_t items = took.failed ? PyList_Size(list) / 2 : 0;
    PyObject *facts = PyBytes_FromStringAndSize(NULL, (items + 1) * (Py_ssize_t)sizeof(whole));
    char *to = facts ? PyBytes_AsString(facts) : NULL;
    if (!to) return NULL;
    memcpy(to, &whole, sizeof(whole));
    uint64_t at = 0, began = end > took.all ? end - took.all : 0;
    for (Py_ssize_t k = 0; k < items; k++) { /* the lengths are those that were found to add up */
        struct ipc_frame frame;
        memcpy(&frame, r->data + at, IPC_FRAME);
        struct facts item = facts_of(v, row, r, ipc_from_brief(frame.spent.run), began, frame.spent);
        memcpy(to += sizeof(item), &item, sizeof(item));
        at += IPC_FRAME + (uint64_t)PyObject_Size(PyList_GetItem(list, 2 * k + 1));
        began += item.run;
    }
    return facts;
}

/* The frames of a chunk's next `items` results as a flat list [kind, bytes, kind, bytes, ...], which are counted, and their run times go to *took.
 * NULL with Damaged set if they do not add up. */
static PyObject *frames(struct view *v, PyObject *tasks, uint32_t row, const struct ipc_result *r, uint32_t items, struct took *took) {
    PyObject *record = PyList_GetItem(tasks, (Py_ssize_t)row);
    if (!record) return NULL;
    uint32_t first = v->client->drained[row];
    PyObject *list = PyList_New((Py_ssize_t)items * 2);
    uint64_t at = 0;
    for (uint32_t k = 0; list && k < items; k++) {
        struct ipc_frame frame = {0};
        if (r->length - at >= IPC_FRAME) memcpy(&frame, r->data + at, IPC_FRAME);
        uint64_t length = ipc_frame_length(frame.word);
        uint32_t what = ipc_frame_kind(frame.word);
        if (r->length - at < IPC_FRAME || r->length - at - IPC_FRAME < length) {
            Py_DECREF(list);
            return damaged("the results of a chunk do not add up");
        }
        PyObject *kind = PyLong_FromUnsignedLong(what);
        const char *from = (const char *)r->data + at + IPC_FRAME;
        PyObject *data = what & IPC_PACKED_KIND ? PyByteArray_FromStringAndSize(from, (Py_ssize_t)length)
                                                : PyBytes_FromStringAndSize(from, (Py_ssize_t)length);
        if (kind) PyList_SetItem(list, (Py_ssize_t)k * 2, kind);
        if (data) PyList_SetItem(list, (Py_ssize_t)k * 2 + 1, data);
        if (!kind || !data ||
            count_item(v->tally, v->number[row], record, first + k, what, frame.spent.run, frame.spent.resident, r->slot) < 0) {
            Py_DECREF(list);
            return NULL;
        }
        took->all += took->last = ipc_from_brief(frame.spent.run);
        took->failed |= (what & IPC_FAILED_KINDS) != 0;
        at += IPC_FRAME + length;
    }
    return list;
}

/* The values of a chunk's items as a tuple, if all of them are short and simple: without an object, or a step in Python, for each of them on the
 * way. NULL without an exception: some are not. */
static PyObject *plain_values(struct view *v, PyObject *tasks, uint32_t row, const struct ipc_result *r, uint32_t items, struct took *took) {
    uint64_t at = 0;
    PyObject *values = NULL;
    uint16_t run[IPC_MAX_ITEMS], resident[IPC_MAX_ITEMS];
    for (uint32_t k = 0; k < items; k++) {
        struct ipc_frame frame;
        if (r->length - at < IPC_FRAME) goto other;
        memcpy(&frame, r->data + at, IPC_FRAME);
        uint64_t length = ipc_frame_length(frame.word);
        if (ipc_frame_kind(frame.word) != VALUE || r->length - at - IPC_FRAME < length) goto other;
        PyObject *value = scalar_decode(r->data + at + IPC_FRAME, length);
        if (!value || (!values && !(values = PyTuple_New((Py_ssize_t)items)))) {
            Py_XDECREF(value);
            goto other;
        }
        PyTuple_SetItem(values, (Py_ssize_t)k, value);
        run[k] = frame.spent.run;
        resident[k] = frame.spent.resident;
        at += IPC_FRAME + length;
    }
    PyObject *record = values ? PyList_GetItem(tasks, (Py_ssize_t)row) : NULL;
    for (uint32_t k = 0; record && k < items; k++) {
        took->all += took->last = ipc_from_brief(run[k]);
        if (count_item(v->tally, v->number[row], record, v->client->drained[row] + k, VALUE, run[k], resident[k], r->slot) < 0) record = NULL;
    }
    if (record) return values;
other:
    Py_XDECREF(values);
    return NULL;
}

static PyObject *take_record(PyObject *tasks, uint32_t row) {
    PyObject *record = PyList_GetItem(tasks, (Py_ssize_t)row);
    if (!record) return NULL;
    Py_INCREF(record);
    Py_INCREF(Py_None);
    if (PyList_SetItem(tasks, (Py_ssize_t)row, Py_None) < 0) {
        Py_DECREF(record);
        return NULL;
    }
    return record;
}

FUNCTION(collect) { /* collect(segment, tasks, inbox, most, sink, own): append (record, kind, data, length, facts) for each finished row to
                       inbox, or to own if record[0] is sink; of a chunk, kind is the number of items that were drained before, and
                       data a tuple of values, or else a list of kinds and pickles */
    VIEW(6, CLIENT);
    long most = PyLong_AsLong(args[3]), count = 0;
    CHECK;
    struct ipc_client *c = v->client;
    for (int row; count < most && (row = ipc_next_done(c)) >= 0; count++) {
        struct ipc_result r;
        if (ipc_read_result(c, (uint32_t)row, &r) < 0) return damaged("a result points outside its room");
        uint32_t items = c->items[row], drained = c->drained[row], offered = (uint32_t)ipc_offers(c, (uint32_t)row);
        if (items) r.kind = drained; /* a chunk's frames have kinds of their own */
        struct took took = {0};
        PyObject *data;
        if (items) {
            uint32_t here = offered ? offered : items - drained;
            data = plain_values(v, args[1], (uint32_t)row, &r, here, &took);
            if (!data && !PyErr_Occurred()) data = frames(v, args[1], (uint32_t)row, &r, here, &took);
        } else {
            data = result_data(v, args[0], (uint32_t)row, &r);
        }
        PyObject *record = !data ? NULL : offered ? PyList_GetItem(args[1], row) : take_record(args[1], (uint32_t)row);
        if (record && offered) Py_INCREF(record);
        PyObject *entry = PyTuple_New(5), *kind = PyLong_FromUnsignedLong(r.kind), *length = PyLong_FromUnsignedLongLong(r.length),
                 *facts = NULL;
        if (items && data) { /* the row says when the last item began; of an offered chunk that is the one after these */
            uint64_t end = r.started + (offered ? 0 : took.last);
            facts = chunk_facts(v, (uint32_t)row, &r, facts_of(v, (uint32_t)row, &r, took.all, end - took.all, r.spent), data, took, end);
        } else if (data) {
            struct facts one = facts_of(v, (uint32_t)row, &r, ipc_from_brief(r.spent.run), r.started, r.spent);
            facts = PyBytes_FromStringAndSize((const char *)&one, sizeof(one));
        }
        if (!data || !record || !entry || !kind || !length || !facts ||
            (!items && count_item(v->tally, v->number[row], record, 0, r.kind, r.spent.run, r.spent.resident, r.slot) < 0)) {
            Py_XDECREF(data), Py_XDECREF(record), Py_XDECREF(entry), Py_XDECREF(kind), Py_XDECREF(length), Py_XDECREF(facts);
            return NULL;
        }
        PyTuple_SetItem(entry, 0, record);
        PyTuple_SetItem(entry, 1, kind);
        PyTuple_SetItem(entry, 2, data);
        PyTuple_SetItem(entry, 3, length);
        PyTuple_SetItem(entry, 4, facts);
        int failed = PyList_Append(PyTuple_GetItem(record, 0) == args[4] ? args[5] : args[2], entry);
        Py_DECREF(entry);
        if (failed) return NULL;
        if (offered)
            ipc_drained(c, (uint32_t)row, offered);
        else
            ipc_release_row(c, (uint32_t)row);
    }
    return PyLong_FromLong(count);
}

FUNCTION(flush) {
    VIEW(1, CLIENT);
    return PyLong_FromUnsignedLong(ipc_flush_wakes(v->client));
}

FUNCTION(client_wait) { /* wait(segment, spin_us, timeout_ms) -> bool */
    VIEW(3, CLIENT);
    uint64_t spin = number32(args[1]) * UINT64_C(1000), timeout = number32(args[2]) * UINT64_C(1000000);
    CHECK;
    struct ipc_look look;
    int code;
    ipc_client_look(v->client, &look);
    Py_BEGIN_ALLOW_THREADS
    code = ipc_client_spin(&v->s, &look, spin);
    Py_END_ALLOW_THREADS
    if (code) Py_RETURN_TRUE;
    do { /* with the GIL nobody else publishes; while it is released others may, so nothing private is looked at */
        ipc_flush_wakes(v->client);
        ipc_client_look(v->client, &look);
        Py_BEGIN_ALLOW_THREADS
        code = ipc_client_sleep(&v->s, &look, &timeout);
        Py_END_ALLOW_THREADS
    } while (code == IPC_EMPTY && timeout);
    if (code == IPC_SIGNAL && PyErr_CheckSignals() < 0) return NULL;
    return PyBool_FromLong(code != IPC_EMPTY);
}

FUNCTION(client_listen) { /* listen(segment) -> bool */
    VIEW(1, CLIENT);
    return PyBool_FromLong(ipc_client_listen(v->client));
}

FUNCTION(heard) {
    VIEW(1, CLIENT);
    ipc_client_heard(&v->s);
    Py_RETURN_NONE;
}

FUNCTION(cancel) { /* cancel(segment, tasks, row) -> bool */
    VIEW(3, CLIENT);
    uint32_t row = row_of(v, args[2]);
    CHECK;
    if (!ipc_cancel(v->client, row)) Py_RETURN_FALSE;
    Py_INCREF(Py_None);
    if (PyList_SetItem(args[1], (Py_ssize_t)row, Py_None) < 0) return NULL;
    Py_RETURN_TRUE;
}

FUNCTION(row_word) {
    VIEW(2, ANY);
    uint32_t row = row_of(v, args[1]);
    CHECK;
    uint64_t w = atomic_load_explicit(&v->s.row[row].word, memory_order_acquire);
    return Py_BuildValue("(IIIIK)", ipc_word_state(w), ipc_word_slot(w), ipc_word_generation(w), ipc_word_item(w), (unsigned long long)w);
}

FUNCTION(condemn) { /* condemn(segment, row, word) -> bool */
    VIEW(3, ANY);
    uint32_t row = row_of(v, args[1]);
    uint64_t word = number(args[2], UINT64_MAX);
    CHECK;
    return PyBool_FromLong(ipc_condemn(&v->s, row, word));
}

FUNCTION(next_dead) {
    VIEW(1, CLIENT);
    uint32_t slot, reaped;
    if (ipc_next_dead(v->client, &slot, &reaped) < 0) Py_RETURN_NONE;
    return Py_BuildValue("(II)", slot, reaped);
}

FUNCTION(settle) { /* settle(segment, tasks, slot, reaped, out): append (record, state, item, generation, drained, frames, facts) for each row of the dead */
    VIEW(5, CLIENT);
    uint32_t slot = slot_of(v, args[2]), reaped = number32(args[3]);
    CHECK;
    struct ipc_client *c = v->client;
    struct ipc_settled dead;
    while (ipc_settle(c, slot, reaped, &dead, 1)) { /* one at a time: a released row is not found again */
        struct ipc_row *of = &v->s.row[dead.row];
        struct ipc_result r = {.slot = slot, .started = of->started, .pid = of->pid};
        PyObject *done = NULL;
        struct took took = {0};
        uint32_t items = c->items[dead.row], drained = c->drained[dead.row];
        if (items && dead.item > 1) {
            if (dead.item > items || dead.item - 1 < drained || ipc_read_result(c, dead.row, &r) < 0)
                return damaged("a chunk claims more results than it has");
            done = frames(v, args[1], dead.row, &r, dead.item - 1 - drained, &took);
        } else {
            done = PyList_New(0);
        }
        PyObject *record = done ? take_record(args[1], dead.row) : NULL;
        /* The row has the low bits of the generation, and the log the last few. */
        uint32_t generation = reaped - ((reaped - dead.generation) & (uint32_t)IPC_MASK(IPC_GENERATION_BITS));
        struct ipc_slot *line = &v->s.slot[slot];
        struct ipc_spent spent = line->deaths[generation % IPC_DEATHS].generation == generation ? line->spent[generation % IPC_DEATHS] : (struct ipc_spent){0};
        struct facts one = facts_of(v, dead.row, &r, ipc_from_brief(spent.run), r.started, spent);
        PyObject *facts = record ? chunk_facts(v, dead.row, &r, one, done, took, r.started) : NULL;
        PyObject *entry = facts ? Py_BuildValue("(NIIIINN)", record, dead.state, dead.item, dead.generation, drained, done, facts) : NULL;
        if (!entry) return NULL;
        int failed = PyList_Append(args[4], entry);
        Py_DECREF(entry);
        if (failed) return NULL;
        ipc_release_row(c, dead.row);
    }
    Py_RETURN_NONE;
}

FUNCTION(settled) {
    VIEW(3, CLIENT);
    uint32_t slot = slot_of(v, args[1]), reaped = number32(args[2]);
    CHECK;
    ipc_settled(v->client, slot, reaped);
    Py_RETURN_NONE;
}

FUNCTION(death) { /* death(segment, slot, generation) -> (pid, status, reason, peak) | None */
    VIEW(3, ANY);
    uint32_t slot = slot_of(v, args[1]), generation = number32(args[2]);
    CHECK;
    struct ipc_slot *line = &v->s.slot[slot];
    /* acquire, before the record; an entry never written would pass for generation 0 */
    int32_t dead = (int32_t)(atomic_load_explicit(&line->reaped, memory_order_acquire) - generation);
    struct ipc_death d = line->deaths[generation % IPC_DEATHS];
    if (dead <= 0 || d.generation != generation) Py_RETURN_NONE;
    return Py_BuildValue("(iiIK)", d.pid, d.status, d.reason, (unsigned long long)d.peak);
}

FUNCTION(idle_scan) {
    VIEW(1, CLIENT);
    struct ipc_header *h = v->s.header; /* only the client moves tail, and nobody moves head beyond it */
    if (atomic_load(&h->tail) != v->client->tail || atomic_load(&h->head) > v->client->tail) return damaged("head or tail of the ring is impossible");
    return PyLong_FromUnsignedLong(ipc_idle_scan(v->client));
}

FUNCTION(trim) {
    VIEW(1, CLIENT);
    ipc_trim(v->client);
    Py_RETURN_NONE;
}

FUNCTION(store_function) { /* store_function(segment, bytes) -> unit, or a negative code */
    VIEW(2, CLIENT);
    Py_buffer view;
    uint64_t length;
    const unsigned char *data = bytes_of(args[1], &view, &length);
    if (PyErr_Occurred()) return NULL;
    int64_t unit = ipc_units_take_result(&v->s, ipc_units_for(length), IPC_OWNER_FUNCTION); /* not where arguments go */
    if (unit >= 0) memcpy(v->s.payload + (uint64_t)unit * IPC_UNIT_SIZE, data, length);
    if (view.obj) PyBuffer_Release(&view);
    return PyLong_FromLongLong(unit);
}

FUNCTION(free_function) { /* free_function(segment, unit, length) */
    VIEW(3, CLIENT);
    uint32_t unit = number32(args[1]), length = number32(args[2]);
    CHECK;
    ipc_units_free(&v->s, unit, (uint32_t)ipc_units_for(length), IPC_OWNER_FUNCTION);
    Py_RETURN_NONE;
}

FUNCTION(monitor_must_look) { /* after publishing a deadline: does the monitor have to be told? */
    VIEW(1, CLIENT);
    int must = v->client->shortened || atomic_load_explicit(&v->s.header->monitor_idle, memory_order_seq_cst);
    v->client->shortened = 0;
    return PyBool_FromLong(must);
}

/* ---- worker */

FUNCTION(open_worker) { /* open_worker(segment, slot, generation) */
    VIEW(3, ANY);
    uint32_t slot = slot_of(v, args[1]), generation = number32(args[2]);
    CHECK;
    if (!v->worker && !(v->worker = malloc(sizeof(*v->worker)))) return PyErr_NoMemory();
    ipc_worker_init(v->worker, &v->s, slot, generation);
    in_item = 0; /* else that of the task whose pool this is */
    Py_RETURN_NONE;
}

FUNCTION(set_phase) {
    VIEW(2, WORKER);
    uint32_t phase = number32(args[1]);
    CHECK;
    ipc_set_phase(v->worker, phase);
    Py_RETURN_NONE;
}

FUNCTION(claim) { /* claim(segment, spin_us, timeout_ms) -> (fn, generation, call, items, args | None, flags) | None | False when stopped */
    VIEW(3, WORKER);
    uint64_t spin = number32(args[1]) * UINT64_C(1000), timeout = number32(args[2]) * UINT64_C(1000000);
    CHECK;
    struct ipc_worker *w = v->worker;
    int code = ipc_claim(w);
    if (code == IPC_EMPTY) {
        Py_BEGIN_ALLOW_THREADS
        code = ipc_worker_wait(w, spin, timeout);
        Py_END_ALLOW_THREADS
        if (code == IPC_SIGNAL && PyErr_CheckSignals() < 0) return NULL;
        code = ipc_claim(w);
    }
    if (code == IPC_STOP) Py_RETURN_FALSE;
    if (code == IPC_EMPTY) Py_RETURN_NONE;
    struct ipc_task t;
    if (ipc_claimed(w, &t) < 0) return damaged("a claimed row points outside its room");
    int plain = !t.args_units && !(t.flags & 0xff);
    PyObject *tuple = PyTuple_New(6), *item[6] = {PyLong_FromUnsignedLong(t.fn), PyLong_FromUnsignedLong(t.fn_generation),
        PyLong_FromUnsignedLong(t.flags >> 8), PyLong_FromUnsignedLong(t.items),
        plain ? PyBytes_FromStringAndSize((const char *)t.args, (Py_ssize_t)t.args_len) : Py_NewRef(Py_None), PyLong_FromUnsignedLong(t.flags & 0xff)};
    for (Py_ssize_t k = 0; k < 6; k++) {
        if (tuple && item[k]) {
            PyTuple_SetItem(tuple, k, item[k]);
        } else {
            Py_CLEAR(tuple);
            Py_XDECREF(item[k]);
        }
    }
    return tuple;
}

FUNCTION(arguments) { /* of the claimed row: what the task may look at in place is its run, unless another attempt may need that as it is */
    VIEW(1, WORKER);
    struct ipc_task t;
    if (ipc_claimed(v->worker, &t) < 0) return damaged("a claimed row points outside its room");
    if (t.args_units && !(t.flags & IPC_PACKED && t.flags & IPC_REPEATABLE)) {
        PyObject *run = run_new(args[0], v, t.args, t.args_len, t.args_unit, t.args_units, 0);
        v->args = (struct run *)run;
        v->pinned = 0;
        return run;
    }
    if (t.flags & IPC_PACKED) return PyByteArray_FromStringAndSize((const char *)t.args, (Py_ssize_t)t.args_len);
    return PyBytes_FromStringAndSize((const char *)t.args, (Py_ssize_t)t.args_len);
}

FUNCTION(claimed_function) { /* the pickled function of the claimed row */
    VIEW(1, WORKER);
    struct ipc_task t;
    if (ipc_claimed(v->worker, &t) < 0 || t.fn == 0) return damaged("a claimed row points outside its room"); /* only with fn is fn_unit checked */
    return PyBytes_FromStringAndSize((const char *)v->s.payload + (uint64_t)t.fn_unit * IPC_UNIT_SIZE, (Py_ssize_t)t.fn_len);
}

FUNCTION(begin_items) {
    VIEW(1, WORKER);
    return PyLong_FromLong(ipc_begin_items(v->worker));
}

/* Publish what came of the claimed row, or of its running item. */
static int give(struct view *v, uint32_t kind, const struct ipc_piece *piece, uint32_t count,
                int (*how)(struct ipc_worker *, uint32_t, const struct ipc_piece *, uint32_t)) {
    struct ipc_worker *w = v->worker;
    w->keep = v->args || v->pinned; /* something still holds the arguments: they become ours when the row is done */
    uint64_t length = ipc_pieces_length(piece, count);
    int code;
    if (length < IPC_INLINE / 2 && w->used + IPC_FRAME + length <= w->room) {
        code = how(w, kind, piece, count);
    } else { /* may wait for room */
        Py_BEGIN_ALLOW_THREADS
        code = how(w, kind, piece, count);
        Py_END_ALLOW_THREADS
    }
    if (w->keep && code == 0 && ipc_word_state(w->word) == IPC_DONE) {
        uint64_t owner = ipc_owner_kept(w->slot, w->generation);
        v->kept += w->args_units;
        if (v->args) {
            v->args->owner = owner;
        } else if (!v->pinned) { /* a thread of the task has dropped them meanwhile */
            ipc_units_free(&v->s, w->args_unit, w->args_units, owner);
            v->kept -= w->args_units;
        }
        v->args = NULL;
        v->pinned = 0;
    }
    return code;
}

static PyObject *give_object(PyObject *const *args, Py_ssize_t n, int (*how)(struct ipc_worker *, uint32_t, const struct ipc_piece *, uint32_t)) {
    struct view *v = view_of(args, n, 3, WORKER);
    if (!v) return NULL;
    uint32_t kind = (uint32_t)number(args[1], 255);
    CHECK;
    struct pieces pieces;
    if (pieces_of(args[2], &pieces) < 0) return NULL;
    int code = give(v, kind, pieces.piece, pieces.count, how);
    drop_pieces(&pieces);
    return PyLong_FromLong(code);
}

FUNCTION(commit) { return (void)module, give_object(args, n, ipc_commit); }
FUNCTION(complete) { return (void)module, give_object(args, n, ipc_complete); }

static PyObject *call_item(PyObject *fn, int star, PyObject *decode, PyObject *part) {
    PyObject *item = decode == Py_None ? Py_NewRef(part) : PyObject_CallFunctionObjArgs(decode, part, NULL);
    if (!item) return NULL;
    PyObject *arguments = !star ? NULL : PyTuple_CheckExact(item) ? Py_NewRef(item) : PySequence_Tuple(item);
    PyObject *value = !star ? PyObject_CallFunctionObjArgs(fn, item, NULL) : arguments ? PyObject_Call(fn, arguments, NULL) : NULL;
    Py_XDECREF(arguments);
    Py_DECREF(item);
    if (value && PyErr_CheckSignals() < 0) Py_CLEAR(value); /* code in C does not look for itself: it is this item that was interrupted */
    return value;
}

FUNCTION(run_items) { /* run_items(segment, fn, star, batch, decode, hand_back) -> code | (value,), from the item that is running on: calls fn with each
                         and commits what comes of it. What is not short and simple, or everything, is the caller's to commit, and what is raised */
    VIEW(6, WORKER);
    int star = PyObject_IsTrue(args[2]), hand_back = PyObject_IsTrue(args[5]);
    struct ipc_worker *w = v->worker;
    PyObject *batch = args[3];
    int code = 0;
    while (code == 0 && ipc_word_state(w->word) != IPC_DONE) {
        Py_ssize_t k = (Py_ssize_t)ipc_word_item(w->word) - 1;
        PyObject *part = PyList_GetItem(batch, k);
        if (!part) return NULL;
        Py_INCREF(part);
        Py_INCREF(Py_None);
        PyList_SetItem(batch, k, Py_None); /* it shall not outlive its item */
        in_item = 1;
        PyObject *value = call_item(args[1], star, args[4], part);
        Py_DECREF(part);
        in_item = 0;
        if (!value) return NULL;
        if (!v->control) return Py_DECREF(value), PyLong_FromLong(IPC_LOST); /* this is a child that the item has forked */
        unsigned char pickle[SCALAR_MOST];
        int length = hand_back ? 0 : scalar_encode(value, pickle);
        PyObject *other = length ? NULL : PyTuple_Pack(1, value);
        Py_DECREF(value);
        if (!length) return other;
        struct ipc_piece piece = {pickle, (uint64_t)length};
        code = give(v, VALUE, &piece, 1, ipc_commit);
    }
    return PyLong_FromLong(code);
}

FUNCTION(runs_item) {
    (void)module, (void)args, (void)n;
    return PyBool_FromLong(in_item);
}

FUNCTION(fill) { /* fill(items, source, most) -> 0 so many are read, or time is up; 1: the source is exhausted; (item,): somebody could change it */
    (void)module;
    if (n != 3 || !PyList_CheckExact(args[0])) return PyErr_Format(PyExc_TypeError, "fill(list, iterator, most)");
    Py_ssize_t most = (Py_ssize_t)number32(args[2]);
    CHECK;
    uint64_t end = ipc_now() + FILL_NS;
    for (Py_ssize_t count = PyList_Size(args[0]); count < most; count++) {
        PyObject *item = PyIter_Next(args[1]);
        if (!item) return PyErr_Occurred() ? NULL : PyLong_FromLong(1);
        if (!scalar_is_fixed(item)) {
            PyObject *found = PyTuple_Pack(1, item);
            Py_DECREF(item);
            return found;
        }
        int failed = PyList_Append(args[0], item);
        Py_DECREF(item);
        if (failed) return NULL;
        if ((count & 15) == 15 && ipc_now() > end) break;
    }
    return PyLong_FromLong(0);
}

FUNCTION(book) { /* book(segment, from, to): a task that had no row */
    VIEW(3, WORKER);
    uint64_t from = number(args[1], UINT64_MAX), to = number(args[2], UINT64_MAX);
    CHECK;
    struct ipc_slot *line = &v->s.slot[v->worker->slot];
    atomic_fetch_add_explicit(&line->tasks, 1, memory_order_relaxed);
    ipc_book(&v->s, v->worker->slot, from, to, &v->worker->span);
    Py_RETURN_NONE;
}

FUNCTION(kept) { /* bytes of arguments that tasks of this worker have kept */
    VIEW(1, WORKER);
    return PyLong_FromUnsignedLongLong((uint64_t)v->kept * IPC_UNIT_SIZE);
}

FUNCTION(attempt) { /* attempt(segment) -> (number of the attempt, seconds until its deadline | None); works in children that the task has forked */
    (void)module;
    struct view *v = n == 1 ? PyCapsule_GetPointer(args[0], CAPSULE) : NULL;
    if (!v || !v->worker) return PyErr_Occurred() ? NULL : PyErr_Format(PyExc_ValueError, "attempt(segment): not a worker");
    struct ipc_worker *w = v->worker; /* private memory, so a child has it too */
    if (!w->timeout_ms || !w->started) return Py_BuildValue("(IO)", w->attempt, Py_None);
    return Py_BuildValue("(Id)", w->attempt, w->timeout_ms / 1e3 - (double)(int64_t)(ipc_now() - w->started) / 1e9);
}

FUNCTION(progress) { /* progress(segment, number): what the running item says of itself; nothing happens in children that the task has forked */
    (void)module;
    struct view *v = n == 2 ? PyCapsule_GetPointer(args[0], CAPSULE) : NULL;
    if (!v || !v->worker) return PyErr_Occurred() ? NULL : PyErr_Format(PyExc_ValueError, "progress(segment, number): not a worker");
    double x = PyFloat_AsDouble(args[1]);
    CHECK;
    if (v->control) ipc_progress(v->worker, x);
    Py_RETURN_NONE;
}

FUNCTION(busy) { /* busy(segment) -> (workers that run something, ((slot, progress), ...) of those that have said something) */
    VIEW(1, ANY);
    unsigned long busy = 0;
    PyObject *parts = PyList_New(0);
    for (uint32_t slot = 0; parts && slot < v->s.slots; slot++) {
        struct ipc_running r;
        if (!ipc_running(&v->s, slot, &r)) continue;
        busy++;
        if (r.progress == IPC_NO_PROGRESS) continue;
        double x;
        memcpy(&x, &r.progress, sizeof(x));
        PyObject *part = Py_BuildValue("(Id)", slot, x);
        if (!part || PyList_Append(parts, part) < 0) Py_CLEAR(parts);
        Py_XDECREF(part);
    }
    PyObject *tuple = parts ? PyList_AsTuple(parts) : NULL;
    Py_XDECREF(parts);
    return tuple ? Py_BuildValue("(kN)", busy, tuple) : NULL;
}

/* ---- monitor */

FUNCTION(may_fork) {
    VIEW(3, ANY);
    uint32_t slot = slot_of(v, args[1]), generation = number32(args[2]);
    CHECK;
    return PyBool_FromLong(ipc_may_fork(&v->s, slot, generation));
}

FUNCTION(slot_begin) {
    VIEW(3, ANY);
    uint32_t slot = slot_of(v, args[1]), generation = number32(args[2]);
    CHECK;
    ipc_slot_begin(&v->s, slot, generation);
    Py_RETURN_NONE;
}

FUNCTION(slot_forked) {
    VIEW(3, ANY);
    uint32_t slot = slot_of(v, args[1]), pid = number32(args[2]);
    CHECK;
    ipc_slot_forked(&v->s, slot, (int32_t)pid);
    Py_RETURN_NONE;
}

FUNCTION(record_death) { /* record_death(segment, slot, generation, pid, status, reason, peak=0) */
    VIEW(n == 7 ? 7 : 6, ANY);
    uint32_t slot = slot_of(v, args[1]);
    struct ipc_death d = {number32(args[2]), (int32_t)number32(args[3]), (int32_t)number32(args[4]), number32(args[5]),
                          n == 7 ? number(args[6], UINT64_MAX) : 0};
    CHECK;
    ipc_record_death(&v->s, slot, &d);
    Py_RETURN_NONE;
}

static PyObject *running_tuple(const struct ipc_running *r) {
    return Py_BuildValue("(IIIIKK)", r->slot, r->generation, r->row, r->timeout_ms, (unsigned long long)r->word, (unsigned long long)r->started);
}

FUNCTION(running) { /* running(segment, slot) -> (slot, generation, row, timeout_ms, word, started_ns) | None */
    VIEW(2, ANY);
    uint32_t slot = slot_of(v, args[1]);
    CHECK;
    struct ipc_running r;
    if (!ipc_running(&v->s, slot, &r)) Py_RETURN_NONE;
    return running_tuple(&r);
}

FUNCTION(deadlines) { /* deadlines(segment, idle) -> (armed, seconds until the next look | None, [running, ...]) */
    VIEW(2, ANY);
    if (!v->watch && !(v->watch = calloc(1, sizeof(*v->watch)))) return PyErr_NoMemory();
    atomic_store_explicit(&v->s.header->monitor_idle, (uint32_t)PyObject_IsTrue(args[1]), memory_order_seq_cst); /* before the look at armed */
    struct ipc_running expired[64];
    uint32_t count;
    uint64_t now = ipc_now(), next = ipc_deadlines(&v->s, v->watch, now, expired, 64, &count);
    PyObject *list = PyList_New((Py_ssize_t)count);
    for (uint32_t k = 0; list && k < count; k++) PyList_SetItem(list, (Py_ssize_t)k, running_tuple(&expired[k]));
    if (!list) return NULL;
    uint32_t armed = atomic_load_explicit(&v->s.header->armed, memory_order_relaxed);
    if (next == UINT64_MAX) return Py_BuildValue("(ION)", armed, Py_None, list);
    return Py_BuildValue("(IdN)", armed, (double)(next - now) / 1e9, list);
}

FUNCTION(limited) { /* limited(segment) -> [(slot, generation, row, word, limit, started_ns, anonymous, dirtied, faults, peak), ...] */
    VIEW(1, ANY);
    struct ipc_limited found[IPC_MAX_SLOTS];
    uint32_t count = ipc_limited(&v->s, found);
    PyObject *list = PyList_New((Py_ssize_t)count);
    for (uint32_t k = 0; list && k < count; k++) {
        struct ipc_limited *l = &found[k];
        PyObject *item = Py_BuildValue("(IIIKKKKKKK)", l->slot, l->generation, l->row, (unsigned long long)l->word, (unsigned long long)l->limit,
                                       (unsigned long long)l->started, (unsigned long long)l->anonymous, (unsigned long long)l->dirtied,
                                       (unsigned long long)l->faults, (unsigned long long)l->peak);
        if (item)
            PyList_SetItem(list, (Py_ssize_t)k, item);
        else
            Py_CLEAR(list);
    }
    return list;
}

FUNCTION(retire_worker) { /* retire_worker(segment, slot, generation) */
    VIEW(3, ANY);
    uint32_t slot = slot_of(v, args[1]), generation = number32(args[2]);
    CHECK;
    ipc_retire(&v->s, slot, generation);
    Py_RETURN_NONE;
}

FUNCTION(leaver) { /* leaver(segment) -> (slot, generation) | None */
    VIEW(1, ANY);
    uint32_t who = ipc_leaver(&v->s);
    if (!who) Py_RETURN_NONE;
    return Py_BuildValue("(iI)", (int)(who & 0xffff) - 1, who >> 16);
}

FUNCTION(next_leaver) {
    VIEW(1, ANY);
    ipc_next_leaver(&v->s);
    Py_RETURN_NONE;
}

FUNCTION(set_renewed) { /* set_renewed(segment, count) */
    VIEW(2, ANY);
    uint32_t count = number32(args[1]);
    CHECK;
    ipc_set_renewed(&v->s, count);
    Py_RETURN_NONE;
}

FUNCTION(renewed) { /* renewed(segment) -> count */
    VIEW(1, ANY);
    return PyLong_FromUnsignedLong(ipc_renewed(&v->s));
}

FUNCTION(stop_workers) {
    VIEW(1, ANY);
    ipc_stop_workers(&v->s);
    Py_RETURN_NONE;
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

FUNCTION(become_subreaper) {
    (void)module, (void)args, (void)n;
    if (prctl(PR_SET_CHILD_SUBREAPER, 1) < 0) return PyErr_SetFromErrno(PyExc_OSError);
    Py_RETURN_NONE;
}

#define ENTRY(python, c) {python, (PyCFunction)(void (*)(void))(c), METH_FASTCALL, NULL}
static PyMethodDef methods[] = {
    ENTRY("size", segment_size), ENTRY("create", create), ENTRY("attach", attach), ENTRY("forget", forget), ENTRY("forked", forked), ENTRY("retire", retire),
    ENTRY("dont_fork", dont_fork), ENTRY("counters", counters), ENTRY("slot_info", slot_info), ENTRY("ring_client", ring_client),
    ENTRY("open_client", open_client), ENTRY("publish", publish), ENTRY("collect", collect), ENTRY("flush", flush), ENTRY("wait", client_wait), ENTRY("listen", client_listen), ENTRY("heard", heard), ENTRY("set_wire", set_wire), ENTRY("wire", wire),
    ENTRY("cancel", cancel), ENTRY("row_word", row_word), ENTRY("condemn", condemn), ENTRY("next_dead", next_dead), ENTRY("settle", settle),
    ENTRY("settled", settled), ENTRY("death", death), ENTRY("idle_scan", idle_scan), ENTRY("trim", trim), ENTRY("store_function", store_function),
    ENTRY("free_function", free_function), ENTRY("monitor_must_look", monitor_must_look), ENTRY("open_worker", open_worker), ENTRY("set_phase", set_phase),
    ENTRY("claim", claim), ENTRY("arguments", arguments), ENTRY("room", room), ENTRY("claimed_function", claimed_function), ENTRY("begin_items", begin_items), ENTRY("run_items", run_items), ENTRY("runs_item", runs_item), ENTRY("fill", fill), ENTRY("commit", commit),
    ENTRY("complete", complete), ENTRY("kept", kept), ENTRY("attempt", attempt), ENTRY("progress", progress), ENTRY("busy", busy), ENTRY("may_fork", may_fork), ENTRY("slot_begin", slot_begin), ENTRY("slot_forked", slot_forked),
    ENTRY("record_death", record_death), ENTRY("running", running), ENTRY("deadlines", deadlines), ENTRY("limited", limited), ENTRY("stop_workers", stop_workers), ENTRY("retire_worker", retire_worker), ENTRY("leaver", leaver), ENTRY("next_leaver", next_leaver),
    ENTRY("set_renewed", set_renewed), ENTRY("renewed", renewed),
    ENTRY("tally", new_tally), ENTRY("count", count), ENTRY("count_into", count_into), ENTRY("counted", counted), ENTRY("slot_times", slot_times), ENTRY("slot_spans", slot_spans),
    ENTRY("book_usage", book_usage), ENTRY("book_spent", book_spent), ENTRY("book", book), ENTRY("memory", memory), ENTRY("punch", punch), ENTRY("flush_stdio", flush_stdio), ENTRY("dirtied", dirtied), ENTRY("die_with_parent", die_with_parent),
    ENTRY("become_subreaper", become_subreaper), {NULL, NULL, 0, NULL},
};

static const struct { const char *name; long value; } constants[] = {
    {"FREE", IPC_FREE}, {"READY", IPC_READY}, {"RUNNING", IPC_RUNNING}, {"STORING", IPC_STORING}, {"DONE", IPC_DONE}, {"CONDEMNED", IPC_CONDEMNED},
    {"FULL", IPC_FULL}, {"NO_ROOM", IPC_NO_ROOM}, {"TOO_LARGE", IPC_TOO_LARGE}, {"LOST", IPC_LOST}, {"STOP", IPC_STOP},
    {"DIED", IPC_DIED}, {"DEADLINE", IPC_DEADLINE}, {"KILLED", IPC_KILLED}, {"RECYCLED", IPC_RECYCLED}, {"MEMORY", IPC_MEMORY}, {"OOM", IPC_OOM}, {"UNREADY", IPC_UNREADY}, {"RESTARTED", IPC_RESTARTED},
    {"STARTING", IPC_STARTING}, {"IDLE", IPC_IDLE}, {"LEAVING", IPC_LEAVING}, {"PACKED", IPC_PACKED},
    {"REPLACED", IPC_REPLACED}, {"IS_STARTING", IPC_IS_STARTING}, {"IS_IDLE", IPC_IS_IDLE}, {"IS_BUSY", IPC_IS_BUSY}, {"IS_WAITING", IPC_IS_WAITING},
    {"IS_LEAVING", IPC_IS_LEAVING}, {"TALLIES", TALLIES}, {"SLOWEST", SLOWEST},
    {"REPEATABLE", IPC_REPEATABLE}, {"CAPTURE", IPC_CAPTURE}, {"PACKED_KIND", IPC_PACKED_KIND}, {"ALIGN", IPC_ALIGN},
    {"MAX_ROWS", IPC_MAX_ROWS}, {"MAX_SLOTS", IPC_MAX_SLOTS}, {"MAX_ITEMS", IPC_MAX_ITEMS}, {"INLINE", IPC_INLINE}, {"UNIT_SIZE", IPC_UNIT_SIZE},
    {"GENERATION_MASK", (long)IPC_MASK(IPC_GENERATION_BITS)}, {"DEATHS", IPC_DEATHS}, {"FILL_RATE", (long)IPC_FILL_RATE}, {"LOOK_MS", IPC_LOOK_MS},
};

static int execute(PyObject *module) {
    for (size_t k = 0; k < sizeof(constants) / sizeof(constants[0]); k++)
        if (PyModule_AddIntConstant(module, constants[k].name, constants[k].value) < 0) return -1;
    if (!Run && !(Run = (PyTypeObject *)PyType_FromSpec(&run_spec))) return -1;
    if (!Damaged && !(Damaged = PyErr_NewException("ipc.Damaged", NULL, NULL))) return -1;
    return PyModule_AddObjectRef(module, "Damaged", Damaged);
}

static PyModuleDef_Slot module_slots[] = {{Py_mod_exec, (void *)execute}, {0, NULL}};
static PyModuleDef definition = {.m_base = PyModuleDef_HEAD_INIT, .m_name = "ipc._core", .m_size = 0, .m_methods = methods, .m_slots = module_slots};
PyMODINIT_FUNC PyInit__core(void) { return PyModuleDef_Init(&definition); }
