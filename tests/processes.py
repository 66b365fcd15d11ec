"""Processes that start at once, with all imports done: a fork of one that has imported everything and run nothing."""

import importlib
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any


def prepare(*modules: str) -> None:
    """Import modules, with all that they import, before the forks."""
    os.environ["OMP_NUM_THREADS"] = "1"
    for module in (*modules, "models.detectors"):
        importlib.import_module(f"sr4g_utils.{module}")


def models(at: Path) -> None:
    """A pipeline and a detector, tiny ones: in a process of its own, as it runs torch."""
    import tiny

    tiny.stable_diffusion(at / "sd")
    tiny.owlvit(at / "owlvit")


def fork(work: Callable[[], object], log: Path) -> int:
    """Start ``work`` in a process of its own, whose output goes to a file; its number. It ends with 0 or 1."""
    if process := os.fork():
        return process
    try:
        os.setsid()
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(output, 1)
        os.dup2(output, 2)
        work()
        status = 0
    except BaseException:
        traceback.print_exc()
        status = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def wait(process: int) -> int:
    """The exit status of a process; minus the signal's number if one has ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def until(holds: Callable[[], Any], seconds: float = 300) -> Any:
    """What a condition gives, once it holds: generous, for a machine that is busy with other tests."""
    end = time.monotonic() + seconds
    while not (found := holds()):
        assert time.monotonic() < end, f"still not so after {seconds} seconds"
        time.sleep(0.02)
    return found


def kill(command: list[str], when: Callable[[], Any]) -> None:
    """Start a command, and kill it once a condition holds (or it is done just before)."""
    process = subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, stderr=subprocess.DEVNULL)
    while process.poll() is None and not when():
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    assert process.wait() in (-signal.SIGKILL, 0)


def tree(folder: Path, *without: str) -> dict[str, bytes]:
    """All files below a folder, hidden ones, too, but for those of some names."""
    found = (path for path in sorted(folder.rglob("*")) if path.is_file() and not {*path.parts} & {*without})
    return {str(path.relative_to(folder)): path.read_bytes() for path in found}
