"""A run's ``index.html``: first whether the run is good and what it answers, then everything that it has made.

Everything is read from the run folder: results, tables, figures, executed notebooks and the records of what is done.
"""

import csv
import html
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from PIL import Image

from ..evaluation.scores import MAIN
from ..store.files import read_json, write_text
from . import done, profiles, verify

HEADLINES = ("scores", "people_agreement", "captions_per_relation")  # the first of these figures that there is

STYLE = """
.answer { line-height: 1.5 }
.answer .wide { overflow-x: auto }
.answer table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .95rem; margin: 0 }
.answer th, .answer td { padding: .4rem .8rem .4rem 0; text-align: left; vertical-align: top; border: 0;
  border-top: 1px solid color-mix(in srgb, currentColor 20%, transparent) }
.answer small { display: block; opacity: .75; font-size: .85rem }
.answer figure { margin: 1.5rem 0 }
.answer img { max-width: 100%; height: auto; background: #fff; border-radius: .3rem }
.answer .standing { padding: .7rem 1rem; border-radius: .5rem; color: #fff; background: #7d5200 }
.answer .standing.good { background: #1a6e30 }
.answer .standing.bad { background: #a3221a }
.answer .standing p { margin: 0 }
.answer .verdict { padding: .1rem .6rem; border-radius: 1rem; color: #fff; background: #5c6470; white-space: nowrap }
.answer .verdict.holds { background: #1a6e30 }
.answer .verdict.contradicted { background: #7d5200 }
.answer .number { white-space: nowrap }
@media (max-width: 45rem) {
  .answer .claims, .answer .claims tbody, .answer .claims tr, .answer .claims td { display: block; width: auto }
  .answer .claims thead { display: none }
  .answer .claims td + td { border: 0; padding-top: 0 }
}
"""
PAGE_STYLE = """
:root { color-scheme: light dark }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 0 auto; padding: 1rem;
  overflow-wrap: break-word }
h1 { line-height: 1.2 } h2 { margin-top: 2.5rem } ul { padding-left: 1.2rem }
.figures { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(15rem, 100%), 1fr)); gap: 1rem }
.figures figure { margin: 0 }
.figures img { width: 100%; height: 10rem; object-fit: contain; background: #fff; border-radius: .3rem }
figcaption { font-size: .85rem; opacity: .8 }
"""


def write_index(folder: Path, names: Iterable[str]) -> None:
    """Write ``index.html`` of a run folder; ``names`` are the notebooks of its profile."""
    names = list(names)
    title = f"SR4G, profile {folder.name}"
    parts = "\n".join(part for name in names for part in section(name, folder))
    write_text(
        folder / "index.html",
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{html.escape(title)}</title>\n<style>{STYLE}{PAGE_STYLE}</style>\n</head>\n<body>\n"
        f"<h1>{html.escape(title)}</h1>\n{answer(folder, names)}\n"
        f'{parts}\n<p><a href="run.log">Log</a></p>\n</body>\n</html>\n',
    )


# ------------------------------------------------------------------------------------------------- is the run good?


@dataclass(frozen=True)
class Standing:
    """How a notebook stands: "done", "failed", "unfinished", "out of date" or "not run"; why; minutes it took."""

    state: str
    why: str = ""
    minutes: float | None = None


def standings(folder: Path, names: Iterable[str]) -> dict[str, Standing]:
    """How each notebook of a run stands, from its record and from the executed notebook."""
    records = {name: read_json(folder / ".state" / f"{name}.done.json") for name in names}
    made = {
        str(folder / path): value for record in records.values() if record for path, value in record["outputs"].items()
    }
    return {name: _standing(folder, name, record, made) for name, record in records.items()}


def _standing(folder: Path, name: str, record: dict[str, Any] | None, made: Mapping[str, str]) -> Standing:
    executed = read_json(folder / "notebooks" / f"{name}.ipynb")
    if executed is None:
        return Standing("not run")
    seconds = executed["metadata"].get("papermill", {}).get("duration")
    minutes = None if seconds is None else seconds / 60
    if record:
        older = [Path(path).name for path, value in record["inputs"].items() if made.get(path, value) != value]
        why = f"made from an earlier {', '.join(older)}; run again" if older else ""
        return Standing("out of date" if older else "done", why, minutes)
    ours = [c for c in executed["cells"] if "papermill-error-cell-tag" not in c["metadata"].get("tags", [])]
    for number, cell in enumerate(ours, 1):
        for output in cell.get("outputs", []):
            if output["output_type"] == "error":
                return Standing("failed", f"cell {number}: {output['ename']}: {output['evalue']}", minutes)
    return Standing("unfinished", "stopped before its end; run again to go on")


def verdict(folder: Path, names: Sequence[str]) -> str:
    """One look tells whether the run is good: a green, red or brown box with the reason."""
    found = standings(folder, names)
    done = [name for name, standing in found.items() if standing.state == "done"]
    lines = [f"{name}: {s.state}{s.why and f' ({s.why})'}" for name, s in found.items() if s.state != "done"]
    minutes = sum(standing.minutes or 0 for standing in found.values())
    if len(done) == len(names):
        css, head = "good", f"✓ Finished: {len(done)} of {len(names)} notebooks are done, in {minutes:.1f} minutes."
    elif any(standing.state == "failed" for standing in found.values()):
        css, head = "bad", f"✗ Failed: {len(done)} of {len(names)} notebooks are done."
    else:
        css, head = "", f"… Unfinished: {len(done)} of {len(names)} notebooks are done."
    if len(done) == len(names) and (compared := verify.compared(folder)):
        differing = [name for name, differences in compared.items() if differences]
        lines.append(
            f"{len(differing)} of {len(compared)} results differ from the recorded run's ({', '.join(differing)}), as "
            "they should where parameters do; run_all.py --verify says where."
            if differing
            else f"All {len(compared)} results agree with the recorded run's."
        )
    return f'<div class="standing {css}"><p><strong>{head}</strong></p>{"".join(map(_paragraph, lines))}</div>'


# ---------------------------------------------------------------------------------------------- what does it answer?


def answer(folder: Path, names: Sequence[str], linked: Mapping[str, str] | None = None) -> str:
    """Whether the run is good, the claims, the headline figure, the scores, and what made them, as a piece of HTML.

    Args:
        linked: the address of each notebook's page, if that is not in the run folder.
    """
    return "\n".join(
        (
            f'<div class="answer">{verdict(folder, names)}{world(folder)}',
            *_titled("The paper's claims", claims(folder)),
            *_titled("The paper's counts, on COCO", counts(folder)),
            *headline(folder, names),
            *_titled("Scores", scores(folder)),
            *_titled("Agreement with people", people(folder)),
            *_titled("Notebooks and minutes", notebooks(folder, names, linked)),
            *_titled("Made with", made_with(folder)),
            "</div>",
        )
    )


def world(folder: Path) -> str:
    """What the numbers come from, and what they therefore can tell."""
    from ..evaluation.tables import WORLDS  # which builds upon this package's files
    from .pages import markdown_to_html

    about = (read_json(folder / "artifacts" / "results" / "scores.json") or {}).get("about", {})
    return markdown_to_html(WORLDS[about["world"]]) if about.get("world") in WORLDS else ""


def claims(folder: Path) -> str:
    """Each claim of the paper with its verdict, and the numbers behind it."""
    rows = []
    for row in _result(folder, "claims"):
        css = row["verdict"] if row["verdict"] in ("holds", "contradicted") else ""
        values = [row[key] for key in ("number", "low", "high")]
        whole = all(value is not None and value == int(value) for value in values)
        rows.append(
            [
                f'<span class="verdict {css}">{_text(row["verdict"])}</span>',
                f"{_text(row['claim'])}<small>The paper: {_text(row['reported'])}</small>",
                f"{_interval(values, '.0f' if whole else '.1f')} {_text(row['what'])}"
                f"<small>Holds if: {_text(row['holds if'])}{_alone(row)}</small>",
            ]
        )
    return _table(["verdict", "claim", "this run"], rows, "claims")


def _alone(row: dict[str, Any]) -> str:
    """What one of a claim's tests says, where the claim as a whole says otherwise."""
    return f"; this test: {_text(row['test'])}" if row["test"] != row["verdict"] else ""


def counts(folder: Path) -> str:
    """The paper's numbers of captions beside ours."""
    rows = [
        [
            f"{_text(row['claim'])}<small>{_text(row['source'])}</small>",
            *(f"{float(row[whose]):,.0f}" for whose in ("reported", "ours")),
        ]
        for row in _csv(folder, "claims_dataset")
    ]
    return _table(["what", "the paper", "ours"], rows)


def headline(folder: Path, names: Iterable[str]) -> list[str]:
    """The figure that says most, or the run's first."""
    made = [path for name in names for path in done.outputs(name, folder) if path.startswith("figures/")]
    wanted = [f"figures/{name}.png" for name in HEADLINES]
    for path in sorted((p for p in made if p.endswith(".png")), key=[*wanted, *made].index):
        if (folder / path).is_file():
            return [_figure(folder, Path(path))]
    return []


def scores(folder: Path) -> str:
    """OA, VISOR and VISOR_Cond of each model with intervals, and the change of VISOR_Cond."""
    cells = {
        (row["objects"], row["model"], row["metric"]): row
        for row in _result(folder, "scores")
        if row["relation"] == "all"
    }
    changes = {
        (row["objects"], row["model"]): _interval([row[key] for key in ("difference", "low", "high")], "+.1f")
        for row in _result(folder, "changes")
        if row["relation"] == "all" and row["metric"] == "VISOR_Cond"
    }
    rows = []
    for objects, model in dict.fromkeys(key[:2] for key in cells):
        found = [cells.get((objects, model, metric), {}) for metric in MAIN]
        values = [_interval([row.get(key) for key in ("value", "low", "high")]) for row in found]
        chance = _interval([found[-1].get("chance")])
        rows.append([_text(objects), _text(model), *values, chance, changes.get((objects, model), "–")])
    heads = ["objects", "model", *MAIN, "chance of VISOR_Cond", "change of VISOR_Cond"]
    note = "<p>Percent, with 95 % intervals; the change is in points, paired by prompt.</p>"
    return _table(heads, rows) + note if rows else ""


def people(folder: Path) -> str:
    """How often each rule set agrees with a person on generated pictures."""
    rows = [
        [
            *(_text(row[key]) for key in ("detector", "rules", "pairs", "n")),
            *(
                _interval([float(row[name + end]) if row[name + end] else None for end in ("", "_low", "_high")], form)
                for name, form in (("agreement", ".1f"), ("kappa", ".2f"))
            ),
        ]
        for row in _csv(folder, "people_generated")
        if row["images"] == "all"
    ]
    return _table(["detector", "rules", "pairs", "pictures", "agreement, percent", "kappa"], rows)


def notebooks(folder: Path, names: Sequence[str], linked: Mapping[str, str] | None = None) -> str:
    """The notebooks, how each stands and how long it took; ``linked`` as in :func:`answer`."""
    rows = []
    for name, standing in standings(folder, names).items():
        page = f"notebooks/{name}.{'html' if standing.state in ('done', 'out of date') else 'ipynb'}"
        address = page if (folder / page).is_file() else None
        if linked is not None:
            address = linked.get(name)
        title = _text(profiles.title(name))
        link = f'<a href="{address}">{title}</a>' if address else title
        rows.append([link, standing.state, "–" if standing.minutes is None else f"{standing.minutes:.1f}"])
    return _table(["notebook", "state", "minutes"], rows)


def made_with(folder: Path) -> str:
    """Versions and machine."""
    said = [_text(f"{key} {', '.join(each)}") for key, each in versions(folder).items()]
    return f"<p>{' · '.join(said)}</p>" if said else ""


def versions(folder: Path) -> dict[str, list[str]]:
    """Versions and machine, from the results' provenance; where results differ in one, all are named."""
    values: dict[str, list[str]] = {}
    for path in sorted((folder / "artifacts" / "results").glob("*.json")):
        for key, value in ((read_json(path) or {}).get("provenance") or {}).items():
            shown = str(value)[:12] if key == "commit" else {True: "yes", False: "no"}.get(value, str(value))
            if value is not None and shown not in values.setdefault(key, []):
                values[key].append(shown)
    return values


# ------------------------------------------------------------------------------------------------ what has it made?


def section(name: str, folder: Path) -> list[str]:
    """What a notebook has made: figures as thumbnails, tables and files."""
    outputs = [path for path in map(Path, done.outputs(name, folder)) if (folder / path).exists()]
    if not outputs and not (folder / "notebooks" / f"{name}.html").is_file():
        return []
    tables, figures = [], []
    for path in outputs:
        if path.suffix == ".png" and path.parts[0] == "figures":
            figures.append(_figure(folder, path, f" ({_links(path, 'png', 'pdf')})"))
        elif path.suffix == ".md" and path.parts[0] == "tables":
            caption = _text((folder / path).read_text(encoding="utf-8").splitlines()[0].strip("*"))
            tables.append(f"<li>{caption} ({_links(path, 'csv', 'md', 'tex')})</li>")
    made = [f'<a href="{quote(str(path))}">{_text(path.name)}</a>' for path in outputs if path.parts[0] == "artifacts"]
    return [
        f"<h2>{_text(profiles.title(name))}</h2>",
        *(['<div class="figures">', *figures, "</div>"] if figures else []),
        *(["<h3>Tables</h3>\n<ul>", *tables, "</ul>"] if tables else []),
        *([f"<h3>Files</h3>\n<p>{' · '.join(made)}</p>"] if made else []),
    ]


def _links(path: Path, *suffixes: str) -> str:
    made = [path.with_suffix(f".{suffix}") for suffix in suffixes]
    return " · ".join(f'<a href="{quote(str(file))}">{file.suffix[1:].upper()}</a>' for file in made)


def _figure(folder: Path, path: Path, more: str = "") -> str:
    with Image.open(folder / path) as image:
        caption = _text(image.info.get("Description", path.stem))
    address = quote(str(path))
    return (
        f'<figure><a href="{address}"><img src="{address}" alt="{caption}" loading="lazy"></a>'
        f"<figcaption>{caption}{more}</figcaption></figure>"
    )


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
    shown = f"{number} [{', '.join(interval)}]" if len(interval) == 2 else number
    return f'<span class="number">{shown}</span>'


def _text(value: object) -> str:
    return html.escape(str(value))


def _paragraph(text: str) -> str:
    return f"<p>{_text(text)}</p>"


def _titled(title: str, body: str) -> list[str]:
    return [f"<h2>{_text(title)}</h2>", body] if body else []


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]], css: str = "") -> str:
    """A table that scrolls by itself where it is too wide; cells are HTML. Nothing where there are no rows."""
    if not rows:
        return ""
    head = "".join(f"<th>{_text(name)}</th>" for name in heads)
    body = "\n".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows)
    return f'<div class="wide"><table class="{css}"><thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody></table></div>'
