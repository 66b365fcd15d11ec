"""Prompts without a relation: what is asked for, what counts as found, and a small run of the whole."""

from itertools import product

import numpy as np
import pandas as pd
import pytest

from sr4g_utils.dataset.captions import listing
from sr4g_utils.dataset.prompts import THINGS
from sr4g_utils.evaluation import without_relation
from sr4g_utils.store.files import DATA
from sr4g_utils.store.run import Run

MODELS = DATA / "models"


def asked(path, objects=("seen", "unseen"), names=("dog", "cat", "bench", "cow")):
    """Test prompts of some names in some sets."""
    rows = [
        (f"{s}{a}{b}", a, "above", b, f"a {a} above a {b}", s)
        for s in objects
        for a, b in product(names, names)
        if a != b
    ]
    pd.DataFrame(rows, columns=["prompt_id", "subject", "relation", "object", "caption", "objects"]).to_parquet(path)
    return path


def test_the_prompts_list_one_two_and_three_different_things_of_their_set(tmp_path):
    path = asked(tmp_path / "asked.parquet")
    assert without_relation.write_prompts(tmp_path / "a", path, number=5, seed=0) == 30
    table = pd.read_parquet(tmp_path / "a")
    assert (table.groupby(["objects", "things"]).size() == 5).all() and table.prompt_id.is_unique
    for row in table.itertuples():
        names = [row.subject, row.object, row.third]
        assert len(set(names)) == 3 and row.caption == listing(names[: row.things])
    assert without_relation.write_prompts(tmp_path / "b", path, number=5, seed=0) and table.equals(
        pd.read_parquet(tmp_path / "b")
    )
    assert without_relation.write_prompts(tmp_path / "c", asked(path, ["mixed", "seen"]), number=5, seed=0) == 15, (
        "seen alone"
    )
    assert without_relation.write_prompts(tmp_path / "c", asked(path, ["all"]), number=5, seed=0) == 15, (
        "prompts without sets"
    )
    for objects, names in ((["mixed"], ("dog", "cat", "bench")), (["seen"], ("dog", "cat"))):
        assert without_relation.write_prompts(tmp_path / "d", asked(path, objects, names), number=5, seed=0) == 0


def test_a_picture_obeys_if_all_that_it_was_asked_for_is_found():
    rows, boxes, thirds, expected = [], [], [], []
    for things, *there in product(THINGS, *[(False, True)] * 3):
        id = f"p{len(rows)}"
        rows.append((id, "dog", without_relation.UNASKED, "cat", "cow", "seen", things))
        box = {"prompt_id": id, "image_index": 0, "score": 0.5, "x": 0, "y": 0, "w": 9, "h": 9}
        boxes += [box | {"label": name} for name, found in zip(("dog", "cat"), there, strict=False) if found]
        thirds += [box | {"label": "cow"}] * there[2] + [box | {"label": "cat"}]
        expected.append(all(there[:things]))
    prompts = pd.DataFrame(rows, columns=["prompt_id", "subject", "relation", "object", "third", "objects", "things"])
    images = prompts[["prompt_id"]].assign(image_index=0)
    told = without_relation.found(prompts, pd.DataFrame(boxes), pd.DataFrame(thirds), images, 0.18)
    assert told.found.tolist() == expected and told.things.tolist() == prompts.things.tolist()
    assert not without_relation.found(prompts, pd.DataFrame(boxes), pd.DataFrame(thirds), images, 0.5).found.any()


def test_scores_are_shares_and_changes_are_paired():
    rng, ids = np.random.default_rng(0), np.repeat(np.arange(60), 4)
    table = pd.DataFrame({"prompt_id": ids, "objects": np.where(ids < 30, "seen", "unseen"), "things": 1 + ids % 3})
    models = {"a": table.assign(found=rng.random(240) < 0.8), "b": table.assign(found=rng.random(240) < 0.6)}
    models["twin"] = models["a"].copy()
    scores = without_relation.scores(models).set_index(["model", "objects", "things"])
    assert len(scores) == 3 * 7
    share = 100 * models["b"].query("objects == 'seen' and things == 2").found.mean()
    assert scores.found["b", "seen", "2"] == pytest.approx(share)
    change = 100 * (models["b"].found.mean() - models["a"].found.mean())
    every = scores.loc[("b", "all", "all")]
    assert every.change == pytest.approx(change) and every.change_low < change < every.change_high < 0
    assert every.prompts == 60 and every.images == 240 and (scores.low < scores.found).all()
    assert scores.loc["a"].change.isna().all() and (scores.loc["twin"].change == 0).all()


def test_from_prompts_to_the_table(tmp_path):
    models = {"base": {"model": str(MODELS / "tiny-sd")}, "elsewhere": {"images": "folder"}}
    options = {"images": 1, "steps": 2, "guidance": 5.0, "scheduler": "DPMSolverMultistepScheduler", "batch": 8}
    path, run = asked(tmp_path / "asked.parquet"), Run(tmp_path / "run", "04_evaluation")
    how = {"options": options, "dtype": "float32", "detector": str(MODELS / "tiny-owlvit"), "threshold": 0.18}
    table = without_relation.evaluate(run, models, path, 2, **how, seed=0, about={})
    assert table.model.unique().tolist() == ["base"] and table.images.tolist() == [2] * 6 + [12]
    assert (run.folder / "artifacts" / "results" / "plain.json").is_file()
    assert without_relation.evaluate(run, {"elsewhere": {"images": "folder"}}, path, 2, **how, seed=0, about={}).empty
    assert without_relation.evaluate(run, models, path, 0, **how, seed=0, about={}).empty
    assert without_relation.evaluate(
        run, models, asked(path, ["seen"], ("dog", "cat")), 2, **how, seed=0, about={}
    ).empty
