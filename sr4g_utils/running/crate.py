"""A run as a Workflow Run RO-Crate 0.5 (https://w3id.org/ro/wfrun/workflow/0.5): what ran, when, on what, to what end.

All of it comes from what a run leaves anyway: executed notebooks, the records of what they read and wrote, and the
results' provenance. The workflow is ``run_all.py``, which is copied beside it; each notebook is an action of its own.
"""

import json
import shutil
from collections.abc import Collection
from datetime import datetime
from pathlib import Path
from typing import Any

from .. import __version__
from ..store.files import ROOT, atomic, read_json, write_json
from . import index, profiles

NAME = "ro-crate-metadata.json"
PROFILES = ("ro/wfrun/process/0.5", "ro/wfrun/workflow/0.5", "workflowhub/workflow-ro-crate/1.0")
TYPES = {bool: "Boolean", int: "Integer", float: "Float", str: "Text"}  # another type's value stands there as JSON
TERMS = "The project's own work: Apache-2.0. What was made from others' data or models keeps their terms as well."


def write_crate(folder: Path, names: Collection[str]) -> None:
    """Write a run's ``ro-crate-metadata.json``, if rocrate is installed; ``names`` are its profile's notebooks."""
    try:
        from rocrate.rocrate import ComputerLanguage, ROCrate
    except ImportError:
        return
    ran = {name: standing for name, standing in index.standings(folder, names).items() if standing.state != "not run"}
    crate, versions = ROCrate(version="1.1"), index.versions(folder)  # RO-Crate 1.1 is what the profile builds on
    python = crate.add(ComputerLanguage(crate, "https://www.python.org/", {"name": "Python"}))
    flow = crate.add_workflow(folder / "run_all.py", "run_all.py", main=True, lang=python)
    flow["name"], flow["version"] = "SR4G", ", ".join(versions.get("commit", [__version__]))
    for name in [name for name in versions if name not in ("commit", "pinned", "machine")]:
        about = {"name": name, "softwareVersion": ", ".join(versions[name])}
        flow.append_to("softwareRequirements", _entity(crate, f"#{name}", "SoftwareApplication", **about))
    acts = [_act(crate, flow, folder, name, standing) for name, standing in ran.items()]
    products = {part.id: part for act in acts for part in [act["instrument"], *act.get("result", [])]}
    used = {part.id: part for act in acts for part in act.get("object", []) if part.id not in products}
    times = sorted(act[key] for act in acts for key in ("startTime", "endTime") if key in act)
    if not times:  # nothing has begun
        return
    title, errors = f"{len(ran)} of {len(names)} notebooks of {folder.name}", [a["error"] for a in acts if "error" in a]
    how = _how(title, [times[0], times[-1]], "; ".join(errors))
    acts.append(crate.add_action(flow, "#run", [*used.values()], [*products.values()], how))
    crate.name, crate.datePublished, crate.root_dataset["mentions"] = f"SR4G: {title}", times[-1], acts
    crate.description = "Parameters, executed notebooks, and the tables, figures and files that they made."
    crate.license = _entity(crate, "#terms", "CreativeWork", name=TERMS)
    for name in PROFILES:
        about = {"name": name, "version": name.rpartition("/")[2]}
        crate.root_dataset.append_to("conformsTo", _entity(crate, f"https://w3id.org/{name}", "CreativeWork", **about))
    with atomic(folder / "run_all.py") as partial:
        shutil.copyfile(ROOT / "run_all.py", partial)
    write_json(folder / NAME, crate.metadata.generate())


def _act(crate: Any, flow: Any, folder: Path, name: str, standing: index.Standing) -> Any:
    """A notebook's action: its parameters and what it read are its objects, what it wrote is its result."""
    executed = read_json(folder / "notebooks" / f"{name}.ipynb")
    record, about = read_json(folder / ".state" / f"{name}.files.json") or {}, executed["metadata"].get("papermill", {})
    objects: list[Any] = []
    for key, (_, default) in profiles.declared_in(executed["cells"]).items():
        if key != "run_folder":  # which is the crate itself
            value, id = profiles.injected(executed).get(key, default), f"{name}.{key}"
            slot = crate.add_formal_parameter(id, TYPES.get(type(value), "PropertyValue"), f"#{id}-parameter")
            item = {"name": id, "value": value if type(value) in TYPES else json.dumps(value), "exampleOfWork": slot}
            objects.append(_entity(crate, f"#{id}", "PropertyValue", **item))
            slot["workExample"] = objects[-1]
            flow.append_to("input", slot)
    for path, digest in record.get("inputs", {}).items():  # what is no part of the run is told by its content
        item = {"name": Path(path).name, "identifier": digest}
        ours = Path(path).is_relative_to(folder) and Path(path).exists()
        objects.append(_part(crate, folder, path) if ours else _entity(crate, f"#{digest}", "CreativeWork", **item))
    error = "" if standing.state in ("done", "out of date") else f"{name}: {standing.why}"
    outputs = [*record.get("outputs", []), *([] if error else [f"notebooks/{name}.html"])]
    results = [_part(crate, folder, path) for path in outputs if (folder / path).exists()]
    flow.append_to("hasPart", tool := _part(crate, folder, f"notebooks/{name}.ipynb", ["File", "SoftwareSourceCode"]))
    times = [datetime.fromisoformat(time) for time in map(about.get, ("start_time", "end_time")) if time]
    how = _how(profiles.title(name), [time.isoformat(timespec="milliseconds") for time in times], error)
    return crate.add_action(tool, f"#{name}", objects, results, how)


def _how(name: str, times: list[str], error: str) -> dict[str, Any]:
    status = f"http://schema.org/{'Failed' if error else 'Completed'}ActionStatus"
    when = dict(zip(("startTime", "endTime"), times, strict=False))  # a notebook that was killed has no end
    return {"name": name, "actionStatus": status, **when} | ({"error": error} if error else {})


def _part(crate: Any, folder: Path, path: str, kind: str | list[str] = "") -> Any:
    """A file or folder of the run; what is in a folder is not listed."""
    at = folder / path
    about = {"name": at.name, "@type": kind or ("Dataset" if at.is_dir() else "File")}
    return (crate.add_dataset if at.is_dir() else crate.add_file)(at, at.relative_to(folder), properties=about)


def _entity(crate: Any, id: str, kind: str, **about: Any) -> Any:
    return crate.get(id) or crate.add_jsonld({"@id": id, "@type": kind, **about})
