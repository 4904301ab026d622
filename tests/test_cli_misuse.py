"""The command line: mistakes of the user, help, completion in shells."""

import os
import re
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from commands import folder, run
from terminals import Terminal, terminal

__all__ = ["folder", "terminal"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("map", "tasks:uper", "a"), "'tasks' has no function 'uper'; did you mean 'upper'?"),
        (("map", "taks:upper", "a"), "no module 'taks' .*; did you mean 'tasks'?"),
        (("map", "task.py:upper", "a"), "no such file: 'task.py'; did you mean 'tasks.py'?"),
        (("map", "tasks", "a"), "'tasks' is not of the form module:function, such as tasks:thumbnail"),
        (("map", "tasks:constant", "a"), "'tasks:constant' is not a function but int"),
        (("map", "broken:f", "a"), r"importing 'broken' failed: ZeroDivisionError: .* \(.*broken.py:1\)"),
        (("map", "tasks:upper"), "no inputs: name files, a pattern, @FILE, or - for standard input"),
        (("map", "tasks:upper", "*.jpg"), r"no file matches '\*.jpg' \(what is no pattern may come from @FILE or -\)"),
        (("map", "tasks:upper", "@nofile"), "no such file: 'nofile'"),
        (("map", "tasks:upper", "@broken"), "no such file: 'broken'; did you mean 'broken.py'?"),
        (("map", "tasks:where", "task.py"), "no such file: 'task.py'; did you mean 'tasks.py'?"),
        (("map", "tasks:where", "fotos/a"), "no such file: 'fotos/a': there is no 'fotos'; did you mean 'photos'?"),
        (("map", "tasks:upper", "fotos/*"), r"no such file: 'fotos/\*': there is no 'fotos'; did you mean 'photos'?"),
        (("map", "tasks:generates", "a"), "'tasks:generates' is a generator: what it returns cannot come back .*"),
        (("map", "tasks:waits", "a"), "'tasks:waits' is asynchronous: what it returns cannot come back .*"),
        (("map", "tasks:Holder.method", "a"), ".* is a method of objects of Holder; name a function"),
        (("map", "tasks:upper", "@."), "cannot read '.': Is a directory"),
        (("map", "tasks:copy", "a"), ".* needs 'dst': say --out DIR, or --arg dst=VALUE"),
        (("map", "tasks:add", "1"), ".* needs 'n': say --arg n=VALUE"),
        (("map", "tasks:add", "1", "-a", "m=1"), "tasks.add has no parameter 'm'.*"),
        (("map", "tasks:add", "1", "-a", "n=one"), "--arg 'n=one': Expected `float`, got `str`"),
        (("map", "tasks:add", "1", "-a", "n"), "--arg 'n' is not of the form key=value"),
        (("map", "tasks:upper", "a", "--timout", "3"), "no such option '--timout'.*--timeout.*"),
        (("map", "tasks:upper", "a", "--timeout", "-3"), "timeout must be greater than 0"),
        (("map", "tasks:upper", "a", "--workers", "many"), "invalid value .*: 'many' is not a valid number"),
        (("map", "tasks:upper", "a", "-j", "100000"), "--workers: max_workers must be <= 512"),
        (("map", "tasks:upper", "a", "--memory-limit", "much"), ".*'much'.*"),
        (("map", "tasks:upper", "a", "--chunksize", "0"), "invalid value for '--chunksize': 0 is not in the range .*"),
        (("map", "tasks:upper", "a", "--chunksize", "x"), ".*: 'x' is not a valid number or 'auto'"),
        (("map", "tasks:upper", "a", "--on-error", "ignore"), "invalid value for '--on-error': .*"),
        (("map", "tasks:upper", "a", "--plot", "x.pdf"), "--plot: a plot is a .svg or a .png file, not 'x.pdf'"),
        (("map", "tasks:upper", "a", "--plot", "no/x.svg"), "--plot 'no/x.svg': no such folder"),
        (("map", "tasks:copy", "a", "--out", "o", "--suffix", "/x"), "--suffix '/x': a suffix has a dot and no '/'.*"),
        (("map", "tasks:copy", "a", "--out", "o", "--suffix", "webp"), "--suffix 'webp': a suffix has a dot .*"),
        (("map", "tasks:copy", "a", "--out", "o", "--base", "photo"), "no such file: 'photo'; did you mean 'photos'?"),
        (("map", "tasks:upper", "a", "-a", "times=1", "-a", "times=2"), "--arg times is given twice"),
        (("map", "tasks:upper", "a", "-j", "0", "--timeout", "1"), "--timeout and --memory-limit need processes, .*"),
        (("map", "jsn:loads", "a"), "no module 'jsn' .*; did you mean 'json'?"),
        (("map", "os.pth:join", "a"), "no module 'os.pth' .*"),
        (("map", "email.mesage:f", "a"), "no module 'email.mesage' .*; did you mean 'message'?"),
        (("map", "tasks:upper", "a", "--retry-failed"), "--retry-failed needs --journal FILE"),
        (("map", "tasks:upper", "a", "--suffix", ".x"), "--suffix needs --out DIR"),
        (("map", "tasks:copy", "a", "--out", "tasks.py/x"), "--out 'tasks.py/x': Not a directory"),
        (("map", "tasks:upper", "a", "--journal", "tasks.py"), "the journal 'tasks.py' cannot be used: file is not .*"),
        (("map", "tasks:upper", "a", "--journal", "no/j.db"), "the journal 'no/j.db' cannot be used: No such file .*"),
        (("journal", "nothing.db"), "no such journal: 'nothing.db'"),
        (("mpa",), "no command 'mpa'; did you mean 'map'?"),
    ],
)  # fmt: skip
def test_misuse_is_one_line(words: tuple[str, ...], said: str) -> None:
    Path("broken.py").write_text("1 / 0\n")
    Path("photos").mkdir()
    out, err = run(*words, code=2)
    assert out == ""
    assert re.fullmatch(rf"python -m pool( map| journal)?: {said.replace('?', '[?]')}\n", err), err
    assert not list(Path().glob("*-lock"))


def test_other_database_is_no_journal() -> None:
    with closing(sqlite3.connect("other.db")) as db:
        db.execute("CREATE TABLE precious (x)")
    err = run("map", "tasks:upper", "a", "--journal", "other.db", code=2)[1]
    assert "'other.db' is a database, but no journal of pool map" in err
    with closing(sqlite3.connect("other.db")) as db:
        assert db.execute("SELECT name FROM sqlite_master").fetchall() == [("precious",)]


@pytest.mark.parametrize("words", [(), ("bench",), ("map",), ("journal",), ("completion",)])
def test_help_is_narrow_and_needs_nothing(words: tuple[str, ...]) -> None:
    out, err = run(*words, "--help")
    assert err == ""
    assert out.startswith("Usage: python -m pool")
    assert max(map(len, out.splitlines())) <= 80
    assert len(out.splitlines()) < 70


def test_version() -> None:
    assert re.fullmatch(r"prefork-pool \d+\.\d+\.\d+, Python 3\.\d+\.\d+\S*\n", run("--version")[0])


def complete(*words: str) -> list[str]:
    env = {**os.environ, "_POOL_COMPLETE": "fish_complete", "COMP_WORDS": " ".join(words), "COMP_CWORD": words[-1]}
    script = "import sys; sys.argv = ['pool']; from pool.cli import main; sys.exit(main())"
    out = subprocess.run([sys.executable, "-c", script], env=env, capture_output=True, text=True).stdout
    return [line.partition(",")[2].partition("\t")[0] for line in out.splitlines()]


def test_completion_knows_commands_options_and_functions() -> None:
    assert complete("pool", "m") == ["map"]
    assert complete("pool", "map", "--jou") == ["--journal"]
    assert complete("pool", "map", "ta") == ["tasks:"]
    assert complete("pool", "map", "tasks:so") == ["tasks:some_fail"]
    assert complete("pool", "map", "tasks:Ho") == ["tasks:Holder.inner"]
    Path("deep/er").mkdir(parents=True)
    for name in ("deep/__init__.py", "deep/other.py", "deep/er/last.py"):
        Path(name).write_text("def twice(x): pass\n")
    assert complete("pool", "map", "de") == ["deep."]
    assert complete("pool", "map", "deep.o") == ["deep.other:"]
    assert complete("pool", "map", "deep.other:") == ["deep.other:twice"]
    Path("plain").mkdir()
    assert complete("pool", "map", "pl") == ["plain/"]
    assert complete("pool", "map", "deep/") == ["deep/er/", "deep/other.py:"]
    assert complete("pool", "map", "deep/er/last.py:t") == ["deep/er/last.py:twice"]
    assert complete("pool", "map", "tasks:upper", "@deep/") == ["@deep/__init__.py", "@deep/er/", "@deep/other.py"]


def test_completion_in_bash(terminal: Callable[..., Terminal]) -> None:
    """In a real shell: it breaks words at the colon, and replaces only what follows."""
    bash = terminal(["bash", "--norc", "--noprofile", "-i"], PATH=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    bash.type('PS1="> "; eval "$(pool completion bash)"; clear\n')
    bash.wait_for(lambda lines: lines[0] == ">")  # before that, the terminal itself would show what is typed, too
    bash.type("pool map tasks:some_f\t")
    bash.wait_for(lambda lines: "> pool map tasks:some_fail" in lines)
    bash.type("a b; echo $COMP_WORDBREAKS | grep -c :\n")
    bash.wait_for(lambda lines: {"a", "b", "1"} <= set(lines))


def test_completion_in_zsh(terminal: Callable[..., Terminal], require: Callable[[str], str]) -> None:
    """What follows a module's colon, or a folder's slash, is typed at once behind it."""
    require("zsh")
    Path("deep/er").mkdir(parents=True)
    zsh = terminal(["zsh", "-f", "-i"], PATH=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    zsh.type('PS1=; autoload -U compinit; compinit -D -u; eval "$(pool completion zsh)"; clear; echo ready\n')
    zsh.wait_for(lambda lines: "ready" in lines)
    zsh.type("clear; pool map tas\t")
    zsh.wait_for(lambda lines: any(line.endswith("pool map tasks:") for line in lines))
    zsh.type("some_f\t")
    zsh.wait_for(lambda lines: any(line.endswith("pool map tasks:some_fail") for line in lines))
    zsh.type("@de\t")
    zsh.wait_for(lambda lines: any(line.endswith("pool map tasks:some_fail @deep/") for line in lines))
    zsh.type("e\t")
    zsh.wait_for(lambda lines: any(line.endswith("pool map tasks:some_fail @deep/er/") for line in lines))
