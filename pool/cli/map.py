"""``pool map``: a function, many inputs, and a list of what failed."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys

import click

from pool import Pool, codec, plot
from pool.cli import Stopped, inputs, reader_gone, target
from pool.cli.batch import Batch, Ended
from pool.cli.journal import Journal
from pool.errors import PoolError
from pool.output import remove_abandoned
from pool.progress import Display, Progress, display

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import FrameType
    from typing import Any, Literal

_LISTED = 50  # failures at the end; the journal and --json have all of them


class _ChunkSize(click.ParamType["int | str"]):
    name = "integer or auto"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return value if value == "auto" else click.IntRange(1).convert(value, param, ctx)


def _complete_input(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[Any]:
    from click.shell_completion import CompletionItem

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
@click.option("-j", "--workers", metavar="N", type=click.IntRange(0), help="Default: one for each CPU it may use.")
@click.option("--chunksize", metavar="N|auto", type=_ChunkSize(), default="auto", show_default=True)
@click.option("--timeout", metavar="SECONDS", type=float, help="Stop an attempt that runs longer.")
@click.option("--memory-limit", metavar="SIZE", help="Stop an attempt that takes more, such as 500M.")
@click.option("--retries", metavar="N", type=click.IntRange(0), default=0, help="Further attempts of what fails.")
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
@click.option("--progress", type=click.Choice(["auto", "bar", "log", "none"]), default="auto", show_default=True)
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
    130 interrupted.

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
            raise click.UsageError("no inputs: name files, a pattern, @FILE, or - for standard input")
        if retry_failed and journal is None:
            raise click.UsageError("--retry-failed needs --journal FILE")
        if out is None and (suffix or base):
            raise click.UsageError(f"{'--suffix' if suffix else '--base'} needs --out DIR")
        if options["plot"]:
            _check_plot(options["plot"])
        self.target = target.Target(function, list(arguments), out is not None)
        self.inputs = inputs.Inputs(words, b"\0" if null else b"\n")
        self.pool = self._pool()
        self.calls = self._policy()
        self.journal_options = (journal, retry_failed)
        if out is not None:
            _make_folder(out)
        where = base or self.inputs.base
        self.batch = Batch(self.target, self.inputs, out, where, suffix, self._report)
        self.signal = signal.SIGINT

    def _pool(self) -> Pool:
        try:
            return Pool(self.options["workers"])
        except ValueError as error:
            raise click.UsageError(f"--workers: {error}") from None

    def _policy(self) -> Any:
        policy = {key: self.options[key] for key in ("timeout", "retries", "memory_limit") if self.options[key]}
        try:
            return self.pool.options(**policy)
        except (ValueError, TypeError) as error:
            raise click.UsageError(str(error)) from None

    def run(self) -> int:
        for number in (signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) is not signal.SIG_IGN:  # nohup
                signal.signal(number, self._terminated)
        stopped: str | None = None
        code = 1
        show = self._display()
        with show if sys.stderr.isatty() else contextlib.nullcontext():  # a log needs no last line beside the summary
            try:
                self.pool.start()  # first: workers shall not hold the journal
                self._open_journal()
                with self.pool:
                    stopped = self._work(show)
                code = 0
            except KeyboardInterrupt:
                stopped, code = "interrupted", 128 + self.signal
            except BrokenPipeError:  # `| head` has what it wants
                self.pool.kill_workers()
                reader_gone()
                code = 128 + signal.SIGPIPE
            except (Stopped, PoolError) as error:
                self.pool.kill_workers()
                stopped = str(error)
            try:
                self.batch.close()
            except Stopped as error:
                stopped, code = str(error), 1
        return code if code == 128 + signal.SIGPIPE else self._end(stopped, code)

    def _terminated(self, number: int, frame: FrameType | None) -> None:
        """As Ctrl-C: the pool puts that off where it has to."""
        self.signal = signal.Signals(number)
        signal.raise_signal(signal.SIGINT)

    def _open_journal(self) -> None:
        path, retry_failed = self.journal_options
        if path is not None:
            journal = Journal(path, self.target.name, self.batch.key(), retry_failed)
            self.batch.journal = journal
            if journal.unclean and self.batch.out is not None:
                remove_abandoned(self.batch.out)

    def _display(self) -> Display:
        kind: Literal["auto", "bar", "log", "none"]
        kind = "none" if self.options["quiet"] and self.options["progress"] == "auto" else self.options["progress"]
        return display(kind=kind)

    def _work(self, show: Display) -> str | None:
        """Everything; returns why it ended early, if it did."""
        batch, calls = self.batch, self.calls
        results = calls._imap(
            batch.call, batch, codec.CALL_ONE, self.options["keep_order"], on_error="return", numbered=True,
            chunksize=self.options["chunksize"], progress=lambda counts: self._tick(show, counts),
        )  # fmt: skip
        first = self.options["on_error"] == "raise"
        for index, result in results:
            batch.end(index, result)
            if first and batch.failed:
                self.pool.kill_workers()
                return "stopped at the first failure"
        return None

    def _report(self, ended: Ended) -> None:
        if self.options["as_json"]:
            sys.stdout.write(_json_line(ended.record()))
        elif ended.value is not None:
            sys.stdout.write(f"{ended.value}\n")

    def _tick(self, show: Display, counts: Progress) -> None:
        batch = self.batch
        batch.commit()
        sys.stdout.flush()
        total = self.inputs.total
        left = None if total is None else total - batch.before
        eta = max(0, left - counts.done) / counts.rate if left is not None and counts.rate > 0 else None
        if counts.ended:
            return
        show(counts._replace(total=left, eta=eta, before=batch.before, failed=batch.failed))

    def _end(self, stopped: str | None, code: int) -> int:
        batch, options = self.batch, self.options
        code = code or int(batch.failed > 0 or stopped is not None)
        summary = {"inputs": self.inputs.total, **batch.summary(), "crashes": self.pool.crashes, "stopped": stopped}
        if options["as_json"]:
            extra = {"insights": self.pool.insights().to_dict()} if options["insights"] else {}
            sys.stdout.write(_json_line({"summary": summary, **extra}))
            sys.stdout.flush()
        if options["on_error"] != "skip":
            for path, why in batch.failures[:_LISTED]:
                click.echo(f"failed  {path}  {why}", err=True)
            if batch.failed > min(_LISTED, len(batch.failures)):
                click.echo(f"        and {batch.failed - min(_LISTED, len(batch.failures)):,} more", err=True)
        if stopped is not None or not options["quiet"]:
            click.echo(_sentence(summary, self.journal_options[0]), err=True)
        if options["insights"] and not options["as_json"]:
            click.echo(str(self.pool.insights()), err=True)
        if options["plot"]:
            try:
                self.pool.insights().plot(options["plot"])
            except (OSError, ValueError) as error:  # ValueError: no worker was ever started
                click.echo(f"no plot: {error}", err=True)
                code = code or 1
        return code


def _check_plot(path: str) -> None:
    try:
        plot.check(path)
    except (ValueError, ModuleNotFoundError) as error:
        raise click.UsageError(f"--plot: {error}") from None


def _make_folder(path: str) -> None:
    try:
        os.makedirs(path, exist_ok=True)
    except OSError as error:
        raise click.UsageError(f"--out {path!r}: {error.strerror}") from None


def _json_line(record: dict[str, Any]) -> str:
    try:
        return json.dumps(record, default=str, ensure_ascii=False) + "\n"
    except (TypeError, ValueError):  # keys that are no strings, cycles
        return json.dumps({**record, "value": repr(record.get("value"))}, default=str, ensure_ascii=False) + "\n"


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
    if summary["stopped"] is None:
        return text
    again = "; the same command goes on from here" if journal is not None else ""
    return f"{summary['stopped']}: {text}{again}"


__all__ = ["command"]
