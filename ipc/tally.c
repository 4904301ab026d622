/* What the client counts of each function, and which items were the slowest: in its own memory, so the death of a worker costs nothing. */
#include "view.h"

#include <stdlib.h>

#define TALLY "ipc.tally"

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

struct tally *tally_of(PyObject *capsule) { return PyCapsule_GetPointer(capsule, TALLY); }

int count_item(struct tally *t, uint32_t number, PyObject *record, uint32_t item, uint32_t kind, struct ipc_spent spent, uint32_t slot) {
    if (!t) return 0;
    ipc_count(&t->of[number], (kind & IPC_FAILED_KINDS) != 0, spent);
    uint64_t ns = ipc_from_brief(spent.run);
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

FUNCTION(count) { /* count(tally, number, record, item, kind, ns, user_ns, system_ns, resident): an item that had no row */
    (void)module;
    if (n != 9) return PyErr_Format(PyExc_TypeError, "count(tally, number, record, item, kind, ns, user_ns, system_ns, resident)");
    struct tally *t = tally_of(args[0]);
    if (!t) return NULL;
    uint32_t of = (uint32_t)number(args[1], TALLIES - 1), item = number32(args[3]), kind = number32(args[4]);
    struct ipc_spent spent = {ipc_brief(number(args[5], UINT64_MAX)), ipc_brief(number(args[6], UINT64_MAX)),
                              ipc_brief(number(args[7], UINT64_MAX)), ipc_brief(number(args[8], UINT64_MAX))};
    CHECK;
    if (count_item(t, of, args[2], item, kind, spent, 0) < 0) return NULL;
    Py_RETURN_NONE;
}

FUNCTION(counted) { /* counted(tally, number) -> (count, failed, total_ns, p50, p95, longest_ns, user_ns, system_ns, resident) */
    (void)module;
    if (n != 2) return PyErr_Format(PyExc_TypeError, "counted(tally, number)");
    struct tally *t = tally_of(args[0]);
    if (!t) return NULL;
    uint32_t of = (uint32_t)number(args[1], TALLIES - 1);
    CHECK;
    const struct ipc_tally *f = &t->of[of];
    return Py_BuildValue("(KKKKKKKKK)", (unsigned long long)f->count, (unsigned long long)f->failed, (unsigned long long)f->total_ns,
                         (unsigned long long)ipc_quantile(f, 0.5), (unsigned long long)ipc_quantile(f, 0.95), (unsigned long long)f->longest_ns,
                         (unsigned long long)f->user_ns, (unsigned long long)f->system_ns, (unsigned long long)f->resident);
}

PyMethodDef tally_methods[] = {
    ENTRY("tally", new_tally), ENTRY("count", count), ENTRY("counted", counted),
    {NULL, NULL, 0, NULL},
};
