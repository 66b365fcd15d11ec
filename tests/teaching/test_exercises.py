"""The exercises' checks: right answers are accepted, and typical wrong ones get their hint and a picture."""

import math
import os
import sys
import warnings
from itertools import product

import numpy as np
import pandas as pd
import pytest
from refusals import refuses

from sr4g_utils import relations
from sr4g_utils.evaluation import scores as evaluation_scores
from sr4g_utils.evaluation import verdicts
from sr4g_utils.evaluation.statistics import agreement
from sr4g_utils.teaching import dice, intervals, kappa, laws, relation, splits
from sr4g_utils.teaching.answer import CounterExample


def refused(check, *given, **options) -> str:
    """The sentence with which a check refuses an answer; it is one line, and a picture goes with it."""
    with pytest.raises(CounterExample) as error:
        check(*given, **options)
    assert error.value.figure.axes and "\n" not in str(error.value)
    error.value.figure.savefig(os.devnull, format="png")
    return str(error.value)


def test_the_pairs_tell_all_relations_of_all_complete_rules_apart():
    for pair in product(("above", "left of", "inside", "overlapping", "larger"), ("visor", "sg2im")):
        assert 0.005 < np.mean([verdict for *_, verdict in relation._pairs(*pair)]) < 0.995
    kinds = [kind for kind, *_ in relation._pairs("left of", "sg2im")]
    assert list(dict.fromkeys(kinds)) == list(relation.HINTS), "each kind occurs alone, in this order"


def centre(box):
    return box[0] + box[2] / 2, box[1] + box[3] / 2


def within(a, b):
    return a[0] > b[0] and a[1] > b[1] and a[0] + a[2] < b[0] + b[2] and a[1] + a[3] < b[1] + b[3]


def offset(s, o):
    return centre(s)[0] - centre(o)[0], centre(s)[1] - centre(o)[1]


@pytest.mark.parametrize(("name", "rules", "wrong", "hint"), [
    ("above", "visor", lambda s, o: centre(s)[1] > centre(o)[1], "apart"),  # y grows downwards
    ("above", "visor", lambda s, o: centre(o)[1] < centre(s)[1], "apart"),  # subject and object exchanged
    ("above", "visor", lambda s, o: centre(s)[0] < centre(o)[0], "apart"),  # the wrong axis
    ("above", "visor", lambda s, o: s[1] < o[1], "edges"),
    ("above", "visor", lambda s, o: s[1] + s[3] < o[1] + o[3], "edges"),
    ("above", "visor", lambda s, o: centre(s)[1] <= centre(o)[1], "tie"),
    ("inside", "visor", lambda s, o: within(o, s), "nested"), ("inside", "visor", lambda s, o: False, "nested"),
    ("inside", "visor", lambda s, o: o[0] < s[0] and s[0] + s[2] < o[0] + o[2], "partly"),  # one axis only
    ("inside", "visor", lambda s, o: within((*centre(s), 0, 0), o), "nested"),  # the centre only
    ("inside", "visor", lambda s, o: s[0] >= o[0] and s[1] >= o[1] and s[0] + s[2] <= o[0] + o[2]
     and s[1] + s[3] <= o[1] + o[3], "flush"),
    ("left of", "sg2im", lambda s, o: offset(s, o)[0] > abs(offset(s, o)[1]), "apart"),
    ("left of", "sg2im", lambda s, o: offset(s, o)[0] < 0, "steep"),
    ("left of", "sg2im", lambda s, o: offset(s, o)[0] < 0 and abs(offset(s, o)[1]) <= -offset(s, o)[0], "nested"),
    ("left of", "sg2im", lambda s, o: abs(offset(s, o)[1]) < -offset(s, o)[0] and not within(s, o)
     and not within(o, s), "diagonal"),
    # the object within the subject, or the subject within the object, is forgotten
    ("left of", "sg2im", lambda s, o: abs(offset(s, o)[1]) <= -offset(s, o)[0] and not within(s, o), "nested"),
    ("left of", "sg2im", lambda s, o: abs(offset(s, o)[1]) <= -offset(s, o)[0] and not within(o, s), "nested"),
    ("overlapping", "visor", lambda s, o: s[0] <= o[0] + o[2] and o[0] <= s[0] + s[2] and s[1] <= o[1] + o[3]
     and o[1] <= s[1] + s[3], "tie"),
])  # fmt: skip
def test_a_wrong_relation_gets_its_hint(name, rules, wrong, hint):
    assert refused(relation.check_relation, wrong, name, rules).startswith(relation.HINTS[hint])


@pytest.mark.parametrize(("name", "rules"), [("above", "visor"), ("inside", "visor"), ("left of", "sg2im")])
def test_a_hint_is_true_of_the_pair_that_is_drawn(name, rules):
    for kind, *boxes, _ in relation._pairs(name, rules):
        (s, o), ((x1, y1), (x2, y2)) = boxes, map(centre, boxes)
        apart = s[0] >= o[0] + o[2] or o[0] >= s[0] + s[2] or s[1] >= o[1] + o[3] or o[1] >= s[1] + s[3]
        assert (kind == "nested") == (within(s, o) or within(o, s))
        assert kind not in ("apart", "steep", "edges") or apart
        assert kind not in ("partly", "flush") or not apart
        assert kind != "diagonal" or abs(x1 - x2) == abs(y1 - y2) > 0


def test_an_answer_that_warns_is_accepted_and_nothing_is_written_to_stderr(capfd):
    def above(subject, object):
        print("a warning", file=sys.stderr)
        np.array([1.0]) / 0
        return centre(subject)[1] < centre(object)[1]

    with warnings.catch_warnings():  # pytest would keep them to itself
        warnings.showwarning = lambda message, *_: print(message, file=sys.stderr)
        warnings.simplefilter("always")
        relation.check_relation(above, "above")
        splits.check_leaks(
            lambda t, c, u: (above((p,) * 4, (p,) * 4) or p for p in set(c.picture[named(c, u)]) & set(t.picture))
        )
    told = capfd.readouterr()
    assert not told.err and "✓ above decides" in told.out and "divide by zero" in told.out


def test_what_is_no_answer_is_told():
    def stops(subject, object):
        x, y = subject
        return x < y

    assert "returns None" in refused(relation.check_relation, lambda s, o: None, "above")
    line = stops.__code__.co_firstlineno + 1
    assert f"stops stops in line {line} with ValueError" in refused(relation.check_relation, stops, "above")
    refuses("define left of, right of", relation.check_relation, within, "inside", "geneval")


@pytest.mark.parametrize("generator", dice.GENERATORS)
def test_the_expectation_is_what_many_throws_score(generator):
    table, detections = dice.throw(6_000, generator, seed=3)
    scores = evaluation_scores.scores(verdicts.verdicts(table, detections, dice.IMAGES), level=0.9999)
    rows = scores[scores.relation == "all"].set_index("metric")
    for metric, expected in dice._expected(generator).items():
        assert rows.low[metric] <= expected <= rows.high[metric], metric


RIGHT = {"OA": 64, "VISOR": 32, "VISOR_Cond": 50, "VISOR_1": 78.62, "VISOR_2": 38.4, "VISOR_3": 10, "VISOR_4": 1.05}
PREDICTED = [
    ({"OA": 80}, "in the same image"), ({"OA": 0.64}, "given in percent"), ({"OA": 160}, "cannot be one"),
    ({"OA": None}, "Nothing is predicted for OA"), ({"VISOR_Cond": 32}, "count the white squares out"),
    ({"VISOR_Cond": 25}, "which squares"), ({"VISOR": 50}, "the white squares count"),
    ({"VISOR_4": 32}, "counts prompts, not images"), ({"VISOR_1": 128}, "cannot be one"),
    ({"VISOR_1": 98.95}, "not 'not all four blue'"), ({"VISOR_2": None}, "Nothing is predicted for VISOR_2"),
    ({"VISOR_2": 0}, "which squares"), ({"VISOR_2": 28.4}, "more than 2 count as well"),
    ({"VISOR_3": 99}, "which squares"), ({"VISOR_3": float("nan")}, "cannot be one"),
    ({"VISOR_3": "10"}, "Nothing is predicted for VISOR_3"),
]  # fmt: skip


def test_the_stubborn_are_right_on_the_same_prompts():
    dice.check_prediction(RIGHT)
    assert "Not every prompt has the same chance" in refused(dice.check_prediction, RIGHT, "stubborn")
    refuses("unknown generator 'x'", dice.throw, 3, "x")


SOLVED = {
    "order": lambda metric, r: laws.same(metric(r[::-1]), metric(r)),
    "missing": lambda metric, r: laws.same(metric(r[r.both_found]), metric(r)),
    "owner": lambda metric, r: laws.same(metric(r.assign(prompt_id=0)), metric(r)),
    "nothing": lambda metric, r: math.isnan(metric(r.assign(both_found=False, correct=False))),
}


def test_each_suspect_breaks_one_law_and_the_right_one_none():
    pairs = product(SOLVED, laws.METRICS)
    broken = [(n, s) for n, s in pairs if not all(SOLVED[n](laws.METRICS[s], records) for records in laws.tables())]
    assert set(broken) == set(laws.LAWS.items())
    (right,) = set(laws.METRICS) - set(laws.LAWS.values())
    for records in laws.tables():
        row = records.assign(relation="left of", subject="dog", object="cat", **dict.fromkeys(relations.NAMES, False))
        scores = evaluation_scores.scores(row)
        value = scores[(scores.relation == "all") & (scores.metric == "VISOR_Cond")].value.iloc[0]
        assert laws.same(laws.METRICS[right](records), value), "the right one is the package's"
    for name, law in SOLVED.items():
        laws.check_law(law, name)
    laws.check_suspects(laws.LAWS)
    assert "breaks the law of 'order'" in refused(laws.check_suspects, {})
    assert "Metric A obeys the law of 'order'" in refused(laws.check_suspects, laws.LAWS | {"order": "A"})


@pytest.mark.parametrize(("name", "wrong", "hint"), [
    ("order", lambda metric, r: True, "asks too little"),
    ("order", lambda metric, r: laws.same(metric(r.sort_index()), metric(r)), "asks too little"),
    ("missing", lambda metric, r: laws.same(metric(r[r.correct]), metric(r)), "accuses a metric that is right"),
    ("missing", lambda metric, r: laws.same(metric(r[:4]), metric(r)), "accuses a metric that is right"),
    ("owner", lambda metric, r: laws.same(metric(r.assign(prompt_id=r.prompt_id + 1)), metric(r)), "too little"),
    ("nothing", lambda metric, r: metric(r) == 0, "accuses a metric that is right"),
    ("nothing", lambda metric, r: laws.same(metric(r), metric(r)), "asks too little"),
    ("nothing", lambda metric, r: metric(r), "True or False"),
    ("owner", lambda metric, r: r.update(r.assign(prompt_id=0)) or True, "let it work on a copy"),
])  # fmt: skip
def test_a_wrong_law_gets_its_hint(name, wrong, hint):
    assert hint in refused(laws.check_law, wrong, name)


def test_the_claims_are_what_the_intervals_say():
    rows = intervals.table().set_index("what")
    gain, again, both, after = (rows.loc[n] for n in ("after − before", "again − before", "again − after", "after"))
    told = {letter: claim.stands for letter, claim in intervals.CLAIMS.items()}
    assert told["a"] is bool(gain.low > 0) is True
    assert told["b"] is bool(gain.low >= 10) is False and gain.high > 10 and gain.value > 10
    assert told["c"] is bool(gain.high < 25) is True
    assert rows.high["before"] > rows.low["again"] and again.low > 0 and told["d"] is False
    assert both.low < 0 < both.high and told["e"] is False
    assert not any(after.low < 25 * n < after.high for n in range(5)) and told["f"] is False
    assert told["g"] is bool(after.low < after.value - 2) is True
    intervals.check_claims(told)
    for letter, stands in told.items():
        sentence = refused(intervals.check_claims, told | {letter: not stands})
        assert sentence == f"Claim {letter}: {intervals.CLAIMS[letter].hint}"
    assert "not judged yet" in refused(intervals.check_claims, {})
    models = intervals.study()  # and the interval that is shown is the package's
    low, high = np.quantile(intervals.resampled(models["before"], models["after"]), [0.025, 0.975])
    assert (low, high) == pytest.approx((gain.low, gain.high), abs=0.5)


def bootstrap(before, after, paired=True, images=False, level=0.95, scale=100.0):
    if images:
        before, after = before.reshape(-1, 1), after.reshape(-1, 1)
    rng, n, drawn = np.random.default_rng(5), len(before), []
    for _ in range(2_000):
        i = rng.integers(n, size=n)
        j = i if paired else rng.integers(n, size=n)
        drawn.append(scale * (after[i].mean() - before[j].mean()))
    return np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2])


def named(rows, unseen):
    return rows.subject.isin(unseen) | rows.object.isin(unseen)


def test_every_object_of_a_picture_with_captions_is_named_by_one():
    """The exercise says so, and its solutions rely on it."""
    rows = splits.captions()
    for picture, part in rows.groupby("picture"):
        assert set(part.subject) | set(part.object) == set(splits._scenes()[picture][0])


def ratio(agree: float, chance: float, undefined: float = float("nan")) -> float:
    return (agree - chance) / (1 - chance) if chance < 1 else undefined


def kappa_of(formula):
    """A kappa of two judges by a formula of how often they agree, and how often each says yes."""
    return lambda a, b: formula(float(np.mean(np.array(a) == np.array(b))), float(np.mean(a)), float(np.mean(b)))


WRONG = {
    dice.check_prediction: [(RIGHT | change, hint) for change, hint in PREDICTED],
    kappa.check_kappa: [
        (kappa_of(lambda agree, a, b: agree), "how often they agree"),
        (kappa_of(lambda agree, a, b: 2 * agree - 1), "half of the cases only if"),
        (kappa_of(lambda agree, a, b: ratio(agree, a * a + (1 - a) ** 2)), "Chance has two judges"),
        (kappa_of(lambda agree, a, b: ratio(agree, a * b)), "by chance on no"),
        (kappa_of(lambda agree, a, b: ratio(agree, a * b + (1 - a) * (1 - b), 1.0)), "no chance to disagree"),
        (lambda a, b: None, "kappa is a number"), (lambda a, b: -9.0, "Count by hand"),
    ],
    laws.check_cond: [
        (lambda r: 100 * r.correct.mean(), "white squares say nothing"),
        (lambda r: r.correct.sum() / max(r.both_found.sum(), 1), "percentages, not fractions"),
        (laws.METRICS["A"], "as much as a prompt with four"), (laws.METRICS["B"], "Not every image"),
        (laws.METRICS["D"], "what can VISOR_Cond say"), (lambda r: 50.0, "Count by hand"),
        (lambda r: None, "a metric is a number"),
    ],
    intervals.check_stands: [
        (lambda v, low, high, above=-math.inf, below=math.inf: above < v < below, "does all of its interval?"),
        (lambda v, low, high, above=-math.inf, below=math.inf: high > above and low < below, "all of its interval?"),
        (lambda v, low, high, above=-math.inf, below=math.inf: low > above, "below a number, too"),
        (lambda v, low, high, above=-math.inf, below=math.inf: low >= above and high <= below, "exactly on the border"),
        (lambda v, low, high, above=-math.inf, below=math.inf: low > above or high < below, "No value"),
        (lambda v, low, high, above=-math.inf, below=math.inf: not (low <= above or high >= below), "NaN"),
        (lambda v, low, high, above=-math.inf, below=math.inf: low, "a claim stands, True"),
    ],
    intervals.check_paired_interval: [
        (lambda b, a: bootstrap(b, a, paired=False), "too wide"),
        (lambda b, a: bootstrap(b, a, images=True), "too narrow"),
        (lambda b, a: bootstrap(b, a, level=0.9), "too narrow"), (lambda b, a: bootstrap(a, b), "elsewhere"),
        (lambda b, a: bootstrap(b, a, scale=1), "in points"), (lambda b, a: 12.0, "two numbers"),
        (lambda b, a: bootstrap(b, a)[::-1], "lower end comes first"),
    ],
    splits.check_leaks: [
        (lambda t, c, u: set(t.picture[named(t, u)]), "shows an unseen object, whatever its captions say"),
        (lambda t, c, u: set(), "shows an unseen object"), (lambda t, c, u: set(t.picture), "shows no unseen object"),
        (lambda t, c, u: set(c.picture[named(c, u)]), "is not in this training set"),
        (lambda t, c, u: 3, "a set of picture numbers"),
    ],
}  # fmt: skip


@pytest.mark.parametrize(("check", "wrong", "hint"), [(check, *case) for check in WRONG for case in WRONG[check]])
def test_a_wrong_answer_gets_its_hint(check, wrong, hint):
    assert hint in refused(check, wrong)


def test_right_answers_are_accepted_and_wrong_splits_get_their_hints():
    def leaky(c, u):
        return c[~named(c, u)]

    def clean(c, u):
        return c[~c.picture.isin(c.picture[named(c, u)])]

    intervals.check_paired_interval(bootstrap)
    splits.check_leaks(lambda t, c, u: set(c.picture[named(c, u)]) & set(t.picture))
    splits.check_leaky(leaky)
    splits.check_clean(clean)
    assert "searches the captions" in refused(splits.check_leaky, lambda c, u: c)
    assert "searches the captions" in refused(splits.check_leaky, lambda c, u: c[~c.subject.isin(u)])
    assert "does not leak" in refused(splits.check_leaky, clean)
    assert "shows an unseen object" in refused(splits.check_clean, leaky)
    assert "left out" in refused(splits.check_clean, lambda c, u: clean(c, u)[10:])
    assert "left out" in refused(splits.check_clean, lambda c, u: c[:0])
    assert "rows of `captions`" in refused(splits.check_clean, lambda c, u: c.caption)
    assert "not among the captions" in refused(splits.check_clean, lambda c, u: c.set_index(c.index + 9_999))


def test_answers_are_complete():
    right = ["yes", "no"] * 8
    kappa.check_answers(right)
    assert "Picture 0 has no answer" in refused(kappa.check_answers, [])
    assert "Picture 15 has no answer" in refused(kappa.check_answers, right[:-1])
    assert "Picture 2 has the answer 'maybe'" in refused(kappa.check_answers, ["yes", "no", "maybe"])
    assert "16 pictures and 17" in refused(kappa.check_answers, [*right, "no"])
    assert "All answers are the same" in refused(kappa.check_answers, ["yes"] * 16)
    refuses("3 of them for 16 pictures", kappa.judged, ["yes"] * 3, "me")


def test_the_pictures_ask_what_the_rules_answer_differently():
    visor_, sectors = (kappa.judged_by_rules(rules) for rules in ("visor", "sg2im"))
    assert 3 <= (visor_.answer != sectors.answer).sum() <= 8
    assert set(visor_.answer) == set(sectors.answer) == {"yes", "no"}
    assert visor_.question[0] == "Is the dog to the left of the cat?"
    a, b = kappa.paired(pd.concat([visor_, sectors]), "rules: visor", "rules: sg2im")
    counts = [sum(x is p and y is q for x, y in zip(a, b, strict=True)) for p in (True, False) for q in (True, False)]
    assert sum(counts) == 16 and agreement(np.array(counts))[-1] < 0.9


def test_judgements_of_people_are_read_with_care(tmp_path):
    path = tmp_path / "kit.csv"
    mine = kappa.judged(["yes", "no"] * 8, "me").assign(remark="quick")
    mine.to_csv(path, index=False)
    assert kappa.read_judgements(path).equals(mine[kappa.COLUMNS].astype(str))
    text = "\ufeff" + mine.to_csv(index=False, sep=";").replace("yes", "YES").replace("answer", "Answer") + ";;;;\n"
    path.write_text(text, encoding="utf-8")  # as a spreadsheet may save it
    assert kappa.read_judgements(path).equals(mine[kappa.COLUMNS].astype(str))
    mine.assign(answer=[" Yes", None, *mine.answer[2:]]).to_csv(path, index=False)
    assert kappa.read_judgements(path).answer.tolist() == ["yes", *mine.answer[2:]]
    mine.assign(answer="maybe").to_csv(path, index=False)
    refuses("kit.csv, row 2: the answer is 'maybe'; it must be yes or no", kappa.read_judgements, path)
    mine.assign(picture=0, question="?").to_csv(path, index=False)
    refuses("me answers '\\?' of picture 0 twice", kappa.read_judgements, path)
    kit = pd.DataFrame({"kit": "k", "person": "ann", "item": ["a", "b", "c", "d"], "seconds": 2})
    kit.assign(answer=["yes", "no", "missing", "unclear"]).to_csv(path, index=False)
    read_ = kappa.read_judgements(path)
    assert read_.picture.tolist() == ["a", "b", "c"] and read_.answer.tolist() == ["yes", "no", "no"]
    assert set(read_.annotator) == {"ann"}
    mine.drop(columns="annotator").to_csv(path, index=False)
    refuses("the column 'annotator' is missing", kappa.read_judgements, path)
    refuses("no question in common", kappa.paired, mine, "me", "you")
