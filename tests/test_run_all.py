"""run_all.py as a user meets it. Most tests run a small study: a copy of the program with other notebooks."""

import json
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pandas as pd
import psutil
import pytest
from processes import tree, until

import run_all
from sr4g_utils.store.files import ROOT, write_text

# ------------------------------------------------------------------------------------------------------ a small study
ONE = [
    "# 01 · One\n\nA first notebook.",
    'from os import PathLike\n\nrun_folder: str | PathLike = "../runs/small"\nn: int = 3\nbreak_it: bool = False\n'
    "pause: float = 0.0\nsource: str | PathLike | None = None",
    "import pandas as pd\nimport matplotlib.pyplot as plt\nfrom sr4g_utils.store.files import write_text\n"
    'from sr4g_utils.store.run import Run\n\nrun = Run(run_folder, "01_one")',
    'table = pd.DataFrame({"n": range(n)})\nrun.table(table, "numbers", "Numbers & more")',
    'figure, axis = plt.subplots()\naxis.plot(table.n)\nrun.figure(figure, "line", "A line")',
    "import time\nif pause:\n    (run.folder / '.state' / 'pausing').touch()\n    time.sleep(pause)",
    'if source:\n    print(run.read(source).read_text())\nif break_it:\n    raise ValueError("the cat is missing")',
    "def write(path, n):\n    write_text(path, str(n) * 500_000)\n\nrun.stage('numbers.txt', write, n=n)",
]
TWO = [
    "# 02 · Two\n\nA second one.",
    'from os import PathLike\n\nrun_folder: str | PathLike = "../runs/small"\nn: int = 5\ngreeting: str = "hello"',
    'from sr4g_utils.store.run import Run\n\nrun = Run(run_folder, "02_two")\nprint(greeting, n)',
]


def notebook(cells: list[str]) -> nbformat.NotebookNode:
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    made = nbformat.v4.new_notebook(metadata={"kernelspec": kernel, "language_info": {"name": "python"}})
    for i, source in enumerate(cells):
        cell = (nbformat.v4.new_markdown_cell if source.startswith("#") else nbformat.v4.new_code_cell)(source)
        cell["id"] = f"cell-{i}"
        if "run_folder:" in source:
            cell.metadata.tags = ["parameters"]
        made.cells.append(cell)
    return made


class Study:
    """A checkout with small notebooks, and what it takes to run it."""

    def __init__(self, folder: Path, notebooks: dict[str, list[str]] | None = None, profile: str = "") -> None:
        self.folder, notebooks = folder, notebooks or {"01_one": ONE, "02_two": TWO}
        for name, without in (("sr4g_utils", ()), ("data", ("models", "results", "profiles"))):
            shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", *without))
        shutil.copy(ROOT / "run_all.py", folder)
        text = profile or "".join(["# All\n", *(f"{name}:\n" for name in notebooks)])
        write_text(folder / "data" / "profiles" / "miniature.yaml", text)
        (folder / "notebooks").mkdir()
        for name, cells in notebooks.items():
            nbformat.write(notebook(cells), folder / "notebooks" / f"{name}.ipynb")
        self.results = folder / "runs" / "miniature"

    def command(self, *arguments: str) -> list[str]:
        return [sys.executable, str(self.folder / "run_all.py"), *arguments]

    def start(self, *arguments: str, **options) -> subprocess.Popen:
        options = {"cwd": self.folder, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | options
        return subprocess.Popen(self.command(*arguments), text=True, **options)

    def __call__(self, *arguments: str, code: int | None = 0, **options) -> str:
        """The program's whole output, after a check of its exit code (if one is wanted) and of its manners."""
        process = self.start(*arguments, **options)
        out, err = process.communicate(timeout=600)
        output = out + (err or "")
        assert code in (None, process.returncode), (process.returncode, output)
        assert "Traceback" not in output, output
        return output


@pytest.fixture
def study(tmp_path):
    return Study(tmp_path / "a study")  # a path with a space


def kernel_of(process: subprocess.Popen) -> psutil.Process:
    run = psutil.Process(process.pid)
    return until(lambda: [c for c in run.children(recursive=True) if "ipykernel_launcher" in " ".join(c.cmdline())])[0]


def is_gone(process: psutil.Process) -> bool:
    return until(lambda: not process.is_running() or process.status() == psutil.STATUS_ZOMBIE, 60)  # nobody may reap it


def without_timings(path: Path) -> dict:
    """An executed notebook but for when its cells ran and how long they took."""
    found = json.loads(path.read_text())
    found["metadata"].pop("papermill", None)
    for cell in found["cells"]:
        for key in ("papermill", "execution"):
            cell["metadata"].pop(key, None)
    return found


# ---------------------------------------------------------------------------------------- errors before anything runs
@pytest.mark.parametrize(("arguments", "message"), [
    (["--profile", "lunch"], "unknown profile 'lunch': there are along, arms"),
    (["--profile", "nowhere.yaml"], "unknown profile 'nowhere.yaml'"),
    (["--only", "77"], "--only: unknown notebook '77'; there are 01_heuristics, 02_dataset"),
    (["--from", "x"], "--from: unknown notebook 'x'"),
    (["--profile", "coco", "--only", "05"], "the profile coco has no notebook 05_analysis; it runs 01_heuristics"),
    (["--from", "02", "--until", "01"], "--only, --from and --until leave no notebook to run"),
    (["--set", "colour=red"], "--set colour=red: no notebook of this profile has 'colour'"),
    (["--set", "unseen=many"], "--set unseen=many: 02_dataset.unseen must be a whole number or a list [text, …],"),
    (["--set", "02.unseen=1.5"], "--set 02.unseen=1.5: 02_dataset.unseen must be a whole number or a list [text, …],"),
    (["--set", "unseen"], "expected [NOTEBOOK.]KEY=VALUE"),
    (["--refresh", "--set", "unseen=4"], "--refresh is for the profile miniature as it is"),
    (["--runs", "/dev/null/x"], "Not a directory"),
])  # fmt: skip
def test_errors_are_one_line_and_come_first(arguments, message, tmp_path, capsys):
    assert run_all.main(["--runs", str(tmp_path), *arguments]) == 2  # of one option twice, the last counts
    output = capsys.readouterr()
    assert message in output.err and output.err.count("\n") == 1 and output.err.startswith("run_all.py: ")
    assert output.out == "" and list(tmp_path.iterdir()) == []


def test_help_and_lists(capsys, tmp_path):
    with pytest.raises(SystemExit) as stopped:
        run_all.main(["--help"])
    assert stopped.value.code == 0
    text = capsys.readouterr().out
    for option in ("--profile", "--only", "--from", "--until", "--set", "--force", "--list", "--dry-run", "--runs"):
        assert option in text
    assert run_all.main(["--list"]) == 0
    listed = capsys.readouterr().out
    assert "  coco        " in listed and "  02_dataset: 02 · Dataset" in listed and "crowds: bool = False" in listed
    assert run_all.main(["--dry-run", "--set", "unseen=9", "--only", "02", "--runs", str(tmp_path)]) == 0
    planned = capsys.readouterr().out
    assert "02_dataset  (to run)" in planned and "unseen = 9" in planned and "01_heuristics" not in planned
    assert list(tmp_path.iterdir()) == []


# ------------------------------------------------------------------------------------------------- what a run leaves
def test_a_run_its_results_and_what_is_skipped(study):
    output = study()
    assert "[1/2] 01_one: done in" in output and f"Open {study.results / 'index.html'}" in output
    assert re.search(r"01_one: 100%.*9/9 \[\d\d:\d\d", output), "progress shows notebook, cell and elapsed time"
    left = ("notebooks/01_one.ipynb", "notebooks/01_one.html", "tables/numbers.csv", "tables/numbers.md", "run.log",
            "tables/numbers.tex", "figures/line.png", "figures/line.pdf", "artifacts/numbers.txt")  # fmt: skip
    assert all((study.results / name).stat().st_size for name in left)
    index = (study.results / "index.html").read_text()
    for text in ("Numbers &amp; more", "A line", "tables/numbers.tex", "figures/line.pdf", "notebooks/02_two.html",
                 "run.log", "01 · One", "artifacts/numbers.txt"):  # fmt: skip
        assert text in index
    assert all((study.results / link).exists() for link in re.findall(r'(?:href|src)="([^"]+)"', index))
    assert "hello 5" in (study.results / "run.log").read_text()

    assert study().count("nothing changed, skipped") == 2


@pytest.mark.slow("whole runs")
def test_what_is_a_reason_to_run_again(study):
    study()
    assert "01_one: nothing changed" in study("--set", "02.n=6") and "6" in (study.results / "run.log").read_text()
    (study.results / "tables" / "numbers.csv").write_text("n\n1\n")
    assert "01_one: done" in study("--only", "01")
    output = study("--only", "01", "--set", "n=4")
    assert "01_one: done" in output and "01_one: replaces its last run there; changed: n. --runs DIR keeps" in output
    assert "01_one: nothing changed" in study("--only", "01", "--set", "n=4")
    (study.folder / "in.txt").write_text("a\n")
    with_input = ("--only", "01", "--set", "source=in.txt")
    assert "01_one: done" in study(*with_input) and "nothing changed" in study(*with_input)
    (study.folder / "in.txt").write_text("b\n")
    assert "01_one: done" in study(*with_input)
    plots = study.folder / "sr4g_utils" / "dataset" / "figures.py"
    plots.write_text(plots.read_text() + "# a comment\n")
    assert "01_one: nothing changed" in study(*with_input)
    plots.write_text(plots.read_text() + "MORE = True\n")
    before = (study.results / "artifacts" / "numbers.txt").stat().st_mtime_ns
    assert "01_one: done" in study(*with_input)
    assert (study.results / "artifacts" / "numbers.txt").stat().st_mtime_ns == before, "a plot repeats no stage"
    assert "01_one: done" in study(*with_input, "--force")


def test_only_the_second_and_paths_that_are_seen_from_the_caller(study, tmp_path):
    study("--only", "02")
    assert (study.results / "notebooks" / "02_two.html").exists()
    assert not (study.results / "notebooks" / "01_one.ipynb").exists()
    (tmp_path / "in.txt").write_text("from the caller")
    (tmp_path / "mine.yaml").write_text("01_one:\n  source: in.txt\n")
    study("--profile", "mine.yaml", "--runs", "here", cwd=tmp_path)
    assert "from the caller" in (tmp_path / "here" / "mine" / "notebooks" / "01_one.ipynb").read_text()


@pytest.mark.slow("whole runs")
def test_refresh_puts_the_outputs_into_the_checkout(study):
    sources = [cell["source"] for cell in nbformat.read(study.folder / "notebooks" / "01_one.ipynb", 4).cells]
    study("--refresh")
    refreshed = nbformat.read(study.folder / "notebooks" / "01_one.ipynb", 4)
    assert [cell["source"] for cell in refreshed.cells] == sources
    code = [cell for cell in refreshed.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert any("image/png" in output.get("data", {}) for cell in code for output in cell.outputs)
    assert refreshed.metadata["sr4g_source"] and "papermill" not in json.dumps(refreshed)
    assert study().count("nothing changed, skipped") == 2  # outputs are no part of the source


@pytest.mark.slow("whole runs")
def test_what_a_run_says_at_its_end(study):
    output = study()
    made = "1 table, 1 figure, 1 artifact"
    assert re.search(rf"2 of 2 notebooks run in \d\.\d min: {made}\.\nDone\. Open .*index\.html\n", output)
    assert study("--quiet") == ""
    said = json.loads(study("--json", stderr=subprocess.DEVNULL))
    assert said["notebooks"] == {name: {"state": "skipped", "seconds": 0.0} for name in ("01_one", "02_two")}
    assert said["made"] == {"tables": 1, "figures": 1, "artifacts": 1} and said["headline"] == []
    failed = study("--quiet", "--set", "break_it=true", code=1)
    assert failed.startswith("run_all.py: 01_one, cell 8: ValueError: the cat is missing")


# --------------------------------------------------------------------------------------------- failures on the way
def test_a_failing_cell(study):
    output = study("--set", "break_it=true", code=1)
    assert "run_all.py: 01_one, cell 8: ValueError: the cat is missing" in output
    partial = study.results / "notebooks" / "01_one.ipynb"
    assert str(partial) in output and "the cat is missing" in partial.read_text()
    assert (study.results / "tables" / "numbers.csv").exists()
    assert not (study.results / "notebooks" / "02_two.ipynb").exists()
    assert "01_one  (to run)" in study("--dry-run", "--set", "break_it=true")
    assert "01_one: done" in study()


def paused(study: Study, seconds: int = 60) -> tuple[subprocess.Popen, psutil.Process]:
    """A run whose first notebook sleeps, and its kernel."""
    process = study.start("--set", f"pause={seconds}")
    kernel = kernel_of(process)
    until((study.results / ".state" / "pausing").exists)
    return process, kernel


@pytest.mark.slow("kills")
def test_a_kernel_that_dies(study):
    process, kernel = paused(study)
    kernel.kill()
    _, err = process.communicate(timeout=300)
    assert process.returncode == 1 and re.search(r"run_all.py: 01_one, cell 7: DeadKernelError: ", err), err


@pytest.mark.slow("kills")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted(study, number):
    process, kernel = paused(study)
    process.send_signal(number)
    _, err = process.communicate(timeout=300)
    last = err.strip().splitlines()[-1]
    assert process.returncode == 130 and last == "run_all.py: interrupted in 01_one, cell 7; run again to go on", err
    assert is_gone(kernel)
    assert "Numbers" in (study.results / "notebooks" / "01_one.ipynb").read_text(), "the partial notebook is kept"
    assert "01_one: done" in study()


@pytest.mark.slow("kills")
def test_a_second_run_is_refused_while_the_first_or_its_kernel_lives(study):
    first, kernel = paused(study, 600)
    refused = study(code=2)
    assert re.fullmatch(r"run_all.py: .*miniature is in use by another run or its kernel; wait .*\n", refused)
    kernel.suspend()  # so that it cannot notice that its parent is gone
    first.kill()
    first.wait()  # not communicate: the kernel holds the pipes
    assert "is in use by another run or its kernel" in study(code=2)
    kernel.resume()
    assert is_gone(kernel)
    study()


@pytest.mark.slow("whole runs")
def test_a_full_disk(study):
    """No file may grow beyond 400 kB: what a full disk does, without one."""
    output = study(code=1, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, 400_000)))
    assert re.search(r"run_all.py: 01_one, cell 9: OSError: \[Errno 27\]", output), output
    assert not (study.results / "artifacts" / "numbers.txt").exists()
    assert "01_one: done" in study()


@pytest.mark.slow("whole runs")
@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("unshare"), reason="mounting a small disk needs root")
def test_a_really_full_disk(study, tmp_path):
    (disk := tmp_path / "disk").mkdir()
    script = 'mount -t tmpfs -o size=200k tmpfs "$1" && exec "$2" "$3" --runs "$1"'
    command = ["unshare", "--mount", "sh", "-c", script, "sh", str(disk), *study.command()]
    done = subprocess.run(command, capture_output=True, text=True)
    if "permission denied" in done.stderr.lower():
        pytest.skip("mounting is not allowed here")
    assert done.returncode == 1 and re.search(r"run_all.py: .*(No space left|the disk is full)", done.stderr)
    assert "Traceback" not in done.stderr.rpartition("run_all.py:")[2]  # ipykernel may complain of its own death before


# ------------------------------------------------------------------------------------- the project's own notebooks
@pytest.mark.slow("kills")
def test_killed_at_random_moments_then_the_same_bytes(shared, tmp_path):
    """Notebook 02 on real annotations, killed again and again: the run that ends is like one undisturbed."""
    excerpt = shared / "coco_excerpt" / "annotations"
    (tmp_path / "p.yaml").write_text(
        f"02_dataset:\n  train_annotations: {excerpt}/instances_train2017.json\n"
        f"  val_annotations: {excerpt}/instances_val2017.json\n  photos: {shared}/coco_excerpt/train2017\n"
    )

    def start(runs: str) -> subprocess.Popen:
        where = ["--profile", str(tmp_path / "p.yaml"), "--runs", str(tmp_path / runs)]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        return subprocess.Popen([sys.executable, str(ROOT / "run_all.py"), *where], text=True, **pipes)

    began = time.monotonic()
    undisturbed = start("undisturbed")
    assert undisturbed.wait(timeout=300) == 0, undisturbed.communicate()[0]
    took = time.monotonic() - began
    rng = random.Random(0)
    for _ in range(5):
        process = start("killed")
        time.sleep(rng.uniform(0.2, 0.95) * took)
        process.kill()
        process.communicate()

    def ends_well() -> bool:
        process = start("killed")
        output, _ = process.communicate(timeout=300)
        assert process.returncode == 0 or "in use by another run or its kernel" in output, output
        return process.returncode == 0

    until(ends_well)  # the kernel of the last one may live for a moment
    folders = [tmp_path / name / "p" for name in ("undisturbed", "killed")]
    parts = ("artifacts", "tables", "figures")
    one, two = ({(part, name): text for part in parts for name, text in tree(f / part).items()} for f in folders)
    assert len(one) > 30 and one.keys() == two.keys() and [name for name in one if one[name] != two[name]] == []
    one, two = (without_timings(folder / "notebooks" / "02_dataset.ipynb") for folder in folders)
    assert json.dumps(one).replace("/undisturbed/", "/killed/") == json.dumps(two)
    assert len(pd.read_parquet(folders[0] / "artifacts" / "prompts.parquet")) > 1000
