#include "view.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

PyObject *Damaged;
PyTypeObject *Run;
int in_item;
uint32_t forks;

static void unmap(struct view *v) {
    /* In a forked child something else may have been mapped at the control segment's place. */
    if (v->control && (!v->only || v->only == getpid())) munmap(v->control, v->control_size);
    if (v->payload) munmap(v->payload, v->payload_size);
    v->control = v->payload = NULL;
}

void view_destroy(PyObject *capsule) {
    struct view *v = PyCapsule_GetPointer(capsule, CAPSULE);
    if (!v) return;
    unmap(v);
    free(v->client);
    free(v->worker);
    free(v->watch);
    Py_XDECREF(v->counts);
    free(v);
}

PyObject *run_new(PyObject *capsule, struct view *v, unsigned char *data, uint64_t length, uint32_t unit, uint32_t count, uint64_t owner) {
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

struct view *view_of(PyObject *const *args, Py_ssize_t given, Py_ssize_t wanted, enum role role) {
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

uint64_t number(PyObject *o, uint64_t most) {
    unsigned long long n = PyLong_AsUnsignedLongLong(o);
    if (n > most && !PyErr_Occurred()) PyErr_Format(PyExc_OverflowError, "%llu is more than %llu", n, (unsigned long long)most);
    return n;
}

PyObject *damaged(const char *what) {
    PyErr_SetString(Damaged, what);
    return NULL;
}

int make_types(void) {
    if (!Run && !(Run = (PyTypeObject *)PyType_FromSpec(&run_spec))) return -1;
    if (!Damaged && !(Damaged = PyErr_NewException("ipc.Damaged", NULL, NULL))) return -1;
    return 0;
}

/* ---- bytes and pieces of them */

const unsigned char *bytes_of(PyObject *o, Py_buffer *view, uint64_t *length) {
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

void drop_pieces(struct pieces *p) {
    for (uint32_t k = 0; k < p->count; k++)
        if (p->pin[k].obj) PyBuffer_Release(&p->pin[k]);
    if (p->pin != p->pins) free(p->pin);
    if (p->piece != p->first) free(p->piece);
}

int pieces_of(PyObject *o, struct pieces *p) {
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
