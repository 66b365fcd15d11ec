#!/usr/bin/env bash
# msgspec: a complete document whose last text ends in half a surrogate pair is called truncated.
#
# Expected: a text that Python's json writes and reads is read, or is called invalid; "truncated" means that bytes are missing.
# Happens: after the escape of a first half (a high surrogate), six more bytes are asked for before anything is looked at. Where
# fewer are left, the error says "Input data was truncated"; with some spaces after it, the same document is "malformed". Who
# streams JSON and waits for more bytes on "truncated" reads a complete value as unfinished.
# Seen with msgspec 0.22.0, Python 3.11:
#     as written: Input data was truncated
#     spaces after it: JSON is malformed: unexpected end of escaped utf-16 surrogate pair (byte 11)
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
venv=${FINDINGS_VENV:-$work/venv}
[ -x "$venv/bin/python" ] || python3 -m venv "$venv"
"$venv/bin/pip" install --quiet --disable-pip-version-check msgspec==0.22.0
"$venv/bin/python" -I - <<'PY'
import json

import msgspec

text = json.dumps(["cat\ud83d"])
assert json.loads(text) == ["cat\ud83d"], "Python reads what it wrote"
said = {}
for what, document in (("as written", text), ("spaces after it", text + " " * 8)):
    try:
        msgspec.json.decode(document.encode())
    except msgspec.DecodeError as error:
        said[what] = str(error)
        print(f"{what}: {error}")
assert said["as written"] == "Input data was truncated" and "surrogate" in said["spaces after it"]
PY
