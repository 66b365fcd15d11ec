"""docs/history.md: each number of the recorded experiments is the records'."""

from functools import cache

from test_docs import PAGES, RESULTS, change, flat, rows

from sr4g_utils.analysis import bias, effects
from sr4g_utils.relations import FAMILIES
from sr4g_utils.store import files


def effect(model: str, objects: str, over: str, arm: str = "relations", metric: str = "VISOR_Cond") -> dict:
    (row,) = rows("experiments", "effects", model=model, objects=objects, over=over, arm=arm, metric=metric)
    return row


@cache
def biased_pair() -> list[str]:
    """The one pair of opposites that the experiments' base treats unequally, and what is left of it."""
    table = files.read_table(RESULTS / "experiments" / "verdicts.parquet")
    treated = list(effects.verdicts_of(table, "main", "relations").values())
    both = {"base": effects.pooled([effects.base_of(table)] * len(treated)), "main": effects.pooled(treated)}
    pairs = bias.bias(both, 2_000)
    assert pairs[pairs.p_holm < 0.05][["relation", "model"]].values.tolist() == [["wider", "base"]]
    before, after = (change(row, "gap", "gap_low", "gap_high") for row in pairs[pairs.relation == "wider"].iloc)
    start, ends = before[1:].split(" ", 1)
    return [f"by {start} points {ends} (p = .007", f"by {after[1:]}"]


def experiment_facts() -> list[str]:
    """What docs/history.md says of the recorded experiments, made from the records."""
    found = list(biased_pair())
    for model in ("main", "unseen"):
        for objects in ("seen", "withheld", "mixed", "unseen", "all"):
            three = [effect(model, objects, *over) for over in (("base",), ("list",), ("base", "list"))]
            where = f"{objects} triplets" if objects == "withheld" else f"{objects} objects"
            three.append(effect(model, objects, "base", metric="VISOR"))
            found.append(f"| {model} | {where} | {' | '.join(map(change, three))} |")
    for row in rows("experiments", "confirmed"):
        digits = ".0f" if row["what"].startswith("relations") else "+.1f"
        number = f"{row['number']:{digits}} [{row['low']:{digits}}, {row['high']:{digits}}]"
        found.append(f"| {row['claim']} | {number} | {row['what']} | {row['test']} |")
    fall, lists = (effect("main", "all", "base", arm, "OA")["difference"] for arm in ("relations", "list"))
    found.append(f"OA falls by {-fall:.1f} points ({-lists:.1f} of them with lists, too)")
    both = effect("main", "all", "base", metric="VISOR")["difference"]
    found.append(f"VISOR, which counts both, rises by {both:.1f} points")
    random = [change(effect("main", "all", *pair)) for pair in (("base", "shuffled"), ("shuffled",))]
    found.append(f"{random[0]} over the base; true relations are {random[1]} over it")
    cost = effect("main", "all", "base", "shuffled", "OA")
    found.append(f"random cost {-cost['difference']:.1f} points of OA [{cost['low']:+.1f}, {cost['high']:+.1f}]")
    alone = [row for row in rows("experiments", "transfer") if row["trained"] in FAMILIES]
    found += [change(row) for row in alone if row["trained"] == row["tested"]]
    others = [row for row in alone if row["trained"] != row["tested"]]
    assert [len(others), sum(row["low"] < 0 < row["high"] for row in others)] == [6, 5]  # as the page says
    (slope,) = rows("experiments", "slopes", part="all")
    found.append(f"{change(slope, 'slope')} points of VISOR_Cond for each doubling of 1 + draws")
    never, often = (change(rows("experiments", "by_dose", part="all", dose=dose)[0]) for dose in (0, 128))
    found.append(f"a triplet never drawn gains {never}, one drawn 128 times {often}")
    both = [change(effect(*of, "base", metric="VISOR")) for of in (("main", "all"), ("unseen", "unseen"))]
    found += [f"it rises by {both[0]} points", f"on unseen objects by {both[1]}, which is undecided"]
    return found + generality_facts()


def generality_facts() -> list[str]:
    """What it says of the exploratory ones."""
    over_base = [{"trained": rules, "over": "base", "family": "all"} for rules in ("visor", "sg2im", "people")]
    over_visor = [{"trained": "sg2im", "over": "visor", "family": family} for family in ("all", "projective")]
    tables = [("by_rules", {"tested": "visor", **of}) for of in (*over_base, *over_visor)]
    tables += [("by_share", {"metric": "VISOR_Cond", "share": share}) for share in (2, 10, 50, 100)]
    found = [change(row) for (row,) in (rows("experiments", table, **of) for table, of in tables)]
    found += [change(row) for row in rows("experiments", "by_held_out", objects="unseen", metric="VISOR_Cond")]
    for metric in ("VISOR_Cond", "OA", "all things found"):
        found.append(", ".join(f"{row['value']:.1f}" for row in rows("experiments", "along", metric=metric)))
    of = {"family": "projective", "arm": "relations"}
    suits, against = (rows("experiments", "by_prior", prior=prior, **of)[0] for prior in ("suits", "against"))
    found.append(f"{suits['before']:.1f} % of the images, against habit in {against['before']:.1f} %")
    found.append(f"gain {change(suits)} and {change(against)}")
    return found


def test_the_history_tells_the_recorded_experiments():
    history = flat(PAGES["history.md"])
    assert [fact for fact in experiment_facts() if fact not in history] == []
