#!/usr/bin/env bash
# rocrate: of two files with one name in two folders a crate keeps the last.
#
# Expected: crate.add_file("a/scores.json") and crate.add_file("b/scores.json") put both files into the crate, or
# fail.
# Happens: without dest_path a file's place in the crate is its name alone, and an entity of a known place takes the
# place of the earlier one. Results of two runs become one, with no word; the first add_file's return value still
# looks alive.
# Seen with rocrate 0.16.0, Python 3.11:
#     entities: ['scores.json'], contents on disk: 'of b'
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
venv=${FINDINGS_VENV:-$work/venv}
[ -x "$venv/bin/python" ] || python3 -m venv "$venv"
"$venv/bin/pip" install --quiet --disable-pip-version-check rocrate==0.16.0
"$venv/bin/python" -I - <<'PY'
from pathlib import Path

from rocrate.rocrate import ROCrate

crate = ROCrate()
for folder in ("a", "b"):
    Path(folder).mkdir()
    Path(folder, "scores.json").write_text(f"of {folder}")
    crate.add_file(f"{folder}/scores.json")
crate.write("crate")
entities = [entity.id for entity in crate.data_entities]
contents = Path("crate/scores.json").read_text()
print(f"entities: {entities}, contents on disk: {contents!r}")
assert entities == ["scores.json"] and contents == "of b"
PY
