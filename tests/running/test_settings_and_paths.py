"""Settings and paths as people write them; the run folder that they get, and the Python that runs there."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from test_run_all import Study

import run_all
from sr4g_utils import __main__
from sr4g_utils.evaluation import generate
from sr4g_utils.running import profiles
from sr4g_utils.store import files

ROOT = Path(__file__).resolve().parents[2]


def load(path: Path, *settings: str) -> dict:
    return profiles.load_profile(str(path), list(settings), path.parent / "run")


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    (tmp_path / "mine.yaml").write_text("04_evaluation:\n03_finetuning:\n02_dataset:\n")
    return tmp_path / "mine.yaml"


@pytest.mark.parametrize("name", ["my #1.csv", "a: b.csv", "[1].csv", "{1}.csv", "*.csv", "it's.csv", "12:30"])
def test_a_path_is_taken_as_it_is_written_and_a_quoted_one_is_what_the_quotes_hold(mine, name) -> None:
    assert load(mine, f"prompts=/x/{name}")["04_evaluation"]["prompts"] == f"/x/{name}"
    assert load(mine, "prompts='/x/my #1.csv'")["04_evaluation"]["prompts"] == "/x/my #1.csv"


@pytest.mark.parametrize("text", ["1e-5", "1E-5", "1.0e-5", ".00001", "0.00001"])
def test_a_number_is_a_number_in_a_setting_and_in_a_profile(mine, text) -> None:
    assert load(mine, f"lr={text}")["03_finetuning"]["lr"] == 1e-5
    mine.write_text(f"03_finetuning: {{lr: {text}}}\n04_evaluation: {{sampling: {{guidance: {text}}}}}\n")
    found = load(mine)
    assert found["03_finetuning"]["lr"] == 1e-5 and found["04_evaluation"]["sampling"] == {"guidance": 1e-5}


def test_a_whole_number_may_have_an_exponent_and_yaml_of_the_last_century_is_text(mine) -> None:
    steps = load(mine, "steps=1e5")["03_finetuning"]["steps"]
    assert steps == 100_000 and isinstance(steps, int)
    with pytest.raises(ValueError, match=r"steps must be a whole number, got 1\.5"):
        load(mine, "steps=1.5")
    for text in ("12:30", "yes", "on", "2024-01-01", "007", "1_000"):
        assert files.read_yaml(text) == text
    assert [files.read_yaml(text) for text in ("true", "~", "", "-3", "1.5")] == [True, None, None, -3, 1.5]


def test_a_command_takes_settings_as_the_profiles_do(tmp_path, monkeypatch, capsys) -> None:
    given: dict = {}
    monkeypatch.setattr(generate, "write_images", lambda folder, prompts, **more: given.update(more))
    model = tmp_path / "my #1"
    settings = ["--set", "guidance=1e0", "--set", "negative_prompt=ugly #1"]
    monkeypatch.setattr(__main__, "write_given_prompts", lambda path, source: {"left_out": 0})
    command = ["generate", str(tmp_path), "--prompts", str(tmp_path / "p.parquet"), "--model", str(model), *settings]
    assert __main__.main(command) == 0
    assert given["model"] == str(model) and given["sampling"] == {"guidance": 1.0, "negative_prompt": "ugly #1"}


def test_paths_of_a_profile_follow_the_profile_and_those_of_a_setting_the_caller(tmp_path, monkeypatch) -> None:
    at, caller = tmp_path / "project", tmp_path / "elsewhere"
    for folder in (at / "weights", at / "tuned", at / "sub", caller / "weights"):
        folder.mkdir(parents=True)
    (at / "mine.yaml").write_text(
        "all: {train_annotations: a.json}\n02_dataset:\n"
        "04_evaluation:\n  prompts: mine.csv\n  detector: {folder: weights, checksums: SUMS}\n"
        "  models: {a: {model: weights, unet: tuned}, b: {model: {folder: weights}}, c: {images: pictures},\n"
        "    d: {model: ../other}, e: {model: owner/name, unet: finetune_unseen/best}}\n"
    )
    (at / "sub" / "child.yaml").write_text("extends: ../mine.yaml\n04_evaluation: {inception: ./weights}\n")
    monkeypatch.chdir(caller)
    for child in (False, True):
        found = load(at / "sub" / "child.yaml", "prompts=set.csv") if child else load(at / "mine.yaml")
        own = found["04_evaluation"]
        assert own["models"] == {
            "a": {"model": str(at / "weights"), "unet": str(at / "tuned")},
            "b": {"model": {"folder": str(at / "weights")}},
            "c": {"images": str(at / "pictures")}, "d": {"model": str(tmp_path / "other")},
            "e": {"model": "owner/name", "unet": "finetune_unseen/best"},
        }  # fmt: skip
        assert own["detector"] == {"folder": str(at / "weights"), "checksums": str(at / "SUMS")}
        assert found["02_dataset"]["train_annotations"] == str(at / "a.json")
        assert own["prompts"] == str(caller / "set.csv" if child else at / "mine.csv")
        two = load(at / "mine.yaml", "detector=[owner/name, {folder: ./weights}, ./weights]", "threshold=[0.1, 0]")
        theirs = str(caller / "weights")
        assert two["04_evaluation"]["detector"] == ["owner/name", {"folder": theirs}, theirs]
        assert own.get("inception") == (str(at / "sub" / "weights") if child else None)


def test_two_profiles_of_one_name_do_not_share_a_run_folder(tmp_path, capsys) -> None:
    a, b = tmp_path / "a" / "config.yaml", tmp_path / "b" / "config.yaml"
    runs = tmp_path / "runs"
    for path in (a, b):
        path.parent.mkdir()
        path.write_text("02_dataset:\n")
    first = profiles.run_folder(runs, str(a))
    assert first == runs / "config"
    profiles.claim(first, str(a))
    assert profiles.run_folder(runs, str(a)) == first and capsys.readouterr().err == ""
    second = profiles.run_folder(runs, str(b))
    assert second.parent == runs and second.name.startswith("config-") and len(second.name) == 13
    assert f"{first} is for {a}: the results of {b} are in {second}" in capsys.readouterr().err
    profiles.claim(second, str(b))
    assert profiles.run_folder(runs, str(b)) == second
    shipped = tmp_path / "miniature.yaml"
    shipped.write_text("02_dataset:\n")
    assert profiles.run_folder(runs, "miniature") == runs / "miniature" != profiles.run_folder(runs, str(shipped))
    # a project that was copied or moved keeps its run folder
    shutil.copytree(tmp_path, tmp_path / "copy")
    copied = tmp_path / "copy"
    assert profiles.run_folder(copied / "runs", str(copied / "a" / "config.yaml")) == copied / "runs" / "config"
    shutil.move(a, tmp_path / "a" / "old.yaml")
    assert profiles.run_folder(runs, str(b)) == first, "its owner is gone"


CELLS = [
    "# 01 · One",
    'from os import PathLike\n\nrun_folder: str | PathLike = "x"',
    'import os\nimport sys\nfrom sr4g_utils.store.run import Run\nrun = Run(run_folder, "01_one")',
    "print('python', sys.executable)\nprint('wait', os.environ.get('OMP_WAIT_POLICY'))",
]


def test_braces_in_paths_and_another_python3_on_the_jupyter_path(tmp_path) -> None:
    spec = tmp_path / "jupyter" / "kernels" / "python3"
    spec.mkdir(parents=True)
    about = {"argv": ["/bin/false", "{connection_file}"], "display_name": "Another", "language": "python"}
    (spec / "kernel.json").write_text(json.dumps(about))
    runs = tmp_path / "runs {a} {} {0}"
    environment = {**os.environ, "JUPYTER_PATH": str(spec.parents[1]), "OMP_WAIT_POLICY": "passive"}
    Study(tmp_path / "a {study}", {"01_one": CELLS})("--runs", str(runs), env=environment)
    log = (runs / "miniature" / "run.log").read_text()
    assert f"python {sys.executable}\n" in log and "wait passive" in log
    assert (runs / "miniature" / "notebooks" / "01_one.html").is_file()


WAITING = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME", "OMP_NUM_THREADS")


@pytest.mark.parametrize("name", [None, *WAITING])
@pytest.mark.parametrize("busy", [3.0, 60.0])
def test_cores_are_shared_where_others_work_unless_the_user_says_otherwise(monkeypatch, name, busy) -> None:
    monkeypatch.setattr("psutil.cpu_percent", lambda interval: busy)
    monkeypatch.setattr("os.cpu_count", lambda: 8)
    for each in (*WAITING, "SR4G_SHARES_CORES"):
        monkeypatch.setenv(each, "7")  # so that it is put back
        if each != name:
            monkeypatch.delenv(each)
    files.share_cores()
    share = {"OMP_WAIT_POLICY": "passive", "KMP_BLOCKTIME": "0", "OMP_NUM_THREADS": "3"}
    expected = {name: "7"} if name else share if busy == 60.0 else {}
    assert {each: os.environ[each] for each in WAITING if each in os.environ} == expected
    monkeypatch.setattr("psutil.cpu_percent", lambda interval: 3.0)
    files.share_cores()  # before the next notebook: the others are through
    assert {each: os.environ[each] for each in WAITING if each in os.environ} == ({name: "7"} if name else {})


def test_the_commands_set_it_before_torch() -> None:
    code = "import sys, sr4g_utils.__main__; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout == "False\n", done.stderr


def test_a_dry_run_says_where_a_distilled_model_is_sampled_otherwise(tmp_path, capsys) -> None:
    asked = ["--profile", "evaluate", "--runs", str(tmp_path), "--dry-run", "--set"]
    assert run_all.main([*asked, "models={mine: {model: stabilityai/sdxl-turbo}}"]) == 0
    warning = "WARNING: stabilityai/sdxl-turbo is distilled: its model card samples it with 1 step at"
    assert warning in capsys.readouterr().out
    entry = "{model: stabilityai/sdxl-turbo, sampling: {steps: 4, guidance: 0}}"
    assert run_all.main([*asked, f"models={{mine: {entry}}}"]) == 0
    assert "WARNING" not in capsys.readouterr().out
