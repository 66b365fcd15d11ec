"""The plan of the house: which rooms are light, how long things are, where relations are kept.

Who may import whom is a contract in pyproject.toml, which `make lint` checks.
"""

import ast
import io
import re
import subprocess
import sys
import tokenize
from collections.abc import Iterator

import grimp
import pytest

from sr4g_utils.store import run
from sr4g_utils.store.files import PACKAGE, ROOT

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
