#!/usr/bin/env bash
# papermill: the parameter `-p image 1_0` arrives as the number 10.
#
# Expected: what -p is given stays a text unless it is plainly a number; `7_0` and `007` are names of images.
# Happens: whatever Python's int() or float() takes becomes a number, also underscores (1_0 is 10, so images 1_0 and
# 10 are one), leading zeros (007 is 7) and words (nan, infinity). Only -r keeps texts as they are.
# Seen with papermill 2.7.0 ipykernel 7.4.0 numpy 2.4.6, Python 3.11:
#     1_0 -> 10 (int), 007 -> 7 (int), nan -> nan (float), 0_00 -> 0 (int)
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
venv=${FINDINGS_VENV:-$work/venv}
[ -x "$venv/bin/python" ] || python3 -m venv "$venv"
"$venv/bin/pip" install --quiet --disable-pip-version-check papermill==2.7.0 ipykernel==7.4.0 numpy==2.4.6
"$venv/bin/python" -I - <<'PY'
from papermill.cli import _resolve_type

values = {text: _resolve_type(text) for text in ("1_0", "007", "nan", "0_00")}
print(", ".join(f"{text} -> {value} ({type(value).__name__})" for text, value in values.items()))
assert values["1_0"] == 10 and values["007"] == 7 and isinstance(values["nan"], float) and values["0_00"] == 0
PY
