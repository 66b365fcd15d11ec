"""Figures of every rule set, with much and with nothing to show; how notebooks show tables."""

import bs4
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from sr4g_utils.analysis import figures as analysis_figures
from sr4g_utils.dataset import figures as dataset_figures
from sr4g_utils.dataset import world
from sr4g_utils.evaluation import figures as evaluation_figures
from sr4g_utils.finetuning import figures as finetuning_figures
from sr4g_utils.people import figures
from sr4g_utils.relations import FAMILIES, NAMES, RULES, family


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def agreement(frames: tuple[str, ...]) -> pd.DataFrame:
    """As :func:`vsr.human_agreement` gives it: a row where the rules define the relation."""
    rows = [(r, rules, frame) for rules in RULES for r in RULES[rules].defines[:8] for frame in frames]
    table = pd.DataFrame(rows, columns=["relation", "rules", "frame"]).assign(n=9)
    for measure in ("accuracy", "precision", "recall", "kappa"):
        table = table.assign(**{measure: 0.5, f"{measure}_low": 0.4, f"{measure}_high": 0.7})
    return table


def labels(axis: plt.Axes) -> list[str]:
    return axis.get_legend_handles_labels()[1]


@pytest.mark.filterwarnings("error::UserWarning", "error::RuntimeWarning")  # an empty axis, a mean of nothing
def test_agreement_shows_every_rule_set_although_few_photos_may_leave_no_frame_of_a_relation():
    assert labels(figures.human_agreement(agreement(("all",))).axes[0]) == list(RULES)
    table = agreement(("all", "0", "1"))
    for part in (table, table[table.relation != "right of"], table[table.frame == "all"]):
        assert [labels(axis) for axis in figures.frames(part).axes] == [list(RULES)] * 2


def test_every_models_name_is_shown_as_it_is_written():
    """Also those that Matplotlib would hide or set as an equation, and a seventh."""
    dataset_figures.use_style()
    names = ["_base", "costs $5^ to $6_", r"\\frac{", "a|<b>", "_", "%s {x}", "7th"]
    numbers = {"value": 50.0, "low": 40.0, "high": 60.0, "chance": 45.0, "gap": 1.0, "gap_low": 0.0, "gap_high": 2.0}
    rows = [{"model": name, "objects": "all", "metric": "VISOR_Cond", **numbers} for name in names]
    scores = pd.DataFrame(rows).assign(relation="all")
    pairs = pd.DataFrame(rows).assign(relation="above", with_opposite="below")
    whole = pairs.assign(with_opposite=None)
    for figure in (
        evaluation_figures.scores(scores), evaluation_figures.scores_per_relation(scores),
        analysis_figures.bias(pd.concat([pairs, whole])),
    ):  # fmt: skip
        figure.canvas.draw()
        shown = [text.get_text() for text in figure.axes[-1].get_legend().get_texts()]
        assert shown[: len(names)] == names
    distances = pd.DataFrame([*rows, {"model": "photos", "value": 1.0}])
    ticks = evaluation_figures.distances(distances, "pixels").axes[0].get_yticklabels()
    assert [tick.get_text() for tick in ticks] == names


@pytest.mark.parametrize("which", FAMILIES)
def test_regions_have_a_panel_where_the_rules_define_the_relation(which):
    figure = dataset_figures.scale_regions(step=0.1) if which == "scale" else dataset_figures.regions(which, step=32)
    shown = [axis for axis in figure.axes if axis.axison]
    n = len(family(which)) // (2 if which == "scale" else 1)  # opposites share a panel
    assert len(shown) == n * sum(set(family(which)) <= set(rules.defines) for rules in RULES.values())


def test_disagreement_leaves_out_what_two_rule_sets_do_not_both_define():
    rows = [(name, "visor", "sg2im") for name in NAMES] + [(name, "visor", "geneval") for name in NAMES[:4]]
    table = pd.DataFrame(rows, columns=["relation", "a", "b"]).assign(pairs=100, both=30, only_a=10, only_b=5)
    axis = dataset_figures.disagreement(table).axes[0]
    assert [text.get_text() for text in axis.get_yticklabels()] == list(NAMES)
    assert len(axis.get_xticklabels()) == 2 and len(axis.texts) == len(rows)


def test_the_figure_of_disagreement_has_one_unit():
    row = {"relation": "above", "a": "visor", "b": "sg2im", "pairs": 9, "both": 3, "only_a": 1, "only_b": 0}
    axis, bar = dataset_figures.disagreement(pd.DataFrame([row])).axes
    bar.figure.canvas.draw()
    assert axis.texts[0].get_text() == "25.0%" and [t.get_text() for t in bar.get_yticklabels()][::5] == ["0%", "100%"]


def test_an_interval_ends_where_its_number_does():
    axis = plt.subplots()[1]
    rows = pd.DataFrame({"value": [90.0, 50.0], "low": [70.0, np.nan], "high": [113.0, np.nan]})
    dataset_figures.estimates(axis, rows, [0, 1], most=100.0)
    dataset_figures.estimates(axis, rows, [0, 1])
    ends = [bars.get_segments()[0][:, 0].tolist() for bars in axis.collections]
    assert ends == [[70, 100], [70, 113]]


@pytest.mark.parametrize(("changes", "colours"), [([15.9, 21.5, 20.0], "cividis"), ([-1.0, 28.0, 2.0], "PuOr")])
def test_changes_of_one_sign_are_told_from_each_other(changes, colours):
    table = pd.DataFrame({"trained": ["a", "b", "c"], "tested": "x", "difference": changes}).assign(low=0, high=0)
    image = analysis_figures.transfer(table).axes[0].images[0]
    shades = image.to_rgba(np.array(changes))[:, :3].mean(1)
    assert image.cmap.name == colours and shades.max() - shades.min() > 0.4


def cells(table: pd.DataFrame) -> tuple[list[list[str]], str]:
    """The rows of a table as a notebook shows it, the heads first, and what is said below it."""
    soup = bs4.BeautifulSoup(dataset_figures.table_html(table), "html.parser")
    return [[cell.text for cell in row.select("th, td")] for row in soup.select("tr")], soup.p.text if soup.p else ""


def test_a_table_is_shown_for_people():
    columns = {"image_id": [391895, 7, 8, 9], "n": [1234567, 2, 3, 4], "a": [-0.6, -0.49, np.nan, -1e-9]}
    columns |= {"kind": ["<b>"] * 4, "of": [3000, np.nan, 5, 6], "sure": [True, None, False, True]}
    table = pd.DataFrame(columns).round(2).iloc[::-1]
    shown, below = cells(table)
    assert shown == [
        ["image_id", "n", "a", "of", "sure"], ["9", "4", "0.00", "6", "True"], ["8", "3", "–", "5", "False"],
        ["7", "2", "-0.49", "–", "–"], ["391895", "1,234,567", "-0.60", "3,000", "True"],
    ]  # fmt: skip
    assert below == "In each of these rows: kind <b>."
    assert cells(table.head(1))[0][0][3] == "kind", "few rows say themselves what is the same in them"
    assert cells(pd.DataFrame({"n": [500] * 4}, index=pd.Index(list("abcd"), name="r")))[0][2] == ["a", "500"]
    assert cells(table.pivot(index="n", columns="kind", values=["a"]))[0][:2] == [["", "a"], ["kind", "<b>"]]
    assert cells(pd.DataFrame()) == ([[]], "")
    pivoted = pd.DataFrame({"n": [9815810.0, 4000.0], "added": [0.74, np.nan]}).rename_axis(columns="boxes")
    assert cells(pivoted)[0] == [["n", "added"], ["9,815,810", "0.74"], ["4,000", "–"]]


def test_the_sheet_of_cards_has_each_with_its_name():
    figure = dataset_figures.cards()
    figure.canvas.draw()
    shown = [(axis.get_title(), axis.images[0].get_array()) for axis in figure.axes if axis.images]
    assert [name for name, _ in shown] == list(world.LOOKS)
    assert len({picture.tobytes() for _, picture in shown}) == 40


def test_a_learning_curve_has_a_panel_of_judges_where_they_looked():
    log = pd.DataFrame({"images": [16_000, 32_000], "loss": [0.9, 0.5]})
    curve = pd.DataFrame({"images": [16_000] * 2, "judge": ["a", "b"], "both_found": [10.0, 20.0]})
    with_judges = finetuning_figures.learning_curve(log, curve, {"a": 98.0})
    with_judges.canvas.draw()
    assert labels(with_judges.axes[1]) == ["a", "b"] and len(with_judges.axes[1].lines) == 3
    assert len(finetuning_figures.learning_curve(log, curve[:0], {}).axes) == 1
