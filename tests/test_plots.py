"""Figures of every rule set, with much and with nothing to show."""

import matplotlib.pyplot as plt
import pandas as pd
import pytest

from sr4g_utils.dataset import figures as dataset_figures
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
    figure = figures.human_agreement(agreement(("all",)))
    assert labels(figure.axes[0]) == list(RULES)
    figure = figures.frames(agreement(("all", "0", "1")))
    assert [labels(axis) for axis in figure.axes] == [list(RULES)] * 2
    table = agreement(("all", "0", "1"))
    for part in (table[table.relation != "right of"], table[table.frame == "all"]):
        figure = figures.frames(part)
        assert [labels(axis) for axis in figure.axes] == [list(RULES)] * 2


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
