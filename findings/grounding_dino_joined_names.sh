#!/usr/bin/env bash
# transformers: Grounding DINO's boxes have names that nobody asked for.
#
# Expected: asked for "a cat. a dog.", every box is called "a cat" or "a dog".
# Happens: a name is put together from all words of the prompt whose score passes text_threshold: "cat", "cat dog", "a
# a". Whoever compares names with what was asked for loses those boxes, and counts the thing as not there. (The words
# come from any phrase; a list of phrases changes nothing here.)
# Seen with torch 2.13.0 transformers 5.24.0 pillow 13.0.0, Python 3.11:
#     asked for 'a cat' and 'a dog', found ['cat', 'cat dog', 'a a']
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
venv=${FINDINGS_VENV:-$work/venv}
[ -x "$venv/bin/python" ] || python3 -m venv "$venv"
"$venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 transformers==5.24.0 pillow==13.0.0
"$venv/bin/python" -I - <<'PY'
import logging
import warnings

logging.disable()
warnings.simplefilter("ignore")

from types import SimpleNamespace

import torch
from transformers import BertTokenizerFast, GroundingDinoImageProcessor, GroundingDinoProcessor

words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "cat", "dog", "."]
tokenizer = BertTokenizerFast(vocab={word: id for id, word in enumerate(words)})
processor = GroundingDinoProcessor(GroundingDinoImageProcessor(), tokenizer)
ids = tokenizer("a cat. a dog.", return_tensors="pt").input_ids  # [CLS] a cat . a dog . [SEP]
logits = torch.full((1, 3, 256), -9.0)
logits[0, 0, 2] = 2.0  # a box that is sure of "cat"
logits[0, 1, [2, 5]] = torch.tensor([1.0, 0.9])  # one that likes both nouns
logits[0, 2, [1, 4]] = torch.tensor([0.5, 0.4])  # one that likes both articles
outputs = SimpleNamespace(logits=logits, pred_boxes=torch.full((1, 3, 4), 0.5), input_ids=ids)
(found,) = processor.post_process_grounded_object_detection(
    outputs, ids, threshold=0.3, text_threshold=0.25, target_sizes=[(100, 100)]
)
print("asked for 'a cat' and 'a dog', found", found["text_labels"])
assert found["text_labels"] == ["cat", "cat dog", "a a"]
PY
