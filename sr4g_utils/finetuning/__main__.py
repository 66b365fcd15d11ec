"""Fine-tuning as a command, and as the stage that notebook 03 and the command share.

    python -m sr4g_utils.finetuning --profile paper                                     one GPU
    accelerate launch --num_processes 8 -m sr4g_utils.finetuning --profile paper        eight
    python -m sr4g_utils.finetuning                                                     the miniature, on a laptop

The work itself is in :mod:`sr4g_utils.finetuning`.
"""

import argparse
import os
import sys
from pathlib import Path

from ..running import profiles
from ..store.files import ROOT, share_cores
from ..store.run import Run
from .stage import follow, stage

NOTEBOOK = "03_finetuning"
HELP = """\
examples:
  python -m sr4g_utils.finetuning                                        the miniature, on this machine
  python -m sr4g_utils.finetuning --profile paper                        the paper's, on one GPU
  accelerate launch --num_processes 8 -m sr4g_utils.finetuning --profile paper
  python -m sr4g_utils.finetuning --profile paper --set 'splits=[main]' --set micro_batch=8

The result is in RUNS/PROFILE/artifacts/finetune_SPLIT, where notebook 03 finds it and does not train again. The prompts
come from notebook 02: run `run_all.py --profile PROFILE --until 02` first. Killed at any moment, the same command goes
on. Boxes and photos are those of the profile; the captions are judged here, after the crop.
All parameters: `run_all.py --list`. With several processes the batch stays the same: it is shared among them.
"""


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        "python -m sr4g_utils.finetuning",
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

        from ..models.load import default_device
        from .log import TIMEOUT

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
