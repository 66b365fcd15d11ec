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
import html
import json
import logging
import os
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import Any

from sr4g_utils.running import files, plan, profiles, report, sweep, verify
from sr4g_utils.running import run as folders

DEFAULT = "miniature"
INTERRUPTED = 130  # the shell's convention for Ctrl-C
# No advice about the kernel's transport, nor a traceback when a kernel that goes loses its sockets before its last word
KERNEL = [
    "--log-level=ERROR",
    "--IPKernelApp.exec_lines=__import__('logging').getLogger('tornado.general').setLevel('CRITICAL')",
]


def arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        "run_all.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add(
        "--profile", default=DEFAULT, metavar="NAME|FILE",
        help="a profile of data/profiles, or a YAML file (default: %(default)s)",
    )  # fmt: skip
    add("--only", nargs="+", default=[], metavar="NN", help="run these notebooks only, such as 01 02_dataset")
    add("--from", dest="first", metavar="NN", help="start at this notebook")
    add("--until", dest="last", metavar="NN", help="stop after this notebook")
    add(
        "--set", dest="settings", action="append", default=[], metavar="[NOTEBOOK.]KEY=VALUE",
        help="change a parameter, in one notebook or in all that have it; may be repeated",
    )  # fmt: skip
    add("--force", action="store_true", help="run even what has not changed (the stages' files are still reused)")
    add("--list", action="store_true", help="list profiles, notebooks and parameters, and stop")
    add("--quiet", action="store_true", help="say nothing but errors")
    add("--json", action="store_true", help="at the end one JSON object on the standard output; all else on the other")
    add("--dry-run", action="store_true", help="say what would run and with which parameters, and stop")
    add(
        "--record", action="store_true",
        help="afterwards copy the run's results to data/results/PROFILE, for --verify and for the offline profile",
    )  # fmt: skip
    add(
        "--refresh", action="store_true",
        help="afterwards put the outputs of the default profile into the notebooks of the checkout",
    )  # fmt: skip
    add(
        "--verify", action="store_true",
        help="run nothing; compare the finished run with the recorded results of its profile, and fail if they differ",
    )  # fmt: skip
    several(parser)
    add(
        "--runs", type=Path, default=files.ROOT / "runs", metavar="DIR",
        help="where run folders are (default: runs/ in the checkout)",
    )  # fmt: skip
    return parser.parse_args(argv)


def several(parser: argparse.ArgumentParser) -> None:
    """The arguments that are about more than one run."""
    add = parser.add_argument_group("several runs").add_argument
    add(
        "--sweep", action="append", default=[], metavar="[NOTEBOOK.]KEY=VALUE,VALUE,…",
        help="a run for each combination of values, in RUNS/PROFILE_sweep; may be repeated",
    )  # fmt: skip
    add("-j", dest="jobs", type=int, metavar="N", help="how many runs of a sweep are at work at a time (default: 1)")
    add("--on", choices=["slurm", "local"], help="submit a sweep's runs as an array of jobs, through submitit")
    add(
        "--job", action="append", default=[], metavar="KEY=VALUE",
        help="an option of those jobs in submitit's words, such as timeout_min=600 or slurm_partition=gpu",
    )  # fmt: skip
    add(
        "--summary", nargs="+", type=Path, default=[], metavar="DIR",
        help="run nothing; put runs (their folders, or folders of them) beside each other in one page and one CSV",
    )  # fmt: skip


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
    try:
        if args.list:
            return list_all()
        if args.summary:
            return beside(args.summary, args.summary[0] if len(args.summary) == 1 else args.runs)
        if args.sweep:
            return swept(args)
        if args.refresh and (args.profile != DEFAULT or args.settings):
            raise ValueError(f"--refresh is for the profile {DEFAULT} as it is, without --set")
        folder = profiles.run_folder(args.runs, args.profile)
        profile = profiles.load_profile(args.profile, args.settings, folder)
        names = chosen(profile, args)
        if args.dry_run:
            status = tell(names, profile, folder, args.force)
            _, sections = profiles.read_profile(args.profile)
            print("\n".join(plan.plan({name: profile[name] for name in names}, sections.get("plan") or {})))
            return status
        if args.verify:
            return verify.verify(folder)
        held = [folders.lock(folder / ".lock"), folders.lock(folder / ".kernels")]
        held.pop().close()  # no kernel is at work here; ours will take this one
        profiles.claim(folder, args.profile)
    except (ValueError, OSError) as error:
        print(f"run_all.py: {error}", file=sys.stderr)
        return 2
    stop_on_signals()
    try:
        with contextlib.ExitStack() as quietly:
            if args.quiet or args.json:
                out = quietly.enter_context(open(os.devnull, "w")) if args.quiet else sys.stderr  # noqa: PTH123
                quietly.enter_context(contextlib.redirect_stdout(out))
                quietly.enter_context(contextlib.redirect_stderr(out))
            took = run(names, profile, folder, args.force)
            if args.record:
                verify.record(folder)
            if args.refresh:
                for name in names:
                    profiles.refresh(name, folder)
    except KeyboardInterrupt as error:
        print(f"\nrun_all.py: interrupted{error and f' in {error}'}; run again to go on", file=sys.stderr)
        return INTERRUPTED
    except Exception as error:
        logging.getLogger("papermill").debug(traceback.format_exc())
        print(f"run_all.py: {error}", file=sys.stderr)
        return 1
    record = report.report(folder, took)
    if args.json or not args.quiet:
        print(json.dumps(record) if args.json else report.in_words(record))
    return 0


def swept(args: argparse.Namespace) -> int:
    """A run for each combination of values, and the page that puts them beside each other."""
    if args.verify or args.record or args.refresh:
        raise ValueError("--verify, --record and --refresh are for one run; leave --sweep out")
    stop_on_signals()
    given = {"--only": args.only, "--from": [args.first], "--until": [args.last]}
    options = [part for name, values in given.items() if any(values) for part in (name, *values)]
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
    from sr4g_utils import across  # imports scipy: not for --help

    across.main(runs, into)
    return 0


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
        done = not force and folders.is_done(name, profile[name], folder)
        print(f"{name}  ({'done, nothing changed' if done else 'to run'})")
        for key, (_, default) in profiles.declared(name).items():
            print(f"    {key} = {profile[name].get(key, default)!r}")
    return 0


def run(names: list[str], profile: dict[str, dict[str, Any]], folder: Path, force: bool) -> dict[str, float | None]:
    """Run notebooks; the seconds that each took, None for those of which nothing has changed."""
    log(folder / "run.log")
    took: dict[str, float | None] = {}
    for number, name in enumerate(names, 1):
        head = f"[{number}/{len(names)}] {name}"
        if not force and folders.is_done(name, profile[name], folder):
            print(f"{head}: nothing changed, skipped")
            took[name] = None
            continue
        began = time.monotonic()
        folders.start(name, folder)
        notebook = execute(name, profile[name], folder, head)
        folders.finish(name, profile[name], folder, also=[notebook, to_html(notebook)])
        write_index(folder, profile)
        took[name] = time.monotonic() - began
        print(f"{head}: done in {took[name]:.0f} s", flush=True)
    write_index(folder, profile)
    return took


def log(path: Path) -> None:
    """papermill and the notebooks' own output go to the run's log file; the screen shows progress."""
    logger = logging.getLogger("papermill")
    logger.setLevel(logging.DEBUG)
    logger.propagate = False
    logger.handlers = [logging.FileHandler(path, encoding="utf-8")]
    logger.handlers[0].setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logging.raiseExceptions = False  # a full disk is said once, by the run


def execute(name: str, parameters: dict[str, Any], folder: Path, head: str) -> Path:
    """Execute a notebook with papermill and return the executed one, which is kept also when it fails.

    Raises:
        RuntimeError: a cell failed, the kernel died or the disk is full; the message names notebook, cell and error.
        KeyboardInterrupt: Ctrl-C; the message names notebook and cell.
    """
    import papermill  # imports half of Jupyter: not for --help

    output = folder / "notebooks" / f"{name}.ipynb"
    output.parent.mkdir(parents=True, exist_ok=True)
    # the kernel imports this checkout, whatever else is installed
    os.environ["PYTHONPATH"] = os.pathsep.join([str(files.ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    for library in ("TRANSFORMERS", "DIFFUSERS"):  # their advice on optional packages is no part of a notebook
        os.environ.setdefault(f"{library}_VERBOSITY", "error")
    os.environ.setdefault("PYTHONWARNINGS", "ignore:IProgress not found")  # tqdm's, of a widget we do not use
    files.share_cores()
    at = [0]
    try:
        papermill.execute_notebook(
            *(str(path).replace("{", "{{").replace("}", "}}") for path in (profiles.notebooks()[name], output)),
            parameters,
            kernel_name="python3",
            kernel_manager_class=own_kernel(),
            cwd=profiles.NOTEBOOKS,
            progress_bar={"desc": head, "file": sys.stderr},
            log_output=True,
            stderr_file=sys.stderr,  # a stage's own progress
            on_cell_start=lambda cell, cell_index: at.append(cell_index + 1),
            extra_arguments=KERNEL,
        )
        profiles.tidy(output)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"{name}, cell {at[-1]}") from None
    except Exception as error:
        if isinstance(error, papermill.PapermillExecutionError):
            problem = f"{error.ename}: {error.evalue}"
        else:  # the kernel died, or the disk is full
            problem = f"{type(error).__name__}: {error}"
        raise RuntimeError(f"{name}, cell {at[-1]}: {problem}\nSee {output}") from error
    return output


def own_kernel() -> type:
    """What starts kernels of this very Python, whatever kernel somebody has installed under the name of python3."""
    from jupyter_client.kernelspec import KernelSpecManager
    from jupyter_client.manager import AsyncKernelManager
    from traitlets import default

    class OwnKernel(AsyncKernelManager):
        @default("kernel_spec_manager")
        def _only_ours(self) -> KernelSpecManager:
            return KernelSpecManager(kernel_dirs=[], parent=self)  # what is left is this Python's

    return OwnKernel


def to_html(path: Path) -> Path:
    from nbconvert import HTMLExporter

    page, _ = HTMLExporter(template_name="lab", embed_images=True).from_filename(str(path))
    files.write_text(path.with_suffix(".html"), page)
    return path.with_suffix(".html")


STYLE = """body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem}
img{max-width:100%}figure{margin:1.5rem 0}figcaption{color:#555}ul{padding-left:1.2rem}"""


def write_index(folder: Path, profile: dict[str, dict[str, Any]]) -> None:
    """One page that links notebooks, figures and tables with their captions."""
    parts = []
    for name in profile:
        if (folder / "notebooks" / f"{name}.html").is_file():
            parts += section(name, folder)
    title = html.escape(f"SR4G, profile {folder.name}")
    files.write_text(
        folder / "index.html",
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title><style>{STYLE}</style>\n'
        f"<h1>{title}</h1>\n" + "\n".join(parts) + '\n<p><a href="run.log">Log</a></p></html>\n',
    )


def section(name: str, folder: Path) -> list[str]:
    """What a notebook has made: its page, tables, figures and files."""
    from PIL import Image

    def links(path: Path, *suffixes: str) -> str:
        made = [path.with_suffix(f".{suffix}") for suffix in suffixes]
        return " · ".join(f'<a href="{file}">{file.suffix[1:].upper()}</a>' for file in made)

    outputs = [path for path in map(Path, folders.outputs(name, folder)) if (folder / path).exists()]
    tables, figures = [], []
    for path in outputs:
        if path.suffix == ".png" and path.parts[0] == "figures":
            with Image.open(folder / path) as image:
                caption = html.escape(image.info["Description"])
            figures.append(
                f'<figure><img src="{path}" alt="{caption}" loading="lazy">'
                f"<figcaption>{caption} ({links(path, 'png', 'pdf')})</figcaption></figure>"
            )
        elif path.suffix == ".md" and path.parts[0] == "tables":
            caption = html.escape((folder / path).read_text(encoding="utf-8").splitlines()[0].strip("*"))
            tables.append(f"<li>{caption} ({links(path, 'csv', 'md', 'tex')})</li>")
    files = [f'<a href="{path}">{path.name}</a>' for path in outputs if path.parts[0] == "artifacts"]
    return [
        f'<h2><a href="notebooks/{name}.html">{html.escape(profiles.title(name))}</a></h2>',
        *(["<p>Tables</p><ul>", *tables, "</ul>"] if tables else []),
        *([f"<p>Files: {' · '.join(files)}</p>"] if files else []),
        *figures,
    ]


if __name__ == "__main__":
    sys.exit(main())
