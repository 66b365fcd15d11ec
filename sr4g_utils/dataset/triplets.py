"""From boxes to distinct triplets per image, the splits, and the training sampler.

A triplet is one (image, subject, relation, object) of category names, however many pairs of boxes show it. "A dog to
the left of a cat" and "a dog to the left of another dog" are both written; the second kind is left out of prompts and
fine-tuning (paper section 3; the choices are listed in ``data/decisions.yaml``).
"""

import zlib
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import groupby, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Bool, Int, Int64

from ..relations import BY_NAME, NAMES, judge, rules_named
from ..store.files import atomic
from . import coco
from .boxes import BoxTable, Category
from .captions import caption
from .names import among

CONVERSES = [NAMES.index(BY_NAME[name].converse) for name in NAMES]
PAIRS_AT_ONCE = 1 << 16  # pairs judged together: large enough for numpy, small enough for the cache
PAIRS_PER_ROW_GROUP = 1 << 19  # about as many rows, which readers can filter and load alone
DENSE = 512  # boxes of an image above which its pairs are judged in pieces
THREADS = 2
KINDS_AT_ONCE = 1 << 17  # triplets of all categories whose captions are written before they are met

Pairs = tuple[Int[np.ndarray, "group 3"], np.ndarray, np.ndarray, np.ndarray]  # see :func:`pairs`


def pairs(table: BoxTable) -> Iterator[Pairs]:
    """Every ordered pair of boxes of an image, some images at a time, grouped by their two categories.

    Yields ``groups`` (image, subject category, object category; positions in the table, ascending), the rows
    ``subject`` and ``object`` of each pair, and the pair with which each group starts. Each group of one category
    includes (box, itself); callers must drop it. The groups of an image of more than ``DENSE`` boxes come in pieces,
    those of one subject category after each other.
    """
    for part, is_dense in _parts(table):
        yield from _dense_pairs(table, part) if is_dense else _sparse_pairs(table, part)


def _parts(table: BoxTable) -> Iterator[tuple[slice, bool]]:
    """The table's rows in order: stretches of images, and alone, as True, each image of more than ``DENSE`` boxes."""
    start, length = _spans(table.image)
    done = 0
    for i in np.flatnonzero(length > DENSE):
        if done < start[i]:
            yield slice(done, start[i]), False
        done = start[i] + length[i]
        yield slice(start[i], done), True
    if done < len(table):
        yield slice(done, len(table)), False


def _dense_pairs(table: BoxTable, rows: slice) -> Iterator[Pairs]:
    """The pairs of one image in pieces: some boxes of one category, each with all boxes."""
    category = table.category[rows]
    start, length = _spans(category)
    every = np.arange(rows.start, rows.stop)
    at_once = max(PAIRS_AT_ONCE // len(every), 1)
    for first, count in zip(start, length, strict=True):
        same = [np.full(len(start), value) for value in (table.image[rows.start], category[first])]
        groups = np.stack([*same, category[start]], axis=1, dtype=np.int32)
        for some in range(first, first + count, at_once):
            subject = every[some : min(some + at_once, first + count)]
            yield groups, np.tile(subject, len(every)), np.repeat(every, len(subject)), start * len(subject)


def _sparse_pairs(table: BoxTable, rows: slice, once: bool = False) -> Iterator[Pairs]:
    """The pairs of whole images. With ``once``, two boxes meet once, the earlier row as the subject."""
    # A run is the boxes of one category in one image. The table is sorted by image, then category, so a run is a slice
    # of it and two numbers describe it. All index arithmetic below is on runs, of which there are far fewer than boxes.
    image, category = table.image[rows], table.category[rows]
    start = np.flatnonzero(np.diff(image, prepend=-1) | np.diff(category, prepend=-1))
    length = np.diff(start, append=len(image))
    image, category, start = image[start], category[start], start + rows.start
    first, runs = _spans(image)  # runs of each image
    per_image = np.add.reduceat(length, first)
    # Batches of whole images with about equal work stay in the cache, and no group is ever cut in two: what is counted
    # per group is final. A run meets the runs of its image from ``begin`` until ``end``.
    begin, end = np.arange(len(start)) if once else np.repeat(first, runs), np.repeat(first + runs, runs)
    for images in _batches(per_image * (per_image + 1) // 2 if once else per_image**2, PAIRS_AT_ONCE):
        here = slice(first[images.start], first[images.stop - 1] + runs[images.stop - 1])
        # Three lists of ranges give the pairs in the order of groups, without sorting millions of them: the runs that
        # a run meets, the boxes of the first of two runs, and the boxes of the second that each of these meets.
        s, o = _ranges(begin[here], end[here])
        s += here.start
        group, box = _ranges(start[s], start[s] + length[s])
        earliest = start[o][group]
        latest = earliest + length[o][group]
        pair, object = _ranges(np.maximum(earliest, box) if once else earliest, latest)
        sizes = length[s] * length[o]
        if once:  # a run with itself is a triangle
            sizes[s == o] -= (length * (length - 1) // 2)[s[s == o]]
        groups = np.stack([image[s], category[s], category[o]], axis=1, dtype=np.int32)
        yield groups, box[pair], object, np.cumsum(sizes) - sizes


def holds(table: BoxTable, subject: np.ndarray, object: np.ndarray, rules: str) -> Bool[np.ndarray, "pair relation"]:
    """:func:`relations.judge` on rows of a table; no relation holds between a box and itself."""
    image = table.image[subject]
    size = np.stack([table.width[image], table.height[image]]).T  # like xywh: columns, each in one piece
    verdict = judge(table.xywh(subject), table.xywh(object), rules, size)
    verdict[subject == object] = False
    return verdict


def count_pairs(
    table: BoxTable, rules: str = "visor"
) -> Iterator[tuple[Int[np.ndarray, "group 3"], Int[np.ndarray, "group relation"]]]:
    """For the groups of :func:`pairs`: of how many pairs of boxes each of the 14 relations holds."""
    once = rules_named(rules).mirrored
    for part, is_dense in _parts(table):
        if is_dense:
            yield from _count_dense(table, part, rules)
            continue
        for groups, subject, object, begin in _sparse_pairs(table, part, once):
            counts = _count(table, subject, object, begin, rules)
            yield _both_ways(groups, counts) if once else (groups, counts.T.copy())


def _count(
    table: BoxTable, subject: np.ndarray, object: np.ndarray, begin: np.ndarray, rules: str
) -> Int[np.ndarray, "relation group"]:
    return np.add.reduceat(holds(table, subject, object, rules).T, begin, axis=1, dtype=np.int32)


def _count_dense(
    table: BoxTable, rows: slice, rules: str
) -> Iterator[tuple[Int[np.ndarray, "group 3"], Int[np.ndarray, "group relation"]]]:
    """The counts of one image, the groups of a subject category at a time."""
    for _, pieces in groupby(_dense_pairs(table, rows), lambda piece: piece[0][0, 1]):
        counted = [(groups, _count(table, s, o, begin, rules)) for groups, s, o, begin in pieces]
        total = np.zeros_like(counted[0][1])
        for _, counts in counted:
            total += counts
        yield counted[0][0], total.T.copy()


def _both_ways(
    groups: Int[np.ndarray, "half 3"], counts: Int[np.ndarray, "relation half"]
) -> tuple[Int[np.ndarray, "group 3"], Int[np.ndarray, "group relation"]]:
    """All groups with their counts, from those in which two boxes meet once."""
    # An image's groups are the upper triangle of a square of its runs, row by row; each row starts on the diagonal.
    diagonal = np.flatnonzero(groups[:, 1] == groups[:, 2])
    row = np.repeat(np.arange(len(diagonal)), np.diff(diagonal, append=len(groups)))
    column = row + np.arange(len(groups)) - diagonal[row]
    first, runs = _spans(groups[diagonal, 0])
    corner = np.repeat(np.cumsum(runs**2) - runs**2 - first * (runs + 1), runs)[row]  # of its image, seen from row 0
    side = np.repeat(runs, runs)[row]
    there, back = corner + row * side + column, corner + column * side + row
    all_groups = np.empty((there[-1] + 1, 3), np.int32)
    all_groups[back], all_groups[there] = groups[:, [0, 2, 1]], groups
    all_counts = np.zeros((len(all_groups), len(NAMES)), np.int32)
    all_counts[there] = counts.T
    all_counts[back] += counts[CONVERSES].T
    return all_groups, all_counts


def _ranges(start: np.ndarray, stop: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The numbers from each start to its stop, one range after the other, and which range each is of."""
    length = stop - start
    i = np.repeat(np.arange(len(start)), length)
    return i, np.arange(len(i)) + (start - np.cumsum(length) + length)[i]


def _spans(values: np.ndarray) -> tuple[Int64[np.ndarray, "span"], Int64[np.ndarray, "span"]]:
    """Start and length of each stretch of equal values."""
    start = np.flatnonzero(np.diff(values, prepend=values[:1] - 1))
    return start, np.diff(start, append=len(values))


def _batches(work: np.ndarray, most: int) -> Iterator[slice]:
    """Slices of consecutive items, each with about ``most`` work."""
    done = np.cumsum(work)
    edges = np.searchsorted(done, np.arange(most, done[-1] + most, most), side="left") + 1
    edges = np.unique(np.concatenate([[0], np.minimum(edges, len(work))]))
    for a, b in pairwise(edges):
        yield slice(a, b)


def write_triplets(
    table: BoxTable,
    path: str | Path,
    split: str,
    held_out: Collection[str] = (),
    rules: str = "visor",
    template: str = "plain",
) -> int:
    """Write every distinct triplet with its caption to Parquet and return how many there are.

    Columns: image_id, file_name, subject, relation, object, caption, n_pairs (pairs of boxes that show it), subject_id,
    object_id (COCO's category ids), objects ("seen", "mixed" or "unseen") and split. Sorted by image, subject, object
    (in the order of category ids) and relation (in the order of ``RELATIONS``).

    Raises:
        ValueError: the rules do not define all relations, or there is no triplet at all, as when every image holds a
            single box.
    """
    rules_named(rules, NAMES)
    columns = _TripletColumns(table, split, held_out, template)
    _, per_image = _spans(table.image)
    edges = np.concatenate([[0], np.cumsum(per_image)])
    slices = [
        (slice(edges[part.start], edges[part.stop]), bool((per_image[part] > DENSE).any()))
        for part in _batches(per_image**2, PAIRS_PER_ROW_GROUP)
    ]

    def batches(rows: slice, at_once: int) -> Iterator[pa.RecordBatch]:
        parts: list[tuple[np.ndarray, np.ndarray]] = []
        waiting = 0
        for groups, counts in count_pairs(table.rows(rows), rules):
            parts.append((groups, counts))
            if (waiting := waiting + len(groups)) >= at_once:
                yield columns.batch(*map(np.concatenate, zip(*parts, strict=True)))
                parts, waiting = [], 0
        if parts:
            yield columns.batch(*map(np.concatenate, zip(*parts, strict=True)))

    n = 0
    with (
        atomic(path) as partial,
        # Plain strings in the file's schema: readers such as `datasets` know no Arrow dictionaries.
        pq.ParquetWriter(
            partial, columns.schema, store_schema=False, compression="zstd", compression_level=1,
            dictionary_pagesize_limit=1 << 24, write_statistics=["image_id"],
            use_dictionary=[name for name in columns.schema.names if not name.endswith("_id")],
        ) as writer,
        ThreadPoolExecutor(THREADS) as threads,
    ):  # fmt: skip
        for rows in _in_order(threads, batches, slices):
            writer.write_batch(rows, row_group_size=max(len(rows), 1))
            n += len(rows)
        if not n:
            raise ValueError(f"no triplet in {len(table):,} boxes: every image holds a single box")
    return n


def build(path: str | Path, annotations: str | Path, *, split: str, crowds: bool = False, **options: Any) -> int:
    """A stage: read an annotation file and :func:`write_triplets`. Returns the number of captions."""
    table = coco.read(annotations, split)
    return write_triplets(table if crowds else table.without_crowds(), path, split, **options)


def _in_order(
    threads: ThreadPoolExecutor, batches: Callable[[slice, int], Iterator[pa.RecordBatch]],
    slices: list[tuple[slice, bool]],
) -> Iterator[pa.RecordBatch]:  # fmt: skip
    """One batch of each slice, made only as far ahead as there are threads; of a slice with a dense image many small
    ones, made here. So results do not pile up."""
    waiting: deque[Future[list[pa.RecordBatch]]] = deque()
    for rows, is_dense in slices:
        if not is_dense:
            waiting.append(threads.submit(lambda rows: list(batches(rows, 1 << 62)), rows))
        while waiting and (is_dense or len(waiting) > THREADS):
            yield from waiting.popleft().result()
        if is_dense:
            yield from batches(rows, PAIRS_AT_ONCE)
    while waiting:
        yield from waiting.popleft().result()


class _TripletColumns:
    """Turns counts into Arrow columns. Texts are indices into lists that are made once."""

    def __init__(self, table: BoxTable, split: str, held_out: Collection[str], template: str) -> None:
        self.table = table
        names = table.names
        self.names = pa.array(names)
        self.template = template
        kinds = len(names) ** 2 * len(NAMES)  # a triplet's code is below it
        self.code = np.int32 if kinds < 1 << 31 else np.int64
        self.captions = pa.array(self.written(np.arange(kinds))) if kinds <= KINDS_AT_ONCE else None
        ids = np.array([category.id for category in table.categories])
        self.category_id = ids.astype(np.int64 if (np.abs(ids) >= 1 << 31).any() else np.int32)
        self.held_out = np.isin(names, list(held_out)).astype(np.int8)
        self.split = split
        self.place = np.min_scalar_type(-len(names))  # the smallest integers that number all names
        name, few, many = (
            pa.dictionary(pa.from_numpy_dtype(kind), pa.string()) for kind in (self.place, np.int8, np.int32)
        )
        id = pa.from_numpy_dtype(self.category_id.dtype)
        self.schema = pa.schema(
            {
                "image_id": pa.int64(), "file_name": many, "subject": name, "relation": few, "object": name,
                "caption": many, "n_pairs": pa.int32(), "subject_id": id, "object_id": id,
                "objects": few, "split": few,
            }
        )  # fmt: skip

    def written(self, codes: Int[np.ndarray, "triplet"]) -> list[str]:
        """The captions of triplets by their codes: (subject · categories + object) · relations + relation."""
        pair, relation = np.divmod(codes, len(NAMES))
        subject, object = np.divmod(pair, len(self.names))
        names, parts = self.table.names, (subject.tolist(), relation.tolist(), object.tolist())
        return [caption(names[s], NAMES[r], names[o], self.template) for s, r, o in zip(*parts, strict=True)]

    def texts(self, codes: Int[np.ndarray, "row"]) -> pa.Array:
        """A caption for each row. A file repeats its texts in each row group: those that occur in it."""
        if self.captions is None:
            used, place = np.unique(codes, return_inverse=True)
            return pa.DictionaryArray.from_arrays(pa.array(place.astype(np.int32)), pa.array(self.written(used)))
        used = np.zeros(len(self.captions), bool)
        used[codes] = True
        place = (np.cumsum(used, dtype=np.int32) - 1)[codes]
        return pa.DictionaryArray.from_arrays(pa.array(place), self.captions.filter(pa.array(used)), safe=False)

    def batch(self, groups: Int[np.ndarray, "group 3"], counts: Int[np.ndarray, "group relation"]) -> pa.RecordBatch:
        shown = counts > 0
        row = np.flatnonzero(shown)  # group and relation as one number
        rows, per_group = row.astype(np.int32), np.count_nonzero(shown, axis=1)
        image, s, o = groups.T
        first, last = int(image[0]), int(image[-1])

        def each(values: np.ndarray) -> np.ndarray:  # of a group, for each relation that holds
            return np.repeat(values, per_group)

        def text(codes: np.ndarray, values: pa.Array) -> pa.Array:
            return pa.DictionaryArray.from_arrays(pa.array(codes), values, safe=False)

        pair = s.astype(self.code) * len(self.names) + o
        first_code = (pair - np.arange(len(groups), dtype=self.code)) * len(NAMES)
        relation = np.tile(np.arange(len(NAMES), dtype=np.int8), len(groups))[row]
        s, o = s.astype(self.place), o.astype(self.place)
        columns = [
            each(self.table.image_id[image]),
            text(each(image - first), self.table.file_name[first : last + 1]),
            text(each(s), self.names),
            text(relation, pa.array(NAMES)),
            text(each(o), self.names),
            self.texts(each(first_code) + rows),
            counts.ravel()[row],
            each(self.category_id[s]),
            each(self.category_id[o]),
            text(each(self.held_out[s] + self.held_out[o]), pa.array(OBJECTS)),
            text(np.zeros(len(row), np.int8), pa.array([self.split])),
        ]
        return pa.record_batch([pa.array(c) if isinstance(c, np.ndarray) else c for c in columns], schema=self.schema)


def frequencies(path: str | Path) -> pd.DataFrame:
    """The distinct (subject, relation, object) of a triplet file with their caption, how many images and box pairs show
    each, and whether the objects are seen; most frequent first."""
    key = ["subject", "relation", "object", "caption", "objects"]
    table = pq.read_table(path, columns=[*key, "n_pairs"], read_dictionary=key)
    counted = table.unify_dictionaries().group_by(key).aggregate([("n_pairs", "count"), ("n_pairs", "sum")]).to_pandas()
    counted = counted.rename(columns={"n_pairs_count": "n_images", "n_pairs_sum": "n_pairs"})
    counted = counted.astype(dict.fromkeys(key, str))
    return counted.sort_values(["n_images", *key[:3]], ascending=[False, True, True, True], ignore_index=True)


OBJECTS = ("seen", "mixed", "unseen")  # by how many of a triplet's two categories are unseen: none, one, both


def held_out_categories(categories: Sequence[Category], n: int | Sequence[str]) -> list[str]:
    """The categories held out of the unseen split's fine-tuning: those named, or ``n`` spread over the supercategories.

    Each supercategory gives its share of ``n`` (largest remainders first, ties in file order), taken at even steps from
    its categories in the order of their ids; no chance enters. The paper does not list its own.

    Raises:
        ValueError: ``n`` is negative or not below the number of categories, or names a category that is none.
    """
    if not isinstance(n, int):
        return among([category.name for category in categories], n, "unseen: the annotations have no category")
    if not 0 <= n < len(categories):
        raise ValueError(f"unseen: {n} categories cannot be held out of {len(categories)}")
    families: dict[str, list[str]] = {}
    for category in sorted(categories, key=lambda category: category.id):
        families.setdefault(category.supercategory, []).append(category.name)
    quota = {family: n * len(names) / len(categories) for family, names in families.items()}
    share = {family: int(quota[family]) for family in families}
    for family in sorted(families, key=lambda family: share[family] - quota[family])[: n - sum(share.values())]:
        share[family] += 1
    parts = [(names, share[family]) for family, names in families.items()]
    return [names[int((i + 0.5) * len(names) / part)] for names, part in parts for i in range(part)]


def withheld(triplets: Iterable[tuple[str, str, str]], share: float) -> Bool[np.ndarray, "triplet"]:
    """Which (subject, relation, object) are held back from fine-tuning although their categories are seen: about a
    ``share`` of all, chosen by a hash of the words. A triplet goes with its converse, which shows the same ("a cat
    right of a dog" with "a dog left of a cat")."""

    same = [min((s, r, o), (o, BY_NAME[r].converse, s)) for s, r, o in triplets]
    return np.array([zlib.crc32("|".join(words).encode()) / 2**32 < share for words in same], bool)


def kept_apart(pairs: Iterable[tuple[str, str]], share: float) -> Bool[np.ndarray, "pair"]:
    """Which pairs of different things fine-tuning never sees in one photo: about a ``share`` of all, in either order,
    chosen by a hash of the words."""
    words = [("|".join(["apart", *sorted(pair)]), pair[0] != pair[1]) for pair in pairs]
    return np.array([differ and zlib.crc32(each.encode()) / 2**32 < share for each, differ in words], bool)


Draw = Callable[[int, np.random.Generator], Int64[np.ndarray, "n"]]


def sampler(relation: Int[np.ndarray, "row"], balanced: bool = True) -> Draw:
    """What draws n rows with replacement: a relation uniformly among those that occur, then one of its rows.

    ``relation`` is each row's relation as a number; it is sorted here, once for all draws. ``balanced=False`` draws
    rows uniformly: the natural distribution.

    Raises:
        ValueError: there is no row to draw from.
    """
    if not len(relation):
        raise ValueError("relation: no rows to sample from")
    if not balanced:
        return lambda n, rng: rng.integers(len(relation), size=n)
    order = np.argsort(relation, kind="stable")
    start, length = _spans(relation[order])

    def draw(n: int, rng: np.random.Generator) -> Int64[np.ndarray, "n"]:
        chosen = rng.integers(len(start), size=n)
        return order[start[chosen] + rng.integers(length[chosen])]

    return draw


def sample(
    relation: Int[np.ndarray, "row"], n: int, rng: np.random.Generator, balanced: bool = True
) -> Int64[np.ndarray, "n"]:
    """Draw n rows at once; see :func:`sampler`."""
    return sampler(relation, balanced)(n, rng)


def examples(table: BoxTable, triplets: str | Path, n: int, seed: int, rules: str = "visor") -> pd.DataFrame:
    """``n`` random captions of different categories (where there are none, of one), a relation at a time, each with a
    pair of boxes that shows it.

    Columns: caption, file_name, width, height, subject, object, subject_box and object_box (xywh).
    """
    text = ["file_name", "subject", "relation", "object", "caption"]
    read = pq.read_table(triplets, columns=["image_id", *text, "subject_id", "object_id"], read_dictionary=text)
    different = np.flatnonzero(read["subject_id"].to_numpy() != read["object_id"].to_numpy())
    different = different if len(different) else np.arange(len(read))
    relation = read["relation"].combine_chunks()
    codes = np.array([NAMES.index(name) for name in relation.dictionary.to_pylist()])[relation.indices.to_numpy()]
    chosen = different[sample(codes[different], n, np.random.default_rng(seed))]
    rows = read.take(chosen).select(["image_id", *text]).to_pandas().astype(dict.fromkeys(text, str))
    drawn = []
    for image, row in zip(np.searchsorted(table.image_id, rows.image_id).tolist(), rows.itertuples(), strict=True):
        part = table.of_image(image)
        names = np.array(table.names)[part.category]
        for _, s, o, _ in pairs(part):
            named = (names[s] == row.subject) & (names[o] == row.object)
            if (pair := np.flatnonzero(named & holds(part, s, o, rules)[:, NAMES.index(row.relation)])[:1]).size:
                drawn.append((part.width[0], part.height[0], part.xywh(s[pair])[0], part.xywh(o[pair])[0]))
                break
    rows[["width", "height", "subject_box", "object_box"]] = pd.DataFrame(drawn, dtype=object)
    return rows
