#!/usr/bin/env bash
# krippendorff: coded verdicts are compared as measured numbers unless one says otherwise.
#
# Expected: alpha of verdicts that are coded 1, 2, 3 (yes, no, unclear) treats them as names: the measure is best
# known for those.
# Happens: the level is "interval" by default, so that taking "yes" for "unclear" is four times as bad as taking it
# for "no", and alpha depends on how the answers are coded. Nothing says which level was taken.
# Seen with krippendorff 0.9.0 numpy 2.4.6, Python 3.11:
#     by default, three codings of the same answers: [0.7429, 0.7429, -0.125]
#     as names, the same three: [0.4706, 0.4706, 0.4706]
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
venv=${FINDINGS_VENV:-$work/venv}
[ -x "$venv/bin/python" ] || python3 -m venv "$venv"
"$venv/bin/pip" install --quiet --disable-pip-version-check krippendorff==0.9.0 numpy==2.4.6
"$venv/bin/python" -I - <<'PY'
import krippendorff

verdicts = [[1, 2, 3, 1, 2, 3, 1, 2], [1, 2, 3, 1, 3, 2, 1, 3]]
exchanged = [[{1: 1, 2: 3, 3: 2}[v] for v in row] for row in verdicts]
shifted = [[{1: 2, 2: 1, 3: 3}[v] for v in row] for row in verdicts]
default = [krippendorff.alpha(reliability_data=table) for table in (verdicts, exchanged, shifted)]
names = [
    krippendorff.alpha(reliability_data=table, level_of_measurement="nominal")
    for table in (verdicts, exchanged, shifted)
]
print("by default, three codings of the same answers:", [round(float(value), 4) for value in default])
print("as names, the same three:", [round(float(value), 4) for value in names])
assert max(names) - min(names) < 1e-9 and max(default) - min(default) > 0.1
PY
