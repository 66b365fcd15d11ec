"""What people set: the numbers that a setting may be, and the name that was probably meant."""

import difflib
from collections.abc import Collection, Iterable
from typing import Any

LARGE = 10**9  # as good as no limit: a larger number was mistyped
COUNT, NUMBER, SHARE, LESS = (1, LARGE), (0, LARGE), (0, 1), (0, 1, "below")

# By the name that a setting has in profiles, commands and code: the least and the most; "below": less than the most
RANGES: dict[str, tuple[float, float] | tuple[float, float, str]] = {
    **dict.fromkeys(("images", "steps", "batch", "group", "micro_batch", "per_relation", "test_per_relation"), COUNT),
    **dict.fromkeys(("validation_per_relation", "validation_prompts", "checkpoint_every", "keep_checkpoints"), COUNT),
    **dict.fromkeys(("log_every", "milestones", "per_prompt"), COUNT),
    **dict.fromkeys(("plain_steps", "plain_prompts", "ceiling_per_relation", "quality_photos"), NUMBER),
    **dict.fromkeys(
        ("dosed", "doses", "unseen", "warmup", "validate_every", "lora_rank", "text_cache_mb", "steps_offset"), NUMBER
    ),
    **dict.fromkeys(("told", "caption_dropout", "min_kept", "max_unusable", "allow_loss"), SHARE),
    **dict.fromkeys(("oa_floor", "weight_decay"), SHARE),
    **dict.fromkeys(("withheld", "ema", "threshold"), LESS),
    "lr": (1e-12, 1),
    "max_grad_norm": (1e-12, LARGE),
    "guidance": (0, 1000),
    **dict.fromkeys(("resolution", "size"), (8, 65_536)),
    "resamples": (100, 10**7),  # fewer give no p below 0.01
    "seed": (0, 2**32 - 1),  # what numpy, pandas and torch all take
}


def check(name: str, value: Any, where: str) -> None:
    """Raises ValueError if a setting is a number out of its range (of a list: if one of its numbers is)."""
    for number in value if isinstance(value, list) else [value]:
        if name in RANGES and isinstance(number, int | float) and not isinstance(number, bool):
            low, high, *open = RANGES[name]
            if not low <= number <= high or (open and number == high):  # NaN is in no range
                most = f" and {'below' if open else 'at most'} {high:,}" if high != LARGE or number > high else ""
                raise ValueError(f"{where} must be at least {low:g}{most}, got {number!r}")


def meant(name: Any, known: Iterable[str]) -> str:
    """A question to put at an error's end: the known name that ``name`` is a misspelling of, if there is one."""
    folded = {other.casefold(): other for other in map(str, known)}
    near = difflib.get_close_matches(str(name).casefold(), folded, 1, 0.7)
    return f" (did you mean {folded[near[0]]!r}?)" if near else ""


def unknown(names: Iterable[Any], known: Collection[str]) -> tuple[Any, str] | None:
    """The first of some names that is not known, and :func:`meant`; None if all are."""
    return next(((name, meant(name, known)) for name in names if name not in known), None)
