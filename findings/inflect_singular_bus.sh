#!/usr/bin/env bash
# inflect: the singular of "bus" is "bu".
#
# Expected: singular_noun gives False for a word that is singular already, as it does for "dog" and "glass".
# Happens: of COCO's eighty names one, "bus", loses its end, and with it every name that ends in it. Code that asks
# "is this a plural?" before it writes a caption makes a thing of it that does not exist.
# Seen with inflect 7.6.0, Python 3.11:
#     dog: False, glass: False, bus: 'bu', school bus: 'school bu'
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
venv=${FINDINGS_VENV:-$work/venv}
[ -x "$venv/bin/python" ] || python3 -m venv "$venv"
"$venv/bin/pip" install --quiet --disable-pip-version-check inflect==7.6.0
"$venv/bin/python" -I - <<'PY'
import inflect

engine = inflect.engine()
singular = {word: engine.singular_noun(word) for word in ("dog", "glass", "bus", "school bus")}
print(", ".join(f"{word}: {one!r}" for word, one in singular.items()))
assert list(singular.values()) == [False, False, "bu", "school bu"]
PY
