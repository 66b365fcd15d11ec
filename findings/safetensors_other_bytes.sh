#!/usr/bin/env bash
# safetensors: the same tensors with the same metadata are another file each time.
#
# Expected: save(tensors, metadata) is a function of its arguments: files of equal contents have equal hashes.
# Happens: metadata of several keys are written in an order that changes from call to call within one process. Whoever
# tells checkpoints apart by sha256, or resumes "to the byte", sees changes where there are none. With one key
# ("format", as the libraries write) the file stays the same.
# Seen with safetensors 0.8.0 numpy 2.4.6, Python 3.11:
#     20 saves: more than one distinct file with 4 keys, 1 with one key
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
venv=${FINDINGS_VENV:-$work/venv}
[ -x "$venv/bin/python" ] || python3 -m venv "$venv"
"$venv/bin/pip" install --quiet --disable-pip-version-check safetensors==0.8.0 numpy==2.4.6
"$venv/bin/python" -I - <<'PY'
import hashlib

import numpy as np
from safetensors.numpy import save

tensors = {"weight": np.ones(3, np.float32)}


def distinct(*keys: str) -> int:
    metadata = dict.fromkeys(keys, "1")
    return len({hashlib.sha256(save(tensors, metadata=metadata)).hexdigest() for _ in range(20)})


several, one = distinct("format", "step", "seed", "rules"), distinct("format")
print(f"20 saves: {'more than one' if several > 1 else 'one'} distinct file with 4 keys, {one} with one key")
assert several > 1 and one == 1
PY
