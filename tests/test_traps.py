"""Lines of docs/traps.md that speak of published files, on those files."""

import json
from collections import Counter

import pytest


@pytest.fixture(scope="module")
def geneval(shared) -> list[dict]:
    lines = (shared / "prompts" / "geneval_evaluation_metadata.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def test_genevals_first_thing_is_the_object(geneval):
    prompts = [prompt for prompt in geneval if prompt["tag"] == "position"]
    assert len(prompts) == 100
    for prompt in prompts:
        object, subject = prompt["include"]
        relation, to = subject["position"]
        assert to == 0 and "position" not in object
        assert prompt["prompt"].index(f" {subject['class']} {relation} ") < prompt["prompt"].rindex(object["class"])


def test_genevals_overall_is_a_mean_of_tasks(geneval):
    """A model that is right in one task alone gets a sixth, however many prompts the task has."""
    tasks = Counter(prompt["tag"] for prompt in geneval)
    assert len(tasks) == 6 and (min(tasks.values()), max(tasks.values()), sum(tasks.values())) == (80, 100, 553)
    assert round(tasks["position"] / tasks.total(), 3) == 0.181 and round(1 / len(tasks), 3) == 0.167


@pytest.mark.parametrize(
    "tokenizer",
    [
        "sd2-community--stable-diffusion-2-1/tokenizer",
        "sd2-community--stable-diffusion-2-1-base/tokenizer",
        "stabilityai--stable-diffusion-xl-base-1.0/tokenizer_2",
    ],
)
def test_published_tokenizers_pad_with_an_exclamation_mark(shared, tokenizer):
    tokens = json.loads((shared / "hub" / tokenizer / "special_tokens_map.json").read_text())
    vocabulary = json.loads((shared / "hub" / "google--owlvit-base-patch32" / "vocab.json").read_text())
    assert tokens["pad_token"] == "!" and vocabulary["!"] == 0
