"""How images are sampled: what a profile may say of it, checked; and what models' cards say of it."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import msgspec
import numpy as np
from jaxtyping import UInt8

from ..store import settings
from ..store.files import DATA, read_yaml

Pixels = UInt8[np.ndarray, "_ _ 3"]  # images of a list may differ in size
BEHAVIOUR = 2  # raised by hand when the same choices give other pixels; images of another behaviour are made again


class Sampling(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How images are sampled; every result names all of it.

    ``scheduler``: a class of diffusers; None for the model's own, as its folder has it. A class that is named lays its
    steps as it does by default, in every model alike: which noise levels it visits is no property of the weights, and
    a folder that diffusers saved names its old class's way for all others. ``timestep_spacing`` and ``steps_offset``
    choose another way.

    ``guidance`` and ``size`` are the pipeline's own where they are None. Guidance is the argument that means it in the
    pipeline's class; where it means nothing, that is said, and the record has None.
    """

    images: int = 4  # per prompt
    steps: int = 50
    guidance: float | None = None
    scheduler: str | None = None
    timestep_spacing: Literal["leading", "linspace", "trailing"] | None = None
    steps_offset: int | None = None
    negative_prompt: str = ""
    size: Annotated[list[int], msgspec.Meta(min_length=2, max_length=2)] | None = None  # height and width in pixels
    offload: bool = False  # a GPU holds one part of the pipeline at a time: less memory, the same images
    seed: int = 0
    batch: int = 16  # the most images made together
    group: int = 16  # prompts that are resumed and sharded together

    @classmethod
    def of(cls, values: "Sampling | dict[str, Any]") -> "Sampling":
        """Checked sampling parameters. ValueError: an unknown key or a value that cannot be, in one line."""
        sampling = values if isinstance(values, cls) else settings.convert(values, cls, "sampling")
        for name in cls.__struct_fields__:
            settings.check(name, getattr(sampling, name), f"sampling: {name}")
        return sampling

    def record(self) -> dict[str, Any]:
        """For the record: every field, but for those that nobody chose and that records from before do not have."""
        return {key: value for key, value in msgspec.to_builtins(self).items() if value or key not in LATER}


LATER = ("size", "offload")  # fields that are in a record only where they are chosen
ENTRY = ("model", "unet", "lora", "images", "boxes", "sampling")  # what a profile may say of a model that is evaluated


def of_model(name: str, entry: Mapping[str, Any], common: Mapping[str, Any]) -> dict[str, Any]:
    """How a model of a profile is sampled: as all are (``common``), but for what its own entry says.

    Raises:
        ValueError: an unknown key in the entry, sampling that cannot be, or of images that are there already.
    """
    if len(name) > 100 or any(part.strip() in ("", ".", "..") for part in name.split("/")):
        raise ValueError(f"models: {name!r:.80} cannot name files; take a short name, such as base or owner/model")
    if other := settings.unknown(entry, ENTRY):
        raise ValueError(f"models: {name} has an unknown key {other[0]!r}{other[1]}; its keys are {', '.join(ENTRY)}")
    if sum(key in entry for key in ("model", "images", "boxes")) != 1:
        raise ValueError(f"models: {name} needs either a model, a folder of images or a file of boxes")
    if "model" not in entry and (key := next((key for key in ("unet", "lora", "sampling") if key in entry), None)):
        kind = "a folder of images, which are" if "images" in entry else "a file of boxes of images, which are"
        raise ValueError(f"models: {name} is {kind} not sampled here; leave {key} out")
    own = entry.get("sampling") or {}
    if not isinstance(own, Mapping):
        raise ValueError(f"models: {name}: sampling must be a mapping such as {{steps: 4, guidance: 0}}, got {own!r}")
    try:
        Sampling.of(values := {**common, **own})
    except ValueError as error:
        raise ValueError(f"models: {name}: {error}") from None
    return values


def recommended_sampling(id: str) -> dict[str, Any] | None:
    """``steps`` and ``guidance`` of a distilled model as its card gives them; None for any other id on the Hub."""
    return read_yaml((DATA / "distilled.yaml").read_text(encoding="utf-8")).get(id.lower())


def against_card(id: str, sampling: Sampling, card: Mapping[str, Any] | None) -> str | None:
    """A warning where a distilled model is sampled otherwise than its card (:func:`recommended_sampling`) asks for: up
    to 4 steps, or twice the card's, are as good; guidance up to 1 is none."""
    if card is None:
        return None
    steps, guidance = card["steps"], card["guidance"]
    here = sampling.guidance  # None: what the pipeline does by itself
    if sampling.steps <= max(4, 2 * steps) and (here is None or max(1.0, here) == max(1.0, guidance)):
        return None
    wanted = f"{steps} step{'s'[: steps > 1]} at guidance {guidance:g}"
    way = f"{sampling.steps} at " + ("the pipeline's own" if here is None else f"{here:g}")
    remedy = f"Put `sampling: {{steps: {steps}, guidance: {guidance:g}}}` into its entry of models"
    return f"""WARNING: {id} is distilled: its model card samples it with {wanted}, here it is sampled with {way}, and
scores too low. {remedy}""".replace("\n", " ")
