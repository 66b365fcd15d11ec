"""Triplet to sentence and back: ("dog", "left of", "cat") <-> "a dog to the left of a cat"."""

import re
import unicodedata
from collections.abc import Sequence
from functools import cache, lru_cache
from typing import Any

from ..relations import BY_NAME, RELATIONS
from .boxes import COCO_CATEGORIES
from .names import key, tidy

# {subject} and {object} arrive with their article. The first is the default and the form of VISOR's SR2D prompts.
TEMPLATES: dict[str, str] = {
    "plain": "{subject} {phrase} {object}",
    "photo": "a photo of {subject} {phrase} {object}",
    "sentence": "There is {subject} {phrase} {object}.",
}
_PHRASES = {relation.phrase: relation.name for relation in RELATIONS}
_COCO = frozenset(category.name for category in COCO_CATEGORIES)


@cache
def with_article(name: str) -> str:
    """ "an apple", "a unicycle", "an hour": the tidy name with its article, as `inflect` has it by its sound.

    COCO's names go by the first letter, which is right for all of them. The plurals "a skis" and "a scissors" are
    VISOR's wording, kept so that our captions and the published prompts are the same sentences.
    """
    name = tidy(name)
    spoken = "".join(c for c in unicodedata.normalize("NFKD", name) if not unicodedata.combining(c))  # "eclair"
    if name in _COCO or not spoken[:1].isalpha():
        return f"{'an' if re.match(r'[aeiou]|8|1[18](?![0-9])', spoken) else 'a'} {name}"
    return f"{_inflect().a(spoken).split()[0]} {name}"


@cache
def _inflect() -> Any:
    import inflect

    return inflect.engine()


def listing(names: Sequence[str]) -> str:
    """A caption that names things and says nothing of where they are: "a dog , a cat and an apple"."""
    things = [with_article(name) for name in names]
    return " , ".join(things[:-1]) + " and " * (len(things) > 1) + things[-1]


def caption(subject: str, relation: str, object: str, template: str = "plain") -> str:
    """The sentence of a triplet: ``caption("dog", "left of", "cat") == "a dog to the left of a cat"``.

    Raises:
        ValueError: an empty name, an unknown relation or an unknown template.
    """
    if relation not in BY_NAME:
        raise ValueError(f"relation: unknown relation {relation!r}; choose one of {', '.join(BY_NAME)}")
    if template not in TEMPLATES:
        raise ValueError(f"template: unknown template {template!r}; choose one of {', '.join(TEMPLATES)}")
    subject, object = things(subject, object)
    return TEMPLATES[template].format(subject=subject, phrase=BY_NAME[relation].phrase, object=object)


@lru_cache(1 << 16)
def things(subject: str, object: str) -> tuple[str, str]:
    """The two things as a caption names them: "a dog", "an apple"; of one name, "a dog", "another dog".

    Raises:
        ValueError: an empty name.
    """
    if not (tidy(subject) and tidy(object)):
        raise ValueError(f"subject and object need a name; got {subject!r} and {object!r}")
    same = key(subject) == key(object)
    return with_article(subject), f"another {tidy(object)}" if same else with_article(object)


def parse(sentence: str, template: str = "plain") -> tuple[str, str, str]:
    """The (subject, relation, object) of a caption; the inverse of :func:`caption`.

    Raises:
        ValueError: the sentence does not have the template's form.
    """
    pattern = re.sub(r"\\([ {}])", r"\1", re.escape(TEMPLATES[template])).format(
        subject="an? (?P<subject>.+?)",
        phrase=f"(?P<phrase>{'|'.join(_PHRASES)})",
        object="(?:an?|another) (?P<object>.+?)",
    )
    match = re.fullmatch(pattern, sentence)
    if match is None:
        raise ValueError(f"not a caption of the template {TEMPLATES[template]!r}: {sentence!r}")
    return match["subject"], _PHRASES[match["phrase"]], match["object"]
