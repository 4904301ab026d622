/* sleep.pml - nobody sleeps while there is work for him (DESIGN.md, section 2; the steps have the same names).
 *
 * Modelled: the sleeper bit that the waker takes and the bell (futex counter) of a slot; the client's deferred wake (nobody
 *   awake: one at once; otherwise min(ready, sleepers) before it sleeps or returns to user code); with SPIN, workers that spin
 *   before they sleep, which the client counts as awake; with GUARD, the sleeper that looks at the ring by itself, so that
 *   the client may put its wake off, or wake one, at any moment (how it judges is left open); the client's own
 *   sleep (client_asleep, client_bell, done hint, deaths) and its wait for a row whose last entry head has not passed
 *   (client_asleep 2); the monitor's unconditional rings; SIGKILL of a worker between any two steps. No timeouts
 *   but the guard's looks: enabled while the ring is not empty, so it is never waited for in vain; whether head has moved
 *   since its last look is left open. It retires at any moment with the ring empty.
 *   With LOOP the client sleeps either way, as it happens: on its bell, or in an event loop, which hears the wire (a bit: it keeps what was
 *   sent) and may wake up at any moment for reasons of its own, a thread that takes over, say. Who rings the bell rings the wire too if
 *   `listening` says so.
 *   With THREADS another thread of the client submits the last task, whenever the client sleeps or is in user code: it publishes it, or finds no row,
 *   and says so to a client that is asleep, or about to be.
 *   User code after a wake runs until every published task has been started; with DEP task 0 runs until task 1 has ended.
 *   A lost wake-up is a stuck state.
 * Store buffers: with RELAXED_x the first half of a Dekker pair may take effect later than the loads that follow it:
 *   TAIL (client's store), ASLEEP (client's store): total store order, as x86. BIT, DONE (fetch_or of a worker): a relaxed
 *   read-modify-write may be passed by a later load on aarch64 (x86 does not show it). HEAD: the same for the exchange of head
 *   and the look at client_asleep after it. GUARD: the store with which the guard resigns, and its look at the ring. Without: seq_cst, no buffer.
 * Reduced: a bell is "changed since the sleeper read it" (a counter that does not wrap); done map and summary are one word,
 *   the row word has no item, STORING or CONDEMNED (claim.pml has them); filling and READY, a row's settlement, both
 *   loads of a look, entry and claim are single steps; the first kill hits worker 0.
 * Checked: no stuck state, which includes: no ready row is left while a worker sleeps and the client sleeps or is in user
 *   code; every task ends once; a task is claimed by one living worker; attempts == claims; tail - head <= N.
 * Not checked: other reorderings than the six, more than 2 workers (W=3 is possible, and large), the timeouts and Heal, signals, spurious wake-ups of
 *   the client by the outside, fairness.
 *
 * Sizes: T tasks · R rows (ring: N, the same) · K kills · C cancels · A attempts · NO_RESTART: the dead are never replaced
 * Planted faults: WAKE_FIRST NO_LOOK NO_CLIENT_LOOK NO_CLIENT_RING IF_ASLEEP_RING NO_CLEAR NO_RING_ALL
 *   CLEAR_LATE NO_DEFERRED EMPTY_RING_WAKE NO_HEAD_RING READY_COUNT FLAG_RING NO_BELL SPIN_LATE SPIN_SUBTRACT
 *   LISTEN_LATE WIRE_EARLY WIRE_IF_TAKEN NO_LOOP_LOOK NO_WANTED_LOOK WANTED_LATE
 *   NO_SPIN_CLEAR GUARD_RESIGN_LATE GUARD_LOOK_EARLY NO_GUARD_CLEAR GUARD_CLEAR_LATE NO_SUCCESSOR GUARD_FIRST WOKEN_QUIET
 *   (see run.py).
 *   RELAXED_* are above. SPIN and GUARD add their parts. The wake at once is optional: NO_AT_ONCE leaves it out.
 *   CHAIN (a claimer wakes one more) is not in the core.
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
#ifndef K
#define K 1
#endif
#ifndef C
#define C 0
#endif
#ifndef A
#define A 2
#endif
#ifndef W
#define W 2
#endif
#define ALL ((1 << W) - 1)

#define FREE 0
#define READY 1
#define RUNNING 2
#define DONE 4

typedef Row { byte st, slot, gen, seq, task, last }
Row row[R];
byte ring_r[N], ring_q[N], head, tail, done;
byte gen[W], reaped[W], deaths;
byte life[W];				/* 0 lives · 1 killed · 2 stopped: waitid returns · 3 reaped */
byte sleepers;				/* bit w */
byte rung[W]; bit waits[W];		/* slot.bell: 1 w has read it · 2 it changed since · 0 nobody cares; w is in FUTEX_WAIT */
byte asleep;				/* client_asleep: 1, or 2 "a row would do as well" */
byte crung; bit cwaits;			/* client_bell, the same */
bit listening, wire;			/* the client sleeps in an event loop; something is on the wire */
byte kills;
#ifdef THREADS
bit lock = 1;				/* the client's */
byte wanted;				/* publishes that found no row */
byte todo = (1 << (T - 1)) - 1;		/* what waits for a row; the last task is the other thread's */
#endif
/* what only the checker sees */
byte holds[W], claims[T], ended[T], nended;
bit started[T], fin[T];
bit worked[W];				/* has claimed since it last was the guard for nothing */
/* store buffers */
bit b_tail, b_asleep, b_bit[W], b_guard[W];
byte b_done[W], v_asleep;
byte guard, spinners;			/* slot + 1 of the guard, bit w: w spins */

#define TAIL		(tail + b_tail)		/* as the client sees it */
#define USABLE(r)	(row[r].st == FREE && head >= row[r].last)
#if R == 1
#define ANY_USABLE	USABLE(0)
#else
#define ANY_USABLE	(USABLE(0) || USABLE(1))
#endif

/* the bell of slot v: +1, then FUTEX_WAKE */
#define BUMP(x)		if :: x == 1 -> x = 2 :: else fi
inline bell(v)		{ d_step { BUMP(rung[v]) } waits[v] = 0 }
/* ipc_ring_client */
#ifdef LOOP
inline client_bell()	{ asleep = 0; d_step { BUMP(crung) } cwaits = 0; if :: listening -> wire = 1 :: else fi }
#else
inline client_bell()	{ asleep = 0; d_step { BUMP(crung) } cwaits = 0 }
#endif
#if W == 2
#define OTHERS_HOLD(t)	(holds[1 - w] == t + 1)
#define REAPED(v)	(v == 0 -> m0 : m1)
#else
#define OTHERS_HOLD(t)	((w != 0 && holds[0] == t + 1) || (w != 1 && holds[1] == t + 1) || (w != 2 && holds[2] == t + 1))
#define REAPED(v)	(v == 0 -> m0 : (v == 1 -> m1 : m2))
#endif

/* ipc_wake_workers(most): take a bit, ring its bell, until so many were taken or no more were seen; the guard last */
inline pick() {
	v = 0;
#ifdef GUARD_FIRST
	do :: v < W && gg != v + 1 -> v++ :: else -> break od;
	if :: v == W || !(s & (1 << v)) -> v = 0; do :: v < W && !(s & (1 << v)) -> v++ :: else -> break od :: else fi
#else
	do :: v < W && (!(s & (1 << v)) || gg == v + 1) -> v++ :: else -> break od;
	if :: v == W -> v = gg - 1 :: else fi
#endif
}
inline take_bits(client) {
	do
	:: n && s ->
		d_step {
			pick();
			if :: client && b_tail -> tail++; b_tail = 0 :: else fi;	/* a read-modify-write empties the buffer */
			s = s & ~(1 << v);
			took = ((sleepers >> v) & 1);
			sleepers = sleepers & ~(1 << v)
		}
		if
		:: took -> n--;
#ifndef NO_BELL
			d_step { BUMP(rung[v]) }
#endif
			d_step { waits[v] = 0; v = 0; took = 0 }
		:: else -> v = 0
		fi
	:: else -> break
	od;
	atomic { n = 0; s = 0; gg = 0 }
}
/* by a worker: the guard that looks or leaves */
inline wake_others(most) {
	gg = guard;
	d_step { n = most; s = sleepers };
	take_bits(0)
}

/* ---------------------------------------------------------------------------------------------------- worker */
proctype worker(byte w) {
	byte h, r, q, g, t, n, s, v, gg;
	bit ok, took;
#if defined(RELAXED_HEAD) || defined(WIRE_EARLY)
	bit early;
#endif
start:
	{
	g = gen[w];
claim:	if
	:: d_step { head < tail -> h = head }
	:: else -> goto sleep
	fi;
	d_step {
		assert(!life[w]);		/* the dead do nothing */
		r = ring_r[h % N]; q = ring_q[h % N];
		if
		:: row[r].st == READY && row[r].seq == q ->
			ok = 1;
#ifdef GUARD
			worked[w] = 1;
#endif
			row[r].st = RUNNING; row[r].slot = w; row[r].gen = g; t = row[r].task;
			assert(!OTHERS_HOLD(t) && !ended[t]);
			holds[w] = t + 1; claims[t]++; started[t] = 1
		:: else -> ok = 0; r = 0
		fi;
		q = 0
	}
#ifdef RELAXED_HEAD
	early = (!ok && asleep == 2);		/* the load that should follow the exchange of head */
#define WANTS_ROW	early
#else
#define WANTS_ROW	(asleep == 2)
#endif
	d_step { if :: head == h -> head++; h = 1 :: else -> h = 0 fi }
	if
	:: !ok ->
#ifndef NO_HEAD_RING
		/* head moved over a spent entry: a client that waits for the row is told */
		if
		:: h && WANTS_ROW -> h = 0;
			d_step { ok = (asleep != 0); asleep = 0 }
			if :: ok -> ok = 0; client_bell() :: else fi
		:: else -> h = 0
		fi;
#endif
		h = 0; goto claim
	:: else -> h = 0
	fi;
	/* an option, not in the core: a claimer that sees more ready rows and sleepers wakes one more */
#ifdef CHAIN
	if
	:: head < tail && (sleepers & (1 << (1 - w))) ->
		d_step { ok = ((sleepers >> (1 - w)) & 1); sleepers = sleepers & ~(1 << (1 - w)) }
		if :: ok -> bell(1 - w) :: else fi
	:: else
	fi;
#endif
	/* run */
#ifdef DEP
	(t != 0 || fin[1]);
#endif
	/* Complete */
#ifdef WIRE_EARLY
	early = listening;
#endif
	d_step {
		assert(!life[w]);
		row[r].st = DONE; holds[w] = 0; fin[t] = 1; ok = 0; t = 0
	}
#ifdef RELAXED_DONE
	b_done[w] = 1 << r;
#else
	done = done | (1 << r);
#endif
	r = 0;
	if
	:: asleep ->
		d_step { ok = (asleep != 0); asleep = 0 }
#ifdef WIRE_EARLY
		if :: ok -> ok = 0; d_step { BUMP(crung) } cwaits = 0; if :: early -> wire = 1 :: else fi :: else fi
#else
		if :: ok -> ok = 0; client_bell() :: else fi
#endif
	:: else
	fi;
#ifdef WIRE_EARLY
	early = 0;
#endif
#ifdef RELAXED_DONE
	(!b_done[w]);
#endif
	goto claim;

sleep:
#ifdef SPIN
	if
	:: skip
	:: spinners = spinners | (1 << w);
		if
		:: head < tail -> spinners = spinners & ~(1 << w); goto claim
		:: skip					/* for long enough */
		fi;
#ifndef SPIN_LATE
		spinners = spinners & ~(1 << w)
#endif
	fi;
#endif
	rung[w] = 1;				/* b = bell */
#ifdef RELAXED_BIT
	b_bit[w] = 1;
#else
	sleepers = sleepers | (1 << w);
#endif
#ifndef NO_LOOK
	if
	:: head < tail -> goto up
	:: else
	fi;
#endif
#ifdef SPIN_LATE
	spinners = spinners & ~(1 << w);
#endif
#ifdef RELAXED_BIT
	(!b_bit[w]);
#endif
#ifdef GUARD
	if
	:: d_step { guard == 0 && worked[w] -> guard = w + 1 };	/* CAS */
		goto watch
	:: else					/* not our turn: it has not worked since, or there is a guard */
	fi;
#endif
	d_step { waits[w] = (rung[w] == 1) }		/* FUTEX_WAIT(bell, b) */
end_wait:
	!waits[w];
	goto up;
#ifdef GUARD
watch:	skip;
	d_step { waits[w] = (rung[w] == 1) }		/* FUTEX_WAIT(bell, b, 1 ms) */
end_guard:
	do
	:: !waits[w] -> goto resign			/* woken */
	:: head < tail ->				/* time out, and a look */
		if
		:: waits[w] = 0; ok = 1; goto resign	/* head has not moved */
		:: wake_others(1); goto watch		/* it has: one more, and stay */
		fi
	:: head == tail -> atomic { waits[w] = 0; worked[w] = 0 } goto resign	/* looked often enough, nothing moved: retire */
	od;
resign:
#ifdef GUARD_RESIGN_LATE
	if :: head < tail -> h = 1 :: else -> h = 0 fi;
	guard = 0;
	if
	:: h -> h = 0;
#else
#ifdef RELAXED_GUARD
	b_guard[w] = 1;
#else
	guard = 0;
#endif
	if
#ifdef WOKEN_QUIET
	:: ok && head < tail ->
#else
	:: head < tail ->
#endif
#endif
		ok = 0;
#ifndef NO_SUCCESSOR
		sleepers = sleepers & ~(1 << w);	/* our own bit first (and a bell that nobody waits for) */
		wake_others(tail - head)
#endif
	:: else
	fi;
	ok = 0;
#ifdef RELAXED_GUARD
	(!b_guard[w]);
#endif
#endif
up:
#ifdef RELAXED_BIT
	(!b_bit[w]);
#endif
	atomic { sleepers = sleepers & ~(1 << w); rung[w] = 0 }
	goto claim
	} unless { life[w] == 1 }
	/* what is in a buffer gets out */
	d_step {
		life[w] = 2; waits[w] = 0; rung[w] = 0; h = 0; r = 0; q = 0; g = 0; t = 0; ok = 0;
		n = 0; s = 0; v = 0; gg = 0; worked[w] = 0;
		if :: b_bit[w] -> sleepers = sleepers | (1 << w); b_bit[w] = 0 :: else fi;
		if :: b_guard[w] -> guard = 0; b_guard[w] = 0 :: else fi;
		done = done | b_done[w]; b_done[w] = 0
	}
end_dead:
	do
	:: !life[w] -> goto start
	:: d_step { life[w] == 1 -> life[w] = 2 }	/* killed as soon as it was forked */
	od
}

/* --------------------------------------------------------------------------------------------------- monitor */
proctype monitor() {
	byte w;
end:	do
	:: atomic { life[0] == 2 -> w = 0; goto death }
	:: atomic { life[1] == 2 -> w = 1; goto death }
#if W > 2
	:: atomic { life[2] == 2 -> w = 2; goto death }
#endif
#ifndef NO_RESTART
	:: d_step { life[0] == 3 -> gen[0]++; life[0] = 0 }		/* fork, at once or much later */
	:: d_step { life[1] == 3 -> gen[1]++; life[1] = 0 }
#if W > 2
	:: d_step { life[2] == 3 -> gen[2]++; life[2] = 0 }
#endif
#endif
	od;
death:
#if !defined(NO_CLEAR) && !defined(CLEAR_LATE)
	sleepers = sleepers & ~(1 << w);
#endif
#if defined(SPIN) && !defined(NO_SPIN_CLEAR)
	spinners = spinners & ~(1 << w);
#endif
#if defined(GUARD) && !defined(NO_GUARD_CLEAR) && !defined(GUARD_CLEAR_LATE)
	d_step { if :: guard == w + 1 -> guard = 0 :: else fi };
#endif
	reaped[w] = gen[w] + 1;
	deaths++;
#ifndef NO_CLIENT_RING
#ifdef WIRE_IF_TAKEN
	if :: asleep -> client_bell() :: else -> d_step { BUMP(crung) } cwaits = 0 fi;
#else
#ifdef IF_ASLEEP_RING
	if :: asleep -> asleep = 0; client_bell() :: else fi;
#else
	client_bell()
#endif
#endif
#endif
#ifndef NO_RING_ALL
#ifdef FLAG_RING
	if :: sleepers & 1 -> sleepers = sleepers & ~1; bell(0) :: else fi;
	if :: sleepers & 2 -> sleepers = sleepers & ~2; bell(1) :: else fi;
#else
	bell(0)
	bell(1)
#if W > 2
	bell(2)
#endif
#endif
#endif
#ifdef GUARD_CLEAR_LATE
	d_step { if :: guard == w + 1 -> guard = 0 :: else fi };
#endif
#ifdef CLEAR_LATE
	d_step { gen[w]++; life[w] = 0 }
	d_step { sleepers = sleepers & ~(1 << w); w = 0 }
#else
	d_step { life[w] = 3; w = 0 }
#endif
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

/* -------------------------------------------------------------------------------------------- store buffers */
#if defined(RELAXED_TAIL) || defined(RELAXED_BIT) || defined(RELAXED_DONE) || defined(RELAXED_ASLEEP) || defined(RELAXED_GUARD)
proctype buffers() {
end:	do
	:: d_step { b_tail -> tail++; b_tail = 0 }
	:: d_step { b_asleep -> asleep = v_asleep; b_asleep = 0; v_asleep = 0 }
	:: d_step { b_bit[0] -> sleepers = sleepers | 1; b_bit[0] = 0 }
	:: d_step { b_bit[1] -> sleepers = sleepers | 2; b_bit[1] = 0 }
	:: d_step { b_guard[0] -> guard = 0; b_guard[0] = 0 }
	:: d_step { b_guard[1] -> guard = 0; b_guard[1] = 0 }
	:: d_step { b_done[0] -> done = done | b_done[0]; b_done[0] = 0 }
	:: d_step { b_done[1] -> done = done | b_done[1]; b_done[1] = 0 }
	od
}
#endif

/* ---------------------------------------------------------------------------------------------------- client */
#define END(t)		assert(!ended[t]); ended[t] = 1; nended++; fin[t] = 1; started[t] = 1
#define DRAIN		if :: b_tail -> tail++; b_tail = 0 :: else fi	/* a read-modify-write empties the buffer */

inline wake() {
	gg = guard;
	s = sleepers;
	take_bits(1)
}
#ifdef READY_COUNT
#define NREADY	((row[0].st == READY) + (R > 1 && row[R - 1].st == READY))
#else
#define NREADY	(TAIL - head)
#endif
/* the deferred wake: min(ready, sleepers), before it sleeps or returns to user code */
inline deferred_wake() {
#if !defined(NO_DEFERRED) && !defined(WAKE_FIRST) && !defined(EMPTY_RING_WAKE)
	/* ipc_flush_wakes */
#ifdef GUARD_LOOK_EARLY
	skip;
#else
	gg = 0;
#endif
	n = NREADY;
#ifdef SPIN
	d_step {
		s = (spinners & 1) + ((spinners >> 1) & 1) + ((spinners >> 2) & 1);
#ifdef SPIN_SUBTRACT
		n = (n > s -> n - s : 0);	/* but who spins now may have his sleeper bit set when we look at the bits, and be counted twice */
#else
		n = (n > s -> n : 0);
#endif
		s = 0 };
#endif
	if
	:: n ->
#ifdef GUARD
#ifndef GUARD_LOOK_EARLY
		if :: guard -> gg = 1 :: else -> gg = 0 fi;
#endif
		if
		:: gg -> n = 0				/* put off */
		:: gg -> n = 1				/* the half of it */
		:: skip
		fi;
		gg = 0;
#endif
		wake()
	:: else
	fi;
	atomic { gg = 0; n = 0 }
#else
	skip
#endif
}
/* Publish task t in row r */
inline publish_row() {
#ifdef WAKE_FIRST
	n = TAIL - head + 1;
	wake();
#endif
	d_step {
		DRAIN;			/* (the buffer of the model has room for one tail) */
		todo = todo & ~(1 << t); row[r].task = t; row[r].seq++; row[r].st = READY
	}
#ifdef GUARD_LOOK_EARLY
	gg = (guard != 0);
#endif
	d_step { ring_r[TAIL % N] = r; ring_q[TAIL % N] = row[r].seq }
#ifdef EMPTY_RING_WAKE
	c = (TAIL == head);
#endif
	d_step {
#ifdef RELAXED_TAIL
		b_tail = 1;
#else
		tail++;
#endif
		row[r].last = TAIL; assert(TAIL - head <= N); t = 0; r = 0 }
	/* Wake: nobody awake, one at once */
#ifdef EMPTY_RING_WAKE
	if :: c -> c = 0; n = 1; wake() :: else fi;
#else
#if !defined(WAKE_FIRST) && !defined(NO_AT_ONCE)
	if :: d_step { sleepers == ALL -> n = 1 }; wake() :: else fi;
#endif
#endif
}
inline find_row() { r = 0; do :: r < R && !USABLE(r) -> r++ :: else -> break od }

/* end of an attempt: by result, or by death */
inline close(good) {
	t = row[r].task; attempts[t]++;
	if
	:: !(good) && attempts[t] < A -> todo = todo | (1 << t)
	:: else -> END(t)
	fi;
	row[r].st = FREE; row[r].slot = 0; row[r].gen = 0; row[r].task = 0; t = 0
}

#ifdef THREADS
/* Another thread of the client: it submits task T-1, once, with the lock that the client gives away while it sleeps and runs user code. */
#define LOCK	atomic { !lock -> lock = 1 }
#define UNLOCK	lock = 0
proctype other() {
	byte t, r, n, s, v, gg;
	bit c, took;
	LOCK;
	d_step { t = T - 1; find_row(); c = (r < R); if :: !c -> r = 0 :: else fi }
	if
	:: c -> c = 0; publish_row(); deferred_wake()
	:: else ->
		todo = todo | (1 << t);		/* it waits in the queue; want_row */
#ifdef WANTED_LATE
		d_step { c = (asleep == 1); if :: c -> asleep = 2 :: else fi }
		wanted++;
#else
		wanted++;
		d_step { c = (asleep == 1); if :: c -> asleep = 2 :: else fi }
#endif
		if
		:: c && ANY_USABLE -> client_bell()
		:: else
		fi
	fi;
	UNLOCK
}
#else
#define LOCK	skip
#define UNLOCK	skip
#endif

proctype client() {
#ifdef THREADS
	byte knows;
#else
	byte todo = (1 << T) - 1;
#endif
	byte t, r, n, s, v, m, m0, m1, m2, seen, gg, cancels = C, attempts[T];
	bit c, took;
#ifdef LOOP
	bit takeovers;
#endif
loop:	if :: nended == T -> UNLOCK; goto over :: else fi;
	d_step {				/* a task that waits, a row to put it in */
		t = 0; do :: t < T && !(todo & (1 << t)) -> t++ :: else -> break od;
		find_row();
		c = (t < T && r < R);
		if :: !c -> t = 0; r = 0 :: else fi
	}
	if
	:: c -> c = 0;
		publish_row();
		if
		:: goto loop
		:: deferred_wake();		/* user code, until all that was published is running */
			UNLOCK;
			t = 0;
			do
			:: t < T -> (started[t] || (todo & (1 << t))); t++
			:: else -> break
			od;
			LOCK;
			t = 0
#if C
		:: cancels -> cancels--;	/* Cancel */
			d_step {
				if
				:: row[0].st == READY -> t = row[0].task; END(t); row[0].st = FREE; row[0].task = 0
				:: else
				fi; t = 0 }
#endif
		fi;
		goto loop
	:: else
	fi;
	if
	:: done -> d_step { DRAIN; m = done; done = 0 }
		do
		:: m -> d_step {
			r = ((m & 1) -> 0 : 1); m = m & ~(1 << r);
			if :: row[r].st == DONE -> close(1) :: else fi;
			r = 0 }
		:: else -> break
		od
	:: deaths != seen ->			/* Settle: reaped first, then the rows */
		d_step { seen = deaths; m0 = reaped[0]; m1 = reaped[1];
#if W > 2
			m2 = reaped[2]
#endif
			}
		do
		:: r < R -> d_step {
			if
			:: REAPED(row[r].slot) > row[r].gen && row[r].st >= RUNNING -> close(row[r].st == DONE)
			:: else
			fi;
			r++ }
		:: else -> break
		od;
		atomic { r = 0; m0 = 0; m1 = 0; m2 = 0 }
	:: !done && deaths == seen ->		/* Sleep */
		deferred_wake();
#ifdef LOOP
		if
		:: skip
		::
#ifndef LISTEN_LATE
			listening = 1;		/* ipc_client_listen */
#endif
			d_step { DRAIN; asleep = (todo -> 2 : 1) }
#ifndef NO_LOOP_LOOK
			if
			:: done || deaths != seen || (todo && ANY_USABLE) -> skip
			:: else ->
#ifdef LISTEN_LATE
				listening = 1;
#endif
				if
				:: wire
				:: !takeovers -> takeovers = 1	/* a thread leads now */
				fi
			fi;
#else
			wire;
#endif
			d_step { wire = 0; asleep = 0 }	/* the loop hears the wire and empties it; ipc_client_heard */
			listening = 0;
			goto loop
		fi;
#endif
#ifdef THREADS
		/* ipc_client_look with the lock, ipc_client_sleep without */
		d_step { m = (todo -> 2 : 1); knows = wanted }
		UNLOCK;
		crung = 1;
		asleep = m;
		if
#ifdef NO_WANTED_LOOK
		:: done || deaths != seen || (m == 2 && ANY_USABLE) -> skip
#else
		:: done || deaths != seen || (m == 2 && ANY_USABLE) || wanted != knows -> skip
#endif
		:: else ->
			d_step { cwaits = (crung == 1) }
			!cwaits
		fi;
		d_step { asleep = 0; crung = 0; m = 0; knows = 0 }
		LOCK;
		goto loop;
#endif
		crung = 1;			/* b = client_bell */
#ifdef RELAXED_ASLEEP
		d_step { DRAIN; b_asleep = 1; v_asleep = (todo -> 2 : 1) }
#else
		d_step { DRAIN; asleep = (todo -> 2 : 1) }
#endif
#ifndef NO_CLIENT_LOOK
		if
		:: done || deaths != seen || (todo && ANY_USABLE) -> skip
		:: else ->
			d_step { cwaits = (crung == 1) }	/* FUTEX_WAIT(client_bell, b) */
			!cwaits
		fi;
#else
		d_step { cwaits = (crung == 1) }
		!cwaits;
#endif
		d_step { b_asleep = 0; v_asleep = 0; asleep = 0; crung = 0 }
	fi;
	goto loop;
over:	atomic {
		r = 0; do :: r < R -> assert(row[r].st == FREE); r++ :: else -> break od;
		t = 0; do :: t < T -> assert(ended[t] == 1 && attempts[t] == claims[t]); t++ :: else -> break od
	}
}

init { atomic {
#ifdef GUARD
	worked[0] = 1; worked[1] = 1;	/* there was life before */
#if W > 2
	worked[2] = 1;
#endif
#endif
	run client(); run worker(0); run worker(1);
#if W > 2
	run worker(2);
#endif
	 run monitor(); run killer()
#ifdef THREADS
	; run other()
#endif
#if defined(RELAXED_TAIL) || defined(RELAXED_BIT) || defined(RELAXED_DONE) || defined(RELAXED_ASLEEP) || defined(RELAXED_GUARD)
	; run buffers()
#endif
} }
