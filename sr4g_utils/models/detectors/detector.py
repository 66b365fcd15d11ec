"""What every detector does: it is loaded, prepares images, finds boxes of the names asked for in batches."""

from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int64, UInt8

from ..limits import AdaptiveBatches, not_numbers
from ..load import load_detector
from ..names import FLOOR, QUERY
from ..source import ModelError, Source
from .resizing import MODES, Grey, resize, target_size

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

    published: ClassVar[str]  # an id on the Hub
    architecture: ClassVar[str]  # transformers' classes of the model, and of what prepares images and names for it
    loader: ClassVar[str] = "AutoProcessor"
    needs: ClassVar[str | None] = None  # a package that the stock processor cannot do without
    names: ClassVar[str] = "any words"
    scores: ClassVar[str]  # of what a box's score speaks
    query: ClassVar[str] = QUERY  # what is asked, unless the caller says otherwise

    def __init_subclass__(cls, family: str | None = None) -> None:
        if family:
            FAMILIES[family] = cls

    def __init__(self, model: Any, processor: Any, record: dict[str, Any]) -> None:
        self.model, self.processor, self.record = model, processor, record

    @classmethod
    def check(cls, config: dict[str, Any], source: Source) -> None:
        """ModelError: what a ``config.json`` of this family says is of no use here."""
        if cls.needs and not find_spec(cls.needs):
            raise source.error(f"its image processor needs the package {cls.needs}; install that first")
        if config.get("use_timm_backbone") and not find_spec("timm"):
            other = "name a revision without it (facebook/detr-resnet-50 has `revision: no_timm`)"
            raise source.error(f"its backbone is one of the package timm; install that first, or {other}")

    @classmethod
    def resolution(cls, processor: Any) -> list[int] | dict[str, int]:
        """Height and width to which images are resized, or the rule where that depends on the image."""
        size = dict(_image_processor(processor).size)
        if not all(isinstance(side, int) and side > 0 for side in size.values()):
            raise ValueError(f"its processor's size is {size}, no number of pixels")
        return [size["height"], size["width"]] if size.keys() == {"height", "width"} else size

    def known(self, names: Sequence[str], query: str | None = None) -> Any:
        """What the detector has for each name: a row each. ValueError: a name that it does not know."""
        raise NotImplementedError

    def asked(self, names: Sequence[Sequence[str]], query: str) -> dict[str, Any]:  # noqa: ARG002
        """What a record says of the names asked for in each image, where a name's boxes depend on the others."""
        return {}

    def find(self, pixels: Pixels, sizes: Sizes, ask: Asked, known: Any, floor: float) -> Found:
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

    def size(self, height: int, width: int) -> tuple[int, int]:
        """Height and width to which an image is resized. Images of which this is the same share a batch: padded to a
        common size, most detectors find other boxes."""
        return target_size(_image_processor(self.processor), height, width)

    def resize(self, images: Grey, size: tuple[int, int]) -> Pixels:
        """Images of one size as the stock processor resizes them."""
        return resize(images, size, MODES[_image_processor(self.processor).resample])

    def preprocess(self, images: Sequence[Image]) -> Pixels:
        """What the stock image processor makes of images that share a batch (:meth:`size`), in torch."""
        stock, device = _image_processor(self.processor), self.model.device
        size = self.size(*images[0].shape[:2])
        resized: dict[int, torch.Tensor] = {}
        for shape in {image.shape for image in images}:
            rows = [i for i, image in enumerate(images) if image.shape == shape]
            stack = torch.from_numpy(np.stack([images[i] for i in rows])).to(device).permute(0, 3, 1, 2)
            resized.update(zip(rows, self.resize(stack.float(), size), strict=True))
        pixels = torch.stack([resized[i] for i in range(len(images))])
        if stock.do_rescale:
            pixels *= stock.rescale_factor
        if stock.do_normalize:
            mean, deviation = torch.tensor([stock.image_mean, stock.image_std], device=device)[..., None, None]
            pixels = (pixels - mean) / deviation
        return pixels.to(self.model.dtype)

    @torch.inference_mode()
    def detect(
        self, images: Sequence[Image], names: Sequence[Sequence[str]], *,
        floor: float = FLOOR, query: str | None = None, batch: int | AdaptiveBatches = 64,
    ) -> pd.DataFrame:  # fmt: skip
        """Boxes of the names asked for in each image.

        Args:
            images: uint8 RGB, of any sizes. names: for each image what to look for.
            floor: boxes with a higher score are returned.
            query: text of an open-vocabulary query, by default the family's; closed vocabularies take the bare name.
            batch: images that go through the detector together; halved when they do not fit into memory.

        Returns:
            Columns image (its position), label (a name asked for), score, and x, y, w, h in pixels of the image; by
            image, best scores first. Boxes may reach beyond the image, as the stock post-processing leaves them.

        Raises:
            ValueError: a name that a closed-vocabulary detector, or an open one's tokenizer, does not know; more names
                for an image than the detector reads.
            FloatingPointError: the model makes NaN or infinity.
        """
        if len(images) != len(names):
            raise ValueError(f"detect: {len(images)} images but names for {len(names)}")
        position = {name: i for i, name in enumerate(dict.fromkeys(name for each in names for name in each))}
        queries = np.full((len(names), max((len(set(each)) for each in names), default=0)), -1)
        for row, each in zip(queries, names, strict=True):
            numbers = [position[name] for name in dict.fromkeys(each)]
            row[: len(numbers)] = numbers
        self.asked(names, query or self.query)  # an error now rather than in the middle
        known = self.known(list(position), query)

        def look(rows: Sequence[int]) -> list[np.ndarray]:
            part = [images[row] for row in rows]
            sizes = torch.tensor([image.shape[:2] for image in part], device=self.model.device)
            ask = torch.from_numpy(queries[rows]).to(self.model.device)
            return [each.cpu().numpy() for each in self.find(self.preprocess(part), sizes, ask, known, floor)]

        alike: dict[tuple[int, int], list[int]] = {}
        for number, image in enumerate(images):
            if names[number]:
                alike.setdefault(self.size(*image.shape[:2]), []).append(number)
        tables = []
        batches = batch if isinstance(batch, AdaptiveBatches) else AdaptiveBatches(batch)
        for group in alike.values():
            for rows, (at, name, score, xywh) in batches(group, look):
                tables.append([np.array(rows)[at], np.array(list(position), object)[name], score, *xywh.T])
        columns = [np.concatenate(column) for column in zip(*tables, strict=True)] if tables else [np.empty(0)] * 7
        table = pd.DataFrame(dict(zip(("image", "label", "score", *"xywh"), columns, strict=True)))
        return table.sort_values(["image", "score"], ascending=[True, False], kind="stable", ignore_index=True)


def load(source: Any, dtype: str = "float32", device: Any = None) -> Detector:
    """The detector that a source names; arguments and errors as in :func:`load.load_pipeline`.

    Its record also names the ``model_type`` (a key of ``FAMILIES``) and the ``resolution`` that it resizes to.
    """
    model, processor, record = load_detector(source, dtype, device, families=FAMILIES)
    if getattr(_image_processor(processor), "pad_size", None):
        raise ModelError(f"{record['id']}: its processor pads images to a pad_size, which is not done here")
    return FAMILIES[record["model_type"]](model, processor, record)


def _image_processor(processor: Any) -> Any:
    return getattr(processor, "image_processor", processor)


def in_pixels(boxes: Float[torch.Tensor, "box 4"], sizes: Int64[torch.Tensor, "box 2"]) -> Float[torch.Tensor, "box 4"]:
    """Centre, width and height in [0, 1] to xywh in pixels of images of these heights and widths."""
    corner = torch.cat([boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, 2:]], dim=1)
    return corner * sizes.flip(1).repeat(1, 2)
