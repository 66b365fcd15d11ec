#!/usr/bin/env bash
# jaxtyping and beartype: with beartype alone two arrays of one named length may differ.
#
# Expected: a function decorated with @beartype whose arguments are Float[ndarray, "box 4"] refuses three boxes beside
# five: both lengths are called "box".
# Happens: beartype checks each argument by itself; a name is bound only within @jaxtyped, which must stand around it.
# Ranks, fixed lengths and dtypes are checked, so that the decorator seems to work.
# Seen with jaxtyping 0.3.11 beartype 0.23.1 numpy 2.4.6, Python 3.11:
#     beartype alone: 3 and 5 boxes taken; jaxtyped(typechecker=beartype): refused
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
venv=${FINDINGS_VENV:-$work/venv}
[ -x "$venv/bin/python" ] || python3 -m venv "$venv"
"$venv/bin/pip" install --quiet --disable-pip-version-check jaxtyping==0.3.11 beartype==0.23.1 numpy==2.4.6
"$venv/bin/python" -I - <<'PY'
import numpy as np
from beartype import beartype
from jaxtyping import Float, TypeCheckError, jaxtyped

Boxes = Float[np.ndarray, "box 4"]


def overlap(a: Boxes, b: Boxes) -> str:
    return f"{len(a)} and {len(b)} boxes taken"


def told(function) -> str:
    try:
        return function(np.zeros((3, 4)), np.zeros((5, 4)))
    except TypeCheckError:
        return "refused"


alone, both = told(beartype(overlap)), told(jaxtyped(overlap, typechecker=beartype))
print(f"beartype alone: {alone}; jaxtyped(typechecker=beartype): {both}")
assert alone == "3 and 5 boxes taken" and both == "refused"
PY
