#!/usr/bin/env bash
# papermill: a notebook that leaves early with sys.exit(0) counts as run, its later cells not.
#
# Expected: execute_notebook raises where a cell has not been run.
# Happens: an exit with status 0 (or none) is no error to papermill: it stops there, writes the notebook and returns
# as after a whole run. A guard such as "nothing to do: sys.exit()" at the top makes an empty result that looks
# finished.
# Seen with papermill 2.7.0 ipykernel 7.4.0 numpy 2.4.6, Python 3.11:
#     no error; cells run: [1, None]
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
cells = ["import sys; sys.exit(0)", "print('the results')"]
book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in cells])
book.metadata["kernelspec"] = {"name": "python3", "display_name": "Python", "language": "python"}
nbformat.write(book, "in.ipynb")
run = papermill.execute_notebook("in.ipynb", "out.ipynb", progress_bar=False)
counts = [cell.execution_count for cell in run.cells]
print("no error; cells run:", counts)
assert counts == [1, None]
PY
