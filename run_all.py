#!/usr/bin/env python
"""Run the SR4G study: execute the notebooks in order and make every table and figure again.

examples:
  python run_all.py                                    the default profile, offline, on this machine
  python run_all.py --list                             what profiles, notebooks and parameters there are
  python run_all.py --profile coco                     the dataset from COCO 2017 (downloads 250 MB once)
  python run_all.py --profile coco --set train_annotations=instances_train2017.json --set rules=sg2im
  python run_all.py --only 02 --force                  one notebook, even if nothing has changed

Results are in RUNS/PROFILE: open index.html there. What has not changed since it last succeeded is skipped.
"""

import argparse
import contextlib
import errno
import json
import logging
import os
import signal
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sr4g_utils.running import done as running_done
from sr4g_utils.running import execute, plan, profiles, sweep, verify
from sr4g_utils.store import files

DEFAULT = "miniature"
INTERRUPTED = 130  # the shell's convention for Ctrl-C


def arguments(argv: list[str] | None) -> argparse.Namespace:
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("run_all.py", description=__doc__, formatter_class=form)
    add = parser.add_argument
    add("--profile", default=DEFAULT, metavar="NAME|FILE",
        help="a profile of data/profiles, or a YAML file (default: %(default)s)")  # fmt: skip
    add("--only", nargs="+", default=[], metavar="NN", help="run these notebooks only, such as 01 02_dataset")
    add("--from", dest="first", metavar="NN", help="start at this notebook")
    add("--until", dest="last", metavar="NN", help="stop after this notebook")
    add("--set", dest="settings", action="append", default=[], metavar="[NOTEBOOK.]KEY=VALUE",
        help="change a parameter, in one notebook or in all that have it; may be repeated")  # fmt: skip
    add("--force", action="store_true", help="run even what has not changed (the stages' files are still reused)")
    add("--list", action="store_true", help="list profiles, notebooks and parameters, and stop")
    add("--quiet", action="store_true", help="say nothing but errors")
    add("--json", action="store_true", help="at the end one JSON object on the standard output; all else on the other")
    add("--dry-run", action="store_true", help="say what would run and with which parameters, and stop")
    add("--record", action="store_true", help="afterwards copy the run's results to data/results/PROFILE, for --verify "
        "and for the offline profile")  # fmt: skip
    add("--refresh", action="store_true",
        help="afterwards put the outputs of the default profile into the notebooks of the checkout")  # fmt: skip
    add("--verify", action="store_true", help="run nothing; compare the finished run with the recorded results of its "
        "profile, and fail if they differ; with --profile all: each finished run")  # fmt: skip
    several(parser)
    add("--runs", type=Path, default=files.ROOT / "runs", metavar="DIR",
        help="where run folders are (default: runs/ in the checkout)")  # fmt: skip
    return parser.parse_args(argv)


def several(parser: argparse.ArgumentParser) -> None:
    """The arguments that are about more than one run."""
    add = parser.add_argument_group("several runs").add_argument
    add("--sweep", action="append", default=[], metavar="[NOTEBOOK.]KEY=VALUE,VALUE,…",
        help="a run for each combination of values, in RUNS/PROFILE_sweep; may be repeated")  # fmt: skip
    add("-j", dest="jobs", type=int, metavar="N", help="how many runs of a sweep are at work at a time (default: 1)")
    add("--on", choices=["slurm", "local"], help="submit a sweep's runs as an array of jobs, through submitit")
    add("--job", action="append", default=[], metavar="KEY=VALUE",
        help="an option of those jobs in submitit's words, such as timeout_min=600 or slurm_partition=gpu")  # fmt: skip
    add("--summary", nargs="+", type=Path, default=[], metavar="DIR", help="run nothing; put runs (their folders, or "
        "folders of them) beside each other in one page and one CSV")  # fmt: skip


def chosen(profile: dict[str, dict[str, Any]], args: argparse.Namespace) -> list[str]:
    """The notebooks to run, in order."""
    first = profiles.resolve(args.first, "--from") if args.first else ""
    last = profiles.resolve(args.last, "--until") if args.last else ""
    only = [profiles.resolve(name, "--only") for name in args.only]
    for name in filter(None, (*only, first, last)):
        if name not in profile:
            raise ValueError(f"the profile {args.profile} has no notebook {name}; it runs {', '.join(profile)}")
    names = [n for n in profile if (not only or n in only) and n >= first and (not last or n <= last)]
    if not names:
        raise ValueError("--only, --from and --until leave no notebook to run")
    return names


def main(argv: list[str] | None = None) -> int:
    args = arguments(argv)
    for stream in (sys.stdout, sys.stderr):  # a terminal without an arrow shows its number
        with contextlib.suppress(AttributeError):
            stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    try:
        if args.list:
            return list_all()
        if args.summary:
            own = len(args.summary) == 1 and files.DATA not in args.summary[0].resolve().parents
            return beside(args.summary, args.summary[0] if own else args.runs)
        if args.sweep:
            return swept(args)
        if args.refresh and (args.profile != DEFAULT or args.settings):
            raise ValueError(f"--refresh is for the profile {DEFAULT} as it is, without --set")
        if args.verify and args.profile == "all":
            return verify.verify_all(args.runs)
        folder = profiles.run_folder(args.runs, args.profile)
        profile = profiles.load_profile(args.profile, args.settings, folder)
        names = chosen(profile, args)
        if args.dry_run:
            status = tell(names, profile, folder, args.force)
            notes = profiles.read_profile(args.profile)[1].get("plan") or {}
            print("\n".join(plan.plan({name: profile[name] for name in names}, notes)))
            return status
        if args.verify:
            return verify.verify(folder)
        plan.check({name: profile[name] for name in names}, folder)
        held = [files.lock(folder / ".lock"), files.lock(folder / ".kernels")]
        held.pop().close()  # no kernel is at work here; ours will take this one
        profiles.claim(folder, args.profile)
    except BrokenPipeError:
        return files.reader_is_gone()
    except (ValueError, OSError) as error:
        closed = isinstance(error, OSError) and error.errno in (errno.EROFS, errno.EACCES)
        print(f"run_all.py: {error}{'; pass --runs DIR, a folder to write to' if closed else ''}", file=sys.stderr)
        return 2
    return work(names, profile, folder, args)


def work(names: list[str], profile: dict[str, dict[str, Any]], folder: Path, args: argparse.Namespace) -> int:
    """Run the notebooks, keep what is to be kept, and say what was made."""
    stop_on_signals()
    try:
        with hushed(args.quiet, args.json):
            took = execute.run(names, profile, folder, args.force)
            if args.record:
                verify.record(folder)
            for name in names if args.refresh else ():
                profiles.refresh(name, folder)
    except KeyboardInterrupt as error:
        print(f"\nrun_all.py: interrupted{error and f' in {error}'}; run again to go on", file=sys.stderr)
        return INTERRUPTED
    except Exception as error:
        logging.getLogger("papermill").debug(traceback.format_exc())
        print(f"run_all.py: {error}", file=sys.stderr)
        return 1
    record = execute.report(folder, took)
    if args.json or not args.quiet:
        print(json.dumps(record) if args.json else execute.in_words(record))
    return 0


@contextlib.contextmanager
def hushed(quiet: bool, record: bool) -> Iterator[None]:
    """Nothing on the screen, or, where only the record is to be on stdout, everything else on stderr."""
    with contextlib.ExitStack() as stack:
        if quiet or record:
            out = stack.enter_context(Path(os.devnull).open("w")) if quiet else sys.stderr
            stack.enter_context(contextlib.redirect_stdout(out))
            stack.enter_context(contextlib.redirect_stderr(out))
        yield


def swept(args: argparse.Namespace) -> int:
    """A run for each combination of values, and the page that puts them beside each other."""
    if args.verify or args.record or args.refresh:
        raise ValueError("--verify, --record and --refresh are for one run; leave --sweep out")
    if args.job and not args.on:
        raise ValueError("--job is for jobs that are submitted: give --on slurm or --on local, too")
    fixed, varied = ({setting.partition("=")[0] for setting in part} for part in (args.settings, args.sweep))
    if both := fixed & varied:
        raise ValueError(f"--set {min(both)}: --sweep varies it; leave one of the two out")
    stop_on_signals()
    choices = {"--only": args.only, "--from": [args.first], "--until": [args.last]}
    options = [part for name, values in choices.items() if any(values) for part in (name, *values)]
    options += ["--force"] if args.force else []
    try:
        status, done = sweep.main(args, options)
    except KeyboardInterrupt:
        print("\nrun_all.py: interrupted; run again to go on", file=sys.stderr)
        return INTERRUPTED
    if done := [folder for folder in done if (folder / "artifacts" / "results" / "scores.json").is_file()]:
        beside(done, done[0].parent)
    return status


def beside(runs: list[Path], into: Path) -> int:
    from sr4g_utils.running import summary  # imports scipy: not for --help

    return int(summary.main(runs, into) > 0)


def stop_on_signals() -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a script's background job starts with it ignored
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))


def list_all() -> int:
    print("Profiles (--profile):")
    for path in sorted((files.DATA / "profiles").glob("*.yaml")):
        print(f"  {path.stem:18}{path.read_text(encoding='utf-8').splitlines()[0].lstrip('# ')}")
    print("\nNotebooks (--only, --from, --until) and their parameters (--set), with the default profile's values:")
    for name in profiles.notebooks():
        print(f"  {name}: {profiles.title(name)}")
        for key, (annotation, default) in profiles.declared(name).items():
            print(f"      {key}: {annotation} = {default!r}")
    return 0


def tell(names: list[str], profile: dict[str, dict[str, Any]], folder: Path, force: bool) -> int:
    for name in names:
        done = not force and running_done.is_done(name, profile[name], folder)
        print(f"{name}  ({'done, nothing changed' if done else 'to run'})")
        for key, (_, default) in profiles.declared(name).items():
            print(f"    {key} = {profile[name].get(key, default)!r}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
