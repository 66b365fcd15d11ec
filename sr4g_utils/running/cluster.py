"""Runs as jobs of a cluster, through submitit: an array that is requeued when its time is up."""

import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..store import files
from ..store.files import ROOT


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


def submit(
    commands: Mapping[str, Sequence[str]], folder: Path, where: str, jobs: int | None, options: Sequence[str]
) -> dict[str, Any]:
    """Submit commands as an array of jobs, requeued when they are preempted or run out of time: submitit's by name.

    Args:
        where: "slurm", or "local" for processes of this machine.
        jobs: how many run at a time; None for as many as the cluster gives.
        options: ``KEY=VALUE`` of submitit's executor, such as ``timeout_min=600`` or ``slurm_partition=gpu``.

    Raises:
        ValueError: submitit is not installed, there is no such cluster, or it does not know an option.
    """
    try:
        import submitit
    except ImportError:
        raise ValueError("--on needs submitit: pip install 'sr4g_utils[cluster]', or pip install submitit") from None
    values = {}
    for option in options:
        key, equals, text = option.partition("=")
        if not equals:
            raise ValueError(f"--job {option}: expected KEY=VALUE of submitit's executor, such as timeout_min=600")
        values[key] = files.read_setting(text)
    if jobs and where == "slurm":
        values["slurm_array_parallelism"] = jobs
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    try:
        executor = submitit.AutoExecutor(folder / ".submitit", cluster=where)
        executor.update_parameters(name="sr4g", **values)
        shared = {"SR4G_STAGES": str(folder / ".stages")}
        with executor.batch():
            array = [executor.submit(Job(line, folder / f"{name}.txt", shared)) for name, line in commands.items()]
    except (RuntimeError, NameError, ValueError, TypeError, AssertionError) as error:
        raise ValueError(f"--on {where}: {' '.join(str(error).split())}") from None
    return dict(zip(commands, array, strict=True))


def reason(output: Path) -> str:
    """Why a run failed: its own last word, or the last line that it wrote."""
    lines = [line for line in output.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    errors = [line.removeprefix("run_all.py: ") for line in lines if line.startswith("run_all.py: ")]
    return f"{(errors or lines or ['no word'])[-1]} (all of it: {output})"
