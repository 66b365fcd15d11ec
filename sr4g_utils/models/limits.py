"""How long a prompt may be, and how many images fit into memory at once."""

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

import torch


def tokenizers(pipeline: Any) -> list[Any]:
    """The tokenizers of a pipeline; Stable Diffusion has one, larger models up to three."""
    return [part for name, part in pipeline.components.items() if name.startswith("tokenizer") and part is not None]


def check_words(tokenizer: Any, texts: Iterable[str]) -> None:
    """Every text is made of words that the tokenizer knows, and fits its length.

    A tokenizer with a whole-word vocabulary turns an unknown word into one that means nothing, and a long text is cut:
    the image would then answer another prompt than the one that is scored.

    Raises:
        ValueError: it names the text and the word, or the length.
    """
    texts = list(dict.fromkeys(texts))
    if not texts:
        return
    unknown = tokenizer.unk_token_id
    room = tokenizer.model_max_length - tokenizer.num_special_tokens_to_add()
    for text, ids in zip(texts, tokenizer(texts, add_special_tokens=False).input_ids, strict=True):
        if unknown is not None and unknown in ids:
            words = [word for word in text.split() if unknown in tokenizer(word, add_special_tokens=False).input_ids]
            raise ValueError(f"prompt {text!r}: the model's vocabulary lacks {' '.join(map(repr, words)) or 'a word'}")
        if len(ids) > room:
            raise ValueError(f"prompt {text!r} has {len(ids)} tokens, but the model reads {room}; shorten it")


def not_numbers(dtype: str) -> str:
    """What to say of a model that gives NaN or infinity in a precision, and what to do."""
    other = "bfloat16 or float32" if dtype == "float16" else "float32"
    return f"not numbers in {dtype}; use dtype {other}, and check the weights if that does not help"


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
                full = any(words in str(error).lower() for words in ("out of memory", "not enough memory"))
                if len(now) == 1 or not (full or isinstance(error, torch.OutOfMemoryError)):
                    raise
                self.size = len(now) // 2
                print(f"out of memory: going on with batches of {self.size}", file=sys.stderr)
                torch.accelerator.empty_cache() if torch.accelerator.is_available() else None
                continue
            yield now, result
            things = things[len(now) :]
