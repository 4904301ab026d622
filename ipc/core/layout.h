/* The bytes of the control segment, described here and nowhere else. DESIGN.md section 2 says who writes which word in which order.
 *
 *  offset      0  header lines: identity · tail · head · done_summary · client bell · control · sleepers · spinners · done map
 *         ring    one u64 a possible entry, a power of two >= rows:      seq:32 (high) · row:32 (low)
 *         slots   IPC_SLOT_SIZE each: worker line · bell line · monitor line · spans
 *         rows    IPC_ROW_SIZE each: row word, task, policy, result, then IPC_INLINE bytes for arguments and later for results
 *         owners  one u64 a payload unit (the units themselves are in the payload segment)
 */
#ifndef IPC_LAYOUT_H
#define IPC_LAYOUT_H

#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>

#define IPC_MAGIC UINT64_C(0x676573206c6f6f70) /* "pool seg" in memory */
#define IPC_LAYOUT_VERSION 1u
#define IPC_LINE 128u /* two cache lines: the adjacent-line prefetcher pairs them, and it is Apple's line size */

#define IPC_MAX_ROWS 4096u /* 64 words of 64 done bits, so that one summary word covers them */
#define IPC_MAX_SLOTS 512u
#define IPC_MAX_ITEMS 4094u
#define IPC_ROW_SIZE 512u
#define IPC_SLOT_SIZE 1920u
#define IPC_UNIT_SIZE 65536u
#define IPC_NO_UNIT UINT32_MAX
#define IPC_NO_PROGRESS UINT64_MAX /* a NaN, and no number */
#define IPC_DEATHS 4u /* deaths of one slot that may wait to be settled; the monitor forks no further generation before */

/* Row word: { state, slot, generation, seq, item }, one word, so that every change is one compare-and-swap. */
#define IPC_STATE_BITS 3
#define IPC_SLOT_BITS 9
#define IPC_GENERATION_BITS 16
#define IPC_SEQ_BITS 24
#define IPC_ITEM_BITS 12
#define IPC_SLOT_SHIFT IPC_STATE_BITS
#define IPC_GENERATION_SHIFT (IPC_SLOT_SHIFT + IPC_SLOT_BITS)
#define IPC_SEQ_SHIFT (IPC_GENERATION_SHIFT + IPC_GENERATION_BITS)
#define IPC_ITEM_SHIFT (IPC_SEQ_SHIFT + IPC_SEQ_BITS)
#define IPC_MASK(bits) ((UINT64_C(1) << (bits)) - 1)

enum ipc_state { IPC_FREE = 0, IPC_READY = 1, IPC_RUNNING = 2, IPC_STORING = 3, IPC_DONE = 4, IPC_CONDEMNED = 5 };

static inline uint64_t ipc_word(enum ipc_state state, uint32_t slot, uint32_t generation, uint32_t seq, uint32_t item) {
    return (uint64_t)state | ((uint64_t)slot & IPC_MASK(IPC_SLOT_BITS)) << IPC_SLOT_SHIFT |
           ((uint64_t)generation & IPC_MASK(IPC_GENERATION_BITS)) << IPC_GENERATION_SHIFT |
           ((uint64_t)seq & IPC_MASK(IPC_SEQ_BITS)) << IPC_SEQ_SHIFT | ((uint64_t)item & IPC_MASK(IPC_ITEM_BITS)) << IPC_ITEM_SHIFT;
}
static inline uint32_t ipc_word_state(uint64_t w) { return (uint32_t)(w & IPC_MASK(IPC_STATE_BITS)); }
static inline uint32_t ipc_word_slot(uint64_t w) { return (uint32_t)(w >> IPC_SLOT_SHIFT & IPC_MASK(IPC_SLOT_BITS)); }
static inline uint32_t ipc_word_generation(uint64_t w) { return (uint32_t)(w >> IPC_GENERATION_SHIFT & IPC_MASK(IPC_GENERATION_BITS)); }
static inline uint32_t ipc_word_seq(uint64_t w) { return (uint32_t)(w >> IPC_SEQ_SHIFT & IPC_MASK(IPC_SEQ_BITS)); }
static inline uint32_t ipc_word_item(uint64_t w) { return (uint32_t)(w >> IPC_ITEM_SHIFT & IPC_MASK(IPC_ITEM_BITS)); }
static inline uint64_t ipc_word_with_state(uint64_t w, enum ipc_state state) { return (w & ~IPC_MASK(IPC_STATE_BITS)) | (uint64_t)state; }

struct ipc_header {
    /* Identity: written once at creation, `layout` last (release), so that a reader can never attach to half a segment. */
    uint64_t magic;
    uint64_t size;
    uint32_t rows, slots, units, cores;
    _Atomic uint32_t layout;
    uint64_t created; /* CLOCK_MONOTONIC ns: spans are counted from here */
    /* tail: client only */
    _Alignas(IPC_LINE) _Atomic uint64_t tail;
    /* head: anybody, h -> h+1 */
    _Alignas(IPC_LINE) _Atomic uint64_t head;
    _Alignas(IPC_LINE) _Atomic uint64_t done_summary; /* bit k: some bit of done[k] may be set */
    _Alignas(IPC_LINE) _Atomic uint32_t client_asleep; /* 0 awake, 1 asleep, 2 asleep and in want of a row: head passing one would do */
    _Atomic uint32_t client_bell;
    _Atomic uint32_t listening; /* client: it sleeps in event loops, which hear the wire and not the bell */
    /* control: rarely written, read by all */
    _Alignas(IPC_LINE) _Atomic uint32_t deaths; /* monitor: +1 after each slot.reaped */
    _Atomic uint32_t stop;                      /* 1: workers claim nothing more and exit */
    _Atomic uint32_t monitor_idle;              /* monitor: 1 = it looks at no limit until it is told to */
    _Atomic uint32_t shortest_ms;               /* client: the shortest deadline it ever published, or time in which a memory limit may be reached */
    /* armed: client only, with each task that has a limit. Not beside `stop`, which workers read at each claim. */
    _Alignas(IPC_LINE) _Atomic uint32_t armed;  /* client: tasks with a deadline or a memory limit in flight */
    _Alignas(IPC_LINE) _Atomic uint32_t guard;  /* slot + 1 of the sleeper that looks at the ring every millisecond, 0 = nobody does */
    _Atomic uint32_t leaver;                    /* generation:16 (high) · slot + 1 of the retired worker that leaves or has left, 0 = one may leave */
    _Atomic uint32_t renewed;                   /* monitor: so many restarts that the client has asked for are complete */
    _Alignas(IPC_LINE) _Atomic uint64_t sleepers[IPC_MAX_SLOTS / 64];
    _Alignas(IPC_LINE) _Atomic uint64_t spinners[IPC_MAX_SLOTS / 64];
    _Alignas(IPC_LINE) _Atomic uint64_t done[IPC_MAX_ROWS / 64];
};

/* Why a worker ended, as the monitor knows it. */
enum ipc_reason { IPC_DIED = 0, IPC_DEADLINE = 1, IPC_KILLED = 2, IPC_RECYCLED = 3, IPC_MEMORY = 4, IPC_OOM = 5, IPC_UNREADY = 6, IPC_RESTARTED = 7, IPC_CHANGED = 8 };

struct ipc_death { /* one entry of the death log: {generation, pid, wait status, reason, peak} */
    uint32_t generation;
    int32_t pid;
    int32_t status;
    uint32_t reason;
    uint64_t peak; /* IPC_MEMORY: bytes that the task had added */
};

/* What an item has taken, each as ipc_brief. CPU time and memory are looked at only where 1 ms has passed. */
struct ipc_spent {
    uint16_t run;      /* ns */
    uint16_t user;     /* ns of CPU time, with that of the processes that were started and waited for */
    uint16_t system;
    uint16_t resident; /* most bytes of memory that the worker had, as far as is known; 0: nobody has looked, `user` and `system` mean nothing */
};

/* How busy a worker was, when: busy[k] is ns of the k-th span of 2^(IPC_SPAN_SHIFT + folds) ns since the segment was created. When they are full,
 * neighbours are folded into one, so that any run fits. */
#define IPC_SPANS 180u
#define IPC_SPAN_SHIFT 23u /* 8 ms: the first fold comes after 1.5 s */
struct ipc_spans {
    _Atomic uint32_t folds;
    _Atomic uint64_t busy[IPC_SPANS];
};

enum ipc_phase { IPC_STARTING = 0, IPC_IDLE = 1, IPC_LEAVING = 2 };

struct ipc_slot {
    /* worker line: hints for the monitor and for insights, never used to settle */
    _Atomic uint64_t started;    /* CLOCK_MONOTONIC ns at which started_word began */
    _Atomic uint64_t started_word;
    _Atomic uint32_t intent;     /* the row it is about to claim, or runs */
    _Atomic uint32_t phase;
    _Atomic uint64_t tasks;      /* items finished, by all generations; so are the next three */
    _Atomic uint64_t parks;      /* times it went to sleep */
    _Atomic uint64_t start_ns;   /* nobody was ready, until somebody was */
    _Atomic uint64_t wait_ns;    /* in STORING, without room for a result */
    _Atomic uint64_t progress;   /* what the running item says of itself: the bits of a double; IPC_NO_PROGRESS: nothing */
    /* its memory when a task with a limit started: valid with started_word, as `started` is */
    _Atomic uint64_t anonymous;  /* bytes */
    _Atomic uint64_t dirtied;    /* bytes that are its own alone; UINT64_MAX: what it has inherited is too little to matter */
    _Atomic uint64_t faults;     /* minor faults so far */
    _Atomic uint64_t peak;       /* bytes: the most that was ever resident */
    _Atomic uint64_t user_ns;    /* its CPU time when it last looked, which was no more than 1 ms before the running item, or at its start */
    _Atomic uint64_t system_ns;
    /* bell line: the futex its wakers ring */
    _Alignas(IPC_LINE) _Atomic uint32_t bell;
    /* monitor line; settled is the client's */
    _Alignas(IPC_LINE) _Atomic uint32_t generation;
    _Atomic int32_t pid;
    _Atomic uint32_t reaped;
    _Atomic uint32_t settled;
    struct ipc_death deaths[IPC_DEATHS];
    _Atomic uint32_t retire; /* generations below are to leave, one worker at a time */
    /* spans: the worker's, and the monitor's while nobody lives here */
    _Alignas(IPC_LINE) struct ipc_spans spans;
    _Atomic uint64_t since;      /* monitor: when the last one died that had been ready; before that, when the segment was created */
    _Atomic uint64_t used_ns;    /* monitor: CPU time of the dead, with what they had started and waited for; so is the next one */
    _Atomic uint64_t used_most;  /* bytes of memory */
    struct ipc_spent spent[IPC_DEATHS]; /* monitor: what the item took in which the worker of the same entry of the death log died */
};

/* How a row's arguments are called, and what a result is; the meaning of other values belongs to pool/codec.py. */
#define IPC_PACKED 2u     /* flag: the arguments are pieces, each at a multiple of IPC_ALIGN; they may be written to, as a kind with this bit may */
#define IPC_REPEATABLE 4u /* flag: there may be another attempt, which must not see what this one does to its arguments */
#define IPC_CAPTURE 32u   /* flag: what it prints goes into a file in memory, at whose size the monitor looks */
#define IPC_PACKED_KIND 0x80u
#define IPC_FAILED_KINDS 0x1fu /* a kind with any of these bits is no value */
#define IPC_ALIGN 64u     /* a cache line: what the widest vector instructions want */

struct ipc_row {
    _Atomic uint64_t word;
    uint64_t started;      /* worker: CLOCK_MONOTONIC ns at which the running item, or the last one, began; 0: it has not */
    uint32_t fn;           /* function id; 0 = the arguments carry the function */
    uint32_t fn_generation;
    uint32_t fn_unit, fn_len;
    uint64_t args_len;
    uint32_t args_unit;    /* IPC_NO_UNIT: inline */
    uint32_t items;        /* 0: a single task, n: a chunk of n items */
    _Atomic uint32_t timeout_ms; /* 0: none; of one attempt, of one item in a chunk. Atomic: the monitor reads it beside the client's next use */
    uint16_t flags;        /* bits 8..15: calling convention */
    uint16_t attempt;      /* from 1 */
    uint32_t kind;         /* worker: what the result is */
    int32_t pid;           /* worker: who has claimed it */
    _Atomic uint64_t result_ref; /* worker: unit:32 (high) · count:32, or 0 = inline; one word, so never half written */
    _Atomic uint64_t result_len;
    _Atomic uint32_t offered; /* worker, chunk in STORING without room: so many items are committed and may be drained */
    _Atomic uint32_t drained; /* client: so many of them it has taken */
    _Atomic uint64_t memory_limit; /* bytes that an attempt, or an item of a chunk, may add; 0: any. Atomic for the same reason as timeout_ms */
    struct ipc_spent spent; /* worker: of a single task */
    unsigned char body[IPC_ROW_SIZE - 104];
};
#define IPC_FRAME 16u /* a result of a chunk: a struct ipc_frame, then the bytes */
struct ipc_frame {
    uint64_t word; /* kind:8 (high) · length:56 */
    struct ipc_spent spent;
};
#define IPC_LENGTH_BITS 56
static inline uint64_t ipc_frame_word(uint32_t kind, uint64_t length) { return (uint64_t)kind << IPC_LENGTH_BITS | length; }
static inline uint32_t ipc_frame_kind(uint64_t f) { return (uint32_t)(f >> IPC_LENGTH_BITS); }
static inline uint64_t ipc_frame_length(uint64_t f) { return f & IPC_MASK(IPC_LENGTH_BITS); }

/* A number in 16 bits, to 0.05 %: exponent:6 (high) · mantissa:10; numbers below 2048 as they are. Larger numbers have larger briefs. */
static inline uint16_t ipc_brief(uint64_t n) {
    if (n < 1024) return (uint16_t)n;
    if (n >> 62) n = UINT64_C(1) << 62;
    uint32_t shift = 53 - (uint32_t)__builtin_clzll(n);
    n += UINT64_C(1) << shift >> 1; /* to the nearest; what overflows the mantissa is the next exponent's first */
    return (uint16_t)((shift + 1) * 1024 + (uint32_t)((n >> shift) - 1024));
}
static inline uint64_t ipc_from_brief(uint16_t b) {
    if (b > 53 * 1024) b = 53 * 1024; /* the largest there is: this one is damaged */
    return b < 1024 ? b : (1024 + (uint64_t)(b & 1023)) << ((b >> 10) - 1);
}
#define IPC_INLINE (IPC_ROW_SIZE - 104u)
#define IPC_FILL_RATE 10000000000u /* bytes a second: no task is expected to fill memory faster */
#define IPC_LOOK_MS 50u /* the longest time between two looks at a task with a memory limit */

_Static_assert(sizeof(struct ipc_row) == IPC_ROW_SIZE && offsetof(struct ipc_row, body) == 104, "row");
_Static_assert(sizeof(struct ipc_spent) == 8 && sizeof(struct ipc_frame) == IPC_FRAME, "frame");
_Static_assert(sizeof(struct ipc_slot) == IPC_SLOT_SIZE, "slot");
_Static_assert(IPC_ITEM_SHIFT + IPC_ITEM_BITS == 64, "row word");
_Static_assert(IPC_MAX_SLOTS <= 1u << IPC_SLOT_BITS && IPC_MAX_ITEMS < 1u << IPC_ITEM_BITS, "widths");
_Static_assert(ATOMIC_LLONG_LOCK_FREE == 2 && ATOMIC_INT_LOCK_FREE == 2, "atomics must work between processes");

/* Owner of a payload unit: 0 free, (row, seq) of the task it carries, the client's function store, a value that the client's program holds, or
 * the (slot, generation) of a worker whose task has kept its arguments. */
#define IPC_OWNER_FUNCTION (UINT64_C(1) << 62)
#define IPC_OWNER_VIEW (UINT64_C(1) << 61)
#define IPC_OWNER_KEPT (UINT64_C(1) << 60)
static inline uint64_t ipc_owner(uint32_t row, uint32_t seq) { return UINT64_C(1) << 63 | (uint64_t)row << 32 | seq; }
static inline uint64_t ipc_owner_kept(uint32_t slot, uint32_t generation) { return IPC_OWNER_KEPT | (uint64_t)slot << 32 | generation; }

#endif
