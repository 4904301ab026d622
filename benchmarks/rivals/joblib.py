from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from benchmarks.rivals.base import Function, Rival


class Joblib(Rival):
    name = "joblib"
    package = "joblib"
    module = "joblib"
    settings = 'Parallel (loky) kept open by with; batch_size=1, return_as="generator_unordered"; batch_size="auto"'
    first = (
        "from joblib import Parallel, delayed\n"
        "assert Parallel(n_jobs=WORKERS)(delayed(abs)(-k) for k in range(1, 2)) == [1]"
    )
    lazy = True

    def start(self, workers: int) -> None:
        from joblib import Parallel  # type: ignore[import-untyped]

        self.one_by_one = Parallel(n_jobs=workers, batch_size=1, return_as="generator_unordered").__enter__()
        self.auto = Parallel(n_jobs=workers, batch_size="auto").__enter__()

    def stop(self) -> None:
        from joblib.externals.loky import get_reusable_executor  # type: ignore[import-untyped]

        self.one_by_one.__exit__(None, None, None)
        self.auto.__exit__(None, None, None)
        get_reusable_executor().shutdown(wait=True)

    def each(self, fn: Function, items: Iterable[Any], count: int) -> Iterable[Any]:
        from joblib import delayed

        task = delayed(fn)
        return self.one_by_one(task(item) for item in items)  # type: ignore[no-any-return]

    def chunked(self, fn: Function, items: Iterable[Any], count: int) -> Iterable[Any]:
        from joblib import delayed

        task = delayed(fn)
        return self.auto(task(item) for item in items)  # type: ignore[no-any-return]

    def call(self, fn: Function, item: Any) -> Any:
        from joblib import delayed

        return self.auto([delayed(fn)(item)])[0]
