"""What a run says at its end: what was made, how long it took, what the headline is, and where to look."""

from pathlib import Path
from typing import Any

from .files import read_json
from .run import outputs


def report(folder: Path, notebooks: dict[str, float | None]) -> dict[str, Any]:
    """The end of a run as one record.

    Args:
        notebooks: the seconds that each took, in order; None for those that were skipped.

    Returns:
        folder, index, notebooks, seconds, made (how many tables, figures and artifacts lie there), and headline: the
        change of VISOR_Cond of each model of notebook 04 with its interval; empty where there is none.
    """
    files = {file for name in notebooks for file in outputs(name, folder) if (folder / file).exists()}
    made = {part: len({Path(f).with_suffix("") for f in files if f.startswith(part)}) for part in ("tables", "figures")}
    made["artifacts"] = sum(file.startswith("artifacts") for file in files)
    changes = read_json(folder / "artifacts" / "results" / "changes.json") if "04_evaluation" in notebooks else None
    headline = [
        {key: row[key] for key in ("model", "objects", "metric", "before", "after", "difference", "low", "high")}
        for row in (changes or {"rows": []})["rows"]
        if row["relation"] == "all" and row["metric"] == "VISOR_Cond"
    ]
    seconds = sum(each for each in notebooks.values() if each is not None)
    index = str(folder / "index.html")
    return {"folder": str(folder), "index": index, "notebooks": notebooks, "seconds": seconds, "made": made,
            "headline": headline}  # fmt: skip


def in_words(record: dict[str, Any]) -> str:
    """The record in plain words, a few lines."""
    run = [name for name, seconds in record["notebooks"].items() if seconds is not None]
    made = ", ".join(f"{number} {part if number != 1 else part[:-1]}" for part, number in record["made"].items())
    lines = [f"{len(run)} of {len(record['notebooks'])} notebooks run in {record['seconds'] / 60:.1f} min: {made}."]
    for row in record["headline"]:
        ends = "no interval" if row["low"] is None else f"95 % interval {row['low']:+.1f} to {row['high']:+.1f}"
        if row["difference"] is not None:
            lines.append(
                f"{row['model']}, {row['objects']} objects: VISOR_Cond {row['before']:.1f} → {row['after']:.1f}, "
                f"{row['difference']:+.1f} points ({ends})."
            )
    return "\n".join([*lines, f"Done. Open {record['index']}"])
