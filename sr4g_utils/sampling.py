"""How images are sampled: what a profile may say of it, checked."""

from typing import Any

import msgspec

BEHAVIOUR = 1  # raised by hand when the same choices give other pixels; images of another behaviour are made again


class Sampling(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How images are sampled; every result names all of it. ``scheduler``: a class of diffusers, or the model's own."""

    images: int = 4  # per prompt
    steps: int = 50
    guidance: float = 7.5
    scheduler: str | None = None
    negative_prompt: str = ""
    seed: int = 0
    batch: int = 16  # images made together
    group: int = 16  # prompts that are resumed and sharded together

    @classmethod
    def of(cls, values: "Sampling | dict[str, Any]") -> "Sampling":
        """Checked sampling parameters.

        Raises:
            ValueError: an unknown key or a value that cannot be, in one line.
        """
        try:
            made = values if isinstance(values, cls) else msgspec.convert(values, cls)
        except msgspec.ValidationError as error:
            raise ValueError(f"sampling: {error}; its keys are {', '.join(cls.__struct_fields__)}") from None
        for name in ("images", "steps", "batch", "group"):
            if getattr(made, name) < 1:
                raise ValueError(f"sampling: {name} must be at least 1, got {getattr(made, name)}")
        return made
