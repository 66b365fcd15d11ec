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
import html
import logging
import os
import shutil
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import Any

from sr4g_utils import runs

INTERRUPTED = 130  # the shell's convention for Ctrl-C


def arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        "run_all.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--profile", default="miniature", metavar="NAME|FILE", help="a profile of data/profiles, or a YAML file (default: miniature)")
    parser.add_argument("--only", nargs="+", default=[], metavar="NN", help="run these notebooks only, such as 01 02_dataset")
    parser.add_argument("--from", dest="first", metavar="NN", help="start at this notebook")
    parser.add_argument("--until", dest="last", metavar="NN", help="stop after this notebook")
    parser.add_argument("--set", dest="settings", action="append", default=[], metavar="[NOTEBOOK.]KEY=VALUE", help="change a parameter, in one notebook or in all that have it; may be repeated")
    parser.add_argument("--force", action="store_true", help="run even what has not changed (heavy stages are still reused)")
    parser.add_argument("--list", action="store_true", help="list profiles, notebooks and parameters, and stop")
    parser.add_argument("--dry-run", action="store_true", help="say what would run and with which parameters, and stop")
    parser.add_argument("--record", action="store_true", help="afterwards copy the run's results to data/results, which the offline profile shows")
    parser.add_argument("--runs", type=Path, default=runs.ROOT / "runs", metavar="DIR", help="where run folders are (default: runs/ in the checkout)")
    return parser.parse_args(argv)


def chosen(profile: dict[str, dict[str, Any]], args: argparse.Namespace) -> list[str]:
    """The notebooks to run, in order."""
    first, last = (runs.resolve(name, option) if name else None for name, option in ((args.first, "--from"), (args.last, "--until")))
    only = {runs.resolve(name, "--only") for name in args.only}
    if missing := sorted((only | {first, last} - {None}) - set(profile)):
        raise ValueError(f"the profile {args.profile} has no notebook {missing[0]}; it runs {', '.join(profile)}")
    names = [n for n in profile if (not only or n in only) and (not first or n >= first) and (not last or n <= last)]
    if not names:
        raise ValueError("--only, --from and --until leave no notebook to run")
    return names


def main(argv: list[str] | None = None) -> int:
    args = arguments(argv)
    try:
        if args.list:
            return list_all()
        folder = args.runs.expanduser().resolve() / Path(args.profile).stem
        profile = runs.load_profile(args.profile, args.settings, folder)
        names = chosen(profile, args)
        if args.dry_run:
            for name in names:
                print(f"{name}  ({'done, nothing changed' if runs.is_done(name, profile[name], folder) and not args.force else 'to run'})")
                for key, (_, default) in runs.declared(name).items():
                    print(f"    {key} = {profile[name].get(key, default)!r}")
            return 0
        held = [runs.lock(folder / ".lock"), runs.lock(folder / ".kernels")]
        held.pop().close()  # no kernel is at work here; ours will take this one
    except (ValueError, OSError) as error:
        print(f"run_all.py: {error}", file=sys.stderr)
        return 2
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    try:
        run(names, profile, folder, args.force)
        if args.record:
            record(folder)
    except KeyboardInterrupt:
        print("\nrun_all.py: interrupted; run again to go on", file=sys.stderr)
        return INTERRUPTED
    except Exception as error:
        logging.getLogger("papermill").debug(traceback.format_exc())
        print(f"run_all.py: {error}", file=sys.stderr)
        return 1
    print(f"Done. Open {folder / 'index.html'}")
    return 0


def list_all() -> int:
    print("Profiles (--profile):")
    for path in sorted((runs.DATA / "profiles").glob("*.yaml")):
        print(f"  {path.stem:12}{path.read_text(encoding='utf-8').splitlines()[0].lstrip('# ')}")
    print("\nNotebooks (--only, --from, --until) and their parameters (--set), with the default profile's values:")
    for name in runs.notebooks():
        title = next("".join(c["source"]).splitlines()[0] for c in runs.cells(name) if c["cell_type"] == "markdown")
        print(f"  {name}: {title.lstrip('# ')}")
        for key, (annotation, default) in runs.declared(name).items():
            print(f"      {key}: {annotation} = {default!r}")
    return 0


def run(names: list[str], profile: dict[str, dict[str, Any]], folder: Path, force: bool) -> None:
    log(folder / "run.log")
    for number, name in enumerate(names, 1):
        head = f"[{number}/{len(names)}] {name}"
        if not force and runs.is_done(name, profile[name], folder):
            print(f"{head}: nothing changed, skipped")
            continue
        began = time.monotonic()
        runs.start(name, folder)
        execute(name, profile[name], folder, head)
        page = to_html(folder / "notebooks" / f"{name}.ipynb")
        runs.finish(name, profile[name], folder, also=[folder / "notebooks" / f"{name}.ipynb", page])
        write_index(folder, profile)
        print(f"{head}: done in {time.monotonic() - began:.0f} s", flush=True)
    write_index(folder, profile)


def log(path: Path) -> None:
    """papermill and the notebooks' own output go to the run's log file; the screen shows progress."""
    logger = logging.getLogger("papermill")
    logger.setLevel(logging.DEBUG)
    logger.propagate = False
    logger.handlers = [logging.FileHandler(path, encoding="utf-8")]
    logger.handlers[0].setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))


def execute(name: str, parameters: dict[str, Any], folder: Path, head: str) -> None:
    """Execute a notebook with papermill; the executed notebook is kept, also when it fails.

    Raises:
        RuntimeError: a cell failed; the message names notebook, cell and error.
    """
    import papermill  # imports half of Jupyter: not for --help
    from jupyter_client.kernelspec import KernelSpecManager  # noqa: F401  (a clear ImportError if Jupyter is missing)
    from nbclient.exceptions import DeadKernelError

    output = folder / "notebooks" / f"{name}.ipynb"
    output.parent.mkdir(parents=True, exist_ok=True)
    # the kernel imports this checkout, whatever else is installed
    os.environ["PYTHONPATH"] = os.pathsep.join([str(runs.ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    try:
        papermill.execute_notebook(
            runs.notebooks()[name],
            output,
            parameters,
            kernel_name="python3",
            cwd=runs.NOTEBOOKS,
            progress_bar={"desc": head, "file": sys.stderr},
            log_output=True,
            stderr_file=sys.stderr,  # a stage's own progress
        )
    except papermill.PapermillExecutionError as error:
        raise RuntimeError(f"{name}, cell {error.cell_index + 1}: {error.ename}: {error.evalue}\nSee {output}") from error
    except DeadKernelError as error:
        raise RuntimeError(f"{name}: its kernel died (out of memory, or killed); the last lines are in {output}") from error


def to_html(path: Path) -> Path:
    from nbconvert import HTMLExporter

    page, _ = HTMLExporter(template_name="lab", embed_images=True).from_filename(str(path))
    runs.write_text(path.with_suffix(".html"), page)
    return path.with_suffix(".html")


def record(folder: Path) -> None:
    for path in sorted((folder / "artifacts" / "results").glob("*.json")):
        with runs.atomic(runs.DATA / "results" / path.name) as partial:
            shutil.copyfile(path, partial)
        print(f"recorded data/results/{path.name}")


def write_index(folder: Path, profile: dict[str, dict[str, Any]]) -> None:
    """One page that links notebooks, figures and tables with their captions."""
    from PIL import Image

    def links(kind: str, stem: str, suffixes: tuple[str, ...]) -> str:
        return " · ".join(f'<a href="{kind}/{stem}.{suffix}">{suffix.upper()}</a>' for suffix in suffixes)

    parts = []
    for name in profile:
        if not (folder / "notebooks" / f"{name}.html").is_file():
            continue
        outputs = [Path(output) for output in runs.outputs(name, folder)]
        parts.append(f'<h2><a href="notebooks/{name}.html">{name}</a></h2>')
        for path in outputs:
            if path.suffix == ".png":
                with Image.open(folder / path) as image:
                    caption = html.escape(image.info["Description"])
                parts.append(f'<figure><img src="{path}" alt="{caption}" loading="lazy"><figcaption>{caption} ({links("figures", path.stem, ("png", "pdf"))})</figcaption></figure>')
            elif path.suffix == ".md" and path.parent.name == "tables":
                caption = (folder / path).read_text(encoding="utf-8").splitlines()[0].strip("*")
                parts.append(f"<p>Table: {html.escape(caption)} ({links('tables', path.stem, ('csv', 'md', 'tex'))})</p>")
        if files := [path for path in outputs if path.parts[0] == "artifacts"]:
            parts.append("<p>Files: " + " · ".join(f'<a href="{path}">{path.name}</a>' for path in files) + "</p>")
    style = (
        "body{font:16px/1.5 system-ui;max-width:60rem;margin:2rem auto;padding:0 1rem}"
        "img{max-width:100%}figure{margin:1.5rem 0}figcaption{color:#555}"
    )
    runs.write_text(
        folder / "index.html",
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>SR4G: {folder.name}</title><style>{style}</style>'
        f"<h1>SR4G, profile <em>{html.escape(folder.name)}</em></h1>\n" + "\n".join(parts) + '\n<p><a href="run.log">Log</a></p></html>\n',
    )


if __name__ == "__main__":
    sys.exit(main())
