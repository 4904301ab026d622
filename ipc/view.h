#ifndef IPC_VIEW_H
#define IPC_VIEW_H
/* One process' view of a segment, for Python, in the limited API. One capsule a process and segment; functions check bounds and roles, nothing else
 * is decided here. The GIL is released only while waiting, and by workers while they copy what does not fit into a row; and `give`, `fill`,
 * `run_items` and `claim` (a function, or signal handlers) call code of the user, which may let other threads run, fork, or close the segment. Every
 * other call is atomic for Python threads. Stubs and the meaning of each function: _core.pyi. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "core/core.h"

#include <sys/types.h>

#define CAPSULE "ipc.segment"
#define VALUE 0u /* the kind of a pickle, as in pool/codec.py, */
#define CALL_ONE 1 /* and of a call */

extern PyObject *Damaged;
extern int in_item;   /* in a worker: the code of a task runs, called by run_items or claim */
extern uint32_t forks; /* of this process, while it held runs or not */

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
    int closed;           /* client: it is not to be published to any more */
    int retired;          /* client: the workers are gone, so freed units are punched out at once */
    pid_t only;           /* the control segment is mapped in this process only; 0: also in what it forks */
};

void view_destroy(PyObject *capsule);

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

extern PyTypeObject *Run;
int make_types(void); /* -1: an exception is set */
PyObject *run_new(PyObject *capsule, struct view *v, unsigned char *data, uint64_t length, uint32_t unit, uint32_t count, uint64_t owner);

enum role { ANY, CLIENT, WORKER };

/* The view behind argument 0, with the number of arguments and the role checked. */
struct view *view_of(PyObject *const *args, Py_ssize_t given, Py_ssize_t wanted, enum role role);

uint64_t number(PyObject *o, uint64_t most); /* OverflowError for more; look with CHECK */
static inline uint32_t number32(PyObject *o) { return (uint32_t)number(o, UINT32_MAX); }
static inline uint32_t row_of(struct view *v, PyObject *o) { return (uint32_t)number(o, v->s.rows - 1); }
static inline uint32_t slot_of(struct view *v, PyObject *o) { return (uint32_t)number(o, v->s.slots - 1); }
PyObject *damaged(const char *what); /* NULL, with the exception set */

/* The pieces behind `o`: a bytes-like object, or a tuple of them. Pinned until drop_pieces. */
struct pieces {
    uint32_t count;
    struct ipc_piece *piece, first[8];
    Py_buffer *pin, pins[8];
};
int pieces_of(PyObject *o, struct pieces *p); /* -1: an exception is set */
void drop_pieces(struct pieces *p);
const unsigned char *bytes_of(PyObject *o, Py_buffer *view, uint64_t *length); /* of one object, pinned until view->obj is released, if it is set */

#define FUNCTION(name) static PyObject *name(PyObject *module, PyObject *const *args, Py_ssize_t n)
#define VIEW(count, role)                                  \
    (void)module;                                          \
    struct view *v = view_of(args, n, count, role);        \
    if (!v) return NULL
#define CHECK if (PyErr_Occurred()) return NULL
#define ENTRY(python, c) {python, (PyCFunction)(void (*)(void))(c), METH_FASTCALL, NULL}

/* ---- tally.c: what the client counts of each function, and which items were the slowest */
#define TALLIES 256u /* functions by number; 0: all that have no number of their own */
#define SLOWEST 5u
struct tally;
struct tally *tally_of(PyObject *capsule);
/* Count an item of the task whose record this is. -1 with an exception set: no memory. */
int count_item(struct tally *t, uint32_t number, PyObject *record, uint32_t item, uint32_t kind, struct ipc_spent spent, uint32_t slot);

extern PyMethodDef tally_methods[], segment_methods[], client_methods[], worker_methods[], monitor_methods[];

#endif
