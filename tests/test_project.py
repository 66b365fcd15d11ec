"""The checkout: dependencies, notebooks in step with their outputs, light rooms, short functions, where relations are.

Who may import whom is a contract in pyproject.toml, which `make lint` checks.
"""

import ast
import io
import json
import re
import shutil
import statistics
import subprocess
import sys
import tokenize
import tomllib
from collections.abc import Iterator
from itertools import chain

import grimp
import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from sr4g_utils.dataset import boxes
from sr4g_utils.relations import RULES
from sr4g_utils.running import profiles
from sr4g_utils.store import run
from sr4g_utils.store.files import DATA, PACKAGE, ROOT, read_json

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def test_conda_builds_the_same_environment_and_every_dependency_is_pinned():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    pip = [part for part in environment["dependencies"] if isinstance(part, dict)]
    assert pip == [{"pip": ["--constraint constraints.txt", "-e .[study]"]}], "no second list of packages"
    python = next(part for part in environment["dependencies"] if str(part).startswith("python"))
    assert python.startswith(f"python{PROJECT['requires-python']},"), "none newer than the pinned versions are for"
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    named = (line.partition("==") for line in lines if not line.startswith("#"))
    pinned = {canonicalize_name(name): version for name, _, version in named}
    extras = PROJECT["optional-dependencies"]
    for text in [*PROJECT["dependencies"], *(each for extra in extras if extra != "fid" for each in extras[extra])]:
        requirement = Requirement(text)
        if requirement.name != PROJECT["name"]:
            assert pinned[canonicalize_name(requirement.name)] in requirement.specifier, text


NAMES = {"yaml": "pyyaml", "PIL": "pillow", "bs4": "nbconvert", "nbclient": "papermill", "docutils": "sphinx"}
BY_CHOICE = {"peft", "bitsandbytes"}  # for a parameter of fine-tuning, whose error names them


def imported(*sources: str) -> set[str]:
    """The packages that sources import, inside functions, too."""
    found = set()
    for node in (node for source in sources for node in ast.walk(ast.parse(source))):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found.add(str(node.module).partition(".")[0])
    own = {"run_all", PROJECT["name"], *(path.stem for path in (ROOT / "tests").rglob("*.py"))}
    return {canonicalize_name(NAMES.get(name, name)) for name in found - own - set(sys.stdlib_module_names)} - BY_CHOICE


def declared(*extras: str) -> set[str]:
    """The packages of the light install and of extras, with those extras that an extra names."""
    names, lists = set(), [PROJECT["dependencies"], *(PROJECT["optional-dependencies"][extra] for extra in extras)]
    for requirement in (Requirement(text) for text in chain(*lists)):
        own = requirement.name == PROJECT["name"]
        names |= declared(*requirement.extras) if own else {canonicalize_name(requirement.name)}
    return names


def test_every_import_is_declared_and_each_install_brings_what_it_is_for():
    """Of the package, the runner and the notebooks; of the tests, with the extra."""
    code = [path.read_text(encoding="utf-8") for path in (*(ROOT / "sr4g_utils").rglob("*.py"), ROOT / "run_all.py")]
    for name in profiles.notebooks():
        code += ["".join(cell["source"]) for cell in profiles.cells(name) if cell["cell_type"] == "code"]
    assert imported(*code) - declared("study", "cluster", "site", "fid", "reward") == set()
    tests = [path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("*.py")]
    assert imported(*tests) - declared("all", "bench", "fid") == set()
    assert not declared() & {"torch", "scipy", "matplotlib", "jupyterlab"}
    assert not declared("models") & {"matplotlib", "jupyterlab", "pytest"}
    assert not declared("study") & (declared("test") - declared()) and "anywidget" in declared("study")


def test_quick_tests_cover_every_room():
    """`make test` leaves out what is marked as slow, with a reason; most tests of each room are quick."""
    marked, whole = re.compile(r"mark\.slow\b(\(\"[^\"]+\"\))?"), re.compile(r"\npytestmark = \[?\s*pytest\.mark\.slow")
    for room in {path.parent.relative_to(ROOT / "sr4g_utils") for path in (ROOT / "sr4g_utils").rglob("__init__.py")}:
        tests = slow = 0
        own = ROOT / "tests" / room
        for path in [*own.glob("test_*.py"), *own.parent.glob(f"test_{room.name}.py")]:
            text = path.read_text(encoding="utf-8")
            assert all(marked.findall(text)), f"{path}: give the reason"
            tests += (here := text.count("\ndef test_"))
            slow += here if whole.search(text) else len(marked.findall(text))
        assert slow < tests / 2, room


@pytest.mark.parametrize("name", list(profiles.load_profile("miniature", [], ROOT)))
def test_a_notebook_carries_the_outputs_of_its_source(name):
    path = profiles.notebooks()[name]
    found = json.loads(path.read_text(encoding="utf-8"))
    code = [cell for cell in found["cells"] if cell["cell_type"] == "code"]
    how = f"{name} has changed since its outputs were made: run `make notebooks`"
    assert found["metadata"].get("sr4g_source") == profiles.source_digest(name), how
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1)), how
    outputs = [output for cell in code for output in cell["outputs"]]
    assert outputs and not [output for output in outputs if output["output_type"] == "error"]
    assert path.stat().st_size < 1 << 20
    assert not re.search(r"/(home|root|tmp|work)/", json.dumps(found)), "no paths of the machine that made them"
    ids = [cell["id"] for cell in found["cells"]]
    assert all(ids) and len(set(ids)) == len(ids)


@pytest.mark.parametrize("name", list(profiles.notebooks()))
def test_a_notebook_opens_with_what_it_is(name):
    cells = profiles.cells(name)
    assert re.match(rf"# {name[:2]} · ", "".join(cells[0]["source"]))
    for word in ("you can", "Reproduces", "Needs", "Reads", "Writes"):
        assert re.search(rf"\*\*[^*]*{word}\*\*", "".join(cells[0]["source"])), word
    assert profiles.declared(name)["run_folder"] == ("str | PathLike", "../runs/miniature")


@pytest.mark.parametrize("name", list(profiles.notebooks()))
def test_the_cells_are_short_and_the_branches_are_elsewhere(name):
    code = [cell for cell in profiles.cells(name) if cell["cell_type"] == "code"]
    sources = ["".join(cell["source"]) for cell in code if "parameters" not in cell["metadata"].get("tags", [])]
    lines = [len([line for line in source.splitlines() if line.strip()]) for source in sources]
    assert statistics.median(lines) <= 6 and max(lines) <= 17, name
    trees = [ast.parse(source) for source in sources]
    functions = [node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    assert all((node.end_lineno or 0) - node.lineno < 15 for node in functions), "a twin has 15 lines at most"
    inside = {child for node in functions for child in ast.walk(node)}
    for source, tree in zip(sources, trees, strict=True):
        assert not [n for n in ast.walk(tree) if isinstance(n, ast.If) and n not in inside], source


def test_what_is_said_of_the_loops_cost_is_measured():
    cells = ["".join(cell["source"]) for cell in profiles.cells("02_dataset")]
    (said,) = [source for source in cells if "formats.md#how-fast" in source]
    measured = (ROOT / "docs" / "formats.md").read_text(encoding="utf-8").partition("## How fast")[2]
    numbers = re.findall(r"\d[\d.,]* (?:s|GB|captions)\b", said)
    assert len(numbers) >= 5 and [number for number in numbers if number not in measured] == []


def recorded(name):
    return read_json(DATA / "results" / "coco" / f"{name}.json")["rows"]


def test_the_recorded_tables_of_coco_are_those_of_the_paper():
    funnel = {row["step"]: row["train"] for row in recorded("funnel")}
    captions = sum(row["captions"] for row in recorded("captions_per_relation"))
    assert funnel["captions (distinct triplets per image)"] == captions
    assert funnel["distinct triplets of different categories"] == 62_460
    for name, n in (("objects", 80), ("pairs", 5_338)):
        table = recorded(name)
        assert [row["rank"] for row in table] == [*range(1, 11), *range(n - 9, n + 1)]
        assert [row["captions"] for row in table] == sorted((row["captions"] for row in table), reverse=True)


def test_the_recorded_numbers_are_the_ones_to_meet():
    """What the offline profile shows of COCO comes from a recorded run."""
    kind = {"images": "train", "rules": "visor", "boxes": "all boxes"}
    rows = [row for row in recorded("reconstruction") if row.items() >= kind.items()]
    found = {(row["counted"], row["categories"]): row["n"] for row in rows}
    assert found["triplets per image", "all"] == 9_815_810 and found["distinct triplets", "different"] == 62_460
    assert found["triplets per image", "different"] == 8_171_342
    agreement = recorded("human_agreement")
    left = [r for r in agreement if r["relation"] == "left of" and r["frame"] == "all"]
    precision = {r["rules"]: round(r["precision"], 3) for r in left}
    assert precision.items() >= {"visor": 0.715, "sg2im": 0.892, "sstd": 0.911}.items() and set(precision) <= set(RULES)
    measures = [f"{m}{end}" for m in ("accuracy", "precision", "recall", "kappa") for end in ("", "_low", "_high")]
    assert list(left[0]) == ["relation", "rules", "frame", "n", *measures]
    assert all(r["kappa_low"] <= r["kappa_high"] for r in left)
    assert sum(r["n"] for r in agreement if r["rules"] == "visor" and r["frame"] == "all") == 6_197


def test_eighty_categories(shared):
    lines = (shared / "coco2017" / "categories.csv").read_text().splitlines()[1:]
    ours = {str(category.id): category.name for category in boxes.COCO_CATEGORIES}
    assert ours == {line.split(",")[0]: line.split(",")[2] for line in lines}


def test_the_citation_is_valid():
    cffconvert = shutil.which("cffconvert")
    if not cffconvert:
        pytest.skip("no cffconvert; it wants an old jsonschema: pip install it into an environment of its own")
    done = subprocess.run([cffconvert, "--validate"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


HEAVY = ("torch", "diffusers", "transformers")
# Rooms that import nothing heavy: inside functions they may. Of models, what the commands' --help needs.
LIGHT = ("relations", "store", "dataset", "evaluation", "analysis", "people", "teaching", "running")
LIGHT_MODULES = ("finetuning.choices", *(f"models.{name}" for name in ("source", "checks", "sampling", "names", "hub")))

# What is longer than a screen, and why.
LINES_OF_FUNCTION, LINES_OF_MODULE = 45, 500
LONG_FUNCTIONS = {
    "sr4g_utils/finetuning/loop.py train": "the loop itself, read from top to bottom",
    "sr4g_utils/finetuning/card.py card": "the text of a card, line by line",
    "tests/tiny.py stable_diffusion": "the configuration of a published model, key by key",
}
LONG_MODULES: dict[str, str] = {}

MODULES = {
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(PACKAGE.rglob("*.py"))
    if path.parent != PACKAGE or path.stem != "__init__"
}


def test_what_a_stage_depends_on_is_what_it_imports() -> None:
    """The run folder's reading of imports, of which its hashes of code are made, misses none that the linter sees."""
    graph = grimp.build_graph(PACKAGE.name, cache_dir=None)
    for module, path in MODULES.items():
        name = f"{PACKAGE.name}.{module}"
        found = run.imports(name, ast.parse(path.read_text(encoding="utf-8")))
        assert found >= graph.find_modules_directly_imported_by(name), module


def python(code: str, *arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-c", code, *arguments], cwd=ROOT, capture_output=True, text=True)


def test_light_rooms_import_nothing_heavy() -> None:
    rooms = [name for name in MODULES if name.split(".")[0] in LIGHT and "__main__" not in name]
    code = (
        "import importlib, sys\n"
        f"for room in {[*rooms, *LIGHT_MODULES]}:\n"
        f"    importlib.import_module('{PACKAGE.name}.' + room)\n"
        f"    if heavy := sorted(set(sys.modules) & set({HEAVY})):\n"
        "        sys.exit(f'{room} imports {heavy}')\n"
    )
    done = python(code)
    assert done.returncode == 0 and done.stdout + done.stderr == "", done.stderr


@pytest.mark.parametrize("command", [
    "run_all.py", "sr4g_utils.models.miniature", "sr4g_utils",
    *(f"sr4g_utils {name}" for name in ("generate", "detect", "score", "finetune", "kit", "answers")),
])  # fmt: skip
def test_help_needs_nothing_heavy_and_says_nothing_else(command: str) -> None:
    command, *arguments = command.split()
    code = (
        "import runpy, sys\n"
        "class Refuse:\n"
        "    def find_spec(self, name, *_):\n"
        f"        assert name.partition('.')[0] not in {HEAVY}, name\n"
        "sys.meta_path.insert(0, Refuse())\n"
        "command, sys.argv = sys.argv[1], sys.argv[1:]\n"
        "run = runpy.run_path if command.endswith('.py') else runpy.run_module\n"
        "run(command, run_name='__main__')\n"
    )
    done = python(code, command, *arguments, "--help")
    assert done.returncode == 0 and done.stderr == "", done.stderr
    assert done.stdout.startswith("usage: ") and "--help" in done.stdout


def sources() -> Iterator[tuple[str, str]]:
    """Name and text of every Python file."""
    for path in sorted([ROOT / "run_all.py", *PACKAGE.rglob("*.py"), *(ROOT / "tests").rglob("*.py")]):
        yield path.relative_to(ROOT).as_posix(), path.read_text(encoding="utf-8")


def lines_of_code(text: str, tree: ast.Module) -> set[int]:
    """Numbers of the lines that hold more than docstrings, comments and blanks."""
    blank = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}
    found: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in blank:
            found.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None:
            found.difference_update(range(node.body[0].lineno, (node.body[0].end_lineno or 0) + 1))
    return found


def test_functions_fit_a_screen_and_modules_are_short() -> None:
    text = 'def f():\n    """Doc."""\n\n    # comment\n    return """a\nb"""\n'
    assert lines_of_code(text, ast.parse(text)) == {1, 5, 6} and MODULES["relations"].name == "relations.py"
    long = {}
    for name, text in sources():
        tree = ast.parse(text)
        code = lines_of_code(text, tree)
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef):
                n = len(code & set(range(node.lineno, (node.end_lineno or 0) + 1)))
                if n > LINES_OF_FUNCTION:
                    long[f"{name} {node.name}"] = n
    assert {name: n for name, n in long.items() if name not in LONG_FUNCTIONS} == {}
    assert set(LONG_FUNCTIONS) == set(long), "an exception that is none any more goes"
    long = {name: n for name, text in sources() if (n := len(text.splitlines())) > LINES_OF_MODULE}
    assert {name: n for name, n in long.items() if name not in LONG_MODULES} == {}
    assert set(LONG_MODULES) == set(long), "an exception that is none any more goes"


@pytest.mark.parametrize("module", [name for name in MODULES if name != "relations"])
def test_only_relations_knows_their_number_and_order(module: str) -> None:
    """Elsewhere nobody counts them or takes them by their places (COCO's category 14, a key, is another 14)."""
    tree = ast.parse(MODULES[module].read_text(encoding="utf-8"))
    keys = {key for node in ast.walk(tree) if isinstance(node, ast.Dict) for key in node.keys}
    for node in ast.walk(tree):
        where = f"{module}, line {getattr(node, 'lineno', 0)}"
        if isinstance(node, ast.Constant) and node not in keys:
            assert node.value != 14, where
        if isinstance(node, ast.Subscript):
            of = node.value.attr if isinstance(node.value, ast.Attribute) else getattr(node.value, "id", "")
            shapes = [part.value for part in ast.walk(node.slice) if isinstance(part, ast.Constant)]
            assert not any(isinstance(shape, str) and re.search(r"\b14\b", shape) for shape in shapes), where
            if of.endswith("NAMES") or of.endswith("RELATIONS"):
                assert not isinstance(node.slice, ast.Slice | ast.Constant | ast.UnaryOp), f"{where}: {of} by place"
