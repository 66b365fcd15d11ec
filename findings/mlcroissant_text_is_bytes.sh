#!/usr/bin/env bash
# mlcroissant: a field of the type Text gives bytes, and "NA" gives nothing.
#
# Expected: records of a field with the dataType sc:Text are str, as those of sc:Integer are int.
# Happens: they are bytes, so that record["name"] == "dog" is False for every row and a dictionary by name finds none;
# and since the table is read by pandas' defaults, the text "NA" is None.
# Seen with mlcroissant 1.1.1, Python 3.11:
#     b'dog' (bytes) == 'dog': False; NA: None; 3 (int)
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
venv=${FINDINGS_VENV:-$work/venv}
[ -x "$venv/bin/python" ] || python3 -m venv "$venv"
"$venv/bin/pip" install --quiet --disable-pip-version-check mlcroissant==1.1.1
"$venv/bin/python" -I - <<'PY'
import hashlib
import json
import logging
from pathlib import Path

logging.disable()
import mlcroissant

table = Path("d.csv")
table.write_text("name,n\ndog,3\nNA,4\n")
fields = [
    {"@type": "cr:Field", "@id": f"r/{name}", "name": name, "dataType": kind,
     "source": {"fileObject": {"@id": "d.csv"}, "extract": {"column": name}}}
    for name, kind in (("name", "sc:Text"), ("n", "sc:Integer"))
]
about = {
    "@context": {
        "@language": "en", "@vocab": "https://schema.org/", "sc": "https://schema.org/",
        "cr": "http://mlcommons.org/croissant/", "dct": "http://purl.org/dc/terms/", "column": "cr:column",
        "conformsTo": "dct:conformsTo", "dataType": {"@id": "cr:dataType", "@type": "@vocab"}, "extract": "cr:extract",
        "field": "cr:field", "fileObject": "cr:fileObject", "recordSet": "cr:recordSet", "source": "cr:source",
    },
    "@type": "sc:Dataset", "name": "d", "conformsTo": "http://mlcommons.org/croissant/1.0", "version": "1.0.0",
    "distribution": [
        {"@type": "cr:FileObject", "@id": "d.csv", "name": "d.csv", "contentUrl": "d.csv", "encodingFormat": "text/csv",
         "sha256": hashlib.sha256(table.read_bytes()).hexdigest()}
    ],
    "recordSet": [{"@type": "cr:RecordSet", "@id": "r", "name": "r", "field": fields}],
}
Path("d.json").write_text(json.dumps(about))
first, second = mlcroissant.Dataset(jsonld="d.json").records("r")
name, n = first["r/name"], first["r/n"]
print(f"{name!r} ({type(name).__name__}) == 'dog': {name == 'dog'}; NA: {second['r/name']}; {n} ({type(n).__name__})")
assert name == b"dog" and second["r/name"] is None and n == 3
PY
