#!/usr/bin/env bash
# webdataset: images whose names hold a dot are joined into one sample.
#
# Expected: "dog_cfg7.5_seed1.png" and "dog_cfg7.5_seed2.png" are two samples of the extension png.
# Happens: a sample's name ends at the first dot of the file's name, so that both are parts of the sample "dog_cfg7",
# of the kinds "5_seed1.png" and "5_seed2.png". Guidance, versions and times in file names halve the number of
# samples, and neither has a "png".
# Seen with webdataset 1.0.2 numpy 2.4.6, Python 3.11:
#     2 files became 1 sample: dog_cfg7 with ['5_seed1.png', '5_seed2.png']
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
venv=${FINDINGS_VENV:-$work/venv}
[ -x "$venv/bin/python" ] || python3 -m venv "$venv"
"$venv/bin/pip" install --quiet --disable-pip-version-check webdataset==1.0.2 numpy==2.4.6
"$venv/bin/python" -I - <<'PY'
import io
import tarfile

import webdataset

names = ["dog_cfg7.5_seed1.png", "dog_cfg7.5_seed2.png"]
with tarfile.open("images.tar", "w") as archive:
    for name in names:
        member = tarfile.TarInfo(name)
        member.size = 1
        archive.addfile(member, io.BytesIO(b"x"))
samples = list(webdataset.WebDataset("images.tar", shardshuffle=False))
kinds = [sorted(kind for kind in sample if not kind.startswith("__")) for sample in samples]
print(f"{len(names)} files became {len(samples)} sample: {samples[0]['__key__']} with {kinds[0]}")
assert len(samples) == 1 and samples[0]["__key__"] == "dog_cfg7" and "png" not in samples[0]
PY
