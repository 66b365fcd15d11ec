"""The offline world: layouts in COCO's annotation form, and pictures of pictograms drawn from them.

Forty of COCO's categories, each a glyph of the Material Design Icons in fixed colours. A layout is sampled with natural
priors (things of the sky sit high, an elephant is larger than a cup) and with enough freedom that every relation occurs
for every pair of categories. The dataset stage reads the annotations as it reads COCO's; the renderer draws any boxes
in COCO's form, real ones included. A glyph is stretched to fill its box to the pixel.
"""

import colorsys
import importlib.util
import json
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Float, Int, UInt8
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage
from tqdm import tqdm

from . import boxes
from .boxes import COCO_CATEGORIES, Category
from .runs import atomic, write_text
from .visor import DETECTION_COLUMNS

SIZE = 64  # pixels, width and height of a picture


class Look(NamedTuple):
    """A category's picture and habits: ``size`` is the root of its usual area and ``height`` its centre's usual place
    from the top, both as a share of the picture; ``aspect`` is width by height."""

    glyph: str  # of Material Design Icons 6
    hue: float  # degrees, of the glyph
    value: float  # its brightness
    inner: tuple[float, float]  # hue and brightness of what the glyph encloses
    size: float
    aspect: float
    height: float


LOOKS: dict[str, Look] = {
    "person": Look("human", 20, 0.75, (20, 0.9), 0.36, 0.5, 0.6),
    "bicycle": Look("bicycle", 210, 0.55, (190, 0.95), 0.36, 1.5, 0.68),
    "car": Look("car", 0, 0.85, (200, 0.95), 0.40, 1.3, 0.68),
    "airplane": Look("airplane", 205, 0.85, (205, 0.85), 0.42, 1.3, 0.22),
    "bus": Look("bus", 48, 0.95, (200, 0.95), 0.46, 0.9, 0.62),
    "train": Look("train", 150, 0.45, (55, 0.95), 0.46, 0.9, 0.60),
    "truck": Look("truck", 265, 0.55, (200, 0.95), 0.44, 1.4, 0.65),
    "boat": Look("sail-boat", 195, 0.50, (195, 0.50), 0.38, 1.0, 0.60),
    "traffic light": Look("traffic-light", 130, 0.30, (0, 1.0), 0.30, 0.5, 0.35),
    "fire hydrant": Look("fire-hydrant", 8, 0.65, (50, 1.0), 0.30, 0.7, 0.70),
    "bench": Look("bench-back", 30, 0.45, (30, 0.75), 0.34, 1.5, 0.72),
    "bird": Look("bird", 185, 0.90, (185, 0.90), 0.27, 1.1, 0.25),
    "cat": Look("cat", 33, 0.95, (110, 0.9), 0.30, 1.0, 0.68),
    "dog": Look("dog-side", 25, 0.60, (25, 0.60), 0.32, 1.2, 0.68),
    "horse": Look("horse-variant", 12, 0.42, (12, 0.42), 0.42, 1.1, 0.62),
    "cow": Look("cow", 320, 0.35, (330, 0.95), 0.42, 1.1, 0.64),
    "elephant": Look("elephant", 225, 0.50, (225, 0.50), 0.52, 1.2, 0.60),
    "backpack": Look("bag-personal", 285, 0.70, (50, 0.95), 0.30, 0.8, 0.62),
    "umbrella": Look("umbrella", 340, 0.85, (340, 0.85), 0.34, 1.1, 0.32),
    "suitcase": Look("bag-suitcase", 40, 0.60, (40, 0.9), 0.30, 0.8, 0.70),
    "sports ball": Look("soccer", 240, 0.25, (60, 1.0), 0.26, 1.0, 0.60),
    "kite": Look("kite", 300, 0.90, (300, 0.90), 0.28, 0.8, 0.18),
    "skateboard": Look("skateboard", 172, 0.65, (172, 0.65), 0.28, 1.9, 0.78),
    "bottle": Look("bottle-soda", 140, 0.60, (0, 0.95), 0.27, 0.5, 0.58),
    "wine glass": Look("glass-wine", 345, 0.55, (345, 0.8), 0.27, 0.5, 0.56),
    "cup": Look("coffee", 215, 0.95, (60, 1.0), 0.25, 1.2, 0.60),
    "apple": Look("food-apple", 355, 1.0, (355, 1.0), 0.25, 1.0, 0.60),
    "carrot": Look("carrot", 24, 1.0, (24, 1.0), 0.25, 1.0, 0.62),
    "pizza": Look("pizza", 52, 0.80, (0, 0.8), 0.30, 1.0, 0.60),
    "cake": Look("cake-variant", 325, 1.0, (45, 1.0), 0.30, 1.0, 0.58),
    "chair": Look("chair-rolling", 95, 0.50, (95, 0.50), 0.34, 0.7, 0.64),
    "couch": Look("sofa", 275, 0.90, (275, 0.90), 0.44, 1.4, 0.66),
    "bed": Look("bed-king", 220, 0.75, (55, 1.0), 0.48, 1.4, 0.68),
    "tv": Look("television-classic", 260, 0.30, (120, 0.95), 0.36, 1.2, 0.45),
    "laptop": Look("laptop", 160, 0.25, (180, 1.0), 0.30, 1.5, 0.58),
    "cell phone": Look("cellphone", 310, 0.45, (100, 1.0), 0.25, 0.55, 0.56),
    "book": Look("book", 80, 0.65, (80, 0.65), 0.26, 0.8, 0.60),
    "clock": Look("clock", 60, 0.55, (60, 1.0), 0.27, 1.0, 0.28),
    "teddy bear": Look("teddy-bear", 28, 0.75, (45, 1.0), 0.28, 0.9, 0.60),
    "refrigerator": Look("fridge", 178, 0.40, (178, 0.95), 0.44, 0.5, 0.55),
}
CATEGORIES: tuple[Category, ...] = tuple(category for category in COCO_CATEGORIES if category.name in LOOKS)
NAMES: tuple[str, ...] = tuple(category.name for category in CATEGORIES)

N_OBJECTS = {1: 0.08, 2: 0.6, 3: 0.22, 4: 0.1}  # of a layout, with their probability
NATURAL = 0.6  # share of objects whose size and place follow the priors; the others are free
NESTED = 0.2  # share of layouts whose first two objects are put one inside the other
SAME = 0.05  # share of layouts that may repeat a category
COMPOSED = 0.7  # share of the other layouts of several objects that are composed as a photographer would: in a row
JITTER = 0.06  # of the picture, deviation of a place in a row
SMALLEST, LARGEST = 14, 56  # pixels, of a box's sides
VISIBLE = 0.8  # of an object's box that no smaller box may cover
VISIBLE_NESTED = 0.5  # the same, where one lies inside the other


# ------------------------------------------------------------------------------------------------------- layouts


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
        cy = look.height + 0.12 * rng.standard_normal()
    else:
        side, aspect, cy = rng.uniform(16, 40), np.exp(0.35 * rng.standard_normal()), rng.random()
    w, h = (int(np.clip(round(s), SMALLEST, LARGEST)) for s in (side * aspect**0.5, side / aspect**0.5))
    x = round(rng.random() * (SIZE - w))
    y = int(np.clip(round(cy * SIZE - h / 2), 0, SIZE - h))
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
    order = painting_order(drawn)
    for i, below in enumerate(order):
        mask = np.ones((SIZE, SIZE), bool)
        x, y, w, h = drawn[below]
        for above in order[i + 1 :]:
            ax, ay, aw, ah = drawn[above]
            mask[ay : ay + ah, ax : ax + aw] = False
        if mask[y : y + h, x : x + w].mean() < share:
            return False
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
            records["annotations"].append(
                {
                    "id": first + len(records["annotations"]),
                    "image_id": image,
                    "category_id": ids[name],
                    "bbox": box,
                    "area": box[2] * box[3],
                    "iscrowd": 0,
                }
            )
    write_text(path, json.dumps(records))
    return n


# ------------------------------------------------------------------------------------------------------ pictures


@cache
def _font() -> tuple[ImageFont.FreeTypeFont, dict[str, str]]:
    """The icon font and its character map, read from qtawesome's folder; Qt is not imported."""
    spec = importlib.util.find_spec("qtawesome")
    if spec is None or not spec.submodule_search_locations:
        raise RuntimeError("the miniature draws glyphs of the package qtawesome: pip install qtawesome")
    folder = Path(spec.submodule_search_locations[0]) / "fonts"
    font, charmap = (
        sorted(folder.glob(f"materialdesignicons6-{kind}"))[-1] for kind in ("webfont-[0-9]*.ttf", "*.json")
    )
    return ImageFont.truetype(str(font), 256), json.loads(charmap.read_text(encoding="utf-8"))


@cache
def _glyph(name: str) -> tuple[Image.Image, Image.Image]:
    """A category's glyph, cut to its extent: where it is ink, and where it is ink or enclosed by it (8-bit masks)."""
    font, charmap = _font()
    character = chr(int(charmap[LOOKS[name].glyph], 16))
    canvas = Image.new("L", (400, 400))
    ImageDraw.Draw(canvas).text((60, 60), character, font=font, fill=255)
    ink = canvas.crop(canvas.point(lambda value: 255 * (value > 127)).getbbox())
    filled = Image.fromarray(
        (255 * ndimage.binary_fill_holes(np.pad(np.asarray(ink) > 127, 1))[1:-1, 1:-1]).astype("u1")
    )
    return ink, filled


EDGE = 128  # of 255: how opaque a glyph's outermost rows and columns are at least somewhere, so that its box shows


@cache
def _stamp(name: str, w: int, h: int) -> tuple[Float[np.ndarray, "h w 1"], Float[np.ndarray, "h w 3"]]:
    """Opacity and colour of a category drawn w × h pixels large."""
    look = LOOKS[name]
    ink, filled = (np.asarray(mask.resize((w, h), Image.Resampling.BOX), np.float32) / 255 for mask in _glyph(name))
    alpha = np.maximum(ink, filled)
    for edge in (alpha[0], alpha[-1], alpha[:, 0], alpha[:, -1]):
        edge *= max(1.0, EDGE / 255 / max(edge.max(), 1e-6)) if edge.max() > 0 else 1.0
        if not edge.max():
            edge[:] = EDGE / 255
    outer, inner = (np.array(colorsys.hsv_to_rgb(hue / 360, 0.85, value)) for hue, value in (look[1:3], look.inner))
    share = np.divide(ink, alpha, out=np.ones_like(ink), where=alpha > 0).clip(0, 1)[..., None]
    return alpha[..., None].clip(0, 1), (share * outer + (1 - share) * inner).astype(np.float32)


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
    """The picture of a layout: xywh in pixels, width and height of the picture, and the seed of its background.

    Sides of a box are rounded to whole pixels; at least one is drawn.

    Raises:
        ValueError: a name that the miniature has no picture of.
    """
    if unknown := sorted(set(names) - set(LOOKS)):
        raise ValueError(f"names: the miniature has no picture of {', '.join(map(repr, unknown))}")
    xywh = np.asarray(xywh, np.float64)
    picture = background(size, np.random.default_rng([seed, 7]))
    for i in painting_order(xywh):
        x1, y1 = (round(v) for v in xywh[i, :2])
        x2, y2 = max(round(xywh[i, 0] + xywh[i, 2]), x1 + 1), max(round(xywh[i, 1] + xywh[i, 3]), y1 + 1)
        alpha, colour = _stamp(names[i], x2 - x1, y2 - y1)
        inside = slice(max(y1, 0), min(y2, size[1])), slice(max(x1, 0), min(x2, size[0]))
        cut = slice(inside[0].start - y1, inside[0].stop - y1), slice(inside[1].start - x1, inside[1].stop - x1)
        picture[inside] += alpha[cut] * (colour[cut] - picture[inside])
    return (255 * picture).round().astype(np.uint8)


def write_photos(folder: str | Path, annotations: str | Path, *, split: str) -> int:
    """Draw every image of an annotation file into ``folder`` as PNG (a stage). Returns how many there are.

    Images that are there already stay, so that an interrupted call goes on.
    """
    table = boxes.read(annotations, split)
    edges = np.searchsorted(table.image, np.arange(len(table.image_id) + 1))
    names, xywh = np.array(table.names)[table.category], table.xywh()
    for i, file_name in enumerate(tqdm(table.file_name.to_pylist(), f"drawing {split}", leave=False)):
        if (path := Path(folder) / Path(file_name).with_suffix(".png").name).exists():
            continue
        rows = slice(edges[i], edges[i + 1])
        size = int(table.width[i]), int(table.height[i])
        with atomic(path, durable=False) as partial:
            Image.fromarray(render(xywh[rows], names[rows].tolist(), size, int(table.image_id[i]))).save(partial, "PNG")
    return len(table.image_id)


# ------------------------------------------------------------------------------------------------ a second judge

GRID = tuple(int(side) for side in np.geomspace(SMALLEST, LARGEST, 9).round())  # sides that templates are tried at
INK, CONTRAST = (
    0.22,
    0.15,
)  # mean colour distances (0 to 1): at most this to the glyph, at least that much more around it


def find(picture: UInt8[np.ndarray, "h w 3"], name: str) -> tuple[float, Float[np.ndarray, "4"]] | None:
    """Where a category's own picture fits best, by template matching; None where it fits nowhere.

    A judge that has learnt nothing and shares nothing with the detector. The glyph is tried at all places in
    ``GRID`` × ``GRID`` sizes: the picture must have its colours where there is ink, and others in the rest of its box.

    Returns:
        The difference of both distances (0 to 1) as a score, and the box, xywh in pixels.
    """
    image = picture.astype(np.float64) / 255
    h, w = image.shape[:2]
    spectrum = np.fft.rfft2(np.concatenate([image, (image**2).sum(-1, keepdims=True)], -1), axes=(0, 1))
    best = None
    for width in (side for side in GRID if side <= w):
        for height in (side for side in GRID if side <= h):
            kernel, ink, around = _template(name, width, height, w, h)
            # squared distance to the glyph's colours, summed with weights: of the ink, and of what its box leaves free
            sums = np.fft.irfft2(np.einsum("yxc,yxck->yxk", spectrum, kernel), s=(h, w), axes=(0, 1))
            sums = sums[: h - height + 1, : w - width + 1] + np.array([ink[1], around[1]])
            distance = np.sqrt(sums.clip(0) / np.array([ink[0], around[0]]) / 3)
            margin = np.where(distance[..., 0] <= INK, distance[..., 1] - distance[..., 0], -1)
            y, x = np.unravel_index(margin.argmax(), margin.shape)
            # of fits that are alike, the larger one explains more of the picture
            rank = float(margin[y, x] * ink[0] ** 0.3)
            if margin[y, x] >= CONTRAST and (best is None or rank > best[0]):
                best = rank, float(margin[y, x]), np.array([x, y, width, height], np.float64)
    return best[1:] if best else None


@cache
def _template(name: str, w: int, h: int, width: int, height: int) -> tuple[Any, ...]:
    """Spectra that correlate a picture with a glyph's colours, weighted by its ink and by the rest of its box."""
    alpha, colour = _stamp(name, w, h)
    mean = (alpha * colour).sum((0, 1)) / alpha.sum()
    kernels, constants = [], []
    for weight, target in ((alpha, colour), (1.02 - alpha, np.broadcast_to(mean, colour.shape))):
        padded = np.zeros((height, width, 4))
        padded[:h, :w, :3], padded[:h, :w, 3:] = -2 * weight * target, weight
        kernels.append(np.conj(np.fft.rfft2(padded, axes=(0, 1))))
        constants.append((weight.sum(), (weight * target**2).sum()))
    return np.stack(kernels, -1), *constants


def write_matches(
    path: str | Path, images: str | Path, *, prompts: str | Path | None = None, per_prompt: int = 1
) -> int:
    """A stage: boxes by :func:`find` of the two names of each prompt's first images, as :mod:`.visor` reads detections.

    Returns how many images were looked at.
    """
    from . import generate  # needs torch, which a world on paper does not

    listed = generate.list_images(images, prompts).query("image_index < @per_prompt")
    rows = []
    for row in tqdm(listed.itertuples(), "matching", len(listed), leave=False):
        picture = np.asarray(Image.open(Path(images) / row.file_name).convert("RGB"))
        for name in dict.fromkeys([row.subject, row.object]):
            if (found := find(picture, name)) is not None:
                score, box = found
                rows.append([row.prompt_id, row.image_index, name, score, *box, *picture.shape[1::-1]])
    columns = [*DETECTION_COLUMNS, "width", "height"]
    with atomic(path) as partial:
        pd.DataFrame(rows, columns=columns).to_parquet(partial, index=False)
    return len(listed)
