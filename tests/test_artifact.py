"""ARTIFACT.md: a row for every claim, real commands, and the records' values."""

import re
import shlex

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


def test_the_datasets_counts_and_the_cheap_ones_come_out():
    for claim, counted, categories in (
        ("captions", "triplets per image", "all"), ("evaluation captions", "distinct triplets", "different"),
    ):  # fmt: skip
        assert claim in files.reported("dataset")
        (cells,) = [cells for name, cells in ROWS.items() if name.startswith(f"{claim}:")]
        key = ["train", "visor", "all boxes", counted, categories]
        columns = ("images", "rules", "boxes", "counted", "categories")
        (row,) = [r for r in recorded("coco", "reconstruction") if [r[name] for name in columns] == key]
        assert cells[3] == f"{row['n']:,}, exactly"
    assert len(prompt_sets.read_prompts("sr4g")) == 62_460
    n = sum(r["n"] for r in recorded("coco", "human_agreement") if (r["rules"], r["frame"]) == ("visor", "all"))
    assert f"{n:,}, exactly" in ROWS["agreement with 6,197 human judgements"]


def test_the_commands_and_tables_are_real():
    for command in re.findall(r"`(run_all\.py [^`…]+)`", PAGE):
        args = run_all.arguments(shlex.split(command)[1:])
        profiles.read_profile(args.profile)
    for name, cells in ROWS.items():
        for table in re.findall(r"`([a-z_]+)`", cells[-1]):
            assert list(RESULTS.glob(f"*/{table}.json")), (name, table)
