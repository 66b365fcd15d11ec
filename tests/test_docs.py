"""README, ARTIFACT and docs: short, with real commands and links, and each number of a result is the record's."""

import json
import re
import shlex
import subprocess
from collections.abc import Iterator

import numpy as np
import pytest
from PIL import Image

import run_all
from sr4g_utils.__main__ import COMMANDS, arguments, main
from sr4g_utils.dataset import coco, prompt_sets, world
from sr4g_utils.evaluation import detect
from sr4g_utils.evaluation.detections import read_detections
from sr4g_utils.finetuning.captions import true_captions
from sr4g_utils.running import profiles
from sr4g_utils.store import files
from sr4g_utils.store.files import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = {path.name: path.read_text(encoding="utf-8") for path in (ROOT / "docs").glob("*.md")}
RESULTS = ROOT / "data" / "results"
LIMIT = files.protocol()["thresholds"]["tiny-owlvit"]


def rows(profile: str, result: str, **of: object) -> list[dict]:
    table = files.read_json(RESULTS / profile / f"{result}.json")["rows"]
    return [row for row in table if all(row[key] == value for key, value in of.items())]


def change(row: dict, value: str = "difference", low: str = "low", high: str = "high") -> str:
    return f"{row[value]:+.1f} [{row[low]:+.1f}, {row[high]:+.1f}]"


def flat(text: str) -> str:
    return " ".join(text.replace("−", "-").split())


def flat_lines(text: str) -> str:
    return "\n".join(map(flat, text.splitlines()))


def test_the_readme_is_short_and_commands_and_links_are_real():
    assert len(README.split()) <= 900
    makefile = (ROOT / "Makefile").read_text()
    for name, text in {"README.md": README, **PAGES}.items():
        for target in re.findall(r"(?:`|^)make (?:\w+=\S* )*(\w+)", text, re.MULTILINE):
            assert re.search(rf"^{target}:", makefile, re.MULTILINE), (name, target)
        for module in re.findall(r"python -m (sr4g_utils[\w.]*)", text):
            path = ROOT.joinpath(*module.split("."))
            assert path.with_suffix(".py").is_file() or (path / "__main__.py").is_file(), (name, module)
        start = ROOT if name == "README.md" else ROOT / "docs"
        for link in re.findall(r"\]\((?!http)([^)#]+)\)", text):
            assert (start / link).exists(), (name, link)
    for command in ("make test", "make lint"):
        assert command in (ROOT / ".ci" / "run").read_text()


def test_the_map_of_the_paper_names_sections_that_exist():
    headings = set()
    for path in (ROOT / "notebooks").glob("0*.ipynb"):
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        text = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")
        headings |= set(re.findall(r"^## (\d\.\d+) ", text, re.MULTILINE))
    paper, questions = (section.split("\n\n## ")[0] for section in PAGES["paper.md"].split("|---|---|---|\n")[1:])
    for row in [*paper.splitlines(), *questions.splitlines()]:
        what, place, answer = row.strip("| ").split(" | ")
        sections = set(re.findall(r"\d\.\d+", place))
        assert sections <= headings and (sections or "What was not run" in place), what
        assert row in paper or re.match(r"full( in the small world)?\b|(part|open): .", answer), what


def test_the_map_of_the_paper_tells_the_counts_of_parameters():
    counted = {name: row["value"] / 1e9 for name, row in files.reported("parameters").items()}
    one, two, vpgen = (counted[name] for name in ("stable diffusion 1.4", "stable diffusion 2.1", "VPGen"))
    told = f"Stable Diffusion 1.4 has {one:.2f} billion parameters and 2.1 has {two:.2f}, VPGen has {vpgen:.1f}"
    assert told in PAGES["paper.md"] and "a thirteenth of VPGen's" in PAGES["paper.md"] and round(vpgen / one) == 13


OTHERS = ("make", "conda", "cd", "nbgrader", "head=$(scontrol")  # other tests run make's; the rest is not ours


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```(?:{language})\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def commands(text: str) -> Iterator[list[str]]:
    """The words of each command in a page's shell blocks, with its own variables put in and others made up."""
    for block in blocks(text, "sh|bash"):
        own = dict(re.findall(r'^(\w+)="(.*)"$', block, re.MULTILINE))
        for line in block.replace("\\\n", " ").splitlines():
            for name, value in own.items():
                line = line.replace(f"${name}", value)
            line = re.sub(r"\$\(\(.*?\)\)|\\?\$\w+", "1", line)
            words = [] if re.match(r'\w+="', line) else shlex.split(line, comments=True)
            yield from [shlex.split(words[-1])] if words[:2] == ["srun", "bash"] else [words] if words else []


@pytest.mark.parametrize("name", ["README.md", *PAGES])
def test_every_command_is_understood(name, tmp_path):
    """By the parser of its door, with a profile and settings that there are."""
    for words in commands(README if name == "README.md" else PAGES[name]):
        match words:
            case ["python", "run_all.py", *options]:
                args = run_all.arguments(options)
                profiles.load_profile(args.profile, args.settings, tmp_path)
            case ["accelerate", "launch", *_] | ["sr4g", *_]:
                options = words[1:] if words[0] == "sr4g" else words[words.index("sr4g_utils") + 1 :]
                assert arguments(options).command == options[0]
            case [".venv/bin/python", "-c", code, ">", _]:
                exec(code, {})
            case _:
                assert words[0] in OTHERS, words


def test_the_examples_of_help_are_understood():
    for name, (_, work) in COMMANDS.items():
        for line in re.findall(rf"^ +(?:sr4g|.* -m sr4g_utils) ({name} .*)$", work.__doc__, re.MULTILINE):
            assert arguments(shlex.split(re.sub(r" {3,}.*", "", line))).command == name


@pytest.fixture
def read_along(tmp_path, monkeypatch):
    """The files of docs/evaluate.md's examples; in every image a detector finds the boxes of its table."""
    prompts, boxes = blocks(PAGES["evaluate.md"], "text")
    for name, text in {"mine.csv": prompts, "boxes.csv": boxes}.items():
        (tmp_path / name).write_text(text)
    table = read_detections(tmp_path / "boxes.csv")
    corners = table.assign(x1=table.x, y1=table.y, x2=table.x + table.w, y2=table.y + table.h)
    corners.drop(columns=["x", "y", "w", "h"]).to_csv(tmp_path / "corners.csv", index=False)
    image = {"classes": ["person", "bicycle"], "centroid": [[1, 1], [9, 1]], "sra": 1}
    (tmp_path / "results_sd.json").write_text(json.dumps({"1_0": image}))
    (tmp_path / "images").mkdir()
    for i in range(2):
        Image.new("RGB", (64, 64)).save(tmp_path / "images" / f"{i}_0.png")

    def found(path, *_, **options):
        path.parent.mkdir(exist_ok=True)
        table.to_parquet(path)
        return {"detector": {"id": str(options["detector"])}}

    for name in ("write_detections", "write_boxes"):
        monkeypatch.setattr(detect, name, found)
    own = prompt_sets.PromptSet("geneval", 2, lambda: prompt_sets.read_prompts(tmp_path / "mine.csv"))
    monkeypatch.setitem(prompt_sets.SETS, "geneval", own)  # which is downloaded
    monkeypatch.chdir(tmp_path)
    return {"images": [Image.new("RGB", (64, 64))] * 2, "prompts": [("dog", "left of", "cat"), ("cup", "above", "bed")]}


@pytest.mark.parametrize("name", ["README.md", "evaluate.md"])
def test_what_scores_runs_as_it_is_printed(name, read_along, capsys):
    text = README if name == "README.md" else PAGES[name]
    scored = [words[1:] for words in commands(text) if words[:2] == ["sr4g", "score"]]
    assert scored
    for words in scored:
        assert main(words) == 0, (words, capsys.readouterr().err)
        assert "VISOR_Cond" in capsys.readouterr().out
    for code in blocks(text, "python"):
        exec(code, dict(read_along))
        assert capsys.readouterr().out


def told(metric: str, objects: str) -> str:
    (row,) = rows("miniature", "changes", relation="all", metric=metric, objects=objects)
    where = "both" if objects == "all" else f"{objects} objects"
    return f"| {metric}, {where} | {row['before']:.1f} | {row['after']:.1f} | {change(row)}"


def readme_lines() -> list[str]:
    """The README's short form of the protocol's table: the median with its interval, and what each judge says."""
    verdicts = {row["claim"][0]: row["verdict"] for row in rows("miniature", "claims")}
    lines = []
    for claim, metric, objects in (("1", "VISOR_Cond", "seen"), ("2", "VISOR_Cond", "unseen"), ("5", "OA", "all"),
                                   ("", "VISOR", "seen"), ("", "VISOR", "unseen")):  # fmt: skip
        found = rows("miniature", "judges", model="fine-tuned", metric=metric, objects=objects)
        by = {row["judge"].split(" ")[0]: row for row in found if ", " not in row["judge"]}
        each = ", ".join(f"{by[judge]['gain']:+.1f}" if judge in by else "–" for judge in JUDGES[:-1])
        cells = [f"{metric}, {objects} objects", change(by["median"], "gain", "gain_low", "gain_high"), each]
        cells.append(f"{claim} {verdicts[claim]}".strip() if claim else "")
        lines.append(f"| {' | '.join(cells)} |".replace("  ", " "))
    return lines


def test_the_readme_leads_with_the_protocols_table():
    assert [line for line in readme_lines() if line not in flat(README)] == []


def test_the_recorded_verdicts_are_told():
    words = {"holds": "holds", "contradicted": "is contradicted", "undecided": "is undecided"}
    words |= {"nothing to reduce": "has nothing to reduce", "not testable here": "is not testable"}
    several = {"holds": "hold", "contradicted": "are contradicted", "undecided": "are undecided"}
    claims = rows("miniature", "claims")
    for verdict in dict.fromkeys(row["verdict"] for row in claims):
        numbers = list(dict.fromkeys(row["claim"][0] for row in claims if row["verdict"] == verdict))
        listed = " and ".join(filter(None, [", ".join(numbers[:-1]), numbers[-1]]))
        told = words[verdict] if len(numbers) == 1 else several[verdict]
        assert f"{listed} {told}" in flat(PAGES["results.md"]), (verdict, numbers)


def default_facts() -> list[str]:
    """What docs/results.md says of the default run, made from its records."""
    found = [told("VISOR_Cond", objects) for objects in ("seen", "unseen", "all")]
    found += [told("OA", "all"), told("VISOR", "all")]
    (chance,) = rows("miniature", "scores", relation="all", metric="VISOR_Cond", objects="all", model="base")
    found.append(f"chance is {chance['chance']:.0f}")
    (plain,) = rows("miniature", "plain", objects="all", model="fine-tuned")
    ends = change(plain, "change", "change_low", "change_high")
    found.append(f"| {plain['found'] - plain['change']:.1f} | {plain['found']:.1f} | {ends} |")
    before, after = (row["absent"] for row in rows("miniature", "absent", judge="tiny-owlvit", threshold=LIMIT))
    found.append(f"| {before:.1f} | {after:.1f} | |")
    before, after = rows("miniature", "fidelity_detector", metric="KID")
    ends = f"{after['change']:+.3f} [{after['change_low']:+.3f}, {after['change_high']:+.3f}]"
    found.append(f"| {before['value']:.3f} | {after['value']:.3f} | {ends} |")
    (ceiling,) = rows("miniature", "ceiling", relation="all", metric="VISOR_Cond", judge="tiny-owlvit")
    found.append(f"a VISOR_Cond of {ceiling['value']:.0f}")
    of = {"model": "fine-tuned", "metric": "VISOR_Cond"}
    for row in rows("miniature", "judges", **of):
        (whole,) = rows(
            "miniature", "judges", **of | {"metric": "VISOR", "judge": row["judge"], "objects": row["objects"]}
        )
        bounds = "" if row["bound_low"] is None else f"{row['bound_low']:+.1f} to {row['bound_high']:+.1f}"
        cells = [change(row, "gain", "gain_low", "gain_high"), change(row, "complete", "complete_low", "complete_high")]
        cells += [bounds, change(whole, "gain", "gain_low", "gain_high")]
        found.append(f"| {row['judge']} | {row['objects']} | {' | '.join(cells)} |".replace("|  |", "| |"))
    (whose,) = rows("miniature", "whose_gain_fine-tuned", objects="all", images="as each judge finds them")
    found.append(f"the median of the others' is {change(whose)} points")
    (whose,) = rows("miniature", "whose_gain_fine-tuned", objects="all", metric="VISOR")
    found.append(f"of VISOR it is {change(whose)}")
    return found + protocol_lines()


JUDGES = [*files.protocol()["world"]["judges"], "median"]  # the first leads, and is named in no test's words


def claims_by_judge() -> dict[tuple[str, str], dict[str, dict]]:
    """The tests of the default run's claims, by the claim's number and what is tested, and then by judge."""
    tests: dict[tuple[str, str], dict[str, dict]] = {}
    for row in rows("miniature", "claims"):
        what, judge = re.fullmatch(r"(.*?)(?:, (?:by )?([\w-]+)(?: of the judges)?)?", row["what"]).groups()
        if judge not in JUDGES:
            what, judge = row["what"], JUDGES[0]
        tests.setdefault((row["claim"][0], what), {})[judge] = row
    return {key: by for key, by in tests.items() if key[0] != "6"}  # there is no pipeline


def number(row: dict | None) -> str:
    if row is None or row["number"] is None:
        return "–"
    digits = ".0f" if row["what"].startswith("relations") else "+.1f"
    return f"{row['number']:{digits}} [{row['low']:{digits}}, {row['high']:{digits}}]"


def protocol_lines() -> list[str]:
    """The table of the protocol's tests, by each judge."""
    lines = []
    for (claim, what), by in claims_by_judge().items():
        cells = " | ".join(number(by.get(judge)) for judge in JUDGES)
        lines.append(f"| {claim}. {what} | {cells} | {by[JUDGES[0]]['verdict']} |")
    for objects in ("seen", "unseen"):
        gains = {row["judge"].split(" ")[0]: change(row, "gain", "gain_low", "gain_high")
                 for row in rows("miniature", "judges", model="fine-tuned", metric="VISOR", objects=objects)
                 if ", " not in row["judge"]}  # fmt: skip
        cells = " | ".join(gains.get(judge, "–") for judge in JUDGES)
        lines.append(f"| points of VISOR, {objects} objects | {cells} | |")
    return lines


def changed_cells() -> dict[str, tuple[str, str]]:
    """What each judge says now, number and verdict, by the first two cells of its row in "What changed"."""
    return {f"| {claim}. {what} | {judge} |": (number(row), row["test"])
            for (claim, what), by in claims_by_judge().items() for judge, row in by.items()}  # fmt: skip


def test_what_changed_is_told_of_every_claim_and_judge():
    lines = flat_lines(PAGES["results.md"]).splitlines()
    for start, (now, verdict) in changed_cells().items():
        (line,) = (line for line in lines if line.startswith(start))
        *_, before, told, change_ = (cell.strip() for cell in line.strip("| ").split("|"))
        assert told == f"{now} {verdict}", start
        assert change_ == ("new" if before == "–" else "no" if before.endswith(f" {verdict}") else "yes"), start


def test_every_experiment_of_the_protocol_is_listed():
    for name, one in files.protocol()["experiments"].items():
        assert f"| {name} | {one['asks']} |" in flat(PAGES["results.md"])


def test_the_pages_tell_the_records():
    results, world = flat(PAGES["results.md"]), flat(PAGES["miniature.md"])
    assert [fact for fact in default_facts() if fact not in results] == []
    training = files.read_json(ROOT / "data" / "models" / "training.json")["scores"]
    assert f"AP50 is {training['tiny-owlvit, AP50 clean']:.2f}" in world
    (found,) = (value for key, value in training.items() if key.startswith("both things found (%), tiny-owlvit"))
    assert f"{found:.1f} % of its images" in world


def test_no_decimal_number_of_a_result_stands_without_a_record():
    """In the README and on the page of results; the others say where it was measured. What the earlier base's default
    run said is quoted, with its commit."""
    results, bars = PAGES["results.md"].split("## Is the base clear enough?")
    quoted = re.findall(r"^\| \d\. .*? \| [\w-]+ \| (.*?) \|", flat_lines(results), re.MULTILINE)
    known = " ".join(
        [*default_facts(), *readme_lines(), *(f"{now} {verdict}" for now, verdict in changed_cells().values()), *quoted]
    )
    people = README[README.index("Of 200 images by real models") :].partition("\n\n")[0]  # tests/people/test_people.py
    assert "readable" in bars.partition("\n## ")[0]  # which says where its numbers were measured
    for text in (README.replace(people, ""), results, bars.partition("\n## ")[2]):
        text = re.sub(r"arXiv \d+\.\d+|abs/\d+\.\d+|3\.1\d|v\d\.\d|CC BY \d\.\d|\[[^]]*\]\([^)]*\)", "", flat(text))
        for number in re.findall(r"\d+\.\d+", text):
            assert number in known, number


ARTIFACT = (ROOT / "ARTIFACT.md").read_text(encoding="utf-8").replace("−", "-")
ROWS = {cells[0]: cells for line in ARTIFACT.splitlines() if line.startswith("| ")
        for cells in [[cell.strip() for cell in line.strip("|").split("|")]]}  # fmt: skip


def test_the_artifact_tells_the_datasets_counts_and_the_cheap_ones_come_out():
    kind = {"images": "train", "rules": "visor", "boxes": "all boxes"}
    claims = {"captions": ("triplets per image", "all"), "evaluation captions": ("distinct triplets", "different")}
    for claim, (counted, categories) in claims.items():
        assert claim in files.reported("dataset")
        (cells,) = [cells for name, cells in ROWS.items() if name.startswith(f"{claim}:")]
        (row,) = rows("coco", "reconstruction", **kind, counted=counted, categories=categories)
        assert cells[3] == f"{row['n']:,}, exactly"
    assert len(prompt_sets.read_prompts("sr4g")) == 62_460
    n = sum(row["n"] for row in rows("coco", "human_agreement", rules="visor", frame="all"))
    assert f"{n:,}, exactly" in ROWS["agreement with 6,197 human judgements"]


NEW = {  # results that are not the paper's, and the words by which each is named
    "rarity": ("rare", "rarity"), "never together": ("together",), "a person's score": ("person would score",),
    "bounds": ("selection bounds",), "frames": ("frames of reference",),
}  # fmt: skip


@pytest.mark.parametrize("name", ["CITATION.cff", "ARTIFACT.md", "data/croissant.json"])
def test_new_results_are_named_where_data_sets_and_software_are_looked_up(name):
    text = flat((ROOT / name).read_text(encoding="utf-8"))
    assert not [result for result, words in NEW.items() if not any(word in text for word in words)]
    everywhere = ARTIFACT + (ROOT / "data" / "croissant.json").read_text(encoding="utf-8") + PAGES["paper.md"]
    pairs = len([other for others in files.shipped("apart.yaml").values() for other in others])
    assert everywhere.count(f"{pairs} of COCO's 3,160 pairs") == 3


def test_what_was_not_counted_before_is_told_by_the_records():
    told = flat(PAGES["paper.md"])
    table = rows("coco", "caption_words", relation="any of the 14", wording="own")
    shares = [
        f"{min(row[key] for row in table):.1f} to {max(row[key] for row in table):.1f} %"
        for key in ("percent", "placed")
    ]
    assert all(share in told for share in shares) and shares[0] in ARTIFACT
    sides = [row for at in ("left of", "right of") for row in rows("coco", "caption_words", relation=at, wording="all")]
    captions = sum(row["captions"] for row in table)
    assert f"stands in {sum(row['hits'] for row in sides)} of {captions:,}" in told
    would = rows("people", "people_would_score", strata="with confidence", rules="none")
    visor = rows("people", "people_would_score", strata="with confidence", rules="visor", pairs="any")
    for values in ([row["value"] for row in would], [row["score"] for row in visor]):
        assert "{:.0f}, {:.0f} and {:.0f} %".format(*values) in told
    without = rows("people", "people_frames", kind="without")
    assert "in one of nine captions" in told
    assert round(sum(row["captions"] for row in without) / sum(row["reversed"] for row in without)) == 9
    assert not any(row["silent"] for row in rows("people", "people_frames"))
    gaps = rows("people", "people_whose_gain", pairs="best", metric="VISOR_Cond", images="as each judge finds them")
    assert f"up to {max(row['difference'] for row in gaps):.1f} points larger than by Grounding DINO" in told
    assert all(row["low_corrected"] < 0 < row["high_corrected"] for row in gaps)


def test_the_artifacts_commands_and_tables_are_real():
    for command in re.findall(r"`(run_all\.py [^`…]+)`", ARTIFACT):
        profiles.read_profile(run_all.arguments(shlex.split(command)[1:]).profile)
    for name, cells in ROWS.items():
        for table in re.findall(r"`([a-z_]+)`", cells[-1]):
            assert list(RESULTS.glob(f"*/{table}.json")), (name, table)


@pytest.mark.parametrize("name", ["cluster.md", "formats.md", "limits.md", "evaluate.md"])
def test_a_section_with_measured_numbers_says_where_they_come_from(name):
    for section in re.split(r"^#+ ", PAGES[name], flags=re.MULTILINE)[1:]:
        prose = re.sub(r"```.*?```|`[^`]*`|\]\([^)]*\)", "", section, flags=re.DOTALL)
        if re.search(r"\d+(\.\d+)? (s|GB|MB|images/s|times|TFLOP|minutes)\b", prose):
            said = r"[Mm]easured|computed|published|counted|at hand|by sha256|was run once"
            assert re.search(said, prose), section.splitlines()[0]


TRAPS = [
    re.split(r"(?<!\\)\|", line)[1:-1]
    for line in PAGES["traps.md"].splitlines()
    if line.startswith("| ") and not line.startswith("| of |")
]
FINDINGS = sorted((ROOT / "findings").glob("*.sh"))


@pytest.mark.parametrize("row", TRAPS, ids=[row[1].strip()[:40] for row in TRAPS])
def test_a_trap_is_held_by_a_test_or_a_script(row):
    assert len(row) == 5 and all(map(str.strip, row))
    held = re.findall(r"`([^`]+)`", row[-1])
    assert held
    for name in held:
        path, _, test = name.partition("::")
        assert f"def {test}(" in (ROOT / path).read_text() if test else (ROOT / path) in FINDINGS, name


@pytest.mark.parametrize("path", FINDINGS, ids=[path.stem for path in FINDINGS])
def test_a_finding_has_the_form_that_contributing_gives(path):
    text = path.read_text(encoding="utf-8")
    head, _, code = text.partition("set -euo pipefail\n")
    code, end = code.split("<<'PY'\n")[1], code.splitlines()[-1]
    assert text.startswith("#!/usr/bin/env bash\n# ") and end == "PY" and path.stat().st_mode & 0o100
    assert all(line.startswith("#") and len(line) <= 130 for line in head.splitlines())
    for part in ("# Expected: ", "# Happens: ", "# Seen with ", "#     "):
        assert f"\n{part}" in head, part
    packages = re.search("pip. install --quiet --disable-pip-version-check (.*)", text)[1].split()
    assert all(re.fullmatch(r"[\w-]+==[\d.]+", package) for package in packages)
    assert "assert " in code and "sr4g" not in code and subprocess.run(["bash", "-n", path]).returncode == 0
    compile(code.removesuffix("PY\n"), path.name, "exec")
    assert f"findings/{path.name}" in PAGES["traps.md"]


@pytest.mark.slow("real data")
def test_the_limits_count_the_photos_that_show_what_no_caption_names(tmp_path):
    unseen = profiles.declared("03_finetuning")["unseen"][1]
    world.write_annotations(tmp_path / "train.json", split="train")
    table = coco.read(tmp_path / "train.json")
    learnt = np.unique(true_captions(table).without(unseen).image)
    shown = np.unique(table.image[np.isin(table.category, [table.names.index(name) for name in unseen])])
    told = f"{len(np.intersect1d(learnt, shown)):,} of the {len(learnt):,} photos that it learns from"
    assert told in flat(PAGES["limits.md"])


def test_the_rewards_examples_run(monkeypatch):
    """From the repository's folder, as printed; the picture goes elsewhere."""
    monkeypatch.chdir(ROOT)
    saved = []
    monkeypatch.setattr(Image.Image, "save", lambda image, name: saved.append((image.size, name)))
    first, second = blocks(PAGES["reward.md"], "python")
    names: dict = {}
    exec(first, names)
    assert saved == [((64, 64), "best.png")] and len(names["rewards"]) == 8 and max(names["rewards"]) > 0.5
    exec(second, names)
    scores, _ = names["score"](names["images"], [names["prompt"]] * 8, None)
    assert scores == names["function"](images=names["images"], prompts=[names["prompt"]] * 8)
