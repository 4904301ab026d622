/* The readers of the shared segment, under libFuzzer, ASan and UBSan: what the module does for client, monitor and workers, Python objects included.
 *
 * An input is a list of steps. A step is a call, as one of the three would make it, or damage: a word of the segment is overwritten, now or just
 * before the n-th load to come, of any word or of this one, which is in the middle of some call. So what is read twice is found to differ.
 *
 * Promised, whatever stands in the segment: no memory error; each call returns after a bounded number of loads and waits; it gives an answer or
 * Damaged; a task ends once at most, and no item of it is handed out twice; no row of the client's is lost. Time is counted, not measured, so an
 * input always does the same.
 *
 *   fuzz [libFuzzer's options]     Python's are those of `make fuzz`; see there */
#include "view.h"

#include <sanitizer/asan_interface.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

enum { ROWS = 8, SLOTS = 3, WORKERS = 2, UNITS = 8, ITEMS = 5, MOST_TASKS = 64, PAGE = 4096 };
#define MOST_LOADS 100000u /* of one call; the most expensive folds a slot's spans 31 times */
#define MOST_WAITS 256u
#define PATIENCE 64u /* waits after which the pool stops */

#pragma clang attribute push(__attribute__((no_sanitize("coverage"))), apply_to = function) /* only the module is covered, and its loads traced */

const char *__asan_default_options(void) { return "detect_leaks=0"; } /* the interpreter's are not ours */

/* ---- the input */

static const uint8_t *at, *end;
static uint8_t byte(void) { return at < end ? *at++ : 0; }
static uint16_t two(void) {
    uint16_t low = byte();
    return (uint16_t)(low | byte() << 8);
}
static uint64_t eight(void) {
    uint64_t n = 0;
    for (int k = 0; k < 8; k++) n = n << 8 | byte();
    return n;
}

/* ---- the pool */

struct worker {
    struct view view;
    PyObject *capsule;
    uint32_t generation, items;
    enum { IDLE, CLAIMED, IN_ITEMS, GONE } is;
};
static struct view client;
static struct worker workers[WORKERS];
static PyObject *capsule, *tasks, *inbox, *sink, *empty, *held, *slowest, *tally, *absolute, *small, *large, *pieces;
static unsigned char *control, *payload;
static size_t size;
static int published;                 /* tasks so far: record k is (sink, k) */
static uint32_t items_of[MOST_TASKS]; /* of a single task: 0 */
static uint32_t got[MOST_TASKS], ended[MOST_TASKS];

/* ---- checks */

static const char *trying = "";
#define HOLDS(condition, promise) do { if (!(condition)) broken(__LINE__, #condition, promise); } while (0)
static void broken(int line, const char *condition, const char *promise) {
    fprintf(stderr, "fuzz.c:%d: broken promise: %s\n  not true: %s\n  in: %s\n", line, promise, condition, trying);
    if (PyErr_Occurred()) PyErr_Print();
    abort();
}

static void check_client(void) {
    struct ipc_client *c = client.client;
    uint32_t busy = 0;
    for (Py_ssize_t row = 0; row < ROWS; row++) busy += PyList_GET_ITEM(tasks, row) != Py_None;
    HOLDS(busy == c->in_flight && busy + c->free_count + c->cooling_count == ROWS, "each row is free, cools, or has a task");
    HOLDS(c->view_units <= UNITS / 4, "no more is held than may be");
}

/* Of a task with this record an entry was handed out. */
static void check_record(PyObject *record, Py_ssize_t items) {
    long k = PyLong_AsLong(PyTuple_GetItem(record, 1));
    HOLDS(!PyErr_Occurred() && !ended[k], "a task ends once");
    got[k] += (uint32_t)items;
    ended[k] = 1;
    for (Py_ssize_t row = 0; row < ROWS; row++) ended[k] &= PyList_GET_ITEM(tasks, row) != record;
    HOLDS(got[k] <= items_of[k], "no item is handed out twice");
}

/* ---- damage */

static uint64_t loads, waits, now_ns;
static struct blow {
    enum { NEVER, AT_ANY, AT_THIS, AT_AGAIN } when; /* before the n-th load: of any word, of the word that is hit, of a word that this call has loaded before:
                                              that one is hit */
    uint64_t after, x;
    unsigned char *where;
    uint8_t how;
} blows[4];

static void strike(struct blow *b) {
    uint64_t old = 0, bits = b->x;
    int wide = b->how >> 7 && !((uintptr_t)b->where & 7);
    b->when = NEVER;
    memcpy(&old, b->where, wide ? 8 : 4);
    switch (b->how & 3) {
    case 0: bits = old ^ UINT64_C(1) << bits % 64; break;
    case 1: bits = old + (uint64_t)(int8_t)bits; break;
    case 2: bits = bits & 128 ? UINT64_MAX : (bits & 127) << (bits >> 8) % 64; break;
    }
    memcpy(b->where, &bits, wide ? 8 : 4);
}

/* Most blows hit what is a number to somebody: not the bytes of arguments, the times of spans, the lines between. */
static uint32_t numbers[1024], number_count;
static void list_numbers(void) {
    const struct { void *first; size_t most, stride, count; } parts[] = {
        {&client.s.header->tail, offsetof(struct ipc_header, done) + sizeof(uint64_t) - offsetof(struct ipc_header, tail), 0, 1},
        {(void *)client.s.ring, 8 * ROWS, 0, 1},
        {client.s.slot, offsetof(struct ipc_slot, spans) + 16, IPC_SLOT_SIZE, SLOTS},
        {client.s.row, IPC_ROW_SIZE - IPC_INLINE + 2 * IPC_FRAME, IPC_ROW_SIZE, ROWS},
        {(void *)client.s.owner, 8 * UNITS, 0, 1},
    };
    number_count = 0;
    for (uint32_t k = 0; k < sizeof(parts) / sizeof(*parts); k++)
        for (size_t n = 0; n < parts[k].count; n++)
            for (size_t byte = 0; byte < parts[k].most; byte += 4)
                numbers[number_count++] = (uint32_t)((unsigned char *)parts[k].first + n * parts[k].stride + byte - control);
}

static struct blow draw(void) {
    uint32_t place = two();
    struct blow b = {.where = control + numbers[place % number_count]};
    if (place % 16 == 15) b.where = control + place / 16 % (size / 4) * 4u;
    if (place % 16 == 14) b.where = payload + (size_t)(place / 16 % UNITS) * IPC_UNIT_SIZE + place / 16 / UNITS % 128 * 4u;
    b.how = byte();
    if ((b.how & 3) < 3) {
        b.x = two();
    } else if (b.how & 4) {
        b.x = eight();
    } else if (b.how & 8) { /* what stands elsewhere */
        memcpy(&b.x, control + two() % (size / 4 - 1) * 4u, 8);
    } else { /* a word that could be one */
        uint32_t row = byte() % ROWS, what = byte();
        b.how |= 128;
        b.where = (unsigned char *)&client.s.row[row].word;
        b.x = ipc_word((enum ipc_state)(what & 7), what >> 3 & 3, byte(), client.client->seq[row], what >> 5);
    }
    return b;
}

static unsigned char *seen; /* by word of the control segment: this call has loaded it */
static void loaded(const void *from) {
    const unsigned char *p = from;
    if (!control || p < control || p >= payload + UNITS * IPC_UNIT_SIZE) return; /* they stand side by side */
    HOLDS(++loads < MOST_LOADS, "a call does a bounded amount of work");
    int again = 0;
    if (p < control + size) again = seen[(p - control) / 4], seen[(p - control) / 4] = 1;
    for (uint32_t k = 0; k < 4; k++) {
        struct blow *b = &blows[k];
        if (b->when == NEVER || (b->when == AT_AGAIN && !again) || (b->when == AT_THIS && p != b->where) || b->after--) continue;
        if (b->when == AT_AGAIN) b->where = (unsigned char *)p;
        strike(b);
    }
}
/* Called before each load of the module, see the Makefile. */
void __sanitizer_cov_load1(uint8_t *p) { loaded(p); }
void __sanitizer_cov_load2(uint16_t *p) { loaded(p); }
void __sanitizer_cov_load4(uint32_t *p) { loaded(p); }
void __sanitizer_cov_load8(uint64_t *p) { loaded(p); }
void __sanitizer_cov_load16(__uint128_t *p) { loaded(p); }

/* ---- the world outside, in the place of the core's functions of these names */

int __wrap_ipc_futex_wait(_Atomic uint32_t *word, uint32_t seen, uint64_t timeout) {
    HOLDS(++waits < MOST_WAITS, "a call does not wait for ever");
    if (waits > PATIENCE) atomic_store(&client.s.header->stop, 1);
    for (uint32_t k = 0; k < 4; k++)
        if (blows[k].when) strike(&blows[k]);
    if (atomic_load(word) != seen) return 0;
    now_ns += timeout;
    return IPC_EMPTY;
}
uint64_t __wrap_ipc_now(void) { return now_ns += 1000; }
void __wrap_ipc_note_memory(struct ipc_worker *w) { (void)w; }

/* ---- calls */

typedef PyObject *(*function)(PyObject *, PyObject *const *, Py_ssize_t);
static function find(const char *name) {
    PyMethodDef *of[] = {segment_methods, client_methods, worker_methods, monitor_methods, tally_methods};
    for (uint32_t k = 0; k < sizeof(of) / sizeof(*of); k++)
        for (PyMethodDef *m = of[k]; m->ml_name; m++)
            if (!strcmp(m->ml_name, name)) return (function)(void (*)(void))m->ml_meth;
    trying = name;
    HOLDS(0, "there is such a function");
    return NULL;
}

/* The answer, or NULL if it was Damaged. `format` is that of a tuple, as in Py_BuildValue. */
static PyObject *ask(function f, const char *name, const char *format, ...) {
    va_list list;
    va_start(list, format);
    PyObject *args = Py_VaBuildValue(format, list);
    va_end(list);
    HOLDS(args, "arguments");
    trying = name;
    loads = waits = 0;
    memset(seen, 0, size / 4);
    PyObject *answer = f(NULL, ((PyTupleObject *)args)->ob_item, PyTuple_GET_SIZE(args));
    HOLDS(!answer == (PyErr_Occurred() != NULL), "an answer or an exception");
    HOLDS(answer || PyErr_ExceptionMatches(Damaged), "no other exception than Damaged");
    PyErr_Clear();
    Py_DECREF(args);
    check_client();
    return answer;
}
#define ASK(name, ...) __extension__({ \
    static function f;                 \
    if (!f) f = find(name);            \
    ask(f, name, __VA_ARGS__);         \
})
#define TELL(name, ...) Py_XDECREF(ASK(name, __VA_ARGS__))
static long as_long(PyObject *answer) { /* -1: Damaged, or no number */
    long n = answer && PyLong_Check(answer) ? PyLong_AsLong(answer) : -1;
    Py_XDECREF(answer);
    return n;
}

static void publish(uint8_t how) {
    if (published == MOST_TASKS) return;
    int items = how & 8 ? 1 + how % ITEMS : 0;
    PyObject *args = how & 1 ? large : how & 2 ? pieces : small, *record = Py_BuildValue("(Oi)", how & 128 ? empty : sink, published);
    int flags = (how & 2 ? IPC_PACKED : 0) | (how & 4 ? IPC_REPEATABLE : 0) | (how & 16 ? 3 : CALL_ONE) << 8;
    long row = as_long(ASK("publish", "(OOOIIIIOIIIIIK)", capsule, tasks, record, how >> 6 & 1, 1, UNITS - 1, 100, args, items, how & 16 ? 20 : 0, flags, 1,
                           how, (unsigned long long)(how & 32 ? 1000000 : 0)));
    Py_DECREF(record);
    HOLDS(row < ROWS && row >= IPC_TOO_LARGE && row != -1, "published, or the reason");
    if (row < 0) return;
    items_of[published] = (uint32_t)items;
    got[published] = ended[published] = 0;
    published++;
}

/* As a map gives away its plain items: records are made by the module, like this one. */
static void give(uint8_t how) {
    if (published > MOST_TASKS - 2) return;
    PyObject *items = PyObject_GetIter(empty), *queue = PyList_New(0), *given = Py_BuildValue("[i]", 0);
    PyObject *like = Py_BuildValue("(OiOOIIO)", sink, published, Py_None, small, CALL_ONE << 8, how & 16 ? 20 : 0, Py_None);
    TELL("give", "(OOOOIOIIIIIKOO)", capsule, tasks, queue, items, 2, like, 1, 1, UNITS - 1, 100, how, 0ULL, how & 1 ? Py_True : Py_False, given);
    for (long n = PyLong_AsLong(PyList_GET_ITEM(given, 0)); n; n--) items_of[published] = got[published] = ended[published] = 0, published++;
    Py_DECREF(items), Py_DECREF(queue), Py_DECREF(given), Py_DECREF(like);
}

static void fork_worker(uint32_t slot) {
    struct worker *w = &workers[slot];
    w->is = IDLE;
    w->view.args = NULL;
    w->view.kept = 0;
    w->view.pinned = 0;
    TELL("slot_begin", "(OII)", capsule, slot, w->generation);
    TELL("slot_forked", "(OII)", capsule, slot, 1000 + slot);
    TELL("open_worker", "(OII)", w->capsule, slot, w->generation);
    TELL("set_phase", "(OI)", w->capsule, IPC_IDLE);
}

static void die(uint32_t slot) {
    struct worker *w = &workers[slot];
    trying = "held arguments";
    PyList_SetSlice(held, 0, PyList_GET_SIZE(held), NULL); /* its memory goes with it */
    TELL("record_death", "(OIIIIIK)", capsule, slot, w->generation, 1000 + slot, 9, IPC_DIED, 5ULL);
    TELL("death", "(OII)", capsule, slot, w->generation);
    w->generation++;
    w->is = GONE;
    PyObject *may = ASK("may_fork", "(OII)", capsule, slot, w->generation);
    if (may == Py_True) fork_worker(slot);
    Py_XDECREF(may);
}

static void said(struct worker *w, long code, int next) {
    if (code == IPC_LOST || code == IPC_STOP) w->is = GONE;
    else if (code == 0) w->is = (unsigned)next;
}

static void work(uint8_t how) {
    uint32_t slot = how % WORKERS;
    struct worker *w = &workers[slot];
    PyObject *value = how & 16 ? large : small;
    how >>= 5;
    if (w->is == GONE) {
        die(slot);
    } else if (w->is == IDLE) {
        PyObject *task = how & 1 ? ASK("claim", "(OIIOII)", w->capsule, 0, how, absolute, 1, 1) : ASK("claim", "(OII)", w->capsule, 0, how);
        int whole = task && PyTuple_Check(task) && PyTuple_GET_SIZE(task) == 6;
        w->items = whole ? (uint32_t)PyLong_AsUnsignedLong(PyTuple_GET_ITEM(task, 3)) : 0; /* else it was run, and is to be completed */
        w->is = task == Py_None || task == Py_True ? IDLE : !task || PyLong_Check(task) ? GONE : CLAIMED;
        Py_XDECREF(task);
    } else if (how == 0 || how == 1) {
        PyObject *args = how ? ASK("arguments", "(O)", w->capsule) : ASK("claimed_function", "(O)", w->capsule);
        HOLDS(!args || PyObject_Size(args) <= UNITS * (Py_ssize_t)IPC_UNIT_SIZE, "arguments lie inside their room");
        if (args && Py_IS_TYPE(args, Run) && w->is == CLAIMED && w->view.args && PyList_GET_SIZE(held) < 4) PyList_Append(held, args);
        Py_XDECREF(args);
    } else if (w->is == CLAIMED && w->items) {
        said(w, as_long(ASK("begin_items", "(O)", w->capsule)), IN_ITEMS);
    } else if (w->is == CLAIMED) {
        said(w, as_long(ASK("complete", "(OIO)", w->capsule, how & 2 ? 0 : 1, value)), IDLE);
    } else if (how & 4) {
        PyObject *batch = PyList_New(0);
        for (uint32_t k = 0; k < w->items && k <= IPC_MAX_ITEMS; k++) PyList_Append(batch, PyTuple_GetItem(empty, k % 2));
        said(w, as_long(ASK("run_items", "(OOOOOO)", w->capsule, absolute, Py_False, batch, Py_None, how & 1 ? Py_True : Py_False)), IDLE);
        Py_DECREF(batch);
    } else {
        said(w, as_long(ASK("commit", "(OIO)", w->capsule, how & 1 ? 0 : IPC_PACKED_KIND, value)), IN_ITEMS);
        if (w->is == IN_ITEMS && ipc_word_state(w->view.worker->word) == IPC_DONE) w->is = IDLE;
    }
}

static void collect(uint8_t how) {
    PyObject *before = PyList_GetSlice(tasks, 0, ROWS), *values = PyList_New(0);
    TELL("collect", "(OOOIOOO)", capsule, tasks, inbox, 1 + how % 8, sink, inbox, how & 64 ? values : Py_None);
    for (Py_ssize_t k = 0; k < PyList_GET_SIZE(inbox); k++) {
        PyObject *entry = PyList_GET_ITEM(inbox, k), *data = PyTuple_GET_ITEM(entry, 2);
        Py_ssize_t items = PyTuple_Check(data) ? PyTuple_GET_SIZE(data) : PyList_Check(data) ? PyList_GET_SIZE(data) / 2 : 0;
        check_record(PyTuple_GET_ITEM(entry, 0), items);
        if (PyObject_CheckBuffer(data)) HOLDS(PyObject_Size(data) <= UNITS * (Py_ssize_t)IPC_UNIT_SIZE, "a result lies inside its room");
        if (Py_IS_TYPE(data, Run) && how & 128) PyList_Append(held, data);
    }
    PyList_SetSlice(inbox, 0, PyList_GET_SIZE(inbox), NULL);
    Py_ssize_t plain = 0; /* those that have ended without an entry */
    for (Py_ssize_t row = 0; row < ROWS; row++) {
        PyObject *record = PyList_GET_ITEM(before, row);
        if (record == Py_None || PyList_GET_ITEM(tasks, row) == record || ended[PyLong_AsLong(PyTuple_GET_ITEM(record, 1))]) continue;
        check_record(record, 0);
        plain++;
    }
    HOLDS(plain == PyList_GET_SIZE(values), "a value for each");
    Py_DECREF(before), Py_DECREF(values);
}

static void settle(void) {
    for (uint32_t n = 0;; n++) {
        HOLDS(n <= 64, "deaths come to an end");
        PyObject *dead = ASK("next_dead", "(O)", capsule);
        uint32_t slot, reaped;
        int found = dead && dead != Py_None && PyArg_ParseTuple(dead, "II", &slot, &reaped);
        Py_XDECREF(dead);
        if (!found) return;
        PyObject *whole = ASK("settle", "(OOIIO)", capsule, tasks, slot, reaped, inbox);
        for (Py_ssize_t k = 0; k < PyList_GET_SIZE(inbox); k++) {
            PyObject *entry = PyList_GET_ITEM(inbox, k);
            check_record(PyTuple_GET_ITEM(entry, 0), PyList_GET_SIZE(PyTuple_GET_ITEM(entry, 5)) / 2);
        }
        PyList_SetSlice(inbox, 0, PyList_GET_SIZE(inbox), NULL);
        if (!whole) return;
        Py_DECREF(whole);
        TELL("settled", "(OII)", capsule, slot, reaped);
    }
}

static void cancel(uint32_t row) {
    PyObject *record = Py_NewRef(PyList_GET_ITEM(tasks, row)), *gone = ASK("cancel", "(OOI)", capsule, tasks, row);
    if (gone == Py_True) {
        HOLDS(record != Py_None, "only a task is cancelled");
        check_record(record, 0);
    }
    Py_XDECREF(gone);
    Py_DECREF(record);
}

static void condemn(uint32_t row) {
    PyObject *word = ASK("row_word", "(OI)", capsule, row);
    if (!word) return;
    TELL("condemn", "(OIO)", capsule, row, PyTuple_GET_ITEM(word, 4));
    Py_DECREF(word);
}

/* The monitor's looks, and those of whoever wants to know. */
static void look(uint32_t slot) {
    TELL("deadlines", "(OO)", capsule, slot & 1 ? Py_True : Py_False);
    TELL("running", "(OI)", capsule, slot);
    TELL("limited", "(O)", capsule);
    TELL("busy", "(O)", capsule);
    TELL("counters", "(O)", capsule);
    TELL("slot_info", "(OI)", capsule, slot);
    TELL("slot_times", "(OIK)", capsule, slot, (unsigned long long)now_ns);
    TELL("slot_spans", "(OIK)", capsule, slot, (unsigned long long)now_ns);
    TELL("leaver", "(O)", capsule);
    TELL("renewed", "(O)", capsule);
}

static void step(void) {
    uint8_t what = byte(), how = byte();
    switch (what % 16) {
    case 0: publish(how); break;
    case 1: how & 32 ? give(how) : publish(how); break;
    case 2: case 3: case 4: work(how); break;
    case 5: collect(how); break;
    case 6: settle(); break;
    case 7: die(how % WORKERS); break;
    case 8: look(how % SLOTS); break;
    case 9: how & 8 ? condemn(how % ROWS) : cancel(how % ROWS); break;
    case 10:
        TELL("idle_scan", "(O)", capsule);
        if (how & 1) TELL("wait", "(OII)", capsule, 0, how >> 7);
        if (how & 2) TELL("listen", "(O)", capsule);
        if (how & 4) TELL("heard", "(O)", capsule);
        if (how & 8) TELL("flush", "(O)", capsule);
        if (how & 16) TELL("trim", "(O)", capsule);
        if (how & 32) TELL("monitor_must_look", "(O)", capsule);
        break;
    case 11:
        if (how & 1) PyList_SetSlice(held, 0, 1, NULL);
        if (how & 2) TELL("store_function", "(OO)", capsule, small);
        if (how & 4) TELL("free_function", "(OII)", capsule, UNITS - 1, 100);
        if (how & 8) TELL("retire_worker", "(OII)", capsule, how % WORKERS, workers[how % WORKERS].generation + 1);
        if (how & 16) TELL("next_leaver", "(O)", capsule);
        if (how & 32) TELL("kept", "(O)", workers[how % WORKERS].capsule);
        if (how & 64) TELL("book", "(OKK)", workers[how % WORKERS].capsule, (unsigned long long)now_ns - 1000, (unsigned long long)now_ns);
        break;
    case 12: now_ns += UINT64_C(1) << how % 48; break;
    default: {
        struct blow b = draw();
        if (what % 16 == 13) strike(&b);
        else b.when = how & 64 ? AT_AGAIN : how & 128 ? AT_THIS : AT_ANY, b.after = how & 63, blows[what >> 4 & 3] = b;
    }
    }
}

/* ---- one input */

static void attach(struct view *v) {
    struct ipc_client *c = v->client;
    struct ipc_worker *w = v->worker;
    struct ipc_watch *watch = v->watch;
    PyObject *counts = v->counts;
    struct tally *tally = v->tally;
    memset(v, 0, sizeof(*v));
    v->control = control, v->payload = payload;
    v->client = c, v->worker = w, v->watch = watch, v->counts = counts, v->tally = tally;
    HOLDS(ipc_segment_attach(&v->s, control, size, payload) == 0, "a fresh segment can be attached");
}

/* Tasks in each state: what most inputs begin with. */
static void scene(void) {
    static const uint8_t steps[] = {0, 0, 0, 1, 0, 8 + 2, 0, 8 + 16 + 3, 0, 32, 0, 64, 2, 0, 2, 1, 2, 2 << 5, 2, 0, 2, 1 | 4 << 5 | 16, 2, 2 << 5, 2, 2 << 5};
    const uint8_t *after = at, *last = end;
    for (at = steps, end = steps + sizeof(steps); at < end;) step();
    at = after, end = last;
}

int LLVMFuzzerInitialize(int *argc, char ***argv) {
    (void)argc, (void)argv;
    PyPreConfig before;
    PyConfig config;
    PyPreConfig_InitIsolatedConfig(&before);
    before.allocator = PYMEM_ALLOCATOR_MALLOC; /* so that ASan sees all objects */
    HOLDS(!PyStatus_Exception(Py_PreInitialize(&before)), "Python");
    PyConfig_InitIsolatedConfig(&config);
    config.site_import = 0;
    PyConfig_SetBytesString(&config, &config.home, PYTHON_HOME);
    HOLDS(!PyStatus_Exception(Py_InitializeFromConfig(&config)) && make_types() == 0, "Python");
    static char bytes[IPC_UNIT_SIZE + 1] = "large";
    small = PyBytes_FromString("\x80\x05K\x07."); /* a pickle, so that it may pass for a simple value */
    large = PyBytes_FromStringAndSize(bytes, sizeof(bytes));
    pieces = Py_BuildValue("(OO)", small, small);
    sink = PyList_New(0), inbox = PyList_New(0), held = PyList_New(0), slowest = PyList_New(0), tasks = PyList_New(ROWS);
    empty = Py_BuildValue("(ii)", -1, -70000);
    absolute = PyObject_GetAttrString(PyImport_ImportModule("builtins"), "abs");
    tally = find("tally")(NULL, &slowest, 1);
    size = ipc_segment_size(ROWS, SLOTS, UNITS);
    seen = calloc(size / 4, 1);
    size_t pages = (size + PAGE - 1) / PAGE * PAGE, room = UNITS * (size_t)IPC_UNIT_SIZE;
    unsigned char *all = mmap(NULL, pages + room + 3 * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    control = mmap(all + PAGE, pages, PROT_READ | PROT_WRITE, MAP_FIXED | MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    payload = mmap(all + PAGE + pages + PAGE, room, PROT_READ | PROT_WRITE, MAP_FIXED | MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    ASAN_POISON_MEMORY_REGION(control + size, pages - size);
    capsule = PyCapsule_New(&client, CAPSULE, NULL);
    for (uint32_t k = 0; k < WORKERS; k++) workers[k].capsule = PyCapsule_New(&workers[k].view, CAPSULE, NULL);
    return 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t length) {
    at = data, end = data + length;
    memset(blows, 0, sizeof(blows));
    memset(payload, 0, UNITS * IPC_UNIT_SIZE);
    now_ns = UINT64_C(1) << 40;
    published = 0;
    for (Py_ssize_t row = 0; row < ROWS; row++) PyList_SetItem(tasks, row, Py_NewRef(Py_None));
    HOLDS(ipc_segment_create(control, size, ROWS, SLOTS, UNITS, 2) == 0, "a segment can be created");
    attach(&client);
    if (!number_count) list_numbers();
    loads = 0;
    client.client = client.client ? client.client : calloc(1, sizeof(*client.client));
    ipc_client_init(client.client, &client.s);
    if (client.watch) memset(client.watch, 0, sizeof(*client.watch));
    TELL("count_into", "(OO)", capsule, tally);
    for (uint32_t k = 0; k < WORKERS; k++) {
        attach(&workers[k].view);
        workers[k].generation = 0;
        fork_worker(k);
    }
    if (byte() & 3) scene();
    while (at < end) step();
    trying = "letting go of what is held";
    loads = 0;
    PyList_SetSlice(held, 0, PyList_GET_SIZE(held), NULL);
    PyList_SetSlice(slowest, 0, PyList_GET_SIZE(slowest), NULL);
    return 0;
}

#pragma clang attribute pop
