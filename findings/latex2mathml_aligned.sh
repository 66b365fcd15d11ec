#!/usr/bin/env bash
# latex2mathml: an "aligned" environment becomes MathML that no XML parser reads.
#
# Expected: an environment that is not supported raises an error; what is returned is well-formed.
# Happens: the environment's name is dropped and its "&" is written as it is, unescaped, between tags. A page with one
# such formula is no XML any more; in HTML the alignment is gone and a stray "&" is shown. "align" with the same
# contents becomes a table.
# Seen with latex2mathml 3.81.1, Python 3.11:
#     aligned: <mi>&</mi> not well-formed (invalid token)
#     align: well-formed
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
venv=${FINDINGS_VENV:-$work/venv}
[ -x "$venv/bin/python" ] || python3 -m venv "$venv"
"$venv/bin/pip" install --quiet --disable-pip-version-check latex2mathml==3.81.1
"$venv/bin/python" -I - <<'PY'
from xml.etree import ElementTree

from latex2mathml.converter import convert


def problem(environment: str) -> str:
    text = convert(rf"\begin{{{environment}}} a &= b \end{{{environment}}}")
    try:
        ElementTree.fromstring(text)
    except ElementTree.ParseError as error:
        return ("<mi>&</mi> " if "<mi>&</mi>" in text else "") + str(error).partition(":")[0]
    return "well-formed"


told = {environment: problem(environment) for environment in ("aligned", "align")}
for environment, what in told.items():
    print(f"{environment}: {what}")
assert "not well-formed" in told["aligned"] and told["align"] == "well-formed"
PY
