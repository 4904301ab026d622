"""``pool completion``: the script for a shell."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from pool.cli import COMPLETE_VARIABLE, cli


@click.command("completion")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def command(shell: str) -> None:
    """Print the script that makes SHELL complete what follows `pool`.

    bash: eval "$(pool completion bash)" in ~/.bashrc; zsh: the same in ~/.zshrc; fish: pool completion fish >
    ~/.config/fish/completions/pool.fish
    """
    kind = get_completion_class(shell)
    assert kind is not None
    if shell == "bash":
        click.echo("COMP_WORDBREAKS=${COMP_WORDBREAKS//:}  # module:function is one word")
    click.echo(kind(cli, {}, "pool", COMPLETE_VARIABLE).source())
