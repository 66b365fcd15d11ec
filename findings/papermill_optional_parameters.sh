#!/usr/bin/env bash
# papermill: a parameter that is declared as `int | None` is no parameter.
#
# Expected: `papermill --help-notebook` and inspect_notebook list every name of the cell tagged "parameters", with its
# annotation.
# Happens: annotations with " | " are not understood, and the line is skipped without a word. What is listed looks
# complete, so that a parameter seems to be missing in the notebook.
# Seen with papermill 2.7.0 ipykernel 7.4.0 numpy 2.4.6, Python 3.11:
#     declared: seed, steps, ids, rules; listed: seed, ids
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
venv=${FINDINGS_VENV:-$work/venv}
[ -x "$venv/bin/python" ] || python3 -m venv "$venv"
"$venv/bin/pip" install --quiet --disable-pip-version-check papermill==2.7.0 ipykernel==7.4.0 numpy==2.4.6
"$venv/bin/python" -I - <<'PY'
import logging

import nbformat
import papermill

logging.disable()
source = 'seed: int = 0\nsteps: int | None = None\nids: list[int] = [1]\nrules: str | None = "visor"'
cell = nbformat.v4.new_code_cell(source, metadata={"tags": ["parameters"]})
book = nbformat.v4.new_notebook(cells=[cell])
book.metadata["kernelspec"] = {"name": "python3", "display_name": "Python", "language": "python"}
nbformat.write(book, "in.ipynb")
listed = list(papermill.inspect_notebook("in.ipynb"))
print("declared: seed, steps, ids, rules; listed:", ", ".join(listed))
assert listed == ["seed", "ids"]
PY
