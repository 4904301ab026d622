"""``pool completion``: the script for a shell. Imported too when such a script asks for words."""

from __future__ import annotations

import os

import click
from click.shell_completion import BashComplete, ZshComplete, add_completion_class, get_completion_class
from click.shell_completion import split_arg_string as words_of

from pool.cli import COMPLETE_VARIABLE, cli

# bash breaks words at `:`, `=` and `@`, too, and replaces only what follows the last of them; so the line is split by
# us, and what bash keeps is taken off the answers. The user's COMP_WORDBREAKS stays as it is.
_BASH = r"""
%(complete_func)s() {
    local line=${COMP_LINE:0:COMP_POINT} type value kept= mark
    local word=${line##*[[:space:]]}
    for mark in : = @; do
        if [[ $COMP_WORDBREAKS == *"$mark"* && $word == *"$mark"* ]]; then
            value=${word%%"$mark"*}$mark
            (( ${#value} > ${#kept} )) && kept=$value
        fi
    done
    COMPREPLY=()
    while IFS=, read -r type value; do
        case $type in
            dir) compopt -o dirnames ;;
            file) compopt -o default ;;
            plain) COMPREPLY+=("${value#"$kept"}") ;;
        esac
    done < <(env COMP_WORDS="$line" %(complete_var)s=bash_complete "$1")
    if [[ ${#COMPREPLY[@]} == 1 && $COMPREPLY == *[:/.] ]]; then compopt -o nospace; fi
}
complete -o nosort -F %(complete_func)s %(prog_name)s
"""


# click's own puts a blank behind every word, also where the function's name, or more of a path, is to follow.
_ZSH = r"""#compdef %(prog_name)s
%(complete_func)s() {
    local type value help
    local -a whole begun described
    (( $+commands[%(prog_name)s] )) || return 1
    for type value help in "${(@f)$(env COMP_WORDS="${words[*]}" COMP_CWORD=$((CURRENT - 1)) \
            %(complete_var)s=zsh_complete %(prog_name)s)}"; do
        case $type in
            dir) _path_files -/ ;;
            file) _path_files -f ;;
            plain)
                if [[ $help != _ ]]; then described+=("$value:$help")
                elif [[ $value == *[:/.] ]]; then begun+=("$value")
                else whole+=("$value"); fi ;;
        esac
    done
    (( $#described )) && _describe -V unsorted described -U
    (( $#whole )) && compadd -U -V unsorted -a whole
    (( $#begun )) && compadd -U -V unsorted -S '' -a begun
}
if [[ $zsh_eval_context[-1] == loadautofunc ]]; then  # a file in $fpath
    %(complete_func)s "$@"
else
    compdef %(complete_func)s %(prog_name)s
fi
"""


class _Bash(BashComplete):
    source_template = _BASH

    def get_completion_args(self) -> tuple[list[str], str]:
        line = os.environ["COMP_WORDS"]
        words = words_of(line)
        incomplete = words.pop() if words and not line[-1:].isspace() else ""
        return words[1:], incomplete


class _Zsh(ZshComplete):
    source_template = _ZSH


add_completion_class(_Bash)
add_completion_class(_Zsh)


@click.command("completion")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def command(shell: str) -> None:
    """Print the script that makes SHELL complete what follows `pool`.

    bash: eval "$(pool completion bash)" in ~/.bashrc; zsh: the same in ~/.zshrc, after compinit; fish: pool completion
    fish > ~/.config/fish/completions/pool.fish
    """
    kind = get_completion_class(shell)
    assert kind is not None
    click.echo(kind(cli, {}, "pool", COMPLETE_VARIABLE).source())
