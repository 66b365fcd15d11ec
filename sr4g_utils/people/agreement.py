"""Rule sets beside people on generated pictures: how well they agree, which agrees better, and why they differ.

A person calls a picture "true", "false" or "undecidable"; a rule set says only whether the relation holds. On *all*
pictures and on those with *both boxes* found, "undecidable" counts as not true, since the person did not see the
relation; the third view keeps the pictures that the person *decided*.
"""

from collections.abc import Iterator
from itertools import combinations, product

import numpy as np
import pandas as pd

from ..evaluation import scores as evaluation_scores
from ..evaluation import verdicts
from ..evaluation.statistics import AGREEMENT, Clusters, agreement, interval, mcnemar, measured, outcomes, pairwise
from ..relations import RULES
from .fitted_rule import off_axis
from .published import DETECTORS, FLOORS, SIDE

CAVEATS = """Read these verdicts with care. SpatialBench-UC: one person, who saw the published checker's verdict, judged
200 pictures that were drawn by the checker's confidence, by system and by axis, not at random; four relations only;
boxes below a score of 0.5 (Faster R-CNN) are not published. Grounding DINO was run on some of the pictures in which
Faster R-CNN had found both objects, so its numbers are of an easier selection. GenEval: its people were not asked for a
verdict but for positions, and 80 pictures a model, fewer with both objects, leave wide intervals."""

PAIRS = ("any", "best")
THRESHOLDS = {"Faster R-CNN": (0.5, 0.7, 0.9), "Grounding DINO": (0.35, 0.5, 0.7)}
IMAGES = ("all", "both boxes", "decided")


def judged(
    pictures: pd.DataFrame, boxes: pd.DataFrame, detector: str, rules: str, pairs: str, threshold: float | None = None
) -> pd.DataFrame:
    """:func:`verdicts.verdicts` on the pictures of all systems on which a detector was run.

    Args:
        pictures, boxes: of :func:`sources.read_spatialbench`.
        threshold: by default all published boxes count.

    Returns:
        The records, one per picture, with model, picture, verdict (the person's) and asked (the prompt's id; prompt_id
        is one per system and prompt).
    """
    # strictly above: the published boxes reach down to the floor
    threshold = FLOORS[detector] - 1e-9 if threshold is None else threshold
    # a prompt's pictures by one system are one prompt to visor
    asked = pictures.assign(prompt_id=pictures.picture.map(_prompt_of_system), asked=pictures.prompt_id)
    found = boxes[boxes.detector == detector]
    found = found.assign(prompt_id=found.picture.map(_prompt_of_system))
    prompts = asked.drop_duplicates("prompt_id")[["prompt_id", "subject", "relation", "object"]]
    records = verdicts.verdicts(prompts, found, int(pictures.image_index.max()) + 1, threshold, pairs, rules)
    about = asked[asked[detector]][["prompt_id", "image_index", "model", "picture", "verdict", "asked"]]
    return records.merge(about, on=["prompt_id", "image_index"])


def _prompt_of_system(picture: str) -> str:
    return picture.rpartition("_seed")[0]


def with_people(pictures: pd.DataFrame, boxes: pd.DataFrame, resamples: int = 10_000, seed: int = 0) -> pd.DataFrame:
    """Agreement of every rule set with the person, by detector, threshold, choice of pairs and kind of pictures.

    Returns:
        Columns detector, threshold, rules, pairs, images (see ``IMAGES``), n, then agreement, precision, recall
        (percent) and kappa, each with ``_low`` and ``_high``: the 95 % bootstrap over prompts.
    """
    asked = pictures[pictures.verdict.notna()]
    clusters = Clusters(asked.prompt_id, resamples, seed)
    rows = []
    for detector, rules, pairs in product(DETECTORS.values(), RULES, PAIRS):
        for threshold in THRESHOLDS[detector]:
            given = None if threshold == FLOORS[detector] else threshold
            told = judged(pictures, boxes, detector, rules, pairs, given)
            told = told[told.verdict.notna()]
            kinds = (told, told[told.both_found], told[told.verdict != "undecidable"])
            for images, part in zip(IMAGES, kinds, strict=True):
                row = {"detector": detector, "threshold": threshold, "rules": rules, "pairs": pairs, "images": images}
                rows.append(row | _measures(part, clusters))
    return pd.DataFrame(rows)


HEADLINE = ["detector", "rules", "pairs", "images", "n", "agreement", "agreement_low", "agreement_high", "kappa",
            "kappa_low", "kappa_high"]  # fmt: skip


def published_boxes(agreement: pd.DataFrame) -> pd.DataFrame:
    """Of :func:`with_people`: agreement and kappa where all published boxes count."""
    return agreement[agreement.threshold == agreement.detector.map(FLOORS)][HEADLINE].reset_index(drop=True)


def _measures(told: pd.DataFrame, clusters: Clusters) -> dict[str, float | int]:
    hits = outcomes(told.correct.to_numpy(bool), (told.verdict == "true").to_numpy(bool))
    values, drawn = agreement(hits.sum(axis=0)), agreement(clusters.sums(told.asked, hits))
    row: dict[str, float | int] = {"n": len(told)}
    for i, name in enumerate(AGREEMENT):
        times = 1 if name == "kappa" else 100
        row |= measured("agreement" if name == "accuracy" else name, values[i], drawn[:, i], times)
    return row


def tests(pictures: pd.DataFrame, boxes: pd.DataFrame, resamples: int = 10_000, seed: int = 0) -> pd.DataFrame:
    """Do two rule sets agree with the person equally often? Paired, on all pictures that a person judged.

    Returns:
        Columns detector, pairs, a, b, n, only_a (pictures on which only a agrees with the person), only_b, difference
        (b − a, points of agreement) with low and high (bootstrap over prompts), and p (McNemar's exact test, which
        takes pictures as independent, whatever their prompt).
    """
    asked = pictures[pictures.verdict.notna()]
    clusters, rows = Clusters(asked.prompt_id, resamples, seed), []
    for detector, pairs in product(DETECTORS.values(), PAIRS):
        right = {}
        for rules in RULES:
            told = judged(pictures, boxes, detector, rules, pairs)
            told = told[told.verdict.notna()]
            right[rules] = (told.correct == (told.verdict == "true")).to_numpy(bool)
        for a, b in combinations(RULES, 2):
            only_a, only_b, p = mcnemar(right[a], right[b])
            gain = np.stack([right[b].astype(int) - right[a], np.ones(len(told), int)], axis=1)
            sums = clusters.sums(told.asked, gain)
            low, high = interval(100 * sums[:, 0] / sums[:, 1])
            rows.append({"detector": detector, "pairs": pairs, "a": a, "b": b, "n": len(told), "only_a": only_a,
                         "only_b": only_b, "difference": 100 * float(gain[:, 0].mean()), "low": low, "high": high,
                         "p": p})  # fmt: skip
    return pd.DataFrame(rows)


# ----------------------------------------------------------------------------------------------------------------- why

WHY = (
    "a box is missing", "one box contains the other", "boxes contradict the person", "near a diagonal",
    "close to straight", "close to sideways",
)  # fmt: skip


def offsets(pictures: pd.DataFrame, boxes: pd.DataFrame, detector: str) -> pd.DataFrame:
    """Where the most confident boxes of each judged picture stand, turned so that the asked direction is to the right.

    Returns:
        Columns picture, model, relation, verdict, both_found; along and across (shares of the picture's side: along the
        asked direction, and 90 degrees clockwise from it as one looks), angle (degrees off the direction), contains
        (does one box lie within the other?), the two boxes' summed extents along and across (for GenEval's border), and
        what each rule set says of this pair.
    """
    told = judged(pictures, boxes, detector, "visor", "best")
    told = told[told.verdict.notna()].reset_index(drop=True)
    box = {role: told[[f"{role}_{side}" for side in "xywh"]].to_numpy(np.float64) for role in ("subject", "object")}
    d = (box["subject"] - box["object"])[:, :2] + (box["subject"] - box["object"])[:, 2:] / 2
    extent = box["subject"][:, 2:] + box["object"][:, 2:]
    sideways = told.relation.isin(["left of", "right of"]).to_numpy()
    sign = np.where(told.relation.isin(["left of", "above"]), -1.0, 1.0)
    found = told.both_found.to_numpy(bool)
    angle = np.full(len(told), np.nan)
    for relation in told.relation.unique():
        of = found & (told.relation == relation).to_numpy()
        angle[of] = off_axis(d[of], relation)
    # turned by whole quarters: right stays, below becomes right and left becomes down, and so on
    columns = {
        "along": sign * np.where(sideways, d[:, 0], d[:, 1]) / SIDE,
        "across": sign * np.where(sideways, d[:, 1], -d[:, 0]) / SIDE,
        "angle": angle, "contains": told.inside | told.surrounding,
        "extent_along": np.where(sideways, extent[:, 0], extent[:, 1]) / SIDE,
        "extent_across": np.where(sideways, extent[:, 1], extent[:, 0]) / SIDE,
    }  # fmt: skip
    says = {rules: judged(pictures, boxes, detector, rules, "best").set_index("picture").correct for rules in RULES}
    table = told[["picture", "model", "relation", "verdict", "both_found"]].assign(**columns)
    return table.assign(**{rules: table.picture.map(said) for rules, said in says.items()})


def why(offsets: pd.DataFrame) -> pd.DataFrame:
    """Why a rule set and the person disagree, the first of ``WHY`` that fits.

    "Boxes contradict the person": the boxes stand in the opposite half although the person says "true". Straight, near
    a diagonal and sideways are the angle off the asked direction: to 30, to 60, and above.

    Returns:
        Columns rules, why, person_only (the person says "true", the rules do not) and rules_only.
    """
    person = offsets.verdict == "true"
    reasons = [
        ~offsets.both_found, offsets.contains, person & (offsets.angle > 90), offsets.angle.between(30, 60),
        offsets.angle < 30,
    ]  # fmt: skip
    reason = np.select(reasons, WHY[:5], WHY[5])
    rows = []
    for rules, name in product(RULES, WHY):
        of = reason == name
        only = {"person_only": person & ~offsets[rules], "rules_only": ~person & offsets[rules]}
        rows.append({"rules": rules, "why": name, **{k: int((of & v).sum()) for k, v in only.items()}})
    return pd.DataFrame(rows)


def decided(offsets: pd.DataFrame) -> pd.DataFrame:
    """How often each rule set says that the relation holds, by the person's verdict (best pair).

    Columns rules, verdict, n and holds (percent).
    """
    rows = [
        {"rules": rules, "verdict": verdict, "n": len(part), "holds": 100 * float(part[rules].mean())}
        for rules in RULES
        for verdict, part in offsets.groupby("verdict")
    ]
    return pd.DataFrame(rows)


# ------------------------------------------------------------------------------------------------------------- ceiling


def ceiling(answers: pd.DataFrame, resamples: int = 10_000, seed: int = 0) -> pd.DataFrame:
    """How often two people agree whether the relation holds in one picture: no rule can be expected to do better.

    Args:
        answers: of :func:`sources.read_geneval_people`.

    Returns:
        Columns model, pictures ("all"; "both objects": most of its people saw both), n (pictures), agreement (percent
        of pairs of people) with ``_low`` and ``_high`` (bootstrap over pictures), kappa (Fleiss) with the same.
    """
    rng, rows = np.random.default_rng(seed), []
    for model, of_model in answers.groupby("model", sort=False):
        seen = of_model.groupby("picture").both.transform("mean") > 0.5
        for kind, part in {"all": of_model, "both objects": of_model[seen]}.items():
            counts = pd.crosstab(part.picture, part.verdict).reindex(columns=["true", "false"], fill_value=0).to_numpy()
            times = rng.multinomial(len(counts), np.full(len(counts), 1 / len(counts)), resamples)
            row = {"model": model, "pictures": kind, "n": len(counts)}
            rows.append(row | pairwise(counts, times))
    return pd.DataFrame(rows)


def checker(pictures: pd.DataFrame) -> dict[str, float]:
    """The published checker against the person, as its authors count: ``accuracy`` on what both decide (percent), and
    ``coverage``, the percentage of judged pictures that the checker decides."""
    told = pictures[pictures.verdict.notna()]
    both = told[(told.verdict != "undecidable") & (told.checker != "undecidable")]
    return {
        "accuracy": 100 * float((both.verdict == both.checker).mean()),
        "coverage": 100 * float((told.checker != "undecidable").mean()),
    }


_KEYS = ["model", "detector", "rules", "pairs"]


def scores(pictures: pd.DataFrame, boxes: pd.DataFrame, resamples: int = 10_000, seed: int = 0) -> pd.DataFrame:
    """:func:`scores.scores` over all relations of every system, detector, rule set and choice of pairs.

    Grounding DINO was run only where Faster R-CNN had found both objects, and not on all of those: its scores are of
    these pictures (``of``), and it has no VISOR_1 to VISOR_4, which need all images of a prompt.

    Returns:
        Columns model, detector, rules, pairs, metric, value, low, high (percent), count and of.
    """
    tables = []
    for detector, rules, pairs in product(DETECTORS.values(), RULES, PAIRS):
        told = judged(pictures, boxes, detector, rules, pairs)
        whole = bool(pictures[detector].all())
        for model, records in told.groupby("model", sort=False):
            table = evaluation_scores.scores(records).query("relation == 'all'")
            table = table.astype({"count": "Int64", "of": "Int64"})
            if not whole:
                table.loc[table.metric.str.fullmatch(r"VISOR_\d"), ["value", "low", "high", "count", "of"]] = pd.NA
            tables.append(table.assign(model=model, detector=detector, rules=rules, pairs=pairs))
    return pd.concat(tables, ignore_index=True)[[*_KEYS, "metric", "value", "low", "high", "count", "of"]]


def compared(
    pictures: pd.DataFrame, boxes: pd.DataFrame, resamples: int = 10_000, seed: int = 0
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Every two systems, and which is best, on the prompts of which the detector saw a picture of each system.

    Returns:
        differences: columns detector, rules, pairs, a, b, metric (OA, VISOR or VISOR_Cond), prompts, difference (b − a,
        points), low and high: bootstrap over prompts, paired between systems.
        order: columns detector, rules, pairs, metric (VISOR or VISOR_Cond), order (best first) and stable: the
        percentage of the resamples that give this very order.
    """
    differences, orders = [], []
    for keys, records in _all_ways(pictures, boxes):
        names, drawn = list(records), evaluation_scores.draws(list(records.values()), resamples, seed)["all"]
        for metric in evaluation_scores.MAIN:
            values = drawn[:, :, evaluation_scores.METRICS.index(metric)]
            for a, b in combinations(range(len(names)), 2):
                gain = values[b] - values[a]
                prompts = records[names[a]].prompt_id.nunique()
                about = {**keys, "a": names[a], "b": names[b], "metric": metric, "prompts": prompts}
                differences.append(about | evaluation_scores.estimate(gain, "difference", "low", "high"))
            if metric != "OA":
                ranks = np.argsort(-values, axis=0, kind="stable").T
                stable = 100 * float((ranks[1:] == ranks[0]).all(axis=1).mean())
                best_first = ", ".join(names[i] for i in ranks[0])
                orders.append({**keys, "metric": metric, "order": best_first, "stable": stable})
    return pd.DataFrame(differences), pd.DataFrame(orders)


def _all_ways(pictures: pd.DataFrame, boxes: pd.DataFrame) -> Iterator[tuple[dict[str, str], dict[str, pd.DataFrame]]]:
    """For each detector, rule set and choice of pairs: the records of each system on the prompts that all share."""
    for detector, rules, pairs in product(DETECTORS.values(), RULES, PAIRS):
        told = judged(pictures, boxes, detector, rules, pairs)
        told = told.assign(prompt_id=told.asked)
        models = told.model.unique()
        shared = told.groupby("prompt_id").model.nunique().eq(len(models))
        told = told[told.prompt_id.map(shared)]
        keys = {"detector": detector, "rules": rules, "pairs": pairs}
        yield keys, {model: told[told.model == model] for model in models}
