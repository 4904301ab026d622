/* Single steps held against each other by hand: what one role does while another stands between two of its steps. One process, no timing;
 * the failpoints of the core are the places where the other role moves. Each test is named after what it promises.
 *
 *   steps [name | -name]     only that one, all but that one */
#include "kit.h"

#include <fcntl.h>
#include <sched.h>
#include <sys/syscall.h>
#include <sys/wait.h>

static struct ipc_segment S;
static struct driver D;
static struct ipc_worker A, B; /* slot 0 and slot 1, generation 0 */
static struct desk desk;

static void begin_with(uint32_t slots, uint32_t rows, uint32_t units) {
    ipc_failpoint = NULL;
    if (S.header) munmap(S.header, ipc_segment_size(S.rows, S.slots, S.units)), munmap(S.payload, (size_t)S.units * IPC_UNIT_SIZE);
    memset(&S, 0, sizeof(S));
    fresh_segment(&S, rows, slots, units, 2);
    driver_open(&D, &S, D.last_id);
    ipc_worker_init(&A, &S, 0, 0);
    ipc_worker_init(&B, &S, 1, 0);
}
static void begin(uint32_t rows, uint32_t units) { begin_with(2, rows, units); }

static uint32_t publish(struct job j) {
    int row = driver_submit(&D, j);
    CHECK(row >= 0, "there is a row");
    return (uint32_t)row;
}
static const struct job small = {.size = 100};

static void run_all(struct ipc_worker *w) {
    while (ipc_claim(w) == 0) CHECK(work(w, &desk) == 0, "a worker does its work");
}

/* Slot `slot` dies in generation 0. */
static void dies(uint32_t slot) {
    struct ipc_death death = {0, 1, 9, IPC_DIED, 0};
    ipc_record_death(&S, slot, &death);
}

static void end(void) {
    struct ipc_worker w;
    ipc_failpoint = NULL;
    driver_retry(&D);
    ipc_worker_init(&w, &S, 0, 5);
    run_all(&w);
    driver_collect(&D);
    check_all_free(&D);
}

/* At the first time `step` is reached, `act` is done, once. */
static const char *act_at;
static void (*act)(void);
static void hook(const char *step) {
    if (strcmp(step, act_at)) return;
    ipc_failpoint = NULL;
    act();
    act = NULL;
}
static void at(const char *step, void (*what)(void)) {
    act_at = step;
    act = what;
    ipc_failpoint = hook;
}

/* ---- claim */

static uint32_t row_of_act;

static void others_use_the_row_again(void) {
    run_all(&B);
    CHECK(driver_collect(&D) == 1, "the other worker did it");
    CHECK(publish(small) == row_of_act, "the row is used again");
}
static void a_stalled_claimer_cannot_claim_a_later_use_through_an_old_entry(void) {
    begin(2, 4);
    row_of_act = publish(small);
    at("claim:read", others_use_the_row_again);
    CHECK(ipc_claim(&A) == 0 && act == NULL, "it claims the later use through its own entry");
    CHECK(atomic_load(&S.header->head) == 2, "the claim went through the row's own entry");
    CHECK(work(&A, &desk) == 0, "and does it");
}

static void cancel_it(void) { CHECK(driver_cancel(&D, row_of_act), "a ready task can be cancelled"); }
static void a_cancelled_task_is_never_claimed(void) {
    begin(2, 4);
    row_of_act = publish(small);
    at("claim:read", cancel_it);
    CHECK(ipc_claim(&A) == IPC_EMPTY && act == NULL, "nothing to claim");
    CHECK(atomic_load(&S.header->head) == 1, "its entry is spent all the same");
    CHECK(word_of(&S, row_of_act) == ipc_word(IPC_FREE, 0, 0, D.c.seq[row_of_act], 0), "the row stays free");
}

static void cancel_is_too_late(void) { CHECK(!driver_cancel(&D, row_of_act), "a claimed task is not cancelled"); }
static void a_claimed_task_is_never_cancelled(void) {
    begin(2, 4);
    row_of_act = publish(small);
    at("claim:owned", cancel_is_too_late);
    CHECK(ipc_claim(&A) == 0 && act == NULL && work(&A, &desk) == 0, "it runs");
}

static void a_stale_entry_does_not_block_the_task_behind_it(void) {
    begin(2, 4);
    row_of_act = publish(small);
    cancel_it();
    uint32_t live = publish(small);
    CHECK(ipc_claim(&A) == 0 && A.row == live && work(&A, &desk) == 0, "the live task is claimed");
}

static void a_row_is_not_used_again_before_head_has_passed_its_entry(void) {
    begin(2, 4);
    for (int k = 0; k < 2; k++) {
        row_of_act = publish(small);
        cancel_it();
    }
    CHECK(driver_submit(&D, small) == IPC_FULL, "both rows cool until a worker has passed their entries");
    CHECK(ipc_claim(&A) == IPC_EMPTY, "which it does");
    publish(small);
}

static void help(void) { CHECK(ipc_claim(&B) == IPC_EMPTY && atomic_load(&S.header->head) == 1, "head is moved past the claimed entry"); }
static void a_claimer_that_stops_before_head_is_helped(void) {
    begin(2, 4);
    publish(small);
    at("claim:owned", help);
    CHECK(ipc_claim(&A) == 0 && act == NULL && work(&A, &desk) == 0, "the claim stands");
}

static void a_row_number_from_the_ring_is_checked(void) {
    begin(2, 4);
    atomic_store(&S.ring[0], UINT64_C(1) << 32 | 77);
    atomic_store(&S.header->tail, 1);
    CHECK(ipc_claim(&A) == IPC_EMPTY && atomic_load(&S.header->head) == 1, "an impossible entry is skipped");
    atomic_store(&S.header->tail, 0);
    atomic_store(&S.header->head, 0);
}

/* ---- complete, condemn */

static void condemn_it(void) {
    struct ipc_running r;
    CHECK(ipc_running(&S, 0, &r) && ipc_word_state(r.word) == IPC_RUNNING, "the monitor sees who runs what");
    CHECK(ipc_condemn(&S, r.row, r.word), "a running task can be condemned");
}
static void a_condemned_task_is_never_done(void) {
    begin(2, 4);
    uint32_t row = publish(small);
    CHECK(ipc_claim(&A) == 0, "claimed");
    at("complete:change", condemn_it);
    CHECK(work(&A, &desk) == IPC_LOST && act == NULL, "the worker learns that it was condemned");
    CHECK(ipc_word_state(word_of(&S, row)) == IPC_CONDEMNED, "the decision stands");
    CHECK(driver_collect(&D) == 0, "its result is dropped");
    dies(0);
    CHECK(driver_settle(&D) == 1 && driver_settle(&D) == 0, "one attempt is spent, once");
}

static void a_condemned_chunk_keeps_its_committed_items(void) {
    begin(2, 8);
    struct job chunk = {.size = 300, .items = 4};
    uint32_t row = publish(chunk);
    CHECK(ipc_claim(&A) == 0, "claimed");
    struct job j;
    read_order(&A, &j);
    CHECK(ipc_begin_items(&A) == 0, "decoded");
    for (uint32_t k = 1; k <= 2; k++) {
        pattern_fill(desk.out, 300, j.id, k);
        CHECK(commit(&A, kind_of(j.id, k), desk.out, 300) == 0, "committed");
    }
    CHECK(ipc_word_item(word_of(&S, row)) == 3, "item 3 runs");
    condemn_it();
    CHECK(commit(&A, 0, desk.out, 300) == IPC_LOST, "the third is lost");
    dies(0);
    CHECK(driver_settle(&D) == 1, "one attempt is spent");
    CHECK(D.job[1].base + D.job[0].base == 2, "two items stand");
}

static void a_finished_task_is_never_condemned(void) {
    begin(2, 4);
    publish(small);
    CHECK(ipc_claim(&A) == 0, "claimed");
    struct ipc_running r;
    CHECK(ipc_running(&S, 0, &r), "seen");
    CHECK(work(&A, &desk) == 0, "done meanwhile");
    CHECK(!ipc_condemn(&S, r.row, r.word), "the monitor's decision comes too late");
    CHECK(driver_collect(&D) == 1, "it counts");
}

static void a_condemnation_never_hits_the_next_use_of_a_row(void) {
    begin(1, 4);
    publish(small);
    CHECK(ipc_claim(&A) == 0, "claimed");
    struct ipc_running r;
    CHECK(ipc_running(&S, 0, &r), "seen");
    CHECK(work(&A, &desk) == 0 && driver_collect(&D) == 1, "done meanwhile");
    publish(small);
    CHECK(ipc_claim(&A) == 0, "the same worker runs the next task in the same row");
    CHECK(!ipc_condemn(&S, r.row, r.word), "an innocent is not condemned");
    CHECK(work(&A, &desk) == 0, "it ends as usual");
}

static void a_condemnation_never_hits_the_next_item_of_a_chunk(void) {
    begin(1, 4);
    struct job chunk = {.size = 10, .items = 2};
    publish(chunk);
    CHECK(ipc_claim(&A) == 0, "claimed");
    struct ipc_running r;
    CHECK(ipc_running(&S, 0, &r), "seen");
    CHECK(ipc_begin_items(&A) == 0, "decoded meanwhile");
    CHECK(!ipc_condemn(&S, r.row, r.word), "the item is not charged for the decoding");
    struct job j;
    memcpy(&j, S.row[0].body, sizeof(j));
    for (uint32_t k = 1; k <= 2; k++) {
        pattern_fill(desk.out, 10, j.id, k);
        CHECK(commit(&A, kind_of(j.id, k), desk.out, 10) == 0, "committed");
    }
}

static void nobody_condemns_a_task_that_stores(void) {
    struct ipc_running r;
    uint64_t word = word_of(&S, row_of_act);
    CHECK(ipc_word_state(word) == IPC_STORING, "it stores");
    CHECK(!ipc_condemn(&S, row_of_act, word), "waiting for room is not the task's fault");
    CHECK(!ipc_running(&S, 0, &r), "and no deadline is looked at");
}
static void a_task_that_stores_its_result_is_not_condemned(void) {
    begin(2, 4);
    struct job big = {.size = 1000};
    row_of_act = publish(big);
    CHECK(ipc_claim(&A) == 0, "claimed");
    at("store:copied", nobody_condemns_a_task_that_stores);
    CHECK(work(&A, &desk) == 0 && act == NULL, "it is stored");
}

/* ---- results and room */

static void a_done_bit_is_a_hint_and_never_proof(void) {
    begin(3, 4);
    publish(small);
    publish(small);
    CHECK(ipc_claim(&A) == 0, "one of them runs");
    atomic_store(&S.header->done[0], 7);
    atomic_store(&S.header->done_summary, 1);
    CHECK(ipc_next_done(&D.c) == IPC_EMPTY, "neither a free nor a ready nor a running row is handed out");
    CHECK(work(&A, &desk) == 0 && driver_collect(&D) == 1, "a finished one is, in spite of the false hints");
}

static void collect_now(void) { driver_collect(&D); }
static void a_sweep_between_the_two_hints_does_not_lose_the_row(void) {
    begin(2, 4);
    publish(small);
    CHECK(ipc_claim(&A) == 0, "claimed");
    at("complete:hinted", collect_now);
    CHECK(work(&A, &desk) == 0 && act == NULL, "done");
    driver_collect(&D);
    CHECK(D.done == 1, "collected without any wait");
}
static void a_sweep_behind_the_summary_does_not_lose_the_row(void) {
    begin(2, 4);
    publish(small);
    CHECK(ipc_claim(&A) == 0, "claimed");
    at("complete:summed", collect_now);
    CHECK(work(&A, &desk) == 0 && act == NULL, "done");
    driver_collect(&D);
    CHECK(D.done == 1, "collected without any wait");
}
static void a_sweep_before_the_hints_does_not_lose_the_row(void) {
    begin(2, 4);
    publish(small);
    atomic_store(&S.header->done_summary, 1);
    CHECK(ipc_claim(&A) == 0, "claimed");
    at("complete:done", collect_now);
    CHECK(work(&A, &desk) == 0 && act == NULL, "done");
    driver_collect(&D);
    CHECK(D.done == 1, "collected without any wait");
}

static void a_unit_of_another_owner_is_left_alone(void) {
    begin(2, 4);
    CHECK(ipc_units_take(&S, 0, S.units, 1, ipc_owner(0, 1)) == 0 && ipc_units_take(&S, 0, S.units, 1, ipc_owner(1, 1)) == 1, "two owners");
    ipc_units_free(&S, 0, 4, ipc_owner(0, 1));
    CHECK(atomic_load(&S.owner[0]) == 0 && atomic_load(&S.owner[1]) == ipc_owner(1, 1), "one of them gives back its own");
    ipc_units_free_all(&S, ipc_owner(1, 1));
    CHECK(ipc_units_used(&S) == 0, "and the other");
}

static void other_takes_a_unit(void) { CHECK(ipc_units_take(&S, 0, S.units, 1, 99) == 0, "another takes a unit of the run"); }
static void a_run_lost_half_way_is_rolled_back(void) {
    begin(2, 4);
    at("units:take", other_takes_a_unit);
    CHECK(ipc_units_take(&S, 0, S.units, 3, 7) == 1 && act == NULL, "the next run is taken");
    CHECK(ipc_units_used(&S) == 4, "no unit is left behind");
    ipc_units_free_all(&S, 7);
    CHECK(ipc_units_used(&S) == 1, "each gives back its own");
    ipc_units_free_all(&S, 99);
    CHECK(ipc_units_used(&S) == 0, "each gives back its own");
}

static void what_can_never_fit_is_refused_at_once(void) {
    begin(2, 4);
    struct job huge = {.args_len = 2 * IPC_UNIT_SIZE, .size = 3 * IPC_UNIT_SIZE}; /* beside its own arguments there are 2 of 4 units */
    uint32_t row = publish(huge);
    CHECK(ipc_claim(&A) == 0 && complete(&A, 0, desk.out, huge.size) == IPC_TOO_LARGE, "it does not wait for room that only it could give");
    D.job[row].size = 10;
    pattern_fill(desk.out, 10, D.job[row].id, 0);
    CHECK(complete(&A, kind_of(D.job[row].id, 0), desk.out, 10) == 0, "and the worker can say so in its place");
}

/* ---- pieces, views, what tasks keep */

static void pieces_stand_at_multiples_of_a_cache_line(void) {
    static const uint64_t lengths[][4] = {{0, 0, 0, 0}, {1, 0, 0, 1}, {64, 64, 1, 0}, {63, 65, 0, 128}, {100, 200, 300, 400}};
    static const uint64_t totals[] = {0, 65, 192, 320, 1104};
    begin(2, 4);
    unsigned char *to = S.payload, *from = desk.out;
    for (size_t n = 0; n < 5; n++) {
        struct ipc_piece piece[4];
        memset(to, 0xee, 4096);
        for (uint32_t k = 0; k < 4; k++) {
            piece[k] = (struct ipc_piece){lengths[n][k] ? from + 1000 * k : NULL, lengths[n][k]};
            memset(from + 1000 * k, (int)k + 1, 1000);
        }
        uint64_t length = ipc_pieces_length(piece, 4), at = 0;
        CHECK(length == totals[n], "the length is that of the last byte");
        ipc_pieces_copy(to, piece, 4);
        for (uint32_t k = 0; k < 4; k++) {
            at = ipc_align(at);
            for (uint64_t i = 0; i < lengths[n][k]; i++) CHECK(to[at + i] == k + 1, "each piece is whole and where it belongs");
            at += lengths[n][k];
        }
        CHECK(at == length && to[length] == 0xee, "and nothing is written beyond the last");
    }
}

/* Two units of arguments, and a result in one. */
static const struct job laden = {.size = 500, .args_len = IPC_UNIT_SIZE + 100};
static struct kept kept;

static void run_laden(void) {
    publish(laden);
    CHECK(ipc_claim(&A) == 0 && work_and_keep(&A, &desk, &kept) == 0 && kept.units == 2, "its task keeps its arguments");
}
static uint32_t owned(uint64_t owner) {
    uint32_t n = 0;
    for (uint32_t k = 0; k < S.units; k++) n += atomic_load(&S.owner[k]) == owner;
    return n;
}

static void a_view_is_the_programs_until_it_is_dropped(void) {
    begin(1, 8);
    D.adopts = 1;
    for (uint32_t n = 1; n <= 2; n++) {
        publish((struct job){.size = 500});
        run_all(&B);
        CHECK(driver_collect(&D) == 1 && D.views == n && owned(IPC_OWNER_VIEW) == n, "the program holds it");
        check_units(&D);
    }
    publish((struct job){.size = 500}); /* the same row for the third time: what it frees is its own */
    run_all(&B);
    CHECK(driver_collect(&D) == 1 && D.views == 2, "at most a quarter of all units are views");
    check_units(&D);
    driver_drop(&D, 0);
    CHECK(owned(IPC_OWNER_VIEW) == 1 && ipc_units_used(&S) == 1, "one is dropped");
    publish((struct job){.size = IPC_UNIT_SIZE + 1});
    run_all(&B);
    CHECK(driver_collect(&D) == 1 && D.views == 1, "two more would be too many");
}

static void units_beyond_a_view_go_with_its_row(void) {
    begin(2, 8);
    D.adopts = 1;
    uint32_t row = publish((struct job){.size = 500});
    run_all(&B);
    CHECK(ipc_units_take_result(&S, 1, ipc_owner(row, D.c.seq[row])) == 5, "as if it had taken one more");
    atomic_store(&S.row[row].result_ref, UINT64_C(4) << 32 | 2);
    CHECK(driver_collect(&D) == 1 && D.views == 1 && D.view[0].count == 1, "the program holds what it looks at");
    CHECK(ipc_units_used(&S) == 1, "and no more");
}

static void its_arguments_are_its_own(void) { CHECK(owned(ipc_owner_kept(0, 0)) == 2, "a worker takes over what its task keeps before the row is done"); }
static void what_a_task_keeps_is_its_workers_before_the_row_is_done(void) {
    begin(2, 8);
    at("complete:done", its_arguments_are_its_own);
    run_laden();
    CHECK(act == NULL, "looked at");
    drop_kept(&A, &kept);
}

static void collect_and_use_the_room(void) {
    driver_collect(&D);
    CHECK(publish(laden) == 0, "the row is used again at once");
    check_units(&D);
}
static void a_client_that_collects_at_once_leaves_what_is_kept_alone(void) {
    begin(1, 8);
    publish(laden);
    CHECK(ipc_claim(&A) == 0, "claimed");
    at("complete:summed", collect_and_use_the_room);
    CHECK(work_and_keep(&A, &desk, &kept) == 0 && act == NULL, "done and collected");
    check_units(&D);
    CHECK(owned(ipc_owner_kept(0, 0)) == 2 && owned(ipc_owner(0, D.c.seq[0])) == 2, "each has its own");
    drop_kept(&A, &kept);
    CHECK(ipc_units_used(&S) == 2, "dropped once");
}

static void what_the_dead_have_kept_is_freed_with_them_and_nothing_else(void) {
    begin(4, 16);
    struct ipc_worker next, *worker[] = {&A, &next, &B};
    struct kept mine[3];
    ipc_worker_init(&next, &S, 0, 1);
    for (uint32_t k = 0; k < 3; k++) {
        publish(laden);
        CHECK(ipc_claim(worker[k]) == 0 && work_and_keep(worker[k], &desk, &mine[k]) == 0, "its task keeps its arguments");
    }
    driver_collect(&D);
    dies(0);
    CHECK(owned(ipc_owner_kept(0, 0)) == 2, "the client has not looked yet");
    CHECK(driver_settle(&D) == 0 && owned(ipc_owner_kept(0, 0)) == 0, "settled");
    CHECK(owned(ipc_owner_kept(0, 1)) == 2 && owned(ipc_owner_kept(1, 0)) == 2, "neither a successor nor another worker loses anything");
    drop_kept(&next, &mine[1]);
    drop_kept(&B, &mine[2]);
}

static void generations_of_what_is_kept_wrap(void) {
    begin(2, 8);
    const uint32_t last = UINT32_MAX;
    atomic_store(&S.owner[0], ipc_owner_kept(1, last - 1));
    atomic_store(&S.owner[1], ipc_owner_kept(1, last));
    atomic_store(&S.owner[2], ipc_owner_kept(1, 0));
    ipc_units_free_kept(&S, 1, last);
    CHECK(atomic_load(&S.owner[0]) == 0 && owned(0) == 6, "the one that is dead");
    ipc_units_free_kept(&S, 1, 0);
    CHECK(atomic_load(&S.owner[1]) == 0 && owned(0) == 7, "the last one");
    ipc_units_free_kept(&S, 0, 1);
    CHECK(atomic_load(&S.owner[2]) == ipc_owner_kept(1, 0), "the first one of another slot lives");
    ipc_units_free_kept(&S, 1, 1);
    CHECK(ipc_units_used(&S) == 0, "until it dies");
}

static void a_condemned_task_that_has_taken_its_arguments_over_loses_them_once(void) {
    begin(2, 8);
    publish((struct job){.size = 10, .args_len = laden.args_len}); /* a result in the row: its end is the first thing it changes */
    publish(laden);
    CHECK(ipc_claim(&A) == 0, "claimed");
    at("complete:change", condemn_it);
    CHECK(work_and_keep(&A, &desk, &kept) == IPC_LOST && act == NULL, "it learns that it was condemned");
    CHECK(owned(ipc_owner_kept(0, 0)) == 2, "when it has taken them over");
    dies(0);
    CHECK(driver_settle(&D) == 1, "one attempt is spent");
    CHECK(owned(ipc_owner_kept(0, 0)) == 0 && ipc_units_used(&S) >= 2, "what it had taken is free, what others have is not");
    check_units(&D);
}

static void arguments_do_not_wait_for_what_is_kept(void) {
    begin(4, 8);
    run_laden();
    struct job three = {.size = 10, .args_len = 3 * IPC_UNIT_SIZE};
    CHECK(driver_submit(&D, three) == IPC_NO_ROOM, "what is in flight will go");
    driver_collect(&D);
    CHECK(driver_submit(&D, three) == IPC_TOO_LARGE, "what a task keeps may never go");
    publish((struct job){.size = 10, .args_len = IPC_UNIT_SIZE});
    CHECK(driver_submit(&D, three) == IPC_NO_ROOM, "in flight again");
    run_all(&B);
    driver_collect(&D);
    drop_kept(&A, &kept);
    publish(three);
}

static void arguments_and_results_have_a_half_each(void) {
    begin(4, 8);
    publish((struct job){.size = 4 * IPC_UNIT_SIZE, .args_len = 2 * IPC_UNIT_SIZE});
    publish((struct job){.size = 10, .args_len = 2 * IPC_UNIT_SIZE});
    CHECK(driver_submit(&D, laden) == IPC_NO_ROOM, "the lower half is full of arguments");
    CHECK(ipc_units_take_result(&S, 5, 7) == IPC_TOO_LARGE && ipc_units_take_result(&S, 4, 7) == 4, "and the upper half is free");
    CHECK(ipc_units_take_result(&S, 1, 7) == IPC_NO_ROOM, "full");
    ipc_units_free_all(&S, 7);
    CHECK(ipc_claim(&A) == 0 && work(&A, &desk) == 0, "a result takes all of its half");
    CHECK(driver_collect(&D) == 1 && ipc_claim(&A) == 0 && work(&A, &desk) == 0, "so does nobody wait for the other half");
    CHECK(ipc_units_take_result(&S, 2, 7) == 4, "where results go is free, although there is room below");
    CHECK(driver_submit(&D, (struct job){.size = 10, .args_len = 3 * IPC_UNIT_SIZE}) == IPC_NO_ROOM, "arguments do not take it");
    ipc_units_free_all(&S, 7);
}

static void what_stands_in_the_way_for_good_is_no_room_to_wait_for(void) {
    begin(2, 8);
    CHECK(ipc_units_take_result(&S, 1, ipc_owner(0, 1)) == 4 && ipc_units_could_fit(&S, 4), "other results will be drained");
    atomic_store(&S.owner[5], IPC_OWNER_VIEW);
    CHECK(ipc_units_could_fit(&S, 2) && !ipc_units_could_fit(&S, 3), "the program may hold its values for ever");
    atomic_store(&S.owner[6], IPC_OWNER_FUNCTION);
    CHECK(ipc_units_could_fit(&S, 1) && !ipc_units_could_fit(&S, 2), "functions stay");
    publish((struct job){.size = IPC_UNIT_SIZE + 1});
    CHECK(ipc_claim(&A) == 0 && complete(&A, 0, desk.out, IPC_UNIT_SIZE + 1) == IPC_TOO_LARGE, "so it is refused at once");
    for (uint32_t k = 4; k < 8; k++) atomic_store(&S.owner[k], 0);
    CHECK(work(&A, &desk) == 0, "and stored as soon as they are gone");
}

static void a_trim_leaves_what_is_held(void) {
    begin(2, 8);
    memset(S.payload, 1, 8 * IPC_UNIT_SIZE);
    CHECK(ipc_units_take(&S, 1, 8, 1, 7) == 1 && ipc_units_take(&S, 4, 8, 1, IPC_OWNER_VIEW) == 4, "two are held");
    CHECK(ipc_units_trim(&S, 1, 8) == 5, "it says up to where something is held");
    for (uint32_t k = 0; k < 8; k++)
        CHECK(S.payload[k * IPC_UNIT_SIZE] == (k == 0 || k == 1 || k == 4), "what is free is punched out, what is held or outside is left");
    CHECK(ipc_units_used(&S) == 2, "nothing stays taken");
    CHECK(ipc_units_trim(&S, 5, 8) == 5 && ipc_units_trim(&S, 8, 8) == 8, "nothing is held there");
    ipc_units_free_all(&S, 7);
    ipc_units_free_all(&S, IPC_OWNER_VIEW);
}

/* ---- death */

static void a_task_that_was_never_claimed_is_not_charged(void) {
    begin(2, 4);
    publish(small);
    dies(0);
    CHECK(driver_settle(&D) == 0, "nobody pays");
    run_all(&B);
    CHECK(driver_collect(&D) == 1 && D.charged == 0, "another worker does it");
}

static void a_settlement_leaves_the_living_successor_alone(void) {
    begin(2, 4);
    publish(small);
    uint32_t second = publish(small);
    CHECK(ipc_claim(&A) == 0, "generation 0 claims the first");
    dies(0);
    struct ipc_worker next;
    ipc_worker_init(&next, &S, 0, 1);
    CHECK(ipc_claim(&next) == 0 && next.row == second, "generation 1 claims the second before the client has looked");
    CHECK(driver_settle(&D) == 1, "only the dead one's task is charged");
    CHECK(ipc_word_state(word_of(&S, second)) == IPC_RUNNING, "the other runs on");
    CHECK(work(&next, &desk) == 0, "and ends");
}

static void a_settlement_leaves_other_slots_alone(void) {
    begin(2, 4);
    publish(small);
    publish(small);
    CHECK(ipc_claim(&A) == 0 && ipc_claim(&B) == 0, "both run");
    dies(0);
    CHECK(driver_settle(&D) == 1, "one is charged");
    CHECK(work(&B, &desk) == 0, "the other ends");
}

static void a_finished_task_counts_although_its_worker_died_before_the_hint(void) {
    begin(2, 4);
    publish(small);
    CHECK(ipc_claim(&A) == 0 && work(&A, &desk) == 0, "done");
    atomic_store(&S.header->done[0], 0); /* as if it had died before */
    atomic_store(&S.header->done_summary, 0);
    dies(0);
    CHECK(driver_settle(&D) == 0 && driver_collect(&D) == 1, "completed, not charged");
    CHECK(driver_collect(&D) == 0, "once");
}

static void two_deaths_of_a_slot_before_the_client_looks_are_both_settled(void) {
    begin(3, 4);
    publish(small);
    publish(small);
    CHECK(ipc_claim(&A) == 0, "generation 0 dies with the first");
    dies(0);
    struct ipc_worker next;
    ipc_worker_init(&next, &S, 0, 1);
    CHECK(ipc_may_fork(&S, 0, 1) && ipc_claim(&next) == 0, "generation 1 with the second");
    struct ipc_death death = {1, 2, 11, IPC_DIED, 0};
    ipc_record_death(&S, 0, &death);
    CHECK(S.slot[0].deaths[0].status == 9 && S.slot[0].deaths[1].status == 11, "each has its entry in the death log");
    CHECK(ipc_may_fork(&S, 0, 3) && !ipc_may_fork(&S, 0, 4), "no entry is overwritten before it is settled");
    CHECK(driver_settle(&D) == 2, "each pays for its own");
    CHECK(ipc_may_fork(&S, 0, 4), "now there is room again");
}

static void a_death_rings_everybody_whoever_took_which_bit(void) {
    begin(2, 4);
    uint32_t client = atomic_load(&S.header->client_bell), one = atomic_load(&S.slot[1].bell);
    atomic_store(&S.header->sleepers[0], 1); /* the dead was asleep; of the living the dead had taken the bits */
    atomic_store(&S.header->spinners[0], 1);
    dies(0);
    CHECK(atomic_load(&S.header->client_bell) != client, "the client is rung");
    CHECK(atomic_load(&S.slot[1].bell) != one, "the other worker is rung");
    CHECK(atomic_load(&S.header->sleepers[0]) == 0 && atomic_load(&S.header->spinners[0]) == 0, "nobody counts on the dead");
    CHECK(ipc_client_wait(&D.c, 0, 10 * SECOND) == 0, "the client does not sleep beside a death");
    CHECK(driver_settle(&D) == 0, "nobody had claimed anything");
}

/* ---- a client that sleeps in an event loop */

static int wire;

static void a_result_rings_the_wire_once_while_the_client_listens(void) {
    begin(4, 4);
    wire = fresh_wire(&S);
    for (int k = 0; k < 4; k++) publish(small);
    CHECK(ipc_claim(&A) == 0 && work(&A, &desk) == 0 && rung(wire) == 0, "nobody listens");
    CHECK(ipc_client_listen(&D.c) == 1, "there is a result: it does not sleep");
    CHECK(ipc_claim(&A) == 0 && work(&A, &desk) == 0 && rung(wire) == 0, "nobody listens, still");
    CHECK(driver_collect(&D) == 2 && ipc_client_listen(&D.c) == 0, "now it sleeps");
    uint32_t bell = atomic_load(&S.header->client_bell);
    CHECK(ipc_claim(&A) == 0 && work(&A, &desk) == 0 && rung(wire) == 1, "the wire is rung");
    CHECK(atomic_load(&S.header->client_bell) != bell, "and the bell, for who sleeps on it by now");
    CHECK(ipc_claim(&A) == 0 && work(&A, &desk) == 0 && rung(wire) == 0, "once");
    ipc_client_heard(&S);
    CHECK(driver_collect(&D) == 2, "who hears it finds both");
    publish(small);
    CHECK(ipc_claim(&A) == 0 && work(&A, &desk) == 0, "one more");
    ipc_ring_client(&S);
    CHECK(rung(wire) == 0, "who has heard is not rung, come what may");
}

static void a_death_rings_the_wire_whoever_took_the_sleep(void) {
    begin(2, 4);
    wire = fresh_wire(&S);
    dies(0);
    CHECK(rung(wire) == 0, "nobody listens");
    CHECK(driver_settle(&D) == 0 && ipc_client_listen(&D.c) == 0, "it sleeps");
    atomic_store(&S.header->client_asleep, 0); /* the dead took it, and had no time to ring */
    dies(1);
    CHECK(rung(wire) == 1, "the monitor rings");
    CHECK(ipc_client_listen(&D.c) == 1, "the client does not sleep beside a death");
}

static void who_wants_a_row_is_told_through_the_wire(void) {
    begin(1, 4);
    wire = fresh_wire(&S);
    row_of_act = publish(small);
    cancel_it();
    CHECK(driver_submit(&D, small) == IPC_FULL, "its row cools");
    CHECK(ipc_client_listen(&D.c) == 0, "it sleeps in want of a row");
    CHECK(ipc_claim(&A) == IPC_EMPTY && rung(wire) == 1, "head has passed: the row may be used again");
    ipc_client_heard(&S);
}

static void a_wire_that_is_another_file_by_now_is_left_alone(void) {
    int theirs[2];
    begin(2, 4);
    wire = fresh_wire(&S);
    CHECK(ipc_client_listen(&D.c) == 0, "it sleeps");
    CHECK(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, theirs) == 0, "the task's own sockets");
    int number = S.wire, kept_aside = dup(number);
    CHECK(dup2(theirs[1], number) == number, "one of them under the number of the wire");
    ipc_ring_client(&S);
    CHECK(rung(theirs[0]) == 0, "nothing is written into it");
    CHECK(dup2(kept_aside, number) == number, "the wire itself, by another name");
    ipc_ring_client(&S);
    CHECK(rung(wire) == 1, "is rung");
    close(number);
    ipc_ring_client(&S); /* no file at all */
    CHECK(dup2(kept_aside, number) == number, "for the next test");
    close(kept_aside), close(theirs[0]), close(theirs[1]);
}

static void a_full_wire_blocks_nobody(void) {
    begin(2, 4);
    wire = fresh_wire(&S);
    CHECK(ipc_client_listen(&D.c) == 0, "it sleeps");
    for (int k = 0; k < 100000; k++) ipc_ring_client(&S); /* more than it holds: the alarm would end the test */
    CHECK(rung(wire) > 0, "it is heard");
}

/* ---- sleep */

static void publish_and_flush(void) {
    row_of_act = publish(small);
    ipc_flush_wakes(&D.c);
}
static void published_at(const char *step) {
    begin(2, 4);
    CHECK(ipc_claim(&A) == IPC_EMPTY, "nothing to do");
    at(step, publish_and_flush);
    uint64_t start = ipc_now();
    CHECK(ipc_worker_wait(&A, 0, 3 * SECOND / 2) == 0 && act == NULL, "it looks again");
    CHECK(ipc_now() - start < SECOND, "it did not sleep beside a ready task");
    CHECK(ipc_claim(&A) == 0 && work(&A, &desk) == 0, "and takes it");
}
static void a_task_published_before_the_bit_is_seen(void) { published_at("sleep:seen"); }
static void a_task_published_behind_the_bit_is_seen(void) { published_at("sleep:marked"); }

/* ---- leaving */

static void retire_it(void) { ipc_retire(&S, 0, 1); }
static void let_it_leave(void) { ipc_next_leaver(&S); }
static void retired_at(const char *step) {
    begin(2, 4);
    CHECK(ipc_claim(&A) == IPC_EMPTY, "nothing to do");
    if (step)
        at(step, retire_it);
    else
        retire_it();
    uint64_t start = ipc_now();
    CHECK(ipc_worker_wait(&A, 0, 3 * SECOND / 2) == 0 && act == NULL, "it looks again");
    CHECK(ipc_now() - start < SECOND, "it did not sleep on");
    CHECK(ipc_claim(&A) == IPC_STOP && ipc_leaver(&S) == 1, "and leaves");
}
static void a_worker_that_is_retired_before_it_sleeps_leaves(void) { retired_at(NULL); }
static void a_worker_that_is_retired_behind_its_look_at_the_bell_leaves(void) { retired_at("sleep:seen"); }
static void a_worker_that_is_retired_behind_its_bit_leaves(void) { retired_at("sleep:marked"); }

static void retired_workers_leave_one_at_a_time_between_tasks(void) {
    begin(4, 4);
    for (int k = 0; k < 3; k++) publish(small);
    CHECK(ipc_claim(&A) == 0, "a task");
    ipc_retire(&S, 0, 1);
    ipc_retire(&S, 1, 1);
    CHECK(ipc_claim(&B) == IPC_STOP && ipc_leaver(&S) == 2, "one that has no task leaves at once");
    CHECK(work(&A, &desk) == 0, "one that has a task does it");
    CHECK(ipc_claim(&A) == 0 && work(&A, &desk) == 0, "and the next one, as long as the other leaves");
    CHECK(ipc_worker_wait(&A, 0, 0) == 0, "there is one more");
    struct ipc_worker successor;
    ipc_worker_init(&successor, &S, 1, 1);
    CHECK(ipc_claim(&successor) == 0 && work(&successor, &desk) == 0, "the successor stays");
    ipc_next_leaver(&S);
    CHECK(ipc_claim(&successor) == IPC_EMPTY && ipc_claim(&A) == IPC_STOP && ipc_leaver(&S) == 1, "then it leaves");
    ipc_next_leaver(&S);
}

static void a_worker_whose_turn_comes_while_it_goes_to_sleep_leaves(void) {
    begin(2, 4);
    ipc_retire(&S, 1, 1);
    CHECK(ipc_claim(&B) == IPC_STOP, "the other leaves first");
    ipc_retire(&S, 0, 1);
    CHECK(ipc_claim(&A) == IPC_EMPTY && ipc_worker_wait(&A, 0, SECOND / 1000) == IPC_EMPTY, "it sleeps until then");
    at("sleep:seen", let_it_leave);
    uint64_t start = ipc_now();
    CHECK(ipc_worker_wait(&A, 0, 3 * SECOND / 2) == 0 && act == NULL && ipc_now() - start < SECOND, "and no longer");
    CHECK(ipc_claim(&A) == IPC_STOP, "it leaves");
    ipc_next_leaver(&S);
    uint32_t zero = atomic_load(&S.slot[0].bell);
    ipc_next_leaver(&S);
    CHECK(atomic_load(&S.slot[0].bell) != zero, "who sleeps is told that it may leave");
}

static void a_worker_that_leaves_passes_its_wake_on(void) {
    begin(4, 4);
    atomic_store(&S.header->sleepers[0], 3);
    publish(small);
    CHECK(atomic_load(&S.header->sleepers[0]) == 2 && atomic_load(&S.slot[1].bell) == 0, "one is woken");
    ipc_retire(&S, 0, 1);
    CHECK(ipc_claim(&A) == IPC_STOP, "which leaves");
    ipc_set_phase(&A, IPC_LEAVING);
    CHECK(atomic_load(&S.slot[1].bell) == 1, "the other one is woken instead");
    ipc_next_leaver(&S);
    atomic_store(&S.header->sleepers[0], 0);
}

static void publish_three(void) {
    for (int k = 0; k < 3; k++) publish(small);
}
static void a_flush_wakes_a_worker_for_each_ready_task(void) {
    begin_with(3, 8, 4);
    atomic_store(&S.header->sleepers[0], 7);
    publish_three();
    CHECK(atomic_load(&S.slot[0].bell) == 1 && atomic_load(&S.header->sleepers[0]) == 6, "one while publishing, because nobody was awake");
    ipc_flush_wakes(&D.c);
    CHECK(atomic_load(&S.header->sleepers[0]) == 0, "then the others");
    for (uint32_t slot = 0; slot < 3; slot++) CHECK(atomic_load(&S.slot[slot].bell) == 1, "nobody is woken twice");
}

static void who_ends_its_guard_wakes_a_worker_for_each_ready_task(void) {
    struct ipc_worker last;
    begin_with(4, 8, 4);
    atomic_store(&S.header->sleepers[0], 7);
    ipc_worker_init(&last, &S, 3, 0);
    last.worked = 1; /* else it would not stand guard */
    at("guard:set", publish_three);
    CHECK(ipc_worker_wait(&last, 0, SECOND) == 0 && act == NULL, "it sees them");
    CHECK(atomic_load(&S.header->sleepers[0]) == 0 && atomic_load(&S.header->guard) == 0, "nobody sleeps beside three tasks, nobody is on guard");
    for (uint32_t slot = 0; slot < 3; slot++) CHECK(atomic_load(&S.slot[slot].bell) == 1, "each was woken, once");
}

static void a_heal_finds_what_lost_its_hint(void) {
    begin(2, 4);
    publish(small);
    CHECK(ipc_claim(&A) == 0 && work(&A, &desk) == 0, "done");
    atomic_store(&S.header->done[0], 0);
    atomic_store(&S.header->done_summary, 0);
    CHECK(ipc_idle_scan(&D.c) == 0 && driver_collect(&D) == 0, "one look is no proof: the worker may be about to set it");
    CHECK(ipc_idle_scan(&D.c) == 1 && driver_collect(&D) == 1, "two are");
    D.c.healed = 0;
}

static void a_word_that_nobody_would_move_on_is_damage(void) {
    begin(2, 4);
    uint32_t row = publish(small);
    uint64_t word = atomic_load(&S.row[row].word);
    CHECK(ipc_idle_scan(&D.c) == 0, "as published");
    atomic_store(&S.row[row].word, word ^ UINT64_C(1) << IPC_SEQ_SHIFT);
    CHECK(ipc_idle_scan(&D.c) == IPC_DAMAGED, "nobody would claim another seq");
    atomic_store(&S.row[row].word, word);
    CHECK(ipc_claim(&A) == 0 && ipc_idle_scan(&D.c) == 0, "its owner lives");
    word = atomic_load(&S.row[row].word);
    atomic_store(&S.row[row].word, word + (UINT64_C(5) << IPC_GENERATION_SHIFT));
    CHECK(ipc_idle_scan(&D.c) == IPC_DAMAGED, "nobody would settle a generation that there is not");
    atomic_store(&S.row[row].word, word);
    CHECK(work(&A, &desk) == 0 && driver_collect(&D) == 1, "done");
}

/* ---- times */

static void its_start_is_not_known_yet(void) {
    struct ipc_running r;
    CHECK(ipc_running(&S, 0, &r) && r.started == 0, "the start of an earlier task is not that of this one, although their words are the same");
}
static void a_start_is_never_that_of_an_earlier_task(void) {
    begin(2, 4);
    publish(small);
    publish(small);
    CHECK(ipc_claim(&A) == 0 && work(&A, &desk) == 0, "the first, in one row");
    at("claim:owned", its_start_is_not_known_yet);
    CHECK(ipc_claim(&A) == 0 && act == NULL && work(&A, &desk) == 0, "the second, in the other");
}

static void the_start_of_each_item_stands_in_its_row(void) {
    begin(2, 4);
    uint32_t row = publish((struct job){.size = 10, .items = 2});
    struct job j;
    CHECK(S.row[row].started == 0, "nobody has claimed it");
    CHECK(ipc_claim(&A) == 0 && S.row[row].started == A.started && S.row[row].pid == getpid(), "claimed");
    memcpy(&j, S.row[row].body, sizeof(j));
    for (uint32_t k = 1; k <= 2; k++) {
        if (k == 1) CHECK(ipc_begin_items(&A) == 0, "decoded");
        uint64_t began = S.row[row].started;
        CHECK(began == atomic_load(&S.slot[0].started) && began >= D.c.since[row], "as the monitor sees it");
        pattern_fill(desk.out, 10, j.id, k);
        CHECK(commit(&A, kind_of(j.id, k), desk.out, 10) == 0, "committed");
        CHECK(S.row[row].started == (k == 1 ? A.ended : began), "each starts where the one before has ended");
    }
    struct ipc_piece nothing = {"", 0};
    struct ipc_task waits = {.piece = &nothing, .pieces = 1, .since = 77};
    int other = ipc_publish(&D.c, &waits);
    CHECK(other >= 0 && D.c.since[other] == 77, "it has waited since it was queued, not since it was published");
    CHECK(ipc_cancel(&D.c, (uint32_t)other) == 1, "taken back");
}

static void a_death_charges_what_was_not_used_before(void) {
    begin(2, 4);
    publish(small);
    CHECK(ipc_claim(&A) == 0, "it runs");
    uint64_t before = ipc_now();
    atomic_store(&S.slot[0].user_ns, 1000);
    atomic_store(&S.slot[0].system_ns, 50);
    while (ipc_now() < before + 2000) {}
    ipc_book_spent(&S, 0, 0, 1500, 20, 700);
    struct ipc_spent spent = S.slot[0].spent[0];
    CHECK(spent.user == 500 && spent.system == 0 && spent.resident == 700, "the rest is its own");
    CHECK(ipc_from_brief(spent.run) >= 1990 && ipc_from_brief(spent.run) < SECOND, "and the time until now");
    CHECK(work(&A, &desk) == 0, "done after all");
    ipc_book_spent(&S, 0, 5, 1500, 20, 700);
    CHECK(S.slot[0].spent[1].run == 0, "between two tasks there is none");
}

static uint64_t busy_of(const struct ipc_spans *spans) {
    uint64_t sum = 0;
    for (uint32_t k = 0; k < IPC_SPANS; k++) sum += atomic_load(&spans->busy[k]);
    return sum;
}
static const uint64_t SPAN = UINT64_C(1) << IPC_SPAN_SHIFT;

static void what_is_spent_stands_in_its_spans(void) {
    static struct ipc_spans spans;
    begin(2, 4);
    memset(&spans, 0, sizeof(spans));
    ipc_spend(&spans, SPAN / 2, 2 * SPAN + 5);
    CHECK(spans.busy[0] == SPAN / 2 && spans.busy[1] == SPAN && spans.busy[2] == 5 && busy_of(&spans) == SPAN + SPAN / 2 + 5, "spread over three");
    ipc_spend(&spans, (IPC_SPANS - 1) * SPAN, IPC_SPANS * SPAN - 1);
    CHECK(spans.folds == 0 && spans.busy[IPC_SPANS - 1] == SPAN - 1, "up to the last one");
    uint64_t all = busy_of(&spans);
    ipc_spend(&spans, IPC_SPANS * SPAN, IPC_SPANS * SPAN + 1);
    CHECK(spans.folds == 1 && busy_of(&spans) == all + 1, "then neighbours become one, and nothing is lost");
    CHECK(spans.busy[0] == SPAN / 2 + SPAN && spans.busy[1] == 5 && spans.busy[IPC_SPANS / 2 - 1] == SPAN - 1 && spans.busy[IPC_SPANS / 2] == 1, "in its place");
    ipc_spend(&spans, 0, UINT64_C(1) << 50); /* thirteen days at once */
    CHECK(busy_of(&spans) == all + 1 + (UINT64_C(1) << 50), "any length fits");
    CHECK(spans.folds > 10 && (UINT64_C(1) << 50) >> (IPC_SPAN_SHIFT + spans.folds) >= IPC_SPANS / 2 - 1, "no coarser than it must be");
}

static void damage_of_times_is_harmless(void) {
    static struct ipc_spans spans;
    begin(2, 4);
    uint64_t x = 1;
    struct ipc_times times;
    for (int round = 0; round < 2000; round++) {
        unsigned char *bytes = (unsigned char *)&S.slot[0];
        for (size_t k = 0; k < sizeof(S.slot[0]); k += 8) {
            x = mix(x);
            memcpy(bytes + k, &x, 8);
        }
        struct ipc_span span;
        ipc_book(&S, 0, S.created + (x & 0xffff), S.created + (x & 0xffffffffffff), &span);
        CHECK(span.to == 0 || (span.busy >= S.slot[0].spans.busy && span.busy < S.slot[0].spans.busy + IPC_SPANS), "inside of the slot");
        ipc_book(&S, 0, x, mix(x), &span);
        ipc_book_death(&S, 0, ipc_now());
        ipc_slot_times(&S, 0, ipc_now(), &times);
        ipc_slot_spans(&S, 0, ipc_now(), &spans);
    }
    begin(2, 4);
}

static void a_death_ends_the_time_of_its_task(void) {
    begin(2, 4);
    struct ipc_times before, after;
    publish(small);
    ipc_slot_begin(&S, 0, 0);
    ipc_slot_forked(&S, 0, 1);
    CHECK(ipc_claim(&A) == 0, "claimed");
    ipc_set_phase(&A, IPC_IDLE);
    A.started -= SECOND, atomic_store(&S.slot[0].started, A.started), S.created -= 2 * SECOND; /* as if that were long ago */
    ipc_slot_times(&S, 0, ipc_now(), &before);
    CHECK(before.doing == IPC_IS_BUSY && before.busy_ns >= SECOND, "what it is in the middle of counts");
    dies(0);
    uint64_t now = ipc_now();
    ipc_slot_times(&S, 0, now, &after);
    CHECK(after.doing == IPC_REPLACED && after.busy_ns >= before.busy_ns && busy_of(&S.slot[0].spans) == after.busy_ns, "and stays when it is dead");
    ipc_slot_times(&S, 0, now + SECOND, &before);
    CHECK(before.busy_ns == after.busy_ns && before.start_ns == after.start_ns + SECOND, "from then on nobody is ready");
    CHECK(driver_settle(&D) == 1, "charged");
}

static void a_wait_for_room_is_nobodys_run_time(void) {
    begin(2, 4);
    uint32_t row = publish((struct job){.size = 1000});
    CHECK(ipc_units_take_result(&S, 2, 7) == 2, "no room for a result");
    pid_t other = fork();
    CHECK(other >= 0, "fork");
    if (other == 0) { /* gives the room back when the worker has waited for a while */
        while (atomic_load(&S.slot[0].wait_ns) < 5000000) sched_yield();
        ipc_units_free_all(&S, 7);
        _exit(0);
    }
    uint64_t start = ipc_now();
    CHECK(ipc_claim(&A) == 0 && work(&A, &desk) == 0, "it waited, and has got it");
    uint64_t took = ipc_now() - start, waited = atomic_load(&S.slot[0].wait_ns), run = ipc_from_brief(S.row[row].spent.run);
    CHECK(waited >= 5000000 && waited <= took, "the wait is counted");
    CHECK(run <= (took - waited) + (took - waited) / 1000 + 1, "but not as the task's");
    CHECK(busy_of(&S.slot[0].spans) <= took - waited, "nor as the worker's");
    waitpid(other, NULL, 0);
}

static void a_brief_is_near_its_number(void) {
    begin(2, 4);
    uint64_t last = 0;
    for (uint64_t n = 0; n < UINT64_C(1) << 61; n = n < 5000 ? n + 1 : n + n / 1009) {
        uint64_t back = ipc_from_brief(ipc_brief(n)), off = back > n ? back - n : n - back;
        CHECK(off <= n / 2047 && back >= last, "to 0.05 %, and in order");
        last = back;
    }
    CHECK(ipc_from_brief(ipc_brief(UINT64_MAX)) == UINT64_C(1) << 62 && ipc_from_brief(UINT16_MAX) == UINT64_C(1) << 62, "the largest");
}

static void quantiles_are_near_those_of_the_numbers(void) {
    static struct ipc_tally t;
    begin(2, 4);
    memset(&t, 0, sizeof(t));
    CHECK(ipc_quantile(&t, 0.5) == 0, "of nothing");
    ipc_count(&t, 0, (struct ipc_spent){.run = ipc_brief(123456)});
    CHECK(ipc_quantile(&t, 0.5) == t.longest_ns && t.longest_ns == t.shortest_ns, "of one");
    memset(&t, 0, sizeof(t));
    for (uint64_t k = 1; k <= 1000; k++) /* of every other one the CPU time was looked at */
        ipc_count(&t, k % 10 == 0, (struct ipc_spent){ipc_brief(k * 1000), ipc_brief(300), ipc_brief(7), k % 2 ? 0 : ipc_brief(k)});
    for (uint64_t percent = 1; percent <= 100; percent++) {
        uint64_t ns = ipc_quantile(&t, (double)percent / 100), right = percent * 10000;
        CHECK(ns > right - right / 16 - 1000 && ns < right + right / 16 + 1000, "to 6 %");
    }
    CHECK(t.count == 1000 && t.failed == 100 && t.longest_ns == ipc_from_brief(ipc_brief(1000000)) && t.resident == 1000, "and the rest is added up");
    CHECK(t.user_ns == 500 * 300 && t.system_ns == 500 * 7, "CPU time, where somebody has looked");
    CHECK(t.total_ns > 500500000 - 500500 && t.total_ns < 500500000 + 500500, "the sum to 0.1 %");
}

/* ---- deadlines */

static void a_claim_without_its_start_time_is_timed_from_first_sight(void) {
    begin(2, 4);
    struct ipc_watch watch = {0};
    struct ipc_running expired[2];
    uint32_t count;
    struct job timed = {.size = 10, .timeout_ms = 100};
    publish(timed);
    CHECK(ipc_claim(&A) == 0, "claimed");
    atomic_store(&S.slot[0].started_word, 0); /* as if it had stopped right after the claim */
    uint64_t now = ipc_now(), next = ipc_deadlines(&S, &watch, now, expired, 2, &count);
    CHECK(count == 0 && next == now + 100000000, "its time starts when it is first seen");
    CHECK(ipc_deadlines(&S, &watch, next, expired, 2, &count) && count == 1, "and is over 100 ms later");
    CHECK(ipc_condemn(&S, expired[0].row, expired[0].word), "condemned");
    CHECK(work(&A, &desk) == IPC_LOST, "lost");
    dies(0);
    CHECK(driver_settle(&D) == 1, "charged");
}

/* ---- progress */

static double progress_of(uint32_t slot) {
    struct ipc_running r = {0};
    double x = -1;
    if (ipc_running(&S, slot, &r) && r.progress != IPC_NO_PROGRESS) memcpy(&x, &r.progress, sizeof(x));
    return x;
}
static void nothing_is_said_yet(void) { CHECK(progress_of(0) == -1, "what runs now has said nothing, whatever ran here before"); }
static void what_an_item_says_of_itself_is_not_said_of_the_next_one(void) {
    begin(2, 4);
    publish(small);
    publish(small);
    CHECK(ipc_claim(&A) == 0 && progress_of(0) == -1, "nothing is said");
    ipc_progress(&A, 0.5);
    CHECK(progress_of(0) == 0.5, "half");
    ipc_progress(&A, 0);
    CHECK(progress_of(0) == 0, "zero is something");
    ipc_progress(&A, 0.0 / 0.0);
    CHECK(progress_of(0) == -1, "no number is nothing");
    ipc_progress(&A, 1);
    CHECK(work(&A, &desk) == 0 && progress_of(0) == -1, "done");
    at("claim:owned", nothing_is_said_yet);
    CHECK(ipc_claim(&A) == 0 && act == NULL && work(&A, &desk) == 0, "the next task");
    driver_collect(&D);
    struct job chunk = {.size = 10, .items = 2}, j;
    publish(chunk);
    CHECK(ipc_claim(&A) == 0, "a chunk");
    read_order(&A, &j);
    CHECK(ipc_begin_items(&A) == 0, "decoded");
    for (uint32_t k = 1; k <= 2; k++) {
        ipc_progress(&A, 7);
        pattern_fill(desk.out, 10, j.id, k);
        CHECK(commit(&A, kind_of(j.id, k), desk.out, 10) == 0 && progress_of(0) == -1, "the next item, or none");
    }
}

/* ---- memory limits */

static void a_limited_task_is_looked_at_before_it_can_be_over(void) {
    begin(2, 4);
    struct ipc_watch watch = {0};
    struct ipc_running expired[2];
    struct ipc_limited limited[2];
    uint32_t count;
    struct job greedy = {.size = 10, .memory_limit = 200000000, .timeout_ms = 60000};
    publish(greedy);
    CHECK(ipc_limited(&S, limited) == 0, "it does not run yet");
    CHECK(ipc_claim(&A) == 0, "claimed");
    uint64_t now = ipc_now();
    CHECK(ipc_deadlines(&S, &watch, now, expired, 2, &count) == now + 20000000 && count == 0, "the fastest fills 200 MB in 20 ms");
    CHECK(ipc_limited(&S, limited) == 1 && limited[0].slot == 0 && limited[0].limit == 200000000, "it is seen");
    CHECK(limited[0].started && limited[0].anonymous && limited[0].peak >= limited[0].anonymous, "with what its worker has noted");
    CHECK(work(&A, &desk) == 0 && ipc_limited(&S, limited) == 0, "and nobody looks at it when it is done");
    publish(small);
    CHECK(ipc_claim(&A) == 0 && ipc_limited(&S, limited) == 0, "nor at a task without a limit");
    CHECK(work(&A, &desk) == 0 && driver_collect(&D) == 2, "both are done");
    CHECK(ipc_deadlines(&S, &watch, now, expired, 2, &count) == now + 20000000, "the monitor goes on looking");
    atomic_store(&S.header->monitor_idle, 1);
    CHECK(ipc_deadlines(&S, &watch, now, expired, 2, &count) == UINT64_MAX, "until it has gone idle");
}

static void a_task_whose_output_is_caught_is_looked_at(void) {
    begin(2, 4);
    struct ipc_piece nothing = {"", 0};
    struct ipc_task prints = {.piece = &nothing, .pieces = 1, .flags = IPC_CAPTURE};
    int row = ipc_publish(&D.c, &prints);
    CHECK(row >= 0 && atomic_load(&S.header->armed) == 1 && atomic_load(&S.header->shortest_ms) == IPC_LOOK_MS, "now and then");
    prints.timeout_ms = 7;
    int other = ipc_publish(&D.c, &prints);
    CHECK(other >= 0 && atomic_load(&S.header->shortest_ms) == 7, "or when it may be over its deadline");
    CHECK(ipc_cancel(&D.c, (uint32_t)row) && ipc_cancel(&D.c, (uint32_t)other) && atomic_load(&S.header->armed) == 0, "taken back");
}

static void memory_of_an_item_is_counted_from_its_own_start(void) {
    begin(1, 4);
    struct ipc_limited limited[2];
    struct job chunk = {.size = 10, .items = 2, .memory_limit = UINT64_C(1) << 40}, j;
    size_t much = 64 << 20;
    publish(chunk);
    CHECK(ipc_claim(&A) == 0 && ipc_begin_items(&A) == 0, "item 1 starts");
    CHECK(ipc_limited(&S, limited) == 1, "and is seen");
    uint64_t before = limited[0].anonymous, faults = limited[0].faults, word = limited[0].word;
    unsigned char *kept = mmap(NULL, much, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(kept != MAP_FAILED, "memory");
    memset(kept, 1, much);
    memcpy(&j, S.row[0].body, sizeof(j));
    pattern_fill(desk.out, 10, j.id, 1);
    CHECK(commit(&A, kind_of(j.id, 1), desk.out, 10) == 0, "item 2 starts");
    CHECK(ipc_limited(&S, limited) == 1 && limited[0].started, "and is seen");
    CHECK(limited[0].anonymous - before > much / 2 && limited[0].faults > faults, "item 1's memory is not its own");
    CHECK(!ipc_condemn(&S, limited[0].row, word), "and a look at item 1 that comes late harms nobody");
    CHECK(limited[0].dirtied == UINT64_MAX, "there is nothing here that matters against a limit of a terabyte");
    munmap(kept, much);
    pattern_fill(desk.out, 10, j.id, 2);
    CHECK(commit(&A, kind_of(j.id, 2), desk.out, 10) == 0, "done");
}

/* What a process has inherited and only reads is not dirtied, and shows in the fast count all the same. */
static void what_was_inherited_counts_when_it_is_written_to(void) {
    begin(2, 1);
    size_t much = 32 << 20;
    unsigned char *inherited = mmap(NULL, much, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(inherited != MAP_FAILED, "memory");
    madvise(inherited, much, MADV_NOHUGEPAGE);
    memset(inherited, 1, much);
    pid_t child = fork();
    if (child == 0) {
        struct ipc_memory first, then;
        uint64_t before, after;
        CHECK(ipc_memory_of(0, &first) == 0 && ipc_dirtied_of(0, &before) == 0, "the kernel says");
        unsigned char *shared = mmap(NULL, much, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
        CHECK(shared != MAP_FAILED, "memory");
        /* Filled by the kernel: what we write ourselves makes a sanitizer take memory of its own. */
        CHECK(syscall(SYS_read, open("/dev/zero", O_RDONLY), shared, much) == (long)much, "and filled");
        memset(inherited, 2, much);
        CHECK(ipc_memory_of((uint32_t)getpid(), &then) == 0 && ipc_dirtied_of((uint32_t)getpid(), &after) == 0, "the kernel says");
        CHECK(first.anonymous >= much, "the fast count has it from the start");
        CHECK(then.anonymous < first.anonymous + much / 2, "and shows no change");
        CHECK(after - before > much / 2, "the slow count does");
        CHECK(after - before < much + much / 2, "and leaves shared memory out");
        CHECK(then.shared >= first.shared + much / 2, "which the fast one knows too");
        _exit(0);
    }
    int status;
    CHECK(child > 0 && waitpid(child, &status, 0) == child && status == 0, "as promised");
    munmap(inherited, much);
    struct ipc_memory nobody;
    uint64_t nothing;
    CHECK(ipc_memory_of((uint32_t)child, &nobody) == IPC_EMPTY && ipc_dirtied_of((uint32_t)child, &nothing) == IPC_EMPTY, "of the dead it says nothing");
}

/* Two threads of the client: one has looked, with the lock; before it says that it sleeps the other one finds no row. */
static void a_thread_that_finds_no_row_is_heard_by_one_that_is_about_to_sleep(void) {
    begin(2, 1);
    struct ipc_look look;
    uint64_t timeout = 10 * SECOND, before = ipc_now();
    publish(small);
    uint32_t row = publish(small);
    CHECK(driver_cancel(&D, row), "it cools");
    ipc_client_look(&D.c, &look);
    CHECK(driver_submit(&D, small) == IPC_FULL, "no row");
    CHECK(ipc_client_sleep(&S, &look, &timeout) == 0 && ipc_now() - before < 5 * SECOND, "it looks again at once");
    ipc_client_look(&D.c, &look);
    timeout = SECOND / 1000;
    CHECK(ipc_client_sleep(&S, &look, &timeout) == IPC_EMPTY, "and sleeps when it knows of it");
    run_all(&A);
    CHECK(ipc_client_sleep(&S, &look, &timeout) == 0, "until head has passed the row");
}

#define TEST(name) {#name, name}
static const struct { const char *name; void (*run)(void); } tests[] = {
    TEST(a_stalled_claimer_cannot_claim_a_later_use_through_an_old_entry), TEST(a_cancelled_task_is_never_claimed),
    TEST(a_claimed_task_is_never_cancelled), TEST(a_stale_entry_does_not_block_the_task_behind_it),
    TEST(a_row_is_not_used_again_before_head_has_passed_its_entry), TEST(a_claimer_that_stops_before_head_is_helped),
    TEST(a_row_number_from_the_ring_is_checked), TEST(a_condemned_task_is_never_done), TEST(a_condemned_chunk_keeps_its_committed_items),
    TEST(a_finished_task_is_never_condemned), TEST(a_condemnation_never_hits_the_next_use_of_a_row),
    TEST(a_condemnation_never_hits_the_next_item_of_a_chunk), TEST(a_task_that_stores_its_result_is_not_condemned),
    TEST(a_done_bit_is_a_hint_and_never_proof), TEST(a_sweep_between_the_two_hints_does_not_lose_the_row),
    TEST(a_sweep_before_the_hints_does_not_lose_the_row), TEST(a_sweep_behind_the_summary_does_not_lose_the_row), TEST(a_unit_of_another_owner_is_left_alone), TEST(a_run_lost_half_way_is_rolled_back),
    TEST(what_can_never_fit_is_refused_at_once), TEST(pieces_stand_at_multiples_of_a_cache_line),
    TEST(a_view_is_the_programs_until_it_is_dropped), TEST(units_beyond_a_view_go_with_its_row),
    TEST(what_a_task_keeps_is_its_workers_before_the_row_is_done), TEST(a_client_that_collects_at_once_leaves_what_is_kept_alone),
    TEST(what_the_dead_have_kept_is_freed_with_them_and_nothing_else), TEST(generations_of_what_is_kept_wrap),
    TEST(a_condemned_task_that_has_taken_its_arguments_over_loses_them_once), TEST(arguments_do_not_wait_for_what_is_kept),
    TEST(arguments_and_results_have_a_half_each), TEST(what_stands_in_the_way_for_good_is_no_room_to_wait_for), TEST(a_trim_leaves_what_is_held),
    TEST(a_task_that_was_never_claimed_is_not_charged),
    TEST(a_settlement_leaves_the_living_successor_alone), TEST(a_settlement_leaves_other_slots_alone),
    TEST(a_finished_task_counts_although_its_worker_died_before_the_hint),
    TEST(two_deaths_of_a_slot_before_the_client_looks_are_both_settled), TEST(a_death_rings_everybody_whoever_took_which_bit),
    TEST(a_task_published_before_the_bit_is_seen), TEST(a_task_published_behind_the_bit_is_seen), TEST(a_flush_wakes_a_worker_for_each_ready_task),
    TEST(a_worker_that_is_retired_before_it_sleeps_leaves), TEST(a_worker_that_is_retired_behind_its_look_at_the_bell_leaves),
    TEST(a_worker_that_is_retired_behind_its_bit_leaves), TEST(retired_workers_leave_one_at_a_time_between_tasks),
    TEST(a_worker_whose_turn_comes_while_it_goes_to_sleep_leaves), TEST(a_worker_that_leaves_passes_its_wake_on),
    TEST(who_ends_its_guard_wakes_a_worker_for_each_ready_task), TEST(a_heal_finds_what_lost_its_hint), TEST(a_word_that_nobody_would_move_on_is_damage),
    TEST(a_claim_without_its_start_time_is_timed_from_first_sight),
    TEST(what_an_item_says_of_itself_is_not_said_of_the_next_one),
    TEST(a_start_is_never_that_of_an_earlier_task), TEST(the_start_of_each_item_stands_in_its_row), TEST(a_death_charges_what_was_not_used_before),
    TEST(what_is_spent_stands_in_its_spans), TEST(damage_of_times_is_harmless),
    TEST(a_death_ends_the_time_of_its_task), TEST(a_wait_for_room_is_nobodys_run_time), TEST(a_brief_is_near_its_number),
    TEST(quantiles_are_near_those_of_the_numbers),
    TEST(a_limited_task_is_looked_at_before_it_can_be_over), TEST(a_task_whose_output_is_caught_is_looked_at),
    TEST(memory_of_an_item_is_counted_from_its_own_start),
    TEST(what_was_inherited_counts_when_it_is_written_to),
    TEST(a_result_rings_the_wire_once_while_the_client_listens), TEST(a_death_rings_the_wire_whoever_took_the_sleep),
    TEST(who_wants_a_row_is_told_through_the_wire), TEST(a_thread_that_finds_no_row_is_heard_by_one_that_is_about_to_sleep), TEST(a_wire_that_is_another_file_by_now_is_left_alone), TEST(a_full_wire_blocks_nobody),
};

int main(int argc, char **argv) {
    unsigned n = 0;
    alarm(20); /* a claim that runs in a circle is a failure too */
    for (size_t k = 0; k < sizeof(tests) / sizeof(*tests); k++) {
        int without = argc > 1 && argv[1][0] == '-', this = argc > 1 && !strcmp(argv[1] + without, tests[k].name);
        if (argc > 1 && this == without) continue;
        trying("%s", tests[k].name);
        tests[k].run();
        end();
        n++;
    }
    printf("steps: %u promises kept\n", n);
    return n == 0;
}
