"""Whether a model can read a prompt. Nothing here imports torch."""

from collections.abc import Iterable
from typing import Any


def tokenizers(pipeline: Any) -> list[Any]:
    """The tokenizers of a pipeline; Stable Diffusion has one, larger models up to three."""
    return [part for name, part in pipeline.components.items() if name.startswith("tokenizer") and part is not None]


def check_words(tokenizer: Any, texts: Iterable[str]) -> None:
    """Every text is made of words that the tokenizer knows, and fits its length.

    A tokenizer with a whole-word vocabulary turns an unknown word into one that means nothing, and a long text is cut:
    the picture would then answer another prompt than the one that is scored.

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
