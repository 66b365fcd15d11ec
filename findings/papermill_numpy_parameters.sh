#!/usr/bin/env bash
# papermill: a false of numpy's arrives in the notebook as true.
#
# Expected: parameters that papermill cannot write as Python raise an error; a number or a truth value of numpy's is
# written as what it is.
# Happens: what is no type of Python's own is written as a text: numpy.bool_(False) as "False", which is true,
# numpy.int64(5) as "5", a tuple as "(1, 2)", a path as its text. The run goes on with the wrong types, in a cell that
# looks right at a glance.
# Seen with papermill 2.7.0 ipykernel 7.4.0 numpy 2.4.6, Python 3.11:
#     numpy.bool_(False) -> "False" (true in an if), numpy.int64(5) -> "5", (1, 2) -> "(1, 2)"
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
venv=${FINDINGS_VENV:-$work/venv}
[ -x "$venv/bin/python" ] || python3 -m venv "$venv"
"$venv/bin/pip" install --quiet --disable-pip-version-check papermill==2.7.0 ipykernel==7.4.0 numpy==2.4.6
"$venv/bin/python" -I - <<'PY'
import numpy as np
from papermill.translators import papermill_translators

python = papermill_translators.find_translator("python3", "python")
written = [python.translate(value) for value in (np.bool_(False), np.int64(5), (1, 2))]
print(f"numpy.bool_(False) -> {written[0]} (true in an if), numpy.int64(5) -> {written[1]}, (1, 2) -> {written[2]}")
assert [eval(text) for text in written] == ["False", "5", "(1, 2)"] and bool(eval(written[0])) is True
PY
