"""The comparison with other pools: ``python -m benchmarks`` (``make bench``); ``--quick`` takes about three minutes.

::

    __main__ ──▶ suite: for each workload and case, for each run, for each rival (order rotated):
                   a fresh process ──▶ measure ──▶ workload.measure(rival) ──▶ metrics as JSON
             ──▶ report (tables) · targets (reached or not) · JSON

A *rival* is a pool behind one small interface (``rivals/``), ours among them; a *workload* is what they are made to
do (``workloads/``). Whatever is compared was measured in the same run: ratios are made run by run, and their median
counts.

``python -m benchmarks micro`` counts instructions instead (``micro/``), ``guard`` compares these with
``baseline.json``, ``times`` measures small steps with pyperf, ``compare`` compares two files of results.
"""
