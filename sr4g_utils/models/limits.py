"""How long a prompt may be, and how many images fit into memory at once."""

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

import torch

from ..store.settings import LARGE


def tokenizers(pipeline: Any) -> list[Any]:
    """The tokenizers of a pipeline, perhaps inside processors; Stable Diffusion has one, larger models up to three."""
    parts = [part for name, part in pipeline.components.items() if name.startswith("tokenizer") and part is not None]
    return [getattr(part, "tokenizer", part) for part in parts]


def check_words(tokenizers: Any, texts: Iterable[str], longest: int | None = None) -> None:
    """Every text is made of words that each tokenizer knows, and fits the length of one of them at least.

    A tokenizer with a whole-word vocabulary turns an unknown word into one that means nothing, and a long text is cut:
    the image would then answer another prompt than the one that is scored. Of several tokenizers, one reads it whole:
    beside a T5, CLIP's 77 tokens give a summary only.

    Args:
        tokenizers: one, or a list. longest: tokens that the pipeline gives its text encoders at most.

    Raises:
        ValueError: it names the text and the word, or the length.
    """
    texts = list(dict.fromkeys(texts))
    cut = dict.fromkeys(texts, (0, 0))  # where nothing reads a text whole: room and its tokens
    for tokenizer in tokenizers if isinstance(tokenizers, list) else [tokenizers]:
        unknown = tokenizer.unk_token_id
        room = min(tokenizer.model_max_length, longest or LARGE) - tokenizer.num_special_tokens_to_add()

        def ids(texts: list[str], tokenizer: Any = tokenizer) -> list[list[int]]:
            return tokenizer(texts, add_special_tokens=False).input_ids if texts else []

        for text, tokens in zip(texts, ids(texts), strict=True):
            if unknown is not None and unknown in tokens:
                words = " ".join(repr(word) for word in text.split() if unknown in ids([word])[0])
                raise ValueError(f"prompt {text!r}: the model's vocabulary lacks {words or 'a word'}")
            if len(tokens) <= room:
                cut.pop(text, None)
            elif text in cut:
                cut[text] = max(cut[text], (room, len(tokens)))
    for text, (room, number) in cut.items():
        if room:
            raise ValueError(f"prompt {text!r} has {number} tokens, but the model reads {room}; shorten it")


def not_numbers(dtype: str) -> str:
    """What to say of a model that gives NaN or infinity in a precision, and what to do."""
    other = "bfloat16 or float32" if dtype == "float16" else "float32"
    return f"not numbers in {dtype}; use dtype {other}, and check the weights if that does not help"


def is_full(error: BaseException) -> bool:
    """Whether an error says that the memory is full."""
    full = any(words in str(error).lower() for words in ("out of memory", "not enough memory"))
    return isinstance(error, torch.OutOfMemoryError) or (isinstance(error, RuntimeError) and full)


T = TypeVar("T")
R = TypeVar("R")


class AdaptiveBatches:
    """Work on at most ``size`` things at a time; halved for good, and said, when a batch does not fit into memory."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __call__(self, things: Sequence[T], work: Callable[[Sequence[T]], R]) -> Iterator[tuple[Sequence[T], R]]:
        """Each batch of ``things``, in order, and what ``work`` makes of it.

        Raises:
            RuntimeError: of ``work``; out of memory only where a single thing does not fit.
        """
        while things:
            now = things[: self.size]
            try:
                result = work(now)
            except RuntimeError as error:
                if len(now) == 1 or not is_full(error):
                    raise
                self.size = len(now) // 2
                print(f"out of memory: going on with batches of {self.size}", file=sys.stderr)
                torch.accelerator.empty_cache() if torch.accelerator.is_available() else None
                continue
            yield now, result
            things = things[len(now) :]
