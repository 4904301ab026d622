"""Start methods ``forkserver`` and ``spawn``: the monitor is a fresh interpreter, and has nothing of the client: no
lock, no thread, no open file, no module.

::

    client ── vfork + exec ──▶ python, multiprocessing.spawn ──▶ monitor.main ── forks ──▶ workers
            memfd: sys.path, arguments, directory, ...; then who the monitor is, and with it the worker's options

With ``forkserver`` the monitor imports ``__main__`` (and what ``set_forkserver_preload`` names) once, and workers
inherit it. With ``spawn`` it imports nothing of the program: each worker does. In both the worker runs the initializer.
Everything here is what the client does, but for ``_Monitor._bootstrap``.
"""

from __future__ import annotations

import _socket
import copy
import io
import os
import pickle
import sys
from collections import ChainMap

from ipc import _core
from ipc.segment import Segment
from pool import codec, monitor, worker_process
from pool.preparation import Preparation
from pool.worker_options import WorkerOptions

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, ClassVar, NoReturn

    from pool.codec import Inherited


class Parcel:
    """What a fresh interpreter gets to know. Raises what pickling the initializer raised, RuntimeError in a script that
    starts a pool while it is imported by a worker.

    What may only travel when a process is started (locks, queues and pipes of multiprocessing) may be among the
    ``initargs``."""

    def __init__(self, options: WorkerOptions) -> None:
        from multiprocessing import context, forkserver, process, resource_tracker, spawn

        if getattr(process.current_process(), "_inheriting", False):
            raise RuntimeError(
                f"a worker that is being started imports {sys.argv[0] or 'the script'}, which starts a pool: with the "
                "start methods spawn and forkserver that has to stand below  if __name__ == '__main__':"
            )
        self.fds: set[int] = set()  # which the new process has to have under the same numbers
        self._options = copy.copy(options)
        self._options.initializer, self._options.initargs, self._options.teardown = None, (), None
        context.set_spawning_popen(self)  # type: ignore[arg-type]
        try:
            data = spawn.get_preparation_data("")
            main = {key: data.pop(key) for key in list(data) if key.startswith("init_main_")}
            if not os.path.exists(main.get("init_main_from_path", "/")):  # the standard input
                main = {}
            del data["name"]  # it stays MainProcess, as in a fork
            self.inherited = codec.snapshot_main(_missing_in(main), functions=options.initializer is not None)
            preload = (
                getattr(forkserver._forkserver, "_preload_modules", ["__main__"])
                if options.start_method == "forkserver"
                else []
            )
            hooks = _dumps((options.initializer, options.initargs, options.teardown), self.inherited)
            self._options.preparation = Preparation(main, list(preload), hooks)
            self._prepare = pickle.dumps(data)
        finally:
            context.set_spawning_popen(None)
        # If it runs: semaphores that the workers open are on its list. We need none.
        self._tracker: int | None = getattr(resource_tracker._resource_tracker, "_fd", None)
        if self._tracker is not None:
            self.fds.add(self._tracker)

    def duplicate_for_child(self, fd: int) -> int:
        """What multiprocessing calls for a file in the ``initargs``."""
        self.fds.add(fd)
        return fd

    @staticmethod
    def DupFd(fd: int) -> object:
        """The same, what is pickled then."""
        from multiprocessing import popen_spawn_posix

        return popen_spawn_posix._DupFd(fd)

    def send(self, segment: Segment, marks: range, commands: _socket.socket, wire: _socket.socket) -> int:
        """Start the interpreter; its pid. Raises OSError. With all signals blocked, as they will be there."""
        from multiprocessing import spawn, util

        files = _Files(segment.control, segment.payload, commands.fileno(), wire.fileno(), sorted(self.fds))
        theirs = _Monitor(files, marks, os.getpid(), self._options)
        memory = os.memfd_create("pool-start", os.MFD_CLOEXEC)
        try:
            with open(memory, "wb", closefd=False) as file:
                file.write(self._prepare)
                file.write(pickle.dumps(theirs))
            os.lseek(memory, 0, os.SEEK_SET)
            command = spawn.get_command_line(tracker_fd=self._tracker, pipe_handle=memory)
            return util.spawnv_passfds(os.fsencode(spawn.get_executable()), command, [memory, *files.all()])
        finally:
            os.close(memory)


def _dumps(obj: object, inherited: Inherited) -> bytes:
    """By the pool's codec, with what multiprocessing has for its own objects."""
    from multiprocessing.reduction import ForkingPickler

    base = codec.pickler()
    reducers: dict[type, Any] = ForkingPickler._extra_reducers  # type: ignore[attr-defined]

    class Pickler(base):  # type: ignore[misc, valid-type]
        dispatch_table: ClassVar[Any] = ChainMap(reducers, base.dispatch_table)

    out = io.BytesIO()
    pickler = Pickler(out, protocol=5)
    pickler.inherited = inherited
    pickler.dump(obj)
    return out.getvalue()


def _missing_in(main: dict[str, Any]) -> frozenset[str] | None:
    """Names of the script that a process that imports it again does not have, because they are made below ``if __name__
    == "__main__"``. None: it does not import it."""
    import ast

    name, path = main.get("init_main_from_name"), main.get("init_main_from_path")
    if not main or f".{name}".endswith(".__main__") or (path and os.path.basename(path) in ("ipython", "ipython.py")):
        return None
    try:
        with open(path or str(getattr(sys.modules["__main__"], "__file__", "")), "rb") as file:
            tree = ast.parse(file.read())
    except (OSError, SyntaxError, ValueError):  # without its source: nothing is known to be missing
        return frozenset()
    guarded = [node for node in tree.body if isinstance(node, ast.If) and "__name__" in ast.unparse(node.test)]
    missing = set()
    for node in [inner for guard in guarded for statement in guard.body for inner in ast.walk(statement)]:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            missing.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            missing.add(node.id)
    return frozenset(missing)


class _Files:
    """What is open in the client and in the new process, under the same numbers."""

    def __init__(self, control: int, payload: int, commands: int, wire: int, others: list[int]) -> None:
        self.control = control
        self.payload = payload
        self.commands = commands
        self.wire = wire
        self._others = others

    def all(self) -> list[int]:
        return [self.control, self.payload, self.commands, self.wire, *self._others]


class _Monitor:
    """What the fresh interpreter unpickles after its preparation, and runs as if it were a
    ``multiprocessing.Process``."""

    def __init__(self, files: _Files, marks: range, client: int, options: WorkerOptions) -> None:
        self._files = files
        self._marks = marks
        self._client = client
        self._options = options

    def _bootstrap(self, sentinel: int) -> NoReturn:
        files = self._files
        os.close(sentinel)
        for fd in files.all():
            os.set_inheritable(fd, False)
        commands = _socket.socket(fileno=files.commands)
        commands.setblocking(False)
        view = _core.attach(files.control, files.payload)
        _core.set_wire(view, files.wire)
        os.close(files.control)  # nobody shall write into shared memory through a descriptor
        os.close(files.payload)
        worker_process.import_title()
        codec.pickler()  # functions of scripts travel by value: else each worker would import what that takes
        monitor.main(view, self._marks, commands, self._client, self._options)


__all__ = ["Parcel"]
