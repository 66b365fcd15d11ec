"""Sentences of prompts: which thing stands in which relation to which, if a sentence says that and nothing else.

A sentence is two names, a relation and perhaps verbs: "The fluffy cat is sitting on the left of the soft pillow" has
the names "fluffy cat" and "soft pillow". A sentence of another form is not understood, and nothing of it is taken.
"""

import re
from functools import cache

from ..relations import RELATIONS
from ..store.files import shipped
from .names import tidy

WORDS = {relation.phrase: relation.name for relation in RELATIONS} | {
    "left of": "left of", "right of": "right of", "atop": "above", "on top of": "above", "on the top of": "above",
    "on the bottom of": "below", "under": "below", "underneath": "below", "beneath": "below", "inside of": "inside",
    "overlaps": "overlapping", "overlaps with": "overlapping", "overlapping with": "overlapping",
    "separate from": "separated", "bigger than": "larger",
}  # fmt: skip
WORDS |= {  # "on the left-hand side of"
    f"{at} {the}{side}{hand}{part} of": f"{side} of"
    for side in ("left", "right")
    for at in ("to", "on", "at")
    for the in ("the ", "")
    for hand in ("", " hand", "-hand")
    for part in ("", " side")
}
_RELATION = re.compile(rf"\b(?:{'|'.join(sorted(map(re.escape, WORDS), key=len, reverse=True))})\b")
_PICTURE = "photo|photograph|picture|image|painting|drawing|illustration|sketch|render|rendering"
_LEAD = re.compile(rf"(?:[\w-]+ ){{0,5}}?(?:{_PICTURE}) (?:of|showing) |there (?:is|are) ")
_NAME = re.compile(r"[\w'’&.()/-]*[^\W\d_][\w'’&.()/-]*")  # a word of it
NONE = "none of the 14 relations"
FORM = "not two names and a relation"
LONGEST = 6  # words of a name
LONG = 1000  # characters; no sentence of two names has as many


@cache
def _words() -> dict[str, frozenset[str]]:
    return {name: frozenset(words.split()) for name, words in shipped("sentences.yaml").items()}


def understood(sentence: str) -> tuple[str, str, str] | str:
    """The (subject, relation, object) that a sentence says, in small letters, or why it is left out."""
    if len(sentence) > LONG:
        return FORM
    text = " ".join(sentence.lower().split()).rstrip(" .!")
    relations = list(_RELATION.finditer(text))
    if not relations:
        return NONE
    if len(relations) > 1:
        return "more than one relation"
    before, after = text[: relations[0].start()], text[relations[0].end() :]
    lead = _LEAD.match(before)
    words = before[lead.end() if lead else 0 :].replace(", ", " ").split()
    while words and words[-1] in _words()["verbs"]:
        words.pop()
    subject, object = _name(" ".join(words)), _name(after)
    if subject and object and object not in _words()["frames"]:
        return subject, WORDS[relations[0][0]], object
    return FORM


def _name(text: str) -> str:
    """The name that a text is, without its article; "" if it is none, or may hold a verb."""
    known, words = _words(), tidy(text).removeprefix("one ").split()
    taken = known["others"] | known["verbs"] - known["also_names"]
    plain = 0 < len(words) <= LONGEST and all(_NAME.fullmatch(word) and word not in taken for word in words)
    if not plain or "of" in (words[0], words[-1]):
        return ""
    last, singular = words[-1], re.match(r"\s*an? ", text)
    runs = last.endswith("ing") and last not in known["nouns"]  # "dog barking"
    barks = last.endswith("s") and not last.endswith(("ss", "us", "is")) and last not in known["plurals"]
    return "" if len(words) > 1 and (runs or (barks and singular)) else " ".join(words)  # "a dog barks"
