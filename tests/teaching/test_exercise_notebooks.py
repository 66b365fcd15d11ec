"""The exercises' notebooks: solutions pass, stripped ones fail, nbgrader releases and grades them unchanged."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import nbformat
import numpy as np
import pytest
from nbclient import NotebookClient

from sr4g_utils.store.files import ROOT
from sr4g_utils.teaching.answer import CounterExample

FOLDER = ROOT / "notebooks" / "exercises"
NAMES = sorted(path.name for path in (FOLDER / "source").iterdir())
OTHERS = [pytest.param(name, marks=pytest.mark.slow("kernels")) for name in NAMES[1:]]
POINTS = {"1_relation": 10, "2_dice": 10, "3_laws": 14, "4_intervals": 12, "5_split": 11, "6_kappa": 7}


def read(step: str, name: str) -> nbformat.NotebookNode:
    return nbformat.read(FOLDER / step / name / f"{name}.ipynb", as_version=4)


@pytest.mark.parametrize("name", [NAMES[0], *OTHERS])
def test_a_notebook_runs_with_its_solutions_and_every_check_accepts(name, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    notebook = read("source", name)
    folder = {"metadata": {"path": str(tmp_path)}}
    NotebookClient(notebook, timeout=600, kernel_name="python3", resources=folder).execute()
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    graded = [cell for cell in code if cell.metadata.get("nbgrader", {}).get("grade")]
    for cell in graded:
        told = "".join(output.get("text", "") for output in cell.outputs)
        assert told.startswith("✓ "), cell.source
    errors = [o for cell in code for o in cell.outputs if o.output_type == "stream" and o.name == "stderr"]
    assert not errors, "nbgrader takes anything on stderr for a failure"
    utils = pytest.importorskip("nbgrader.utils", reason="nbgrader is not installed (the extra `teach`)")
    assert all(got == most for got, most in map(utils.determine_grade, graded))
    written = [cell for cell in notebook.cells if cell.metadata.get("nbgrader", {}).get("grade")]
    assert sum(cell.metadata.nbgrader.points for cell in written) == POINTS[name]


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_is_as_it_should_be_and_its_stripped_version_fails_every_check(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    space: dict = {"display": lambda *shown: None}
    refusals = 0
    for cell in read("release", name).cells:
        if cell.cell_type != "code":
            continue
        if cell.metadata.get("nbgrader", {}).get("grade"):
            with pytest.raises(CounterExample):
                exec(cell.source, space)
            refusals += 1
        else:
            try:
                exec(cell.source, space)
            except (NotImplementedError, ValueError) as error:
                assert isinstance(error, NotImplementedError) or "answer each picture once" in str(error)
    plt.close("all")
    assert refusals >= 2
    text = json.dumps(read("release", name))
    assert "SOLUTION" not in text and "YOUR CODE HERE" in text and "YOUR ANSWER HERE" in text
    # the notebook opens with its aim and stays short
    cells = read("source", name).cells
    first = cells[0].source
    assert first.startswith(f"# Exercise {name[0]} · ")
    assert all(f"**{word}**" in first for word in ("Afterwards you can", "You need", "Time"))
    code = [cell.source.splitlines() for cell in cells if cell.cell_type == "code"]
    assert max(map(len, code)) <= 15 and np.median(list(map(len, code))) <= 6
    assert not any(cell.get("outputs") for cell in cells), "a source carries no outputs"
    assert len({cell.id for cell in cells}) == len(cells)


def test_the_page_for_teachers_names_what_is_there():
    assert list(POINTS) == NAMES
    path = ROOT / "docs" / "teaching.md"
    text = path.read_text(encoding="utf-8")
    for link in re.findall(r"\]\((?!http)([^)#]+)\)", text):
        assert (path.parent / link).exists(), link
    assert all(f"release/{name}/{name}.ipynb" in text for name in NAMES)
    for row, kind in (("by the checks", "code"), ("by hand", "markdown")):
        cells = [[c for c in read("source", name).cells if c.cell_type == kind] for name in NAMES]
        points = [sum(c.metadata.get("nbgrader", {}).get("points", 0) for c in each) for each in cells]
        assert f"| {row} | {' | '.join(map(str, points))} |" in text
    code = "from sr4g_utils.teaching import kappa; kappa.pictures().savefig('pictures.pdf')"
    assert code in text and "widget.page()" in text


def python(folder: Path, *arguments: str) -> None:
    """Runs Python in a course's folder, as a teacher does who has nbgrader."""
    pytest.importorskip("nbgrader", reason="nbgrader is not installed (the extra `teach`)")
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])  # it calls alembic by name
    environment = os.environ | {"PATH": path, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=900, env=environment)
    assert not done.returncode, done.stderr


RELEASE = """
import sys
from nbgrader.apps.api import NbGraderAPI
from traitlets.config import Config

config = Config(CourseDirectory={"root": ".", "course_id": "sr4g"})
for name in sys.argv[1:]:
    told = NbGraderAPI(config=config).generate_assignment(name)
    assert told["success"], told["log"]
"""


@pytest.fixture(scope="module")
def course(tmp_path_factory):
    """A course of the six, as a teacher has it who has just released them."""
    folder = tmp_path_factory.mktemp("course")
    shutil.copytree(FOLDER / "source", folder / "source")
    shutil.copy(FOLDER / "nbgrader_config.py", folder)
    python(folder, "-c", RELEASE, *NAMES)
    return folder


@pytest.mark.slow("nbgrader")
@pytest.mark.parametrize("name", NAMES)
def test_the_released_version_is_what_nbgrader_makes_of_the_source(course, name):
    released = nbformat.read(course / "release" / name / f"{name}.ipynb", as_version=4)
    assert released == read("release", name), "run `nbgrader generate_assignment` (docs/teaching.md)"


@pytest.mark.slow("nbgrader")
def test_the_recipe_for_teachers_grades_a_class(tmp_path):
    """The lines of docs/teaching.md in a fresh copy, with release/ as it is in git. Three students: one with the
    solutions, although numpy warns, one who did nothing, one with a wrong answer and a check rewritten."""
    api = pytest.importorskip("nbgrader.api", reason="nbgrader is not installed (the extra `teach`)")
    course, name = tmp_path / "exercises", "1_relation"
    git = ["git", "ls-files", "-z", FOLDER]
    for path in filter(None, subprocess.run(git, cwd=FOLDER, capture_output=True, text=True).stdout.split("\0")):
        (course / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(FOLDER / path, course / path)
    answers = {cell.id: cell.source for cell in read("source", name).cells if cell.metadata.get("nbgrader")}
    students = {student: read("release", name) for student in ("ada", "ben", "eve")}
    for cell in students["ada"].cells:
        if cell.metadata.get("nbgrader", {}).get("solution"):
            cell.source = answers[cell.id]
        if cell.id == "above":
            cell.source = cell.source.replace("### BEGIN", "np.array([1.0]) / 0\n    ### BEGIN")
            cell.source = f"import numpy as np\n{cell.source}"
    wrong = {"above": "def above(subject, object):\n    return False", "check_above": "print('✓ trust me')"}
    for cell in students["eve"].cells:
        cell.source = wrong.get(cell.id, cell.source)
    text = (ROOT / "docs" / "teaching.md").read_text(encoding="utf-8")
    steps = [line.partition("#")[0].split() for line in re.findall(r"^nbgrader (.+)$", text, re.MULTILINE)]
    assert [step[0] for step in steps] == ["generate_assignment", "autograde", "generate_feedback"]
    for step in steps:
        for student, notebook in students.items() if step[0] == "autograde" else ():
            path = course / "submitted" / student / name / f"{name}.ipynb"
            path.parent.mkdir(parents=True)
            nbformat.write(notebook, path)
        python(course, "-m", "nbgrader", *step)
    with api.Gradebook(f"sqlite:///{course / 'gradebook.db'}", "sr4g") as book:
        scores = {student: book.find_submission(name, student).score for student in students}
        most = book.find_assignment(name).max_score
    assert scores == {"ada": 7, "ben": 0, "eve": 0} and most == 10, "three points are for the essay, by hand"
    assert (course / "feedback" / "ada" / name / f"{name}.html").is_file()
    warned = nbformat.read(course / "autograded" / "ada" / name / f"{name}.ipynb", as_version=4)
    assert "divide by zero" in next(cell for cell in warned.cells if cell.id == "check_above").outputs[0].text


def test_a_refusal_in_a_notebook_is_a_picture_and_a_line(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    code = "from sr4g_utils import teaching as exercises\ndef above(s, o):\n    return s[1] > o[1]\n"
    code += "exercises.check_relation(above, 'above')"
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code)])
    NotebookClient(notebook, timeout=600, allow_errors=True, kernel_name="python3").execute()
    picture, error = notebook.cells[0].outputs
    assert "image/png" in picture.data and error.ename == "CounterExample" and len(error.traceback) == 1
