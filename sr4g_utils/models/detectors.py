"""Detectors, a class per family: what it is asked, how images are prepared for it, what it finds, and its features.

OWL-ViT and OWLv2 are queried "a photo of a {name}"; each of their boxes carries the better of the two queries, as the
stock post-processing gives it. RT-DETR knows COCO's 80 names; of its boxes those of the two names are kept. No boxes
are suppressed.

The image tower runs once per image, the text tower once per name. Images are resized and normalised in torch, on the
detector's device, equal to the stock processor's within one grey level (OWLv2's, which resizes in floating point:
within 0.01 levels); the tests hold both it and the boxes against transformers' own.

A further family is a subclass of :class:`Detector` that names its ``family``, and what transformers loads it with.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int64, UInt8
from torch.nn import functional as F

from .limits import AdaptiveBatches, check_words, not_numbers
from .load import load_detector
from .names import FLOOR, QUERY, spelling

Image = UInt8[np.ndarray, "_ _ 3"]  # images of a list may differ in size
Pixels = Float[torch.Tensor, "image 3 height width"]
Sizes = Int64[torch.Tensor, "image 2"]  # height and width of the images as they came
Asked = Int64[torch.Tensor, "image query"]  # positions of names; -1 where an image has fewer
Number = Int64[torch.Tensor, "box"]
# image, position of the name, score, xywh in pixels
Found = tuple[Number, Number, Float[torch.Tensor, "box"], Float[torch.Tensor, "box 4"]]
FAMILIES: dict[str, type["Detector"]] = {}  # by the model_type of config.json


class Detector:
    """A loaded detector; its family is its class. ``record`` says what was loaded."""

    architecture: str  # transformers' classes of the model, and of what prepares images and names for it
    loader = "AutoProcessor"

    def __init_subclass__(cls, family: str) -> None:
        FAMILIES[family] = cls

    def __init__(self, model: Any, processor: Any, record: dict[str, Any]) -> None:
        self.model, self.processor, self.record = model, processor, record

    def known(self, names: Sequence[str], query: str = QUERY) -> torch.Tensor:
        """What the detector has for each name: a row each. ValueError: a name that it does not know."""
        raise NotImplementedError

    def find(self, pixels: Pixels, sizes: Sizes, ask: Asked, known: torch.Tensor, floor: float) -> Found:
        """The boxes of the names asked for, with a score above the floor."""
        raise NotImplementedError

    @property
    def image_tower(self) -> Any:
        """What makes features of prepared images. ValueError: this family has none that pools."""
        raise ValueError(f"detector: {type(self.model).__name__} has no pooled image features; take OWL-ViT or OWLv2")

    def _numbers(self, *outputs: torch.Tensor) -> None:
        """FloatingPointError where the model made NaN or infinity, which would read as "not found"."""
        if not all(bool(output.isfinite().all()) for output in outputs):
            why = not_numbers(str(self.model.dtype).removeprefix("torch."))
            raise FloatingPointError(f"detector: {self.record['id']} gives scores or boxes that are {why}")

    def features(self, images: Sequence[Image]) -> Float[torch.Tensor, "image feature"]:
        """The image tower's pooled output; errors as of :attr:`image_tower`."""
        pooled = self.image_tower(self.preprocess(images)).pooler_output.float()
        self._numbers(pooled)
        return pooled

    def resize(self, images: Float[torch.Tensor, "image 3 h w"], size: tuple[int, int]) -> Pixels:
        """Images of one size, in grey levels, as the stock processor resizes them."""
        return _resize(images, size, _MODES[self._stock.resample])

    @property
    def _stock(self) -> Any:
        return getattr(self.processor, "image_processor", self.processor)

    def preprocess(self, images: Sequence[Image]) -> Pixels:
        """What the stock image processor makes of the images, in torch; images of one size go together."""
        stock, device = self._stock, self.model.device
        size = stock.size["height"], stock.size["width"]
        resized: dict[int, torch.Tensor] = {}
        for shape in {image.shape for image in images}:
            rows = [i for i, image in enumerate(images) if image.shape == shape]
            stack = torch.from_numpy(np.stack([images[i] for i in rows])).to(device).permute(0, 3, 1, 2)
            resized.update(zip(rows, self.resize(stack.float(), size), strict=True))
        pixels = torch.stack([resized[i] for i in range(len(images))]) * stock.rescale_factor
        if stock.do_normalize:
            mean, deviation = torch.tensor([stock.image_mean, stock.image_std], device=device)[..., None, None]
            pixels = (pixels - mean) / deviation
        return pixels.to(self.model.dtype)

    @torch.inference_mode()
    def detect(
        self, images: Sequence[Image], names: Sequence[Sequence[str]], *,
        floor: float = FLOOR, query: str = QUERY, batch: int | AdaptiveBatches = 64,
    ) -> pd.DataFrame:  # fmt: skip
        """Boxes of the names asked for in each image.

        Args:
            images: uint8 RGB, of any sizes. names: for each image what to look for.
            floor: boxes with a higher score are returned.
            query: text of an open-vocabulary query; closed vocabularies take the bare name.
            batch: images that go through the detector together; halved when they do not fit into memory.

        Returns:
            Columns image (its position), label (a name asked for), score, and x, y, w, h in pixels of the image; by
            image, best scores first. Boxes may reach beyond the image, as the stock post-processing leaves them.

        Raises:
            ValueError: a name that a closed-vocabulary detector, or an open one's tokenizer, does not know.
            FloatingPointError: the model makes NaN or infinity.
        """
        if len(images) != len(names):
            raise ValueError(f"detect: {len(images)} images but names for {len(names)}")
        position = {name: i for i, name in enumerate(dict.fromkeys(name for each in names for name in each))}
        queries = np.full((len(names), max((len(set(each)) for each in names), default=0)), -1)
        for row, each in zip(queries, names, strict=True):
            numbers = [position[name] for name in dict.fromkeys(each)]
            row[: len(numbers)] = numbers
        known = self.known(list(position), query)

        def look(rows: Sequence[int]) -> list[np.ndarray]:
            part = [images[row] for row in rows]
            sizes = torch.tensor([image.shape[:2] for image in part], device=self.model.device)
            ask = torch.from_numpy(queries[rows]).to(self.model.device)
            return [each.cpu().numpy() for each in self.find(self.preprocess(part), sizes, ask, known, floor)]

        tables = []
        batches = batch if isinstance(batch, AdaptiveBatches) else AdaptiveBatches(batch)
        for rows, (image, name, score, xywh) in batches(range(len(images)), look):
            tables.append([image + rows[0], np.array(list(position), object)[name], score, *xywh.T])
        columns = [np.concatenate(column) for column in zip(*tables, strict=True)] if tables else [np.empty(0)] * 7
        table = pd.DataFrame(dict(zip(("image", "label", "score", *"xywh"), columns, strict=True)))
        return table.sort_values(["image", "score"], ascending=[True, False], kind="stable", ignore_index=True)


class OwlVit(Detector, family="owlvit"):
    """OWL-ViT, VISOR's detector: asked in words."""

    architecture = "OwlViTForObjectDetection"

    def __init__(self, model: Any, processor: Any, record: dict[str, Any]) -> None:
        super().__init__(model, processor, record)
        self.queries: dict[str, Float[torch.Tensor, dim]] = {}  # a text is embedded once
        self.towers = getattr(model, model.base_model_prefix)

    @torch.inference_mode()
    def known(self, names: Sequence[str], query: str = QUERY) -> torch.Tensor:
        """The embedding of each name's query, (name, dim)."""
        texts = [query.format(name=name) for name in names]
        if new := [text for text in dict.fromkeys(texts) if text not in self.queries]:
            check_words(self.processor.tokenizer, new)
            tokens = self.processor.tokenizer(new, padding="max_length", return_tensors="pt").to(self.model.device)
            made = self.towers.get_text_features(
                input_ids=tokens.input_ids, attention_mask=tokens.attention_mask
            ).pooler_output
            self.queries.update(zip(new, made / torch.linalg.norm(made, dim=-1, keepdim=True), strict=True))
        return torch.stack([self.queries[text] for text in texts]) if texts else torch.empty(0)

    def find(self, pixels: Pixels, sizes: Sizes, ask: Asked, known: torch.Tensor, floor: float) -> Found:
        """OWL-ViT's forward pass without its text tower, and its post-processing: the better query of each box."""
        features, _ = self.model.image_embedder(pixels)
        tokens = features.flatten(1, 2)
        logits, _ = self.model.class_predictor(tokens, known[ask], ask >= 0)
        score, best = logits.float().max(dim=-1)
        score = score.sigmoid()
        where = self.model.box_predictor(tokens, features).float()
        self._numbers(score, where)
        image, box = torch.nonzero(score > floor, as_tuple=True)
        seen = self.seen(sizes)[image]
        return image, ask.gather(1, best)[image, box], score[image, box], _pixels(where[image, box], seen)

    def seen(self, sizes: Sizes) -> Sizes:
        """Height and width of what the boxes are shares of."""
        return sizes

    @property
    def image_tower(self) -> Any:
        return self.towers.vision_model


class Owlv2(OwlVit, family="owlv2"):
    """OWLv2: OWL-ViT that sees the image padded to a square."""

    architecture = "Owlv2ForObjectDetection"

    def resize(self, images: Float[torch.Tensor, "image 3 h w"], size: tuple[int, int]) -> Pixels:
        return _resize_square(images, size)

    def seen(self, sizes: Sizes) -> Sizes:
        return sizes.max(dim=1, keepdim=True).values.expand(-1, 2)


class RtDetr(Detector, family="rt_detr"):
    """RT-DETR: a closed vocabulary, COCO's 80 names."""

    architecture, loader = "RTDetrForObjectDetection", "AutoImageProcessor"

    def known(self, names: Sequence[str], query: str = QUERY) -> torch.Tensor:  # noqa: ARG002
        """The number of each name's own label, (name)."""
        kinds = self.model.config.id2label
        labels = {spelling(label): int(i) for i, label in kinds.items()}
        if unknown := [name for name in names if spelling(name) not in labels]:
            known = ", ".join(kinds.values())
            raise ValueError(f"{type(self.model).__name__} does not know {unknown[0]!r}; its labels are {known}")
        return torch.tensor([labels[spelling(name)] for name in names], device=self.model.device)

    def find(self, pixels: Pixels, sizes: Sizes, ask: Asked, known: torch.Tensor, floor: float) -> Found:
        """RT-DETR and its post-processing (as many best pairs of box and label as it has queries), the names asked."""
        made = self.model(pixel_values=pixels)
        scores = made.logits.float().sigmoid()
        self._numbers(scores, made.pred_boxes)
        score, at = scores.flatten(1).topk(scores.shape[1], dim=1)
        box, label = at // scores.shape[2], at % scores.shape[2]
        wanted = torch.where(ask >= 0, known[ask], -1)
        matches = label[:, :, None] == wanted[:, None, :]
        image, kept = torch.nonzero(matches.any(dim=2) & (score > floor), as_tuple=True)
        name = ask[image, matches[image, kept].float().argmax(dim=1)]
        return image, name, score[image, kept], _pixels(made.pred_boxes.float()[image, box[image, kept]], sizes[image])


def load(source: Any, dtype: str = "float32", device: Any = None) -> Detector:
    """The detector that a source names; arguments and errors as in :func:`load.load_pipeline`.

    Its record also names the ``model_type`` (a key of ``FAMILIES``) and the ``resolution`` that it resizes to.
    """
    model, processor, record = load_detector(source, dtype, device, families=FAMILIES)
    return FAMILIES[record["model_type"]](model, processor, record)


def _pixels(boxes: Float[torch.Tensor, "box 4"], sizes: Int64[torch.Tensor, "box 2"]) -> Float[torch.Tensor, "box 4"]:
    """Centre, width and height in [0, 1] to xywh in pixels of images of these heights and widths."""
    corner = torch.cat([boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, 2:]], dim=1)
    return corner * sizes.flip(1).repeat(1, 2)


_MODES = {2: "bilinear", 3: "bicubic"}  # Pillow's numbers


def _resize(pixels: torch.Tensor, size: tuple[int, int], mode: str) -> torch.Tensor:
    """Pillow's resize of 8-bit images: columns, then rows, each rounded to whole grey levels. (Pillow 13 reduces the
    rows of some tall images first, which changes saturated edges by some levels.)"""
    for target in ((pixels.shape[-2], size[1]), size):
        if target != tuple(pixels.shape[-2:]):
            pixels = F.interpolate(pixels, target, mode=mode, antialias=True).round().clamp(0, 255)
    return pixels


def _resize_square(pixels: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """OWLv2's: padded with black to a square, blurred against aliasing, interpolated linearly (scipy's ``zoom``)."""
    height, width = pixels.shape[-2:]
    pixels = F.pad(pixels, (0, max(height - width, 0), 0, max(width - height, 0)))
    low, high = pixels.amin(dim=(1, 2, 3), keepdim=True), pixels.amax(dim=(1, 2, 3), keepdim=True)
    for dim, target in ((-2, size[0]), (-1, size[1])):
        pixels = _lerp(_blur(pixels.transpose(dim, -1), target), target).transpose(dim, -1)
    return pixels.clamp(low, high)


def _blur(pixels: torch.Tensor, target: int) -> torch.Tensor:
    """Rows blurred by a Gaussian as wide as the reduction to ``target`` asks for, mirrored at the ends."""
    sigma = (pixels.shape[-1] / target - 1) / 2
    radius = int(4 * sigma + 0.5)
    if radius < 1:
        return pixels
    kernel = torch.exp(-0.5 * (torch.arange(-radius, radius + 1, device=pixels.device) / sigma) ** 2)
    rows = F.pad(pixels.flatten(0, 2)[:, None], (radius, radius), mode="reflect")
    return F.conv1d(rows, (kernel / kernel.sum())[None, None]).view_as(pixels)


def _lerp(pixels: torch.Tensor, target: int) -> torch.Tensor:
    """Rows interpolated linearly at the centres of ``target`` pixels, mirrored at the ends."""
    n = pixels.shape[-1]
    at = ((torch.arange(target, device=pixels.device) + 0.5) * (n / target) - 0.5).abs()
    at = (n - 1) - ((n - 1) - at).abs()
    left = at.floor().long().clamp(max=max(n - 2, 0))
    right = (left + 1).clamp(max=n - 1)
    return torch.lerp(pixels[..., left], pixels[..., right], at - left)
