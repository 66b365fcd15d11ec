"""Every choice of a fine-tuning run."""

from collections.abc import Mapping
from typing import Any, Literal

import msgspec

from ..dataset.captions import TEMPLATES
from ..dataset.prompts import DOSE_GROUPS
from ..evaluation.verdicts import THRESHOLD
from ..relations import FAMILIES, NAMES, rules_named


class Choices(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Every choice of a fine-tuning run. The defaults are the paper profile's; the ledger says which are ours."""

    # what is learnt from
    rules: str = "visor"  # a rule set of relations.RULES that defines all relations
    template: str = "plain"  # of captions.TEMPLATES
    control: Literal["none", "list", "shuffled"] = "none"  # a control's captions; see samples.Captions
    told: float = 0.0  # share of a control's captions that stay true
    families: list[str] = msgspec.field(default_factory=lambda: list(FAMILIES))  # whose relations captions name
    withheld: float = 0.0  # share of the triplets whose captions are held back; see dataset.withheld
    doses: list[int] = []  # draws of each dosed prompt's triplet, by its group; see samples.Captions.dosed
    crowds: bool = False
    same_category: bool = False  # captions such as "a dog to the left of another dog"
    balanced: bool = True  # draw a relation first, then one of its captions
    caption_dropout: float = 0.1  # share of captions replaced by the empty one, for classifier-free guidance
    resolution: int | None = None  # pixels; None: the model's own
    min_kept: float = 0.5  # boxes of which less than this share is left by the crop are dropped
    max_unusable: float = 0.01  # share of photos that may be missing or broken

    # how
    steps: int = 100_000  # the paper's
    batch: int = 64  # the paper's; over all processes and accumulation
    lr: float = 1e-5
    schedule: Literal["constant", "cosine"] = "constant"
    warmup: int = 500  # steps of linear warm-up
    weight_decay: float = 0.01
    max_grad_norm: float = 1.0
    ema: float = 0.9999  # decay of the average of weights that is validated and kept; 0: the weights themselves
    lora_rank: int = 0  # above 0: train low-rank updates only (needs peft)
    seed: int = 0

    # on what
    precision: Literal["float32", "bfloat16"] = "bfloat16"  # of the arithmetic; weights and optimiser are float32
    micro_batch: int | None = None  # pictures at once per process, at most; None: its whole share of the batch
    channels_last: bool = True
    compile: bool = False
    gradient_checkpointing: bool = False
    adam_8bit: bool = False  # needs bitsandbytes
    text_cache_mb: int = 512  # keep the text states of all captions when they fit into this

    # what is kept and shown
    validate_every: int = 5_000  # steps; also before the first and after the last; 0: never
    validation_prompts: int = 280  # spread evenly over the relations
    sampling: dict[str, Any] = {}  # of the validation images: fields of sampling.Sampling
    threshold: float = THRESHOLD
    pairs: Literal["any", "best"] = "any"  # of boxes, as in visor.verdicts
    oa_floor: float = 0.9  # the best checkpoint finds both objects at least this often, relative to the start
    checkpoint_every: int = 1_000
    keep_checkpoints: int = 2
    milestones: list[int] = []  # steps after which the UNet is kept as well, as ``step-N``
    log_every: int = 10
    tensorboard: bool = False

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> "Choices":
        """The choices, checked.

        Raises:
            ValueError: an unknown name, or a value that cannot be; the message names it.
        """
        try:
            choices = msgspec.convert(dict(values), cls)
        except msgspec.ValidationError as error:
            raise ValueError(f"fine-tuning: {error}; the choices are {', '.join(cls.__struct_fields__)}") from None
        positive = ("steps", "batch", "lr", "checkpoint_every", "keep_checkpoints", "log_every", "max_grad_norm")
        for name in positive:
            if getattr(choices, name) <= 0:
                raise ValueError(f"fine-tuning: {name} must be above 0, got {getattr(choices, name)!r}")
        for name in ("told", "withheld", "caption_dropout", "ema", "max_unusable"):
            if not 0 <= getattr(choices, name) <= 1:
                raise ValueError(f"fine-tuning: {name} must be in [0, 1], got {getattr(choices, name)!r}")
        if choices.told and choices.control == "none":
            raise ValueError("fine-tuning: told is of a control's captions: take control list or shuffled")
        if outside := [step for step in choices.milestones if not 0 < step <= choices.steps]:
            raise ValueError(f"fine-tuning: milestones: there is no step {outside[0]} of {choices.steps}")
        if not choices.families or set(choices.families) - set(FAMILIES):
            raise ValueError(f"fine-tuning: families must be some of {', '.join(FAMILIES)}, got {choices.families!r}")
        if choices.doses and (len(choices.doses) != DOSE_GROUPS or min(choices.doses) < 0):
            raise ValueError(f"fine-tuning: doses must be {DOSE_GROUPS} numbers, one a group, got {choices.doses!r}")
        if choices.doses and (choices.schedule == "constant" or choices.control != "none"):
            raise ValueError("fine-tuning: doses are shared out over all steps: take schedule cosine, control none")
        rules_named(choices.rules, NAMES)
        if choices.template not in TEMPLATES:
            raise ValueError(f"fine-tuning: template must be one of {', '.join(TEMPLATES)}, got {choices.template!r}")
        return choices


# What may change from one start of a run to the next. The first alter nothing that is learnt; the second say how it is
# computed, so that sums are rounded in another order and nothing more.
FREE = (
    "checkpoint_every", "keep_checkpoints", "log_every", "tensorboard", "max_unusable",
    "micro_batch", "gradient_checkpointing", "channels_last", "compile", "text_cache_mb",
)  # fmt: skip
