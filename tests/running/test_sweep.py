"""Sweeps: the grid, stages that are made once, runs that fail or are killed, and jobs of a cluster."""

import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import processes
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_run_all import Study, is_gone, kernel_of

import run_all
from sr4g_utils.running import sweep
from sr4g_utils.store import run
from sr4g_utils.store.files import ROOT


def test_the_grid_is_the_product_in_order():
    made = sweep.grid(["03.seed=0,1", "rules=visor, sg2im"])
    expected = [[f"03.seed={seed}", f"rules={rules}"] for seed in (0, 1) for rules in ("visor", "sg2im")]
    assert list(made.items()) == [(",".join(settings), settings) for settings in expected]
    # commas in brackets and quotation marks part no values
    made = sweep.grid(["splits=[main, unseen],[main]", "sampling={a: {b: 1, c: 2}},{a: 1}", "model='a,b',c"])
    assert len(made) == 8
    assert next(iter(made.values())) == ["splits=[main, unseen]", "sampling={a: {b: 1, c: 2}}", "model='a,b'"]


def test_a_run_that_is_not_through_tells_no_minutes_of_a_whole_one(tmp_path):
    (tmp_path / "notebooks").mkdir()
    for name, seconds in (("01_a", 60), ("02_b", 120), ("03_c", None)):
        text = json.dumps({"metadata": {"papermill": {"duration": seconds}}})
        (tmp_path / "notebooks" / f"{name}.ipynb").write_text(text)
    assert sweep.measured_minutes(tmp_path) == sweep.measured_minutes(tmp_path, ["01_a", "02_b"]) == 3
    assert sweep.measured_minutes(tmp_path, ["01_a", "03_c"]) is None
    assert sweep.measured_minutes(tmp_path, ["04_d"]) is None and sweep.measured_minutes(tmp_path / "none") is None


VALUES = st.lists(st.text(st.characters(codec="utf-8", exclude_characters=",'\"[]{}()"), min_size=1).map(str.strip)
                  .filter(bool), min_size=1, max_size=4, unique=True)  # fmt: skip


@given(st.lists(VALUES, min_size=1, max_size=3))
def test_every_combination_has_a_folder_of_its_own(axes):
    made = sweep.grid([f"k{i}={','.join(values)}" for i, values in enumerate(axes)])
    assert len(made) == math.prod(map(len, axes))
    for name, settings in made.items():
        assert re.fullmatch(r"[\w.,=+-]{1,90}", name), "a plain name"
        assert [setting.partition("=")[2] in values for setting, values in zip(settings, axes, strict=True)]


@pytest.mark.parametrize(("sweeps", "message"), [
    (["seed"], "--sweep seed: expected"), (["=1"], "--sweep =1: expected"), (["seed="], "no value empty"),
    (["seed=0,,1"], "no value empty"), (["seed=0,1,0"], "the value 0 occurs twice"),
    (["seed=0", "seed=1"], "seed is swept already"),
])  # fmt: skip
def test_a_grid_that_is_none_is_refused(sweeps, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        sweep.grid(sweeps)


ONE = [
    "# 01 · One\n\nA stage that both shades need, and one of each shade.",
    'from os import PathLike\n\nrun_folder: str | PathLike = "../runs/small"\nn: int = 3\nshade: str = "red"\n'
    'pause: float = 0.0\nbroken: str = ""',
    "import os, time\nfrom sr4g_utils.store.files import write_text\nfrom sr4g_utils.store.run import Run\n"
    'run = Run(run_folder, "01_one")\n\n'
    "def make(path, text):\n    with open(os.environ['MADE'], 'a') as file:\n        file.write(text + '\\n')\n"
    "    time.sleep(0.5)\n    write_text(path, text)\n",
    "run.stage('common.txt', make, text=f'common {n}')",
    "time.sleep(pause)\nif shade == broken:\n    raise ValueError(f'no {shade} today')",
    "run.stage('own.txt', make, text=f'{shade} {n}')",
]


@pytest.fixture
def study(tmp_path, monkeypatch):
    study = Study(tmp_path / "a study", {"01_one": ONE})
    monkeypatch.setenv("MADE", str(tmp_path / "made.txt"))
    study.results = study.folder / "runs" / "miniature_sweep"
    study.made = lambda: sorted((tmp_path / "made.txt").read_text().splitlines())
    return study


GRID = ("--sweep", "n=1,2", "--sweep", "shade=red,blue")
ALL = ["blue 1", "blue 2", "common 1", "common 2", "red 1", "red 2"]


@pytest.mark.slow("whole runs")
def test_a_sweep_and_what_its_runs_share(study):
    assert "n=1,shade=blue: 0 of 1 notebooks done; hours not measured" in study(*GRID, "--dry-run")
    assert not study.results.exists()
    output = study(*GRID, "-j", "2")
    assert output.count(": started") == output.count(": done in") == 4
    assert study.made() == ALL, "each stage was made once"
    files = [study.results / f"n={n},shade={c}" / "artifacts" / "common.txt" for n in (1, 2) for c in ("red", "blue")]
    assert [file.read_text() for file in files] == ["common 1"] * 2 + ["common 2"] * 2
    assert files[0].stat().st_ino == files[1].stat().st_ino, "one file on the disk"
    again = study(*GRID)
    assert again.count(": done in") == 4 and study.made() == ALL
    assert "nothing changed, skipped" in (study.results / "n=1,shade=red.txt").read_text()
    alone = ("--profile", str(study.results / "n=2,shade=red.yaml"), "--runs", str(study.results))
    assert "nothing changed, skipped" in study(*alone), "each run can be repeated alone"
    assert re.search(r"n=1,shade=red: 1 of 1 notebooks done; \d+\.\d min when it ran", study(*GRID, "--dry-run"))


@pytest.mark.slow("whole runs")
def test_a_failure_is_named_and_the_others_are_finished(study):
    output = study(*GRID, "--set", "broken=red", code=1)
    for n in (1, 2):
        assert f"run_all.py: n={n},shade=red failed: 01_one, cell 6: ValueError: no red today" in output
        assert (study.results / f"n={n},shade=blue" / "artifacts" / "own.txt").read_text() == f"blue {n}"
    study(*GRID)
    assert study.made() == ALL


@pytest.mark.parametrize(("arguments", "message"), [
    (["--sweep", "colour=1,2"], "--sweep colour=1: no notebook of this profile has 'colour'"),
    (["--sweep", "unseen=1,two"], "02_dataset.unseen must be a whole number or a list [text, …], got 'two'"),
    (["--sweep", "unseen=1,2", "--verify"], "are for one run"),
    (["--sweep", "unseen=1,2", "--on", "slurm", "--job", "time"], "--job time: expected KEY=VALUE"),
    (["--sweep", "unseen=1,2", "--on", "local", "--job", "colour=1"], "--job colour=1: Parameter 'colour'"),
    (["--sweep", "unseen=1,2", "--on", "slurm", "--job", "nodes=a", "--dry-run"], 'nodes" expected a whole number'),
    (["--summary", "."], "holds no run with scores"),
])  # fmt: skip
def test_what_cannot_be_is_said_before_anything_runs(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    if "--on" in arguments:  # submitit sets up logging when it is imported, which closes what pytest listens with
        command = [sys.executable, ROOT / "run_all.py", *arguments, "--runs", "runs"]
        done = subprocess.run(command, capture_output=True, text=True)
        code, out, err = done.returncode, done.stdout, done.stderr
    else:
        code = run_all.main([*arguments, "--runs", "runs"])
        out, err = capsys.readouterr()
    assert code == 2 and message in err and err.count("\n") == 1 and out == ""
    assert not list(tmp_path.glob("runs/miniature_sweep/*/artifacts"))


@pytest.mark.slow("kills")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_sweep_that_is_stopped_stops_its_runs_and_goes_on(study, number):
    process = study.start(*GRID, "--set", "pause=60", "-j", "2")
    kernel = kernel_of(process)
    processes.until((study.results / "n=1,shade=red" / "artifacts" / "common.txt").exists)
    process.send_signal(number)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 130 and err.strip().endswith("run_all.py: interrupted; run again to go on")
    assert is_gone(kernel)
    study(*GRID)
    assert study.made() == ALL


@pytest.mark.slow("kills")
def test_a_sweep_that_is_killed_leaves_runs_that_nobody_starts_twice(study):
    process = study.start(*GRID, "--set", "pause=6")
    processes.until((study.results / "n=1,shade=red" / "artifacts" / "common.txt").exists)
    kernel = kernel_of(process)
    kernel.suspend()  # until the next one was refused, however long it takes to start
    process.kill()
    process.wait()
    assert "miniature_sweep is in use by another run or its kernel; wait" in study(*GRID, code=2)
    kernel.resume()
    processes.until((study.results / "n=1,shade=red" / "artifacts" / "own.txt").exists)
    processes.until(lambda: "in use" not in study(*GRID, "--set", "pause=0", code=None))
    assert study.made() == ALL


@pytest.mark.slow("whole runs")
def test_jobs_of_a_cluster(study):
    pytest.importorskip("submitit", reason="needs the extra `cluster`: pip install submitit")
    output = study(*GRID, "--on", "local", "--job", "timeout_min=5")
    assert len(re.findall(r"n=\d,shade=\w+: job \d+", output)) == 4 and "a job has 5 min" in output
    for name in ("n=1,shade=red", "n=1,shade=blue", "n=2,shade=red", "n=2,shade=blue"):
        processes.until((study.results / name / ".state" / "01_one.done.json").exists)
    assert study.made() == ALL


class FakeJob:
    """A job of submitit that is through when it was looked at three times."""

    def __init__(self, job: object, number: int, error: Exception | None) -> None:
        self.job, self.job_id, self.error, self.looks = job, number, error, 0

    def done(self) -> bool:
        self.looks += 1
        return self.looks > 3

    def exception(self) -> Exception | None:
        return self.error


def test_jobs_here_run_so_many_at_a_time_and_one_that_is_lost_fails_the_sweep(tmp_path, monkeypatch, capsys):
    from sr4g_utils.running import cluster

    monkeypatch.setattr(cluster.time, "sleep", lambda _: None)
    most, made = [], []
    errors = [None, RuntimeError("the cat is missing"), LookupError("Job has not produced any output"), None, None]

    def submit(job: object) -> FakeJob:
        most.append(1 + sum(other.looks <= 3 for other in made))
        made.append(FakeJob(job, len(made), errors[len(made)]))
        return made[-1]

    (tmp_path / "c.txt").write_text("[2/5] 02_dataset: done\n")
    work = {name: cluster.Job(["true"], tmp_path / f"{name}.txt", {}) for name in "abcde"}
    jobs = cluster._run_here(SimpleNamespace(submit=submit), work, 2)
    assert (
        max(most) == 2 and all(job.looks > 3 for job in jobs.values()) and "e: job 4, output" in capsys.readouterr().out
    )
    failed = cluster.failures(jobs, tmp_path)
    assert failed["b"] == "the cat is missing" and failed["c"].startswith("its job was lost; [2/5] 02_dataset: done")
    assert list(failed) == ["b", "c"]


def test_a_sweep_says_how_far_its_runs_are_and_how_long_the_rest_takes(tmp_path):
    script = "echo '[1/2] 01_one:  50%|'; echo '[2/2] 02_two: done in 1 s'; while [ ! -e {0}.go ]; do sleep 0.1; done"
    told: list[str] = []

    def say(text: str) -> None:
        told.append(text)
        if "[2/2] 02_two" in text:
            (tmp_path / f"{text.partition(':')[0]}.go").touch()

    commands = {name: ["sh", "-c", script.format(tmp_path / name)] for name in ("a", "b")}
    with (tmp_path / ".lock").open("w") as held:
        assert sweep.run(commands, tmp_path, 1, say, held.fileno()) == {}
    assert f"a: started; output {tmp_path}/a.txt" in told and "a: [2/2] 02_two" in told
    assert re.search(r"a: done in \d+ s; 1 left, some \d+\.\d min", "\n".join(told))
    assert re.fullmatch(r"b: done in \d+ s", told[-1])


def test_a_job_goes_on_when_its_time_is_up(tmp_path):
    helpers = pytest.importorskip("submitit.helpers", reason="needs the extra `cluster`: pip install submitit")
    from sr4g_utils.running.cluster import Job

    job = Job(["sh", "-c", "echo $COLOUR; exit 3"], tmp_path / "out.txt", {"COLOUR": "red"})
    again = job.checkpoint()
    assert isinstance(again, helpers.DelayedSubmission) and again.function is job
    with pytest.raises(RuntimeError, match=r"red \(all of it: .*out\.txt\)"):
        job()


@pytest.fixture
def store(tmp_path, monkeypatch):
    monkeypatch.setenv("SR4G_STAGES", str(tmp_path / "stages"))
    return tmp_path


def test_processes_that_need_a_stage_at_once_make_it_once(store):
    def work(i: int) -> None:
        def make() -> int:
            with (store / "made").open("a") as file:
                file.write(f"{i}\n")
            time.sleep(0.3)
            (store / f"run{i}").mkdir()
            (store / f"run{i}" / "picture.webp").write_bytes(b"x" * 100)
            (store / f"run{i}" / "log.jsonl").write_text("{}\n")
            return 7

        assert run.made(store / f"run{i}", "key", make) == 7

    started = [processes.fork(lambda i=i: work(i), store / f"log{i}") for i in range(6)]
    assert [processes.wait(each) for each in started] == [0] * 6
    assert len((store / "made").read_text().splitlines()) == 1
    pictures = {(store / f"run{i}" / "picture.webp").stat().st_ino for i in range(6)}
    logs = {(store / f"run{i}" / "log.jsonl").stat().st_ino for i in range(6)}
    assert len(pictures) == 1 and len(logs) == 6, "what is written on is everybody's own"


def test_a_process_that_is_killed_at_it_lets_the_next_one_make_it(store):
    def slow() -> None:
        (store / "begun").write_text("")
        time.sleep(60)

    first = processes.fork(lambda: run.made(store / "a", "key", slow), store / "log")
    processes.until((store / "begun").exists)
    os.kill(first, signal.SIGKILL)
    processes.wait(first)
    assert run.made(store / "b", "key", lambda: (store / "b").write_text("whole")) == 5


def test_a_shared_stage_that_is_damaged_is_made_again(store):
    def make(path: Path) -> str:
        path.write_text("whole")
        return "made"

    run.made(store / "a", "key", lambda: make(store / "a"))
    os.truncate(store / "a", 2)  # and with it the file that is shared
    assert run.made(store / "b", "key", lambda: make(store / "b")) == "made"
    assert (store / "b").read_text() == "whole"
    record = json.loads((store / "stages" / "key" / "record.json").read_text())
    assert record["result"] == "made"
    assert run.made(store / "b", "key", lambda: 1 / 0) == "made", "its own link is replaced by itself"
    assert sorted(path.name for path in store.iterdir()) == ["a", "b", "stages"]


def test_without_a_store_nothing_is_shared(tmp_path, monkeypatch):
    monkeypatch.delenv("SR4G_STAGES", raising=False)
    assert run.made(tmp_path / "a", "key", lambda: 1) == 1
    assert run.made(tmp_path / "a", "key", lambda: 2) == 2 and not list(tmp_path.iterdir())


@pytest.mark.parametrize("options,says", [
    (["--job", "timeout_min=10"], "--job is for jobs that are submitted"),
    (["--set", "seed=3"], "--set seed: --sweep varies it"),
])  # fmt: skip
def test_what_a_sweep_would_ignore_is_refused(options, says, capsys):
    assert run_all.main(["--profile", "smoke", "--sweep", "seed=0,1", *options]) == 2
    assert says in capsys.readouterr().err
