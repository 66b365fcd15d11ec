"""Rule sets beside people on generated images: how well they agree, which agrees better, and why they differ.

A person calls an image "true", "false" or "undecidable"; a rule set says only whether the relation holds. On *all*
images and on those with *both boxes*, "undecidable" counts as not true, since the person did not see the relation; the
third view keeps the images that the person *decided*.
"""

from itertools import combinations, product

import numpy as np
import pandas as pd

from ..evaluation import scores as scoring
from ..evaluation.judges import SAMPLES, apart
from ..evaluation.statistics import AGREEMENT, Clusters, agreement, interval, mcnemar, measured, outcomes, pairwise
from ..evaluation.verdicts import verdicts
from ..relations import RULES
from .fitted_rule import off_axis
from .published import DETECTORS, FLOORS, SIDE

CAVEATS = """Read these verdicts with care. SpatialBench-UC: one person, who saw the published checker's verdict, judged
200 images. They were not drawn at random but by system, relation, and the checker's verdict and confidence, about
equally many of each; in columns with "weighted" each counts for the images of the 2,400 that it stands for. They cover
four relations only, and boxes below a score of 0.5 (Faster R-CNN) are not published. Grounding DINO was run on some of
the images in which Faster R-CNN had found both objects, so its numbers describe an easier selection. GenEval: its
people were not asked for a verdict but for positions; 80 images a model, fewer with both objects, leave wide
intervals."""

PAIRS = ("any", "best")
THRESHOLDS = {"Faster R-CNN": (0.5, 0.7, 0.9), "Grounding DINO": (0.35, 0.5, 0.7)}
IMAGES = ("all", "both boxes", "decided")
ROLES = ("subject", "object")
HEADLINE = ["detector", "rules", "pairs", "images", "n", "agreement", "agreement_low", "agreement_high", "kappa",
            "kappa_low", "kappa_high", "agreement_weighted", "agreement_weighted_low", "agreement_weighted_high",
            "kappa_weighted", "kappa_weighted_low", "kappa_weighted_high"]  # fmt: skip


def judged(
    pictures: pd.DataFrame, boxes: pd.DataFrame, detector: str, rules: str, pairs: str, threshold: float | None = None
) -> pd.DataFrame:
    """:func:`verdicts.verdicts` on the images of all systems on which a detector was run, from
    :func:`published.read_spatialbench`; without a threshold all published boxes count.

    Returns:
        The records, one per image, with model, picture, verdict (the person's), weight and stratum (of the image) and
        asked (the prompt's id; prompt_id is one per system and prompt).
    """
    # strictly above: the published boxes reach down to the floor
    threshold = FLOORS[detector] - 1e-9 if threshold is None else threshold
    # to verdicts(), the images of one prompt by one system are one prompt
    images = pictures.assign(prompt_id=pictures.picture.map(_prompt_of_system), asked=pictures.prompt_id)
    detections = boxes[boxes.detector == detector]
    detections = detections.assign(prompt_id=detections.picture.map(_prompt_of_system))
    prompts = images.drop_duplicates("prompt_id")[["prompt_id", "subject", "relation", "object"]]
    records = verdicts(prompts, detections, int(pictures.image_index.max()) + 1, threshold, pairs, rules)
    about = images[images[detector]][
        ["prompt_id", "image_index", "model", "picture", "verdict", "weight", "stratum", "asked"]
    ]
    return records.merge(about, on=["prompt_id", "image_index"])


def _prompt_of_system(picture: str) -> str:
    return picture.rpartition("_seed")[0]


def with_people(pictures: pd.DataFrame, boxes: pd.DataFrame, resamples: int = 10_000, seed: int = 0) -> pd.DataFrame:
    """Agreement of every rule set with the person, by detector, threshold, choice of pairs and kind of images.

    Returns:
        Columns detector, threshold, rules, pairs, images (see ``IMAGES``), n, then agreement, precision, recall
        (percent) and kappa, each with ``_low`` and ``_high``: the 95 % bootstrap over prompts. Then agreement_weighted
        and kappa_weighted, the same of all 2,400 images: each judged one counts for those that it stands for.
    """
    clusters = Clusters(pictures[pictures.verdict.notna()].prompt_id, resamples, seed)
    rows = []
    for detector, rules, pairs in product(DETECTORS.values(), RULES, PAIRS):
        for threshold in THRESHOLDS[detector]:
            cut = None if threshold == FLOORS[detector] else threshold
            records = judged(pictures, boxes, detector, rules, pairs, cut).dropna(subset="verdict")
            kinds = (records, records[records.both_found], records[records.verdict != "undecidable"])
            for images, part in zip(IMAGES, kinds, strict=True):
                row = {"detector": detector, "threshold": threshold, "rules": rules, "pairs": pairs, "images": images}
                rows.append(row | _measures(part, clusters))
    return pd.DataFrame(rows)


def _measures(records: pd.DataFrame, clusters: Clusters) -> dict[str, float | int]:
    hits = outcomes(records.correct.to_numpy(bool), (records.verdict == "true").to_numpy(bool))
    values, drawn = agreement(hits.sum(axis=0)), agreement(clusters.sums(records.asked, hits))
    row: dict[str, float | int] = {"n": len(records)}
    for i, name in enumerate(AGREEMENT):
        scale = 1.0 if name == "kappa" else 100.0
        row |= measured("agreement" if name == "accuracy" else name, values[i], drawn[:, i], scale)
    weighted = hits * records.weight.to_numpy()[:, None]
    values, drawn = agreement(weighted.sum(axis=0)), agreement(clusters.sums(records.asked, weighted))
    row |= measured("agreement_weighted", values[0], drawn[:, 0], 100.0)
    return row | measured("kappa_weighted", values[3], drawn[:, 3])


def published_boxes(agreement: pd.DataFrame) -> pd.DataFrame:
    """Of :func:`with_people`: agreement and kappa where all published boxes count."""
    return agreement[agreement.threshold == agreement.detector.map(FLOORS)][HEADLINE].reset_index(drop=True)


def tests(pictures: pd.DataFrame, boxes: pd.DataFrame, resamples: int = 10_000, seed: int = 0) -> pd.DataFrame:
    """Do two rule sets agree with the person equally often? Paired, on all images that a person judged.

    Returns:
        Columns detector, pairs, a, b, n, only_a (images on which only a agrees with the person), only_b, difference
        (b − a, points of agreement) with low and high (bootstrap over prompts), weighted (the same of all 2,400 images)
        with weighted_low and weighted_high, and p (McNemar's exact test, which treats images as independent, whatever
        their prompt).
    """
    clusters, rows = Clusters(pictures[pictures.verdict.notna()].prompt_id, resamples, seed), []
    for detector, pairs in product(DETECTORS.values(), PAIRS):
        right = {}
        for rules in RULES:
            records = judged(pictures, boxes, detector, rules, pairs).dropna(subset="verdict")
            right[rules] = (records.correct == (records.verdict == "true")).to_numpy(bool)
        for a, b in combinations(RULES, 2):
            only_a, only_b, p = mcnemar(right[a], right[b])
            gain, of = right[b].astype(int) - right[a], np.ones(len(records), int)
            weight = records.weight.to_numpy()
            values = np.stack([gain, of, gain * weight, weight], axis=1)
            sums, total = clusters.sums(records.asked, values), values.sum(axis=0)
            low, high = interval(100 * sums[:, 0] / sums[:, 1])
            weighted = measured("weighted", total[2] / total[3], sums[:, 2] / sums[:, 3], 100.0)
            rows.append({"detector": detector, "pairs": pairs, "a": a, "b": b, "n": len(records), "only_a": only_a,
                         "only_b": only_b, "difference": 100 * float(gain.mean()), "low": low, "high": high,
                         **weighted, "p": p})  # fmt: skip
    return pd.DataFrame(rows)


def ceiling(answers: pd.DataFrame, resamples: int = 10_000, seed: int = 0) -> pd.DataFrame:
    """How often two people agree whether the relation holds in one image: no rule can be expected to do better.
    ``answers``: from :func:`published.read_geneval_people`.

    Returns:
        Columns model, pictures ("all"; "both objects": most of its people saw both), n (images), agreement (percent
        of pairs of people) with ``_low`` and ``_high`` (bootstrap over images), kappa (Fleiss) with the same.
    """
    rng, rows = np.random.default_rng(seed), []
    for model, images in answers.groupby("model", sort=False):
        seen = images.groupby("picture").both.transform("mean") > 0.5
        for kind, part in {"all": images, "both objects": images[seen]}.items():
            counts = pd.crosstab(part.picture, part.verdict).reindex(columns=["true", "false"], fill_value=0).to_numpy()
            times = rng.multinomial(len(counts), np.full(len(counts), 1 / len(counts)), resamples)
            rows.append({"model": model, "pictures": kind, "n": len(counts)} | pairwise(counts, times))
    return pd.DataFrame(rows)


def checker(pictures: pd.DataFrame) -> dict[str, float]:
    """The published checker against the person, as its authors count: ``accuracy`` on what both decide (percent), and
    ``coverage``, the percentage of judged images that the checker decides."""
    images = pictures[pictures.verdict.notna()]
    both = images[(images.verdict != "undecidable") & (images.checker != "undecidable")]
    return {
        "accuracy": 100 * float((both.verdict == both.checker).mean()),
        "coverage": 100 * float((images.checker != "undecidable").mean()),
    }


WHY = (
    "a box is missing", "one box contains the other", "boxes contradict the person", "near a diagonal",
    "close to straight", "close to sideways",
)  # fmt: skip


def offsets(pictures: pd.DataFrame, boxes: pd.DataFrame, detector: str) -> pd.DataFrame:
    """Where the most confident boxes of each judged image are, turned so that the prompt's direction points right.

    Returns:
        Columns picture, model, relation, verdict, both_found; along and across (shares of the image's side: along the
        prompt's direction, and 90 degrees clockwise from it as one looks), angle (degrees off the direction), contains
        (does one box lie within the other?), the two boxes' summed extents along and across (for GenEval's border), and
        each rule set's verdict on this pair.
    """
    records = judged(pictures, boxes, detector, "visor", "best").dropna(subset="verdict").reset_index(drop=True)
    subject, object = (records[[f"{role}_{side}" for side in "xywh"]].to_numpy(float) for role in ROLES)
    d = (subject - object)[:, :2] + (subject - object)[:, 2:] / 2
    extent = subject[:, 2:] + object[:, 2:]
    sideways = records.relation.isin(["left of", "right of"]).to_numpy()
    sign = np.where(records.relation.isin(["left of", "above"]), -1.0, 1.0)
    angle = np.full(len(records), np.nan)
    for relation in records.relation.unique():
        rows = (records.both_found & (records.relation == relation)).to_numpy(bool)
        angle[rows] = off_axis(d[rows], relation)
    # turned by whole quarters: right stays, below becomes right and left becomes down, and so on
    columns = {
        "along": sign * np.where(sideways, d[:, 0], d[:, 1]) / SIDE,
        "across": sign * np.where(sideways, d[:, 1], -d[:, 0]) / SIDE,
        "angle": angle, "contains": records.inside | records.surrounding,
        "extent_along": np.where(sideways, extent[:, 0], extent[:, 1]) / SIDE,
        "extent_across": np.where(sideways, extent[:, 1], extent[:, 0]) / SIDE,
    }  # fmt: skip
    table = records[["picture", "model", "relation", "verdict", "both_found"]].assign(**columns)
    for rules in RULES:
        correct = judged(pictures, boxes, detector, rules, "best").set_index("picture").correct
        table[rules] = table.picture.map(correct)
    return table


def why(offsets: pd.DataFrame) -> pd.DataFrame:
    """Why a rule set and the person disagree: columns rules, why (the first of ``WHY`` that fits), person_only (the
    person says "true", the rules do not) and rules_only.

    "Boxes contradict the person": they stand in the opposite half although the person says "true". Straight, near a
    diagonal and sideways are the angle off the prompt's direction: up to 30, up to 60, and more.
    """
    person = offsets.verdict == "true"
    reasons = [
        ~offsets.both_found, offsets.contains, person & (offsets.angle > 90), offsets.angle.between(30, 60),
        offsets.angle < 30,
    ]  # fmt: skip
    reason = np.select(reasons, WHY[:5], WHY[5])
    rows = []
    for rules, name in product(RULES, WHY):
        only = {"person_only": person & ~offsets[rules], "rules_only": ~person & offsets[rules]}
        counts = {column: int((holds & (reason == name)).sum()) for column, holds in only.items()}
        rows.append({"rules": rules, "why": name, **counts})
    return pd.DataFrame(rows)


def decided(offsets: pd.DataFrame) -> pd.DataFrame:
    """How often each rule set says that the relation holds (percent), by the person's verdict: best pair."""
    return pd.DataFrame(
        {"rules": rules, "verdict": verdict, "n": len(part), "holds": 100 * float(part[rules].mean())}
        for rules in RULES
        for verdict, part in offsets.groupby("verdict")
    )


def scores(pictures: pd.DataFrame, boxes: pd.DataFrame) -> pd.DataFrame:
    """:func:`scores.scores` over all relations of every system, detector, rule set and choice of pairs.

    Grounding DINO was run only where Faster R-CNN had found both objects, and not on all of those. Its scores are of
    these images (``of``), and it has no VISOR_1 to VISOR_4, which need all images of a prompt.

    Returns:
        Columns model, detector, rules, pairs, metric, value, low, high (percent), count and of.
    """
    tables = []
    for detector, rules, pairs in product(DETECTORS.values(), RULES, PAIRS):
        whole = bool(pictures[detector].all())
        for model, records in judged(pictures, boxes, detector, rules, pairs).groupby("model", sort=False):
            table = scoring.scores(records).query("relation == 'all'").astype({"count": "Int64", "of": "Int64"})
            if not whole:
                table.loc[table.metric.str.fullmatch(r"VISOR_\d"), ["value", "low", "high", "count", "of"]] = pd.NA
            tables.append(table.assign(model=model, detector=detector, rules=rules, pairs=pairs))
    columns = ["model", "detector", "rules", "pairs", "metric", "value", "low", "high", "count", "of"]
    return pd.concat(tables, ignore_index=True)[columns]


def compared(
    pictures: pd.DataFrame, boxes: pd.DataFrame, resamples: int = 10_000, seed: int = 0
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Every two systems, and which is best, on the prompts of which the detector saw an image of each system.

    Returns:
        differences: columns detector, rules, pairs, a, b, metric (OA, VISOR or VISOR_Cond), prompts, difference (b − a,
        points), low and high: bootstrap over prompts, paired between systems.
        order: columns detector, rules, pairs, metric (VISOR or VISOR_Cond), order (best first) and stable: the
        percentage of the resamples that give this very order.
    """
    differences, orders = [], []
    for detector, rules, pairs in product(DETECTORS.values(), RULES, PAIRS):
        keys = {"detector": detector, "rules": rules, "pairs": pairs}
        records = judged(pictures, boxes, detector, rules, pairs)
        records = records.assign(prompt_id=records.asked)
        names = records.model.unique().tolist()
        shared = records.groupby("prompt_id").model.nunique().eq(len(names))
        records = records[records.prompt_id.map(shared)]
        drawn = scoring.draws([records[records.model == name] for name in names], resamples, seed)["all"]
        for metric in scoring.MAIN:
            values = drawn[:, :, scoring.METRICS.index(metric)]
            for a, b in combinations(range(len(names)), 2):
                about = {**keys, "a": names[a], "b": names[b], "metric": metric, "prompts": int(shared.sum())}
                differences.append(about | scoring.estimate(values[b] - values[a], "difference", "low", "high"))
            if metric != "OA":
                ranks = np.argsort(-values, axis=0, kind="stable").T
                stable = 100 * float((ranks[1:] == ranks[0]).all(axis=1).mean())
                best_first = ", ".join(names[i] for i in ranks[0])
                orders.append({**keys, "metric": metric, "order": best_first, "stable": stable})
    return pd.DataFrame(differences), pd.DataFrame(orders)


def whose_gain(pictures: pd.DataFrame, boxes: pd.DataFrame, resamples: int = 10_000, seed: int = 0) -> pd.DataFrame:
    """:func:`judges.apart` of every two systems, on the images on which both detectors were run: the gain by Faster
    R-CNN, less the gain by Grounding DINO. Decided before it was computed (``data/protocol_1.yaml``, ``whose gain``).

    Returns:
        Columns pairs, a, b, prompts (of which both systems have such an image), those of ``apart``, and low_corrected
        and high_corrected: the interval for three comparisons (Bonferroni).
    """
    rows, run = [], pictures.picture[pictures[list(DETECTORS.values())].all(axis=1)]
    for pairs in PAIRS:
        by = [judged(pictures, boxes, detector, "visor", pairs) for detector in DETECTORS.values()]
        by = [records[records.picture.isin(run)].assign(prompt_id=lambda table: table.asked) for records in by]
        for a, b in combinations(pictures.model.unique(), 2):
            systems = [[records[records.model == name] for name in (a, b)] for records in by]
            ids = set(systems[0][0].prompt_id) & set(systems[0][1].prompt_id)
            one, two = ([table[table.prompt_id.isin(ids)] for table in tables] for tables in systems)
            each = [(one[0], one[1]), (two[0], two[1])]
            table, wider = (apart(each, resamples, seed, level) for level in (0.95, 1 - 0.05 / 3))
            table = table.assign(low_corrected=wider.low, high_corrected=wider.high)
            rows.append(table.assign(pairs=pairs, a=a, b=b, prompts=len(ids)))
    columns = ["pairs", "a", "b", "prompts"]
    return pd.concat(rows, ignore_index=True).set_index(columns).reset_index()


def whose_gain_verdict(table: pd.DataFrame, margin: float = 5.0) -> str:
    """The protocol's verdict on :func:`whose_gain`."""
    decided = table[(table.pairs == "best") & (table.images == SAMPLES[0])]
    if ((decided.low_corrected > 0) | (decided.high_corrected < 0)).any():
        return "part of a gain is the detector's"
    if ((decided.low > -margin) & (decided.high < margin)).all():
        return "the gains are the same by both detectors, within the margin"
    return "undecided"
