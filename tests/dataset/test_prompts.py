"""Prompt sets of every kind: the published ones, a user's, those of the study, and what is drawn from them."""

import gzip
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from pretend import make_prompts

from sr4g_utils.dataset import coco, counts, prompt_sets, prompts, triplets, world
from sr4g_utils.dataset.boxes import COCO_CATEGORIES
from sr4g_utils.dataset.captions import caption
from sr4g_utils.relations import BY_NAME, NAMES
from sr4g_utils.store.files import ROOT, shipped

TRIPLET = ["subject", "relation", "object"]


def test_sr2d_is_the_published_file_and_is_read_as_it_is_made(shared: Path, tmp_path: Path) -> None:
    published = gzip.decompress((shared / "sr2d" / "text_spatial_rel_phrases.json.gz").read_bytes())
    assert prompt_sets.write_sr2d(tmp_path / "sr2d.json") == 31_680
    assert (tmp_path / "sr2d.json").read_bytes() == published
    ours = prompt_sets.read_prompts("sr2d")
    pd.testing.assert_frame_equal(ours.drop(columns="met"), prompt_sets.read_prompts(tmp_path / "sr2d.json"))
    assert len(ours) == 25_280 and ours.attrs["left_out"] == 6_400
    assert set(ours.relation) == {"left of", "right of", "above", "below"}
    assert (ours.caption == [caption(*t) for t in zip(ours.subject, ours.relation, ours.object, strict=True)]).all()
    other_names = json.loads(prompt_sets.sr2d(["dog", "owl", "cat"]))
    assert len(other_names) == 3 * 2 * 5 + 3 and other_names[0]["text"] == "a dog to the left of an owl"


def test_geneval_and_compbench(shared: Path) -> None:
    geneval = prompt_sets.read_prompts(shared / "prompts" / "geneval_evaluation_metadata.jsonl")
    others = prompt_sets.others(geneval)
    assert len(geneval) == prompt_sets.SETS["geneval"].number == 100 and geneval.attrs["left_out"] == len(others) == 453
    assert others["0"] == "a photo of a bench" and not set(others) & set(geneval.prompt_id.astype(str))
    first = geneval.iloc[0]
    assert (first.subject, first.relation, first.object) == ("dog", "right of", "teddy bear")
    assert first.caption == "a photo of a dog right of a teddy bear"
    for row in geneval.itertuples():  # the words of each prompt say the same
        assert row.caption == f"{caption(row.subject, row.relation, row.object, 'photo')}".replace("to the ", "")
    compbench = prompt_sets.read_prompts(shared / "prompts" / "t2icompbench_spatial_val.txt")
    assert len(compbench) + compbench.attrs["left_out"] == 300 and len(compbench) > 200
    first = compbench.iloc[0]
    assert (first.subject, first.relation, first.object, first.prompt_id) == ("girl", "above", "frog", 1)


@pytest.mark.parametrize("form", ["csv", "parquet", "json", "jsonl"])
def test_a_users_prompts(tmp_path: Path, form: str) -> None:
    table = pd.DataFrame([("dog", "to the left of", "cat"), ("cat", "inside", "cup")], columns=TRIPLET)
    path = tmp_path / f"mine.{form}"
    if form.startswith("json"):
        table.to_json(path, orient="records", lines=form == "jsonl")
    else:
        table.to_csv(path, index=False) if form == "csv" else table.to_parquet(path)
    read = prompt_sets.read_prompts(path)
    assert list(read.relation) == ["left of", "inside"] and list(read.prompt_id) == [0, 1]
    assert list(read.caption) == ["a dog to the left of a cat", "a cat inside a cup"]
    assert prompt_sets.write_given_prompts(tmp_path / "out.parquet", source=path) == {"prompts": 2, "left_out": 0}
    pd.testing.assert_frame_equal(prompt_sets.read_prompts(tmp_path / "out.parquet"), read, check_like=True)


@pytest.mark.parametrize(("text", "name", "message"), [
    ("subject,relation,object\ndog,near,cat\n", "a.csv", f"prompt 0 has the relation 'near'; .* {NAMES[0]}"),
    ("subject,relation,object\ndog,above,\n", "a.csv", "prompt 0 has no object"),
    ("subject,relation\ndog,above\n", "a.csv", "the column 'object' is missing"),
    ("subject,relation,object\n", "a.csv", "holds no prompts"),
    ("prompt_id,subject,relation,object\n1,dog,above,cat\n1,dog,above,cup\n", "a.csv", "prompt_id '1' occurs"),
    ("prompt_id,subject,relation,object\na/b,dog,above,cat\n", "a.csv", "prompt_id 'a/b', which is not made of"),
    ('[{"subject": "dog"}]', "a.json", "row 1: not a prompt"),
    ('{"a": 1}', "a.json", "expected a list of prompts, found a mapping"), ("{", "a.jsonl", "not valid JSON"),
    ('[{"tag": "color", "prompt": "a red bench"}]', "a.json", "holds no prompts"),
])  # fmt: skip
def test_wrong_prompts(tmp_path: Path, text: str, name: str, message: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=message) as caught:
        prompt_sets.read_prompts(tmp_path / name)
    assert name in str(caught.value) and "\n" not in str(caught.value)


H = "prompt_id,subject,relation,object\n"


@pytest.mark.parametrize(("name", "text", "ids", "captions"), [
    ("a.csv", "id,text\n7,a dog to the left of a cat\n9,a cup above a bed\n", [7, 9], None),
    ("a.jsonl", '{"id": "b7", "prompt": "a dog to the left of a cat"}\n', ["b7"], None),
    ("a.csv", f"sep=;\n{H}7;dog;left_of;cat\n".replace(",", ";"), [7], ["a dog to the left of a cat"]),
    ("a.csv", f"{H}1.0,cup,Bigger_than,bed\n", [1], ["a cup larger than a bed"]),
    ("a.txt", "“a dog to the left of a cat”\n", [0], ["a dog to the left of a cat"]),
    ("a.csv", "subject,relation,object,caption\ndog,left of,cat,a cat to the right of a dog\n", [0], None),
    ("a.csv", "subject,relation,object,caption\ndog,left of,cat,a puppy to the right of a kitten\n", [0], None),
])  # fmt: skip
def test_prompts_as_others_write_them(tmp_path, name, text, ids, captions):
    (tmp_path / name).write_text(text)
    table = prompt_sets.read_prompts(tmp_path / name)
    assert table.prompt_id.tolist() == ids
    assert captions is None or table.caption.tolist() == captions


@pytest.mark.parametrize("says", [
    "a dog to the right of a cat", "a cat to the left of a dog", "A black dog above a cat", "a cat below a dog"
])  # fmt: skip
def test_a_caption_that_contradicts_the_columns_is_refused(tmp_path, says):
    (tmp_path / "a.csv").write_text(f"subject,relation,object,caption\ndog,left of,cat,{says}\n")
    with pytest.raises(ValueError, match=r"row 2: prompt 0 has the caption .* does not say 'dog' left of 'cat'"):
        prompt_sets.read_prompts(tmp_path / "a.csv")


def test_only_ids_that_name_files_are_restricted():
    table = pd.DataFrame([("a b/c", "dog", "above", "cat")], columns=["prompt_id", *TRIPLET])
    assert prompt_sets.check_prompts(table, "mine", prompt_sets.NEEDED, name_files=False) is table
    with pytest.raises(ValueError, match=r"mine: row 0: .* prompt_id 'a b/c', which is not made of letters"):
        prompt_sets.check_prompts(table.assign(caption="x"), "mine")
    with pytest.raises(ValueError, match=r"mine: row 0: .* prompt_id 'a b/c' occurs twice"):
        prompt_sets.check_prompts(pd.concat([table, table]), "mine", prompt_sets.NEEDED, name_files=False)


HELD_OUT = triplets.held_out_categories(COCO_CATEGORIES, 16)


def test_prompts(frequencies):
    made = prompts.from_triplets(frequencies, HELD_OUT, seed=3, test_per_relation=200, validation_per_relation=50)
    different = frequencies[frequencies.subject != frequencies.object]
    asked, there = (set(table[TRIPLET].itertuples(index=False, name=None)) for table in (made, different))
    assert asked == there
    assert not made.duplicated(TRIPLET).any() and made.prompt_id.tolist() == list(range(len(made)))
    n_unseen = made.subject.isin(HELD_OUT).astype(int) + made.object.isin(HELD_OUT)
    assert (made.objects == n_unseen.map({0: "seen", 1: "mixed", 2: "unseen"})).all()
    assert made.in_main.all() and (made.in_unseen == (n_unseen == 0)).all()
    assert set(made.split) == {"validation", "test"} and not (made.balanced & (made.split != "test")).any()
    for relation, rows in made.groupby("relation"):
        n = min(50, len(rows) // 10)
        assert (rows.split == "validation").sum() == n, relation
        assert rows.balanced.sum() == min(200, len(rows) - n), relation


def test_prompts_depend_on_the_seed_alone_and_those_of_one_category_are_an_option(frequencies):
    shuffled = frequencies.sample(frac=1, random_state=1)
    one, same, other = (prompts.from_triplets(*of, 200) for of in (
        (frequencies, [], 0), (shuffled, [], 0), (frequencies, [], 1)))  # fmt: skip
    pd.testing.assert_frame_equal(one, same)
    assert (one.balanced != other.balanced).any()
    assert len(prompts.from_triplets(frequencies, [], 0, same_category=True)) == len(frequencies)


def test_withheld_triplets_go_with_their_converse_and_are_a_set_of_their_own(frequencies):
    made, plain = (prompts.from_triplets(frequencies, HELD_OUT, 0, withheld=share) for share in (0.1, 0.0))
    back = dict(zip(made[TRIPLET].itertuples(index=False, name=None), ~made.in_main, strict=True))
    assert 0.09 < np.mean(list(back.values())) < 0.11 and plain.in_main.all() and "withheld" not in set(plain.objects)
    for (s, r, o), held in back.items():
        assert back.get((o, BY_NAME[r].converse, s), held) == held
    assert (made.objects == plain.objects.mask(~made.in_main & (plain.objects == "seen"), "withheld")).all()
    assert (made.in_unseen == (made.objects == "seen")).all()
    drawn = prompts.draw_prompts(made, 4, 0, ["withheld", "mixed"])
    assert drawn.objects.value_counts().to_dict() == {"withheld": 56, "mixed": 56}
    with pytest.raises(ValueError, match="'new' is no set of objects; they are dosed, seen, withheld, never together"):
        prompts.draw_prompts(made, 4, 0, ["new"])


def test_dosed_prompts_are_spread_over_five_groups_and_two_kinds(frequencies):
    made, plain = (prompts.from_triplets(frequencies, HELD_OUT, 0, withheld=0.1, dosed=n) for n in (10, 0))
    dosed = made[made.objects == "dosed"]
    assert (dosed.groupby(["relation", "group", "one_image"]).size() == 1).all() and len(dosed) == 14 * 10
    assert (plain.objects[dosed.index] == "seen").all() and (dosed.n_images > 1).all() and dosed.in_unseen.all()
    assert (dosed.split == "test").all() and not dosed.balanced.any()
    told = set(zip(dosed.subject, dosed.relation, dosed.object, strict=True))
    assert not told & {(o, BY_NAME[r].converse, s) for s, r, o in told}
    rest = made[made.objects != "dosed"].drop(columns=["group", "one_image"])
    pd.testing.assert_frame_equal(rest, plain.loc[rest.index])
    with pytest.raises(ValueError, match=r"dosed: only \d+ triplets '.+' are shown by two images; ask for fewer"):
        prompts.from_triplets(frequencies, HELD_OUT, 0, dosed=100_000)


def test_study_prompts_as_a_stage(shared, tmp_path):
    path = shared / "coco_excerpt" / "annotations" / "instances_val2017.json"
    triplets.build(tmp_path / "t.parquet", path, split="val", held_out=["dog"])
    n = prompts.write_study_prompts(tmp_path / "p.parquet", tmp_path / "t.parquet", held_out=["dog"], seed=1)
    expected = prompts.from_triplets(triplets.frequencies(tmp_path / "t.parquet"), ["dog"], seed=1)
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "p.parquet"), expected)
    assert n == len(expected)


def test_prompts_are_balanced_tested_on_and_of_a_seed(tmp_path):
    table = make_prompts()
    drawn = prompts.draw_prompts(table, 8, seed=3)
    assert drawn.groupby(["objects", "relation"]).size().eq(8).all() and set(drawn.objects) == {"seen", "unseen"}
    assert set(drawn.split) == {"test"} and drawn.prompt_id.is_monotonic_increasing
    pd.testing.assert_frame_equal(drawn, prompts.draw_prompts(table.copy(), 8, seed=3))
    assert set(drawn.prompt_id) != set(prompts.draw_prompts(table, 8, seed=4).prompt_id)
    assert len(prompts.draw_prompts(table, None, 0)) == ((table.split == "test") & (table.objects != "mixed")).sum()
    foreign = table.drop(columns=["split", "objects"])
    assert set(prompts.draw_prompts(foreign, None, 0).objects) == {"all"}
    assert len(prompts.draw_prompts(foreign, 2, 0)) == 28
    with pytest.raises(ValueError, match="no test prompt"):
        prompts.draw_prompts(table[table.objects == "mixed"], 8, 0)
    table.to_parquet(tmp_path / "all.parquet")  # as a stage
    counts = prompts.write_test_prompts(tmp_path / "prompts.parquet", tmp_path / "all.parquet", per_relation=8, seed=3)
    assert counts == {"seen": 112, "unseen": 112}
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "prompts.parquet"), drawn)


def test_validation_prompts_are_balanced_seen_and_never_tested_on(tmp_path):
    table = make_prompts(40).assign(subject=lambda t: np.where(t.prompt_id % 3 == 0, "cup", "dog"))
    table.to_parquet(tmp_path / "p.parquet")
    drawn, again, other = (prompts.validation_prompts(tmp_path / "p.parquet", ["cup"], 4 * 14, s) for s in (0, 0, 1))
    assert set(drawn.split) == {"validation"} and drawn.prompt_id.is_monotonic_increasing
    assert "cup" not in set(drawn.subject) and drawn.relation.value_counts().to_dict() == dict.fromkeys(NAMES, 4)
    pd.testing.assert_frame_equal(drawn, again)
    assert set(other.prompt_id) != set(drawn.prompt_id)
    with pytest.raises(ValueError, match="no validation prompt whose objects are both seen"):
        prompts.validation_prompts(tmp_path / "p.parquet", ["cat"], 14, 0)


def test_the_prompts_in_the_box_need_no_download(monkeypatch):
    monkeypatch.setenv("SR4G_MIRROR", "http://nowhere.invalid")
    table = prompt_sets.read_prompts("sr4g")
    assert len(table) == prompt_sets.SETS["sr4g"].number == 62_460
    assert (ROOT / "data" / "prompts" / "sr4g.parquet").stat().st_size < 1_000_000
    assert table.caption.tolist() == list(map(caption, table.subject, table.relation, table.object))
    assert not (table.balanced & (table.split == "validation")).any()
    assert set(table[table.balanced].relation) == set(NAMES)


@pytest.mark.slow("real data")
def test_the_prompts_in_the_box_are_what_notebook_02_makes_of_coco(shared, tmp_path):
    boxes = shared / "coco2017" / "train2017_boxes.parquet"
    triplets.build(tmp_path / "triplets.parquet", boxes, split="train", held_out=HELD_OUT)
    prompts.write_study_prompts(tmp_path / "prompts.parquet", tmp_path / "triplets.parquet", held_out=HELD_OUT, seed=0)
    shipped_prompts = prompt_sets.read_prompts("sr4g").drop(columns="met")
    pd.testing.assert_frame_equal(shipped_prompts, pd.read_parquet(tmp_path / "prompts.parquet"))


def test_pairs_that_no_photo_shows_together(shared):
    table = coco.read(shared / "coco2017" / "train2017_boxes.parquet").without_crowds()
    pairs = counts.never_together(table)
    assert len(pairs) == 491 and pairs == [(a, b) for a, others in shipped("apart.yaml").items() for b in others]
    assert ("bicycle", "hair drier") in pairs  # and by a slow look
    bicycle, drier = (set(table.image[table.category == table.names.index(name)]) for name in ("bicycle", "hair drier"))
    assert not bicycle & drier


@pytest.mark.slow("all 8,000 layouts")
def test_all_pairs_of_the_small_world_meet_in_a_training_picture(tmp_path):
    world.write_annotations(tmp_path / "train.json", split="train")
    table = coco.read(tmp_path / "train.json", "train")
    assert len(table.names) == 40 and counts.never_together(table) == []


def test_pairs_that_are_kept_apart_are_a_set_of_their_own(frequencies):
    made, plain = (prompts.from_triplets(frequencies, HELD_OUT, 0, apart=share) for share in (0.1, 0.0))
    pairs = list(map(frozenset, zip(made.subject, made.object, strict=True)))
    never = dict(zip(pairs, triplets.kept_apart(map(sorted, pairs), 0.1), strict=True))
    assert 0.07 < np.mean(list(never.values())) < 0.13 and not triplets.kept_apart([("dog", "dog")], 0.999).any()
    assert made.in_main.tolist() == [not never[pair] for pair in pairs] and made.in_unseen.sum() < plain.in_unseen.sum()
    assert (made.objects == plain.objects.mask(~made.in_main & (plain.objects == "seen"), "never together")).all()
    drawn = prompts.draw_prompts(made, 4, 0, ["seen", "never together"])
    assert set(drawn[drawn.objects == "never together"].relation) == set(NAMES)


def test_prompts_of_coco_say_whether_their_things_meet():
    assert (prompt_sets.read_prompts("sr4g").met == "together").all()  # each is of a photo
    met = prompt_sets.read_prompts("sr2d").met.value_counts()
    assert met["never together"] == 491 * 8 and met.sum() == 25_280
