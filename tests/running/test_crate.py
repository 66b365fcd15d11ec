"""A run as a Workflow Run RO-Crate: what the profile asks for is there, and it tells what the run's records tell."""

import hashlib
import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
from test_run_all import ONE, Study

from sr4g_utils.running import crate
from sr4g_utils.store.files import ROOT, read_json, write_json, write_text

rocrate = pytest.importorskip("rocrate.rocrate", reason="rocrate is not installed (the extra `crate`)")

MANY = 200
TWO = [
    "# 02 · Two\n\nReads what the first has made, and makes a folder of many files.",
    "from os import PathLike\n\nrun_folder: str | PathLike = '../runs/small'\nn: int = 5\nshare: float = 0.5\n"
    "sampling: dict = {'steps': 2}\nprompts: str | PathLike | None = None\nwords: list = ['é', 'b']",
    "import pandas as pd\nfrom sr4g_utils.store.files import write_text\nfrom sr4g_utils.store.run import Run\n\n"
    'run = Run(run_folder, "02_two")\nrun.read("numbers.txt")',
    f"def pictures(path, n):\n    for i in range({MANY}):\n        write_text(path / f'{{i}}.txt', str(n))\n\n"
    'run.stage("images/a model", pictures, n=n)\nrun.result(pd.DataFrame({"n": [n]}), "counted")',
]
PROFILE = "# Both\n01_one: {n: 4, source: ../../source.txt}\n02_two: {share: 0.25, sampling: {steps: 3}}\n"


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    """Two small notebooks, run: the first reads a file of the user's, the second a file of the first's."""
    made = Study(tmp_path_factory.mktemp("study") / "checkout", {"01_one": ONE, "02_two": TWO}, PROFILE)
    shutil.copy(ROOT / "constraints.txt", made.folder)
    (made.folder / "source.txt").write_text("a source")
    made()
    return made


class Graph(dict[str, dict[str, Any]]):
    """The entities of a folder's crate, by their @id."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.document = folder, read_json(folder / crate.NAME)
        super().__init__({entity["@id"]: entity for entity in self.document["@graph"]})
        self.main = self[self["./"]["mainEntity"]["@id"]]

    def of(self, kind: str) -> list[dict[str, Any]]:
        return [entity for entity in self.values() if kind in each(entity["@type"])]

    def to(self, entity: dict[str, Any], key: str) -> list[dict[str, Any]]:
        """The entities that a property refers to; all of them are there."""
        return [self[reference["@id"]] for reference in each(entity.get(key, []))]

    def kinds(self, entity: dict[str, Any], key: str) -> set[str]:
        return {kind for other in self.to(entity, key) for kind in each(other["@type"])}

    def conforms(self, profile: str) -> bool:
        return self[profile]["@type"] == "CreativeWork" and {"@id": profile} in self["./"]["conformsTo"]


def each(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


@pytest.fixture(scope="module")
def graph(study: Study) -> Graph:
    return Graph(study.results)


TIME = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}\+\d\d:\d\d"
TOOLS = {"SoftwareApplication", "SoftwareSourceCode", "ComputationalWorkflow"}
MUST: dict[str, Callable[[Graph], bool]] = {
    "RO-Crate 1.1: its context": lambda g: g.document["@context"] == "https://w3id.org/ro/crate/1.1/context",
    "RO-Crate 1.1: a flat graph of entities with an @id of their own and a @type": lambda g: (
        len(g) == len(g.document["@graph"]) and all(entity["@type"] for entity in g.values())
        and all(set(part) == {"@id"} for entity in g.values() for value in entity.values() for part in each(value)
                if isinstance(part, dict))
    ),
    "RO-Crate 1.1: a descriptor that is about the root and says the version": lambda g: (
        g[crate.NAME]["@type"] == "CreativeWork" and g[crate.NAME]["about"] == {"@id": "./"}
        and {"@id": "https://w3id.org/ro/crate/1.1"} in g[crate.NAME]["conformsTo"]
    ),
    "RO-Crate 1.1: name, description, date and license of the root": lambda g: bool(
        g["./"]["@type"] == "Dataset" and g["./"]["name"] and g["./"]["description"]
        and re.fullmatch(TIME, g["./"]["datePublished"]) and g.to(g["./"], "license")
    ),
    "RO-Crate 1.1: every file and folder is a part, and there": lambda g: (
        {part["@id"] for part in g.to(g["./"], "hasPart")}
        == {part["@id"] for kind in ("File", "Dataset") for part in g.of(kind)} - {"./"}
        and all((g.folder / unquote(part["@id"])).is_file() for part in g.of("File"))
        and all((g.folder / unquote(part["@id"])).is_dir() and part["@id"][-1] == "/" for part in g.of("Dataset"))
    ),
    "Workflow RO-Crate 1.0: a main workflow that is a file, in a language": lambda g: (
        {"File", "SoftwareSourceCode", "ComputationalWorkflow"} <= set(g.main["@type"])
        and g.kinds(g.main, "programmingLanguage") == {"ComputerLanguage"}
    ),
    "Process Run Crate 0.5: the root conforms to it": lambda g: g.conforms("https://w3id.org/ro/wfrun/process/0.5"),
    "Process Run Crate 0.5: every action has a tool for instrument": lambda g: all(
        g.kinds(action, "instrument") & TOOLS for action in g.of("CreateAction")
    ),
    "Workflow Run Crate 0.5: the root conforms to it": lambda g: g.conforms("https://w3id.org/ro/wfrun/workflow/0.5"),
    "Workflow Run Crate 0.5: the main workflow was executed": lambda g: (
        g.main["@id"] in [tool["@id"] for action in g.of("CreateAction") for tool in g.to(action, "instrument")]
    ),
    "Workflow Run Crate 0.5: inputs are formal parameters": lambda g: g.kinds(g.main, "input") == {"FormalParameter"},
    "Workflow Run Crate 0.5: a formal parameter has a type and the value it took, and both know each other": lambda g: (
        all(slot["additionalType"] and g.to(value, "exampleOfWork") == [slot] and value["@type"] == "PropertyValue"
            for slot in g.of("FormalParameter") for value in [*g.to(slot, "workExample"), {"@type": ""}][:1])
    ),
}  # fmt: skip


@pytest.mark.parametrize("rule", MUST)
def test_what_the_profiles_demand(graph: Graph, rule: str) -> None:
    assert MUST[rule](graph)


# puts RO-Crate 1.1's JSON-LD context into the validator's cache of what it has read; our own rocrate has a later one
KEEP_CONTEXT = """
import io, sys
from importlib.resources import files
from requests import Request
from requests.adapters import HTTPAdapter
from requests_cache import CachedSession
from urllib3 import HTTPResponse

url, path = "https://w3id.org/ro/crate/1.1/context", files("rocrate") / "data" / "ro-crate.jsonld"
how = {"status": 200, "headers": {"Content-Type": "application/ld+json"}, "request_url": url, "preload_content": False}
answer = HTTPResponse(io.BytesIO(path.read_bytes()), **how)
answer = HTTPAdapter().build_response(Request("GET", url).prepare(), answer)
assert answer.json()["@id"] == url, path
CachedSession(sys.argv[1]).cache.save_response(answer)
"""


def test_the_public_validator_agrees_and_sees_what_is_missing(graph: Graph, tmp_path: Path) -> None:
    validator = shutil.which("rocrate-validator")
    if not validator:
        pytest.skip("no rocrate-validator: pip install roc-validator 'rocrate<0.16' into an environment of its own")
    python = Path(validator).resolve().with_name("python")
    subprocess.run([python, "-c", KEEP_CONTEXT, tmp_path / "cache"], check=True)

    def complaints(folder: Path) -> str:
        offline = ["--offline", "--cache-path", tmp_path / "cache", "--no-paging", "--verbose"]
        command = [validator, "-y", "validate", *offline, "-p", "workflow-run-crate", folder]
        done = subprocess.run(command, capture_output=True, text=True)
        return done.stdout + done.stderr if done.returncode else ""

    assert not (found := complaints(graph.folder)), found
    broken = shutil.copytree(graph.folder, tmp_path / "broken")
    entities = [{key: value for key, value in entity.items() if key != "instrument"} for entity in graph.values()]
    write_json(broken / crate.NAME, {**graph.document, "@graph": entities})
    assert "instrument" in complaints(broken)


def test_the_library_reads_what_it_has_written_and_a_folder_of_many_files_is_one_entry(graph: Graph) -> None:
    found = rocrate.ROCrate(graph.folder)
    assert found.mainEntity.id == "run_all.py" and found.get("#run")["instrument"] == found.mainEntity
    assert {entity.id for entity in found.get_entities()} == set(graph)
    assert graph["artifacts/images/a%20model/"]["@type"] == "Dataset" and len(graph) < MANY
    assert len(list((graph.folder / "artifacts" / "images" / "a model").iterdir())) == MANY


def test_parameters_are_those_of_the_executed_notebooks(graph: Graph) -> None:
    told: dict[str, Any] = {}
    for value in graph.of("PropertyValue"):
        (slot,) = graph.to(value, "exampleOfWork")
        coded = slot["additionalType"] == "PropertyValue"
        told[value["name"]] = json.loads(value["value"]) if coded else value["value"]
    assert told == {
        "01_one.n": 4, "01_one.break_it": False, "01_one.pause": 0.0, "01_one.source": told["01_one.source"],
        "02_two.n": 5, "02_two.share": 0.25, "02_two.sampling": {"steps": 3}, "02_two.prompts": None,
        "02_two.words": ["é", "b"],
    }  # fmt: skip
    types = {slot["name"]: slot["additionalType"] for slot in graph.of("FormalParameter")}
    assert types["01_one.n"] == "Integer" and types["01_one.break_it"] == "Boolean"
    assert types["02_two.share"] == "Float" and types["01_one.source"] == "Text"
    for name in ("01_one", "02_two"):
        given = read_json(graph.folder / "notebooks" / f"{name}.ipynb")["metadata"]["papermill"]["parameters"]
        assert told.items() >= {f"{name}.{key}": given[key] for key in given if key != "run_folder"}.items()


def test_times_inputs_results_and_versions_are_those_of_the_records(graph: Graph) -> None:
    run, one, two = graph["#run"], graph["#01_one"], graph["#02_two"]
    assert graph.to(graph["./"], "mentions") == [one, two, run] and graph.to(run, "instrument") == [graph.main]
    assert run["startTime"] == one["startTime"] < one["endTime"] < two["startTime"] < two["endTime"] == run["endTime"]
    assert all(act["actionStatus"] == "http://schema.org/CompletedActionStatus" for act in (run, one, two))
    source = hashlib.sha256(b"a source").hexdigest()
    assert graph[f"#{source}"]["name"] == "source.txt" and {"@id": f"#{source}"} in one["object"]
    assert {"@id": "artifacts/numbers.txt"} in two["object"] and {"@id": "artifacts/numbers.txt"} in one["result"]
    assert {"@id": f"#{source}"} in run["object"] and {"@id": "artifacts/numbers.txt"} not in run["object"]
    for name, act in (("01_one", one), ("02_two", two)):
        outputs = read_json(graph.folder / ".state" / f"{name}.files.json")["outputs"]
        told = [unquote(part["@id"]).rstrip("/") for part in act["result"]]
        assert told == [*outputs, f"notebooks/{name}.html"]
        assert all(part in run["result"] for part in [*act["result"], {"@id": f"notebooks/{name}.ipynb"}])
    provenance = read_json(graph.folder / "artifacts" / "results" / "counted.json")["provenance"]
    versions = {tool["name"]: tool["softwareVersion"] for tool in graph.to(graph.main, "softwareRequirements")}
    assert {"numpy", "python", "sr4g_utils"} <= set(versions) and versions.items() <= provenance.items()


@pytest.mark.slow("whole runs")
def test_only_times_differ_between_runs(study: Study, graph: Graph) -> None:
    path = study.results / crate.NAME
    before = path.read_text(encoding="utf-8")
    path.unlink()
    assert "skipped" in study() and path.read_text(encoding="utf-8") == before, "what is skipped is told as it was"
    study("--force")
    after = path.read_text(encoding="utf-8")
    assert after != before and re.sub(TIME, "", after) == re.sub(TIME, "", before)


@pytest.mark.slow("whole runs")
def test_a_run_that_fails_is_told_as_such(study: Study, tmp_path: Path) -> None:
    study("--runs", str(tmp_path), "--set", "break_it=true", code=1)
    graph = Graph(tmp_path / "miniature")
    assert [rule for rule, holds in MUST.items() if not holds(graph)] == []
    assert graph["#run"]["name"] == "1 of 2 notebooks of miniature" and "#02_two" not in graph
    for act in (graph["#run"], graph["#01_one"]):
        assert act["actionStatus"] == "http://schema.org/FailedActionStatus"
        assert act["error"] == "01_one: cell 8: ValueError: the cat is missing"
    assert {"@id": "tables/numbers.csv"} in graph["#01_one"]["result"], "what it has made before it failed"


@pytest.mark.slow("whole runs")
def test_without_the_library_a_run_succeeds_and_leaves_no_crate_of_an_earlier_one(study: Study, tmp_path: Path) -> None:
    write_text(tmp_path / "without" / "rocrate" / "__init__.py", "raise ModuleNotFoundError('No module named rocrate')")
    folder = tmp_path / "runs" / "miniature"
    write_text(folder / crate.NAME, "of an earlier run")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "without")}
    output = study("--runs", str(tmp_path / "runs"), "--only", "01", env=environment)
    assert "1 of 1 notebooks run" in output and "rocrate" not in output
    assert (folder / "index.html").is_file() and not (folder / crate.NAME).exists()
