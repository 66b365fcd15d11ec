"""The run folder: stages, figures, tables and results, and the processes that share one."""

import html
import json
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from sr4g_utils.running import done
from sr4g_utils.store import files
from sr4g_utils.store import run as store_run


def make(path: Path, text: str, **about: object) -> dict:
    """A stage: counts in the file itself how often it was called."""
    calls.append(path)
    files.write_text(path, text)
    return {"n": len(text), **about}


def make_folder(path: Path, parts: int, fail_at: int | None = None) -> int:
    """A heavy stage with a state of its own: what is there is not made again."""
    path.mkdir(parents=True, exist_ok=True)
    for i in range(parts):
        if not (path / f"{i}.txt").exists():
            if i == fail_at:
                raise OSError("no more")
            calls.append(path / f"{i}.txt")
            files.write_text(path / f"{i}.txt", str(i))
    return parts


calls: list[Path] = []


@pytest.fixture
def run(tmp_path):
    calls.clear()
    return store_run.Run(tmp_path / "run", "01_test")


def test_a_stage_is_made_once(run):
    path, result = run.stage("a/b.txt", make, text="hello")
    assert path == run.folder / "artifacts" / "a" / "b.txt" and result == {"n": 5}
    assert run.stage("a/b.txt", make, text="hello") == (path, {"n": 5}) and len(calls) == 1
    assert done.outputs("01_test", run.folder) == ["artifacts/a/b.txt"]


def test_a_stage_is_made_again_for_another_configuration_input_or_output(run, tmp_path):
    source = tmp_path / "in.txt"
    source.write_text("1")

    def stage(text="hello"):
        return run.stage("b.txt", copy, {"source": source}, text=text)[0].read_text()

    def copy(path, source, text):
        calls.append(path)
        files.write_text(path, text + source.read_text())

    copy.__module__ = "sr4g_utils.runs"
    made = run.folder / "artifacts" / "b.txt"
    assert stage() == stage() == "hello1" and len(calls) == 1
    assert stage("bye") == "bye1" and len(calls) == 2
    changes = (lambda: source.write_text("2"), lambda: made.write_text("damaged"), made.unlink)
    for number, change in enumerate(changes, 3):
        change()
        assert stage("bye") == "bye2" and len(calls) == number


KINDS = {
    "prompt file": ("p.csv", ""), "local model": ("sd", "model_index.json"), "detector": ("judge", "config.json"),
    "checksums in a mapping": ("sums.txt", ""), "network": ("inception.pt", ""),
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_in_a_file_that_a_configuration_names_counts_and_not_its_name(run, tmp_path, kind):
    """The stage makes it anew, and the notebook is not done."""
    name, inner = KINDS[kind]
    named, file = tmp_path / name, tmp_path / name / inner if inner else tmp_path / name
    files.write_text(file, "1")
    about = {"id": "a/b", "checksums": str(named)} if "mapping" in kind else str(named)
    for _ in range(2):
        run.stage("made.txt", make, text="a", source=about)
    assert len(calls) == 1 and str(named) in run.inputs
    before = run.inputs[str(named)]
    file.write_text("2")
    run.stage("made.txt", make, text="a", source=about)
    assert len(calls) == 2 and run.inputs[str(named)] != before


def test_files_of_a_pattern_are_inputs_those_to_come_as_well(run, tmp_path):
    for name in "ab":
        files.write_text(tmp_path / "sweep" / name / "scores.json", name)
        assert [path.parent.name for path in run.read_all(tmp_path / "sweep", "*/scores.json")][-1] == name
    (key,) = run.inputs
    assert files.digest(Path(key)) == run.inputs[key]
    (tmp_path / "sweep" / "a" / "scores.json").write_text("other")
    changed = files.digest(Path(key))
    files.write_text(tmp_path / "sweep" / "c" / "scores.json", "c")
    assert len({run.inputs[key], changed, files.digest(Path(key))}) == 3


def test_only_heavy_stages_outlive_a_change_of_code(run, monkeypatch, capsys):
    run.stage("light.txt", make, text="a")
    run.stage("heavy.txt", make, text="a", heavy=True)
    assert len(calls) == 2
    monkeypatch.setattr(store_run, "code_digest", lambda module=None: "other code")
    run.stage("light.txt", make, text="a")
    assert [path.name for path in calls] == ["light.txt", "heavy.txt", "light.txt"]
    assert capsys.readouterr().err == ""
    run.stage("heavy.txt", make, text="a", heavy=True)
    assert len(calls) == 3 and "heavy.txt was made by other code than today's; delete" in capsys.readouterr().err


def test_an_interrupted_folder_goes_on_and_another_configuration_starts_afresh(run, capsys):
    for _ in range(2):
        with pytest.raises(OSError, match="no more"):
            run.stage("images", make_folder, parts=4, fail_at=2)
        assert len(calls) == 2 and capsys.readouterr().err == ""
    assert run.stage("images", make_folder, parts=4)[1] == 4 and len(calls) == 2 + 4
    assert "images was made under another configuration" in capsys.readouterr().err
    assert run.stage("images", make_folder, parts=4)[1] == 4 and len(calls) == 6
    (run.folder / "artifacts" / "images" / "1.txt").unlink()
    assert run.stage("images", make_folder, parts=4)[1] == 4 and len(calls) == 7  # only what is missing


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package whose modules import each other in every way; what changes its files, by name."""
    folder = tmp_path / "package"
    monkeypatch.setattr(store_run, "PACKAGE", folder)
    monkeypatch.setattr(store_run, "ROOMS_OF_RUNS", ("package.store", "package.running"))
    sources = {
        "__init__": "", "top": "from . import mid, other\n", "mid": "from .low import (\n    a,\n    b,\n)\n",
        "low": "a = b = 1\n", "other": "from .running.files import x\n", "far": "x = 1\n",
        "running/__init__": "", "running/files": "from ..far import x\n",
        "room/__init__": "", "room/inner": "from .. import top\n\ndef f():\n    from . import beside\n",
        "room/beside": "import package.low\n\ny = 1\n",
    }  # fmt: skip

    def change(name: str, text: str) -> None:
        path = folder / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        store_run.code_digest.cache_clear()

    for name, text in sources.items():
        change(name, text)
    yield change
    store_run.code_digest.cache_clear()


def test_code_digest_follows_imports(package):
    def digests():
        return [store_run.code_digest(f"package.{name}") for name in ("top", "room.inner")] + [store_run.code_digest()]

    def changed(name, text):
        before = digests()
        package(name, text)
        return [one != other for one, other in zip(before, digests(), strict=True)]

    assert changed("far", "x = 2\n") == [False, False, True]
    assert changed("running/files", "from ..far import x\n\ny = 2\n") == [False, False, True], "where files lie"
    assert changed("low", "a = b = 2\n") == [True, True, True]
    assert changed("room/beside", "import package.low\n\ny = 2\n") == [False, True, True]
    assert changed("room/__init__", "z = 1\n") == [False, True, True]


def test_comments_docstrings_and_layout_are_no_code(package):
    package("low", '"""One."""\n\n\ndef f(x):\n    """Two."""\n    return x + 1\n')
    before = store_run.code_digest("package.top"), store_run.code_digest()
    package("low", '"""Three."""\ndef f(x):  # the next one\n    return (x +\n        1)\n')
    assert (store_run.code_digest("package.top"), store_run.code_digest()) == before
    package("low", '"""Three."""\ndef f(x):\n    return x + 2\n')
    assert store_run.code_digest("package.top") != before[0]


def test_a_file_of_data_counts_where_it_is_named(package, tmp_path, monkeypatch):
    monkeypatch.setattr(files, "DATA", tmp_path / "data")
    package("low", 'a = b = "looks.yaml"\n')
    (tmp_path / "data").mkdir()
    digests = []
    for text in ("1", "2"):
        (tmp_path / "data" / "looks.yaml").write_text(text)
        store_run.code_digest.cache_clear()
        digests.append([store_run.code_digest(f"package.{name}") for name in ("top", "far")])
    assert digests[0][0] != digests[1][0] and digests[0][1] == digests[1][1]


def test_a_function_of_no_module_is_a_stage_too(run):
    """As one that is written in a notebook."""
    scope: dict = {"__name__": "__main__", "write_text": files.write_text}
    exec("def written(path, n):\n    write_text(path, str(n))", scope)
    assert run.stage("n.txt", scope["written"], n=3)[0].read_text() == "3"


def test_reading_what_is_not_there(run):
    with pytest.raises(FileNotFoundError, match=r"prompts.parquet is missing: run the notebook that makes it first"):
        run.read("prompts.parquet")
    with pytest.raises(FileNotFoundError, match=r"nowhere.json is missing: check the path"):
        run.read("/nowhere.json")


def test_tables(run):
    table = pd.DataFrame({"relation": ["left of", "above"], "n": [1234567, 2], "kappa": [0.123456789, None]})
    assert run.table(table, "t", "A caption") is table
    pd.testing.assert_frame_equal(pd.read_csv(run.folder / "tables" / "t.csv"), table)
    markdown = (run.folder / "tables" / "t.md").read_text()
    assert markdown.startswith("**A caption**\n\n") and "1,234,567" in markdown and "0.1235" in markdown
    assert "–" in markdown and "nan" not in markdown.lower()
    latex = (run.folder / "tables" / "t.tex").read_text()
    assert latex.startswith("% A caption\n") and r"\toprule" in latex


def test_figures_are_the_same_bytes_each_time(run):
    import matplotlib.pyplot as plt
    from PIL import Image

    def bytes_of():
        figure, axis = plt.subplots()
        axis.plot([1, 2, 3])
        run.figure(figure, "f", "Three points")
        plt.close(figure)
        return [(run.folder / "figures" / f"f.{suffix}").read_bytes() for suffix in ("png", "pdf")]

    first = bytes_of()
    assert bytes_of() == first and b"Date" not in first[1]
    assert Image.open(run.folder / "figures" / "f.png").info["Description"] == "Three points"


def test_results_carry_their_provenance(run, tmp_path, monkeypatch):
    table = pd.DataFrame({"n": [9_815_810], "share": [1 / 3]})
    run.result(table, "counts", annotations="train2017", seed=0)
    saved = json.loads((run.folder / "artifacts" / "results" / "counts.json").read_text())
    assert saved["about"] == {"annotations": "train2017", "seed": 0}
    assert {"sr4g_utils", "commit", "python", "numpy", "torch", "diffusers", "machine"} <= set(saved["provenance"])
    monkeypatch.setattr(files, "DATA", tmp_path / "data")
    files.write_json(tmp_path / "data" / "results" / "coco" / "counts.json", saved)
    rows, about = run.recorded("counts")
    pd.testing.assert_frame_equal(rows, table)
    assert about["seed"] == 0 and about["numpy"]


def test_what_a_notebook_no_longer_makes_goes_but_for_artifacts(run, monkeypatch):
    monkeypatch.setattr(done, "_key", lambda *_: "key")
    for name in ("tables/old.csv", "figures/old.png", "artifacts/results/old.json", "artifacts/images/old.png"):
        files.write_text(run.folder / name, "old")
    before = [str(path.relative_to(run.folder)) for path in run.folder.rglob("old.*")]
    run.table(pd.DataFrame({"a": [1]}), "new", "A caption")
    done.finish("01_test", {}, run.folder, [], before)
    assert [path.name for path in run.folder.rglob("old.*")] == ["old.png"]
    assert (run.folder / "artifacts" / "images" / "old.png").exists() and (run.folder / "tables" / "new.csv").exists()


def test_names_in_a_table_part_no_cells_and_are_no_numbers(run):
    names = ["a|b", "1e3", "$5^", "<b>x</b>", "_base"]
    run.table(pd.DataFrame({"model": names, "a|c": range(5)}), "names", "Of a|b and _base")
    text = (run.folder / "tables" / "names.md").read_text()
    caption, _, *lines = text.splitlines()
    assert {line.count("|") for line in lines} == {3} and caption == "**Of a&#124;b and &#95;base**"
    assert [html.unescape(line.split("|")[1].strip()) for line in lines[2:]] == names
    assert (run.folder / "tables" / "names.tex").read_text().startswith("% Of a|b and _base\n")
    run.note = "Judged by a_ at 0.1"
    run.table(pd.DataFrame({"a": [1]}), "judged", "A caption")
    assert (run.folder / "tables" / "judged.md").read_text().endswith("|\n\nJudged by a&#95; at 0.1\n")
    assert (run.folder / "tables" / "judged.tex").read_text().endswith("\n% Judged by a_ at 0.1\n")


@pytest.mark.slow("kills and races")
@pytest.mark.parametrize(("script", "arguments", "last"), [
    ("kill.py", ["--number", "10", "--small"], "studies: the same bytes"),
    ("together.py", ["--times", "3"], "16 processes at once, 3 times: 0 times something went wrong"),
])  # fmt: skip
def test_processes_that_are_killed_or_start_together_leave_the_bytes_of_one(script, arguments, last) -> None:
    """A small part of what the scripts do at length."""
    command, where = [sys.executable, files.ROOT / "tests" / script, *arguments], {"PYTHONPATH": str(files.ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **where}, timeout=900)
    assert done.returncode == 0 and done.stdout.splitlines()[-1].endswith(last), done.stdout + done.stderr[-2000:]
