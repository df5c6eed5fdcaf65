"""Traces of training runs that are known to diverge or not, and what a judge makes of them.

    python -m benchmarks.zoo            # tables of the judge and of its rivals, by half and kind
    python -m benchmarks.zoo tune       # the same without the half that is kept to report
    python -m benchmarks.zoo record     # record the real runs anew: 5 minutes of processor time

The recorded ones lie in ``recorded.parquet``; where the truth about them comes from stands in
``labels.py``. The made ones are drawn by ``made.py``, which knows what it drew.
"""
