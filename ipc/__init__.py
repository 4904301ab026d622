"""Shared memory between processes: the floor below `pool`.

The rule of this floor: it knows bytes, integers, process ids and file descriptors. It knows no task, no function, no
pickle and no `Future`, and it never imports `pool`. What a number means to a task is decided one floor up.

* `ipc._core`    the protocol of DESIGN.md section 2, in C; what its functions take and return: `_core.pyi`
* `ipc.segment`  the two memory files that the protocol works on
* `ipc.memory`   what is available, what a task has added, who was killed for want of it
* `ipc.sizes`    "200M" as a number, and back
* `ipc.process`  facts about processes: is it alive, whose child is it, end it
"""

from ipc._core import Damaged

__all__ = ["Damaged"]
