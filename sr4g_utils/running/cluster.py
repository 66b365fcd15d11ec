"""Runs as jobs of a cluster, through submitit: an array that is requeued when its time is up."""

import builtins
import os
import re
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..store import files
from ..store.files import ROOT
from ..store.settings import in_words


class Job:
    """A run as submitit wants it: to be called, and to be asked what to submit again when its time is up."""

    def __init__(self, command: Sequence[str], output: Path, environment: Mapping[str, str]) -> None:
        self.command, self.output, self.environment = list(command), output, dict(environment)

    def __call__(self) -> None:
        environment = os.environ | self.environment
        with self.output.open("w") as output:
            done = subprocess.run(self.command, env=environment, stdout=output, stderr=subprocess.STDOUT)
        if done.returncode:
            raise RuntimeError(reason(self.output))

    def checkpoint(self) -> Any:
        """The same again: it goes on where it was."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


LIMIT = 24 * 60  # minutes that a job has; submitit gives a local one two
AGAIN = 20  # how often a job goes on when its time is up; submitit allows three


def checked(options: Sequence[str], folder: Path) -> dict[str, Any]:
    """The options of a sweep's jobs by name; arguments and errors as in :func:`submit`, which need no cluster."""
    try:
        import submitit
    except ImportError:
        raise ValueError("--on needs submitit: pip install 'sr4g_utils[cluster]', or pip install submitit") from None
    values: dict[str, Any] = {"timeout_min": LIMIT}
    for option in options:
        key, equals, text = option.partition("=")
        if not equals:
            raise ValueError(f"--job {option}: expected KEY=VALUE of submitit's executor, such as timeout_min=600")
        values[key] = files.read_setting(text)
        try:
            submitit.AutoExecutor(folder / ".submitit", cluster="debug").update_parameters(**{key: values[key]})
        except (NameError, AssertionError, TypeError) as error:
            problem = str(error).splitlines()[0]
            problem = re.sub(r"type .*<class '(\w+)'>\)?", lambda found: in_words(getattr(builtins, found[1])), problem)
            raise ValueError(f"--job {option}: {problem}") from None
    return values


def submit(
    commands: Mapping[str, Sequence[str]], folder: Path, where: str, jobs: int | None, options: Sequence[str]
) -> dict[str, Any]:
    """Submit commands as jobs, requeued when they are preempted or run out of time: submitit's by name.

    Args:
        where: "slurm", an array; or "local" for processes of this machine, which are waited for.
        jobs: how many run at a time; None for as many as the cluster gives, and for one on this machine.
        options: ``KEY=VALUE`` of submitit's executor, such as ``timeout_min=600`` or ``slurm_partition=gpu``.

    Raises:
        ValueError: submitit is not installed, there is no such cluster, or it does not know an option.
    """
    values = checked(options, folder)
    import submitit

    if jobs and where == "slurm":
        values["slurm_array_parallelism"] = jobs
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    shared = {"SR4G_STAGES": str(folder / ".stages")}
    work = {name: Job(line, folder / f"{name}.txt", shared) for name, line in commands.items()}
    try:
        executor = submitit.AutoExecutor(folder / ".submitit", cluster=where, **{f"{where}_max_num_timeout": AGAIN})
        executor.update_parameters(name="sr4g", **values)
        limit = values["timeout_min"]
        print(f"a job has {limit} min (--job timeout_min=…), and goes on up to {AGAIN} times when they are over")
        if where == "local":
            return _run_here(executor, work, jobs or 1)
        with executor.batch():
            return {name: executor.submit(job) for name, job in work.items()}
    except (RuntimeError, NameError, ValueError, TypeError, AssertionError) as error:
        raise ValueError(f"--on {where}: {' '.join(str(error).split())}") from None


def _run_here(executor: Any, work: Mapping[str, Job], most: int) -> dict[str, Any]:
    """Jobs on this machine, ``most`` at a time, until all are through: submitit would start all of them at once."""
    started: dict[str, Any] = {}

    def wait(left: int) -> None:
        while sum(not job.done() for job in started.values()) > left:
            time.sleep(0.2)

    try:
        for name, job in work.items():
            wait(most - 1)
            started[name] = executor.submit(job)
            print(f"{name}: job {started[name].job_id}, output {job.output}", flush=True)
        wait(0)
    except KeyboardInterrupt:
        for job in started.values():
            job.cancel()
        raise
    return started


def failures(jobs: Mapping[str, Any], folder: Path) -> dict[str, str]:
    """Why each job that is through failed; one that was lost or whose time was up too often has no result."""
    failed = {}
    for name, job in jobs.items():
        if (error := job.exception()) is not None:
            output = folder / f"{name}.txt"
            ended = isinstance(error, RuntimeError) or not output.is_file()
            failed[name] = " ".join(str(error).split()) if ended else f"its job was lost; {reason(output)}"
    return failed


def reason(output: Path) -> str:
    """Why a run failed: its own last word, or the last line that it wrote."""
    lines = [line for line in output.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    errors = [line.removeprefix("run_all.py: ") for line in lines if line.startswith("run_all.py: ")]
    return f"{(errors or lines or ['no word'])[-1]} (all of it: {output})"
