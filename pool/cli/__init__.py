"""The command line: ``python -m pool``, or ``pool`` where it is installed as a script.

A mistake of the user is one line on standard error and exit code 2. Commands live in modules of their own, which are
imported when they are called, so that help and completion are quick.
"""

from __future__ import annotations

import codecs
import contextlib
import difflib
import importlib
import io
import os
import signal
import sys
from collections.abc import Iterable, Iterator

import click

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

COMPLETE_VARIABLE = "_POOL_COMPLETE"
_COMMANDS = {
    "bench": "Measure the pool on this machine, beside the standard library's pools.",
    "completion": "Print what makes a shell complete commands, options, functions and files.",
    "journal": "Show what a journal has recorded.",
    "map": "Call a function for each input, on all cores.",
}


def nearest(word: str, known: Iterable[str]) -> str:
    """A question about the known name that looks like ``word``, to end a message with; empty if none does."""
    found = difflib.get_close_matches(word, list(known), 1)
    return f"; did you mean {found[0]!r}?" if found else ""


def printable(text: str) -> str:
    """On one line, without what would steer a terminal."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def say(text: str) -> None:
    """A line on standard error, if anybody can be told."""
    with contextlib.suppress(OSError):
        click.echo(text, err=True)


def give_up_output(fd: int = 1) -> None:
    """Standard output (or error) cannot be written any more: what is still to be flushed goes nowhere, instead of
    failing at exit."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, fd)
    os.close(null)


def _escape(error: UnicodeError) -> tuple[str | bytes, int]:
    """A codec error handler: names of files that are no text keep their bytes, what the encoding lacks is escaped."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    bad = error.object[error.start : error.end]
    return b"".join(_bytes_of(c) for c in bad), error.end


def _bytes_of(character: str) -> bytes:
    if "\udc80" <= character <= "\udcff":
        return bytes((ord(character) - 0xDC00,))
    return character.encode("ascii", "backslashreplace")


def _prepare_streams() -> None:
    """Whatever the text can be written, and what was closed (`>&-`) is an error when it is used, as for every command,
    and no other file in its place."""
    for fd, mode in enumerate((os.O_WRONLY, os.O_RDONLY, os.O_RDONLY)):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, mode)  # the lowest number that is free
    codecs.register_error("pool.escape", _escape)
    for fd, name in ((1, "stdout"), (2, "stderr")):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(fd, "w", closefd=False))  # noqa: SIM115
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="pool.escape")


class Stopped(Exception):
    """The command cannot go on. The text is for people."""


class Mistake(click.UsageError):
    """Of the user: one line, and exit code 2."""


class _Commands(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(_COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in _COMMANDS:
            return None
        command: click.Command = importlib.import_module(f"pool.cli.{name}").command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(sorted(_COMMANDS.items()))

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in _COMMANDS and not args[0].startswith("-"):
            raise Mistake(f"no command {args[0]!r}{nearest(args[0], _COMMANDS)}", ctx)
        return super().resolve_command(ctx, args)


def _print_version(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    if value and not ctx.resilient_parsing:
        from importlib.metadata import version

        click.echo(f"prefork-pool {version('prefork-pool')}, Python {sys.version.split()[0]}")
        ctx.exit()


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.option("--version", is_flag=True, is_eager=True, expose_value=False, callback=_print_version, help="Show it.")
def cli() -> None:
    """A pool of worker processes for CPU-bound Python."""


def main(arguments: list[str] | None = None) -> int:
    """Run a command. Returns the exit code: 0 success, 1 something failed, 2 the command was wrong, 130 interrupted."""
    _prepare_streams()
    code = _run(arguments)
    try:
        sys.stderr.flush()
    except OSError:
        give_up_output(2)
    return code


def _run(arguments: list[str] | None) -> int:
    name = os.path.basename(sys.argv[0])
    name = "python -m pool" if name == "__main__.py" else name
    if COMPLETE_VARIABLE in os.environ:
        importlib.import_module("pool.cli.completion")  # its way to ask for words
    try:
        code: Any = cli.main(arguments, prog_name=name, complete_var=COMPLETE_VARIABLE, standalone_mode=False)
        with writing():
            sys.stdout.flush()
        return int(code or 0)
    except click.exceptions.NoArgsIsHelpError as error:
        say(error.ctx.get_help() if error.ctx else "")
        return 2
    except click.ClickException as error:
        ctx = getattr(error, "ctx", None)
        message = printable(" ".join(error.format_message().split()))
        if not isinstance(error, Mistake):  # click begins with a capital
            message = f"{message[:1].lower()}{message[1:].rstrip('.')}"
        say(f"{ctx.command_path if ctx else name}: {message}")
        return error.exit_code if error.exit_code != 1 else 2
    except (KeyboardInterrupt, click.Abort):
        return 130
    except BrokenPipeError:
        give_up_output()
        return 128 + signal.SIGPIPE
    except (Stopped, OSError) as error:  # OSError: help that cannot be written, no process or memory to be had
        give_up_output()
        say(f"{name}: {error}")
        return 1


@contextlib.contextmanager
def writing() -> Iterator[None]:
    """Around what writes to standard output. Raises BrokenPipeError if nobody reads it any more, Stopped for a full
    disk and the like."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        give_up_output()
        raise Stopped(f"standard output cannot be written: {error.strerror}") from error


__all__ = [
    "COMPLETE_VARIABLE",
    "Mistake",
    "Stopped",
    "cli",
    "give_up_output",
    "main",
    "nearest",
    "printable",
    "say",
    "writing",
]
