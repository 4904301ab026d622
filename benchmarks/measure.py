"""One measurement in a process of its own: ``python -m benchmarks.measure WORKLOAD CASE RIVAL SIZES`` writes one line
of JSON to file descriptor 3 (what pools and tasks print does not matter)."""

from __future__ import annotations

import json
import os
import sys

from benchmarks.rivals import RIVALS, NotOffered
from benchmarks.sizes import Sizes
from benchmarks.workloads import WORKLOADS


def main() -> None:
    workload, case, rival, sizes = sys.argv[1:]
    os.set_inheritable(3, False)
    try:
        answer: dict[str, object] = {
            "metrics": WORKLOADS[workload].measure(RIVALS[rival], case, Sizes(**json.loads(sizes)))
        }
    except NotOffered as reason:
        answer = {"missing": str(reason)}
    os.write(3, json.dumps(answer).encode())
    if "missing" in answer:
        os._exit(0)


if __name__ == "__main__":
    main()
