"""Limits of what is taken from other people's files, and the rule for what a reader leaves out of them.

A limit changes no result, only whether a file is refused, so it is a setting of the process and no part of what a stage
depends on: the environment variable ``SR4G_<NAME>``, or :func:`set_limit`, which sets it for child processes, too.
"""

import os
from collections.abc import Mapping, Sequence
from math import inf

from .files import say
from .settings import percent

LIMITS: dict[str, tuple[float, float, float]] = {  # default, least, most
    "allow_loss": (0.5, 0.0, 1.0),  # share of a file's records that may be left out
    "annotations": (1e8, 1.0, inf),  # rows of a box table
    "box_bytes": (2.0**30, 1.0, inf),  # of a file of detected boxes that is text
    "cells": (2e7, 1.0, inf),  # rows times columns of a table of prompts
    "json_value": (2.0**24, 1.0, inf),  # bytes of a record of annotations
    "photo_bytes": (2.0**28, 1.0, inf),
    "photo_pixels": (89_478_485.0, 1.0, inf),  # Pillow's own
    "prompt_bytes": (2.0**27, 1.0, inf),  # of a file of prompts
    "unpacked": (200.0, 1.0, inf),  # how many times as large as in its archive a file may be, above ``SMALL``
}
SMALL = 1 << 24  # bytes
NOTABLE = 0.02  # share of a file's records that is left out for one reason from which a warning is printed


def limit(name: str) -> float:
    """The value of a limit. Raises ValueError where the environment has one that cannot be."""
    default, least, most = LIMITS[name]
    text = os.environ.get(f"SR4G_{name.upper()}")
    return default if text is None else _checked(name, text, least, most)


def set_limit(name: str, value: float | int | str | None) -> None:
    """Set a limit for this process and those that it starts; None leaves it as it is.

    Raises:
        ValueError: the value is no number or out of the limit's range.
    """
    if value is not None:
        os.environ[f"SR4G_{name.upper()}"] = str(_checked(name, value, *LIMITS[name][1:]))


def _checked(name: str, value: float | int | str, least: float, most: float) -> float:
    try:
        number = float(value)
    except ValueError:
        number = -inf
    if not least <= number <= most:
        hint = percent(number, most)
        raise ValueError(f"{name}: must be a number from {least:g} to {most:g}, got {value!r}{hint}")
    return number


def check_limit(name: str, value: float | int, what: str) -> None:
    """Raise ValueError where a value is above a limit; ``what`` (a file and what of it) begins the message."""
    if value > (most := limit(name)):
        raise ValueError(f"{what}: {value:,.0f} is above the limit of {most:,.0f}; to take it, set SR4G_{name.upper()}")


def check_unpacked(packed: int, unpacked: int, source: str) -> None:
    """Raise ValueError where a file in an archive is suspiciously larger than it is there; sizes in bytes."""
    if unpacked > SMALL:
        check_limit("unpacked", unpacked / max(packed, 1), f"{source}: bytes for each that is packed")


def check_loss(
    source: str, left_out: Mapping[str, int], total: int, records: str = "records",
    causes: Mapping[str, str] | None = None, doubts: Sequence[str] = (), allow_loss: float | int | None = None,
) -> list[str]:  # fmt: skip
    """Say what a reader left out of a file, and refuse the file where most of it is lost. Every reader ends with this::

        check_loss(str(path), {"outside the image": 28_000, "unknown category": 3}, 36_000, "annotations",
                   {"outside the image": "are the boxes corners? write x, y, width, height"})
        # WARNING: boxes.json: 28,000 of 36,000 annotations (78%) are left out: outside the image; are the boxes …
        # ValueError: boxes.json: 28,003 of 36,000 annotations (78%) are left out, …; allow_loss=0.78 takes the rest

    Args:
        source: the file, as messages name it.
        left_out: how many records were left out, by reason; a record counts under one reason.
        total: how many records the file holds, those left out among them.
        records: what a record is called in the plural ("annotations", "boxes", "images").
        causes: the likely cause and the remedy of a reason, as it stands in ``left_out``.
        doubts: warnings in full that are no loss, cause and remedy included ("half of the boxes have a side under
            2 pixels: …").
        allow_loss: the share of all records that may be left out; by default the limit of that name.

    Returns:
        The warnings, which are printed to stderr, each once in a process: each doubt, and each reason for which at
        least ``NOTABLE`` of the records are left out.

    Raises:
        ValueError: more than ``allow_loss`` of the records are left out.
    """
    allowed = limit("allow_loss") if allow_loss is None else allow_loss
    texts = {reason: f"{reason}; {(causes or {}).get(reason, '')}".removesuffix("; ") for reason in left_out}

    def lost(number: int) -> str:
        return f"{source}: {number:,} of {total:,} {records} ({number / total:.0%}) are left out"

    if (number := sum(left_out.values())) > allowed * total:
        why = "; ".join([f"{n:,} {texts[reason]}" for reason, n in left_out.items() if n] + list(doubts))
        setting = f"more than allow_loss = {allowed:g} (SR4G_ALLOW_LOSS=1 takes the rest)"
        raise ValueError(f"{lost(number)}, {setting}: {why}")
    warnings = [f"{lost(n)}: {texts[reason]}" for reason, n in left_out.items() if n and n >= NOTABLE * total]
    warnings = [f"WARNING: {text}" for text in [*warnings, *(f"{source}: {doubt}" for doubt in doubts)]]
    for warning in warnings:
        say(warning)
    return warnings
