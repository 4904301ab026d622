/* Payload units: 64 KiB each, owner words out of line. A run is taken unit by unit and rolled back on a conflict, so that a death in the
 * middle leaves only units that name (row, seq), and the client frees them with that row. */
#define _GNU_SOURCE
#include "core.h"

#include <string.h>
#include <sys/mman.h>

uint64_t ipc_pieces_length(const struct ipc_piece *piece, uint32_t count) {
    uint64_t length = 0;
    for (uint32_t k = 0; k < count; k++) length = ipc_align(length) + piece[k].length;
    return length;
}

void ipc_pieces_copy(unsigned char *to, const struct ipc_piece *piece, uint32_t count) {
    uint64_t at = 0;
    for (uint32_t k = 0; k < count; k++) {
        at = ipc_align(at);
        if (piece[k].length) memcpy(to + at, piece[k].data, piece[k].length);
        at += piece[k].length;
    }
}

void ipc_units_give(struct ipc_segment *s, uint32_t unit, uint32_t count, uint64_t from, uint64_t to) {
    for (uint64_t k = unit; k < (uint64_t)unit + count && k < s->units; k++) {
        uint64_t mine = from;
        IPC_POINT("units:give");
        /* SYNC POINT: release, so that the next taker (acquire) writes after our last read. A unit that is not ours is left alone. */
        atomic_compare_exchange_strong_explicit(&s->owner[k], &mine, to, memory_order_release, memory_order_relaxed);
    }
}

/* Whether a result of so many units fits when everything that will go by itself has gone: other results are drained; functions, and values that
 * the client's program holds, stay. */
int ipc_units_could_fit(struct ipc_segment *s, uint64_t count) {
    uint64_t run = 0;
    for (uint32_t k = s->units / 2; k < s->units && run < count; k++)
        run = atomic_load_explicit(&s->owner[k], memory_order_relaxed) & (IPC_OWNER_FUNCTION | IPC_OWNER_VIEW) ? 0 : run + 1;
    return run >= count;
}

/* Arguments take the lower half, results and functions the upper: so results never wait for arguments of tasks that no worker is free to claim. */
int64_t ipc_units_take_result(struct ipc_segment *s, uint64_t count, uint64_t owner) {
    return ipc_units_take(s, s->units / 2, s->units, count, owner);
}

int64_t ipc_units_take(struct ipc_segment *s, uint64_t first, uint64_t end, uint64_t count, uint64_t owner) {
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

void ipc_units_free_all(struct ipc_segment *s, uint64_t owner) {
    for (uint32_t k = 0; k < s->units; k++)
        if (atomic_load_explicit(&s->owner[k], memory_order_relaxed) == owner) ipc_units_free(s, k, 1, owner);
}

void ipc_units_free_kept(struct ipc_segment *s, uint32_t slot, uint32_t reaped) {
    for (uint32_t k = 0; k < s->units / 2; k++) {
        uint64_t owner = atomic_load_explicit(&s->owner[k], memory_order_relaxed);
        if (owner >> 32 == ipc_owner_kept(slot, 0) >> 32 && (int32_t)((uint32_t)owner - reaped) < 0) ipc_units_free(s, k, 1, owner);
    }
}

/* The workers are gone: what belongs to nobody but them, or to their rows, is free. */
void ipc_units_free_but(struct ipc_segment *s, uint64_t owner) {
    for (uint32_t k = 0; k < s->units; k++) {
        uint64_t other = atomic_load_explicit(&s->owner[k], memory_order_relaxed);
        if (other && other != owner) ipc_units_free(s, k, 1, other);
    }
}

/* Units are owned while they are punched out: a worker that took one in between would lose what it writes. */
uint32_t ipc_units_trim(struct ipc_segment *s, uint32_t first, uint32_t end) {
    uint32_t held = first;
    while (first < end) {
        uint32_t run = 0;
        for (; first + run < end; run++) {
            uint64_t nobody = 0;
            if (!atomic_compare_exchange_strong_explicit(&s->owner[first + run], &nobody, IPC_OWNER_VIEW, memory_order_acq_rel, memory_order_relaxed))
                break;
        }
        if (run) madvise(s->payload + (uint64_t)first * IPC_UNIT_SIZE, (uint64_t)run * IPC_UNIT_SIZE, MADV_REMOVE);
        ipc_units_free(s, first, run, IPC_OWNER_VIEW);
        first += run + 1;
        if (first <= end) held = first;
    }
    return held;
}

uint32_t ipc_units_used(struct ipc_segment *s) {
    uint32_t n = 0;
    for (uint32_t k = 0; k < s->units; k++) n += atomic_load_explicit(&s->owner[k], memory_order_relaxed) != 0;
    return n;
}

uint32_t ipc_units_of(struct ipc_segment *s, uint64_t owner) {
    uint32_t n = 0;
    for (uint32_t k = 0; k < s->units; k++) n += (atomic_load_explicit(&s->owner[k], memory_order_relaxed) & owner) != 0;
    return n;
}
