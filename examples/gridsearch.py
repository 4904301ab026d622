"""A grid search of scikit-learn on the pool: `python examples/gridsearch.py`.

Classifies the 8x8 digits that come with scikit-learn. Nothing here is special to a pool but `register()` and
`parallel_config("pool")`. Then a score whose native code crashes, as a bug in a library would: the error names it.
"""

import argparse
import ctypes
import sys
import time
from typing import Any

from joblib import Parallel, delayed, parallel_config
from sklearn.datasets import load_digits
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.svm import SVC

from pool.compat.joblib import register
from pool.cpus import available_cpus
from pool.errors import WorkerCrashed

GRID = {"C": [1.0, 3.0, 10.0], "gamma": [0.0003, 0.001, 0.003]}


def score(data: Any, target: Any, gamma: float) -> float:
    """Mean accuracy of a classifier. A `gamma` of 0 reads where no memory is."""
    if gamma == 0:
        ctypes.string_at(0)
    return float(cross_val_score(SVC(gamma=gamma), data, target, cv=3, n_jobs=1).mean())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cpus = max(2, available_cpus())
    parser.add_argument("--workers", type=int, default=cpus, help="at least 2, default %(default)s: the CPUs there are")
    parser.add_argument("--images", type=int, default=1797, help="how many digits, default %(default)s")
    arguments = parser.parse_args()
    if arguments.workers < 2:
        parser.error("with one worker joblib uses none, and the crash below would be ours")
    data, target = load_digits(return_X_y=True)
    data, target = data[: arguments.images], target[: arguments.images]

    register()
    with parallel_config("pool", n_jobs=arguments.workers):
        began = time.monotonic()
        search = GridSearchCV(SVC(), GRID, cv=3).fit(data, target)
        seconds = time.monotonic() - began
        print(f"best of {len(search.cv_results_['params'])}: {search.best_params_}, {search.best_score_:.1%} are right")
        print(f"{seconds:.1f} s with {arguments.workers} workers")
        try:
            Parallel()(delayed(score)(data, target, gamma=gamma) for gamma in (0.001, 0, 0.003))
        except WorkerCrashed as error:
            print(error)
            print(Parallel()(delayed(score)(data, target, gamma=gamma) for gamma in (0.001, 0.003)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
