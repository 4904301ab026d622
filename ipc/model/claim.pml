/* claim.pml - who owns a row, and who ends it (DESIGN.md, section 2; the steps have the same names).
 *
 * Modelled: Publish, Claim, Complete (STORING, chunk RUNNING 0 -> 1 -> .. -> DONE), payload units taken one by one, a chunk's
 *   area that moves to a larger run (result_ref), a chunk without room that offers its items and is drained (offered, drained),
 *   Condemn (deadline of the monitor, Future.kill of the client), Death, Settle, Cancel, row re-use with ring == rows.
 *   One client, 2 workers, a monitor that restarts under generation+1 whenever it likes, a killer that may SIGKILL a
 *   worker between any two steps. No timeouts: what only a timeout would repair shows as a stuck state.
 * Reduced: private work is merged into the next shared access; head and tail of one look are read together (a mixed pair
 *   equals a pair read at one moment, tail only grows); the settlement of one row is one step; a sleeper is a guard
 *   ("ring not empty", "summary or deaths") whose wake-ups are the subject of sleep.pml; the first kill hits worker 0
 *   (the workers are symmetric). Memory is sequentially consistent.
 * Checked: a task is claimed by one living worker at a time; ends exactly once; attempts == claims; committed items
 *   stand, carry their result, are delivered once and never run again; a unit has one owner, is freed once, all FREE at the end; all rows
 *   FREE at the end; tail - head <= N; a kill hits only the attempt it was decided for; no stuck state.
 * Not checked: weak memory, wrap of seq and generation, more than 2 workers, the 4 death records (fork of g+4), death of
 *   client or monitor, damaged words, payload bytes, runs of adjacent units, livelock (two takers that roll back for ever).
 *
 * Sizes:  T tasks · R rows · N ring · U units · K kills · D deadlines · F Future.kill · C cancels · A attempts · masks of
 *   tasks: CHUNK (NI items each), BIG (result needs NEED units; with BIGITEMS every item of a chunk does, else the last)
 * TOOBIG: so often a result may turn out never to fit, because functions have been stored; a small error is stored in its place.
 * DEP: task 0 does not end before the last task has. VIEW: units outlive the row, as a
 *   result that the user still holds (the core copies results, it has no such views).
 * Planted faults: OWNER_LATE HEAD_FIRST WEAK_CAS NO_GEN ROWS_FIRST SEEN_LAST BIT_FIRST BIT_TRUSTED WORD_FIRST REUSE_EARLY LOOSE_CONDEMN
 *   DONE_STORE ITEM_FIRST NO_DONE_SCAN NO_SEQ_UNITS KEEP_UNITS NO_HEAD_RING CLIENT_HELPS NO_OFFER OFFER_LATE OFFER_NO_WAIT OFFER_GO_ON
 *   DRAIN_EARLY SETTLE_ALL FREE_FIRST OLD_FIRST FREE_BY_REF GIVE_UP_OFFERING (see run.py)
 */
#ifndef T
#define T 2
#endif
#ifndef R
#define R 2
#endif
#ifndef N
#define N R
#endif
#ifndef U
#define U 1
#endif
#ifndef NEED
#define NEED 1
#endif
#ifndef K
#define K 1
#endif
#ifndef D
#define D 0
#endif
#ifndef F
#define F 0
#endif
#ifndef C
#define C 0
#endif
#ifndef A
#define A 2
#endif
#ifndef NI
#define NI 2
#endif
#ifndef TOOBIG
#define TOOBIG 0
#endif
#ifndef CHUNK
#define CHUNK 0
#endif
#ifndef BIG
#define BIG 0
#endif
#define W 2

#define FREE 0
#define READY 1
#define RUNNING 2
#define STORING 3
#define DONE 4
#define CONDEMNED 5

typedef Row {
	byte st, slot, gen, seq, item;	/* the word: compared and exchanged as one */
	byte task, base, n;		/* arguments: items base+1 .. base+n of the task (n is 0 for a single task) */
	byte res[NI + 1];		/* frame of item k, 1..n (single: 1), in the area: task+1; 0: the frame is not there */
	byte ref;			/* result_ref: mask of the units that are the area; 0: the body of the row */
	byte first;			/* the item that the first frame of the area belongs to */
	byte off, dr;			/* offered by the worker, drained by the client */
	byte last, got			/* client, private: position after its last entry; items drained */
}
Row row[R];
byte ring_r[N], ring_q[N], head, tail;
byte done; bit summary;
byte unit[U];				/* 0, or OWN(row, seq) */
byte gen[W], reaped[W], deaths;
byte life[W];				/* 0 lives · 1 killed · 2 stopped: waitid returns · 3 reaped */
byte kills;
/* what only the checker sees */
byte holds[W];				/* task+1 that a living worker holds */
byte claims[T], attempts[T], ended[T], stands[T];
byte nofit = TOOBIG;			/* so often a result turns out never to fit (a function was stored): a small error is stored instead */
bit fin[T];				/* somebody saw the task end: what a dependent task waits for */
byte nended;

#define OWN(r, q)	(1 + (r) + R * (q))
#define CHUNKED(t)	((CHUNK >> (t)) & 1)
#define BIGGISH(t)	((BIG >> (t)) & 1)
#ifdef BIGITEMS
#define ALLBIG 1
#else
#define ALLBIG 0
#endif
#ifdef OFFER_GO_ON
#define HANDS_FREE 1
#else
#define HANDS_FREE (!offering)
#endif
#if NI > 2
#define NO_FRAMES	row[r].res[1] = 0; row[r].res[2] = 0; row[r].res[3] = 0
#else
#define NO_FRAMES	row[r].res[1] = 0; row[r].res[2] = 0
#endif
#define OFFERS(r)	(row[r].st == STORING && row[r].n && row[r].off > row[r].got)
#ifdef BIGITEMS
#define LARGE(t, k, n)	BIGGISH(t)
#else
#define LARGE(t, k, n)	(BIGGISH(t) && (k) == (n))
#endif
#ifdef REUSE_EARLY
#define USABLE(r)	(row[r].st == FREE)
#else
#define USABLE(r)	(row[r].st == FREE && head >= row[r].last)
#endif
#if R == 1
#define ANY_USABLE	USABLE(0)
#else
#define ANY_USABLE	(USABLE(0) || USABLE(1))
#endif
#define MINE(s, i)	(row[r].st == s && row[r].slot == w && row[r].gen == g && row[r].seq == q && row[r].item == i)

/* ---------------------------------------------------------------------------------------------------- worker */
/* A failed compare-and-swap means CONDEMNED: drop the result, claim nothing, exit (the monitor reaps it). */
inline cas(s0, i0, s1, i1) {
	d_step {
		assert(!life[w]);		/* the dead do nothing */
		if
		:: MINE(s0, i0) -> row[r].st = s1; row[r].item = i1
		:: else -> assert(MINE(CONDEMNED, i0) && s0 == RUNNING); life[w] = 1; holds[w] = 0
		fi
	}
}

proctype worker(byte w) {
	byte h, r, q, g, t, k, n, u, got, tk, s, want;
	bit ok, offering;
start:
	{
	g = gen[w];
claim:	u = 0; s = 0; offering = 0;
end_idle:
	d_step { head < tail -> h = head }
	d_step { r = ring_r[h % N]; q = ring_q[h % N] }
#ifdef HEAD_FIRST
	d_step { ok = (head == h); if :: ok -> head++ :: else fi }
	if :: !ok -> goto claim :: else fi;
#endif
	if						/* Claim: strong CAS of the word */
	:: d_step { (row[r].st == READY && row[r].seq == q) ->
			ok = 1;
#ifndef OWNER_LATE
			row[r].slot = w; row[r].gen = g;
#endif
			row[r].st = RUNNING; t = row[r].task; n = row[r].n;
			assert(holds[1 - w] != t + 1 && !ended[t]);
			holds[w] = t + 1; claims[t]++ }
	:: d_step { !(row[r].st == READY && row[r].seq == q) -> ok = 0 }
#ifdef WEAK_CAS
	:: ok = 0
#endif
	fi;
#ifdef OWNER_LATE
	if :: ok -> d_step { row[r].slot = w; row[r].gen = g } :: else fi;
#endif
	d_step { if :: head == h -> head++ :: else fi }	/* whether or not the claim succeeded */
	if :: !ok -> r = 0; q = 0; h = 0; goto claim :: else h = 0 fi;

	k = 0;
	if :: n -> cas(RUNNING, 0, RUNNING, 1); k = 1 :: else fi;	/* the chunk is decoded */
item:
#ifdef DEP
	(t != 0 || fin[T - 1]);
#endif
	s = RUNNING;
#ifdef ITEM_FIRST
	if :: k && k < n -> cas(RUNNING, k, RUNNING, k + 1) :: else fi;
#endif
	/* run it, make room for its result: grow() */
	if
	:: LARGE(t, k, n) ->
		cas(RUNNING, k, STORING, k); s = STORING;
take:		u = 0;
		d_step { u = 0; got = 0; tk = 0; want = NEED * (k -> ALLBIG * (k - row[r].first) + 1 : 1) }
		do
		:: got < want && u < U && HANDS_FREE ->
			d_step {			/* CAS 0 -> owner */
				assert(!life[w]);
				if :: unit[u] == 0 -> unit[u] = OWN(r, q); got++; tk = tk | (1 << u) :: else fi;
				u++
			}
		:: got < want && (u == U || !HANDS_FREE) ->	/* no room */
#ifndef KEEP_UNITS
			do				/* roll back */
			:: tk -> d_step {
				u = 0; do :: !(tk & (1 << u)) -> u++ :: else -> break od;
				assert(unit[u] == OWN(r, q)); unit[u] = 0; tk = tk & ~(1 << u); u = 0 }
			:: !tk -> break
			od;
			got = 0;
#endif
			u = 0;
			if
#ifndef NO_OFFER
			:: k > row[r].first ->		/* offer_items(): the area holds committed frames */
				if
				:: !offering ->
#ifdef OFFER_LATE
					done = done | (1 << r); summary = 1;
					d_step { row[r].off = k - 1; offering = 1 }
#else
					d_step { row[r].off = k - 1; offering = 1 };
					done = done | (1 << r); summary = 1
#endif
				:: else
				fi;
#ifdef GIVE_UP_OFFERING
				if :: row[r].dr == k - 1 :: nofit && !row[r].ref -> nofit--; goto stored fi;
#else
#ifdef OFFER_GO_ON
				if :: row[r].dr == k - 1 :: unit[0] == 0 || unit[U - 1] == 0 -> goto take fi;
#else
#ifndef OFFER_NO_WAIT
				(row[r].dr == k - 1);
#endif
#endif
#endif
#ifdef FREE_FIRST
				d_step { got = row[r].ref }
#else
				/* the client has them: result_len = 0, result_ref = 0, and the run is given back */
				d_step { assert(!life[w]); NO_FRAMES; row[r].first = k };
				d_step { got = row[r].ref; row[r].ref = 0 };
#endif
				do
				:: got -> d_step {
					u = 0; do :: !(got & (1 << u)) -> u++ :: else -> break od;
					assert(unit[u] == OWN(r, q)); unit[u] = 0; got = got & ~(1 << u); u = 0 }
				:: !got -> break
				od;
				offering = 0;
#ifdef FREE_FIRST
				d_step { NO_FRAMES; row[r].first = k };
				row[r].ref = 0;
#endif
#if TOOBIG
				if :: d_step { nofit -> nofit-- }; goto stored :: skip fi;
#endif
				goto take
#endif
#if TOOBIG
			:: d_step { k <= row[r].first && nofit -> nofit-- }; goto stored
#endif
#ifdef NO_OFFER
			:: else ->
#else
			:: (k <= row[r].first) ->	/* nothing to offer: wait for room */
#endif
#if U == 1
				(unit[0] == 0)
#else
#ifdef KEEP_UNITS
				(unit[0] == 0 || unit[1] == 0)
#else
				((unit[0] == 0) + (unit[1] == 0) + (U > 2 && unit[U - 1] == 0) >= want)
#endif
#endif
			fi
		:: got == want -> break
		od;
		u = 0;
#ifdef OLD_FIRST
		d_step { u = row[r].ref; got = 0 };
#else
		d_step { assert(!life[w]); u = row[r].ref; row[r].ref = tk; tk = 0; got = 0 };	/* the frames have been copied */
#endif
		do
		:: u -> d_step {
			got = 0; do :: !(u & (1 << got)) -> got++ :: else -> break od;
			assert(unit[got] == OWN(r, q)); unit[got] = 0; u = u & ~(1 << got); got = 0 }
		:: !u -> break
		od;
#ifdef OLD_FIRST
		row[r].ref = tk;		/* the old run was given back before */
#endif
stored:		u = 0;
		d_step { u = 0; got = 0; tk = 0; want = 0 }
	:: else
	fi;
	d_step {				/* the frame, behind those of the area */
		assert(!life[w] && !(stands[t] & (1 << (row[r].base + (k -> k : 1)))));
		row[r].res[(k -> k : 1)] = t + 1
	}
	if
	:: k && k < n ->
#ifdef ITEM_FIRST
		if :: s == STORING -> cas(s, k, RUNNING, k + 1) :: else fi;
#else
		cas(s, k, RUNNING, k + 1);		/* commits item k */
#endif
		k++; goto item
	:: else
	fi;
#ifdef BIT_FIRST
	done = done | (1 << r); summary = 1;
#endif
#ifdef DONE_STORE
	row[r].st = DONE;
#else
	cas(s, k, DONE, k);
#endif
	atomic { holds[w] = 0; fin[t] = 1; t = 0; n = 0; k = 0; s = 0; u = 0; got = 0; tk = 0; q = 0 }
#ifndef BIT_FIRST
	done = done | (1 << r);
	summary = 1;
#endif
	r = 0;
	goto claim
	} unless { life[w] }
	d_step { life[w] = 2; h = 0; r = 0; q = 0; g = 0; t = 0; k = 0; n = 0; u = 0; got = 0; tk = 0; s = 0; ok = 0; want = 0; offering = 0 }
end_dead:
	do
	:: !life[w] -> goto start
	:: d_step { life[w] == 1 -> life[w] = 2 }	/* killed as soon as it was forked */
	od
}

/* --------------------------------------------------------------------------------------------------- monitor */
proctype monitor() {
	byte r, w, g, q, i, budget = D;
end:	do
	/* Death: waitid, reaped, deaths. The rings are in sleep.pml */
	:: atomic { life[0] == 2 -> w = 0; goto death }
	:: atomic { life[1] == 2 -> w = 1; goto death }
	:: d_step { life[0] == 3 -> gen[0]++; life[0] = 0 }		/* fork, at once or much later */
	:: d_step { life[1] == 3 -> gen[1]++; life[1] = 0 }
	/* Condemn: a deadline */
#if D
	:: d_step { budget && row[0].st == RUNNING -> r = 0; budget--;
			w = row[r].slot; g = row[r].gen; q = row[r].seq; i = row[r].item };
		goto condemn
#if R > 1
	:: d_step { budget && row[1].st == RUNNING -> r = 1; budget--;
			w = row[r].slot; g = row[r].gen; q = row[r].seq; i = row[r].item };
		goto condemn
#endif
#endif
#if F
	/* the client's Future.kill: it has condemned, the monitor looks and kills */
	:: d_step { row[0].st == CONDEMNED && row[0].gen == gen[row[0].slot] && !life[row[0].slot] ->
			r = 0; w = row[r].slot; g = row[r].gen; q = row[r].seq; i = row[r].item };
		goto shoot
#if R > 1
	:: d_step { row[1].st == CONDEMNED && row[1].gen == gen[row[1].slot] && !life[row[1].slot] ->
			r = 1; w = row[r].slot; g = row[r].gen; q = row[r].seq; i = row[r].item };
		goto shoot
#endif
#endif
	od;
death:	reaped[w] = gen[w] + 1;
	d_step { deaths++; life[w] = 3; w = 0 }
	goto end;
condemn:
	if
#ifdef LOOSE_CONDEMN
	:: d_step { row[r].st == RUNNING -> row[r].st = CONDEMNED }
#else
	:: d_step { MINE(RUNNING, i) -> row[r].st = CONDEMNED }
#endif
	:: else -> goto forget				/* the task ended: do nothing */
	fi;
#ifdef LOOSE_CONDEMN
	w = row[r].slot;
#endif
	if						/* still (CONDEMNED, w, the current generation)? */
	:: (row[r].st == CONDEMNED && row[r].slot == w && row[r].gen == gen[w]) -> skip
	:: else -> goto forget
	fi;
shoot:	atomic {
		if
		:: !life[w] -> assert(MINE(CONDEMNED, i) && holds[w] == row[r].task + 1); life[w] = 1; holds[w] = 0
		:: else
		fi
	}
forget:	atomic { r = 0; w = 0; g = 0; q = 0; i = 0 }
	goto end
}

/* ---------------------------------------------------------------------------------------------------- killer */
proctype killer() {
end:	do
	:: d_step { kills < K && !life[0] && nended < T -> kills++; life[0] = 1; holds[0] = 0 }
#if K > 1
	:: d_step { kills && kills < K && !life[1] && nended < T -> kills++; life[1] = 1; holds[1] = 0 }
#endif
	od
}

/* ---------------------------------------------------------------------------------------------------- client */
#define END(t)		assert(!ended[t]); ended[t] = 1; nended++; fin[t] = 1

/* items a .. b of the row stand: their frames are the first of the area, and none of them was delivered before */
inline stand(a, b) {
	assert(a > b || row[r].first == a);
	x = a;
	do
	:: x <= b ->
		assert(row[r].res[x] == t + 1 && !(stands[t] & (1 << (row[r].base + x))));
		stands[t] = stands[t] | (1 << (row[r].base + x)); x++
	:: else -> break
	od;
	x = 0
}
/* ipc_read_result: the units that result_ref names are the row's own */
inline readable() {
	x = 0;
	do :: x < U -> assert(!(row[r].ref & (1 << x)) || unit[x] == OWN(r, row[r].seq)); x++ :: else -> break od;
	x = 0
}
/* ipc_release_row: what result_ref names, and of the dead in STORING or CONDEMNED all that the row owns; then nothing is left */
inline free_units() {
	x = 0;
	do
	:: x < U ->
#ifdef NO_SEQ_UNITS
		if :: unit[x] && (unit[x] - 1) % R == r -> unit[x] = 0 :: else fi;
#else
		if
#ifdef FREE_BY_REF
		:: unit[x] == OWN(r, row[r].seq) && (row[r].ref & (1 << x)) -> unit[x] = 0
#else
		:: unit[x] == OWN(r, row[r].seq) && ((row[r].ref & (1 << x)) || row[r].st == STORING || row[r].st == CONDEMNED) -> unit[x] = 0
#endif
		:: else
		fi;
		assert(unit[x] != OWN(r, row[r].seq));
#endif
		x++
	:: else -> break
	od;
	x = 0
}
inline collect() {			/* DONE -> FREE */
	t = row[r].task; attempts[t]++;
	readable();
	if
	:: !row[r].n -> stand(1, 1)
	:: else -> stand(row[r].got + 1, row[r].n)
	fi;
#ifdef VIEW
	if
	:: BIGGISH(t) && !view -> view = OWN(r, row[r].seq)	/* the user holds it for a while */
	:: else -> free_units()
	fi;
#else
	free_units();
#endif
	END(t);
	row[r].st = FREE
}
inline crashed() {			/* RUNNING, STORING, CONDEMNED of the dead: one attempt */
	t = row[r].task; attempts[t]++;
	assert(row[r].st != DONE);
	if
	:: row[r].n && row[r].item > 1 ->
		readable();
#ifdef SETTLE_ALL
		stand(1, row[r].item - 1)
#else
		assert(row[r].got <= row[r].item - 1);
		stand(row[r].got + 1, row[r].item - 1)
#endif
	:: else
	fi;
	free_units();
	if
	:: attempts[t] < A -> todo = todo | (1 << t)
	:: else -> END(t)
	fi;
	row[r].st = FREE
}
inline wipe() {				/* what lies in a FREE row is nobody's: keep one state of it */
	row[r].slot = 0; row[r].gen = 0; row[r].item = 0; row[r].task = 0; row[r].base = 0; row[r].n = 0;
	row[r].ref = 0; row[r].first = 0; row[r].off = 0; row[r].dr = 0; row[r].got = 0;
	x = 0; do :: x <= NI -> row[r].res[x] = 0; x++ :: else -> break od; x = 0
}

proctype client() {
	byte todo = (1 << T) - 1, t, r, x, y, c, m, m0, m1, seen, view, cancels = C, fkills = F;
	byte w, g, q, i;
loop:	if :: nended == T && !view -> goto over :: else fi;
	d_step {				/* a task that waits, a row to put it in */
		t = 0; do :: t < T && !(todo & (1 << t)) -> t++ :: else -> break od;
		r = 0; do :: r < R && !USABLE(r) -> r++ :: else -> break od;
		c = (t < T && r < R);
		if :: !c -> t = 0; r = 0 :: else fi
	}
	if
	:: c -> c = 0;
		/* Publish */
		d_step {
			wipe(); todo = todo & ~(1 << t); row[r].task = t; row[r].first = 1;
			if
			:: CHUNKED(t) ->
				x = 0; do :: stands[t] & (2 << x) -> x++ :: else -> break od;
				row[r].base = x; row[r].n = NI - x; x = 0
			:: else
			fi;
			row[r].seq++; row[r].st = READY
		}
		d_step { ring_r[tail % N] = r; ring_q[tail % N] = row[r].seq }
		d_step { tail++; row[r].last = tail; assert(tail - head <= N); t = 0; r = 0 }
		goto loop
	:: else
	fi;
#ifdef CLIENT_HELPS
	d_step {				/* the client moves head over spent entries itself, before it sleeps */
		c = (todo && ANY_USABLE);
		if
		:: !c && todo && head < tail &&
			!(row[ring_r[head % N]].st == READY && row[ring_r[head % N]].seq == ring_q[head % N]) -> head++; c = 1
		:: else
		fi
	}
	if :: c -> c = 0; goto loop :: else fi;
#endif
	if
	:: summary ->				/* collect by the hints */
#ifdef WORD_FIRST
		d_step { m = done; done = 0 }
		summary = 0;
#else
		summary = 0;
		d_step { m = done; done = 0 }
#endif
		do
		:: m -> d_step {
			r = ((m & 1) -> 0 : 1); m = m & ~(1 << r);
			if
#ifdef BIT_TRUSTED
			:: row[r].seq -> collect(); wipe()
#else
			:: row[r].st == DONE -> collect(); wipe(); r = 0
			:: OFFERS(r) -> y = row[r].off		/* a chunk without room: ipc_offers() */
#endif
			:: else -> r = 0
			fi;
			t = 0 }
			if
			:: y ->
#ifdef DRAIN_EARLY
				row[r].dr = y;
#endif
				d_step { t = row[r].task; readable(); stand(row[r].got + 1, y); row[r].got = y; y = 0; t = 0 }
#ifndef DRAIN_EARLY
				d_step { row[r].dr = row[r].got; r = 0 }
#else
				r = 0
#endif
			:: else
			fi
		:: else -> break
		od
	:: deaths != seen ->			/* Settle: reaped first, then the rows */
#ifndef SEEN_LAST
		seen = deaths;
#endif
#ifdef ROWS_FIRST
		d_step { r = 0; do :: r < R -> if :: row[r].st != DONE -> m = m | (1 << r) :: else fi; r++ :: else -> break od; r = 0 }
#endif
		d_step { m0 = reaped[0]; m1 = reaped[1] }
#ifdef SEEN_LAST
		seen = deaths;
#endif
		do
		:: r < R -> d_step {
			if
#ifdef NO_GEN
			:: (row[r].slot == 0 -> m0 : m1) > 0 && row[r].st >= RUNNING ->
#else
			:: (row[r].slot == 0 -> m0 : m1) > row[r].gen && row[r].st >= RUNNING ->
#endif
				if
#ifdef ROWS_FIRST
				:: m & (1 << r) -> crashed()
#endif
#ifdef NO_DONE_SCAN
				:: row[r].st == DONE -> skip
#else
				:: else -> if :: row[r].st == DONE -> collect() :: else -> crashed() fi
#endif
#ifdef NO_DONE_SCAN
				:: else -> crashed()
#endif
				fi;
				if :: row[r].st == FREE -> wipe() :: else fi
			:: else
			fi;
			t = 0; r++ }
		:: else -> break
		od;
		atomic { r = 0; m = 0; m0 = 0; m1 = 0 }
#ifndef NO_HEAD_RING
	:: todo && ANY_USABLE -> skip		/* rung by the worker that moved head over a spent entry, see sleep.pml */
#endif
#if C
	:: cancels -> cancels--;		/* Cancel: CAS READY -> FREE of any row */
		if :: r = 0 :: r = R - 1 fi;
		d_step {
			if
			:: row[r].st == READY -> t = row[r].task; END(t); row[r].st = FREE; wipe()
			:: else
			fi;
			r = 0; t = 0
		}
#endif
#if F
	:: d_step { fkills && row[0].st == RUNNING -> fkills--; r = 0;	/* Future.kill: the exact word, or nothing */
			w = row[r].slot; g = row[r].gen; q = row[r].seq; i = row[r].item };
		d_step {
			if :: MINE(RUNNING, i) -> row[r].st = CONDEMNED :: else fi;
			r = 0; w = 0; g = 0; q = 0; i = 0 }
#endif
#ifdef VIEW
	:: view -> d_step {			/* the user drops its result: units by (row, seq), whatever the row does now */
			x = 0; c = 0;
			do :: x < U -> if :: unit[x] == view -> unit[x] = 0; c++ :: else fi; x++ :: else -> break od;
			assert(c == NEED); x = 0; c = 0; view = 0 }
#endif
	fi;
	goto loop;
over:	atomic {
		r = 0; do :: r < R -> assert(row[r].st == FREE); r++ :: else -> break od;
		x = 0; do :: x < U -> assert(unit[x] == 0); x++ :: else -> break od;
		t = 0; do :: t < T -> assert(ended[t] == 1 && attempts[t] == claims[t]); t++ :: else -> break od
	}
}

init { atomic { run client(); run worker(0); run worker(1); run monitor(); run killer() } }
