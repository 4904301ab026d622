"""The function of ``pool map``: found by its name, checked against what it will be called with."""

from __future__ import annotations

import ast
import importlib
import inspect
import json
import os
import pkgutil
import sys
import traceback
import types
from collections.abc import Callable, Iterator
from pathlib import Path

import click

from pool import codec
from pool.cli import nearest

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_OUTPUT_NAMES = frozenset({"out", "output", "out_path", "output_path", "dst", "dest", "destination", "target"})
_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


class Target:
    """A function and how it is to be called for one input.

    Attributes:
        function: the callable.
        name: ``module.qualname``.
        keywords: what ``--arg`` gave, converted to the types of the function's annotations.
        input_type: the annotation of the parameter for the input, if it says more than ``str``.
        takes_output: it gets the path of the output as its second argument. output_type: the annotation of that one.
    """

    def __init__(self, spec: str, arguments: list[str], out: bool) -> None:
        """Raises click.UsageError, in one line, for whatever cannot work."""
        self.function = find(spec)
        self.name = codec.task_name(self.function)
        try:
            signature = inspect.signature(self.function)
        except (ValueError, TypeError):  # some builtins don't tell
            signature = None
        hints = _hints(self.function)
        known = None if signature is None else _keyword_names(signature)
        self.keywords = dict(_keyword(argument, self.name, known, hints) for argument in arguments)
        self.takes_output = False
        self.input_type: Any = None
        self.output_type: Any = None
        if signature is None:
            return
        free = [p for p in signature.parameters.values() if p.name not in self.keywords]
        places = [p for p in free if p.kind in _POSITIONAL]
        if not places and not any(p.kind is p.VAR_POSITIONAL for p in free):
            raise click.UsageError(f"{self.name}{signature} takes no argument for an input")
        if places:
            self.input_type = _unless_text(hints.get(places[0].name))
        if len(places) > 1:
            second = places[1]
            self.takes_output = out and (second.default is second.empty or second.name in _OUTPUT_NAMES)
            self.output_type = _unless_text(hints.get(second.name))
        missing = [p for p in free if p.default is p.empty and p.kind in (*_POSITIONAL, p.KEYWORD_ONLY)]
        missing = [p for p in missing if p not in places[: 1 + self.takes_output]]
        if missing:
            first = missing[0].name
            how = "--out DIR, or " if len(places) > 1 and missing[0] is places[1] and not out else ""
            raise click.UsageError(f"{self.name}{signature} needs {first!r}: say {how}--arg {first}=VALUE")


def _unless_text(kind: Any) -> Any:
    return None if kind is str else kind


def find(spec: str) -> Callable[..., Any]:
    """The callable that ``module:name`` or ``path/file.py:name`` means; modules of the current folder come first."""
    module_name, colon, attribute = spec.rpartition(":")
    if not colon or not module_name or not attribute:
        raise click.UsageError(f"{spec!r} is not of the form module:function, such as tasks:thumbnail")
    module = _load(module_name)
    found: Any = module
    for part in attribute.split("."):
        try:
            found = getattr(found, part)
        except AttributeError:
            names = [n for n in dir(found) if callable(getattr(found, n, None)) and not n.startswith("__")]
            near = nearest(part, names)
            raise click.UsageError(f"{module_name!r} has no function {attribute!r}{near}") from None
    if not callable(found):
        raise click.UsageError(f"{spec!r} is not a function but {type(found).__name__}")
    return found  # type: ignore[no-any-return]


def _load(name: str) -> types.ModuleType:
    folder = os.getcwd()
    if name.endswith(".py") or os.sep in name:
        path = Path(name)
        if not path.is_file():
            files = [str(other) for other in path.parent.glob("*.py")] if path.parent.is_dir() else []
            raise click.UsageError(f"no such file: {name!r}{nearest(name, files)}")
        folder, name = str(path.resolve().parent), path.stem
    if folder not in sys.path:
        sys.path.insert(0, folder)
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not (name == error.name or name.startswith(f"{error.name}.")):
            raise _import_failed(name, error) from error
        known = {module.name for module in pkgutil.iter_modules([folder])}
        near = nearest(name, known) or nearest(name, sys.stdlib_module_names)
        raise click.UsageError(f"no module {name!r} in this folder or among the installed ones{near}") from None
    except (Exception, SystemExit) as error:
        raise _import_failed(name, error) from error


def _import_failed(name: str, error: BaseException) -> click.UsageError:
    last = traceback.extract_tb(error.__traceback__)[-1:]
    where = f" ({last[0].filename}:{last[0].lineno})" if last and "importlib" not in last[0].filename else ""
    return click.UsageError(f"importing {name!r} failed: {type(error).__name__}: {error}{where}")


def _hints(function: Callable[..., Any]) -> dict[str, Any]:
    import typing

    try:
        return typing.get_type_hints(function)
    except Exception:  # names that only exist for type checkers
        return {}


def _keyword_names(signature: inspect.Signature) -> list[str] | None:
    """What may be given by keyword; None: anything."""
    parameters = signature.parameters.values()
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return None
    return [p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]


def _keyword(argument: str, function: str, known: list[str] | None, hints: dict[str, Any]) -> tuple[str, Any]:
    key, equals, text = argument.partition("=")
    if not equals or not key.isidentifier():
        raise click.UsageError(f"--arg {argument!r} is not of the form key=value")
    if known is not None and key not in known:
        raise click.UsageError(f"{function} has no parameter {key!r}{nearest(key, known)}")
    if key not in hints:
        return key, _guess(text)
    try:
        return key, convert(text, hints[key])
    except (ValueError, TypeError) as error:
        raise click.UsageError(f"--arg {argument!r}: {error}") from None


def _guess(text: str) -> Any:
    """A value without an annotation: a number, true, false or null, else the text itself."""
    try:
        value = json.loads(text)
    except ValueError:
        return text
    return value if isinstance(value, int | float | bool | None) else text


def convert(text: str, kind: Any) -> Any:
    """A word of the command line as the type of an annotation. Raises ValueError (msgspec's) if it cannot be one."""
    if kind is str or kind is object:
        return text
    if kind is bytes:
        return os.fsencode(text)
    if isinstance(kind, type) and issubclass(Path, kind):
        return Path(text)
    import msgspec

    try:
        return msgspec.convert(text, kind, strict=False)
    except TypeError:  # a type that msgspec doesn't know
        return text


def complete(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """Modules of the current folder and their functions, without importing anything."""
    module, colon, name = incomplete.partition(":")
    if not colon:
        return [f"{found.stem}:" for found in sorted(Path().glob("*.py")) if found.stem.startswith(module)]
    file = Path(module) if module.endswith(".py") else Path(*module.split(".")).with_suffix(".py")
    return [f"{module}:{found}" for found in _functions(file) if found.startswith(name)]


def _functions(file: Path) -> Iterator[str]:
    try:
        tree = ast.parse(file.read_bytes())
    except (OSError, SyntaxError, ValueError):
        return
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
            yield node.name
