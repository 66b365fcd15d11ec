"""ARTIFACT.md: a row for every claim, real commands, and the records' values."""

import re
import shlex

import pytest

import run_all
from sr4g_utils.dataset import prompt_sets
from sr4g_utils.running import profiles
from sr4g_utils.store import files
from sr4g_utils.store.files import ROOT

PAGE = (ROOT / "ARTIFACT.md").read_text(encoding="utf-8").replace("−", "-")
ROWS = {cells[0]: cells for line in PAGE.splitlines() if line.startswith("| ")
        for cells in [[cell.strip() for cell in line.strip("|").split("|")]]}  # fmt: skip
RESULTS = ROOT / "data" / "results"


def recorded(profile: str, name: str) -> list[dict]:
    return files.read_json(RESULTS / profile / f"{name}.json")["rows"]


def test_every_claim_of_the_paper_has_a_row_with_the_recorded_verdict():
    verdicts = {row["claim"]: row["verdict"] for row in recorded("miniature", "claims")}
    for number, claim in files.reported("claims").items():
        name = f"{number}. {claim['claim']}"
        assert ROWS[name][1:] == [verdicts[name], "`claims`"]


def test_every_row_of_the_readmes_results_has_one():
    readme = (ROOT / "README.md").read_text(encoding="utf-8").replace("−", "-")
    told = re.findall(r"^\| (\w+, [\w ]+) \| [\d.]+ \| [\d.]+ \| ([^|]+) \|$", readme, re.MULTILINE)
    assert len(told) == 3
    for claim, change in told:
        assert ROWS[claim][1] == change
        metric, objects = claim.split(", ")
        (row,) = [
            r for r in recorded("miniature", "changes")
            if (r["relation"], r["metric"], r["objects"]) == ("all", metric, objects.replace("both", "all").split()[0])
        ]  # fmt: skip
        assert change == f"{row['difference']:+.1f} [{row['low']:+.1f}, {row['high']:+.1f}]"


@pytest.mark.parametrize(("claim", "counted", "categories"), [
    ("captions", "triplets per image", "all"), ("evaluation captions", "distinct triplets", "different"),
])  # fmt: skip
def test_the_datasets_counts(claim, counted, categories):
    assert claim in files.reported("dataset")
    (cells,) = [cells for name, cells in ROWS.items() if name.startswith(f"{claim}:")]
    (row,) = [
        r for r in recorded("coco", "reconstruction")
        if [r[key] for key in ("images", "rules", "boxes", "counted", "categories")]
        == ["train", "visor", "all boxes", counted, categories]
    ]  # fmt: skip
    assert cells[3] == f"{row['n']:,}, exactly"


def test_the_cheap_ones_come_out():
    assert len(prompt_sets.read_prompts("sr4g")) == 62_460
    n = sum(r["n"] for r in recorded("coco", "human_agreement") if (r["rules"], r["frame"]) == ("visor", "all"))
    assert f"{n:,}, exactly" in ROWS["agreement with 6,197 human judgements"]


def test_every_confirmatory_test_has_a_row():
    for row in recorded("experiments", "confirmed"):
        (cells,) = [cells for name, cells in ROWS.items() if name == f"{row['claim']}: {row['what']}"]
        digits = ".0f" if row["what"].startswith("relations") else "+.1f"
        number = f"{row['number']:{digits}} [{row['low']:{digits}}, {row['high']:{digits}}]"
        assert cells[1:] == [number, row["test"], "`confirmed`"]


def test_the_commands_and_tables_are_real():
    for command in re.findall(r"`(run_all\.py [^`…]+)`", PAGE):
        args = run_all.arguments(shlex.split(command)[1:])
        profiles.read_profile(args.profile)
    for name, cells in ROWS.items():
        for table in re.findall(r"`([a-z_]+)`", cells[-1]):
            assert list(RESULTS.glob(f"*/{table}.json")), (name, table)
