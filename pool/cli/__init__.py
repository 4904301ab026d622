"""The command line: ``python -m pool``, or ``pool`` where it is installed as a script.

A mistake of the user is one line on standard error and exit code 2. Commands live in modules of their own, which are
imported when they are called, so that help and completion are quick.
"""

from __future__ import annotations

import difflib
import importlib
import os
import signal
import sys
from collections.abc import Iterable

import click

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

COMPLETE_VARIABLE = "_POOL_COMPLETE"
_COMMANDS = {
    "completion": "Print what makes a shell complete commands, options, functions and files.",
    "journal": "Show what a journal has recorded.",
    "map": "Call a function for each input, on all cores.",
}


def nearest(word: str, known: Iterable[str]) -> str:
    """A question about the known name that looks like ``word``, to end a message with; empty if none does."""
    found = difflib.get_close_matches(word, list(known), 1)
    return f"; did you mean {found[0]!r}?" if found else ""


def reader_gone() -> None:
    """Nobody reads standard output any more: what is still to be flushed goes nowhere, instead of failing at exit."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.close(null)


class Stopped(Exception):
    """The command cannot go on. The text is for people."""


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
            raise click.UsageError(f"no command {args[0]!r}{nearest(args[0], _COMMANDS)}", ctx)
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
    name = os.path.basename(sys.argv[0])
    name = "python -m pool" if name == "__main__.py" else name
    try:
        code: Any = cli.main(arguments, prog_name=name, complete_var=COMPLETE_VARIABLE, standalone_mode=False)
        sys.stdout.flush()
        return int(code or 0)
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.ctx.get_help() if error.ctx else "", err=True)
        return 2
    except click.ClickException as error:
        ctx = getattr(error, "ctx", None)
        message = " ".join(error.format_message().split())
        click.echo(f"{ctx.command_path if ctx else name}: {message[:1].lower()}{message[1:].rstrip('.')}", err=True)
        return error.exit_code if error.exit_code != 1 else 2
    except (KeyboardInterrupt, click.Abort):
        return 130
    except BrokenPipeError:
        reader_gone()
        return 128 + signal.SIGPIPE


__all__ = ["COMPLETE_VARIABLE", "Stopped", "cli", "main", "nearest", "reader_gone"]
