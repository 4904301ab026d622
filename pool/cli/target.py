"""The function of ``pool map``: found by its name, checked against what it will be called with."""

from __future__ import annotations

import ast
import contextlib
import importlib
import importlib.util
import inspect
import json
import os
import pkgutil
import sys
import sysconfig
import traceback
import types
import typing
from collections.abc import Callable, Iterator
from importlib.machinery import SourceFileLoader
from pathlib import Path
from typing import Any

import click

from pool import codec
from pool.cli import Mistake, nearest
from pool.cli.inputs import no_such_file

_OUTPUT_NAMES = frozenset({"out", "output", "out_path", "output_path", "dst", "dest", "destination", "target"})
_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


class Target:
    """A function and how it is to be called for one input.

    Attributes:
        function: the callable.
        name: ``module.qualname``.
        place: its name from everywhere: ``path/file.py:qualname`` if its module is not installed.
        texts: what ``--arg`` gave; keywords: the same, converted to the types of the function's annotations.
        input_type: the annotation of the parameter for the input, if it says more than ``str``.
        output: the parameter that gets the path of the output, or None. output_by_name: it is passed by its name.
        output_type: its annotation.
    """

    def __init__(self, spec: str, arguments: list[str], out: bool) -> None:
        """Raises Mistake, in one line, for whatever cannot work."""
        self.function, self.place = find(spec)
        self.name = codec.task_name(self.function)
        self.texts: dict[str, str] = {}
        for key, text in map(_key_and_text, arguments):
            if self.texts.setdefault(key, text) != text:
                raise Mistake(f"--arg {key} is given twice")
        try:
            signature = inspect.signature(self.function)
        except (ValueError, TypeError):  # some builtins don't tell
            signature = None
        hints = _hints(self.function)
        known = None if signature is None else _keyword_names(signature)
        self.keywords = {key: _value(key, text, self.name, known, hints) for key, text in self.texts.items()}
        self.output: str | None = None
        self.output_by_name = False
        self.input_type: Any = None
        self.output_type: Any = None
        if signature is None:
            return
        free = [p for p in signature.parameters.values() if p.name not in self.keywords]
        places = [p for p in free if p.kind in _POSITIONAL]
        if not places and not any(p.kind is p.VAR_POSITIONAL for p in free):
            raise Mistake(f"{self.name}{signature} takes no argument for an input")
        if places:
            self.input_type = _unless_text(hints.get(places[0].name))
        second = _output_parameter(free, places)
        if out and second is not None:
            self.output = second.name
            self.output_by_name = second.kind is not second.POSITIONAL_ONLY
            self.output_type = _unless_text(hints.get(second.name))
        missing = [p for p in free if p.default is p.empty and p.kind in (*_POSITIONAL, p.KEYWORD_ONLY)]
        missing = [p for p in missing if p not in places[:1] and p.name != self.output]
        if missing:
            first = missing[0].name
            how = "--out DIR, or " if second is not None and first == second.name and not out else ""
            raise Mistake(f"{self.name}{signature} needs {first!r}: say {how}--arg {first}=VALUE")

    @property
    def takes_file(self) -> bool:
        """Whether its inputs are names of files for sure."""
        kinds = [kind for kind in typing.get_args(self.input_type) or (self.input_type,) if kind is not type(None)]
        return all(isinstance(kind, type) and issubclass(kind, Path) for kind in kinds)


def _output_parameter(free: list[inspect.Parameter], places: list[inspect.Parameter]) -> inspect.Parameter | None:
    """Of the parameters that no --arg gives: the second one, if the function needs it or its name says so, or any that
    is passed by a name that says so."""
    if len(places) > 1 and (places[1].default is places[1].empty or places[1].name in _OUTPUT_NAMES):
        return places[1]
    return next((p for p in free if p not in places[:1] and p.name in _OUTPUT_NAMES), None)


def _unless_text(kind: Any) -> Any:
    return None if kind is str else kind


def find(spec: str) -> tuple[Callable[..., Any], str]:
    """The callable that ``module:name`` or ``path/file.py:name`` means; modules of the current folder come first. And
    what it is called wherever the command is given: ``/path/file.py:name``, if its module is not installed."""
    module_name, colon, attribute = spec.rpartition(":")
    if not colon or not module_name or not attribute:
        raise Mistake(f"{spec!r} is not of the form module:function, such as tasks:thumbnail")
    module = _load(module_name)
    found: Any = module
    holder = found
    for part in attribute.split("."):
        holder = found
        try:
            found = getattr(found, part)
        except Exception:  # a module may have code for that
            names = [n for n in dir(found) if callable(getattr(found, n, None)) and not n.startswith("__")]
            near = nearest(part, names)
            raise Mistake(f"{module_name!r} has no function {attribute!r}{near}") from None
    if not callable(found):
        raise Mistake(f"{spec!r} is not a function but {type(found).__name__}")
    if inspect.isclass(holder) and inspect.isfunction(inspect.getattr_static(holder, part, None)):
        raise Mistake(f"{spec!r} is a method of objects of {holder.__name__}; name a function")
    if inspect.iscoroutinefunction(found) or inspect.isgeneratorfunction(found) or inspect.isasyncgenfunction(found):
        kind = "a generator" if inspect.isgeneratorfunction(found) else "asynchronous"
        raise Mistake(f"{spec!r} is {kind}: what it returns cannot come back from a worker")
    return found, f"{_file_or_name(module)}:{attribute}"


def _file_or_name(module: types.ModuleType) -> str:
    file: str | None = getattr(module, "__file__", None)
    if file is None or any(file.startswith(folder + os.sep) for folder in sysconfig.get_paths().values()):
        return module.__name__
    return os.path.abspath(file)


def _load(name: str) -> types.ModuleType:
    if name.endswith(".py") or os.sep in name:
        return _load_file(Path(name))
    folder = os.getcwd()
    _look_first_in(folder)
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not (name == error.name or name.startswith(f"{error.name}.")):
            raise _import_failed(name, error) from error
        raise Mistake(f"no module {name!r} in this folder or among the installed ones{_near(name)}") from None
    except (Exception, SystemExit) as error:
        raise _import_failed(name, error) from error
    mine = Path(folder, *name.split(".")).with_suffix(".py")
    if mine.is_file() and not _is_from(module, mine):
        raise Mistake(f"{name!r} is a module that Python has loaded already: say {mine.name}:... for yours")
    return module


def _load_file(path: Path) -> types.ModuleType:
    """The module of a file, under a name by which workers find it, whatever else has that name."""
    if not path.is_file():
        raise no_such_file(str(path))
    path = path.resolve()
    name = path.stem.replace(".", "_")
    while name in sys.modules and not _is_from(sys.modules[name], path):
        name += "_py"
    if name in sys.modules:
        return sys.modules[name]
    _look_first_in(str(path.parent))  # for what it imports
    loader = SourceFileLoader(name, str(path))
    spec = importlib.util.spec_from_file_location(name, path, loader=loader)
    assert spec is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    try:
        loader.exec_module(module)
    except (Exception, SystemExit) as error:
        raise _import_failed(name, error) from error
    return module


def _look_first_in(folder: str) -> None:
    with contextlib.suppress(ValueError):
        sys.path.remove(folder)
    sys.path.insert(0, folder)


def _is_from(module: types.ModuleType, file: Path) -> bool:
    own = getattr(module, "__file__", None)
    return own is not None and Path(own).resolve() == file.resolve()


def _near(name: str) -> str:
    """As ``nearest``, for modules."""
    package, dot, last = name.rpartition(".")
    if not dot:
        installed = {module.name for module in pkgutil.iter_modules()}
        return nearest(name, installed | set(sys.stdlib_module_names))
    try:
        paths = importlib.import_module(package).__path__
    except Exception:
        return _near(package)
    return nearest(last, {module.name for module in pkgutil.iter_modules(paths)})


def _import_failed(name: str, error: BaseException) -> Mistake:
    last = traceback.extract_tb(error.__traceback__)[-1:]
    where = f" ({last[0].filename}:{last[0].lineno})" if last and "importlib" not in last[0].filename else ""
    return Mistake(f"importing {name!r} failed: {type(error).__name__}: {error}{where}")


def _hints(function: Callable[..., Any]) -> dict[str, Any]:
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


def _key_and_text(argument: str) -> tuple[str, str]:
    key, equals, text = argument.partition("=")
    if not equals or not key.isidentifier():
        raise Mistake(f"--arg {argument!r} is not of the form key=value")
    return key, text


def _value(key: str, text: str, function: str, known: list[str] | None, hints: dict[str, Any]) -> Any:
    if known is not None and key not in known:
        raise Mistake(f"{function} has no parameter {key!r}{nearest(key, known)}")
    if key not in hints:
        return _guess(text)
    try:
        return convert(text, hints[key])
    except (ValueError, TypeError) as error:
        raise Mistake(f"--arg {f'{key}={text}'!r}: {error}") from None


def _guess(text: str) -> Any:
    """A value without an annotation: JSON (a number, true, false, null, a list or an object), else the text itself."""
    try:
        value = json.loads(text)
    except ValueError:
        return text
    return text if isinstance(value, str) else value


def convert(text: str, kind: Any) -> Any:
    """A word of the command line as the type of an annotation; lists and objects as JSON. Raises ValueError (msgspec's)
    if it cannot be one."""
    if kind is str or kind is object:
        return text
    if kind is bytes:
        return os.fsencode(text)
    if isinstance(kind, type) and issubclass(Path, kind):
        return Path(text)
    import msgspec

    try:
        if text[:1] in ("[", "{"):
            with contextlib.suppress(msgspec.MsgspecError):
                return msgspec.json.decode(text, type=kind, strict=False, dec_hook=_other)
        return msgspec.convert(text, kind, strict=False, dec_hook=_other)
    except TypeError:  # a type that msgspec doesn't know
        return text


def _other(kind: Any, value: Any) -> Any:
    """What msgspec does not know by itself."""
    if isinstance(kind, type) and issubclass(Path, kind) and isinstance(value, str):
        return Path(value)
    raise NotImplementedError(f"{kind} is no type that can be written on a command line")


def complete(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """Modules below the current folder, by name or by path, and their functions, without importing anything."""
    module, colon, name = incomplete.partition(":")
    if colon:
        file = Path(module) if module.endswith(".py") else Path(*module.split(".")).with_suffix(".py")
        return [f"{module}:{found}" for found in _functions(file) if found.startswith(name)]
    by_path = os.sep in module or module.endswith(".py")
    before = module[: max(module.rfind("/" if by_path else "."), -1) + 1]
    folder = Path(before) if by_path else Path(*before.split("."))
    found = [f"{before}{other.name if by_path else other.stem}:" for other in folder.glob("*.py")]
    for other in folder.iterdir() if folder.is_dir() else ():
        if other.is_dir() and not other.name.startswith("."):
            if not by_path and (other / "__init__.py").is_file():
                found.append(f"{before}{other.name}.")
            elif by_path or not before:
                found.append(f"{before}{other.name}/")
    return sorted(word for word in found if word.startswith(module) and not word.startswith(f"{before}__"))


def _functions(file: Path) -> Iterator[str]:
    try:
        tree = ast.parse(file.read_bytes())
    except (OSError, SyntaxError, ValueError):
        return
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
            yield node.name
        elif isinstance(node, ast.ClassDef):
            for method in node.body:
                kinds = [ast.unparse(mark) for mark in getattr(method, "decorator_list", ())]
                if isinstance(method, ast.FunctionDef) and {"staticmethod", "classmethod"} & set(kinds):
                    yield f"{node.name}.{method.name}"
