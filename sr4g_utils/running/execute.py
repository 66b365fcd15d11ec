"""Executing notebooks, and what a run reports at its end."""

import contextlib
import logging
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from ..evaluation.judges import MEDIAN
from ..evaluation.score import Score, of_run
from ..evaluation.scores import MAIN
from ..store import files
from ..store.files import read_json
from . import crate, done, index, pages, profiles
from .done import outputs

# No advice about the kernel's transport, no word that it was interrupted before its end, nor a traceback when a kernel
# that goes loses its sockets before its last word
KERNEL = [
    "--log-level=CRITICAL",
    "--IPKernelApp.exec_lines=__import__('logging').getLogger('tornado.general').setLevel('CRITICAL')",
]


def run(names: list[str], profile: dict[str, dict[str, Any]], folder: Path, force: bool) -> dict[str, float | None]:
    """Run notebooks; the seconds that each took, None for those of which nothing has changed."""
    log(folder / "run.log")
    took: dict[str, float | None] = {}
    try:
        for number, name in enumerate(names, 1):
            head = f"[{number}/{len(names)}] {name}"
            if not force and done.is_done(name, profile[name], folder):
                print(f"{head}: nothing changed, skipped")
                took[name] = None
                continue
            began = time.monotonic()
            if changed := done.replaced(name, profile[name], folder):
                print(f"{head}: replaces its last run there; changed: {', '.join(changed)}. --runs DIR keeps both")
            before = done.start(name, folder)
            if changed:  # where this run fails, the last one's numbers must not stand for its own
                done.clear(before, folder)
            (folder / crate.NAME).unlink(missing_ok=True)  # it tells of a run that ended
            index.write_index(folder, profile)  # a run that is killed has said that it is unfinished
            notebook = execute(name, profile[name], folder, head)
            there = [n for n in profile if n in names or (notebook.with_name(f"{n}.html")).is_file()]
            written = [notebook, pages.to_html(notebook, there)]
            done.finish(name, profile[name], folder, also=written, before=before)
            took[name] = time.monotonic() - began
            print(f"{head}: done in {took[name]:.0f} s", flush=True)
    except BaseException:
        with contextlib.suppress(OSError):  # a full disk is said once
            index.write_index(folder, profile)
        with contextlib.suppress(Exception):  # what ended the run is what its user has to read
            crate.write_crate(folder, profile)
        raise
    index.write_index(folder, profile)
    crate.write_crate(folder, profile)
    return took


def log(path: Path) -> None:
    """papermill and the notebooks' own output go to the run's log file; the screen shows progress."""
    logger = logging.getLogger("papermill")
    logger.setLevel(logging.DEBUG)
    logger.propagate = False
    logger.handlers = [logging.FileHandler(path, encoding="utf-8")]
    logger.handlers[0].setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logging.raiseExceptions = False  # a full disk is said once, by the run


def execute(name: str, parameters: dict[str, Any], folder: Path, head: str) -> Path:
    """Execute a notebook with papermill and return the executed one, which is kept also when it fails.

    Raises:
        RuntimeError: a cell failed, the kernel died or the disk is full; the message names notebook, cell and error.
        KeyboardInterrupt: Ctrl-C; the message names notebook and cell.
    """
    import papermill  # imports half of Jupyter: not for --help

    output = folder / "notebooks" / f"{name}.ipynb"
    output.parent.mkdir(parents=True, exist_ok=True)
    set_environment()
    at = [0]
    own = tempfile.mkdtemp()
    try:
        papermill.execute_notebook(
            *(str(path).replace("{", "{{").replace("}", "}}") for path in (profiles.notebooks()[name], output)),
            profiles.for_cell(name, parameters),
            kernel_name="python3",
            kernel_manager_class=own_kernel(),
            cwd=profiles.NOTEBOOKS,
            progress_bar={"desc": head, "file": sys.stderr},
            log_output=True,
            stderr_file=sys.stderr,  # a stage's own progress
            on_cell_start=lambda cell_index, **_: at.append(cell_index + 1),
            extra_arguments=[*KERNEL, f"--ipython-dir={own}"],
        )
        profiles.tidy(output)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"{name}, cell {at[-1]}") from None
    except Exception as error:
        problem = f"{type(error).__name__}: {error}"  # the kernel died, or the disk is full
        if isinstance(error, papermill.PapermillExecutionError):
            problem = f"{error.ename}: {error.evalue}"
        raise RuntimeError(f"{name}, cell {at[-1]}: {problem}\nSee {output}") from error
    finally:
        shutil.rmtree(own, ignore_errors=True)
    return output


def set_environment() -> None:
    """What a kernel finds: this checkout, whatever else is installed, and nothing that was set for other work."""
    os.environ["PYTHONPATH"] = os.pathsep.join([str(files.ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    files.hush_advice()
    os.environ.pop("PYTHONSTARTUP", None)
    os.environ.update(MATPLOTLIBRC=os.devnull, LC_ALL="C.UTF-8", PYTHONUTF8="1")
    os.environ.setdefault("PYTHONWARNINGS", "ignore:IProgress not found")  # tqdm's, of a widget we do not use
    files.share_cores()


def own_kernel() -> type:
    """What starts kernels of this very Python, whatever kernel somebody has installed under the name of python3."""
    from jupyter_client.kernelspec import KernelSpecManager
    from jupyter_client.manager import AsyncKernelManager
    from traitlets import default

    class OwnKernel(AsyncKernelManager):
        @default("kernel_spec_manager")
        def _only_ours(self) -> KernelSpecManager:
            return KernelSpecManager(kernel_dirs=[], parent=self)  # what is left is this Python's

    return OwnKernel


def report(folder: Path, notebooks: dict[str, float | None]) -> dict[str, Any]:
    """The end of a run as one record: folder, index, notebooks (of each, its state, run or skipped, and its seconds),
    seconds, made (how many tables, figures and artifacts lie there), and headline (the change of VISOR_Cond of each
    model of notebook 04 with its interval, and the same by the median of several judges).

    Args:
        notebooks: the seconds that each took, in order; None for those that were skipped.
    """
    files = {file for name in notebooks for file in outputs(name, folder) if (folder / file).exists()}
    sums = {part: len({Path(f).with_suffix("") for f in files if f.startswith(part)}) for part in ("tables", "figures")}
    sums["artifacts"] = sum(file.startswith("artifacts") for file in files)
    seconds = sum(took for took in notebooks.values() if took is not None)
    states = {
        name: {"state": "skipped" if took is None else "run", "seconds": took or 0.0}
        for name, took in notebooks.items()
    }
    scores = read_json(folder / "artifacts" / "results" / "scores.json") if "04_evaluation" in notebooks else None
    return {"folder": str(folder), "index": str(folder / "index.html"), "notebooks": states, "seconds": seconds,
            "made": sums, "headline": _headline(folder) if "04_evaluation" in notebooks else [],
            "scores": [_score(*key, score) for key, score in (of_run(scores) if scores else {}).items()]}  # fmt: skip


def _headline(folder: Path) -> list[dict[str, Any]]:
    """The change of VISOR_Cond of each model and set of objects by the first judge, and by the median of all if there
    are several: its value and interval."""
    changes, judges = (
        (read_json(folder / "artifacts" / "results" / f"{name}.json") or {"rows": []})["rows"]
        for name in ("changes", "judges")
    )
    medians = {
        (row["model"], row["objects"]): [row[name] for name in ("gain", "gain_low", "gain_high")]
        for row in judges
        if (row["judge"], row["metric"]) == (MEDIAN, "VISOR_Cond")
    }
    keys = ("model", "objects", "metric", "before", "after", "difference", "low", "high")
    return [
        {**{key: row[key] for key in keys}, "median": medians.get((row["model"], row["objects"]))}
        for row in changes
        if (row["relation"], row["metric"]) == ("all", "VISOR_Cond")
    ]


def _score(objects: str, model: str, score: Score) -> dict[str, Any]:
    """A model's main scores over all relations with their counts and chance, who judged them, and a line to cite."""
    rows = score.to_json()["scores"]
    keys = ("metric", "value", "low", "high", "count", "of", "chance")
    main = [{key: row[key] for key in keys} for row in rows if row["relation"] == "all" and row["metric"] in MAIN]
    return {"objects": objects, "model": model, "scores": main, "judged": score.judged, "cite": score.cite()}


def in_words(record: dict[str, Any]) -> str:
    """The record in plain words, a few lines."""
    run = [name for name, about in record["notebooks"].items() if about["state"] == "run"]
    made = ", ".join(f"{number} {part if number != 1 else part[:-1]}" for part, number in record["made"].items())
    lines = [f"{len(run)} of {len(record['notebooks'])} notebooks run in {record['seconds'] / 60:.1f} min: {made}."]
    for row in record["headline"]:
        ends = "no interval" if row["low"] is None else f"95 % interval {row['low']:+.1f} to {row['high']:+.1f}"
        if (median := row["median"]) is not None and None not in median:
            ends += "; by the median of the judges {:+.1f}, {:+.1f} to {:+.1f}".format(*median)
        if row["difference"] is not None:
            scores = f"{row['before']:.1f} → {row['after']:.1f}, {row['difference']:+.1f} points ({ends})"
            lines.append(f"{row['model']}, {row['objects']} objects: VISOR_Cond {scores}.")
    for score in record["scores"] if len({score["model"] for score in record["scores"]}) == 1 else ():
        chance = next(row["chance"] for row in score["scores"] if row["metric"] == "VISOR_Cond")
        luck = "" if chance is None else f"; chance of VISOR_Cond: {chance:.1f}"
        lines.append(f"{score['model']}, {score['objects']} objects: {score['cite']}{luck}")
    return "\n".join([*lines, f"Done. Open {record['index']}"])
