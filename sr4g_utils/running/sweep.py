"""Sweeps: a run for every combination of some parameters' values, each in a process and a folder of its own.

Each run has a profile beside its folder, so that it can be repeated alone. Stages that several runs need are
made once (:mod:`sr4g_utils.store.run`). Runs on a cluster go through submitit.
"""

import os
import re
import signal
import subprocess
import sys
import time
from argparse import Namespace
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import yaml

from ..store.files import ROOT, hash_of, lock, read_json, write_text
from . import cluster, plan, profiles
from .done import is_done


def grid(sweeps: Sequence[str]) -> dict[str, list[str]]:
    """The product of ``KEY=VALUE,VALUE,…``: each combination's settings, as ``--set`` takes them, by its run's name.

    Raises:
        ValueError: no values, an empty one, or a key or value that occurs twice.
    """
    axes: dict[str, list[str]] = {}
    for sweep in sweeps:
        key, equals, text = sweep.partition("=")
        values = _values(text)
        if not equals or not key or not all(values):
            raise ValueError(f"--sweep {sweep}: expected [NOTEBOOK.]KEY=VALUE,VALUE,… with no value empty")
        if key in axes:
            raise ValueError(f"--sweep {sweep}: {key} is swept already; give all its values at once")
        if twice := [value for i, value in enumerate(values) if value in values[:i]]:
            raise ValueError(f"--sweep {sweep}: the value {twice[0]} occurs twice")
        axes[key] = values
    points = [[f"{k}={v}" for k, v in zip(axes, point, strict=True)] for point in product(*axes.values())]
    return {_name(settings): settings for settings in points}


def _values(text: str) -> list[str]:
    """What stands between the commas that are outside brackets and quotation marks."""
    parts, depth, quote = [""], 0, ""
    for c in text:
        depth += (c in "[{(") - (c in ")}]") if not quote else 0
        quote = "" if c == quote else c if c in "\"'" and not quote else quote
        if c == "," and not depth and not quote:
            parts.append("")
        else:
            parts[-1] += c
    return [value.strip() for value in parts]


def _name(settings: Sequence[str]) -> str:
    """A folder's name that tells the settings; with a hash of them where it cannot tell all."""
    text = ",".join(settings)
    name = re.sub(r"[^\w.,=+-]+", "_", text)[:80]
    return name if name == text else f"{name}-{hash_of(list(settings))[:6]}"


def write_profiles(profile: str, settings: list[str], points: Mapping[str, list[str]], folder: Path) -> dict[str, Path]:
    """A profile ``folder/NAME.yaml`` for each run, with all its parameters: its path by the run's name.

    Raises:
        ValueError: as :func:`profiles.load_profile`, before anything is written.
    """
    texts = {}
    about = profiles.read_profile(profile)[1].get("plan")
    for name, own in points.items():
        values: dict[str, Any] = profiles.load_profile(profile, settings, folder / name, own)
        for notebook in values.values():
            del notebook["run_folder"]
        values |= {"plan": about} if about else {}
        texts[name] = f"# {Path(profile).stem} with {', '.join(own)}\n{yaml.safe_dump(values, sort_keys=False)}"
    for name, text in texts.items():
        write_text(folder / f"{name}.yaml", text)
    return {name: folder / f"{name}.yaml" for name in texts}


def command(profile: Path, options: Sequence[str] = ()) -> list[str]:
    """What runs a profile of :func:`write_profiles`, in the folder of its name beside it."""
    where = ["--profile", str(profile), "--runs", str(profile.parent)]
    return [sys.executable, str(ROOT / "run_all.py"), *where, *options]


def environment(folder: Path, jobs: int = 1) -> dict[str, str]:
    """The environment of a sweep's runs: where they share stages, and how many threads each may use."""
    threads = {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // jobs))} if jobs > 1 else {}
    return {**threads, **os.environ, "SR4G_STAGES": str(folder / ".stages")}


def run(
    commands: Mapping[str, Sequence[str]], folder: Path, jobs: int, say: Callable[[str], None], held: int
) -> dict[str, str]:
    """Run commands, ``jobs`` at a time, each with its output in ``folder/NAME.txt``: those that failed, and why.

    The processes keep ``held``, the descriptor of the sweep's lock: a sweep that is killed leaves its runs at work, and
    nobody starts them a second time. A KeyboardInterrupt goes on after the runs at work were asked to stop and did.
    """
    waiting, failed, took = list(commands), {}, []
    shown: dict[str, str] = {}  # by run, how far it is
    at_work: dict[str, tuple[subprocess.Popen[bytes], float]] = {}
    options: dict[str, Any] = {"env": environment(folder, jobs), "start_new_session": True, "pass_fds": [held]}
    try:
        while waiting or at_work:
            while waiting and len(at_work) < jobs:
                name = waiting.pop(0)
                say(f"{name}: started; output {folder / name}.txt")
                with (folder / f"{name}.txt").open("w") as output:
                    process = subprocess.Popen(commands[name], stdout=output, stderr=subprocess.STDOUT, **options)
                at_work[name] = process, time.monotonic()
            time.sleep(0.1)
            for name, (process, began) in list(at_work.items()):
                if process.poll() is None:
                    if (at := standing(folder / f"{name}.txt")) != shown.get(name, ""):
                        say(f"{name}: {at}")
                    shown[name] = at
                    continue
                del at_work[name]
                took.append(time.monotonic() - began)
                left = len(waiting) + len(at_work)
                rest = f"; {left} left, some {sum(took) / len(took) * left / jobs / 60:.1f} min" if left else ""
                say(f"{name}: {'failed' if process.returncode else 'done'} in {took[-1]:.0f} s{rest}")
                if process.returncode:
                    failed[name] = cluster.reason(folder / f"{name}.txt")
    finally:
        for process, _ in at_work.values():
            process.send_signal(signal.SIGTERM)
        for process, _ in at_work.values():
            process.wait()
    return failed


def standing(output: Path) -> str:
    """How far a run is, of its output's end: "[2/5] 02_dataset"; "" if no notebook has begun."""
    with output.open("rb") as file:
        file.seek(max(0, output.stat().st_size - 8192))
        marks = re.findall(rb"\[\d+/\d+\] [0-9a-z_]+(?=:)", file.read())
    return marks[-1].decode() if marks else ""


def tell(args: Namespace, points: Mapping[str, list[str]], folder: Path) -> None:
    """Print the grid: each run, how much of it is done, and its hours as far as somebody has measured them."""
    notes = profiles.read_profile(args.profile)[1].get("plan") or {}
    whole = profiles.run_folder(args.runs, args.profile)
    alone = measured_minutes(whole, profiles.load_profile(args.profile, args.settings, whole))
    total: dict[str, float] = {}
    for name, own in points.items():
        profile = profiles.load_profile(args.profile, args.settings, folder / name, own)
        done = sum(is_done(notebook, values, folder / name) for notebook, values in profile.items())
        minutes = measured_minutes(folder / name)
        hours = plan.hours(profile, notes) or {}
        if minutes is None and alone is not None and not hours:
            hours = {f"as {Path(args.profile).stem} took in {args.runs}": alone / 60}
        texts = [f"{value:,.2f} h, {where}" for where, value in hours.items()]
        texts = [f"{minutes:.1f} min when it ran"] if minutes is not None else texts or ["hours not measured"]
        print(f"{name}: {done} of {len(profile)} notebooks done; {'; '.join(texts)}")
        for where, value in hours.items():
            total[where] = total.get(where, 0.0) + value
    print(f"{len(points)} runs in {folder}; stages that several need are made once")
    for where, value in total.items():
        print(f"  {value:,.2f} h in all, {where}, if nothing were shared")


def measured_minutes(folder: Path, notebooks: Iterable[str] = ()) -> float | None:
    """How long a run's notebooks took, as papermill noted when it last executed each; None where it never did, or where
    one of ``notebooks`` is not finished."""
    executed = {path.stem: read_json(path) or {} for path in sorted((folder / "notebooks").glob("*.ipynb"))}
    about = {name: notebook.get("metadata", {}).get("papermill", {}) for name, notebook in executed.items()}
    seconds = {name: own["duration"] for name, own in about.items() if own.get("duration")}
    return sum(seconds.values()) / 60 if seconds and set(notebooks) <= set(seconds) else None


def main(args: Namespace, options: Sequence[str]) -> tuple[int, list[Path]]:
    """``run_all.py --sweep``: its exit status, and the folders of the runs that are finished.

    Args:
        args: the program's arguments profile, settings, sweep, runs, jobs, on, job and dry_run.
        options: what is handed on to each run.

    Raises:
        ValueError: a sweep, value or option that cannot be. BlockingIOError: the sweep is at work already.
    """
    points = grid(args.sweep)
    folder = args.runs.expanduser().resolve() / f"{Path(args.profile).stem}_sweep"
    if args.on:
        cluster.checked(args.job, folder)
    if args.dry_run:
        tell(args, points, folder)
        return 0, []
    held = lock(folder / ".lock")
    paths = write_profiles(args.profile, args.settings, points, folder)
    commands = {name: command(path, options) for name, path in paths.items()}
    if args.on:
        jobs = cluster.submit(commands, folder, args.on, args.jobs, args.job)
        if args.on != "local":
            for name, job in jobs.items():
                print(f"{name}: job {job.job_id}, output {folder / name}.txt")
            print(f"{len(jobs)} jobs submitted; when they are through: run_all.py --summary {folder} names those lost")
            return 0, []
        failed = cluster.failures(jobs, folder)
    else:
        failed = run(commands, folder, args.jobs or 1, lambda text: print(text, flush=True), held.fileno())
    for name, why in failed.items():
        print(f"run_all.py: {name} failed: {why}", file=sys.stderr)
    return int(bool(failed)), [folder / name for name in points if name not in failed]
