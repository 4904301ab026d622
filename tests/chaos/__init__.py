"""The chaos runner: what a seed says is done to a pool, and whether everything adds up is judged from outside.

::

    seed ──▶ plan ──▶ player (a process of its own: the client) ──▶ outcomes, deaths as settled, kills  ┐
                        │ forks                                                                         ├──▶ oracle
                        └──▶ monitor, workers: tasks ──▶ O_APPEND lines, record locks ──▶ ledger         ┘
    campaign: one episode after the other, sums in a file, and of a plan that fails its smallest slice known to fail

``plan`` draws events, and is pure. ``work`` is what the workers run. ``player`` does what a plan says and writes down
what it was told; ``witness`` tells it of deaths, and of its pool at rest. ``killer`` kills, and notes what the dead
were at; ``observer`` sees that in the segment, from outside of the pool. ``oracle`` reads these files and nothing
else: it knows tasks, attempts and deaths, but no rows and no rings, so what another backend writes down in the same
words it can judge too. ``campaign`` runs episodes. ``planted`` has bugs that all this must find. ``proof`` runs all of
it and more (``latency``, ``soak``) and writes the figures into docs/reliability.md; ``figures`` is its pure part.

Run it: ``make chaos SEED=7 SECONDS=60``.
"""
