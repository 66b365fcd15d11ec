"""Triplet to sentence and back: ("dog", "left of", "cat") <-> "a dog to the left of a cat"."""

import re
from collections.abc import Sequence

from ..relations import BY_NAME, RELATIONS

# {subject} and {object} arrive with their article. The first is the default and the form of VISOR's SR2D prompts.
TEMPLATES: dict[str, str] = {
    "plain": "{subject} {phrase} {object}",
    "photo": "a photo of {subject} {phrase} {object}",
    "sentence": "There is {subject} {phrase} {object}.",
}
_PHRASES = {relation.phrase: relation.name for relation in RELATIONS}


def with_article(name: str) -> str:
    """ "an apple", "a dog". By the first letter, which is right for every COCO name; the plurals "a skis" and
    "a scissors" are VISOR's wording, kept so that our captions and the published prompts are the same sentences."""
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"


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
    if not (subject and object):
        raise ValueError(f"subject and object need a name; got {subject!r} and {object!r}")
    return TEMPLATES[template].format(
        subject=with_article(subject),
        phrase=BY_NAME[relation].phrase,
        object=f"another {object}" if subject == object else with_article(object),
    )


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
