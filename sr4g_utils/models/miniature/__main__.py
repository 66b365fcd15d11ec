"""Trains the miniature's models from nothing: ``python -m sr4g_utils.models.miniature``, on two cores, offline.

    python -m sr4g_utils.models.miniature --work runs/miniature_models

Six parts, each seeded, each resumed from its last checkpoint in ``--work`` after an interruption:

* ``vae``: photos of 64 × 64 to latents of 8 × 16 × 16 and back (L1, light KL);
* ``text``: a CLIP text tower that parses captions made of random words. Its last four states stand for the first four
  things that a caption names, and say of each which it is, and whether it is the subject or the object of which
  relation word (:func:`meaning`). No photo, box or place enters: what "left of" means is for the UNet to learn;
* ``base``: the denoising UNet (v-prediction); the text tower is frozen. ``RELATION_SHARE`` of its captions name two of
  a photo's things and a relation *drawn at random*: it meets the words, and can learn nothing from them;
* ``detector``: an OWL-ViT on photos and on their VAE reconstructions, since it will see what a decoder does to them;
* ``rtdetr``: a detector of another family, an RT-DETR, on photos alone and from another seed: what it finds in a
  generator's pictures it has not learnt from a decoder;
* ``export``: the folders that stock diffusers and transformers load, in fp16 safetensors, with checksums and scores;
  after ``--until base``, too: then the detectors are the shipped ones.

The pool of scenes that models learn from shares no scene with the train and val splits of :mod:`.world`. Its things
lie anywhere, as on the web: no scene is composed.
"""

import argparse
from pathlib import Path
from typing import Any

PARTS = ("vae", "text", "base", "detector", "rtdetr")


def main(argv: list[str] | None = None) -> None:
    assert __doc__
    look = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("python -m sr4g_utils.models.miniature", description=__doc__, formatter_class=look)
    add, work = parser.add_argument, Path("runs/miniature_models")
    add("--work", type=Path, default=work, help="folder of checkpoints (default: %(default)s)")
    about = "folder of the exported models (default: export in --work; data/models has the shipped)"
    add("--out", type=Path, help=about)
    add("--seed", type=int, default=0)
    add("--scale", type=float, default=1.0, help="multiplies the steps; 0.01 tries everything in a minute")
    add("--until", choices=[*PARTS, "export"], default="export", help="stop after this part")
    about = "share of captions in which the text tower is taught subject and object in each other's place, up to 0.5"
    add("--swap", type=float, default=0.0, help=f"{about}; its work lies in a folder of its own, swap-…, in --work")
    args = parser.parse_args(argv)
    if not 0 <= args.swap <= 0.5:
        parser.error(f"--swap must be from 0 to 0.5, got {args.swap:g}")
    work = args.work / f"swap-{args.swap:g}" if args.swap else args.work
    train(work, args.out or work / "export", args.seed, args.scale, args.until, args.swap)


def train(work: Path, out: Path, seed: int = 0, scale: float = 1.0, until: str = "export", swap: float = 0.0) -> None:
    """Every part in turn, each from its last checkpoint, up to ``until``; then the export, if there is a base. For
    ``swap`` see :func:`training.swapped`."""
    from .export import export  # torch: not for --help
    from .pool import POOL, POOL_SEED, Pool
    from .training import STEPS, Trainer, train_base, train_detector, train_rtdetr, train_text, train_vae

    steps = {name: max(2, round(scale * n)) for name, n in STEPS.items()}
    pool = Pool.make(max(500, round(min(scale, 1.0) * POOL)), (seed, POOL_SEED))
    parts: dict[str, tuple[Any, Trainer]] = {}
    for name in STEPS:
        function, needed = {
            "vae": (train_vae, (pool,)), "text": (train_text, ()),
            "base": (train_base, (pool, "vae", "text")), "detector": (train_detector, (pool, "vae")),
            "rtdetr": (train_rtdetr, (pool,)),
        }[name]  # fmt: skip
        arguments = [parts[part][0] if isinstance(part, str) else part for part in needed]
        more = (swap,) if name == "text" else ()
        parts[name] = function(*arguments, work, steps[name], seed, *more)  # type: ignore[operator]
        if name == until:
            break
    if until in ("base", "export"):
        export(parts, out, seed, min(scale, 1.0))


if __name__ == "__main__":
    main()
