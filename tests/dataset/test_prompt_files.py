"""Prompt files as people have them: read as they were meant, or refused in one line: file, row, value, remedy."""

import codecs
import gzip
import json
import os
import zipfile
from pathlib import Path

import mutate
import pandas as pd
import pytest

from sr4g_utils.dataset import prompt_files, prompt_sets, sentences
from sr4g_utils.dataset.prompt_sets import SETS, others, prompt_set, read_prompts, write_given_prompts
from sr4g_utils.dataset.prompts import draw_prompts
from sr4g_utils.running.profiles import absolute

HEADER = "prompt_id,subject,relation,object\n"
ROW = HEADER + "7,dog,above,cat\n"


def read(folder: Path, name: str, content: str | bytes) -> pd.DataFrame:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    table = read_prompts(path)
    write_given_prompts(folder / "again.parquet", source=path)  # what is read can be kept
    pd.testing.assert_frame_equal(read_prompts(folder / "again.parquet"), table)
    return table


def refusal(folder: Path, name: str, content: str | bytes) -> str:
    with pytest.raises(ValueError) as caught:
        read(folder, name, content)
    told = str(caught.value)
    assert type(caught.value) is ValueError and "\n" not in told and name in told
    return told


@pytest.mark.parametrize(("name", "content"), {
    "plain.csv": ROW, "SUFFIX.CSV": ROW, "semicolons.csv": ROW.replace(",", ";"),
    **dict.fromkeys(("tabs.tsv", "TABS.TSV", "tabs in a csv.csv"), ROW.replace(",", "\t")),
    "spaces.csv": "prompt_id , subject, relation, object\n 7 , dog,above ,\u00a0cat \n",
    "spaces before quotes.csv": 'prompt_id, "subject", relation, object\n7, "dog", above, cat\n',
    "mark.csv": codecs.BOM_UTF8 + ROW.encode(),
    "carriage returns.csv": ROW.replace("\n", "\r\n"), "old mac.csv": ROW.replace("\n", "\r"),
    "capitals.csv": "Prompt_ID,Subject,Relation,Object\n7,dog,Above,cat\n",
    "rows of commas.csv": f",,,\n{ROW},,,\n , ,,\n", "columns of commas.csv": ROW.replace("\n", ",,\n"),
    "pandas' own index.csv": ROW.replace("prompt_id", ",prompt_id").replace("7", "0,7"),
    "list.json": '[{"prompt_id": 7, "subject": " dog", "relation": "above ", "object": "cat"}]',
    "mark.json": codecs.BOM_UTF8 + b'[{"prompt_id": 7, "subject": "dog", "relation": "above", "object": "cat"}]',
    "mark.jsonl": codecs.BOM_UTF8 + b'{"prompt_id": 7, "subject": "dog", "relation": "above", "object": "cat"}\n\n',
    "list.jsonl": '[{"prompt_id": 7, "subject": "dog", "relation": "above", "object": "cat"}]',
    "float id.json": '[{"prompt_id": 7.0, "subject": "dog", "relation": "above", "object": "cat"}]',
}.items())  # fmt: skip
def test_one_prompt_in_many_files(tmp_path: Path, name: str, content: str | bytes) -> None:
    row = read(tmp_path, name, content).iloc[0]
    assert (row.prompt_id, row.subject, row.relation, row.object) == (7, "dog", "above", "cat")
    assert row.caption == "a dog above a cat"


def test_json_lines_may_be_called_json_and_hold_line_separators(tmp_path: Path) -> None:
    lines = '{"subject": "dog", "relation": "above", "object": "cat", "note": "a\u2028b\u0085c"}\n' * 2
    for name in ("a.json", "a.jsonl", "a.ndjson", "A.JSONL"):
        table = read(tmp_path, name, lines)
        assert list(table.prompt_id) == [0, 1] and set(table.note) == {"a\u2028b\u0085c"}


def test_ids_stay_as_they_are_written(tmp_path: Path) -> None:
    ids = ["007", "1e5", "1.0", "NA", "7", "0x10", "1_000", "nan"]
    table = read(tmp_path, "a.csv", HEADER + "".join(f"{id},dog,above,cat\n" for id in ids))
    assert list(table.prompt_id) == ids
    assert list(read(tmp_path, "b.csv", HEADER + "7,dog,above,cat\n10,dog,above,cup\n").prompt_id) == [7, 10]
    row = {"subject": "dog", "relation": "above", "object": "cat"}
    mixed = [{"prompt_id": 1, **row}, {"prompt_id": "01", **row}, {"prompt_id": 10**20, **row}]
    assert list(read(tmp_path, "c.json", json.dumps(mixed)).prompt_id) == ["1", "01", str(10**20)]
    assert list(read(tmp_path, "d.json", json.dumps(mixed[:1])).prompt_id) == [1]

    table = pd.DataFrame({"prompt_id": [7, 9], **row})
    table.set_index("prompt_id").to_parquet(tmp_path / "a.parquet")
    assert list(read_prompts(tmp_path / "a.parquet").prompt_id) == [7, 9], "the index of a Parquet file"


def test_names_that_pandas_would_take_for_nothing_stay_and_further_columns_keep_their_types(tmp_path: Path) -> None:
    table = read(tmp_path, "a.csv", HEADER + "1,null,above,NA\n2,None,above,nan\n")
    assert list(table.subject) == ["null", "None"] and list(table.object) == ["NA", "nan"]
    content = "subject,relation,object,n_images,balanced,split\ndog,above,cat,3,True,test\ncup,above,cat,4,False,\n"
    table = read(tmp_path, "a.csv", content)
    assert list(table.n_images) == [3, 4] and list(table.balanced) == [True, False] and table.split.isna().sum() == 1


XLSX = b"PK\x03\x04 and so on"
LINE = '{"subject": "dog", "relation": "above", "object": "cat"}'


@pytest.mark.parametrize(("name", "content", "told"), [
    ("a.csv", (ROW + "8,café,above,cat\n").encode("cp1252"), "row 3: the byte 0xe9 is not UTF-8; save it as UTF-8"),
    ("a.csv", ROW.encode("utf-16"), "is UTF-16; save it as UTF-8"),
    ("a.txt", "a dog above a cat".encode("utf-16-le"), "row 1: holds a NUL, so it is UTF-16"),
    ("a.csv", XLSX, "is a spreadsheet or another zip file; save it as UTF-8 (in a spreadsheet: 'CSV UTF-8')"),
    ("a.xlsx", XLSX, "prompts are read from .parquet, .csv, .tsv"),
    ("a", ROW, "prompts are read from .parquet, .csv, .tsv"),
    ("a.json", gzip.compress(b"[]", mtime=0), "is compressed; unpack it with gunzip"),
    ("a.csv", b"PAR1", "is Parquet; let its name end in .parquet"), ("a.parquet", ROW, "not readable as Parquet"),
    ("a.csv", "", "is empty"), ("a.txt", "\ufeff\n \n", "is empty"), ("a.csv", HEADER, "holds no prompts"),
    ("a.json", "[]", "holds no prompts"), ("a.csv", ",,,\n,,,\n", "is empty"),
    ("a.csv", "subject,relation\ndog,above\n", "the column 'object' is missing; prompts have"),
    ("a.csv", "subject,relation,object,object\ndog,above,cat,cup\n", "row 1: the column 'object' occurs twice"),
    ("a.csv", ROW + "8,dog,above,cat,cup\n", "row 3: has 5 values, but the header names 4 columns; put quotation"),
    ("a.csv", ROW + '8,"dog,above,cat\n', "line 3: not readable (unexpected end of data); check its"),
    ("a.csv", ROW + "8,dog,above,\n", "row 3: prompt 8 has no object"),
    ("a.csv", ROW + ",dog,above,cat\n", "row 3: prompt '' has no prompt_id"),
    ("a.csv", ROW + "8,dog,near,cat\n", "row 3: prompt 8 has the relation 'near'; it must be one of left of"),
    ("a.csv", ROW + "8,dog,above,5\n", "row 3: prompt 8 has the object '5', which is none: write it in words"),
    ("a.csv", ROW + '8,dog,above,"cat\ncup"\n', "row 3: prompt 8 has the object 'cat\\ncup', which is none"),
    ("a.csv", ROW + "7,dog,above,cup\n", "row 3: prompt 7 is not the first: prompt_id '7' occurs twice"),
    ("a.csv", ROW + "a/b,dog,above,cup\n", "row 3: prompt 'a/b' has the prompt_id 'a/b', which is not made of"),
    ("a.csv", ROW + ".8,dog,above,cup\n", "row 3: prompt '.8' has the prompt_id '.8', which is not made of"),
    ("a.json", '[{"subject": 5, "relation": "above", "object": "cat"}]', "row 1: prompt 0 has the subject 5, "),
    ("a.json", '[{"subject": "dog", "relation": ["above"], "object": "cat"}]', "0 has the relation ['above']; it"),
    ("a.json", '[{"subject": "dog"}]', "row 1: not a prompt ({'subject': 'dog'}); it needs subject, relation and"),
    ("a.json", '["a dog above a cat", 3]', "row 2: not a prompt (3)"),
    ("a.json", '{"subject": {"0": "dog"}}', "expected a list of prompts, found a mapping"),
    ("a.json", "[" * 100_000, "not valid JSON"), ("a.jsonl", f"{LINE}\n\n{{\n", "row 3: not valid JSON"),
    ("a.jsonl", LINE.replace("dog", "\\ud800"), "row 1: holds half a character"),
    ("a.json", f'[{LINE[:-1]}, "n": 1}}, {LINE[:-1]}, "n": "a"}}]', "the column 'n' cannot be kept"),
    ("a.txt", "a dog next to a cat\n", "holds no prompts with one of the relations"),
])  # fmt: skip
def test_files_that_cannot_be_read_say_why_and_what_helps(tmp_path: Path, name, content: str | bytes, told) -> None:
    assert told in refusal(tmp_path, name, content)


def test_a_pipe_is_no_file_and_a_row_of_many_columns_is_refused_at_once(tmp_path: Path, monkeypatch) -> None:
    os.mkfifo(tmp_path / "a.txt")
    with pytest.raises(ValueError, match=r"a.txt: is no regular file"):
        prompt_files.read_text(tmp_path / "a.txt")
    monkeypatch.setenv("SR4G_CELLS", "1000")
    assert "its columns: 2,001 is above the limit of 1,000" in refusal(tmp_path, "a.csv", "a," * 2000 + "\n")
    pd.DataFrame({"subject": ["dog"] * 1001}).to_parquet(tmp_path / "b.parquet")
    with pytest.raises(ValueError, match="its rows times columns: 1,001 is above"):
        read_prompts(tmp_path / "b.parquet")
    assert sentences.understood("a " * 1000 + "dog left of a cat") == sentences.FORM


def test_a_true_spreadsheet_numbers_as_names_and_a_column_twice_are_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.csv", "w") as file:
        file.writestr("xl/workbook.xml", "<workbook/>")
    assert "is a spreadsheet" in refusal(tmp_path, "a.csv", (tmp_path / "a.csv").read_bytes())
    table = pd.DataFrame({"subject": ["dog", "cat"], "relation": "above", "object": [5, 6]})
    table.to_parquet(tmp_path / "a.parquet")
    with pytest.raises(ValueError, match=r"a.parquet: row 1: prompt 0 has the object 5, which is none"):
        read_prompts(tmp_path / "a.parquet")
    twice = pd.concat([table.assign(object="cup"), table[["subject"]]], axis=1)
    with pytest.raises(ValueError, match="mine: the column 'subject' occurs twice"):
        prompt_sets.check_prompts(twice.assign(prompt_id=[1, 2]), "mine", prompt_sets.NEEDED)


def test_names_of_sets_of_none_of_a_folder_and_of_a_new_one(tmp_path: Path, monkeypatch) -> None:
    with pytest.raises(ValueError, match=r"^prompts: 'nothing' is neither a file nor one of sr2d, sr4g, geneval"):
        read_prompts("nothing")
    with pytest.raises(ValueError, match="is neither a file nor one of"):
        read_prompts(tmp_path)
    (tmp_path / "sr2d").mkdir()  # a checkout, say
    monkeypatch.chdir(tmp_path)
    assert len(read_prompts("sr2d")) == len(read_prompts(tmp_path / "sr2d")) == SETS["sr2d"].number
    monkeypatch.setattr(prompt_sets, "SETS", dict(SETS))
    table = pd.DataFrame({"prompt_id": [1]})
    prompt_set("ours", 1)(lambda: table)
    assert read_prompts("ours") is table
    with pytest.raises(ValueError, match=r"neither a file nor one of sr2d, sr4g, geneval, .*\bours$"):
        read_prompts("yours")


def test_a_profile_leaves_names_and_finds_files(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    values = {"geneval": "geneval", "sr2d": "sr2d", "file": str(tmp_path / "file"), "a.csv": str(tmp_path / "a.csv")}
    for value, becomes in {**values, "b/c": str(tmp_path / "b" / "c")}.items():
        assert absolute("04_evaluation", "prompts", value, tmp_path) == becomes


def test_compbench_in_capitals_with_full_stops(shared: Path, tmp_path: Path) -> None:
    path = shared / "prompts" / "t2icompbench_spatial_val.txt"
    plain = read_prompts(path)
    assert len(plain) == 215 and plain.attrs["left_out"] == 85
    lines = path.read_text().splitlines()
    shouted = "\ufeff" + "\n\n".join(f" {line.capitalize()}. \tsome note" for line in lines)
    table = read(tmp_path, "a.txt", shouted)
    pd.testing.assert_frame_equal(table.drop(columns="caption"), plain.drop(columns="caption"))
    assert table.attrs["left_out"] == 85 and table.caption[0] == "A girl on the top of a frog."
    assert list(others(table).values()) == [f"{text.capitalize()}." for text in others(plain).values()]


def test_geneval_lines_that_we_cannot_score_are_left_out(tmp_path: Path) -> None:
    def line(relation: str = "left of", count: int = 1, **more: str) -> str:
        include = [{"class": "cat", "count": 1}, {"class": "dog", "count": count, "position": [relation, 0], **more}]
        return json.dumps({"tag": "position", "include": include, "prompt": f"a dog {relation} a cat"})

    lines = [line(), line("near"), line(count=2), line(color="red"), line("right of")]
    table = read(tmp_path, "a.jsonl", "\n".join(lines))
    assert list(table.prompt_id) == [0, 4] and table.attrs["left_out"] == 3
    assert (table.subject == "dog").all() and list(table.relation) == ["left of", "right of"]


def test_hrs_bench(tmp_path: Path) -> None:
    """Columns and lines as in spatial_compositions_prompts.csv and size_compositions_prompts.csv."""
    header = "meta_prompt,obj1,obj2,obj3,obj4,rel1,rel2,synthetic_prompt\n"
    spatial = (
        "a horse below a car.,horse,car,,,below,,\n"
        "a dog on a banana.,dog,banana,,,on,,\n"
        "a car on the left of a airplane.,car,airplane,,,on the left of,,\n"
        "a person beneath a chair.,person,chair,,,beneath,,\n"
        "a car in the middle of banana and airplane.,car,banana,airplane,,in the middle of,,\n"
        "a banana above a dog and on a horse.,banana,dog,horse,,above,on,\n"
        "a car and horse beneath a chair and below a dog.,car,horse,chair,dog,beneath,below,\n"
    )
    table = read(tmp_path, "spatial_compositions_prompts.csv", header + spatial)
    assert list(table.relation) == ["below", "above", "left of", "below"] and table.attrs["left_out"] == 3
    assert list(table.prompt_id) == [0, 1, 2, 3] and table.caption[1] == "a dog on a banana."
    assert list(others(table)) == ["4", "5", "6"]
    size = header + '"a airplane and a car, the airplane is bigger than the car.",airplane,car,,,bigger,,\n'
    assert list(read(tmp_path, "size_compositions_prompts.csv", size).relation) == ["larger"]


def test_nsr_1k(tmp_path: Path) -> None:
    """Fields as in dataset/NSR-1K/spatial/spatial.val.json."""

    def row(id: int, relation: str, prompt: str, type: str = "template") -> dict:
        box = [0.0, 0.228265625, 0.19818750000000002, 0.264390625]
        return {"id": id, "image_id": 16164, "obj1": ["toilet", box], "obj2": ["hot dog", box], "prompt": prompt,
                "relation": relation, "type": type}  # fmt: skip

    known = {"left": "to the left of", "right": "to the right of", "bottom": "under", "top": "on top of"}
    rows = [row(i, name, f"a toilet {phrase} a hot dog") for i, (name, phrase) in enumerate(known.items(), 739)]
    rows.append(row(938, "next to", "A toilet next to a hot dog.  ", "natural"))
    table = read(tmp_path, "spatial.val.json", json.dumps(rows, indent=4, separators=(",", ":")))
    assert list(table.prompt_id) == [739, 740, 741, 742] and table.attrs["left_out"] == 1
    assert list(table.relation) == ["left of", "right of", "below", "above"] and set(table.object) == {"hot dog"}
    assert others(table) == {"938": "A toilet next to a hot dog."}


def test_what_is_left_out_or_not_drawn_is_remembered_in_files(tmp_path: Path) -> None:
    write_given_prompts(tmp_path / "a.parquet", source="sr2d")
    table = pd.read_parquet(tmp_path / "a.parquet")
    assert len(others(table)) == table.attrs["left_out"] == 6_400 and others(table)["31600"] == "a person"
    drawn = draw_prompts(table, per_relation=3, seed=0)
    assert len(drawn) == 12 and len(others(drawn)) == 31_680 - 12
    assert not set(others(drawn)) & set(drawn.prompt_id.astype(str))


@mutate.numbers(200)
def test_mutated_prompt_files_end_in_a_right_table_or_one_line(number: int) -> None:
    ends = mutate.run("prompts", number)
    assert min(ends["right"], ends["refused"]) > number / 4


def test_headers_in_any_case_and_what_a_table_has(tmp_path):
    (tmp_path / "a.csv").write_text("Prompt\na dog to the left of a cat\n")
    assert prompt_sets.read_prompts(tmp_path / "a.csv").subject.tolist() == ["dog"]
    (tmp_path / "b.csv").write_text("sentence,id\na dog to the left of a cat,1\n")
    with pytest.raises(
        ValueError, match="or a sentence in a column prompt, caption, text; this table has sentence, id"
    ):
        prompt_sets.read_prompts(tmp_path / "b.csv")
