"""A run's ``index.html``: first whether the run is good and what it answers, then everything that it has made.

Everything is read from the run folder: results, tables, figures, executed notebooks and the records of what is done.
"""

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from markupsafe import Markup
from PIL import Image

from ..evaluation.score import of_run
from ..evaluation.scores import MAIN
from ..evaluation.tables import WORLDS
from ..store.files import read_json, write_text
from ..store.run import labels
from . import done, profiles, verify
from .pages import markdown_to_html, render

HEADLINES = ("scores", "people_agreement", "captions_per_relation")  # the first of these figures that there is


def write_index(folder: Path, names: Iterable[str]) -> None:
    """Write ``index.html`` of a run folder; ``names`` are the notebooks of its profile."""
    names = list(names)
    sections = [part for name in names if (part := section(name, folder))]
    title = f"SR4G, profile {folder.name}"
    write_text(folder / "index.html", render("index.html", title=title, sections=sections, **answers(folder, names)))


@dataclass(frozen=True)
class Standing:
    """How a notebook stands: "done", "failed", "unfinished", "out of date" or "not run"; why; minutes it took."""

    state: str
    why: str = ""
    minutes: float | None = None


def standings(folder: Path, names: Iterable[str]) -> dict[str, Standing]:
    """How each notebook of a run stands, from its record and from the executed notebook."""
    records = {name: read_json(folder / ".state" / f"{name}.done.json") for name in names}
    parts = [record["outputs"] for record in records.values() if record]
    outputs = {str(folder / path): value for part in parts for path, value in part.items()}
    return {name: _standing(folder, name, record, outputs) for name, record in records.items()}


def _standing(folder: Path, name: str, record: dict[str, Any] | None, outputs: Mapping[str, str]) -> Standing:
    executed = read_json(folder / "notebooks" / f"{name}.ipynb")
    if executed is None:
        return Standing("not run")
    seconds = executed["metadata"].get("papermill", {}).get("duration")
    minutes = None if seconds is None else seconds / 60
    if record:
        older = [Path(path).name for path, value in record["inputs"].items() if outputs.get(path, value) != value]
        why = f"made from an earlier {', '.join(older)}; run again" if older else ""
        return Standing("out of date" if older else "done", why, minutes)
    ours = [c for c in executed["cells"] if "papermill-error-cell-tag" not in c["metadata"].get("tags", [])]
    for number, cell in enumerate(ours, 1):
        for output in cell.get("outputs", []):
            if output["output_type"] == "error":
                return Standing("failed", f"cell {number}: {output['ename']}: {output['evalue']}", minutes)
    return Standing("unfinished", "stopped before its end; run again to go on")


def verdict(folder: Path, names: Sequence[str]) -> dict[str, Any]:
    """One look tells whether the run is good: a green, red or brown box with the reason."""
    states = standings(folder, names)
    done = [name for name, standing in states.items() if standing.state == "done"]
    lines = [f"{name}: {s.state}{s.why and f' ({s.why})'}" for name, s in states.items() if s.state != "done"]
    minutes = sum(standing.minutes or 0 for standing in states.values())
    share = f"{len(done)} of {len(names)} notebooks are done"
    if len(done) == len(names):
        css, head = "good", f"✓ Finished: {share}, in {minutes:.1f} minutes."
    elif any(standing.state == "failed" for standing in states.values()):
        css, head = "bad", f"✗ Failed: {share}."
    else:
        css, head = "", f"… Unfinished: {share}."
    if len(done) == len(names) and (compared := verify.compared(folder)):
        differing = [name for name, differences in compared.items() if differences]
        lines.append(
            f"{len(differing)} of {len(compared)} results differ from the recorded run's ({', '.join(differing)}), as "
            "they should where parameters do; run_all.py --verify says where."
            if differing
            else f"All {len(compared)} results agree with the recorded run's."
        )
    return {"css": css, "head": head, "lines": lines}


def answer(folder: Path, names: Sequence[str], linked: Mapping[str, str] | None = None) -> str:
    """Whether the run is good, the claims, the headline figure, the scores, and what made them, as a piece of HTML;
    ``linked`` has the address of each notebook's page, if that is not in the run folder."""
    return render("answer.html", **answers(folder, names, linked))


def answers(folder: Path, names: Sequence[str], linked: Mapping[str, str] | None = None) -> dict[str, Any]:
    """What the template ``answer.html`` shows; arguments as in :func:`answer`."""
    about = (read_json(folder / "artifacts" / "results" / "scores.json") or {}).get("about", {})
    return {
        "verdict": verdict(folder, names),
        "world": Markup(markdown_to_html(WORLDS[about["world"]])) if about.get("world") in WORLDS else "",
        "claims": claims(folder),
        "counts": counts(folder),
        "headline": headline(folder, names),
        "metrics": list(MAIN),
        "scores": scores(folder),
        "judged": judged(folder),
        "people": people(folder),
        "notebooks": notebooks(folder, names, linked),
        "made_with": [f"{key} {', '.join(values)}" for key, values in versions(folder).items()],
    }


def claims(folder: Path) -> list[dict[str, Any]]:
    """Each claim of the paper with its verdict, and the numbers behind it (``shown``)."""
    rows = []
    for row in _result(folder, "claims"):
        values = [row[key] for key in ("number", "low", "high")]
        whole = all(value is not None and value == int(value) for value in values)
        rows.append({**row, "shown": _interval(values, ".0f" if whole else ".1f")})
    return rows


def counts(folder: Path) -> list[dict[str, str]]:
    """The paper's numbers of captions beside ours."""
    rows = _csv(folder, "claims_dataset")
    return [row | {key: f"{float(row[key]):,.0f}" for key in ("reported", "ours")} for row in rows]


def headline(folder: Path, names: Iterable[str]) -> dict[str, Any] | None:
    """The figure that says most, or the run's first."""
    called = {path: label for name in names for path, label in labels(name, done.outputs(name, folder)).items()}
    figures = [path for path in called if path.startswith("figures/")]
    for path in sorted(figures, key=[*(f"figures/{name}" for name in HEADLINES), *figures].index):
        if (folder / f"{path}.png").is_file():
            return _figure(folder, Path(f"{path}.png"), called[path])
    return None


def scores(folder: Path) -> list[list[str]]:
    """OA, VISOR and VISOR_Cond of each model with intervals, and the change of VISOR_Cond."""
    whole = [row for row in _result(folder, "scores") if row["relation"] == "all"]
    cells = {(row["objects"], row["model"], row["metric"]): row for row in whole}
    gains = [r for r in _result(folder, "changes") if r["relation"] == "all" and r["metric"] == "VISOR_Cond"]
    ends = ("low", "high")
    changes = {(r["objects"], r["model"]): _interval([r[key] for key in ("difference", *ends)], "+.1f") for r in gains}
    rows = []
    for objects, model in dict.fromkeys(key[:2] for key in cells):
        records = [cells.get((objects, model, metric), {}) for metric in MAIN]
        values = [_interval([record.get(key) for key in ("value", *ends)]) for record in records]
        chance = _interval([records[-1].get("chance")])
        rows.append([objects, model, *values, chance, changes.get((objects, model), "–")])
    return rows


def judged(folder: Path) -> dict[str, Any] | None:
    """Who judged the scores, and a line to cite for each model and set of objects."""
    record = read_json(folder / "artifacts" / "results" / "scores.json")
    scores = of_run(record) if record else {}
    if not scores:
        return None
    cites = {f"{model}, {objects} objects": score.cite() for (objects, model), score in scores.items()}
    return {"by": next(iter(scores.values())).by(), "cites": cites}


def people(folder: Path) -> list[list[str]]:
    """How often each rule set agrees with a person on generated images."""
    rows = []
    for row in (row for row in _csv(folder, "people_generated") if row["images"] == "all"):
        rows.append([row[key] for key in ("detector", "rules", "pairs", "n")])
        for name, form in (("agreement", ".1f"), ("kappa", ".2f")):
            texts = [row[name + end] for end in ("", "_low", "_high")]
            rows[-1].append(_interval([float(text) if text else None for text in texts], form))
    return rows


def notebooks(folder: Path, names: Sequence[str], linked: Mapping[str, str] | None = None) -> list[dict[str, Any]]:
    """The notebooks, how each stands and how long it took; ``linked`` as in :func:`answer`."""
    rows = []
    for name, standing in standings(folder, names).items():
        page = f"notebooks/{name}.{'html' if standing.state in ('done', 'out of date') else 'ipynb'}"
        address = page if (folder / page).is_file() else None
        if linked is not None:
            address = linked.get(name)
        minutes = "–" if standing.minutes is None else f"{standing.minutes:.1f}"
        rows.append({"title": profiles.title(name), "address": address, "state": standing.state, "minutes": minutes})
    return rows


def versions(folder: Path) -> dict[str, list[str]]:
    """Versions and machine, from the results' provenance; where results differ in one, all are named."""
    values: dict[str, list[str]] = {}
    for path in sorted((folder / "artifacts" / "results").glob("*.json")):
        for key, value in ((read_json(path) or {}).get("provenance") or {}).items():
            shown = str(value)[:12] if key == "commit" else {True: "yes", False: "no"}.get(value, str(value))
            if value is not None and shown not in values.setdefault(key, []):
                values[key].append(shown)
    return values


def section(name: str, folder: Path) -> dict[str, Any] | None:
    """What a notebook has made: figures as thumbnails, tables and files; None if there is nothing."""
    called = labels(name, done.outputs(name, folder))
    outputs = [path for path in map(Path, done.outputs(name, folder)) if (folder / path).exists()]
    if not outputs and not (folder / "notebooks" / f"{name}.html").is_file():
        return None
    tables, figures = [], []
    for path in outputs:
        if path.suffix == ".png" and path.parts[0] == "figures":
            figures.append(_figure(folder, path, called[str(path.with_suffix(""))], "png", "pdf"))
        elif path.suffix == ".md" and path.parts[0] == "tables":
            plain = (folder / path).with_suffix(".tex")
            caption = plain.read_text(encoding="utf-8").splitlines()[0].removeprefix("% ")
            caption = f"{called[str(path.with_suffix(''))]}. {caption}"
            tables.append({"caption": caption, "files": _files(path, "csv", "md", "tex")})
    artifacts = [(path.name, quote(str(path))) for path in outputs if path.parts[0] == "artifacts"]
    return {"title": profiles.title(name), "figures": figures, "tables": tables, "artifacts": artifacts}


def _files(path: Path, *suffixes: str) -> list[tuple[str, str]]:
    """The file in each of its forms: name and address."""
    return [(suffix.upper(), quote(str(path.with_suffix(f".{suffix}")))) for suffix in suffixes]


def _figure(folder: Path, path: Path, label: str, *suffixes: str) -> dict[str, Any]:
    with Image.open(folder / path) as image:
        caption = f"{label}. {image.info.get('Description', path.stem)}"
    return {"address": quote(str(path)), "caption": caption, "files": _files(path, *suffixes)}


def _result(folder: Path, name: str) -> list[dict[str, Any]]:
    return (read_json(folder / "artifacts" / "results" / f"{name}.json") or {"rows": []})["rows"]


def _csv(folder: Path, name: str) -> list[dict[str, str]]:
    path = folder / "tables" / f"{name}.csv"
    return list(csv.DictReader(io.StringIO(path.read_text(encoding="utf-8")))) if path.is_file() else []


def _interval(values: Sequence[float | None], form: str = ".1f") -> str:
    """A number, and its interval if all three are there."""
    if values[0] is None:
        return "–"
    number, *interval = (f"{value:{form}}".replace("-", "−") for value in values if value is not None)
    return f"{number} [{', '.join(interval)}]" if len(interval) == 2 else number
