"""Check the protocol models beside this file: python3 ipc/model/run.py [--full] [--only WORD] [--trail]

Every configuration is compiled in a directory of its own, searched, and compared with what is expected: the protocol
passes, each planted fault is caught. "complete" means that the whole state space was searched without a fault; a search
that met its limit of time, memory or depth is "partial", which is never a pass. Exit code 0: everything as expected.
"""

import argparse
import concurrent.futures
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time

HERE = pathlib.Path(__file__).resolve().parent

# (model, switches, expected). complete: no fault in the whole state space; stuck, assert: the fault that must be found;
# partial: too large to finish here, no fault may be found in the part that is searched.
DEFAULT = [
    # the protocol
    ("claim", "T=3 K=1", "complete"),
    ("claim", "T=1 K=2", "complete"),
    ("claim", "T=2 K=1 C=1", "complete"),
    ("claim", "T=3 K=0 C=2", "complete"),
    ("claim", "T=3 K=0 C=1 DEP", "complete"),
    ("claim", "T=2 K=1 CHUNK=1 BIG=1", "complete"),
    ("claim", "T=2 K=0 CHUNK=3 BIG=3 BIGITEMS U=1", "complete"),
    ("claim", "T=2 K=0 CHUNK=3 BIG=3 BIGITEMS U=2 NI=3", "complete"),
    ("claim", "T=1 K=1 CHUNK=1 BIG=1 BIGITEMS U=1 NI=3", "complete"),
    ("claim", "T=1 K=1 CHUNK=1 BIG=1 BIGITEMS U=3", "complete"),
    ("claim", "T=2 K=1 R=1 CHUNK=3 BIG=3 BIGITEMS U=2", "complete"),
    ("claim", "T=2 K=0 CHUNK=3 BIG=3 TOOBIG=1", "complete"),
    ("claim", "T=2 K=1 BIG=3 U=2 NEED=2", "complete"),
    ("claim", "T=2 K=1 BIG=3 U=1 VIEW", "complete"),
    ("claim", "T=2 K=0 D=1", "complete"),
    ("claim", "T=1 K=0 D=1 CHUNK=1 BIG=1", "complete"),
    ("claim", "T=2 K=0 F=1", "complete"),
    ("claim", "T=2 K=1 R=1", "complete"),
    ("sleep", "T=2 K=0", "complete"),
    ("sleep", "T=2 K=0 DEP", "complete"),
    ("sleep", "T=2 K=0 DEP CHAIN", "complete"),
    ("sleep", "T=2 K=0 DEP SPIN", "complete"),
    ("sleep", "T=2 K=0 DEP GUARD", "complete"),
    ("sleep", "T=2 K=0 DEP GUARD SPIN", "complete"),
    ("sleep", "T=1 K=1 NO_RESTART A=1 SPIN NO_AT_ONCE", "complete"),
    ("sleep", "T=2 K=0 DEP NO_AT_ONCE", "complete"),
    ("sleep", "T=2 K=0 R=1 C=1", "complete"),
    ("sleep", "T=2 K=0 R=1 C=1 NO_AT_ONCE", "complete"),
    ("sleep", "T=1 K=1", "complete"),
    ("sleep", "T=2 K=1 DEP", "complete"),
    ("sleep", "T=2 K=1 NO_RESTART A=1", "complete"),
    ("sleep", "T=2 K=1 NO_RESTART A=1 NO_AT_ONCE", "complete"),
    ("sleep", "T=2 K=0 LOOP", "complete"),
    ("sleep", "T=1 K=1 LOOP", "complete"),
    ("sleep", "T=2 K=0 R=1 C=1 LOOP", "complete"),
    ("sleep", "T=2 K=0 R=1 C=1 THREADS", "complete"),
    ("sleep", "T=1 K=1 THREADS", "complete"),
    ("payload", "T=2 K=1 C=1", "complete"),
    ("payload", "T=3 K=1", "complete"),
    ("payload", "T=2 K=2", "complete"),
    ("payload", "T=3 K=1 R=1 W=1", "complete"),
    ("payload", "T=3 K=0", "complete"),
    ("payload", "T=1 K=1 C=1", "complete"),
    # orders: each half of the two Dekker pairs must be seq_cst
    ("sleep", "T=1 K=0 RELAXED_TAIL", "stuck"),
    ("sleep", "T=1 K=0 RELAXED_BIT", "stuck"),
    ("sleep", "T=1 K=0 RELAXED_DONE", "stuck"),
    ("sleep", "T=1 K=0 RELAXED_ASLEEP", "stuck"),
    ("sleep", "T=2 K=0 R=1 C=1 RELAXED_HEAD", "stuck"),
    ("sleep", "T=2 K=0 DEP GUARD NO_AT_ONCE RELAXED_GUARD", "stuck"),
    # planted faults: who owns the row
    ("claim", "T=2 K=1 OWNER_LATE", "assert"),  # slot and generation written after the state
    ("claim", "T=2 K=1 HEAD_FIRST", "stuck"),  # head moved before the claim
    ("claim", "T=1 K=0 WEAK_CAS", "stuck"),  # the claim may fail for no reason
    ("claim", "T=2 K=1 NO_GEN", "assert"),  # settle by slot alone
    ("claim", "T=1 K=2 ROWS_FIRST", "assert"),  # rows read before `reaped`
    ("claim", "T=1 K=2 SEEN_LAST", "stuck"),  # `deaths` read after `reaped`
    ("claim", "T=1 K=1 NO_DONE_SCAN", "stuck"),  # settle does not collect DONE rows without a bit
    ("claim", "T=2 K=0 BIT_FIRST", "stuck"),  # done bit before DONE
    ("claim", "T=3 K=1 BIT_TRUSTED", "assert"),  # done bit taken for a proof
    ("claim", "T=2 K=0 WORD_FIRST", "stuck"),  # done word emptied before its summary
    ("claim", "T=3 K=0 C=1 REUSE_EARLY", "assert"),  # row used again before head passed its entry
    ("claim", "T=2 K=0 D=1 R=1 LOOSE_CONDEMN", "assert"),  # condemned by state alone
    ("claim", "T=2 K=0 D=1 DONE_STORE", "assert"),  # DONE by a plain store
    ("claim", "T=1 K=1 CHUNK=1 ITEM_FIRST", "assert"),  # item counted before its result is written
    ("claim", "T=3 K=1 BIG=3 U=2 R=1 VIEW NO_SEQ_UNITS", "assert"),  # units freed by row alone
    ("claim", "T=2 K=0 BIG=3 U=2 NEED=2 KEEP_UNITS", "stuck"),  # waits for room with units in hand
    ("claim", "T=2 K=0 CHUNK=3 BIG=3 BIGITEMS U=2 NO_OFFER", "stuck"),  # the same over the items of a chunk
    ("claim", "T=2 K=0 CHUNK=3 BIG=3 BIGITEMS U=2 OFFER_LATE", "stuck"),  # offered after the hint
    ("claim", "T=2 K=0 CHUNK=1 BIG=3 OFFER_NO_WAIT", "assert"),  # gives its run back before it was drained
    ("claim", "T=2 K=0 CHUNK=1 BIG=3 OFFER_GO_ON", "assert"),  # takes room that has come while its offer stands
    # gives the result up while its offer stands
    ("claim", "T=2 K=0 CHUNK=1 BIG=3 TOOBIG=1 GIVE_UP_OFFERING", "assert"),
    ("claim", "T=2 K=0 CHUNK=3 BIG=3 BIGITEMS U=2 DRAIN_EARLY", "assert"),  # drained stored before the copy
    ("claim", "T=1 K=1 CHUNK=1 BIG=1 BIGITEMS U=1 NI=3 SETTLE_ALL", "assert"),  # settle delivers what was drained
    # drained run freed before result_ref = 0
    ("claim", "T=1 K=1 CHUNK=1 BIG=1 BIGITEMS U=1 NI=3 FREE_FIRST", "assert"),
    # old run freed before result_ref names the new one
    ("claim", "T=1 K=1 CHUNK=1 BIG=1 BIGITEMS U=3 OLD_FIRST", "assert"),
    ("claim", "T=1 K=1 BIG=1 FREE_BY_REF", "assert"),  # settle frees only what result_ref names
    ("claim", "T=3 K=0 C=2 NO_HEAD_RING", "stuck"),  # nobody tells the client that head has passed
    ("claim", "T=2 K=1 R=1 NO_HEAD_RING", "stuck"),
    ("claim", "T=3 K=0 C=1 DEP NO_HEAD_RING CLIENT_HELPS", "stuck"),  # that the client moves head itself is not enough
    # planted faults: who wakes whom
    ("sleep", "T=1 K=0 WAKE_FIRST", "stuck"),  # wake before publish
    ("sleep", "T=1 K=0 NO_LOOK", "stuck"),  # no second look after the bit
    ("sleep", "T=1 K=0 NO_CLIENT_LOOK", "stuck"),  # the same in the client
    ("sleep", "T=1 K=0 NO_BELL", "stuck"),  # wake without bell+1
    ("sleep", "T=2 K=0 DEP NO_DEFERRED", "stuck"),  # only the wake at once
    ("sleep", "T=2 K=0 DEP EMPTY_RING_WAKE", "stuck"),  # wake only if the ring was empty
    ("sleep", "T=1 K=1 NO_CLIENT_RING", "stuck"),  # a death does not ring the client
    ("sleep", "T=1 K=1 IF_ASLEEP_RING", "stuck"),  # it does if client_asleep says so
    (
        "sleep",
        "T=2 K=1 NO_RESTART A=1 NO_CLEAR NO_RING_ALL",
        "stuck",
    ),  # a death neither clears the bit nor rings the slots
    ("sleep", "T=2 K=1 NO_RESTART A=1 NO_RING_ALL", "stuck"),  # no ring of the slots
    ("sleep", "T=2 K=1 NO_RESTART A=1 NO_AT_ONCE NO_CLEAR", "stuck"),  # bit of the dead left
    ("sleep", "T=2 K=1 DEP CLEAR_LATE", "stuck"),  # bit cleared after the fork
    ("sleep", "T=1 K=1 NO_RESTART A=1 NO_AT_ONCE GUARD FLAG_RING", "stuck"),  # only slots whose bit is set are rung
    ("sleep", "T=2 K=0 R=1 C=1 NO_HEAD_RING", "stuck"),  # as in claim
    ("sleep", "T=1 K=0 NO_AT_ONCE SPIN SPIN_LATE", "stuck"),  # spinner bit cleared after the look
    # wakes ready less spinners: a spinner that marks itself counts twice
    ("sleep", "T=2 K=0 DEP SPIN SPIN_SUBTRACT", "stuck"),
    ("sleep", "T=1 K=1 NO_RESTART A=1 NO_AT_ONCE SPIN NO_SPIN_CLEAR", "stuck"),  # spinner bit of the dead left
    ("sleep", "T=2 K=0 DEP NO_AT_ONCE GUARD GUARD_RESIGN_LATE", "stuck"),  # guard cleared after its look
    ("sleep", "T=2 K=0 DEP GUARD GUARD_LOOK_EARLY", "stuck"),  # client looks for the guard before it moves tail
    ("sleep", "T=1 K=1 NO_RESTART A=1 NO_AT_ONCE GUARD NO_GUARD_CLEAR", "stuck"),  # guard not cleared for the dead
    ("sleep", "T=1 K=1 NO_RESTART A=1 NO_AT_ONCE GUARD GUARD_CLEAR_LATE", "stuck"),  # cleared after the rings
    ("sleep", "T=2 K=0 DEP NO_AT_ONCE GUARD NO_SUCCESSOR", "stuck"),  # the guard leaves and wakes nobody
    ("sleep", "T=2 K=0 DEP GUARD GUARD_FIRST WOKEN_QUIET", "stuck"),  # woken first, and then no successor
    ("sleep", "T=2 K=0 DEP GUARD WOKEN_QUIET", "stuck"),  # woken last, and then no successor
    ("sleep", "T=2 K=0 R=1 C=1 NO_AT_ONCE READY_COUNT", "stuck"),  # ready = rows in READY, not tail - head
    ("sleep", "T=1 K=0 LOOP LISTEN_LATE", "stuck"),  # listening is said after the second look
    ("sleep", "T=1 K=0 LOOP WIRE_EARLY", "stuck"),  # a worker looks for listeners before it says DONE
    ("sleep", "T=1 K=0 LOOP NO_LOOP_LOOK", "stuck"),  # no second look while a loop listens
    ("sleep", "T=1 K=1 LOOP WIRE_IF_TAKEN", "stuck"),  # a death rings the wire only if the sleep was not taken
    ("sleep", "T=2 K=0 R=1 C=1 THREADS NO_WANTED_LOOK", "stuck"),  # asleep beside a thread that has found no row
    ("sleep", "T=2 K=0 R=1 C=1 THREADS WANTED_LATE", "stuck"),  # which counts after its look at the sleeper
    # planted faults: who owns a payload unit
    ("payload", "T=2 K=0 W=1 GIVE_LATE", "assert"),  # the worker takes kept arguments over after DONE
    ("payload", "T=1 K=1 W=1 NO_FREE_KEPT", "assert"),  # settle leaves what the dead have kept
    ("payload", "T=2 K=1 W=1 NO_GEN_KEPT", "assert"),  # settle frees what a slot has kept, whatever the generation
    ("payload", "T=2 K=1 NO_SLOT_KEPT", "assert"),  # settle frees what other slots have kept
    ("payload", "T=1 K=0 W=1 ADOPT_LEAVES", "assert"),  # an adopted result is still its row's
    ("payload", "T=1 K=0 W=1 FREE_BLIND", "assert"),  # a row's arguments freed without a look at their owner
    ("payload", "T=1 K=0 W=1 DROP_AS_ROW", "assert"),  # a worker drops what it has kept as if it were still the row's
    ("payload", "T=2 K=1 W=1 EARLY_REAP", "assert"),  # `reaped` stored before the process is gone
    ("payload", "T=2 K=0 W=1 WAIT_KEPT", "stuck"),  # arguments wait for what a task has kept
    ("payload", "T=3 K=0 W=1 WAIT_VIEWS", "stuck"),  # a result waits for what the program holds
    ("payload", "T=3 K=0 W=1 L=2 NEED=1 RESULT_LOW", "stuck"),  # results take the half of arguments
]

FULL = [
    ("claim", "T=2 K=1 F=1", "complete"),
    ("claim", "T=2 K=1 D=1", "complete"),
    ("claim", "T=3 K=1 BIG=3 U=1 VIEW", "complete"),
    ("claim", "T=2 K=1 CHUNK=3 BIG=3 BIGITEMS U=2", "complete"),
    ("claim", "T=1 K=1 CHUNK=1 BIG=1 BIGITEMS U=3 NI=3", "complete"),
    ("claim", "T=1 K=2 CHUNK=1 BIG=1 BIGITEMS U=1 NI=3", "complete"),
    ("claim", "T=2 K=1 CHUNK=3 BIG=3 TOOBIG=1", "complete"),
    ("sleep", "T=1 K=1 NO_RESTART A=1 NO_AT_ONCE GUARD SPIN", "complete"),
    ("sleep", "T=2 K=0 DEP GUARD NO_AT_ONCE", "complete"),
    ("sleep", "T=2 K=0 DEP GUARD GUARD_FIRST", "complete"),  # that the guard is woken last is not needed, only cheaper
    ("sleep", "T=2 K=0 NO_AT_ONCE GUARD", "complete"),
    ("sleep", "T=1 K=1 R=1 NO_RESTART A=1 NO_AT_ONCE GUARD", "complete"),  # a killed guard, a killed successor
    ("sleep", "T=2 K=1 NO_RESTART A=1 GUARD", "partial"),  # killed guards and killed successors
    ("sleep", "T=2 K=0 DEP GUARD W=3 NO_AT_ONCE", "partial"),
    ("claim", "T=2 K=1 D=1 CHUNK=1 BIG=1", "complete"),
    ("claim", "T=3 K=1 C=1", "complete"),
    ("claim", "T=2 K=2", "complete"),
    ("claim", "T=3 K=0 C=1 DEP R=2 U=2 BIG=7 NEED=2", "complete"),
    ("sleep", "T=2 K=1", "complete"),
    ("sleep", "T=2 K=0 THREADS", "complete"),
    ("sleep", "T=3 K=0 C=1", "complete"),
    ("sleep", "T=3 K=0 DEP", "complete"),
    ("sleep", "T=2 K=1 R=1 C=1", "complete"),
    ("sleep", "T=1 K=2", "complete"),
    ("sleep", "T=2 K=2 DEP", "complete"),
    ("sleep", "T=3 K=1 DEP", "complete"),
    ("claim", "T=3 K=2 C=1 D=1 F=1 CHUNK=1 BIG=3 U=2", "partial"),
    ("payload", "T=2 K=2 C=1", "complete"),
    ("payload", "T=3 K=1 C=1", "complete"),
]


# What bounds a search, and the switches of each model that say so; their numbers add up.
BOUNDS = {
    "tasks": {"claim": "T", "sleep": "T", "payload": "T"},
    "crashes": {"claim": "K", "sleep": "K", "payload": "K"},
    "condemned": {"claim": "DF", "payload": "C"},
    "cancelled": {"claim": "C", "sleep": "C"},
    "workers": {"claim": "W", "sleep": "W", "payload": "W"},
}

Config = tuple[str, str, str]  # model, switches, what is expected
Row = tuple[str, str, str, str, str, str, float]  # model, switches, states, depth, expected, got, seconds


class Limits:
    """Seconds and megabytes that one search may use."""

    def __init__(self, full: bool, seconds: int | None) -> None:
        self.seconds = seconds or (200 if full else 120)
        self.megabytes = 7000 if full else 2500


def search(pan: str, limits: Limits, cwd: str) -> str:
    """Run a compiled search; at the limit of time it is interrupted and still reports what it did."""
    args = [pan, "-m200000"]
    with subprocess.Popen(args, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as proc:
        try:
            return proc.communicate(timeout=limits.seconds)[0]
        except subprocess.TimeoutExpired:
            proc.send_signal(signal.SIGINT)
            try:
                return proc.communicate(timeout=10)[0]
            except subprocess.TimeoutExpired:
                proc.kill()
                return proc.communicate()[0]


def verdict(out: str) -> str:
    """What a search says: stuck, assert, error, partial or complete."""
    errors = re.search(r"errors: (\d+)", out)
    if re.search(r"^pan:\d+: invalid end state", out, re.M):
        return "stuck"
    if re.search(r"^pan:\d+: assertion violated", out, re.M):
        return "assert"
    cut = re.search(
        r"Search not completed|max search depth too small|[Ii]nterrupted|out of memory|reached -DMEMLIM", out
    )
    if cut or not errors:
        return "partial"
    return "complete" if errors[1] == "0" else "error"


def stored(out: str) -> str:
    """How many states a search has stored; "" if it does not say. Above 99,999,999 pan prints eight digits and an
    exponent."""
    states = re.search(r"(\S+) states, stored", out)
    return str(int(float(states[1]))) if states else ""


def check(config: Config, limits: Limits, trail: bool) -> tuple[Row, str]:
    """Compile and search one configuration; the row of the table and, for a surprise, how it came about."""
    model, switches, expected = config
    began = time.monotonic()
    flags = ["-D" + word for word in switches.split()]
    with tempfile.TemporaryDirectory(prefix="model-") as tmp:
        shutil.copy(HERE / f"{model}.pml", tmp)

        def run(*args: str) -> subprocess.CompletedProcess[str]:
            return subprocess.run(args, cwd=tmp, capture_output=True, text=True)

        made = run("spin", "-a", *flags, f"{model}.pml")
        if made.returncode == 0:
            memory = f"-DMEMLIM={limits.megabytes}"
            made = run("gcc", "-O1", "-w", "-DSAFETY", "-DNOFAIR", "-DCOLLAPSE", memory, "-o", "pan", "pan.c")
        if made.returncode:
            return (model, switches, "", "", expected, "broken", time.monotonic() - began), made.stdout + made.stderr
        out = search(os.path.join(tmp, "pan"), limits, tmp)
        got = verdict(out)
        depth = re.search(r"depth reached (\d+)", out)
        found = (stored(out), depth[1] if depth else "")
        row: Row = (model, switches, *found, expected, got, time.monotonic() - began)
        how = ""
        if got in ("stuck", "assert", "error") and (trail or got != expected):
            how = "\n".join(run("spin", "-t", "-p", "-g", *flags, f"{model}.pml").stdout.splitlines()[-120:])
        elif not as_expected(expected, got):
            how = out[-1500:]
        return row, how


def sizes(model: str, switches: str) -> dict[str, int]:
    """What a model is compiled with: its own numbers, unless a switch sets another one."""
    own = re.findall(r"^#define (\w+)\s+(\d+)\b", (HERE / f"{model}.pml").read_text(), re.M)
    given = re.findall(r"(\w+)=(\d+)", switches)
    return {name: int(n) for name, n in own + given}


def bounds(searched: list[tuple[str, str]]) -> str:
    """The least and the most of each of BOUNDS, over models with their switches."""
    said = []
    for what, letters in BOUNDS.items():
        counts = [sum(sizes(model, switches)[x] for x in letters.get(model, "")) for model, switches in searched]
        least, most = min(counts), max(counts)
        if least == most:
            said.append(f"{most} {what}")
        elif least == 0:
            said.append(f"up to {most} {what}")
        else:
            said.append(f"{least} {'or' if most == least + 1 else 'to'} {most} {what}")
    return ", ".join(said)


def as_expected(expected: str, got: str) -> bool:
    """A search that was to be partial may also finish."""
    return got == expected or (expected == "partial" and got == "complete")


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--full", action="store_true", help="the large searches too (up to 15 minutes, 14 GB of memory)"
    )
    parser.add_argument("--only", default="", metavar="WORD", help="only configurations whose line contains WORD")
    parser.add_argument(
        "--seconds", type=int, metavar="N", help="limit of one search, for a machine that is slow or busy (120; 200)"
    )
    parser.add_argument("--trail", action="store_true", help="print the end of the steps that lead to each fault")
    args = parser.parse_args()
    for tool in ("spin", "gcc"):
        if not shutil.which(tool):
            print(f"{tool} is missing: install the Debian package {tool} (apt install {tool})", file=sys.stderr)
            return 2
    limits = Limits(args.full, args.seconds)
    configs = [c for c in DEFAULT + (FULL if args.full else []) if args.only in " ".join(c)]
    if not configs:
        print(f"no configuration contains {args.only!r}", file=sys.stderr)
        return 2
    began = time.monotonic()
    wrong = 0
    counts: dict[str, int] = {}
    searched: list[tuple[str, str]] = []  # of the protocol, to the end
    print(f"{'model':8}{'switches':58}{'states':>11}{'depth':>7}  {'expected':9} {'got':9}{'s':>6}")
    with concurrent.futures.ThreadPoolExecutor(min(2, os.cpu_count() or 1)) as pool:
        for row, how in pool.map(lambda config: check(config, limits, args.trail), configs):
            model, switches, states, depth, expected, got, seconds = row
            ok = as_expected(expected, got)
            wrong += not ok
            counts[got] = counts.get(got, 0) + 1
            if got == "complete" and expected in ("complete", "partial"):
                searched.append((model, switches))
            mark = "" if ok else "  WRONG"
            print(f"{model:8}{switches:58}{states:>11}{depth:>7}  {expected:9} {got:9}{seconds:6.1f}{mark}", flush=True)
            if how:
                print(how, flush=True)
    summary = ", ".join(f"{n} {got}" for got, n in sorted(counts.items()))
    print(f"{len(configs)} configurations in {time.monotonic() - began:.0f} s: {summary}; {wrong} not as expected")
    print(f"bounds of the complete searches: {bounds(searched) if searched else 'none'}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
