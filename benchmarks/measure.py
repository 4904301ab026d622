"""One measurement in a process of its own: ``python -m benchmarks.measure WORKLOAD CASE RIVAL SIZES ANSWER`` writes
the metrics as JSON to the file ANSWER (what pools and tasks print does not matter)."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from benchmarks.rivals import RIVALS, NotOffered
from benchmarks.sizes import Sizes
from benchmarks.workloads import WORKLOADS


def main() -> None:
    workload, case, rival, sizes, file = sys.argv[1:]
    try:
        answer: dict[str, object] = {
            "metrics": WORKLOADS[workload].measure(RIVALS[rival], case, Sizes(**json.loads(sizes)))
        }
    except NotOffered as reason:
        answer = {"missing": str(reason)}
    Path(file).write_text(json.dumps(answer))
    if "missing" in answer:  # its pool has not been stopped
        os._exit(0)


if __name__ == "__main__":
    main()
