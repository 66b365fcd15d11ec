#!/usr/bin/env bash
# datasets: Dataset.from_list drops every key that the first row lacks.
#
# Expected: columns are the keys of all rows, with None where a row lacks one, as it is within nested rows.
# Happens: the first row's keys are the columns; what only later rows have is gone without a word. Verdicts that begin
# with a record without a reason have no reasons.
# Seen with datasets 5.2.0 pillow 13.0.0, Python 3.11:
#     [{'correct': True}, {'correct': False}], the reason is gone
#     nested: [{'of': {'correct': True, 'reason': None}}, {'of': {'correct': False, 'reason': 'no cat'}}]
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
venv=${FINDINGS_VENV:-$work/venv}
[ -x "$venv/bin/python" ] || python3 -m venv "$venv"
"$venv/bin/pip" install --quiet --disable-pip-version-check datasets==5.2.0 pillow==13.0.0
"$venv/bin/python" -I - <<'PY'
from datasets import Dataset

rows = Dataset.from_list([{"correct": True}, {"correct": False, "reason": "no cat"}]).to_list()
nested = Dataset.from_list([{"of": {"correct": True}}, {"of": {"correct": False, "reason": "no cat"}}]).to_list()
print(f"{rows}, the reason is gone\nnested: {nested}")
assert rows == [{"correct": True}, {"correct": False}] and nested[1]["of"]["reason"] == "no cat"
PY
