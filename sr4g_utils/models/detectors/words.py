"""Detectors that are asked in words.

OWL-ViT and OWLv2 are queried "a photo of a {name}"; each of their boxes carries the better of the two queries, as the
stock post-processing gives it. The image tower runs once per image, the text tower once per name.

Grounding DINO reads the names of an image as one text, "dog. cat.", and what else is asked changes a name's boxes, so
the text is recorded. The labels that its stock post-processing puts together from tokens ("dog cat", "dog.", "") are
no names: here each name's own tokens are scored, and a box carries the best of the names asked for.
"""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch.nn.utils.rnn import pad_sequence

from ...store import files
from ..limits import check_words
from .detector import Asked, Detector, Found, Pixels, Sizes, in_pixels
from .resizing import Grey, resize_square


class OwlVit(Detector, family="owlvit"):
    """OWL-ViT, VISOR's detector and the default: "a photo of a {name}"."""

    published, architecture = "google/owlvit-base-patch32", "OwlViTForObjectDetection"
    scores = "of this name alone, between 0 and 1"

    def __init__(self, model: Any, processor: Any, record: dict[str, Any]) -> None:
        super().__init__(model, processor, record)
        self.queries: dict[str, Float[torch.Tensor, dim]] = {}  # a text is embedded once
        self.towers = getattr(model, model.base_model_prefix)

    @torch.inference_mode()
    def known(self, names: Sequence[str], query: str | None = None) -> torch.Tensor:
        """The embedding of each name's query, (name, dim)."""
        texts = [(query or self.query).format(name=name) for name in names]
        if new := [text for text in dict.fromkeys(texts) if text not in self.queries]:
            check_words(self.processor.tokenizer, new)
            tokens = self.processor.tokenizer(new, padding="max_length", return_tensors="pt").to(self.model.device)
            embeddings = self.towers.get_text_features(
                input_ids=tokens.input_ids, attention_mask=tokens.attention_mask
            ).pooler_output
            self.queries.update(zip(new, embeddings / torch.linalg.norm(embeddings, dim=-1, keepdim=True), strict=True))
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
        return image, ask.gather(1, best)[image, box], score[image, box], in_pixels(where[image, box], seen)

    def seen(self, sizes: Sizes) -> Sizes:
        """Height and width of what the boxes are shares of."""
        return sizes

    @property
    def image_tower(self) -> Any:
        return self.towers.vision_model


class Owlv2(OwlVit, family="owlv2"):
    """OWLv2: OWL-ViT that sees the image padded to a square."""

    published, architecture = "google/owlv2-base-patch16-ensemble", "Owlv2ForObjectDetection"

    def resize(self, images: Grey, size: tuple[int, int]) -> Pixels:
        return resize_square(images, size)

    def seen(self, sizes: Sizes) -> Sizes:
        return sizes.max(dim=1, keepdim=True).values.expand(-1, 2)


class GroundingDino(Detector, family="grounding-dino"):
    """Grounding DINO: all names of an image in one text, "dog. cat."."""

    published, architecture = "IDEA-Research/grounding-dino-tiny", "GroundingDinoForObjectDetection"
    scores = "the highest of the name's own tokens; it depends on what else is asked"
    query = "{name}."

    @property
    def room(self) -> int:
        """How many tokens the text of an image may have."""
        return self.model.config.max_text_len

    def texts(self, names: Sequence[str], query: str | None = None) -> list[str]:
        """Each name as it stands in the text of an image: in lower case, closed with a full stop."""
        texts = [(query or self.query).format(name=name).strip().lower().removesuffix(".") for name in names]
        for name, text in zip(names, texts, strict=True):
            if not text or any(stop in text for stop in ".?"):  # the model takes what stands between two as one phrase
                raise ValueError(f"name {name!r}: a full stop or question mark ends a name here; write it without")
        return [f"{text}." for text in texts]

    def known(self, names: Sequence[str], query: str | None = None) -> list[list[int]]:
        """The tokens of each name and of its full stop."""
        texts = self.texts(names, query)
        check_words(self.processor.tokenizer, texts)
        return self.processor.tokenizer(texts, add_special_tokens=False).input_ids if texts else []

    def asked(self, names: Sequence[Sequence[str]], query: str) -> dict[str, Any]:
        """The number of different texts, the longest one with its number of tokens, and the sha256 of them all.

        ValueError: a text has more tokens than the model reads.
        """
        texts = sorted({" ".join(self.texts(list(dict.fromkeys(each)), query)) for each in names})
        if not texts:
            return {}
        tokens = [len(ids) for ids in self.processor.tokenizer(texts).input_ids]
        most = max(tokens)
        longest = texts[tokens.index(most)]
        if most > self.room:
            short = longest if len(longest) < 80 else f"{longest[:77]}…"
            fewer = "ask for fewer names of an image at once"
            raise ValueError(f"names {short!r} have {most} tokens, but the model reads {self.room}; {fewer}")
        return {"asked": {"texts": len(texts), "longest": longest, "tokens": most, "sha256": files.hash_of(texts)}}

    def find(self, pixels: Pixels, sizes: Sizes, ask: Asked, known: list[list[int]], floor: float) -> Found:
        """The forward pass, and for each box the best of the names, of whose tokens the highest score counts."""
        first, last = self.processor.tokenizer.cls_token_id, self.processor.tokenizer.sep_token_id
        texts, spans = [], torch.zeros((*ask.shape, self.room), dtype=torch.bool)
        for row, names in enumerate(ask.tolist()):
            text = [first]
            for query, name in enumerate(names):
                if name >= 0:
                    spans[row, query, len(text) : len(text) + len(known[name]) - 1] = True
                    text += known[name]
            texts.append(torch.tensor([*text, last]))
        there = pad_sequence([torch.ones_like(text) for text in texts], batch_first=True)
        tokens = {"input_ids": pad_sequence(texts, batch_first=True), "attention_mask": there}
        output = self.model(pixel_values=pixels, **{name: each.to(pixels.device) for name, each in tokens.items()})
        logits, spans = output.logits.float(), spans.to(pixels.device)
        by_name = [logits.masked_fill(~spans[:, None, query], -torch.inf).amax(2) for query in range(ask.shape[1])]
        score, best = torch.stack(by_name, 2).sigmoid().max(2)
        self._numbers(score, output.pred_boxes)
        image, box = torch.nonzero(score > floor, as_tuple=True)
        where = in_pixels(output.pred_boxes.float()[image, box], sizes[image])
        return image, ask.gather(1, best)[image, box], score[image, box], where


class MMGroundingDino(GroundingDino, family="mm-grounding-dino"):
    """MM-Grounding-DINO and LLMDet: Grounding DINO, trained anew."""

    published = "openmmlab-community/mm_grounding_dino_tiny_o365v1_goldg_v3det"
    architecture = "MMGroundingDinoForObjectDetection"
