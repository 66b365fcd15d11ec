"""SR4G: does a text-to-image model put things where you say? (arXiv 2403.00587)

The names below are loaded when they are first used, and none of them imports torch. The rest is in the rooms.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_PLACES = {
    "RELATIONS": "relations",
    "RULES": "relations",
    "judge": "relations",
    "caption": "dataset.captions",
    "read_boxes": "dataset.coco:read",
    "read_prompts": "dataset.prompt_sets",
    "read_detections": "evaluation.detections",
    "verdicts": "evaluation.verdicts",
    "scores": "evaluation.scores",
    "compare": "evaluation.scores",
    "chance": "evaluation.scores",
    "score": "evaluation.score",
    "Reward": "evaluation.reward",
}

__all__ = ["__version__", *_PLACES]


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, _, own = _PLACES[name].partition(":")
    globals()[name] = value = getattr(import_module(f".{module}", __name__), own or name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
