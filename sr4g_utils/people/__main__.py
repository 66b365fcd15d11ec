"""``python -m sr4g_utils.people``: make a blind questionnaire (``kit``), and read what people answered (``read``)."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from ..dataset import coco
from ..evaluation import verdicts
from ..evaluation.detections import read_detections
from ..relations import RULES
from . import answers as people_answers
from . import kit

EXAMPLES = """examples:
  python -m sr4g_utils.people kit --images runs/miniature/artifacts/images/base --per-relation 20 --seed 0
  python -m sr4g_utils.people kit --images base=DIR tuned=DIR --prompts mine.csv --per-relation 10
  python -m sr4g_utils.people kit --images val2017.zip --annotations instances_val2017.json --per-relation 20
  python -m sr4g_utils.people read kit.html answers-*.csv --detections base=base.parquet --threshold 0.1
  python -m sr4g_utils.people read kit.html answers-*.csv --annotations instances_val2017.json --out tables
"""


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        "python -m sr4g_utils.people", description=__doc__, epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    commands = parser.add_subparsers(dest="command", required=True)
    make = commands.add_parser("kit", help="write one HTML file with pictures and questions")
    add = make.add_argument
    add(
        "--images",
        nargs="+",
        required=True,
        metavar="[MODEL=]PATH",
        help="folders of images; with --annotations, one folder or zip",
    )
    add("--prompts", help="of images made elsewhere: sr2d, sr4g, geneval or a file")
    add("--annotations", type=Path, help="of photos, as COCO's: asks about captions of the photos")
    add("--split", default="val", help="in a zip of annotations (default: %(default)s)")
    add("--rules", default="visor", choices=RULES, help="that stratify photos (default: %(default)s)")
    add("--per-relation", type=int, default=20, help="questions (default: %(default)s); a tenth is asked twice")
    add("--seed", type=int, default=0)
    add("--out", type=Path, default=Path("kit.html"), help="the page (default: %(default)s)")
    read = commands.add_parser("read", help="agreement among people, with themselves and with the rules")
    add = read.add_argument
    add("kit", type=Path, help="the page that people were given")
    add("answers", type=Path, nargs="+", help="the CSV files that they saved")
    add("--annotations", type=Path, help="of a kit of photos: compare with the rules")
    add("--split", default="val", help="in a zip of annotations (default: %(default)s)")
    add(
        "--detections",
        nargs="+",
        default=[],
        metavar="MODEL=FILE",
        help="of a kit of generated pictures: compare with the rules",
    )
    add("--threshold", type=float, default=verdicts.THRESHOLD, help="of the detections (default: %(default)s)")
    add("--pairs", default="any", choices=("any", "best"), help="of boxes (default: %(default)s)")
    add("--resamples", type=int, default=10_000)
    add("--seed", type=int, default=0)
    add("--out", type=Path, help="folder for the tables, as CSV")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    args = arguments(argv)
    try:
        return make_kit(args) if args.command == "kit" else tell(args)
    except (ValueError, OSError) as error:
        print(f"people: {error}", file=sys.stderr)
        return 1


def make_kit(args: argparse.Namespace) -> int:
    if args.per_relation < 1:
        raise ValueError(f"--per-relation {args.per_relation}: at least one question is needed")
    if args.annotations:
        if len(args.images) > 1:
            raise ValueError("--images: with --annotations, give one folder or zip of photos")
        table = coco.read(args.annotations, args.split).without_crowds()
        questions = kit.of_photos(table, args.images[0], args.per_relation, args.seed, args.rules)
    else:
        questions = kit.of_images(_named(args.images, "--images"), args.prompts, args.per_relation, args.seed)
    asked = questions.relation.value_counts()
    for relation, n in asked[asked < args.per_relation].items():
        print(f"{relation}: {n} questions only; there are no more pictures for it")
    count = kit.write(args.out, questions, args.seed)
    told = f"{count['questions']} questions ({count['repeated']} of them asked twice), {count['pictures']} pictures"
    print(f"{args.out}: {told}, {args.out.stat().st_size / 1e6:.1f} MB")
    return 0


def _named(values: Sequence[str], option: str) -> dict[str, str]:
    """``[NAME=]PATH``: without a name, the path's last part."""
    named: dict[str, str] = {}
    for value in values:
        name, equals, path = value.partition("=")
        name, path = (name, path) if equals else (Path(value).name, value)
        if name in named:
            raise ValueError(f"{option} {value}: the name {name!r} occurs twice; write NAME=PATH")
        named[name] = path
    return named


def tell(args: argparse.Namespace) -> int:
    answers = people_answers.read(args.kit, args.answers)
    tables = {"among": people_answers.among(answers, args.resamples, args.seed)}
    said = None
    if args.annotations:
        if "image_id" not in answers:
            raise ValueError(f"{args.kit}: a kit of generated pictures; give --detections, not --annotations")
        said = people_answers.by_rules(answers, [coco.read(args.annotations, args.split).without_crowds()])
    elif args.detections:
        if "model" not in answers:
            raise ValueError(f"{args.kit}: a kit of photos; give --annotations, not --detections")
        said = people_answers.by_verdicts(answers, _verdicts(answers, args))
    if said is not None:
        tables["with_rules"] = people_answers.with_rules(answers, said, args.resamples, args.seed)
    for name, table in tables.items():
        print(f"\n{name}\n{table.round(3).to_string(index=False, na_rep='–')}")
        if args.out:
            args.out.mkdir(parents=True, exist_ok=True)
            table.to_csv(args.out / f"{name}.csv", index=False)
    return 0


def _verdicts(answers: pd.DataFrame, args: argparse.Namespace) -> pd.DataFrame:
    """Every model's verdicts under every rule set that defines all its relations."""
    files, tables = _named(args.detections, "--detections"), []
    if missing := [name for name in answers.model.unique() if name not in files]:
        raise ValueError(f"--detections: the model {missing[0]!r} of the kit has no file; write {missing[0]}=FILE")
    prompts = answers.drop_duplicates("prompt_id")[["prompt_id", "subject", "relation", "object"]]
    for model, path in files.items():
        found = read_detections(path)
        images = int(max(found.image_index.max(), answers.image_index.max())) + 1
        for rules, about in RULES.items():
            able = prompts[prompts.relation.isin(about.defines)]
            if len(able):
                told = verdicts.verdicts(able, found, images, args.threshold, args.pairs, rules)
                tables.append(told.assign(model=model, rules=rules))
    return pd.concat(tables, ignore_index=True)


if __name__ == "__main__":
    sys.exit(main())
