"""What the client costs, measured against a floor and against the real peers.

``python -m benchmarks`` runs everything and writes ``RESULTS.md``; ``python -m benchmarks.call``
(step, end_to_end, mlflow, integrations, lanes, throttled, quota_simulation, cluster, loop_delay,
memory, start, direct, signing, spool) runs one alone and prints its table.  ``--smoke`` makes it
tiny, ``--json FILE`` keeps the numbers, ``--no-peers`` leaves other people's packages out.  Needs
``pip install 'adp-async[test]'``, and ``'adp-async[peers]'`` for the other trackers of ``step``;
nginx is used when it is there (``apt-get install nginx-light``).

``python -m benchmarks.integrations_lightning`` stands apart: it needs
``pip install 'adp-async[test-frameworks]'``, over a gigabyte.

Every comparison is made in one run: the contenders take turns in every round, and a ratio is the
median of the rounds' ratios, so that a machine that gets slower meanwhile cancels out.
"""

NAMES = (
    "step",
    "call",
    "end_to_end",
    "mlflow",
    "integrations",
    "lanes",
    "throttled",
    "quota_simulation",
    "cluster",
    "loop_delay",
    "memory",
    "start",
    "direct",
    "signing",
    "spool",
)
