"""The whole study, end to end, at the size of the profile ``smoke``: every notebook and the shipped models."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from sr4g_utils.relations import NAMES
from sr4g_utils.running.done import outputs
from sr4g_utils.running.profiles import cells, notebooks
from sr4g_utils.store.files import DATA, ROOT, protocol

MODELS = DATA / "models"
pytestmark = [
    pytest.mark.slow("whole runs"),
    pytest.mark.skipif(not MODELS.is_dir(), reason="data/models is missing: the miniature's models"),
]


def run_all(folder: Path, *options: str, profile: str = "smoke") -> subprocess.CompletedProcess:
    command = [sys.executable, str(ROOT / "run_all.py"), "--profile", profile, "--runs", str(folder), *options]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "2"}
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    done = run_all(folder)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder / "smoke"


def rows(study: Path, name: str) -> pd.DataFrame:
    return pd.DataFrame(json.loads((study / "artifacts" / "results" / f"{name}.json").read_text())["rows"])


def test_every_notebook_leaves_its_results(study):
    assert [path.stem for path in sorted((study / "notebooks").glob("*.html"))] == list(notebooks())
    written = [name for notebook in notebooks() for name in set(outputs(notebook, study)) if "world/" not in name]
    assert len(written) == len(set(written)), "no notebook overwrites what another wrote"
    index = (study / "index.html").read_text()
    for figure in ("scores", "scores_per_relation", "contact_sheet", "bias", "gain_by_frequency", "ablation"):
        assert (study / "figures" / f"{figure}.png").stat().st_size > 5_000 and f"{figure}.png" in index
    claims = rows(study, "claims")
    known = {"holds", "contradicted", "undecided", "nothing to reduce", "not testable here"}
    assert claims.claim.str[0].tolist() == list("111122223334445555666") and set(claims.verdict) <= known
    assert (
        claims.what.str.endswith("by templates").sum() == 5
        and claims.what.str.endswith("median of the judges").sum() == 2
    )
    assert set(claims.verdict[-3:]) == {"not testable here"}  # no pipeline to compare with


COUNTS = (
    "no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve", "thirteen",
    "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen", "twenty", "twenty-one", "twenty-two",
    "twenty-three", "twenty-four", "twenty-five",
)  # fmt: skip


@pytest.mark.parametrize("name", list(notebooks()))
def test_an_opening_counts_what_is_written(study, name):
    opening = "".join(cells(name)[0]["source"])
    made = [Path(path) for path in dict.fromkeys(outputs(name, study))]
    for kind, suffix in (("table", ".md"), ("figure", ".png")):
        (said,) = re.findall(rf"([\w-]+) {kind}s?\b(?! more)", opening.partition("**Writes**")[2])
        found = [path.stem for path in made if path.parts[0] == f"{kind}s" and path.suffix == suffix]
        assert said == COUNTS[len(found)], found


def test_scores_are_of_both_models_and_both_sets_with_their_provenance(study):
    scores = rows(study, "scores")
    assert set(scores.model) == {"base", "fine-tuned"} and set(scores.objects) == {"seen", "unseen", "all"}
    assert set(scores.relation) <= {"all", *NAMES}
    found = json.loads((study / "artifacts" / "results" / "scores.json").read_text())
    about, provenance = found["about"], found["provenance"]
    assert (
        about["world"] == "miniature"
        and about["threshold"] == protocol()["thresholds"]["tiny-owlvit"]
        and about["detector"]["files"]
    )
    for model in ("base", "fine-tuned"):
        record = about["models"][model]
        assert record["sampling"]["steps"] == 8 and record["sampling"]["guidance"] == 5.0 and record["model"]["dtype"]
    assert about["models"]["base"]["model"]["files"] != about["models"]["fine-tuned"]["model"]["files"]
    assert len(about["prompts"]["sha256"]) == 64 and provenance["torch"] and provenance["commit"]


def test_no_unseen_category_is_fine_tuned_on_and_no_test_prompt_validates(study):
    tests = pd.read_parquet(study / "artifacts" / "prompts_test.parquet")
    assert set(tests.split) == {"test"} and set(tests.objects) == {"seen", "unseen"}
    unseen = tests[tests.objects == "unseen"]
    held_out = {*unseen.subject, *unseen.object}
    seen = tests[tests.objects == "seen"]
    assert held_out and not held_out & {*seen.subject, *seen.object}
    result = json.loads((study / "artifacts" / "finetune_unseen" / "result.json").read_text())["result"]
    assert held_out <= set(result["held_out"]) and len(result["held_out"]) == 8


def test_a_second_run_repeats_nothing_and_a_new_threshold_draws_nothing(study):
    again = run_all(study.parent)
    assert again.returncode == 0 and again.stdout.count("nothing changed, skipped") == len(notebooks())
    image = next((study / "artifacts" / "images" / "base").rglob("*.webp"))
    made = image.stat().st_mtime_ns
    other = run_all(study.parent, "--from", "04", "--set", "04.threshold=0.2")
    assert other.returncode == 0, other.stderr[-3000:]
    assert image.stat().st_mtime_ns == made
    assert json.loads((study / "artifacts" / "results" / "scores.json").read_text())["about"]["threshold"] == 0.2
    verified = run_all(study.parent, "--verify")
    assert verified.returncode == 2 and "the profile smoke has no record, on purpose" in verified.stderr


def test_any_model_is_evaluated_on_a_file_of_two_prompts(tmp_path):
    prompts = tmp_path / "mine.csv"
    prompts.write_text("subject,relation,object\ndog,left of,cat\ncup,inside,elephant\n")
    settings = {
        "prompts": prompts, "models": f"{{mine: {{model: {MODELS / 'tiny-sd'}}}}}", "detector": MODELS / "tiny-owlvit",
        "sampling": "{images: 2, steps: 4, guidance: 5.0, batch: 4}",
    }  # fmt: skip
    options = [option for name, value in settings.items() for option in ("--set", f"{name}={value}")]
    done = run_all(tmp_path, *options, profile="evaluate")
    assert done.returncode == 0, done.stderr[-3000:]
    scores = rows(tmp_path / "evaluate", "scores").query("relation == 'all' and metric == 'OA'")
    assert set(scores.model) == {"mine"} and set(scores.prompts) == {2} and set(scores.of) == {4}
