"""multiprocess: multiprocessing with dill, by its documentation used in the same way; so is it here."""

from __future__ import annotations

from benchmarks.rivals.multiprocessing import MultiprocessingPool


class MultiprocessPool(MultiprocessingPool):
    name = "multiprocess"
    package = "multiprocess"
    module = "multiprocess"
    settings = (
        "multiprocess.Pool (dill), fork; imap_unordered(chunksize=1), map (automatic chunks), apply_async + get, apply"
    )
    quick = False  # nearly multiprocessing
    first = MultiprocessingPool.first.replace("multiprocessing", "multiprocess")

    def start(self, workers: int) -> None:
        import multiprocess

        self.pool = multiprocess.get_context("fork").Pool(workers)
