/* payload.pml - who owns a payload unit, and who looks at it (DESIGN.md, section 2, Room; the steps have the same names).
 *
 * Modelled: arguments in NEED adjacent units of the lower half, taken and freed unit by unit; a result in one unit of the upper half, taken by a
 *   compare-and-swap against the other worker; a task that keeps its arguments beyond its end (given unit by unit before DONE, dropped unit by
 *   unit); a result that the client adopts (view) and drops; either may be held until everything else has ended. Deaths and condemnations
 *   between any two steps, restart under generation+1, settle (rows, then what was kept). Arguments that find no room wait for rows in flight
 *   only; a result that can only fit where views are is given up.
 * Reduced: claims pick any READY row (the ring is the subject of claim.pml); waits are guards; memory is sequentially consistent; a death is a
 *   step of who dies, possible before each of its steps.
 * Checked: no unit is taken while anybody alive looks at it; what is held keeps its owner until it is dropped; all units are free at the end; no
 *   stuck state.
 *
 * Sizes:  T tasks · R rows · W workers · L and U units of the lower and the upper half · NEED units of arguments · K kills · C condemnations
 * Planted faults: GIVE_LATE NO_FREE_KEPT NO_GEN_KEPT NO_SLOT_KEPT ADOPT_LEAVES FREE_BLIND DROP_AS_ROW EARLY_REAP WAIT_KEPT WAIT_VIEWS RESULT_LOW
 *   (see run.py)
 */
#ifndef T
#define T 2
#endif
#ifndef R
#define R 2
#endif
#ifndef W
#define W 2
#endif
#ifndef L
#define L 3
#endif
#ifndef U
#define U 2
#endif
#ifndef NEED
#define NEED 2
#endif
#ifndef K
#define K 1
#endif
#ifndef C
#define C 0
#endif

#define FREE 0
#define READY 1
#define RUNNING 2
#define STORING 3
#define DONE 4
#define CONDEMNED 5

#define NONE 99
#define VIEW 100
#define OWN(r, q) (1 + (r) + R * (q))
#define KEPT(w, g) (110 + (w) + W * (g))
#define IS_KEPT(o) ((o) >= 110)
#define CLIENT 128 /* its bit in eyes; a worker's is 1 << w */

typedef Row {
	byte st, slot, gen, seq; /* the word */
	byte args;		/* the first unit of its arguments; the client's copy cannot be damaged */
	byte ref		/* the unit of its result, NONE: the body of the row */
}
Row row[R];
byte unit[L + U];		/* 0, OWN, VIEW or KEPT; results from L on */
byte gen[W], reaped[W], settled[W];
byte life[W];			/* 0 lives · 1 killed · 2 stopped by itself · 3 killed and not started again */
bit stop;
byte kills = K, condemns = C;
/* what only the checker sees */
byte eyes[L + U];		/* who looks at the unit, or writes into it */

byte todo = T;			/* tasks not yet published */
byte ended;

inline take(u, owner) { d_step { assert(eyes[u] == 0); unit[u] = owner } }

/* A compare-and-swap: a unit that is not `from`'s is left alone. */
inline give(u, from, to) {
	if
	:: unit[u] == (from) -> unit[u] = to
	:: else
	fi
}

/* ---------------------------------------------------------------------------------------------------- worker */
#define CONDEMNED_IS(r)	(row[r].st == CONDEMNED && row[r].slot == w && row[r].gen == gen[w])
#define IS_CONDEMNED	(CONDEMNED_IS(0) || CONDEMNED_IS(R - 1))
#define DIES	(IS_CONDEMNED || (kills && !stop))
#define NEXT(step)	atomic { if :: DIES -> die(); goto dead :: true fi; step }
#if defined(GIVE_LATE) || defined(DROP_AS_ROW) /* which look at the row later */
#define FORGET	u = NONE; k = 0
#else
#define FORGET	u = NONE; k = 0; keep = 0; r = 0; q = 0
#endif

inline die() {
	d_step {
		if :: IS_CONDEMNED -> skip :: else -> kills-- fi;
		life[w] = 1; held = NONE; keep = 0; forever = 0; r = 0; q = 0; k = 0; u = NONE
	}
}

proctype worker(byte w) {
	byte r, q, u = NONE, k, held = NONE;
	bit keep, forever;
start:
	do
	:: atomic { DIES -> die(); goto dead }
	:: atomic { row[0].st == READY || row[R - 1].st == READY ->
		if
		:: row[0].st == READY -> r = 0
		:: row[R - 1].st == READY -> r = R - 1
		fi;
		d_step { /* claim; from here on it looks at its arguments */
			row[r].st = RUNNING; row[r].slot = w; row[r].gen = gen[w]; q = row[r].seq;
			k = 0;
			do
			:: k < NEED -> eyes[row[r].args + k] = eyes[row[r].args + k] | (1 << w); k++
			:: else -> break
			od
		} };
		if
		:: true -> u = NONE; goto written /* a result that the row holds */
		:: true
		fi;
		/* store */
		NEXT( if :: row[r].st == RUNNING -> row[r].st = STORING :: else -> goto lost fi );
		do
		:: atomic { DIES -> die(); goto dead }
#ifdef RESULT_LOW
		:: atomic { unit[0] == 0 || unit[1] == 0 || unit[L - 1] == 0 ->
			if :: unit[0] == 0 -> u = 0 :: unit[1] == 0 -> u = 1 :: unit[L - 1] == 0 -> u = L - 1 fi };
#else
		:: atomic { unit[L] == 0 || unit[L + U - 1] == 0 -> /* seen free; the other worker may be faster */
			if :: unit[L] == 0 -> u = L :: else -> u = L + U - 1 fi };
#endif
			atomic {
				if
				:: DIES -> die(); goto dead
				:: unit[u] == 0 -> take(u, OWN(r, q)); eyes[u] = eyes[u] | (1 << w); break
				:: unit[u] != 0 -> u = NONE
				fi
			}
#ifndef WAIT_VIEWS
		:: atomic { unit[L] == VIEW && unit[L + U - 1] == VIEW -> u = NONE; break } /* could_fit: an error in the row instead */
#endif
		od;
		NEXT( row[r].ref = u );
written:	/* finish: is anything still looking at the arguments? */
		atomic {
			if
			:: DIES -> die(); goto dead
			:: held == NONE -> keep = 1; forever = 0
			:: held == NONE -> keep = 1; forever = 1
			:: true -> keep = 0; k = 0;
				do
				:: k < NEED -> eyes[row[r].args + k] = eyes[row[r].args + k] & (255 - (1 << w)); k++
				:: else -> break
				od
			fi;
			k = 0
		};
#ifndef GIVE_LATE
		do
		:: keep && k < NEED -> NEXT( give(row[r].args + k, OWN(r, q), KEPT(w, gen[w])); k++ )
		:: else -> break
		od;
#endif
		NEXT(
			if
			:: row[r].st == RUNNING || row[r].st == STORING ->
				if :: keep -> held = row[r].args :: else fi;
				if :: u != NONE -> eyes[u] = eyes[u] & (255 - (1 << w)) :: else fi;
				row[r].st = DONE
			:: else -> goto lost
			fi;
			FORGET
		);
#ifdef GIVE_LATE
		do
		:: keep && k < NEED -> NEXT( give(held + k, OWN(r, q), KEPT(w, gen[w])); k++ )
		:: else -> break
		od;
		NEXT( k = 0 )
#endif
	:: atomic { held != NONE && (!forever || stop) -> k = 0 }; /* the last reference goes */
		NEXT( do
			:: k < NEED -> assert(unit[held + k] == KEPT(w, gen[w])); eyes[held + k] = eyes[held + k] & (255 - (1 << w)); k++
			:: else -> break
			od; k = 0 );
		do
#ifdef DROP_AS_ROW
		:: k < NEED -> NEXT( give(held + k, OWN(r, q), 0); k++ )
#else
		:: k < NEED -> NEXT( give(held + k, KEPT(w, gen[w]), 0); k++ )
#endif
		:: else -> break
		od;
		NEXT( held = NONE; forever = 0; k = 0 )
	:: atomic { stop && held == NONE -> life[w] = 2; goto out }
	od;
lost:	atomic { IS_CONDEMNED -> die() }; /* it waits for its end */
dead:	atomic {
		if
		:: life[w] == 0 -> goto start /* the next generation */
		:: life[w] == 3 -> goto out
		fi
	};
out:	skip
}

/* --------------------------------------------------------------------------------------- monitor and killer */
inline blind(w) { j = 0; do :: j < L + U -> eyes[j] = eyes[j] & (255 - (1 << w)); j++ :: else -> break od; j = 0 }

active proctype monitor() {
	byte w, j;
	do
	:: atomic { condemns && (row[0].st == RUNNING || row[R - 1].st == RUNNING) -> condemns--;
		if :: row[0].st == RUNNING -> row[0].st = CONDEMNED :: row[R - 1].st == RUNNING -> row[R - 1].st = CONDEMNED fi }
	:: atomic { life[0] == 1 || life[W - 1] == 1 ->
		if :: life[0] == 1 -> w = 0 :: life[W - 1] == 1 -> w = W - 1 fi };
#ifdef EARLY_REAP
		reaped[w] = gen[w] + 1; /* before waitid */
		blind(w);
#else
		atomic { blind(w); reaped[w] = gen[w] + 1 }; /* waitid has returned: it looks at nothing any more */
#endif
		atomic {
			if
			:: stop -> life[w] = 3 /* no more births */
			:: !stop -> gen[w] = gen[w] + 1; life[w] = 0
			fi;
			w = 0
		}
	:: stop && life[0] >= 2 && life[W - 1] >= 2 -> break
	od
}

/* ---------------------------------------------------------------------------------------------------- client */
#define IN_FLIGHT	(row[0].st != FREE || row[R - 1].st != FREE)
#define FITS(f)		(unit[f] == 0 && unit[f + NEED - 1] == 0)
#define FINISHED(r, w)	(row[r].slot == w && row[r].gen < n && (row[r].st == RUNNING || row[r].st == STORING || row[r].st == CONDEMNED))

inline release(r) { /* arguments by the client's own copy, the result by ref, and what no ref names yet */
	k = 0;
	do
#ifdef FREE_BLIND
	:: k < NEED -> unit[row[r].args + k] = 0; k++
#else
	:: k < NEED -> atomic { give(row[r].args + k, OWN(r, row[r].seq), 0); k++ }
#endif
	:: else -> break
	od;
	k = L;
	do
	:: k < L + U -> atomic { give(k, OWN(r, row[r].seq), 0); k++ }
	:: else -> break
	od;
#ifdef RESULT_LOW
	k = 0;
	do
	:: k < L -> atomic { give(k, OWN(r, row[r].seq), 0); k++ }
	:: else -> break
	od;
#endif
	atomic { row[r].st = FREE; row[r].ref = NONE; k = 0 }
}

active proctype client() {
	byte r, w, k, n, first, view = NONE, view2 = NONE;
	bit forever;
	atomic { row[0].ref = NONE; row[R - 1].ref = NONE }
	do
	:: atomic { todo && (row[0].st == FREE || row[R - 1].st == FREE) && (FITS(0) || FITS(L - NEED)
#ifndef WAIT_KEPT
		|| !IN_FLIGHT
#endif
		) ->
		if :: row[0].st == FREE -> r = 0 :: else -> r = R - 1 fi;
		todo--;
		if :: FITS(0) -> first = 0 :: !FITS(0) && FITS(L - NEED) -> first = L - NEED :: else -> first = NONE fi };
		if
		:: first == NONE -> ended++ /* TOO_LARGE: only what is kept is in the way */
		:: else ->
			k = 0;
			d_step { row[r].seq = row[r].seq + 1; row[r].args = first };
			do
			:: k < NEED -> atomic { take(first + k, OWN(r, row[r].seq)); k++ }
			:: else -> break
			od;
			atomic { k = 0; first = 0; row[r].st = READY }
		fi
	:: atomic { row[0].st == DONE || row[R - 1].st == DONE ->
		if :: row[0].st == DONE -> r = 0 :: row[R - 1].st == DONE -> r = R - 1 fi };
		if
		:: row[r].ref >= L && row[r].ref != NONE && (view == NONE || view2 == NONE) -> /* adopt */
			atomic {
				assert(unit[row[r].ref] == OWN(r, row[r].seq));
				eyes[row[r].ref] = eyes[row[r].ref] | CLIENT;
#ifndef ADOPT_LEAVES
				give(row[r].ref, OWN(r, row[r].seq), VIEW);
#endif
				if :: view == NONE -> view = row[r].ref :: else -> view2 = row[r].ref fi
			};
			if :: forever = 1 :: skip fi
		:: true
		fi;
		release(r);
		ended++
	:: atomic { view != NONE && (!forever || ended == T) ->
		assert(unit[view] == VIEW);
		eyes[view] = eyes[view] & (255 - CLIENT) };
		atomic { give(view, VIEW, 0); view = view2; view2 = NONE; if :: view == NONE -> forever = 0 :: else fi }
	:: atomic { reaped[0] != settled[0] || reaped[W - 1] != settled[W - 1] -> /* settle: `reaped` first */
		if :: reaped[0] != settled[0] -> w = 0 :: else -> w = W - 1 fi;
		n = reaped[w] };
		do
		:: FINISHED(0, w) -> release(0); todo++
		:: !FINISHED(0, w) && FINISHED(R - 1, w) -> release(R - 1); todo++
		:: else -> break
		od;
		k = 0;
#ifndef NO_FREE_KEPT
		do
		:: k < L -> atomic {
			first = 0;
			do
#ifdef NO_GEN_KEPT
			:: first <= gen[w] -> give(k, KEPT(w, first), 0); first++
#else
			:: first < n ->
				give(k, KEPT(w, first), 0);
#ifdef NO_SLOT_KEPT
				give(k, KEPT(W - 1 - w, first), 0);
#endif
				first++
#endif
			:: else -> break
			od;
			first = 0; k++ }
		:: else -> break
		od;
#endif
		atomic { settled[w] = n; k = 0; n = 0; w = 0 }
	:: ended == T && view == NONE && !stop -> stop = 1
	:: stop && life[0] >= 2 && life[W - 1] >= 2 && reaped[0] == settled[0] && reaped[W - 1] == settled[W - 1] -> break
	od;
	k = 0;
	do
	:: k < L + U -> assert(unit[k] == 0 && eyes[k] == 0); k++
	:: else -> break
	od
}

init { atomic { run worker(0); if :: W == 2 -> run worker(1) :: else fi } }
