"""Every choice of fine-tuning, in the notebook and in the profiles."""

import msgspec
import pytest

from sr4g_utils.__main__ import NOTEBOOK
from sr4g_utils.finetuning.choices import Choices
from sr4g_utils.running import profiles


def test_every_choice_is_a_parameter_and_declared_once():
    declared = {name: value for name, (_, value) in profiles.declared(NOTEBOOK).items()}
    own = set(profiles.for_cell(NOTEBOOK, declared)) - {"choices"}
    assert len(own) < 27 and "choices" not in declared, "the notebook opens with few of them"
    others = {"run_folder", "train_annotations", "train_photos", "model", "detector", "splits", "unseen", "plain_steps"}
    assert set(declared) == {*others, *Choices.__struct_fields__} and others < own
    flat, nested = Choices.among(declared), Choices.among(profiles.for_cell(NOTEBOOK, declared))
    assert flat == nested == Choices.among(profiles.for_cell(NOTEBOOK, {name: declared[name] for name in own}))
    assert Choices.among({"choices": {"control": "list"}, "seed": 3, "splits": []}) == Choices(control="list", seed=3)


def test_the_paper_profile_is_the_defaults(tmp_path):
    """Whoever reads the struct reads the paper's run; the profile adds models, photos and what a machine needs."""
    declared = {name: value for name, (_, value) in profiles.declared(NOTEBOOK).items()}
    section = declared | profiles.load_profile("paper", [], tmp_path)[NOTEBOOK]
    defaults = msgspec.to_builtins(Choices())
    for name in set(defaults) - {"sampling", "micro_batch"}:
        assert section[name] == defaults[name], name
    assert Choices.of({name: section[name] for name in defaults}) and section["splits"] == ["main", "unseen"]


@pytest.mark.parametrize(("choices", "message"), [
    ({"rules": "coco"}, "rules: unknown rule set 'coco'; choose one of visor, sg2im, sstd"),
    ({"rules": "geneval"}, "rules='geneval' define left of, .* only, not 'inside'"),
    ({"families": []}, "families must be some of"), ({"families": ["scale", "size"]},
     r"families must be some of projective, topological, scale, got \['scale', 'size'\]"),
    ({"doses": [1, 2]}, r"doses must be 5 numbers, one a group, got \[1, 2\]"),
    ({"doses": [0, 2, 8, 32, -1], "schedule": "cosine"}, "doses must be 5 numbers"),
    ({"doses": [0, 2, 8, 32, 128]}, "doses are shared out over all steps: take schedule cosine, control none"),
    ({"told": 0.1}, "told is of a control's captions: take control list or shuffled"),
    ({"told": 1.1, "control": "list"}, r"told must be in \[0, 1\], got 1.1"),
    ({"milestones": [5, 9], "steps": 8}, "milestones: there is no step 9 of 8"),
    ({"template": "haiku"}, "template must be one of plain, photo, sentence, got 'haiku'"),
])  # fmt: skip
def test_rules_and_templates_are_those_of_the_package(choices, message):
    with pytest.raises(ValueError, match=message):
        Choices.of(choices)
