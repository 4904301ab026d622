"""``pool map``: a function, many inputs, and a list of what failed."""

from __future__ import annotations

import contextlib
import glob
import json
import os
import signal
import sys

import click

from pool import Pool, codec, plot
from pool.cli import Mistake, Stopped, give_up_output, inputs, printable, say, target, writing
from pool.cli.batch import Batch, Ended
from pool.cli.journal import Journal, files_of
from pool.cli.outputs import Outputs
from pool.errors import PoolError
from pool.output import remove_abandoned
from pool.progress import Display, Log, Progress, display, eta_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType
    from typing import Any, Literal

_LISTED = 50  # failures at the end; the journal and --json have all of them


class _Number(click.IntRange):
    name = "number"


class _ChunkSize(_Number):
    name = "number or 'auto'"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return value if value == "auto" else super().convert(value, param, ctx)


def _complete_input(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[Any]:
    from click.shell_completion import CompletionItem

    if incomplete.startswith("@"):  # no shell knows that a file follows
        found = sorted(glob.glob(f"{glob.escape(incomplete[1:])}*"))
        return [CompletionItem(f"@{path}/" if os.path.isdir(path) else f"@{path}") for path in found]
    return [CompletionItem(incomplete, type="file")]


@click.command("map")
@click.argument("function", metavar="MODULE:FUNCTION", shell_complete=target.complete)
@click.argument("words", metavar="INPUTS...", nargs=-1, shell_complete=_complete_input)
@click.option("--out", metavar="DIR", type=click.Path(file_okay=False), help="Where outputs go; made if missing.")
@click.option("--suffix", metavar=".EXT", help="Of the outputs, in place of that of the input.")
@click.option(
    "--base",
    metavar="DIR",
    type=click.Path(file_okay=False),
    help="Outputs are named by what comes after it (default: the folder that all inputs share).",
)
@click.option(
    "-a", "--arg", "arguments", metavar="KEY=VALUE", multiple=True, help="A further argument of the function."
)
@click.option("-0", "--null", is_flag=True, help="Inputs read from a file end with NUL, not with a newline.")
@click.option(
    "-j",
    "--workers",
    metavar="N",
    type=_Number(0),
    help="Default: one for each CPU it may use. 0: no processes.",
)
@click.option(
    "--chunksize",
    metavar="N|auto",
    type=_ChunkSize(1),
    default="auto",
    show_default=True,
    help="Inputs that are handed over at a time.",
)
@click.option("--timeout", metavar="SECONDS", type=float, help="Stop an attempt that runs longer.")
@click.option("--memory-limit", metavar="SIZE", help="Stop an attempt that takes more, such as 500M.")
@click.option("--retries", metavar="N", type=_Number(0), default=0, help="Further attempts of what fails.")
@click.option("--backoff", metavar="SECONDS", type=float, help="Wait up to so long before the first, then longer.")
@click.option(
    "--on-error",
    type=click.Choice(["raise", "return", "skip"]),
    default="return",
    show_default=True,
    help="raise: stop at the first failure; return: go on and list them; skip: go on and count them.",
)
@click.option(
    "--journal",
    metavar="FILE",
    type=click.Path(dir_okay=False),
    help="Record what is done; the same command goes on from there.",
)
@click.option("--retry-failed", is_flag=True, help="Do again what the journal has as failed.")
@click.option("-k", "--keep-order", is_flag=True, help="Results in the order of the inputs.")
@click.option(
    "--json", "as_json", is_flag=True, help="One JSON object for each input, and a summary, on standard output."
)
@click.option("-q", "--quiet", is_flag=True, help="No progress and no summary; failures are still listed.")
@click.option(
    "--progress",
    type=click.Choice(["auto", "bar", "log", "none"]),
    default="auto",
    show_default=True,
    help="auto: a bar on a terminal, else one line a minute.",
)
@click.option("--insights", is_flag=True, help="Print what the workers did, and which inputs were slowest.")
@click.option(
    "--plot", metavar="FILE", type=click.Path(dir_okay=False), help="Draw when workers were busy: .svg or .png."
)
def command(**options: Any) -> int:
    """Call FUNCTION of MODULE (or of path/file.py) for each input, on all cores.

    \b
    INPUTS are words, quoted patterns ('photos/**/*.jpg'), @FILE (a line each),
    or - for standard input. The function gets one as its first argument; with
    --out also the path to write to, which becomes the output only when it is
    whole. What it returns, if not None, is printed.

    \b
    Exit code: 0 every input succeeded, 1 some failed, 2 the command was wrong,
    130 interrupted (128 and the number of the signal).

    \b
    pool map tasks:thumbnail 'photos/**/*.jpg' --out thumbs --journal thumbs.db
    """  # fmt: skip
    return _Command(**options).run()


class _Command:
    """One call of the command: its options, checked, and what has happened so far."""

    def __init__(
        self, *, function: str, words: tuple[str, ...], out: str | None, suffix: str | None, base: str | None,
        arguments: tuple[str, ...], null: bool, retry_failed: bool, journal: str | None, **options: Any,
    ) -> None:  # fmt: skip
        self.options = options
        if not words:
            raise Mistake("no inputs: name files, a pattern, @FILE, or - for standard input")
        if retry_failed and journal is None:
            raise Mistake("--retry-failed needs --journal FILE")
        if out is None and (suffix or base):
            raise Mistake(f"{'--suffix' if suffix else '--base'} needs --out DIR")
        if suffix and (os.sep in suffix or "." not in suffix):
            raise Mistake(f"--suffix {suffix!r}: a suffix has a dot and no {os.sep!r}, such as '.webp'")
        if base is not None and not os.path.isdir(base):
            raise inputs.no_such_file(base)
        if options["workers"] == 0 and (options["timeout"] is not None or options["memory_limit"] is not None):
            raise Mistake("--timeout and --memory-limit need processes, and --workers is 0")
        if options["plot"]:
            _check_plot(options["plot"])
        self.target = target.Target(function, list(arguments), out is not None)
        place = None if out is None else os.path.abspath(out)
        ours = files_of(journal) if journal else []
        ours += [os.path.abspath(options["plot"])] if options["plot"] else []
        self.inputs = inputs.Inputs(words, b"\0" if null else b"\n", self.target.takes_file, place, frozenset(ours))
        self.pool = self._pool()
        self.calls = self._policy()
        self.journal = journal
        outputs = None
        if out is not None:
            outputs = Outputs(out, base or self.inputs.base, suffix)
            outputs.check(self.inputs.known)
            _make_folder(out)
        self.printer = _Printer(options["as_json"])
        self.batch = Batch(self.target, self.inputs, outputs, self.printer, retry_failed, options["keep_order"])
        self.signal = signal.SIGINT

    def _pool(self) -> Pool:
        try:
            return Pool(self.options["workers"])
        except ValueError as error:
            raise Mistake(f"--workers: {error}") from None

    def _policy(self) -> Any:
        policy = {key: self.options[key] for key in ("timeout", "retries", "backoff", "memory_limit")}
        policy = {key: value for key, value in policy.items() if value is not None}
        try:
            return self.pool.options(**policy)
        except (ValueError, TypeError) as error:
            raise Mistake(str(error)) from None

    def run(self) -> int:
        for number in (signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) is not signal.SIG_IGN:  # nohup
                signal.signal(number, self._terminated)
        stopped: str | None = None
        code = 1
        show = self._display()
        signal.signal(signal.SIGTSTP, lambda number, frame: self._suspend(show))
        with contextlib.nullcontext() if isinstance(show, Log) else show:  # a log needs no last line beside the summary
            try:
                self.pool.start()  # first: workers shall not hold the journal
                self._open_journal()
                with self.pool:
                    stopped = self._work(show)
                code = 0
            except KeyboardInterrupt:
                stopped, code = "interrupted", 128 + self.signal
            except BrokenPipeError:  # `| head` has what it wants
                give_up_output()
                code = 128 + signal.SIGPIPE
            except (Stopped, PoolError) as error:
                stopped = str(error)
            finally:
                if code != 0:
                    self.pool.kill_workers()
            try:
                self.batch.close()
            except BrokenPipeError:
                give_up_output()
                code = 128 + signal.SIGPIPE
            except Stopped as error:
                stopped, code = str(error), 1
            except KeyboardInterrupt:  # what has failed is still to be told
                stopped, code = "interrupted", 128 + self.signal
        return code if code == 128 + signal.SIGPIPE else self._end(stopped, code)

    def _terminated(self, number: int, frame: FrameType | None) -> None:
        """As Ctrl-C: the pool puts that off where it has to. A shell starts what is to run in the background with
        Ctrl-C switched off."""
        self.signal = signal.Signals(number)
        if not callable(signal.getsignal(signal.SIGINT)):
            signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.raise_signal(signal.SIGINT)

    def _suspend(self, show: Display) -> None:
        """Ctrl-Z: the shell shall have the whole terminal. What workers have begun, they finish meanwhile."""
        show.pause()
        ours = signal.signal(signal.SIGTSTP, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGTSTP)  # and here it goes on
        signal.signal(signal.SIGTSTP, ours)

    def _open_journal(self) -> None:
        if self.journal is None:
            return
        batch = self.batch
        batch.journal = journal = Journal(self.journal, self.target.place, batch.key())
        for base in journal.elsewhere:
            say(f"note: the journal knows this work with --base {base}, where outputs have other names")
        if journal.unclean and batch.outputs is not None:
            remove_abandoned(batch.outputs.folder)

    def _display(self) -> Display:
        kind: Literal["auto", "bar", "log", "none"]
        kind = "none" if self.options["quiet"] and self.options["progress"] == "auto" else self.options["progress"]
        return display(kind=kind)

    def _work(self, show: Display) -> str | None:
        """Everything; returns why it ended early, if it did."""
        batch, calls = self.batch, self.calls
        results = calls._imap(
            batch.call, batch, codec.CALL_ONE, False, on_error="return", numbered=True,
            chunksize=self.options["chunksize"], progress=lambda counts: self._tick(show, counts),
        )  # fmt: skip
        first = self.options["on_error"] == "raise"
        for index, result in results:
            batch.end(index, result)
            if first and batch.failed > batch.failed_before:
                self.pool.kill_workers()
                return "stopped at the first failure"
        return None

    def _tick(self, show: Display, counts: Progress) -> None:
        """Fifty milliseconds have passed, or all is done: what has ended is written, and shown as the batch counts it,
        which knows of earlier runs."""
        batch = self.batch
        batch.commit()
        total = batch.inputs()
        left = None if total is None else total - batch.before
        done = batch.done + batch.failed - batch.before
        eta = eta_of(done, left, counts.rate)
        counts = counts._replace(done=done, total=left, eta=eta, before=batch.before, failed=batch.failed)
        if not (counts.ended and isinstance(show, Log)):
            show(counts)

    def _end(self, stopped: str | None, code: int) -> int:
        batch, options = self.batch, self.options
        code = code or int(batch.failed > 0 or stopped is not None)
        summary = {**batch.summary(), "crashes": self.pool.crashes, "stopped": stopped}
        if options["as_json"]:
            extra = {"insights": self.pool.insights().to_dict()} if options["insights"] else {}
            try:
                self.printer.write(_json_line({"summary": summary, **extra}))
                self.printer.flush()
            except Stopped as error:  # people shall still be told
                summary["stopped"], code = str(error), code or 1
        if options["on_error"] != "skip":
            failures = batch.failures()
            for path, why in failures[:_LISTED]:
                say(f"failed  {printable(path)}  {why}")
            if batch.failed > min(_LISTED, len(failures)):
                say(f"        and {batch.failed - min(_LISTED, len(failures)):,} more")
        if summary["stopped"] is not None or not options["quiet"]:
            say(_sentence(summary, self.journal))
        if options["insights"] and not options["as_json"]:
            say(str(self.pool.insights()))
        if options["plot"]:
            try:
                self.pool.insights().plot(options["plot"])
            except (OSError, ValueError) as error:  # ValueError: no worker was ever started
                say(f"no plot: {error}")
                code = code or 1
        return code


class _Printer:
    """Standard output: what each input has come to."""

    def __init__(self, as_json: bool) -> None:
        self._as_json = as_json
        self._failed: Exception | None = None

    def text(self, ended: Ended) -> str:
        """What is to be printed, or nothing. Raises what the value raises when it is turned into text."""
        if self._as_json:
            return _json_line(ended.record())
        return "" if ended.value is None else f"{ended.value}\n"

    def write(self, text: str) -> None:
        """Raises BrokenPipeError if nobody reads any more, Stopped if it cannot be written; and then always."""
        self._do(lambda: sys.stdout.write(text))

    def flush(self) -> None:
        """As ``write``."""
        self._do(sys.stdout.flush)

    def _do(self, what: Callable[[], object]) -> None:
        if self._failed is not None:
            raise self._failed
        try:
            with writing():
                what()
        except (BrokenPipeError, Stopped) as error:
            self._failed = error
            raise


def _check_plot(path: str) -> None:
    try:
        plot.check(path)
    except FileNotFoundError as error:
        raise Mistake(f"--plot {path!r}: {error.strerror}") from None
    except (ValueError, ModuleNotFoundError) as error:
        raise Mistake(f"--plot: {error}") from None


def _make_folder(path: str) -> None:
    try:
        os.makedirs(path, exist_ok=True)
    except OSError as error:
        raise Mistake(f"--out {path!r}: {error.strerror}") from None


def _json_line(record: dict[str, Any]) -> str:
    try:
        return _json(record)
    except (TypeError, ValueError):  # keys that are no strings, cycles, NaN
        return _json({**record, "value": repr(record.get("value"))})


def _json(record: dict[str, Any]) -> str:
    line = json.dumps(record, default=_plain, ensure_ascii=False, allow_nan=False) + "\n"
    try:
        line.encode(sys.stdout.encoding)
    except UnicodeEncodeError:  # what cannot be written as it is
        line = json.dumps(record, default=_plain, allow_nan=False) + "\n"
    return line


def _plain(value: Any) -> Any:
    """What JSON does not know: numbers and arrays of numpy as such, everything else as text."""
    return value.tolist() if type(value).__module__ == "numpy" else str(value)


def _sentence(summary: dict[str, Any], journal: str | None) -> str:
    """The summary for people."""
    done, failed, seconds = summary["done"], summary["failed"], summary["seconds"]
    of = "" if summary["inputs"] is None else f" of {summary['inputs']:,}"
    parts = [f"{done:,}{of} done"]
    if failed:
        parts.append(f"{failed:,} failed")
    if summary["crashes"]:
        parts.append(f"{summary['crashes']:,} crash{'es' * (summary['crashes'] > 1)}")
    text = f"{', '.join(parts)} in {seconds:.1f} s"
    if summary["before"]:
        text += f"; {summary['before']:,} recorded before"
    if summary["repeated"]:
        text += f"; {summary['repeated']:,} given again"
    if summary["stopped"] is None:
        return text
    again = "; the same command goes on from here" if journal is not None else ""
    return f"{summary['stopped']}: {text}{again}"


__all__ = ["command"]
