/* A worker's calls. */
#include "view.h"

#include "scalars.h"

#include <stdlib.h>
#include <string.h>

#define FILL_NS 1000000u /* a slow input does not make a chunk wait for longer */
#define RUN_MOST 64       /* tasks in a row without a step in Python, */
#define RUN_NS 1000000u   /* and time: then other threads of the worker may have their turn */

FUNCTION(open_worker) { /* open_worker(segment, slot, generation) */
    VIEW(3, ANY);
    uint32_t slot = slot_of(v, args[1]), generation = number32(args[2]);
    CHECK;
    if (!v->worker && !(v->worker = malloc(sizeof(*v->worker)))) return PyErr_NoMemory();
    ipc_worker_init(v->worker, &v->s, slot, generation);
    Py_RETURN_NONE;
}

FUNCTION(set_phase) {
    VIEW(2, WORKER);
    uint32_t phase = number32(args[1]);
    CHECK;
    ipc_set_phase(v->worker, phase);
    Py_RETURN_NONE;
}

/* Publish what came of the claimed row, or of its running item. */
static int store(struct view *v, uint32_t kind, const struct ipc_piece *piece, uint32_t count,
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

/* The exception that is set, as an object. */
static PyObject *raised(void) {
    PyObject *type, *error, *trace;
    PyErr_Fetch(&type, &error, &trace);
    PyErr_NormalizeException(&type, &error, &trace);
    if (trace) PyException_SetTraceback(error, trace);
    Py_XDECREF(type);
    Py_XDECREF(trace);
    return error;
}

static PyObject *task_tuple(const struct ipc_task *t, int plain) {
    PyObject *tuple = PyTuple_New(6), *item[6] = {PyLong_FromUnsignedLong(t->fn), PyLong_FromUnsignedLong(t->fn_generation),
        PyLong_FromUnsignedLong(t->flags >> 8), PyLong_FromUnsignedLong(t->items),
        plain ? PyBytes_FromStringAndSize((const char *)t->args, (Py_ssize_t)t->args_len) : Py_NewRef(Py_None), PyLong_FromUnsignedLong(t->flags & 0xff)};
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

/* The function that the last task called: the next one that calls it, with one short and simple value, needs no step in Python. */
struct ready {
    PyObject *fn; /* None: there is none */
    uint32_t id, generation;
};

static PyObject *plain_argument(const struct ready *ready, const struct ipc_task *t) {
    if (ready->fn == Py_None || t->fn != ready->id || t->fn_generation != ready->generation || t->items || t->flags >> 8 != CALL_ONE) return NULL;
    return scalar_decode(t->args, t->args_len);
}

/* Call it and complete the claimed row. NULL: done; else what `claim` returns. Takes the argument. */
__attribute__((noinline)) /* so that a profile tells it apart */
static PyObject *run_plain(struct view *v, PyObject *fn, PyObject *argument) {
    in_item = 1;
    PyObject *value = PyObject_CallFunctionObjArgs(fn, argument, NULL);
    if (value && PyErr_CheckSignals() < 0) Py_CLEAR(value); /* code in C does not look for itself: it is this task that was interrupted */
    Py_DECREF(argument);
    in_item = 0;
    if (!value) return raised();
    unsigned char pickle[SCALAR_MOST];
    int length = v->control ? scalar_encode(value, pickle) : 0; /* without it this is a child that the task has forked */
    PyObject *other = length ? NULL : PyTuple_Pack(1, value);
    Py_DECREF(value);
    if (!length) return other ? other : raised();
    struct ipc_piece piece = {pickle, (uint64_t)length};
    int code = store(v, VALUE, &piece, 1, ipc_complete);
    return code == 0 ? NULL : PyLong_FromLong(code);
}

FUNCTION(claim) { /* claim(segment, spin_us, timeout_ms, fn=None, id=0, generation=0) -> None | False when stopped | True after many plain tasks |
                     (fn, generation, call, items, args | None, flags) | of a task that was run here: (value,), what it raised, or a code */
    VIEW(n == 6 ? 6 : 3, WORKER);
    uint64_t spin = number32(args[1]) * UINT64_C(1000), timeout = number32(args[2]) * UINT64_C(1000000), until = 0;
    struct ready ready = {Py_None, 0, 0};
    if (n == 6) ready = (struct ready){args[3], number32(args[4]), number32(args[5])};
    CHECK;
    struct ipc_worker *w = v->worker;
    for (int left = RUN_MOST; left > 0; left--) {
        if (PyErr_CheckSignals() < 0) return NULL; /* a signal that came between two tasks is not for the next one; what a handler that a task has left
                                                       raises ends this worker, which holds no row here */
        if (!v->control) return PyLong_FromLong(IPC_LOST); /* such a handler has forked, and this is its child */
        int code = ipc_claim(w);
        if (code == IPC_EMPTY) {
            Py_BEGIN_ALLOW_THREADS
            ipc_worker_wait(w, spin, timeout);
            Py_END_ALLOW_THREADS
            if (PyErr_CheckSignals() < 0) return NULL; /* whatever has ended the wait */
            if (!v->control) return PyLong_FromLong(IPC_LOST);
            code = ipc_claim(w);
        }
        if (code == IPC_STOP) Py_RETURN_FALSE;
        if (code == IPC_EMPTY) Py_RETURN_NONE;
        struct ipc_task t;
        if (ipc_claimed(w, &t) < 0) return damaged("a claimed row points outside its room");
        int plain = !t.args_units && !(t.flags & 0xff);
        PyObject *argument = plain ? plain_argument(&ready, &t) : NULL, *answer = argument ? run_plain(v, ready.fn, argument) : task_tuple(&t, plain);
        if (answer || !argument) return answer;
        if (!until) until = w->ended + RUN_NS;
        if (w->ended > until) break;
    }
    Py_RETURN_TRUE;
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

static PyObject *give_object(PyObject *const *args, Py_ssize_t n, int (*how)(struct ipc_worker *, uint32_t, const struct ipc_piece *, uint32_t)) {
    struct view *v = view_of(args, n, 3, WORKER);
    if (!v) return NULL;
    uint32_t kind = (uint32_t)number(args[1], 255);
    CHECK;
    struct pieces pieces;
    if (pieces_of(args[2], &pieces) < 0) return NULL;
    int code = store(v, kind, pieces.piece, pieces.count, how);
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
        code = store(v, VALUE, &piece, 1, ipc_commit);
    }
    return PyLong_FromLong(code);
}

FUNCTION(runs_item) {
    (void)module, (void)args, (void)n;
    return PyBool_FromLong(in_item);
}

FUNCTION(left_item) { /* in a process that an item has forked, and that is a worker itself */
    (void)module, (void)args, (void)n;
    in_item = 0;
    Py_RETURN_NONE;
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

PyMethodDef worker_methods[] = {
    ENTRY("open_worker", open_worker), ENTRY("set_phase", set_phase), ENTRY("claim", claim), ENTRY("arguments", arguments),
    ENTRY("claimed_function", claimed_function), ENTRY("begin_items", begin_items), ENTRY("run_items", run_items), ENTRY("runs_item", runs_item), ENTRY("left_item", left_item),
    ENTRY("fill", fill), ENTRY("commit", commit), ENTRY("complete", complete), ENTRY("kept", kept), ENTRY("attempt", attempt),
    ENTRY("progress", progress), ENTRY("busy", busy), ENTRY("book", book),
    {NULL, NULL, 0, NULL},
};
