"""What people set: the numbers and kinds that a setting may be, in words, and the name that was probably meant."""

import difflib
import json
import re
from collections.abc import Collection, Iterable, Mapping
from os import PathLike
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import msgspec

LARGE = 10**9  # as good as no limit: a larger number was mistyped
COUNT, NUMBER, SHARE, LESS = (1, LARGE), (0, LARGE), (0, 1), (0, 1, "below")

# By the name that a setting has in profiles, commands and code: the least and the most; "below": less than the most
RANGES: dict[str, tuple[float, float] | tuple[float, float, str]] = {
    **dict.fromkeys(("images", "steps", "batch", "group", "micro_batch", "per_relation", "test_per_relation"), COUNT),
    **dict.fromkeys(("validation_per_relation", "validation_prompts", "checkpoint_every", "keep_checkpoints"), COUNT),
    **dict.fromkeys(("log_every", "milestones", "per_prompt", "shards"), COUNT),
    **dict.fromkeys(("plain_steps", "plain_prompts", "ceiling_per_relation", "quality_photos"), NUMBER),
    **dict.fromkeys(
        ("dosed", "doses", "unseen", "warmup", "validate_every", "lora_rank", "text_cache_mb", "steps_offset"), NUMBER
    ),
    **dict.fromkeys(("told", "caption_dropout", "min_kept", "max_unusable", "allow_loss"), SHARE),
    **dict.fromkeys(("oa_floor", "weight_decay"), SHARE),
    **dict.fromkeys(("shift", "lora_alpha"), (1e-6, 1000)),
    "logit_std": (1e-6, 20),
    "logit_mean": (-20, 20),
    **dict.fromkeys(("withheld", "apart", "ema", "threshold", "floor"), LESS),
    "lr": (1e-12, 1),
    "max_grad_norm": (1e-12, LARGE),
    **dict.fromkeys(("guidance", "guidance_embed"), (0, 1000)),
    **dict.fromkeys(("resolution", "size"), (8, 65_536)),
    "resamples": (100, 10**7),  # fewer give no p below 0.01
    "seed": (0, 2**32 - 1),  # what numpy, pandas and torch all take
}


def check(name: str, value: Any, where: str) -> None:
    """Raises ValueError if a setting is a number out of its range (of a list: if one of its numbers is)."""
    for number in value if isinstance(value, list) else [value]:
        if name == "threshold" and isinstance(value, list) and not isinstance(number, int | float):
            raise ValueError(f"{where} must be a list of numbers, got {shown(value)}")
        if name in RANGES and isinstance(number, int | float) and not isinstance(number, bool):
            low, high, *open = RANGES[name]
            if not low <= number <= high or (open and number == high):  # NaN is in no range
                most = f" and {'below' if open else 'at most'} {high:,}" if high != LARGE or number > high else ""
                raise ValueError(f"{where} must be at least {low:g}{most}, got {number!r}{percent(number, high)}")


def percent(number: float | int, high: float | int) -> str:
    """A question to put at an error's end, where a number is above a share's most and may be a percentage."""
    return f"; is it a percentage? write {number / 100:g}" if high == 1 and 1 < number <= 100 else ""


_WORDS = {
    int: "a whole number", float: "a number", str: "text", bool: "true or false", PathLike: "a path", NoneType: "null",
    dict: "a mapping", list: "a list",
}  # fmt: skip


def in_words(kind: Any) -> str:
    """A type as someone says it who writes YAML: "a whole number or a list [text, …]" for ``int | list[str]``."""
    origin, args = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return in_words(args[0])
    if origin in (Union, UnionType):
        return " or ".join(in_words(each) for each in args if not (each is str and PathLike in args))
    if origin is Literal:
        return f"one of {', '.join(map(str, args))}"
    if origin is list:
        return f"a list [{in_words(args[0])}, …]"
    if origin is dict:
        return f"a mapping {{key: {in_words(args[1])}, …}}"
    return _WORDS.get(kind, str(kind))


def shown(value: Any) -> str:
    """A value as YAML has it: null, true, [1, 2]."""
    text = repr(value) if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 80 else f"{text[:79]}…"


def convert(values: Any, kind: type, where: str) -> Any:
    """A mapping of settings as a ``msgspec.Struct``.

    Raises:
        ValueError: it is no mapping, or has an unknown key or a value of another kind, which is named.
    """
    try:
        return msgspec.convert(values, kind)
    except msgspec.ValidationError as error:
        fields = {field.name: field.type for field in msgspec.structs.fields(kind)}
        keys, name = f"its keys are {', '.join(fields)}", re.search(r"at `\$\.(\w+)", str(error))
        if not isinstance(values, Mapping):
            raise ValueError(f"{where}: must be a mapping {{key: value, …}}, got {shown(values)}; {keys}") from None
        if other := unknown(values, fields):
            raise ValueError(f"{where}: unknown key {shown(other[0])}{other[1]}; {keys}") from None
        if name is None:
            raise ValueError(f"{where}: {error}; {keys}") from None
        wanted, length = in_words(fields[name[1]]), re.search(r" of length (?:>= |<= )?(\d+)", str(error))
        wanted += f" ({length[1]} values)" if length else ""
        raise ValueError(f"{where}: {name[1]} must be {wanted}, got {shown(values[name[1]])}; {keys}") from None


def meant(name: Any, known: Iterable[str]) -> str:
    """A question to put at an error's end: the known name that ``name`` is a misspelling of, if there is one."""
    folded = {other.casefold(): other for other in map(str, known)}
    near = difflib.get_close_matches(str(name).casefold(), folded, 1, 0.7)
    return f" (did you mean {folded[near[0]]!r}?)" if near else ""


def unknown(names: Iterable[Any], known: Collection[str]) -> tuple[Any, str] | None:
    """The first of some names that is not known, and :func:`meant`; None if all are."""
    return next(((name, meant(name, known)) for name in names if name not in known), None)
