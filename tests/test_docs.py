"""README and docs: short, with real commands and links, and each number of a result is the record's."""

import json
import re

import pytest

from sr4g_utils.running.files import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = {path.name: path.read_text(encoding="utf-8") for path in (ROOT / "docs").glob("*.md")}
RESULTS = ROOT / "data" / "results"


def rows(profile: str, result: str, **of: object) -> list[dict]:
    table = json.loads((RESULTS / profile / f"{result}.json").read_text(encoding="utf-8"))["rows"]
    return [row for row in table if all(row[key] == value for key, value in of.items())]


def change(row: dict, value: str = "difference", low: str = "low", high: str = "high") -> str:
    return f"{row[value]:+.1f} [{row[low]:+.1f}, {row[high]:+.1f}]"


def flat(text: str) -> str:
    return " ".join(text.replace("−", "-").split())


def test_the_readme_fits_a_screen():
    assert len(README.split()) <= 900


def test_commands_and_links_are_real():
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


def told(metric: str, objects: str) -> str:
    (row,) = rows("miniature", "changes", relation="all", metric=metric, objects=objects)
    where = "both" if objects == "all" else f"{objects} objects"
    return f"| {metric}, {where} | {row['before']:.1f} | {row['after']:.1f} | {change(row)}"


@pytest.mark.parametrize(("metric", "objects"), [("VISOR_Cond", "seen"), ("VISOR_Cond", "unseen"), ("OA", "all")])
def test_the_readme_tells_the_recorded_run(metric, objects):
    assert told(metric, objects) in flat(README)


def test_the_readme_tells_the_recorded_verdicts():
    said = {1: "a gain,", 2: "a gain on unseen objects", 5: "undiminished quality hold there"}
    said |= {3: "that every relation gains fails", 4: "less bias between opposites is not shown", 6: "is not testable"}
    expected = {1: "holds", 2: "holds", 5: "holds", 3: "fails", 4: "fails", 6: "not testable here"}
    verdicts = {int(row["claim"][0]): row["verdict"] for row in rows("miniature", "claims")}
    assert verdicts == expected
    for words in said.values():
        assert words in flat(README)


def facts() -> list[str]:
    """What docs/miniature.md says of the recorded runs, made from the records."""
    found = [
        told("VISOR_Cond", "seen"), told("VISOR_Cond", "unseen"), told("VISOR_Cond", "all"), told("OA", "all"),
        told("VISOR", "all"),
    ]  # fmt: skip
    (unseen,) = rows("miniature", "changes", relation="all", metric="OA", objects="unseen")
    found.append(f"unseen objects alone {change(unseen)}")
    (chance,) = rows("miniature", "scores", relation="all", metric="VISOR_Cond", objects="all", model="base")
    found.append(f"chance is {chance['chance']:.0f}")
    each = {r["relation"]: r for r in rows("miniature", "changes", metric="VISOR_Cond", objects="all")}
    for name, words in {"left of": '"{}" from', "right of": '"{}" from', "overlapping": '"{}" falls from'}.items():
        found.append(f"{words.format(name)} {each[name]['before']:.0f} to {each[name]['after']:.0f}")
    gained = sum(row["difference"] > 0 for name, row in each.items() if name != "all")
    found.append(f"{gained} of 14 do")
    (bias,) = rows("miniature", "bias", relation="all pairs", model="fine-tuned")
    found.append(f"({change(bias, 'change', 'change_low', 'change_high')})")
    (ceiling,) = rows("miniature", "ceiling", relation="all", metric="VISOR_Cond")
    found.append(f"a VISOR_Cond of {ceiling['value']:.0f}")
    second = rows("miniature", "second_opinion", verdict="both objects found")
    shares = [f"{100 * (r['both_yes'] + r['second_only']) / r['images']:.0f} %" for r in second]
    found.append(f"{shares[0]} of the pictures before and {shares[1]} after")
    (told_second,) = rows("miniature", "changes_second", objects="all", metric="VISOR_Cond")
    found.append(f"{change(told_second)} points over all objects")
    for profile in ("miniature_long", "miniature_long_1", "miniature_long_2"):
        for objects in ("seen", "unseen"):
            (row,) = rows(profile, "changes", relation="all", metric="VISOR_Cond", objects=objects)
            found.append(f"{change(row)} on {objects}")
            (row,) = rows(profile, "changes", relation="all", metric="OA", objects=objects)
            found.append(f"{abs(row['difference']):.1f}")
    return found


def test_the_miniature_page_tells_the_records():
    page = flat(PAGES["miniature.md"])
    assert [fact for fact in facts() if fact not in page] == []


def test_no_decimal_number_of_a_result_stands_without_a_record():
    """In the README and in the part of the miniature's page that tells results; the rest says where it was measured."""
    part = PAGES["miniature.md"].partition("## What these numbers do not show")[0]
    known = " ".join(facts()) + " 0.92"  # AP50: see the next test
    people = README[README.index("**What people's verdicts mean") :].partition("\n\n")[0]  # tests/test_people.py
    for text in (README.replace(people, ""), part):
        text = re.sub(r"arXiv \d+\.\d+|abs/\d+\.\d+|3\.1\d|v\d\.\d|CC BY \d\.\d|\[[^]]*\]\([^)]*\)", "", flat(text))
        for number in re.findall(r"\d+\.\d+", text):
            assert number in known, number


def test_the_detectors_precision_is_the_cards():
    training = json.loads((ROOT / "data" / "models" / "training.json").read_text())
    assert f"AP50 is {training['scores']['AP50 clean']:.2f}" in flat(PAGES["miniature.md"])


@pytest.mark.parametrize("name", ["cluster.md", "formats.md", "limits.md", "evaluate.md"])
def test_a_section_with_measured_numbers_says_where_they_come_from(name):
    for section in re.split(r"^#+ ", PAGES[name], flags=re.MULTILINE)[1:]:
        prose = re.sub(r"```.*?```|`[^`]*`|\]\([^)]*\)", "", section, flags=re.DOTALL)
        if re.search(r"\d+(\.\d+)? (s|GB|MB|images/s|times|TFLOP|minutes)\b", prose):
            said = r"[Mm]easured|computed|published|counted|at hand|by sha256|was run once"
            assert re.search(said, prose), section.splitlines()[0]
