#!/usr/bin/env bash
# nbgrader: a right answer earns nothing if a library warns.
#
# Expected: a test cell that raises nothing has passed.
# Happens: whatever it writes to stderr makes it fail: numpy's RuntimeWarning, a DeprecationWarning, a progress bar.
# Two students with the same answer get other grades on other versions of a library.
# Seen with nbgrader 0.9.6, Python 3.11:
#     without output 2.0 of 2, with a warning on stderr 0 of 2
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
venv=${FINDINGS_VENV:-$work/venv}
[ -x "$venv/bin/python" ] || python3 -m venv "$venv"
"$venv/bin/pip" install --quiet --disable-pip-version-check nbgrader==0.9.6
"$venv/bin/python" -I - <<'PY'
import nbformat
from nbgrader.utils import determine_grade


def points(*outputs: dict) -> float:
    cell = nbformat.v4.new_code_cell("assert answer == 4")
    cell.metadata["nbgrader"] = {"grade": True, "solution": False, "locked": True, "points": 2, "grade_id": "a",
                                 "schema_version": 3}
    cell.outputs = list(outputs)
    return determine_grade(cell)[0]


warning = nbformat.v4.new_output("stream", name="stderr", text="RuntimeWarning: invalid value encountered in divide")
right, warned = points(), points(warning)
print(f"without output {right} of 2, with a warning on stderr {warned} of 2")
assert (right, warned) == (2, 0)
PY
