"""Detectors that know a list of names, the ``id2label`` of their ``config.json``.

Of the boxes that the stock post-processing gives, those of the names asked for are kept; a name may be spelt as another
data set spells it (:func:`names.readings`).
"""

import re
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float, Int64
from torch.nn import functional as F

from ..names import readings
from ..source import Source
from .detector import Asked, Detector, Found, Pixels, Sizes, in_pixels

Known = Bool[torch.Tensor, "name label"]  # which labels a name means
Logits = Float[torch.Tensor, "image box label"]
# of as many boxes as count: score, number of the box, number of the label
Best = tuple[Float[torch.Tensor, "image best"], Int64[torch.Tensor, "image best"], Int64[torch.Tensor, "image best"]]


class Labelled(Detector):
    """A closed vocabulary."""

    loader, names = "AutoImageProcessor", "its own, such as COCO's 80"

    @classmethod
    def check(cls, config: dict[str, Any], source: Source) -> None:
        super().check(config, source)
        if all(re.fullmatch(r"LABEL_\d+", str(label)) for label in (config.get("id2label") or {}).values()):
            numbered = "its config.json numbers its labels (LABEL_0, …) and does not name them"
            raise source.error(f"{numbered}; write the names into its id2label, or take another model")

    def known(self, names: Sequence[str], query: str | None = None) -> Known:  # noqa: ARG002
        """Which of its labels each name means."""
        labels = list(self.model.config.id2label.values())
        meant = [readings(labels, [name]) for name in names]
        if unknown := [name for name, own in zip(names, meant, strict=True) if not own]:
            known = ", ".join(dict.fromkeys(labels))
            raise ValueError(f"{type(self.model).__name__} does not know {unknown[0]!r}; its labels are {known}")
        rows = [[label in own for label in labels] for own in meant]
        return torch.tensor(rows, dtype=torch.bool, device=self.model.device).reshape(len(names), len(labels))

    def find(self, pixels: Pixels, sizes: Sizes, ask: Asked, known: Known, floor: float) -> Found:
        """The forward pass and the stock post-processing, of which the names asked for are kept."""
        output = self.model(pixel_values=pixels)
        logits = output.logits.float()
        self._numbers(logits, output.pred_boxes)
        score, box, label = self.best(logits)
        matches = self._matches(label, ask, known)
        image, kept = torch.nonzero(matches.any(dim=2) & (score > floor), as_tuple=True)
        name = ask[image, matches[image, kept].float().argmax(dim=1)]
        where = in_pixels(output.pred_boxes.float()[image, box[image, kept]], sizes[image])
        return image, name, score[image, kept], where

    def best(self, logits: Logits) -> Best:
        """The boxes of the stock post-processing, whatever their score."""
        raise NotImplementedError

    def _matches(self, label: Int64[torch.Tensor, "image best"], ask: Asked, known: Known) -> Bool[torch.Tensor, "..."]:
        """Whether each label is meant by each of the image's names, (image, best, query)."""
        meant = known[ask] & (ask >= 0)[:, :, None]
        return meant.gather(2, label[:, None].expand(-1, ask.shape[1], -1)).transpose(1, 2)


class EachLabel(Labelled):
    """A box has a score for each label; the best pairs of box and label count."""

    scores = "of this label alone, between 0 and 1; of an image's best pairs of box and label only"
    top: int | None = None  # pairs; None: as many as boxes

    def best(self, logits: Logits) -> Best:
        boxes, labels = logits.shape[1:]
        score, at = logits.sigmoid().flatten(1).topk(min(self.top or boxes, boxes * labels), dim=1)
        return score, at // labels, at % labels


class OneLabel(Labelled):
    """A box has its most probable label, even where "no object" is more probable."""

    scores = 'the probability of this label; the rest is of others and of "no object", which is often the likeliest'

    def best(self, logits: Logits) -> Best:
        score, label = logits.softmax(-1)[..., :-1].max(-1)
        return score, torch.arange(logits.shape[1], device=logits.device).expand_as(label), label


class RtDetr(EachLabel, family="rt_detr"):
    """RT-DETR: needs neither timm nor torchvision."""

    published, architecture = "PekingU/rtdetr_r50vd", "RTDetrForObjectDetection"


class RtDetrV2(EachLabel, family="rt_detr_v2"):
    """RT-DETRv2."""

    published, architecture = "PekingU/rtdetr_v2_r50vd", "RTDetrV2ForObjectDetection"


class DFine(EachLabel, family="d_fine"):
    """D-FINE."""

    published, architecture = "ustc-community/dfine-xlarge-coco", "DFineForObjectDetection"


class RfDetr(EachLabel, family="rf_detr"):
    """RF-DETR: needs torchvision."""

    published, architecture = "Roboflow/rf-detr-base", "RfDetrForObjectDetection"
    needs = "torchvision"


class ConditionalDetr(EachLabel, family="conditional_detr"):
    """Conditional DETR: needs timm."""

    published, architecture = "microsoft/conditional-detr-resnet-50", "ConditionalDetrForObjectDetection"
    top = 100


class DeformableDetr(EachLabel, family="deformable_detr"):
    """Deformable DETR: needs timm."""

    published, architecture = "SenseTime/deformable-detr", "DeformableDetrForObjectDetection"
    top = 100


class LwDetr(EachLabel, family="lw_detr"):
    """LW-DETR."""

    published, architecture = "AnnaZhang/lwdetr_small_60e_coco", "LwDetrForObjectDetection"
    top = 100


class Detr(OneLabel, family="detr"):
    """DETR: `revision: no_timm`, or the package timm."""

    published, architecture = "facebook/detr-resnet-50", "DetrForObjectDetection"


class Yolos(OneLabel, family="yolos"):
    """YOLOS."""

    published, architecture = "hustvl/yolos-tiny", "YolosForObjectDetection"

    def size(self, height: int, width: int) -> tuple[int, int]:
        """Whole patches of 16 pixels."""
        height, width = super().size(height, width)
        return height - height % 16, width - width % 16


class Mask2Former(EachLabel, family="mask2former"):
    """Mask2Former, GenEval's judge: instance segmentation, of which the boxes around the masks are taken."""

    published, architecture = "facebook/mask2former-swin-small-coco-instance", "Mask2FormerForUniversalSegmentation"
    scores = "the probability of this label times the mean of its mask; of an image's best pairs of mask and label only"
    side = 384  # of the masks, in the stock post-processing

    def size(self, height: int, width: int) -> tuple[int, int]:
        """Whole multiples of the processor's ``size_divisor``."""
        step = self.processor.size_divisor or 1
        height, width = super().size(height, width)
        return -(-height // step) * step, -(-width // step) * step

    def find(self, pixels: Pixels, sizes: Sizes, ask: Asked, known: Known, floor: float) -> Found:
        """The forward pass and the stock post-processing; masks are made large for the names asked for only."""
        output = self.model(pixel_values=pixels)
        classes, masks = output.class_queries_logits.float(), output.masks_queries_logits.float()
        self._numbers(classes, masks)
        score, box, label = self.best(classes)
        matches = self._matches(label, ask, known)
        image, kept = torch.nonzero(matches.any(dim=2) & (score > floor), as_tuple=True)
        name, score = ask[image, matches[image, kept].float().argmax(dim=1)], score[image, kept]
        boxes_found = [torch.empty((0, 5), device=score.device)]
        for number in range(len(pixels)):  # one image's masks at a time, for the memory
            own = image == number
            boxes_found.append(self._boxes(masks[number, box[number, kept[own]]], sizes[number].tolist()))
        share, where = torch.cat(boxes_found).split([1, 4], dim=1)
        score = score * share[:, 0]
        seen = (score > floor) & (where[:, 2] > 0)
        return image[seen], name[seen], score[seen], where[seen]

    def best(self, logits: Logits) -> Best:
        boxes, labels = logits.shape[1], logits.shape[2] - 1
        score, at = logits.softmax(-1)[..., :-1].flatten(1).topk(boxes, dim=1)
        return score, at // labels, at % labels

    def _boxes(self, masks: Float[torch.Tensor, "mask h w"], size: list[int]) -> Float[torch.Tensor, "mask 5"]:
        """The mean of each mask where it is, and its box, xywh in pixels of an image of this size; w is 0 where the
        mask is empty."""
        large = F.interpolate(masks[:, None], (self.side, self.side), mode="bilinear", align_corners=False)[:, 0]
        inside = (large > 0).float()
        share = (large.sigmoid() * inside).sum((1, 2)) / (inside.sum((1, 2)) + 1e-6)
        drawn = F.interpolate(inside[:, None], size, mode="nearest")[:, 0]
        ends = []
        for line in (drawn.amax(1), drawn.amax(2)):  # columns, then rows that the mask has a pixel in
            low, high = line.argmax(1), line.shape[1] - line.flip(1).argmax(1)
            ends.append((low, torch.where(line.any(1), high - low, 0)))
        (x, w), (y, h) = ends
        return torch.stack([share, x, y, w, h], dim=1)
