/* The protocol as plain C over a mapped segment: no Python, no allocation, no lock. Roles: one client, one monitor, many workers.
 * Return codes: >= 0 as said at each function, < 0 one of enum ipc_code. Times are CLOCK_MONOTONIC nanoseconds. */
#ifndef IPC_CORE_H
#define IPC_CORE_H

#include "layout.h"

enum ipc_code {
    IPC_EMPTY = -1,     /* nothing to take */
    IPC_FULL = -2,      /* no row is free */
    IPC_NO_ROOM = -3,   /* no run of payload units is free now */
    IPC_TOO_LARGE = -4, /* would not fit into an empty payload segment */
    IPC_LOST = -5,      /* the row was condemned: drop everything, exit */
    IPC_STOP = -6,      /* the pool stops, or this worker is to leave */
    IPC_DAMAGED = -7,   /* a number read from the segment is impossible */
    IPC_SIGNAL = -8     /* a signal ended the wait */
};

/* Failpoints: compiled in for the C tests only, so that a death can be placed between any two steps. */
#ifdef IPC_FAILPOINTS
extern void (*ipc_failpoint)(const char *step);
#define IPC_POINT(step) do { if (ipc_failpoint) ipc_failpoint(step); } while (0)
#else
#define IPC_POINT(step) ((void)0)
#endif

/* A process's view. Sizes are private copies taken at attach and checked: later damage to the header cannot move a pointer. */
struct ipc_segment {
    struct ipc_header *header;
    _Atomic uint64_t *ring;
    struct ipc_slot *slot;
    struct ipc_row *row;
    _Atomic uint64_t *owner;
    unsigned char *payload;
    uint32_t rows, slots, units, cores;
    uint64_t ring_mask, created;
    int wire;                /* this process's end of the wire (a socket), -1: none */
    uint64_t wire_device, wire_file; /* which file that is */
};

/* ---- segment.c */
size_t ipc_segment_size(uint32_t rows, uint32_t slots, uint32_t units);
int ipc_segment_create(void *base, size_t size, uint32_t rows, uint32_t slots, uint32_t units, uint32_t cores);
int ipc_segment_attach(struct ipc_segment *s, void *base, size_t size, void *payload);

/* ---- doorbell.c */
static inline void ipc_pause(void) {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("isb"); /* yield is a no-op on most cores */
#endif
}
uint64_t ipc_now(void);
int ipc_futex_wait(_Atomic uint32_t *word, uint32_t seen, uint64_t timeout_ns); /* 0 woken or changed, IPC_EMPTY timeout, IPC_SIGNAL */
unsigned ipc_count_bits(const _Atomic uint64_t *words, uint32_t bits);
int ipc_wake_slot(struct ipc_segment *s, uint32_t slot);         /* 1 if its sleeper bit was ours to take */
unsigned ipc_wake_workers(struct ipc_segment *s, uint64_t most); /* how many were woken */
void ipc_ring_slot(struct ipc_segment *s, uint32_t slot);        /* unconditional */
void ipc_ring_client(struct ipc_segment *s);                     /* unconditional */
int ipc_set_wire(struct ipc_segment *s, int fd);                 /* what rings of this process are sent through; 0, or -1 with errno */

/* ---- units.c */
struct ipc_piece { const void *data; uint64_t length; };
static inline uint64_t ipc_units_for(uint64_t length) { return (length + IPC_UNIT_SIZE - 1) / IPC_UNIT_SIZE; }
static inline uint64_t ipc_align(uint64_t n) { return (n + IPC_ALIGN - 1) & ~(uint64_t)(IPC_ALIGN - 1); }
uint64_t ipc_pieces_length(const struct ipc_piece *piece, uint32_t count); /* of all, each at a multiple of IPC_ALIGN */
void ipc_pieces_copy(unsigned char *to, const struct ipc_piece *piece, uint32_t count);
int64_t ipc_units_take(struct ipc_segment *s, uint64_t first, uint64_t end, uint64_t count, uint64_t owner); /* first unit of a run in [first,
                                                                                                                  end), IPC_NO_ROOM, IPC_TOO_LARGE */
int64_t ipc_units_take_result(struct ipc_segment *s, uint64_t count, uint64_t owner); /* the same, where results go */
int ipc_units_could_fit(struct ipc_segment *s, uint64_t count); /* 0: not even when all other results are drained */
void ipc_units_give(struct ipc_segment *s, uint32_t unit, uint32_t count, uint64_t from, uint64_t to); /* to 0: free; not `from`'s: left alone */
static inline void ipc_units_free(struct ipc_segment *s, uint32_t unit, uint32_t count, uint64_t owner) { ipc_units_give(s, unit, count, owner, 0); }
void ipc_units_free_all(struct ipc_segment *s, uint64_t owner);
void ipc_units_free_kept(struct ipc_segment *s, uint32_t slot, uint32_t reaped); /* what generations < reaped of the slot have kept */
void ipc_units_free_but(struct ipc_segment *s, uint64_t owner); /* all that belongs to somebody else */
uint32_t ipc_units_used(struct ipc_segment *s);
uint32_t ipc_units_of(struct ipc_segment *s, uint64_t owner); /* of one of the three IPC_OWNER_... */
uint32_t ipc_units_trim(struct ipc_segment *s, uint32_t first, uint32_t end); /* punch out the free units in [first, end); the end of the others */

/* ---- insight.c: where the time goes. Hints: a kill in the middle of a step may leave them off by a task. */
void ipc_spend(struct ipc_spans *spans, uint64_t from, uint64_t to); /* busy from .. to, in ns since the segment was created */
struct ipc_span { uint64_t from, to; _Atomic uint64_t *busy; }; /* one of a slot's, in CLOCK_MONOTONIC; to 0: none */
void ipc_book(struct ipc_segment *s, uint32_t slot, uint64_t from, uint64_t to, struct ipc_span *now); /* the slot's worker was busy; only it calls
                                                                                                  this. *now: the span that `to` stands in */
void ipc_book_death(struct ipc_segment *s, uint32_t slot, uint64_t now);         /* for a dead worker: the task that it was in */
void ipc_book_usage(struct ipc_segment *s, uint32_t slot, uint64_t cpu_ns, uint64_t peak);
void ipc_cpu_time(uint64_t *user_ns, uint64_t *system_ns); /* ours, with that of the children we have waited for */
/* Before the death record: what the item took in which the worker died, whose CPU times and memory at its peak these are. */
void ipc_book_spent(struct ipc_segment *s, uint32_t slot, uint32_t generation, uint64_t user_ns, uint64_t system_ns, uint64_t resident);
enum ipc_doing { IPC_REPLACED, IPC_IS_STARTING, IPC_IS_IDLE, IPC_IS_BUSY, IPC_IS_WAITING, IPC_IS_LEAVING };
struct ipc_times { uint64_t start_ns, busy_ns, wait_ns; enum ipc_doing doing; };
void ipc_slot_times(struct ipc_segment *s, uint32_t slot, uint64_t now, struct ipc_times *out); /* until now, what it is in the middle of included */
void ipc_slot_spans(struct ipc_segment *s, uint32_t slot, uint64_t now, struct ipc_spans *out);
#ifndef IPC_LOOK_NS
#define IPC_LOOK_NS 1000000u /* an item that took so long can pay for a look at its CPU time and memory */
#endif
uint64_t ipc_resident(uint64_t *peak); /* our memory now, in bytes; but our peak, if that has risen above *peak, which is set to it */

/* What is counted of one function, in the client's own memory. */
#define IPC_TOOK_SHIFT 7 /* of the brief of a run time, so there are 8 classes for each power of two */
struct ipc_tally {
    uint64_t count, failed, total_ns, shortest_ns, longest_ns, user_ns, system_ns, resident; /* CPU time: of those that were looked at */
    uint64_t took[(1u << 16) >> IPC_TOOK_SHIFT];
};
void ipc_count(struct ipc_tally *t, int failed, struct ipc_spent spent);
uint64_t ipc_quantile(const struct ipc_tally *t, double q); /* ns, to 6 % */

/* ---- client.c */
struct ipc_task { /* what the client publishes and the worker reads */
    uint64_t since; /* CLOCK_MONOTONIC ns from which it waits for a worker; 0: from now on */
    uint32_t fn, fn_generation, fn_unit, fn_len;
    const struct ipc_piece *piece; /* the client's: what to copy */
    uint32_t pieces;
    uint32_t args_unit, args_units; /* the worker's: where it is; 0 units: inline */
    unsigned char *args;
    uint64_t args_len;
    uint32_t items, timeout_ms;
    uint16_t flags, attempt;
    uint64_t memory_limit;
};
struct ipc_result {
    const unsigned char *data;
    uint64_t length;
    uint32_t kind, slot, generation, unit, units; /* units 0: inline */
    uint64_t started; /* these three as in the row */
    int32_t pid;
    struct ipc_spent spent;
};
struct ipc_settled { uint32_t row, state, item, generation; };

struct ipc_client {
    struct ipc_segment *s;
    uint64_t tail, judged_at, judged_head;
    uint32_t free_count, cooling_count, in_flight, armed, deaths_seen, args_units, view_units;
    uint32_t top_args, top_result;        /* units from there on, in their half, have not been used since the last trim */
    uint32_t free_row[IPC_MAX_ROWS], cooling[IPC_MAX_ROWS], seq[IPC_MAX_ROWS], items[IPC_MAX_ROWS], drained[IPC_MAX_ROWS];
    int wanting;                          /* the last publish found no row */
    _Atomic uint32_t wanted;              /* so many publishes have found no row; a thread that sleeps reads it without the lock */
    int too_early;                        /* the last flush put a wake off because it could not judge yet */
    int shortened;                        /* shortest_ms has sunk since the monitor was last told to look */
    uint64_t position[IPC_MAX_ROWS];      /* the ring position of the row's last entry */
    uint64_t since[IPC_MAX_ROWS];         /* when the row's task began to wait for a worker */
    uint64_t published[IPC_MAX_ROWS];     /* the READY word of the row's use, 0 = not in flight */
    uint8_t deadline[IPC_MAX_ROWS];       /* 1: counts in armed */
    uint32_t args_ref[IPC_MAX_ROWS][2];   /* trusted copy: unit, count */
    uint64_t swept_summary;
    uint64_t swept[IPC_MAX_ROWS / 64];    /* done bits taken and not yet handed out */
    uint64_t suspect[IPC_MAX_ROWS];       /* the row's READY word if the last idle scan saw it DONE without a hint */
    uint64_t idle_head, healed;
};
void ipc_client_init(struct ipc_client *c, struct ipc_segment *s);
int ipc_publish(struct ipc_client *c, const struct ipc_task *task); /* row number, IPC_FULL, IPC_NO_ROOM, IPC_TOO_LARGE */
unsigned ipc_flush_wakes(struct ipc_client *c);
int ipc_next_done(struct ipc_client *c);                            /* row number or IPC_EMPTY; DONE, or a chunk that offers items */
void ipc_not_taken(struct ipc_client *c, uint32_t row);              /* give that row again */
int ipc_offers(struct ipc_client *c, uint32_t row);                 /* items of a chunk in STORING that may be drained now, 0 = it is DONE */
void ipc_drained(struct ipc_client *c, uint32_t row, uint32_t items);
int ipc_read_result(struct ipc_client *c, uint32_t row, struct ipc_result *result); /* 0, IPC_DAMAGED */
int ipc_adopt(struct ipc_client *c, uint32_t row, struct ipc_result *result); /* 1: the run is a view now, the client's to free; 0: too many are */
void ipc_dropped(struct ipc_client *c, uint32_t unit, uint32_t count);                /* it is held no more */
void ipc_release_row(struct ipc_client *c, uint32_t row);
int ipc_cancel(struct ipc_client *c, uint32_t row);                 /* 1 cancelled, 0 too late */
int ipc_condemn(struct ipc_segment *s, uint32_t row, uint64_t word);/* 1 condemned, 0 the word has changed */
int ipc_next_dead(struct ipc_client *c, uint32_t *slot, uint32_t *reaped); /* 1 found, IPC_EMPTY */
uint32_t ipc_settle(struct ipc_client *c, uint32_t slot, uint32_t reaped, struct ipc_settled *out, uint32_t most);
void ipc_settled(struct ipc_client *c, uint32_t slot, uint32_t reaped);
/* Waiting, in parts, for clients with threads: flush and look with the lock; spin and sleep without, on the copy that the look has made. */
struct ipc_look { uint64_t cooling; const _Atomic uint32_t *wanted_now; uint32_t wanted, deaths_seen; uint8_t swept, too_early, wanting; };
void ipc_client_look(struct ipc_client *c, struct ipc_look *look);
int ipc_client_spin(struct ipc_segment *s, const struct ipc_look *look, uint64_t spin_ns); /* 1: there is something to do */
int ipc_client_sleep(struct ipc_segment *s, const struct ipc_look *look, uint64_t *timeout_ns); /* 0 look again, IPC_SIGNAL, IPC_EMPTY: flush, look and
                                                                                                   sleep again while timeout_ns is not 0 */
int ipc_client_wait(struct ipc_client *c, uint64_t spin_ns, uint64_t timeout_ns); /* all of it: 0 look again, IPC_EMPTY timeout, IPC_SIGNAL */
/* A client that sleeps in an event loop, in two halves: the loop hears the wire. */
int ipc_client_listen(struct ipc_client *c);   /* 1: look again at once, 0: it sleeps */
void ipc_client_heard(struct ipc_segment *s);  /* it is awake, or about to sleep on its bell */
int ipc_idle_scan(struct ipc_client *c);      /* after a timeout: heal, and say how many were healed; IPC_DAMAGED */
void ipc_trim(struct ipc_client *c);          /* with nothing in flight: give the memory of free payload units back */

/* ---- worker.c */
struct ipc_worker {
    struct ipc_segment *s;
    uint64_t word, used;  /* current row word; bytes of results in the area */
    uint64_t started;     /* of the current item; moved on by what it waited for room */
    uint64_t ended;       /* of the last task, if the next one was claimed at once, else 0 */
    uint64_t peak;        /* bytes of memory, as last looked at */
    uint64_t looked;      /* when it last looked at its CPU time, which was this: */
    uint64_t user_ns, system_ns;
    int32_t pid;
    struct ipc_span span; /* the one that it was in last: nobody else folds them */
    uint32_t slot, generation, row;
    uint32_t items, timeout_ms, flags, args_unit, args_units, attempt;
    unsigned char *area;  /* where results of this row go: the row's body or a payload run */
    uint64_t room;
    uint64_t memory_limit;
    uint64_t dirtied, dirtied_faults, dirtied_anonymous; /* when it last looked at what is its own alone; 0: never */
    int offering;         /* its committed items are the client's to read */
    int keep;             /* something holds the arguments: before the row is done they become ours */
    int worked;           /* it has claimed since it last was the guard for nothing */
};
void ipc_worker_init(struct ipc_worker *w, struct ipc_segment *s, uint32_t slot, uint32_t generation);
void ipc_set_phase(struct ipc_worker *w, uint32_t phase);
int ipc_claim(struct ipc_worker *w);  /* 0 claimed, IPC_EMPTY, IPC_STOP */
int ipc_worker_wait(struct ipc_worker *w, uint64_t spin_ns, uint64_t timeout_ns); /* 0 look again, IPC_EMPTY, IPC_SIGNAL */
int ipc_claimed(struct ipc_worker *w, struct ipc_task *task); /* 0, IPC_DAMAGED */
int ipc_begin_items(struct ipc_worker *w);                    /* 0, IPC_LOST: chunk decoded, item 1 starts */
int ipc_commit(struct ipc_worker *w, uint32_t kind, const struct ipc_piece *piece, uint32_t pieces); /* 0, IPC_LOST, IPC_STOP, IPC_TOO_LARGE */
int ipc_complete(struct ipc_worker *w, uint32_t kind, const struct ipc_piece *piece, uint32_t pieces); /* the same, for a single task */

void ipc_progress(struct ipc_worker *w, double x);            /* what the running item says of itself, until the next one starts; NaN: nothing */

/* ---- memory.c: bytes, as the kernel counts them; 0, or IPC_EMPTY if it does not say (no such process, no file descriptor left) */
struct ipc_memory { uint64_t anonymous, shared; }; /* resident; files and shared memory are `shared` */
int ipc_memory_of(uint32_t pid, struct ipc_memory *memory); /* pid 0: ourselves */
int ipc_dirtied_of(uint32_t pid, uint64_t *bytes); /* private and written to: what a fork has inherited and not written to does not count. Slow */
void ipc_note_memory(struct ipc_worker *w);        /* write the slot's line, for a task with a limit that is about to start */

/* ---- monitor.c */
struct ipc_limited { /* a RUNNING task with a memory limit, and its worker's memory at its start */
    uint32_t slot, generation, row;
    uint64_t word, limit, started, anonymous, dirtied, faults, peak; /* started 0: the worker has not said yet, the rest means nothing */
};
struct ipc_running { uint32_t slot, generation, row, timeout_ms; uint64_t word, started, progress; };
struct ipc_watch { uint64_t word[IPC_MAX_SLOTS], seen[IPC_MAX_SLOTS]; }; /* first sight of a claim whose slot line is not written yet */
int ipc_may_fork(struct ipc_segment *s, uint32_t slot, uint32_t generation); /* 0: its death log is full, wait for the client */
void ipc_slot_begin(struct ipc_segment *s, uint32_t slot, uint32_t generation);
void ipc_slot_forked(struct ipc_segment *s, uint32_t slot, int32_t pid);
void ipc_record_death(struct ipc_segment *s, uint32_t slot, const struct ipc_death *death);
int ipc_claimed_by(struct ipc_segment *s, uint32_t slot, struct ipc_running *out); /* 1 if a row names this slot: RUNNING, STORING or CONDEMNED */
int ipc_running(struct ipc_segment *s, uint32_t slot, struct ipc_running *out); /* the same without STORING, which has no deadline */
uint64_t ipc_deadlines(struct ipc_segment *s, struct ipc_watch *watch, uint64_t now, struct ipc_running *expired, uint32_t most,
                       uint32_t *count); /* the next moment worth looking, UINT64_MAX = none */
uint32_t ipc_limited(struct ipc_segment *s, struct ipc_limited *out); /* how many; out: room for all slots */
/* Workers of the slot below that generation leave after their task; one at a time, until ipc_next_leaver. */
void ipc_retire(struct ipc_segment *s, uint32_t slot, uint32_t generation);
uint32_t ipc_leaver(struct ipc_segment *s); /* as in the header: may be any number */
void ipc_next_leaver(struct ipc_segment *s);
void ipc_set_renewed(struct ipc_segment *s, uint32_t count);
uint32_t ipc_renewed(struct ipc_segment *s); /* restarts that are complete */
void ipc_stop_workers(struct ipc_segment *s);

#endif
