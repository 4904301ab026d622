/* The client's calls. */
#include "view.h"

#include "scalars.h"

#include <stdlib.h>
#include <string.h>

enum { POSITION = 1, DATA = 3, FLAGS = 4, TIMEOUT = 5, ITEM = 6 }; /* of a record, pool/task.py */
#define VIEW_BYTES 32768u /* a smaller result is copied: cheaper than a run of its own for as long as somebody holds it */

FUNCTION(open_client) {
    VIEW(1, ANY);
    if (!v->client && !(v->client = malloc(sizeof(*v->client)))) return PyErr_NoMemory();
    ipc_client_init(v->client, &v->s);
    Py_RETURN_NONE;
}

FUNCTION(close_client) { /* from now on `give` and `publish` publish nothing */
    VIEW(1, CLIENT);
    v->closed = 1;
    Py_RETURN_NONE;
}

FUNCTION(count_into) { /* count_into(segment, tally): what is collected from now on */
    VIEW(2, CLIENT);
    if (!(v->tally = tally_of(args[1]))) return NULL;
    Py_XDECREF(v->counts);
    v->counts = Py_NewRef(args[1]);
    Py_RETURN_NONE;
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
    int row = v->closed ? IPC_FULL : ipc_publish(v->client, &t);
    drop_pieces(&pieces);
    if (row >= 0) v->number[row] = counted_as;
    /* In the same call as the publication: a signal handler that raises cannot come between a row and its record. */
    if (row >= 0 && set_record(args[1], (uint32_t)row, args[2]) < 0) return NULL;
    return PyLong_FromLong(row);
}

static int must_look(struct view *v) {
    int must = v->client->shortened || atomic_load_explicit(&v->s.header->monitor_idle, memory_order_seq_cst);
    v->client->shortened = 0;
    return must;
}

/* A record like `like`, for another item: same type, same fields but for position, data and item. Not by calling the type, which takes ten times
 * as long; nobody takes the hash of a record, which a version of Python may keep in it. */
static PyObject *record_like(PyObject *like, long long position, const unsigned char *pickle, int length, PyObject *item) {
    Py_ssize_t fields = PyTuple_Size(like);
    PyObject *record = PyType_GenericAlloc(Py_TYPE(like), fields), *own[] = {PyLong_FromLongLong(position), PyBytes_FromStringAndSize((const char *)pickle, length)};
    if (!record || !own[0] || !own[1]) {
        Py_XDECREF(record), Py_XDECREF(own[0]), Py_XDECREF(own[1]);
        return NULL;
    }
    for (Py_ssize_t k = 0; k < fields; k++) {
        PyObject *field = k == POSITION ? own[0] : k == DATA ? own[1] : Py_NewRef(k == ITEM ? item : PyTuple_GetItem(like, k));
        PyTuple_SetItem(record, k, field);
    }
    return record;
}

/* Publish one item of a map. 1: done; 0: not like this; -1: an exception is set. Reading the item, or a finaliser while the record is made, may
 * have run any code, and other threads: the segment may be closed, in a child even be gone, and others may wait for rows. */
static int give_item(struct view *v, PyObject *const *args, struct ipc_task *t, uint16_t counted_as, long long position, PyObject *item) {
    unsigned char pickle[SCALAR_MOST];
    int length = scalar_encode(item, pickle);
    if (!length) return 0;
    PyObject *record = record_like(args[5], position, pickle, length, item);
    if (!record) return -1;
    struct ipc_piece piece = {pickle, (uint64_t)length};
    t->piece = &piece;
    t->pieces = 1;
    int row = v->closed || !v->control || PyObject_Size(args[2]) ? IPC_NO_ROOM : ipc_publish(v->client, t);
    if (row >= 0) {
        v->number[row] = counted_as;
        if (PyList_SetItem(args[1], (Py_ssize_t)row, record) == 0) return 1;
        record = NULL; /* it is gone either way */
    }
    Py_XDECREF(record);
    return PyErr_Occurred() ? -1 : 0;
}

FUNCTION(give) { /* give(segment, tasks, queue, source, most, like, fn, generation, unit, length, number, memory_limit, watched, given) */
    VIEW(14, CLIENT);
    PyObject *like = args[5];
    if (!PyTuple_Check(like) || PyTuple_Size(like) <= ITEM || !PyIter_Check(args[3]) || !PyList_Check(args[13]))
        return PyErr_Format(PyExc_TypeError, "give: segment, tasks, queue, iterator, most, record, ..., list");
    long most = PyLong_AsLong(args[4]), given = PyLong_AsLong(PyList_GetItem(args[13], 0)), before = given;
    long long first = PyLong_AsLongLong(PyTuple_GetItem(like, POSITION));
    int watched = PyObject_IsTrue(args[12]);
    struct ipc_task t = {.fn = number32(args[6]), .fn_generation = number32(args[7]), .fn_unit = number32(args[8]), .fn_len = number32(args[9]),
                         .timeout_ms = number32(PyTuple_GetItem(like, TIMEOUT)), .flags = (uint16_t)number(PyTuple_GetItem(like, FLAGS), UINT16_MAX),
                         .attempt = 1, .memory_limit = number(args[11], UINT64_MAX)};
    uint16_t counted_as = (uint16_t)number(args[10], TALLIES - 1);
    CHECK;
    PyObject *answer = NULL, *item = NULL;
    while (!answer && given - before < most) {
        if (!(item = PyIter_Next(args[3]))) {
            if (!PyErr_Occurred()) answer = PyLong_FromLong(1);
            break;
        }
        int code = give_item(v, args, &t, counted_as, first + given, item);
        if (code == 0) answer = PyTuple_Pack(1, item);
        Py_DECREF(item);
        if (code < 0) break;
        given += code;
        if (code == 0) break;
        if (watched && must_look(v)) answer = PyLong_FromLong(2);
    }
    if (!answer && !PyErr_Occurred()) answer = PyLong_FromLong(0);
    /* Not by the answer: a signal handler that raises comes before that is looked at. */
    PyObject *type, *error, *trace, *count;
    PyErr_Fetch(&type, &error, &trace);
    if ((count = PyLong_FromLong(given))) PyList_SetItem(args[13], 0, count);
    PyErr_Restore(type, error, trace);
    return answer;
}

/* A result's bytes: a view of its run if it is large and there is room for views, else a copy, which its reader may write to if it is packed. */
static PyObject *result_data(struct view *v, PyObject *capsule, uint32_t row, struct ipc_result *r) {
    if (r->units && r->length >= VIEW_BYTES) {
        PyObject *run = run_new(capsule, v, v->s.payload + (uint64_t)r->unit * IPC_UNIT_SIZE, r->length, r->unit,
                                (uint32_t)ipc_units_for(r->length), IPC_OWNER_VIEW);
        if (!run || ipc_adopt(v->client, row, r)) return run;
        ((struct run *)run)->count = 0; /* they stay the row's */
        Py_DECREF(run);
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
            count_item(v->tally, v->number[row], record, first + k, what, frame.spent, r->slot) < 0) {
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
    struct ipc_spent spent[IPC_MAX_ITEMS];
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
        spent[k] = frame.spent;
        at += IPC_FRAME + length;
    }
    PyObject *record = values ? PyList_GetItem(tasks, (Py_ssize_t)row) : NULL;
    for (uint32_t k = 0; record && k < items; k++) {
        took->all += took->last = ipc_from_brief(spent[k].run);
        if (count_item(v->tally, v->number[row], record, v->client->drained[row] + k, VALUE, spent[k], r->slot) < 0) record = NULL;
    }
    if (record) return values;
other:
    Py_XDECREF(values);
    return NULL;
}

/* Whatever fails before this leaves the row and its record as they were, to be found again. Its entry holds the record now. */
static void drop_record(PyObject *tasks, uint32_t row) {
    Py_INCREF(Py_None);
    PyList_SetItem(tasks, (Py_ssize_t)row, Py_None);
}

/* Append the value of a single call to `values`, if it is short and simple. 1: done; 0: it is not; -1: an exception is set, it is not taken. */
static int take_plain(struct view *v, PyObject *tasks, PyObject *record, uint32_t row, const struct ipc_result *r, PyObject *values) {
    PyObject *value = r->kind == VALUE ? scalar_decode(r->data, r->length) : NULL;
    if (!value) return 0;
    int failed = PyList_Append(values, value);
    Py_DECREF(value);
    if (failed) return -1;
    if (count_item(v->tally, v->number[row], record, 0, VALUE, r->spent, r->slot) < 0) {
        PyList_SetSlice(values, PyList_Size(values) - 1, PyList_Size(values), NULL);
        return -1;
    }
    drop_record(tasks, row);
    ipc_release_row(v->client, row);
    return 1;
}

/* Append the entry of a finished row to its list. -1 with an exception set: it is not taken. */
static int take(struct view *v, PyObject *const *args, uint32_t row) {
    struct ipc_client *c = v->client;
    PyObject *tasks = args[1], *record = PyList_GetItem(tasks, (Py_ssize_t)row), *sink = record ? PyTuple_GetItem(record, 0) : NULL;
    if (!sink) return -1;
    struct ipc_result r;
    if (ipc_read_result(c, row, &r) < 0) return damaged("a result points outside its room"), -1;
    uint32_t items = c->items[row], drained = c->drained[row], offered = (uint32_t)ipc_offers(c, row);
    if (!items && args[6] != Py_None && sink == args[4]) {
        int taken = take_plain(v, tasks, record, row, &r, args[6]);
        if (taken) return taken < 0 ? -1 : 0;
    }
    if (items) r.kind = drained; /* a chunk's frames have kinds of their own */
    struct took took = {0};
    PyObject *data = NULL, *facts = NULL, *to = sink == args[4] ? args[5] : args[2];
    if (items) {
        uint32_t here = offered ? offered : items - drained;
        data = plain_values(v, tasks, row, &r, here, &took);
        if (!data && !PyErr_Occurred()) data = frames(v, tasks, row, &r, here, &took);
        if (!data) return -1;
        /* The row says when the last item began; of an offered chunk that is the one after these. */
        uint64_t end = r.started + (offered ? 0 : took.last);
        facts = chunk_facts(v, row, &r, facts_of(v, row, &r, took.all, end - took.all, r.spent), data, took, end);
    } else if (count_item(v->tally, v->number[row], record, 0, r.kind, r.spent, r.slot) == 0) {
        struct facts one = facts_of(v, row, &r, ipc_from_brief(r.spent.run), r.started, r.spent);
        facts = PyBytes_FromStringAndSize((const char *)&one, sizeof(one));
    }
    PyObject *entry = facts ? PyTuple_New(5) : NULL, *kind = entry ? PyLong_FromUnsignedLong(r.kind) : NULL,
             *length = kind ? PyLong_FromUnsignedLongLong(r.length) : NULL;
    int placed = length && PyList_Append(to, Py_None) == 0; /* a place for the entry: what was adopted must not fail to come */
    if (placed && !data) data = result_data(v, args[0], row, &r);
    if (!placed || !data) {
        if (placed) PyList_SetSlice(to, PyList_Size(to) - 1, PyList_Size(to), NULL);
        Py_XDECREF(data), Py_XDECREF(facts), Py_XDECREF(entry), Py_XDECREF(kind), Py_XDECREF(length);
        return -1;
    }
    PyTuple_SetItem(entry, 0, Py_NewRef(record));
    PyTuple_SetItem(entry, 1, kind);
    PyTuple_SetItem(entry, 2, data);
    PyTuple_SetItem(entry, 3, length);
    PyTuple_SetItem(entry, 4, facts);
    PyList_SetItem(to, PyList_Size(to) - 1, entry);
    if (offered) {
        ipc_drained(c, row, offered);
    } else {
        drop_record(tasks, row);
        ipc_release_row(c, row);
    }
    return 0;
}

FUNCTION(collect) { /* collect(segment, tasks, inbox, most, sink, own, values): append (record, kind, data, length, facts) for each finished row to
                       inbox, or to own if record[0] is sink; of a chunk, kind is the number of items that were drained before, and
                       data a tuple of values, or else a list of kinds and pickles. To values, if it is a list, what single calls
                       of that sink have returned, where it is short and simple */
    VIEW(7, CLIENT);
    long most = PyLong_AsLong(args[3]), count = 0;
    CHECK;
    for (int row; count < most && (row = ipc_next_done(v->client)) >= 0; count++) {
        if (take(v, args, (uint32_t)row) == 0) continue;
        if (!PyErr_ExceptionMatches(Damaged)) ipc_not_taken(v->client, (uint32_t)row); /* else it would never be more whole */
        return NULL;
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

FUNCTION(drained) { /* drained(segment, row) -> items of the chunk in this row that have been collected */
    VIEW(2, CLIENT);
    uint32_t row = row_of(v, args[1]);
    CHECK;
    return PyLong_FromUnsignedLong(v->client->drained[row]);
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
        PyObject *record = done ? PyList_GetItem(args[1], (Py_ssize_t)dead.row) : NULL;
        /* The row has the low bits of the generation, and the log the last few. */
        uint32_t generation = reaped - ((reaped - dead.generation) & (uint32_t)IPC_MASK(IPC_GENERATION_BITS));
        struct ipc_slot *line = &v->s.slot[slot];
        struct ipc_spent spent = line->deaths[generation % IPC_DEATHS].generation == generation ? line->spent[generation % IPC_DEATHS] : (struct ipc_spent){0};
        struct facts one = facts_of(v, dead.row, &r, ipc_from_brief(spent.run), r.started, spent);
        PyObject *facts = record ? chunk_facts(v, dead.row, &r, one, done, took, r.started) : NULL;
        PyObject *entry = facts ? Py_BuildValue("(OIIIIOO)", record, dead.state, dead.item, dead.generation, drained, done, facts) : NULL;
        Py_XDECREF(done), Py_XDECREF(facts);
        if (!entry) return NULL;
        int failed = PyList_Append(args[4], entry);
        Py_DECREF(entry);
        if (failed) return NULL;
        drop_record(args[1], dead.row);
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
    int healed = ipc_idle_scan(v->client);
    return healed < 0 ? damaged("the word of a row is impossible") : PyLong_FromLong(healed);
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
    return PyBool_FromLong(must_look(v));
}

PyMethodDef client_methods[] = {
    ENTRY("open_client", open_client), ENTRY("publish", publish), ENTRY("give", give), ENTRY("close_client", close_client), ENTRY("collect", collect), ENTRY("flush", flush), ENTRY("wait", client_wait),
    ENTRY("listen", client_listen), ENTRY("heard", heard), ENTRY("cancel", cancel), ENTRY("drained", drained), ENTRY("row_word", row_word), ENTRY("condemn", condemn),
    ENTRY("next_dead", next_dead), ENTRY("settle", settle), ENTRY("settled", settled), ENTRY("death", death), ENTRY("idle_scan", idle_scan),
    ENTRY("trim", trim), ENTRY("store_function", store_function), ENTRY("free_function", free_function),
    ENTRY("monitor_must_look", monitor_must_look), ENTRY("count_into", count_into),
    {NULL, NULL, 0, NULL},
};
