/* Creating and attaching: sizes are computed from three numbers, in one place, the same way by everybody. */
#include "core.h"

#include <string.h>

static uint64_t ring_entries(uint32_t rows) {
    uint64_t n = 1;
    while (n < rows) n <<= 1;
    return n;
}

static size_t align_line(size_t n) { return (n + IPC_LINE - 1) / IPC_LINE * IPC_LINE; }

static size_t slots_at(uint32_t rows) { return align_line(sizeof(struct ipc_header) + ring_entries(rows) * sizeof(uint64_t)); }
static size_t rows_at(uint32_t rows, uint32_t slots) { return align_line(slots_at(rows) + (size_t)slots * IPC_SLOT_SIZE); }
static size_t owners_at(uint32_t rows, uint32_t slots) { return rows_at(rows, slots) + (size_t)rows * IPC_ROW_SIZE; }

static int sizes_are_possible(uint32_t rows, uint32_t slots) {
    return rows >= 1 && rows <= IPC_MAX_ROWS && slots >= 1 && slots <= IPC_MAX_SLOTS;
}

size_t ipc_segment_size(uint32_t rows, uint32_t slots, uint32_t units) {
    if (!sizes_are_possible(rows, slots)) return 0;
    return owners_at(rows, slots) + (size_t)units * sizeof(uint64_t);
}

int ipc_segment_create(void *base, size_t size, uint32_t rows, uint32_t slots, uint32_t units, uint32_t cores) {
    struct ipc_header *h = base;
    size_t need = ipc_segment_size(rows, slots, units);
    if (need == 0 || size < need) return IPC_DAMAGED;
    memset(base, 0, size); /* touches every page: a memory limit answers here, not as SIGBUS in the middle of a task */
    h->magic = IPC_MAGIC;
    h->size = size;
    h->rows = rows;
    h->slots = slots;
    h->units = units;
    h->cores = cores;
    h->created = ipc_now();
    struct ipc_slot *slot = (struct ipc_slot *)(void *)((unsigned char *)base + slots_at(rows));
    for (uint32_t k = 0; k < slots; k++) atomic_store_explicit(&slot[k].since, h->created, memory_order_relaxed);
    /* SYNC POINT: a process that sees the version sees the identity above. */
    atomic_store_explicit(&h->layout, IPC_LAYOUT_VERSION, memory_order_release);
    return 0;
}

int ipc_segment_attach(struct ipc_segment *s, void *base, size_t size, void *payload) {
    struct ipc_header *h = base;
    if (size < sizeof(*h) || atomic_load_explicit(&h->layout, memory_order_acquire) != IPC_LAYOUT_VERSION) return IPC_DAMAGED;
    if (h->magic != IPC_MAGIC || h->size != size) return IPC_DAMAGED;
    s->rows = h->rows;
    s->slots = h->slots;
    s->units = h->units;
    s->cores = h->cores;
    s->created = h->created;
    size_t need = ipc_segment_size(s->rows, s->slots, s->units);
    if (need == 0 || need > size) return IPC_DAMAGED;
    unsigned char *b = base;
    s->header = h;
    s->ring = (_Atomic uint64_t *)(void *)(b + sizeof(struct ipc_header));
    s->ring_mask = ring_entries(s->rows) - 1;
    s->slot = (struct ipc_slot *)(void *)(b + slots_at(s->rows));
    s->row = (struct ipc_row *)(void *)(b + rows_at(s->rows, s->slots));
    s->owner = (_Atomic uint64_t *)(void *)(b + owners_at(s->rows, s->slots));
    s->payload = payload;
    s->wire = -1;
    return 0;
}
