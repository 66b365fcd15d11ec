#!/usr/bin/env bash
# diffusers: an image of bytes in a numpy array is taken for numbers from 0 to 1.
#
# Expected: VaeImageProcessor.preprocess scales an array of uint8 as it scales the same image as a PIL image, or
# refuses it.
# Happens: only PIL images are divided by 255. The array goes through 2x - 1 as it is: white becomes 509 in place of
# 1, and the VAE encodes what no picture is. No warning.
# Seen with torch 2.13.0 diffusers 0.42.1 transformers 5.24.0 accelerate 1.15.0, Python 3.11:
#     white as PIL: 1.0, as a numpy array of uint8: 509.0
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
venv=${FINDINGS_VENV:-$work/venv}
[ -x "$venv/bin/python" ] || python3 -m venv "$venv"
"$venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 diffusers==0.42.1 transformers==5.24.0 accelerate==1.15.0
"$venv/bin/python" -I - <<'PY'
import logging
import warnings

logging.disable()
warnings.simplefilter("ignore")

import numpy as np
from diffusers.image_processor import VaeImageProcessor
from PIL import Image

white = np.full((8, 8, 3), 255, np.uint8)
processor = VaeImageProcessor(vae_scale_factor=8)
image, array = (float(processor.preprocess(picture).max()) for picture in (Image.fromarray(white), white))
print(f"white as PIL: {image}, as a numpy array of uint8: {array}")
assert (image, array) == (1, 509)
PY
