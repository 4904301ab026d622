"""What every worker of a pool is told."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from pool.preparation import Preparation


class WorkerOptions:
    """See ``Pool``."""

    def __init__(
        self,
        name: str = "pool",
        initializer: Callable[..., object] | None = None,
        initargs: tuple[Any, ...] = (),
        max_tasks_per_child: int | None = None,
        threads_per_worker: int = 1,
        nice: int | None = None,
        cpu_affinity: bool = False,
        start_method: str = "fork",
        teardown: Callable[[], object] | None = None,
        teardown_timeout: float = 5.0,
        recycle_changed: bool = False,
    ) -> None:
        self.preparation: Preparation | None = None  # in a monitor and in workers that were not forked from the client
        self.folder = ""  # of spilled values; new at each start
        self.name = name
        self.initializer = initializer
        self.initargs = initargs
        self.max_tasks_per_child = max_tasks_per_child
        self.threads_per_worker = threads_per_worker
        self.nice = nice
        self.cpu_affinity = cpu_affinity
        self.start_method = start_method
        self.teardown = teardown
        self.recycle_changed = recycle_changed
        self.grace = 0.0 if teardown is None else teardown_timeout  # seconds that a worker may need to leave
