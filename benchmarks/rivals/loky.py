from __future__ import annotations

from concurrent.futures import Executor

from benchmarks.rivals.executor import ProcessPoolExecutor


class Loky(ProcessPoolExecutor):
    name = "loky"
    package = "loky"
    module = "loky"
    settings = "get_reusable_executor, its own start method (fork + exec); calls as for the executor"
    first = (
        "from loky import get_reusable_executor\npool = get_reusable_executor(max_workers=WORKERS)\n"
        "assert pool.submit(abs, -1).result() == 1"
    )

    def make(self, workers: int) -> Executor:
        import loky  # type: ignore[import-untyped]

        executor: Executor = loky.get_reusable_executor(max_workers=workers, timeout=60)
        return executor

    def stop(self) -> None:
        self.pool.shutdown(wait=True)
