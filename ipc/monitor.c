/* The monitor's calls. */
#include "view.h"

#include <stdlib.h>

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

PyMethodDef monitor_methods[] = {
    ENTRY("may_fork", may_fork), ENTRY("slot_begin", slot_begin), ENTRY("slot_forked", slot_forked), ENTRY("record_death", record_death),
    ENTRY("running", running), ENTRY("deadlines", deadlines), ENTRY("limited", limited), ENTRY("stop_workers", stop_workers),
    ENTRY("retire_worker", retire_worker), ENTRY("leaver", leaver), ENTRY("next_leaver", next_leaver), ENTRY("set_renewed", set_renewed),
    ENTRY("renewed", renewed),
    {NULL, NULL, 0, NULL},
};
