"""Results that are kept in ``data/results``: recorded from a run, and compared with a later one."""

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tabulate import tabulate

from ..store import files
from ..store.files import atomic, read_json

FOLLOWS = ("low", "high", "count", "of", "p", "noise")  # columns that move with the others and are not compared
FOUND = ("judged", "both_yes", "first_only", "second_only", "both_no")  # images, by what was found in them
SHOWN = ("before_after", "cards")  # figures
TOLERANCE = (
    "Texts and whole numbers must be equal. Training and sampling round differently from machine to machine, so a "
    "number with an interval may differ by the interval's width (or by 1 %, if that is more), a percentage of n images "
    "by 100/√n, and a count of n images by what was found in them by 2√n. Other numbers agree to 1e-6."
)


def differences(ours: Sequence[Mapping[str, Any]], reference: Sequence[Mapping[str, Any]]) -> list[str]:
    """How a run's result differs from a recorded one, a line each; empty if it agrees within ``TOLERANCE``."""
    if len(ours) != len(reference):
        return [f"{len(ours)} rows, recorded are {len(reference)}"]
    lines = []
    for a, b in zip(ours, reference, strict=True):
        row = ", ".join(str(value) for value in b.values() if isinstance(value, str))[:80]
        for key, expected in b.items():
            if key in FOLLOWS or key.endswith(("_low", "_high")):
                continue
            value, slack = a.get(key), _slack(key, b)
            if slack and isinstance(value, int | float):
                if abs(value - expected) > slack:
                    lines.append(f"{row}: {key} is {value:.4g}, recorded is {expected:.4g} ± {slack:.2g}")
            elif value != expected:
                lines.append(f"{row}: {key} is {value!r}, recorded is {expected!r}")
    return lines


def _slack(key: str, row: Mapping[str, Any]) -> float:
    """How far a run's value may be from the recorded one; see ``TOLERANCE``."""
    value, images = row[key], row.get("judged", row.get("images"))
    low, high = row.get(f"{key}_low", row.get("low")), row.get(f"{key}_high", row.get("high"))
    if isinstance(value, float):
        if low is not None and high is not None:
            return max(high - low, 0.01 * abs(value))
        return 100 / images**0.5 if isinstance(images, int) and images else 1e-6 * abs(value)
    return 2 * value**0.5 if key in FOUND and isinstance(value, int) else 0.0


def record(folder: Path) -> None:
    """Copy a run's results, and its figures that the docs show (``SHOWN``), to ``data/results``."""
    results = (folder / "artifacts" / "results").iterdir()
    paths = sorted(path for path in results if path.suffix in (".json", ".parquet"))
    shown = (folder / "figures" / f"{name}.png" for name in SHOWN)
    for path in (*paths, *(path for path in shown if path.is_file())):
        with atomic(files.DATA / "results" / folder.name / path.name) as partial:
            shutil.copyfile(path, partial)
        print(f"recorded data/results/{folder.name}/{path.name}")


def compared(folder: Path) -> dict[str, list[str]]:
    """Each result that is recorded for a run's profile, and how the run's own differs, a line each."""
    results = {}
    for path in sorted((files.DATA / "results" / folder.name).glob("*.json")):
        ours, theirs = (read_json(file) for file in (folder / "artifacts" / "results" / path.name, path))
        results[path.stem] = differences(ours["rows"], theirs["rows"]) if ours else ["missing: run the profile first"]
    return results


def verify(folder: Path) -> int:
    """Compare a finished run's results with those recorded for its profile, and say what differs; 1 if anything does.

    Raises:
        ValueError: nothing is recorded for the profile.
    """
    results = compared(folder)
    if not results:
        if (files.DATA / "profiles" / f"{folder.name}.yaml").is_file():
            why = "on purpose: its numbers are of a test, of your own models or of a sweep"
            raise ValueError(f"--verify: the profile {folder.name} has no record, {why}; --summary compares two runs")
        raise ValueError(f"--verify: data/results holds nothing of the profile {folder.name}; --record puts it there")
    for name, lines in results.items():
        print(f"{name}: {'differs' if lines else 'agrees'}")
        for line in lines:
            print(f"    {line}")
    agreeing = sum(not lines for lines in results.values())
    print(f"{agreeing} of {len(results)} results agree. {TOLERANCE}")
    return int(agreeing < len(results))


def verify_all(runs: Path) -> int:
    """Compare every finished run with the record of its profile, and print a row for each that has a record; 1 if any
    result differs or none was run."""
    rows = []
    for record in sorted(path for path in (files.DATA / "results").iterdir() if path.is_dir()):
        folder = runs / record.name
        if not (folder / "artifacts" / "results").is_dir():
            rows.append((record.name, "not run", f"run_all.py --profile {record.name}"))
            continue
        results = compared(folder)
        differing = [name for name, lines in results.items() if lines]
        rows.append((record.name, f"{len(results) - len(differing)} of {len(results)} agree", ", ".join(differing)))
    print(tabulate(rows, ["profile", "results", "what differs, or how to make it"]))
    return int(any(row[2] and row[1] != "not run" for row in rows) or all(row[1] == "not run" for row in rows))
