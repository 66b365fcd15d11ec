#!/usr/bin/env bash
# inflect: articles of abbreviations and numbers are right for some and wrong for others.
#
# Expected: an engine of articles that knows "an MP3 player" and "an X-ray" also says "an SUV", "an LED lamp" and "an
# 8 ball".
# Happens: "a SUV", "a LED lamp", "a 8 ball", "a 11 dogs"; a name that holds a line break gives the empty text, so
# that the thing is gone from the sentence.
# Seen with inflect 7.6.0, Python 3.11:
#     'an MP3 player', 'an X-ray', 'a SUV', 'a LED lamp', 'a 8 ball', ''
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
written = [engine.a(word) for word in ("MP3 player", "X-ray", "SUV", "LED lamp", "8 ball", "dog\ncat")]
print(*map(repr, written), sep=", ")
assert written == ["an MP3 player", "an X-ray", "a SUV", "a LED lamp", "a 8 ball", ""]
PY
