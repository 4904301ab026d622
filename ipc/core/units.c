/* Payload units: 64 KiB each, owner words out of line. A run is taken unit by unit and rolled back on a conflict, so that a death in the
 * middle leaves only units that name (row, seq), and the client frees them with that row. */
#define _GNU_SOURCE
#include "core.h"

#include <sys/mman.h>

void ipc_units_free(struct ipc_segment *s, uint32_t unit, uint32_t count, uint64_t owner) {
    for (uint64_t k = unit; k < (uint64_t)unit + count && k < s->units; k++) {
        uint64_t mine = owner;
        /* SYNC POINT: release, so that the next taker (acquire) writes after our last read. A unit that is not ours is left alone. */
        atomic_compare_exchange_strong_explicit(&s->owner[k], &mine, 0, memory_order_release, memory_order_relaxed);
    }
}

int64_t ipc_units_take(struct ipc_segment *s, uint64_t count, uint64_t owner) { return ipc_units_take_in(s, 0, s->units, count, owner); }

/* Whether a result of so many units fits when everything that can go has gone: other results are drained, functions stay, and arguments are not
 * counted upon, for those of READY tasks stay while all workers wait for room. So: the upper half, beside the functions. */
int ipc_units_could_fit(struct ipc_segment *s, uint64_t count) {
    uint64_t run = 0;
    for (uint32_t k = s->units / 2; k < s->units && run < count; k++)
        run = atomic_load_explicit(&s->owner[k], memory_order_relaxed) == IPC_OWNER_FUNCTION ? 0 : run + 1;
    return run >= count;
}

int64_t ipc_units_take_in(struct ipc_segment *s, uint64_t first, uint64_t end, uint64_t count, uint64_t owner) {
    if (count > end - first) return IPC_TOO_LARGE;
    while (first + count <= end) { /* first fit: low units stay warm */
        uint64_t run = 0;
        while (run < count && atomic_load_explicit(&s->owner[first + run], memory_order_relaxed) == 0) run++;
        if (run < count) {
            first += run + 1;
            continue;
        }
        for (run = 0; run < count; run++) {
            uint64_t nobody = 0;
            IPC_POINT("units:take");
            if (!atomic_compare_exchange_strong_explicit(&s->owner[first + run], &nobody, owner, memory_order_acq_rel, memory_order_relaxed)) break;
        }
        if (run == count) return (int64_t)first;
        ipc_units_free(s, (uint32_t)first, (uint32_t)run, owner);
        first += run + 1;
    }
    return IPC_NO_ROOM;
}

uint32_t ipc_units_free_all(struct ipc_segment *s, uint64_t owner) {
    uint32_t n = 0;
    for (uint32_t k = 0; k < s->units; k++)
        if (atomic_load_explicit(&s->owner[k], memory_order_relaxed) == owner) {
            ipc_units_free(s, k, 1, owner);
            n++;
        }
    return n;
}

/* Units are owned while they are punched out: a worker that took one in between would lose what it writes. */
void ipc_units_trim(struct ipc_segment *s, uint32_t end) {
    for (uint32_t k = 0; k < end && k < s->units; k++) {
        uint64_t nobody = 0;
        if (!atomic_compare_exchange_strong_explicit(&s->owner[k], &nobody, IPC_OWNER_FUNCTION, memory_order_acq_rel, memory_order_relaxed)) continue;
        madvise(s->payload + (uint64_t)k * IPC_UNIT_SIZE, IPC_UNIT_SIZE, MADV_REMOVE);
        ipc_units_free(s, k, 1, IPC_OWNER_FUNCTION);
    }
}

uint32_t ipc_units_used(struct ipc_segment *s) {
    uint32_t n = 0;
    for (uint32_t k = 0; k < s->units; k++) n += atomic_load_explicit(&s->owner[k], memory_order_relaxed) != 0;
    return n;
}
