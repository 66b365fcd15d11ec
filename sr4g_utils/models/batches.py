"""Batches that fit into memory."""

import sys
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import torch

T = TypeVar("T")
R = TypeVar("R")


class AdaptiveBatches:
    """Work on at most ``size`` things at a time; halved for good, and said, when a batch does not fit into memory."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __call__(self, things: Sequence[T], work: Callable[[Sequence[T]], R]) -> Iterator[tuple[Sequence[T], R]]:
        """Each batch of ``things``, in order, and what ``work`` makes of it.

        Raises:
            RuntimeError: of ``work``; out of memory only where a single thing does not fit.
        """
        while things:
            now = things[: self.size]
            try:
                made = work(now)
            except RuntimeError as error:
                text = str(error).lower()
                full = isinstance(error, torch.OutOfMemoryError) or "out of memory" in text
                if len(now) == 1 or not (full or "not enough memory" in text):
                    raise
                self.size = len(now) // 2
                print(f"out of memory: going on with batches of {self.size}", file=sys.stderr)
                torch.accelerator.empty_cache() if torch.accelerator.is_available() else None
                continue
            yield now, made
            things = things[len(now) :]
