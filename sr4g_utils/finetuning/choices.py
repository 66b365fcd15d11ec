"""Every choice of a fine-tuning run."""

from collections.abc import Iterator, Mapping
from typing import Any, Literal

import msgspec

from ..dataset.captions import TEMPLATES
from ..dataset.prompts import DOSE_GROUPS
from ..evaluation.verdicts import THRESHOLD
from ..relations import FAMILIES, NAMES, rules_named
from ..store import settings


class Choices(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Every choice of a fine-tuning run. The defaults are the paper profile's; the ledger says which are ours."""

    # what is learnt from
    rules: str = "visor"  # a rule set of relations.RULES that defines all relations
    template: str = "plain"  # of captions.TEMPLATES
    control: Literal["none", "list", "shuffled"] = "none"  # this and the next five are experiments': see arms
    told: float = 0.0  # share of a control's captions that stay true
    families: list[str] = msgspec.field(default_factory=lambda: list(FAMILIES))  # whose relations captions name
    withheld: float = 0.0  # share of the triplets whose captions are held back
    apart: float = 0.0  # share of the pairs of things whose photos are left out
    doses: list[int] = []  # draws of each dosed prompt's triplet, by its group
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
    lora_rank: int = 0  # above 0: train low-rank updates only, in float32 (needs peft)
    lora_alpha: float | None = None  # they count alpha / rank; None: alpha is the rank
    lora_base: Literal["float32", "bfloat16", None] = None  # of the frozen weights; None: as ``precision``
    seed: int = 0

    # of models of flow matching
    noise_levels: Literal["uniform", "logit_normal", None] = None  # how they are drawn; None: logit_normal
    logit_mean: float | None = None  # of logit_normal; above 0: less noise; None: 0
    logit_std: float | None = None  # None: 1
    loss_weights: Literal["equal", "sigma_sqrt", "cosmap", None] = None  # of noise levels; None: equal
    shift: float | None = None  # of the noise levels; None: the model's own
    guidance_embed: float | None = None  # the guidance that a distilled model is told while it learns; None: 3.5

    # on what
    precision: Literal["float32", "bfloat16"] = "bfloat16"  # of the arithmetic; weights and optimiser are float32
    micro_batch: int | None = None  # images at once per process, at most; None: its whole share of the batch
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
    pairs: Literal["any", "best"] = "any"  # of boxes, as in verdicts.verdicts
    oa_floor: float = 0.9  # the best checkpoint finds both objects at least this often, relative to the start
    checkpoint_every: int = 1_000
    keep_checkpoints: int = 2
    milestones: list[int] = []  # steps after which the UNet is kept as well, as ``step-N``
    log_every: int = 10
    track: str | None = None  # by accelerate, as well as in log.jsonl: "tensorboard", "wandb", "trackio", …

    @classmethod
    def among(cls, parameters: Mapping[str, Any]) -> "Choices":
        """The choices among notebook 03's parameters: those of its first cell, and those in its ``choices``."""
        own = {name: value for name, value in parameters.items() if name in cls.__struct_fields__}
        return cls.of(own | parameters.get("choices", {}))

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> "Choices":
        """The choices, checked. Raises ValueError for an unknown name, or a value that cannot be; it is named."""
        choices = settings.convert(dict(values), cls, "fine-tuning")
        for name in cls.__struct_fields__:
            settings.check(name, getattr(choices, name), f"fine-tuning: {name}")
        if fault := next(choices._faults(), None):
            raise ValueError(f"fine-tuning: {fault}")
        rules_named(choices.rules, NAMES)
        return choices

    def _faults(self) -> Iterator[str]:
        if not self.lora_rank and (self.lora_alpha is not None or self.lora_base is not None):
            yield f"lora_{'base' if self.lora_alpha is None else 'alpha'} needs lora_rank; set it, such as 16"
        if self.noise_levels == "uniform" and (self.logit_mean is not None or self.logit_std is not None):
            yield f"logit_{'std' if self.logit_mean is None else 'mean'} is of noise_levels logit_normal; leave it out"
        if self.lora_base == "bfloat16" and self.precision == "float32":
            yield "lora_base bfloat16 needs precision bfloat16"
        if self.told and self.control == "none":
            yield "told is of a control's captions: take control list or shuffled"
        if outside := [step for step in self.milestones if not 0 < step <= self.steps]:
            yield f"milestones: there is no step {outside[0]} of {self.steps}"
        if not self.families or set(self.families) - set(FAMILIES):
            yield f"families must be some of {', '.join(FAMILIES)}, got {self.families!r}"
        if self.doses and (len(self.doses) != DOSE_GROUPS):
            yield f"doses must be {DOSE_GROUPS} numbers, one a group, got {self.doses!r}"
        if self.doses and (self.schedule == "constant" or self.control != "none"):
            yield "doses are shared out over all steps: take schedule cosine, control none"
        if self.template not in TEMPLATES:
            yield f"template must be one of {', '.join(TEMPLATES)}, got {self.template!r}"


# What may change from one start of a run to the next. The first line alters nothing that is learnt; the second says how
# it is computed, which changes the order in which sums are rounded and nothing else.
FREE = (
    "checkpoint_every", "keep_checkpoints", "log_every", "track", "max_unusable",
    "micro_batch", "gradient_checkpointing", "channels_last", "compile", "text_cache_mb",
)  # fmt: skip
