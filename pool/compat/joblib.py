"""The pool as a backend of joblib, and so of scikit-learn::

    from joblib import Parallel, delayed, parallel_config
    from pool.compat.joblib import register

    register()
    with parallel_config("pool"):                                   # n_jobs: all CPUs, unless it is said
        roots = Parallel()(delayed(sqrt)(x) for x in range(1000))

Everything of ``Parallel`` works as with loky: batches, ``return_as``, ``timeout``, nested calls (threads at the first
level), ``inner_max_num_threads``, functions and classes of ``__main__``. Further options go to ``pool.Pool``:
``parallel_config("pool", retries=2, max_tasks_per_child=100)``. What is different:

- an item whose worker dies raises ``pool.errors.WorkerCrashed``, which names the function and its arguments. With
  ``retries`` it is tried again, and the rest never notices;
- workers are forked: they start in milliseconds and have what the caller has imported. They live as long as the
  ``parallel_config`` or the ``Parallel``;
- arrays travel through shared memory, and are the task's own: ``max_nbytes``, ``temp_folder`` and ``mmap_mode`` have no
  meaning. For an array that many items need, ``pool.Pool.share`` makes one copy for all;
- BLAS and OpenMP have one thread in each worker, unless ``inner_max_num_threads`` says otherwise: after a fork some of
  these libraries hang if they use more.
"""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Callable

try:
    from joblib import parallel_config, register_parallel_backend
    from joblib.parallel import AutoBatchingMixin, FallbackToBackend, ParallelBackendBase, SequentialBackend
except ImportError as error:
    raise ImportError("pool.compat.joblib needs joblib: pip install joblib") from error

from pool.codec import task_name
from pool.compat.batch import CALL_STAR, Batch
from pool.cpus import available_cpus
from pool.errors import PoolClosed, PoolError
from pool.executor import Pool
from pool.map_run import Failure
from pool.task import describe_call

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_OF_OTHERS = {"context", "idle_worker_timeout", "max_nbytes", "mmap_mode", "temp_folder", "verbose"}
"""Options that joblib hands to every backend."""


def register(make_default: bool = False) -> None:
    """Make the pool known to joblib as ``"pool"``. ``make_default``: it is used where no backend is named."""
    register_parallel_backend("pool", PoolBackend, make_default=make_default)


class _Call:
    """What a worker does with an item: as joblib's BatchedCalls, which does it for a whole batch."""

    def __init__(self, backend: Any, n_jobs: int | None) -> None:
        self._backend = backend  # of calls to joblib inside of the item
        self._n_jobs = n_jobs

    def __call__(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        with parallel_config(backend=self._backend, n_jobs=self._n_jobs):
            return func(*args, **kwargs)


class PoolBackend(AutoBatchingMixin, ParallelBackendBase):  # type: ignore[misc]
    """See ``joblib.parallel.ParallelBackendBase``. A batch of joblib's is a chunk of ours: each item is accounted
    for by itself."""

    default_n_jobs = -1
    supports_retrieve_callback = True
    supports_inner_max_num_threads = True

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._workers: Pool | None = None
        self._made_with: tuple[int, dict[str, Any]] = (1, {})
        self._call = _Call(None, None)

    def effective_n_jobs(self, n_jobs: int | None) -> int:
        """How many workers ``n_jobs`` means; see ``joblib.effective_n_jobs``."""
        if n_jobs == 0:
            raise ValueError("n_jobs == 0 in Parallel has no meaning")
        if n_jobs is None:
            return 1
        if n_jobs != 1 and self.nesting_level != 0 and not self.in_main_thread():
            warnings.warn("a pool's workers are not forked below threads of joblib, setting n_jobs=1", stacklevel=3)
            return 1
        return n_jobs if n_jobs > 0 else max(available_cpus() + 1 + n_jobs, 1)

    def configure(
        self, n_jobs: int = 1, parallel: Any = None, prefer: Any = None, require: Any = None, **options: Any
    ) -> int:
        """Called before each ``Parallel`` call: the workers of the last one are used again if they fit."""
        n_jobs = self.effective_n_jobs(n_jobs)
        if n_jobs == 1:
            raise FallbackToBackend(SequentialBackend(nesting_level=self.nesting_level))
        self.parallel = weakref.proxy(parallel)  # it has us: a cycle would keep the workers
        self._call = _Call(*self.get_nested_backend())
        options = {"threads_per_worker": self.inner_max_num_threads or 1, **self.backend_kwargs, **options}
        wanted = n_jobs, {name: value for name, value in options.items() if name not in _OF_OTHERS}
        if self._workers is not None and self._made_with != wanted:
            self._workers.shutdown(wait=False)
            self._workers = None
        self._made_with = wanted
        self.start_call()
        return n_jobs

    def start_call(self) -> None:
        """Called at the beginning of each ``Parallel`` call, in its thread: start the workers if there are none."""
        if self._workers is None:
            n_jobs, options = self._made_with
            self._workers = Pool(n_jobs, **options).start()

    def submit(self, func: Any, callback: Callable[[Batch], object] | None = None) -> Batch | None:
        """Give away a BatchedCalls; ``callback(batch)`` when it is complete. Never blocks."""
        workers = self._workers
        if workers is None:  # aborted meanwhile: nobody waits for it
            return None
        try:
            batch = Batch(workers, self._call, CALL_STAR, len(func.items), callback)
        except PoolClosed:  # the same, a moment later
            return None
        batch.give(func.items)
        return batch

    def retrieve_result_callback(self, out: Batch) -> list[Any]:
        """The values of the batch. Raises the error of its first item that failed."""
        values = out.values()
        if isinstance(values, Failure):
            raise _named(values)
        return values

    def abort_everything(self, ensure_ready: bool = True) -> None:
        """Kill the workers; new ones start with the next call."""
        workers, self._workers = self._workers, None
        if workers is not None:
            workers.kill_workers()

    def terminate(self) -> None:
        """Called after each ``Parallel`` call. The workers stay for the next one."""
        self.reset_batch_stats()


def _named(failure: Failure) -> BaseException:
    """The item's error, with the item's function in the place of ours if it names one."""
    error = failure.error
    facts = {name: value for name, value in vars(error).items() if name != "__notes__"}
    if not isinstance(error, PoolError) or "task" not in facts or failure.item is None:
        return error
    func, args, kwargs = failure.item
    facts["task"] = task_name(func)
    if "args_repr" in facts:
        facts["args_repr"] = describe_call(args, kwargs)
    named = type(error)(**facts)
    named.__cause__ = error.__cause__
    return named


__all__ = ["PoolBackend", "register"]
