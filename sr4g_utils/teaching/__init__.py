"""Checks for the six exercises of a course (``notebooks/exercises``, ``docs/teaching.md``).

A check says that an answer holds, or draws a counter-example and says in one sentence where to look. It never tells
the solution.
"""

from .answer import CounterExample
from .dice import check_prediction
from .intervals import check_claims, check_paired_interval, check_stands
from .kappa import check_answers, check_kappa
from .laws import check_cond, check_law, check_suspects
from .relation import check_relation
from .splits import check_clean, check_leaks, check_leaky

__all__ = [
    "CounterExample", "check_answers", "check_claims", "check_clean", "check_cond", "check_kappa", "check_law",
    "check_leaks", "check_leaky", "check_paired_interval", "check_prediction", "check_relation", "check_stands",
    "check_suspects",
]  # fmt: skip
