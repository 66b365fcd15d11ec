#!/usr/bin/env bash
# nbgrader: a test cell that ends in False, in -1 or in nan earns full marks.
#
# Expected: a test whose last line shows False or a negative number gives no points.
# Happens: the value that a test cell shows is read as partial credit if it is a number from 0 to the maximum.
# Anything else, also False, nan, None and -1, is full credit (a line in the log says so). `check(answer)` as the last
# line, meant to be true or false, passes everybody; a test that happens to show 0.5 gives half a point.
# Seen with nbgrader 0.9.6, Python 3.11:
#     of 2 points: False 2.0, -1 2.0, nan 2.0, None 2.0, 0 0.0, 0.5 0.5
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


def points(shown: str) -> float:
    cell = nbformat.v4.new_code_cell("check(answer)")
    cell.metadata["nbgrader"] = {"grade": True, "solution": False, "locked": True, "points": 2, "grade_id": "a",
                                 "schema_version": 3}
    cell.outputs = [nbformat.v4.new_output("execute_result", {"text/plain": shown}, execution_count=1)]
    return determine_grade(cell)[0]


earned = {shown: points(shown) for shown in ("False", "-1", "nan", "None", "0", "0.5")}
print("of 2 points:", ", ".join(f"{shown} {number}" for shown, number in earned.items()))
assert list(earned.values()) == [2, 2, 2, 2, 0, 0.5]
PY
