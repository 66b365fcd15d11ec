#!/usr/bin/env bash
# supervision: the box of a mask is a pixel too narrow and too low.
#
# Expected: mask_to_xyxy gives x2 and y2 so that x2 - x1 is the mask's width, as all other boxes of the library have
# it.
# Happens: x2 and y2 are the last pixels that are set, not the edges behind them. Boxes from masks are smaller than
# boxes from files by one pixel each way, and a mask of one pixel has a box without an area.
# Seen with supervision 0.31.2 numpy 2.4.6 opencv-python-headless 5.0.0.93, Python 3.11:
#     mask of 4 x 3 pixels: box [3, 2, 6, 4], area 6
#     mask of 1 pixel: box [5, 5, 5, 5], area 0
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
venv=${FINDINGS_VENV:-$work/venv}
[ -x "$venv/bin/python" ] || python3 -m venv "$venv"
"$venv/bin/pip" install --quiet --disable-pip-version-check supervision==0.31.2 numpy==2.4.6 opencv-python-headless==5.0.0.93
"$venv/bin/python" -I - <<'PY'
import numpy as np
import supervision as sv

areas = []
for name, rows, columns in (("4 x 3 pixels", slice(2, 5), slice(3, 7)), ("1 pixel", slice(5, 6), slice(5, 6))):
    mask = np.zeros((1, 10, 10), bool)
    mask[0, rows, columns] = True
    box = sv.mask_to_xyxy(mask)
    areas.append(sv.Detections(xyxy=box).area.item())
    print(f"mask of {name}: box {box[0].astype(int).tolist()}, area {areas[-1]:g}")
assert areas == [6, 0], "not 12 and 1"
PY
