"""The doors: the commands, the names of the package, and the wheel in an empty environment."""

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
import venv
from pathlib import Path

import pandas as pd
import pytest
from PIL import Image
from pretend import draw, make_prompts

import sr4g_utils
from sr4g_utils.__main__ import COMMANDS, main
from sr4g_utils.evaluation.scores import scores
from sr4g_utils.evaluation.verdicts import VARIANTS, verdicts
from sr4g_utils.store import files
from sr4g_utils.store.files import ROOT

PROMPTS = make_prompts()
BOXES = draw(PROMPTS, 0.7, seed=1)


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder with prompts and boxes, where commands are given."""
    PROMPTS.to_csv(tmp_path / "mine.csv", index=False)
    BOXES.to_csv(tmp_path / "boxes.csv", index=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_commands_are_listed(capsys):
    assert list(COMMANDS) == ["generate", "detect", "score", "finetune", "kit", "answers"]
    for arguments, code in ((["--help"], 0), (["--version"], 0), ([], 2), (["scores"], 2)):
        with pytest.raises(SystemExit) as stopped:
            main(arguments)
        assert stopped.value.code == code
    assert set(re.findall(r"^    (\w+) ", capsys.readouterr().out, re.MULTILINE)) >= set(COMMANDS)


@pytest.mark.parametrize(
    "command", [["run_all.py", "--list"], ["-m", "sr4g_utils", "score", "boxes.csv", "--prompts", "mine.csv"]]
)
def test_whoever_reads_no_further_is_told_nothing(here, command):
    command = [str(ROOT / part) if part == "run_all.py" else part for part in command]
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    options["env"] = os.environ | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen([sys.executable, *command], **options) as process:
        process.stdout.close()
        assert "roken pipe" not in process.stderr.read()
    assert process.returncode == 0


def test_score_prints_a_table_and_leaves_files(here, capsys):
    assert main(["score", "boxes.csv", "--prompts", "mine.csv", "--per-relation", "--out", "out"]) == 0
    text, expected = capsys.readouterr().out, scores(verdicts(PROMPTS, BOXES, 4))
    row = expected.query("relation == 'all' and metric == 'VISOR_Cond'").iloc[0]
    assert f"{row.value:.1f} [{row.low:.1f}, {row.high:.1f}] {row['count']:,} of {row.of:,}" in " ".join(text.split())
    assert "How it was judged: boxes of a detector that is not named (boxes.csv, sha256" in text
    assert "To cite: OA" in text and "left of" in text
    names = ["scores.csv", "scores.json", "scores.parquet", "verdicts.parquet"]
    assert sorted(path.name for path in (here / "out").iterdir()) == names
    for table in (pd.read_csv(here / "out" / "scores.csv"), pd.read_parquet(here / "out" / "scores.parquet")):
        pd.testing.assert_frame_equal(table.drop(columns="chance"), expected, check_dtype=False)
    assert len(pd.read_parquet(here / "out" / "verdicts.parquet")) == 4 * len(PROMPTS)
    assert main(["score", "boxes.csv", "--prompts", "mine.csv", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads((here / "out" / "scores.json").read_text())


def test_score_takes_the_settings_of_others(here, capsys):
    able = PROMPTS[PROMPTS.relation.isin(["left of", "above"])]
    able.to_csv(here / "able.csv", index=False)
    for options, settings in {
        "--as geneval": VARIANTS["geneval"], "--as visor --pairs best": VARIANTS["best-pair"],
        "--rules sg2im --threshold 0.85": {"rules": "sg2im", "threshold": 0.85},
    }.items():  # fmt: skip
        assert main(["score", "boxes.csv", "--prompts", "able.csv", "--json", *options.split()]) == 0
        rows = {(row["relation"], row["metric"]): row for row in json.loads(capsys.readouterr().out)["scores"]}
        expected = scores(verdicts(able, BOXES, 4, **settings)).set_index(["relation", "metric"])
        assert [row["count"] for row in rows.values()] == expected["count"].tolist()


def test_what_is_wrong_is_one_line(here, capsys):
    BOXES.iloc[:1].to_csv(here / "few.csv", index=False)
    for arguments, message in (
        (["nothing"], "nothing: no such folder of images or file of boxes"),
        (["boxes.csv"], "boxes.csv: does not say what was asked for; give the prompts, too"),
        (["boxes.csv", "--prompts", "mine.csv", "--corners"], "the column 'x1' is missing; corners are x1, y1, x2, y2"),
        (["few.csv", "--prompts", "mine.csv"], "--per-prompt"),
        (["boxes.csv", "--prompts", "mine.csv", "--threshold", "0.9999"], "the detector found nothing"),
        (
            ["boxes.csv", "--prompts", "mine.csv", "--allow-loss", "2"],
            "allow_loss: must be a number from 0 to 1, got 2.0",
        ),
    ):
        assert main(["score", *arguments]) == 1
        line = capsys.readouterr().err
        assert line.startswith("score: ") and message in line and line.count("\n") == 1


def test_a_missing_library_names_its_extra(here, monkeypatch, capsys):
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    lines = [f"{line}; extra == '{extra}'" for extra, of in extras.items() for line in of]
    lines += [line.replace("'models'", "'all'") for line in lines]  # as a wheel spells extras of extras
    monkeypatch.setattr(files, "requires", lambda _: ["numpy>=2.0", *lines])
    for name, extra in {"torch": "models", "papermill": "study", "nbgrader": "teach", "IPython": "study"}.items():
        line = files.extra_of(ModuleNotFoundError(name=f"{name}.part"))
        assert line == f"needs the extra {extra}: pip install 'sr4g_utils[{extra}]' (there is no {name})"
    assert files.extra_of(ModuleNotFoundError("No module named 'lunch'", name="lunch")) == "No module named 'lunch'"
    (here / "images").mkdir()
    Image.new("RGB", (8, 8)).save(here / "images" / "0_0.png")
    monkeypatch.setenv("SR4G_ALLOW_LOSS", "1")  # images of one prompt only
    for module in [name for name in sys.modules if name.startswith("sr4g_utils.models.")]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.delattr(sr4g_utils.models, "detectors", raising=False)
    monkeypatch.setitem(sys.modules, "torch", None)
    wanted = "needs the extra models: pip install 'sr4g_utils[models]' (there is no torch)"
    assert main(["detect", "boxes.parquet", "images", "--prompts", "mine.csv", "--detector", "x"]) == 1
    assert capsys.readouterr().err.endswith(f"detect: {wanted}\n")
    assert main(["score", "images", "--prompts", "mine.csv"]) == 1
    assert capsys.readouterr().err.endswith(f"score: {wanted}\n")


def test_the_names_of_the_package_are_loaded_when_they_are_used():
    code = "import sys, sr4g_utils; assert set(sys.modules).isdisjoint({'numpy', 'pandas'}); print(dir(sr4g_utils))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert all(f"'{name}'" in done.stdout for name in sr4g_utils.__all__) and len(sr4g_utils.__all__) < 15
    assert all(getattr(sr4g_utils, name) is getattr(sr4g_utils, name) for name in sr4g_utils.__all__)
    with pytest.raises(AttributeError, match="has no attribute 'lunch'"):
        _ = sr4g_utils.lunch


LIGHT = """
import sys, time
begin = time.process_time()
from sr4g_utils import read_prompts, scores, verdicts
seconds = time.process_time() - begin
assert not set(sys.modules) & {"torch", "scipy", "PIL", "matplotlib"}, "the light install stays light"
assert [len(read_prompts(name)) for name in ("sr2d", "sr4g")] == [25_280, 62_460]
from sr4g_utils.store.files import ledger, sources
from sr4g_utils.running.profiles import profile_path
assert len(ledger()) and "geneval_evaluation_metadata.jsonl" in sources() and profile_path("paper").is_file()
print(seconds)
"""


@pytest.mark.slow("builds a wheel, and installs it")
def test_the_wheel_is_whole_and_light(here):
    """Built, installed with its dependencies in an empty environment, and used in another folder."""
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    outside = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}

    def run(*command: object) -> str:
        done = subprocess.run([*map(str, command)], cwd=here, env=outside, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    source = here / "source"  # a build leaves nothing in the checkout
    source.mkdir()
    for name in ("sr4g_utils", "data", "pyproject.toml", "README.md", "LICENSE", "NOTICE", ".gitignore"):
        (shutil.copytree if (ROOT / name).is_dir() else shutil.copy)(ROOT / name, source / name)
    run(*pip, "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", here, source)
    (wheel,) = here.glob("*.whl")
    venv.create(here / "empty", with_pip=True)
    python, command = here / "empty" / "bin" / "python", here / "empty" / "bin" / "sr4g"
    before = size(here / "empty")
    run(python, "-m", "pip", "install", "--quiet", "--constraint", ROOT / "constraints.txt", wheel)
    packages = json.loads(run(python, "-m", "pip", "list", "--format=json"))
    assert len([p for p in packages if p["name"] not in ("pip", "setuptools")]) <= 25
    assert size(here / "empty") - before <= 400e6
    assert float(run(python, "-c", LIGHT)) < 1
    shutil.rmtree(source)
    assert run(command, "--version") == f"sr4g_utils {sr4g_utils.__version__}\n"
    for name in COMMANDS:
        assert run(command, name, "--help").startswith(f"usage: sr4g {name}")
    printed = json.loads(run(command, "score", "boxes.csv", "--prompts", "mine.csv", "--json"))
    main(["score", "boxes.csv", "--prompts", "mine.csv", "--out", "out"])
    assert printed == json.loads((here / "out" / "scores.json").read_text())
    generate = [command, "generate", "images", "--prompts", "sr4g", "--model", "nobody/nothing"]
    done = subprocess.run(generate, cwd=here, env=outside, capture_output=True, text=True)
    wanted = r"generate: needs the extra models: pip install 'sr4g_utils\[models\]' \(there is no \w+\)\n"
    assert done.returncode == 1 and re.search(wanted, done.stderr)
    assert {path.name for path in (here / "empty").rglob("licenses/*") if "sr4g" in str(path)} == {"LICENSE", "NOTICE"}


def size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file() and not path.is_symlink())


@pytest.mark.parametrize("option", [("--threshold", "nan"), ("--threshold", "-0.1"), ("--per-prompt", "0")])
def test_a_number_that_cannot_be_is_told_at_once(option, capsys):
    assert main(["score", "boxes.csv", "--prompts", "sr2d", *option]) == 1
    assert re.fullmatch(rf"score: {option[0]} must be at least .*, got .*\n", capsys.readouterr().err)
