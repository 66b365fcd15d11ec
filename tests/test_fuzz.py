"""Damaged files of every kind end in a result or in one line that names the file; see :mod:`fuzz` and :mod:`mutate`."""

from pathlib import Path

import fuzz
import mutate
import pytest

ALL = 400  # of each reader


@pytest.mark.parametrize("name", fuzz.READERS)
@pytest.mark.parametrize("number", [10, pytest.param(ALL, marks=pytest.mark.slow("thousands of damaged files"))])
def test_damaged_files_end_in_a_result_or_in_one_line(name, number):
    ends = mutate.run(name, number)
    assert sum(ends.values()) == number
    if number == ALL:  # of damaged checkpoints none is refused: the one before it is taken
        assert ends["right"] > 9 and (ends["refused"] > 9 or name == "checkpoint_folders")


def test_five_thousand_damaged_files_are_read():
    assert ALL * len(fuzz.READERS) >= 5_000


def corrupt(data: bytes, at: int, new: bytes) -> bytes:
    changed = bytearray(data)
    changed[at : at + len(new)] = new
    return bytes(changed)


DEEP = b"[" * 2_000
FOUND = {  # by the fuzz, each a traceback before it was mended: reader, file, contents
    ("visor_results", "r.json"): [DEEP],
    ("kits", "kit.html"): [b"\xff"],
    ("keys_of_kits", "key.json"): [b"5", b"[]", b"[[1]]", b'[{"item": []}]', b'[{"item": "\\ud800"}]'],
    ("vsr_judgements", "v.jsonl"): [b"\xff", DEEP, b"[]", b'{"relation": "above", "caption": 5}'],
    ("spatialbench", "labels_filled.csv"): [b"\xff"],
    ("spatialbench", "sd15_boxdiff.jsonl"): [b"\xff", DEEP, b"null"],
    ("geneval_people", "geneval_clip.csv"): [b"\xff"],
    ("profile_files", "mine.yaml"): [b'04_evaluation: {sampling: {precision: "\\uD800"}}', b'all: {track: "\\uD800"}'],
    ("model_files", "config.json"): [DEEP],
    ("model_files", "model.safetensors"): [(1).to_bytes(8, "little") + b"5"],
}


@pytest.mark.parametrize(("name", "file", "data"), [(*at, data) for at, cases in FOUND.items() for data in cases])
def test_what_the_fuzz_found_is_refused_in_one_line(name, file, data, tmp_path):
    refused(name, file, data, tmp_path)


def test_corrupt_archives_are_refused_in_one_line(tmp_path):
    parquet, index = (fuzz.FILES[name]() for name in ("box_tables", "zipped_annotations"))
    refused("box_tables", "boxes.parquet", corrupt(parquet["boxes.parquet"], -30, b"\xff" * 20), tmp_path)
    at = index["a.zip"].rindex(b"PK\x01\x02") + 42  # where the member begins
    refused("zipped_annotations", "a.zip", corrupt(index["a.zip"], at, b"\xff\xff\xff\x7f"), tmp_path)


def refused(name: str, file: str, data: bytes, folder: Path) -> None:
    for other, right in fuzz.FILES[name]().items():
        (folder / other).write_bytes(right)
    (folder / file).write_bytes(data)
    with pytest.raises(ValueError) as caught:
        fuzz.READERS[name](folder / file)
    told = str(caught.value)
    assert "\n" not in told and len(told) < 1_000 and any(word in told for word in (file, "kit.html", folder.name))
