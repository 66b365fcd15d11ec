#!/usr/bin/env bash
# safetensors: files of weights can be read by their owner only.
#
# Expected: save_file leaves a file that the umask allows others to read, as torch.save and open() do.
# Happens: its mode is 600 whatever the umask: on a cluster, colleagues and jobs of another user cannot load a
# checkpoint in a shared folder, while its JSON beside it opens.
# Seen with safetensors 0.8.0 numpy 2.4.6, Python 3.11:
#     umask 022: safetensors 600, open() 644
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
venv=${FINDINGS_VENV:-$work/venv}
[ -x "$venv/bin/python" ] || python3 -m venv "$venv"
"$venv/bin/pip" install --quiet --disable-pip-version-check safetensors==0.8.0 numpy==2.4.6
"$venv/bin/python" -I - <<'PY'
import os
import stat
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

os.umask(0o022)
save_file({"weight": np.ones(3, np.float32)}, "weights.safetensors")
Path("plain.json").write_text("{}")
modes = [f"{stat.S_IMODE(os.stat(name).st_mode):o}" for name in ("weights.safetensors", "plain.json")]
print(f"umask 022: safetensors {modes[0]}, open() {modes[1]}")
assert modes == ["600", "644"]
PY
