"""The vocabulary of the miniature's models."""

import pytest

from sr4g_utils.dataset.captions import TEMPLATES, caption
from sr4g_utils.dataset.world import NAMES
from sr4g_utils.models.limits import check_words
from sr4g_utils.models.miniature.networks import LENGTH, tokenizer
from sr4g_utils.models.miniature.pool import encode_texts
from sr4g_utils.relations import NAMES as RELATIONS


def test_every_caption_is_made_of_known_words_and_fits():
    tokens = tokenizer(LENGTH)
    texts = [caption(s, r, o, t) for s in NAMES for o in NAMES[:8] for r in RELATIONS for t in TEMPLATES]
    check_words(tokens, texts)
    with pytest.raises(ValueError, match="vocabulary lacks 'unicorn'"):
        check_words(tokens, ["a unicorn to the left of a dog"])
    assert encode_texts(tokens, texts[:3]).shape == (3, LENGTH)
