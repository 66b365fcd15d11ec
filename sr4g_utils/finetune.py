"""Fine-tuning as a command, and as the stage that notebook 03 and the command share.

    python -m sr4g_utils.finetune --profile paper                                     one GPU
    accelerate launch --num_processes 8 -m sr4g_utils.finetune --profile paper        eight
    python -m sr4g_utils.finetune                                                     the miniature, on a laptop

The work itself is in :mod:`sr4g_utils.finetuning`.
"""

import argparse
import os
import sys
from collections.abc import Mapping
from functools import wraps
from pathlib import Path
from typing import Any

from . import boxes, dataset, inputs
from .finetuning.choices import FREE, Choices
from .running import profiles, shared
from .running.files import ROOT, share_cores
from .running.run import Run

NOTEBOOK = "03_finetuning"
HELP = """\
examples:
  python -m sr4g_utils.finetune                                        the miniature, on this machine
  python -m sr4g_utils.finetune --profile paper                        the paper's, on one GPU
  accelerate launch --num_processes 8 -m sr4g_utils.finetune --profile paper
  python -m sr4g_utils.finetune --profile paper --set 'splits=[main]' --set micro_batch=8

The result is in RUNS/PROFILE/artifacts/finetune_SPLIT, where notebook 03 finds it and does not train again. The prompts
come from notebook 02: run `run_all.py --profile PROFILE --until 02` first. Killed at any moment, the same command goes
on. Boxes and photos are those of the profile; the captions are judged here, after the crop.
All parameters: `run_all.py --list`. With several processes the batch stays the same: it is shared among them.
"""


def stage(run: Run, split: str, parameters: Mapping[str, Any]) -> tuple[Path, dict[str, Any]]:
    """The artifact ``finetune_{split}`` from notebook 03's parameters, for the notebook and the command line alike.

    Under ``accelerate launch`` the main process calls this, and the others :func:`follow`.
    """
    from accelerate.utils import broadcast_object_list

    from .finetuning.stage import finetune

    annotations = inputs.annotations(run, parameters["train_annotations"], "train")
    source = inputs.photos(run, parameters["train_photos"], "train", annotations)
    categories = boxes.read(annotations).categories
    held_out = dataset.held_out_categories(categories, parameters["unseen"]) if split == "unseen" else []
    given = {name: parameters[name] for name in ("model", "detector", *Choices.__struct_fields__)}
    free = {name: given.pop(name) for name in FREE}  # no reason to train again
    longer = {"steps": given.pop("steps")} if given["schedule"] == "constant" else {}  # nor from the start
    begun = False

    @wraps(finetune)
    def lead(path: Path, **arguments: Any) -> dict[str, Any]:
        nonlocal begun
        begun = True
        if folder := shared.store():
            arguments["latents"] = folder / "latents"
        broadcast_object_list([{"folder": path, **arguments, **free}])
        return finetune(path, **arguments, **free)

    made = run.stage(
        f"finetune_{split}",
        lead,
        {"annotations": annotations, "photos": source, "prompts": run.read("prompts.parquet")},
        heavy=True,
        prolongs=longer,
        held_out=held_out,
        **given,
    )
    if not begun:
        broadcast_object_list([None])
    return made


def follow() -> None:
    """What the other processes do while the main one is in :func:`stage`: the same work, if there is any."""
    from accelerate.utils import broadcast_object_list

    from .finetuning.stage import finetune

    work: list[dict[str, Any] | None] = [None]
    broadcast_object_list(work)
    if work[0]:
        finetune(**work[0])


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        "python -m sr4g_utils.finetune",
        description="Fine-tune a Stable Diffusion on captions with spatial relations: notebook 03's heavy part, alone.",
        epilog=HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--profile", default="miniature", metavar="NAME|FILE", help="a profile of data/profiles, or a YAML file")
    add("--set", dest="settings", action="append", default=[], metavar="KEY=VALUE", help="change a parameter of it")
    add("--runs", type=Path, default=ROOT / "runs", metavar="DIR", help="where run folders are")
    args = parser.parse_args(argv)
    share_cores()
    try:
        folder = profiles.run_folder(args.runs, args.profile)
        settings = [text if "." in text.partition("=")[0] else f"03.{text}" for text in args.settings]
        profile = profiles.load_profile(args.profile, settings, folder)
        if NOTEBOOK not in profile:
            raise ValueError(f"the profile {args.profile} has no section {NOTEBOOK}")
        profiles.claim(folder, args.profile)
        os.chdir(profiles.NOTEBOOKS)  # the notebook's own defaults are paths seen from there
        parameters = {name: value for name, (_, value) in profiles.declared(NOTEBOOK).items()} | profile[NOTEBOOK]
        from accelerate import PartialState  # torch: not for --help

        from .finetuning.engine import TIMEOUT
        from .models.load import default_device

        state = PartialState(cpu=default_device() == "cpu", timeout=TIMEOUT)
        for split in parameters["splits"]:
            if not state.is_main_process:
                follow()
                continue
            path, result = stage(Run(folder, "finetune"), split, parameters)
            print(f"{path}: best at step {result['best']['step']:,} of {result['choices']['steps']:,}")
    except (ValueError, OSError, ImportError, RuntimeError, FloatingPointError) as error:
        print(f"finetune: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
