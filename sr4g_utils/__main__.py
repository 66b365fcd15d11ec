"""The commands of SR4G: images of a prompt set, boxes in them, their score, fine-tuning, and what people say.

`sr4g COMMAND` and `python -m sr4g_utils COMMAND` are the same; fine-tuning on several GPUs is
`accelerate launch --num_processes 8 -m sr4g_utils finetune …`.
"""

import argparse
import inspect
import json
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from . import __version__
from .dataset.prompt_sets import SETS, write_given_prompts
from .evaluation.verdicts import LIKE, THRESHOLD
from .models.names import FLOOR
from .models.sampling import Sampling
from .models.source import PRECISIONS
from .relations import RULES
from .store import files, limits, settings

NOTEBOOK = "03_finetuning"  # declares the parameters of fine-tuning
RAW = argparse.RawDescriptionHelpFormatter
Add = Callable[..., Any]  # a parser's add_argument
Work = Callable[[argparse.Namespace], int | None]  # of None is 0
COMMANDS: dict[str, tuple[Callable[[Add], None], Work]] = {}


def command(options: Callable[[Add], None]) -> Callable[[Work], Work]:
    """Register a function as the command of its name."""

    def register(work: Work) -> Work:
        COMMANDS[work.__name__] = options, work
        return work

    return register


def arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    text = inspect.cleandoc(__doc__ or "")
    parser = argparse.ArgumentParser("sr4g", description=text, formatter_class=RAW)
    parser.add_argument("--version", action="version", version=f"sr4g_utils {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, (options, work) in COMMANDS.items():
        text = inspect.cleandoc(work.__doc__ or "")
        own = commands.add_parser(name, help=text.splitlines()[0], description=text, formatter_class=RAW)
        options(own.add_argument)
        about = "share of a file's records that may be left out (default: 0.5)"
        own.add_argument("--allow-loss", type=float, metavar="SHARE", help=about)
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    args = arguments(argv)
    files.hush_advice()
    try:
        limits.set_limit("allow_loss", vars(args).pop("allow_loss"))
        for name, value in vars(args).items():
            settings.check(name, value, f"--{name.replace('_', '-')}")
        status = COMMANDS[args.command][1](args) or 0
        sys.stdout.flush()
        return status
    except BrokenPipeError:
        return files.reader_is_gone()
    except ModuleNotFoundError as error:
        print(f"{args.command}: {files.extra_of(error)}", file=sys.stderr)
    except (ValueError, OSError, ImportError, RuntimeError, FloatingPointError) as error:
        print(f"{args.command}: {error}", file=sys.stderr)
    return 1


def _shards(add: Add) -> None:
    add("--dtype", default="float32", choices=PRECISIONS)
    add("--shard", type=int, default=0, help="of the jobs that share the work, which this is, from 0")
    add("--shards", type=int, default=1, help="how many jobs share the work")


def _of_generate(add: Add) -> None:
    add("folder", type=Path, help="where the images go; run again to go on")
    add("--prompts", required=True, help=f"{', '.join(SETS)} or a file (see docs/formats.md)")
    add("--model", required=True, help="a folder, an id on the Hub, or YAML: {id: …, revision: …, mirrors: […]}")
    add("--unet", type=Path, help="folder of a fine-tuned UNet or transformer")
    add("--lora", type=Path, help="folder or .safetensors file of a low-rank adaptation")
    about = f"one of {', '.join(Sampling.__struct_fields__)}; may be repeated"
    add("--set", dest="settings", action="append", default=[], metavar="KEY=VALUE", help=about)
    _shards(add)


@command(_of_generate)
def generate(args: argparse.Namespace) -> None:
    """Images of a prompt set."""
    from .evaluation.generate import write_images

    files.share_cores()
    pairs = (text.partition("=") for text in args.settings)
    sampling = {key: files.read_setting(value) for key, _, value in pairs}
    options = {name: getattr(args, name) for name in ("unet", "lora", "dtype", "shard", "shards")}
    with tempfile.TemporaryDirectory() as scratch:
        count = write_given_prompts(prompts := Path(scratch) / "prompts.parquet", source=args.prompts)
        if count["left_out"]:
            print(f"{args.prompts}: {count['left_out']:,} without a relation of ours are left out", file=sys.stderr)
        write_images(args.folder, prompts, model=files.read_setting(args.model), sampling=sampling, **options)


def _of_detect(add: Add) -> None:
    add("path", type=Path, help="the Parquet file of boxes; run again to go on")
    add("images", type=Path, help="folder of images")
    add("--detector", required=True, help="a folder, an id on the Hub, or YAML: {id: …, revision: …}")
    add("--prompts", help=f"of images made elsewhere: {', '.join(SETS)} or a file")
    add("--floor", type=float, default=FLOOR, help="scores below are not stored (default: %(default)s)")
    add("--batch", type=int, default=64)
    _shards(add)


@command(_of_detect)
def detect(args: argparse.Namespace) -> int:
    """Boxes of each prompt's two things in a folder of images."""
    from .evaluation.detect import write_detections

    files.share_cores()
    options = {key: value for key, value in vars(args).items() if key not in ("command", "detector")}
    record = write_detections(**options, detector=files.read_setting(args.detector))
    if record["boxes"] == 0:
        print("detect: no box at all: is it the right detector, and are these the prompts' images?", file=sys.stderr)
    return int(record["boxes"] == 0)


def _of_score(add: Add) -> None:
    add("images", help="a folder of images, a table of boxes (.parquet, .csv, .json, .jsonl) or VISOR's results_*.json")
    add("--prompts", help=f"{', '.join(SETS)} or a file; a folder made by `sr4g generate` holds its own")
    about = "of a folder, as for detect (default: google/owlvit-base-patch32); of boxes, its name"
    add("--detector", action="append", default=[], help=f"{about}; several: scores by each, and how far they agree")
    add("--as", dest="like", default="visor", choices=LIKE, help="whose threshold, rules and pairs are taken")
    about = "another threshold: boxes above it count (VISOR's: 0.1, GenEval's: 0.3)"
    add("--threshold", type=float, action="append", help=f"{about}; of several detectors, one for all or for each")
    add("--rules", choices=RULES, help="other rules than those")
    add("--pairs", choices=("any", "best"), help="any pair of boxes may obey, or that of the best scores must")
    add("--corners", action="store_true", help="the table has corners x1, y1, x2, y2 in place of x, y, w, h")
    add("--per-prompt", type=int, metavar="N", help="images of each prompt, where a table of boxes does not tell")
    add("--per-relation", action="store_true", help="a row for each relation, too")
    add("--json", action="store_true", help="print one JSON object in place of the tables")
    add("--out", type=Path, metavar="FOLDER", help="leave scores, verdicts and a gallery of the images there")
    add("--batch", type=int, default=64)
    add("--dtype", default="float32", choices=PRECISIONS)


@command(_of_score)
def score(args: argparse.Namespace) -> None:
    """OA, VISOR, VISOR_Cond and VISOR_n of images or boxes, and how they were judged.

    examples:
      sr4g score images/ --prompts mine.csv
      sr4g score images/ --prompts mine.csv --detector A --threshold 0.1 --detector B --threshold 0.3
      sr4g score boxes.csv --prompts geneval --as geneval --threshold 0.3 --per-relation
      sr4g score results_sd.json --prompts sr2d --json
    """
    from .evaluation.score import score as judged

    if folder := Path(args.images).is_dir():
        files.share_cores()
    names = ("prompts", "threshold", "like", "rules", "pairs", "corners", "per_prompt", "batch", "dtype")
    options = {name: getattr(args, name) for name in names}
    detector = [files.read_setting(text) for text in args.detector]
    boxes = args.out / "boxes.parquet" if args.out and folder else None
    result = judged(args.images, detector=detector, boxes=boxes, **options)
    if args.out:
        result.write(args.out)
    if args.per_relation and not args.json:
        print(f"{result.per_relation().to_string(index=False)}\n")
    print(json.dumps(result.to_json(), ensure_ascii=False) if args.json else result)


def _of_finetune(add: Add) -> None:
    add("--profile", default="miniature", metavar="NAME|FILE", help="a profile of data/profiles, or a YAML file")
    add("--set", dest="settings", action="append", default=[], metavar="KEY=VALUE", help="change a parameter of it")
    add("--runs", type=Path, default=files.ROOT / "runs", metavar="DIR", help="where run folders are")


@command(_of_finetune)
def finetune(args: argparse.Namespace) -> None:
    """Fine-tune a model on captions with spatial relations: notebook 03's heavy part, alone.

    examples:
      sr4g finetune                                        the miniature, on this machine
      sr4g finetune --profile paper                        the paper's, on one GPU
      accelerate launch --num_processes 8 -m sr4g_utils finetune --profile paper
      sr4g finetune --profile paper --set 'splits=[main]' --set micro_batch=8
      sr4g finetune --set lora_rank=4                      low-rank updates only: a small file beside the model

    The result is in RUNS/PROFILE/artifacts/finetune_SPLIT, where notebook 03 finds it and does not train again. The
    prompts come from notebook 02: run `run_all.py --profile PROFILE --until 02` first. Killed at any moment, the same
    command goes on. Boxes and photos are those of the profile; the captions are judged here, after the crop.
    All parameters: `run_all.py --list`. With several processes the batch stays the same: it is shared among them.
    """
    from .running import profiles
    from .store.run import Run

    if not profiles.NOTEBOOKS.is_dir():
        raise ValueError("run it from a checkout of the repository: its notebook 03 declares the parameters")
    files.share_cores()
    folder = profiles.run_folder(args.runs, args.profile)
    settings = [text if "." in text.partition("=")[0] else f"03.{text}" for text in args.settings]
    profile = profiles.load_profile(args.profile, settings, folder)
    if NOTEBOOK not in profile:
        raise ValueError(f"the profile {args.profile} has no section {NOTEBOOK}")
    profiles.claim(folder, args.profile)
    os.chdir(profiles.NOTEBOOKS)  # the notebook's own defaults are paths seen from there
    parameters = {name: value for name, (_, value) in profiles.declared(NOTEBOOK).items()} | profile[NOTEBOOK]
    from accelerate import PartialState  # torch: not for --help

    from .finetuning.log import TIMEOUT
    from .finetuning.stage import follow, stage
    from .models.load import default_device

    state = PartialState(cpu=default_device() == "cpu", timeout=TIMEOUT)
    for split in parameters["splits"]:
        if not state.is_main_process:
            follow()
            continue
        path, result = stage(Run(folder, "finetune", parameters["allow_loss"]), split, parameters)
        print(f"{path}: best at step {result['best']['step']:,} of {result['choices']['steps']:,}")


def _of_kit(add: Add) -> None:
    about = "folders of images; with --annotations, one folder or zip"
    add("--images", nargs="+", required=True, metavar="[MODEL=]PATH", help=about)
    add("--prompts", help=f"of images made elsewhere: {', '.join(SETS)} or a file")
    add("--annotations", type=Path, help="of photos, as COCO's: asks about captions of the photos")
    add("--split", default="val", help="in a zip of annotations (default: %(default)s)")
    add("--rules", default="visor", choices=RULES, help="that stratify photos (default: %(default)s)")
    add("--per-relation", type=int, default=20, help="questions (default: %(default)s); a tenth is asked twice")
    add("--seed", type=int, default=0)
    add("--out", type=Path, default=Path("kit.html"), help="the page (default: %(default)s)")


@command(_of_kit)
def kit(args: argparse.Namespace) -> None:
    """A blind questionnaire about images or photos, for people: one HTML file.

    examples:
      sr4g kit --images runs/miniature/artifacts/images/base --per-relation 20 --seed 0
      sr4g kit --images base=DIR tuned=DIR --prompts mine.csv --per-relation 10
      sr4g kit --images val2017.zip --annotations instances_val2017.json --per-relation 20
    """
    from .dataset import coco
    from .people import kit as page

    if args.per_relation < 1:
        raise ValueError(f"--per-relation {args.per_relation}: at least one question is needed")
    if args.annotations:
        if len(args.images) > 1:
            raise ValueError("--images: with --annotations, give one folder or zip of photos")
        table = coco.read(args.annotations, args.split).without_crowds()
        questions = page.of_photos(table, args.images[0], args.per_relation, args.seed, args.rules)
    else:
        questions = page.of_images(_named(args.images, "--images"), args.prompts, args.per_relation, args.seed)
    counts = questions.relation.value_counts()
    for relation, n in counts[counts < args.per_relation].items():
        print(f"{relation}: {n} questions only; there are no more images for it")
    count = page.write(args.out, questions, args.seed)
    asked = f"{count['questions']} questions ({count['repeated']} of them asked twice)"
    print(f"{args.out}: {asked}, {count['pictures']} images, {args.out.stat().st_size / 1e6:.1f} MB")


def _named(values: Sequence[str], option: str) -> dict[str, str]:
    """``[NAME=]PATH``: without a name, the path's last part."""
    named: dict[str, str] = {}
    for value in values:
        name, _, path = value.partition("=") if "=" in value else (Path(value).name, "", value)
        if name in named:
            raise ValueError(f"{option} {value}: the name {name!r} occurs twice; write NAME=PATH")
        named[name] = path
    return named


def _of_answers(add: Add) -> None:
    add("kit", type=Path, help="the page that people were given")
    add("answers", type=Path, nargs="+", help="the CSV files that they saved")
    add("--annotations", type=Path, help="of a kit of photos: compare with the rules")
    add("--split", default="val", help="in a zip of annotations (default: %(default)s)")
    about = "of a kit of generated images: compare with the rules"
    add("--detections", nargs="+", default=[], metavar="MODEL=FILE", help=about)
    add("--threshold", type=float, default=THRESHOLD, help="of the detections (default: %(default)s)")
    add("--pairs", default="any", choices=("any", "best"), help="of boxes (default: %(default)s)")
    add("--resamples", type=int, default=10_000)
    add("--seed", type=int, default=0)
    add("--out", type=Path, help="folder for the tables, as CSV")


@command(_of_answers)
def answers(args: argparse.Namespace) -> None:
    """Answers to a kit: agreement among people, with themselves and with the rules.

    examples:
      sr4g answers kit.html answers-*.csv --detections base=base.parquet --threshold 0.1
      sr4g answers kit.html answers-*.csv --annotations instances_val2017.json --out tables
    """
    from .dataset import coco
    from .people import answers as people

    table = people.read(args.kit, args.answers)
    tables = {"among": people.among(table, args.resamples, args.seed)}
    rules = None
    if args.annotations:
        if "image_id" not in table:
            raise ValueError(f"{args.kit}: a kit of generated images; give --detections, not --annotations")
        rules = people.by_rules(table, [coco.read(args.annotations, args.split).without_crowds()])
    elif args.detections:
        if "model" not in table:
            raise ValueError(f"{args.kit}: a kit of photos; give --annotations, not --detections")
        paths = _named(args.detections, "--detections")
        rules = people.by_detections(table, paths, args.threshold, args.pairs)
    if rules is not None:
        tables["with_rules"] = people.with_rules(table, rules, args.resamples, args.seed)
    for name, of in tables.items():
        print(f"\n{name}\n{of.round(3).to_string(index=False, na_rep='–')}")
        if args.out:
            args.out.mkdir(parents=True, exist_ok=True)
            of.to_csv(args.out / f"{name}.csv", index=False)
    print(f"\n{people.summary(tables['among'], tables.get('with_rules'))}")


if __name__ == "__main__":
    sys.exit(main())
