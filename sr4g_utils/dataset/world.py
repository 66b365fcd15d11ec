"""The offline world: layouts in COCO's annotation form, and photos of pictograms drawn from them.

Forty of COCO's categories, each a card of two fixed colours, its ground and a glyph of the Material Design Icons. A
layout is sampled with natural priors (things of the sky sit high, an elephant is larger than a cup, vehicles drive on
the right) and with enough freedom that every relation occurs for every pair of categories. The annotations are read as
COCO's are; the renderer draws any boxes in COCO's form, real ones included. A card fills its box to the pixel.
"""

import colorsys
import importlib.util
import json
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from jaxtyping import Float, Int, UInt8
from PIL import Image, ImageColor, ImageDraw, ImageFont
from scipy import ndimage
from tqdm import tqdm

from ..store.files import atomic, shipped, write_text
from . import coco
from .boxes import COCO_CATEGORIES, BoxTable, Category

SIZE = 64  # pixels, width and height of a photo


class Look(NamedTuple):
    """A category's pictogram and habits, a line of ``data/looks.yaml``, which explains them."""

    glyph: str
    colour: str
    ink: str
    size: float
    aspect: float
    across: float
    down: float


LOOKS = {name: Look(*values) for name, values in shipped("looks.yaml").items()}
CATEGORIES: tuple[Category, ...] = tuple(category for category in COCO_CATEGORIES if category.name in LOOKS)
NAMES: tuple[str, ...] = tuple(category.name for category in CATEGORIES)
N_OBJECTS = {1: 0.08, 2: 0.6, 3: 0.22, 4: 0.1}  # of a layout, with their probability
NATURAL = 0.6  # share of objects whose size and place follow the priors; the others are free
NESTED = 0.2  # share of layouts whose first two objects are put one inside the other
SAME = 0.05  # share of layouts that may repeat a category
COMPOSED = 0.7  # share of the other layouts of several objects that are composed as a photographer would: in a row
JITTER = 0.06  # of the photo, deviation of a place in a row
SMALLEST, LARGEST = 16, 56  # pixels, of a box's sides
VISIBLE = 0.8  # of an object's box that no smaller box may cover
VISIBLE_NESTED = 0.5  # the same, where one lies inside the other


def suits(subject: str, relation: str, object: str) -> int:
    """1 if two things' usual places or sizes are as a relation says, -1 if they are the reverse, 0 if neither."""
    s, o = LOOKS[subject], LOOKS[object]
    right, lower, larger = s.across - o.across, s.down - o.down, s.size - o.size
    wider, taller = (s.size * s.aspect**power - o.size * o.aspect**power for power in (0.5, -0.5))
    more = {"right of": right, "below": lower, "larger": larger, "wider": wider, "taller": taller}
    less = {"left of": right, "above": lower, "smaller": larger, "narrower": wider, "shorter": taller}
    return int(np.sign(more.get(relation, 0.0) - less.get(relation, 0.0)))


# ------------------------------------------------------------------------------------------------------------ layouts


def layout(rng: np.random.Generator, composed: float = COMPOSED) -> tuple[list[str], Int[np.ndarray, "object 4"]]:
    """Names and xywh boxes (whole pixels) of one scene of ``SIZE`` × ``SIZE``; ``composed`` is the share of rows."""
    n = int(rng.choice(list(N_OBJECTS), p=list(N_OBJECTS.values())))
    names = [str(name) for name in rng.choice(NAMES, n, replace=rng.random() < SAME)]
    nested = n > 1 and rng.random() < NESTED
    row = n > 1 and not nested and rng.random() < composed
    axis = int(rng.integers(2))
    while True:
        drawn = np.array([_box(LOOKS[name], rng) for name in names])
        if nested:
            drawn[:2] = _nest(drawn[:2], rng)
        if row:
            drawn = _in_a_row(drawn, axis, rng)
        if _all_visible(drawn, VISIBLE_NESTED if nested else VISIBLE):
            return names, drawn


def _box(look: Look, rng: np.random.Generator) -> list[int]:
    if rng.random() < NATURAL:
        side = SIZE * look.size * np.exp(0.2 * rng.standard_normal())
        aspect = look.aspect * np.exp(0.15 * rng.standard_normal())
        cx, cy = (look.across, look.down) + np.array([0.18, 0.12]) * rng.standard_normal(2)
    else:
        side, aspect = rng.uniform(18, 42), np.exp(0.35 * rng.standard_normal())
        cx, cy = rng.random(2)
    w, h = (int(np.clip(round(s), SMALLEST, LARGEST)) for s in (side * aspect**0.5, side / aspect**0.5))
    x, y = (int(np.clip(round(c * SIZE - length / 2), 0, SIZE - length)) for c, length in ((cx, w), (cy, h)))
    return [x, y, w, h]


def _in_a_row(drawn: Int[np.ndarray, "object 4"], axis: int, rng: np.random.Generator) -> Int[np.ndarray, "object 4"]:
    """The boxes side by side (axis 0) or one above the other (1), in the order given, which is random."""
    n = len(drawn)
    centre = (np.arange(n) + 0.5) / n + JITTER * rng.standard_normal(n)
    size = np.clip(drawn[:, 2:], SMALLEST, max(SMALLEST, SIZE // n - 2))
    corner = drawn[:, :2].copy()
    corner[:, axis] = np.round(SIZE * centre - size[:, axis] / 2)
    return np.concatenate([np.clip(corner, 0, SIZE - size), size], 1)


def _nest(pair: Int[np.ndarray, "2 4"], rng: np.random.Generator) -> Int[np.ndarray, "2 4"]:
    """The same two boxes with one, by chance, strictly inside the other."""
    outer, inner = pair[rng.permutation(2)]
    big = np.maximum(outer[2:], rng.integers(32, 48, 2))
    corner = np.minimum(outer[:2], SIZE - big)
    small = np.minimum(inner[2:], np.floor(big * rng.uniform(0.4, 0.7)).astype(int))
    small = np.clip(small, SMALLEST, big - 2)
    place = corner + 1 + np.floor(rng.random(2) * (big - small - 1)).astype(int)
    nested = np.array([[*corner, *big], [*place, *small]])
    return nested if (outer == pair[0]).all() else nested[::-1]


def _all_visible(drawn: Int[np.ndarray, "object 4"], share: float) -> bool:
    mask = np.ones((SIZE, SIZE), bool)
    for x, y, w, h in drawn[painting_order(drawn)[::-1]]:  # from the front
        if mask[y : y + h, x : x + w].mean() < share:
            return False
        mask[y : y + h, x : x + w] = False
    return True


def painting_order(xywh: np.ndarray) -> Int[np.ndarray, "object"]:
    """Larger boxes are painted first, so that smaller things lie in front."""
    return np.argsort(-xywh[:, 2] * xywh[:, 3], kind="stable")


def scenes(
    n: int, seed: Sequence[int], composed: float = COMPOSED
) -> Iterator[tuple[list[str], Int[np.ndarray, "object 4"]]]:
    """``n`` layouts; the i-th depends on (seed, i) alone."""
    for i in range(n):
        yield layout(np.random.default_rng([*seed, i]), composed)


SPLITS = {"train": 0, "val": 1}
IMAGES = {"train": 8_000, "val": 1_000}


def write_annotations(path: str | Path, *, split: str, images: int | None = None, seed: int = 0) -> int:
    """Sampled layouts as a COCO ``instances`` file (a stage). Returns the number of images.

    The splits share neither layouts nor image ids.
    """
    n = IMAGES[split] if images is None else images
    ids = {category.name: category.id for category in CATEGORIES}
    first = 1 + SPLITS[split] * 1_000_000
    records: dict[str, list] = {"images": [], "annotations": [], "categories": [
        {"id": c.id, "name": c.name, "supercategory": c.supercategory} for c in CATEGORIES
    ]}  # fmt: skip
    for i, (names, drawn) in enumerate(scenes(n, (seed, SPLITS[split]))):
        image = first + i
        records["images"].append({"id": image, "file_name": f"{image:012d}.png", "width": SIZE, "height": SIZE})
        for name, box in zip(names, drawn.tolist(), strict=True):
            id = first + len(records["annotations"])
            about = {"id": id, "image_id": image, "category_id": ids[name], "bbox": box}
            records["annotations"].append({**about, "area": box[2] * box[3], "iscrowd": 0})
    write_text(path, json.dumps(records))
    return n


# ------------------------------------------------------------------------------------------------------------- photos


@cache
def _font() -> tuple[ImageFont.FreeTypeFont, dict[str, str]]:
    """The icon font and its character map, read from qtawesome's folder; Qt is not imported."""
    spec = importlib.util.find_spec("qtawesome")
    if spec is None or not spec.submodule_search_locations:
        raise RuntimeError("the miniature draws glyphs of the package qtawesome: pip install qtawesome")
    folder = Path(spec.submodule_search_locations[0]) / "fonts"
    ends = ("webfont-[0-9]*.ttf", "*.json")
    font, charmap = (sorted(folder.glob(f"materialdesignicons6-{end}"))[-1] for end in ends)
    return ImageFont.truetype(str(font), 256), json.loads(charmap.read_text(encoding="utf-8"))


@cache
def _glyph(name: str) -> Image.Image:
    """A category's glyph, cut to its extent (an 8-bit mask)."""
    font, charmap = _font()
    character = chr(int(charmap[LOOKS[name].glyph], 16))
    canvas = Image.new("L", (400, 400))
    ImageDraw.Draw(canvas).text((60, 60), character, font=font, fill=255)
    return canvas.crop(canvas.point(lambda value: 255 * (value > 127)).getbbox())


MARGIN = 0.08  # of a card's sides, around its glyph


@cache
def glyph_share(name: str, w: int, h: int) -> Float[np.ndarray, "h w"]:
    """How much of each pixel of a category's card, w × h pixels large, is of its glyph (0 to 1); the rest is ground."""
    left, top = round(MARGIN * w), round(MARGIN * h)
    glyph = _glyph(name).resize((w - 2 * left, h - 2 * top), Image.Resampling.BOX)
    share = np.zeros((h, w))
    share[top : h - top, left : w - left] = np.asarray(glyph) / 255
    return share


def colours(name: str) -> tuple[Float[np.ndarray, "3"], Float[np.ndarray, "3"]]:
    """The colours (0 to 1) of a category's card: of its ground, and of its glyph."""
    ground, ink = (np.array(ImageColor.getrgb(colour)) / 255 for colour in (LOOKS[name].colour, LOOKS[name].ink))
    return ground, ink


@cache
def card(name: str, w: int, h: int) -> Float[np.ndarray, "h w 3"]:
    """A category's card, w × h pixels large."""
    ground, ink = colours(name)
    return (ground + glyph_share(name, w, h)[..., None] * (ink - ground)).astype(np.float32)


def background(size: tuple[int, int], rng: np.random.Generator) -> Float[np.ndarray, "h w 3"]:
    """A pale ground, plain, graded, striped or grainy; width and height in pixels."""
    w, h = size
    colour = np.array(colorsys.hsv_to_rgb(rng.random(), rng.uniform(0, 0.1), rng.uniform(0.85, 1.0)))
    y, x = np.mgrid[0:h, 0:w] / max(w, h)
    kind = rng.integers(4)
    texture = np.zeros((h, w))
    if kind == 1:
        texture = 0.12 * (y - 0.5)
    elif kind == 2:
        angle, period = rng.uniform(0, np.pi), rng.uniform(0.35, 0.7)
        texture = 0.03 * np.sign(np.sin(2 * np.pi * (np.cos(angle) * x + np.sin(angle) * y) / period))
    elif kind == 3:
        texture = ndimage.zoom(0.04 * rng.standard_normal((h // 16 + 2, w // 16 + 2)), 16, order=1)[:h, :w]
    return (colour + texture[..., None]).clip(0, 1).astype(np.float32)


def render(
    xywh: Float[np.ndarray, "object 4"] | Int[np.ndarray, "object 4"],
    names: Sequence[str],
    size: tuple[int, int] = (SIZE, SIZE),
    seed: int = 0,
) -> UInt8[np.ndarray, "h w 3"]:
    """The photo of a layout: xywh in pixels, width and height of the photo, and the seed of its background.

    Sides of a box are rounded to whole pixels; at least one is drawn.

    Raises:
        ValueError: a name that the miniature has no pictogram of.
    """
    if unknown := sorted(set(names) - set(LOOKS)):
        raise ValueError(f"names: the miniature has no pictogram of {', '.join(map(repr, unknown))}")
    xywh = np.asarray(xywh, np.float64)
    picture = background(size, np.random.default_rng([seed, 7]))
    for i in painting_order(xywh):
        x1, y1 = (round(v) for v in xywh[i, :2])
        x2, y2 = max(round(xywh[i, 0] + xywh[i, 2]), x1 + 1), max(round(xywh[i, 1] + xywh[i, 3]), y1 + 1)
        drawn = card(names[i], x2 - x1, y2 - y1)
        inside = slice(max(y1, 0), min(y2, size[1])), slice(max(x1, 0), min(x2, size[0]))
        cut = slice(inside[0].start - y1, inside[0].stop - y1), slice(inside[1].start - x1, inside[1].stop - x1)
        picture[inside] = drawn[cut]
    return (255 * picture).round().astype(np.uint8)


def write_photos(folder: str | Path, annotations: str | Path, *, split: str) -> int:
    """Draw every image of an annotation file into ``folder`` as PNG (a stage). Returns how many there are.

    Images that are there already stay, so that an interrupted call goes on.
    """
    table = coco.read(annotations, split)
    edges = np.searchsorted(table.image, np.arange(len(table.image_id) + 1))
    names, xywh = np.array(table.names)[table.category], table.xywh()
    for i, file_name in enumerate(tqdm(table.file_name.to_pylist(), f"drawing {split}", leave=False)):
        if (path := Path(folder) / Path(file_name).with_suffix(".png")).exists():
            continue
        rows = slice(edges[i], edges[i + 1])
        size = int(table.width[i]), int(table.height[i])
        with atomic(path, durable=False) as partial:
            Image.fromarray(render(xywh[rows], names[rows].tolist(), size, int(table.image_id[i]))).save(partial, "PNG")
    return len(table.image_id)


WIDE = {  # a scene twice as wide as high, in shares of its height: name -> x, y, width, height
    "bird": (0.08, 0.12, 0.36, 0.34),
    "cat": (0.52, 0.46, 0.52, 0.46),
    "elephant": (1.04, 0.20, 0.62, 0.60),
}


def landscape(height: int = SIZE) -> tuple[BoxTable, UInt8[np.ndarray, "h w 3"]]:
    """One photo twice as wide as ``height`` pixels, as a table and as pixels. Its middle square shows no bird, and of
    the elephant less than of the cat: so the crop makes captions untrue and others true."""
    xywh = np.rint(np.array(list(WIDE.values())) * height)
    category = np.array([NAMES.index(name) for name in WIDE])
    table = BoxTable(
        image_id=np.array([1]), file_name=pa.array(["landscape.png"]), width=np.array([2.0 * height]),
        height=np.array([1.0 * height]), categories=CATEGORIES, image=np.zeros(len(WIDE), np.int64), category=category,
        crowd=np.zeros(len(WIDE), bool), **dict(zip("xywh", xywh.T, strict=True)),
    ).rows(np.argsort(category))  # fmt: skip
    return table, render(xywh, list(WIDE), (2 * height, height))
