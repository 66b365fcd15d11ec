"""Every part of the miniature's models in turn, then the export."""

from pathlib import Path
from typing import Any

from .export import export
from .pool import POOL, POOL_SEED, Pool
from .training import STEPS, Trainer, train_base, train_detector, train_text, train_vae


def train(work: Path, out: Path, seed: int = 0, scale: float = 1.0, until: str = "export") -> None:
    """Every part in turn, each from its last checkpoint, up to ``until``; then the export, if there is a base."""
    steps = {name: max(2, round(scale * n)) for name, n in STEPS.items()}
    pool = Pool.make(max(500, round(min(scale, 1.0) * POOL)), (seed, POOL_SEED))
    parts: dict[str, tuple[Any, Trainer]] = {}
    for name in STEPS:
        function, given = {
            "vae": (train_vae, (pool,)), "text": (train_text, ()),
            "base": (train_base, (pool, "vae", "text")), "detector": (train_detector, (pool, "vae")),
        }[name]  # fmt: skip
        arguments = [parts[each][0] if isinstance(each, str) else each for each in given]
        parts[name] = function(*arguments, work, steps[name], seed)  # type: ignore[operator]
        if name == until:
            break
    if until in ("base", "export"):
        export(parts, out, seed, min(scale, 1.0))
