"""Processes that start at once, with all imports done: a fork of one that has imported everything and run nothing."""

import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path


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


def tree(folder: Path, *without: str) -> dict[str, bytes]:
    """All files below a folder, hidden ones, too, but for those of some names."""
    found = (path for path in sorted(folder.rglob("*")) if path.is_file() and not {*path.parts} & {*without})
    return {str(path.relative_to(folder)): path.read_bytes() for path in found}
