"""What a step of fine-tuning sees, drawn by seed, step and place, and what experiments change of it."""

import hashlib
import json
import shutil
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import tiny
import torch
from accelerate import Accelerator
from PIL import Image
from refusals import refuses
from tuning import encode, net_of

from sr4g_utils.dataset import coco, photos, triplets
from sr4g_utils.dataset.captions import caption, parse, with_article
from sr4g_utils.dataset.photos import Photos
from sr4g_utils.finetuning import batches, latents
from sr4g_utils.finetuning.arms import changed, dosed, dosed_prompts, narrowed
from sr4g_utils.finetuning.batches import Sampler, Text
from sr4g_utils.finetuning.captions import crop_changes, true_captions
from sr4g_utils.finetuning.choices import Choices
from sr4g_utils.finetuning.latents import Encoded, encode_photos
from sr4g_utils.models.load import load_pipeline
from sr4g_utils.relations import NAMES, family
from sr4g_utils.store.files import write_json


def test_captions_are_those_of_the_dataset_without_held_out_categories(world, captions):
    rows = pq.read_table(world.triplets).to_pandas()
    rows = rows[rows.subject != rows.object]
    written = set(zip(rows.image_id, rows.caption, strict=True))
    pairs = zip(captions.image, captions.triplet, strict=True)
    assert {(int(world.table.image_id[i]), captions.text(t)) for i, t in pairs} == written
    assert len(captions) == len(written)
    assert (np.diff(captions.image.astype(np.int64) << 32 | captions.triplet) > 0).all()
    assert len(true_captions(world.table, same_category=True)) == pq.read_metadata(world.triplets).num_rows
    left = captions.without(["cat", "dog"])
    texts = [captions.text(t) for t in np.unique(captions.triplet)]
    assert {left.text(t) for t in np.unique(left.triplet)} == {t for t in texts if not {"cat", "dog"} & set(t.split())}
    refuses("held_out: the annotations have no category 'unicorn'", captions.without, ["unicorn"])


def test_crop_changes_are_counted(shared):
    table = coco.read(shared / "coco_excerpt" / "annotations" / "instances_val2017.json").without_crowds()
    before, after = true_captions(table), true_captions(photos.crop_table(table, 512, 0.5))
    old, new = (set(zip(one.image.tolist(), one.triplet.tolist(), strict=True)) for one in (before, after))
    counts = crop_changes(before, after)
    expected = {"before": len(old), "after": len(new), "dropped": len(old - new), "new": len(new - old)}
    assert {name: counts[name] for name in expected} == expected
    assert counts["dropped"] > 0 and counts["new"] > 0


def test_latents_are_the_vae_s_posterior(world, captions, encoded, pipeline):
    for image in np.unique(captions.image)[[0, 50, -1]]:
        pixels = np.asarray(Image.open(world.photos / world.table.file_name[image].as_py()).convert("RGB"))
        with torch.no_grad():
            x = torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None].float() / 127.5 - 1
            posterior = pipeline.vae.encode(x).latent_dist
        mean, deviation = encoded[int(image)]
        np.testing.assert_allclose(mean, posterior.mean[0], rtol=2e-3, atol=2e-3)
        np.testing.assert_allclose(deviation, posterior.std[0], rtol=2e-3, atol=2e-3)


def test_latents_are_made_once_and_go_on_where_they_were_interrupted(
    world, captions, pipeline, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(latents, "SHARD", 40)
    encode(world, captions, pipeline, tmp_path)
    files = {path: path.read_bytes() for path in sorted(tmp_path.rglob("*.npy"))}
    assert len(files) == -(-len(np.unique(captions.image)) // 40)
    first, second, *_ = files
    second.unlink()
    *_, last = files
    last.write_bytes(files[last][:-9])  # as a full disk or a broken copy leaves it
    stamp = first.stat().st_mtime_ns
    encode(world, captions, pipeline, tmp_path)
    assert last.read_bytes() == files[last] and f"{last}: it or its .json is damaged" in capsys.readouterr().err
    assert first.stat().st_mtime_ns == stamp and second.read_bytes() == files[second]
    other = load_pipeline(tiny.stable_diffusion(tmp_path / "sd", seed=1), device="cpu")[0]
    encode(world, captions, other, tmp_path)
    assert len(list(tmp_path.rglob("*.npy"))) == 2 * len(files)  # another VAE, another folder


def test_unusable_photos_are_counted_and_never_trained_on(world, captions, pipeline, tmp_path):
    source = tmp_path / "photos"
    shutil.copytree(world.photos, source)
    names = world.table.file_name.take(np.unique(captions.image)[:3]).to_pylist()
    (source / names[0]).unlink()
    (source / names[1]).write_bytes((source / names[1]).read_bytes()[:100])
    Image.open(source / names[2]).convert("L").save(source / names[2])
    found = encode(world, captions, pipeline, tmp_path / "latents", source)
    assert found.report["unusable"] == 2 and found.report["grayscale"] == 1
    assert names[0] in found.report["problems"][0] and names[1] in found.report["problems"][1]
    assert not np.isin(captions.of_images(found.usable).image, np.unique(captions.image)[:2]).any()
    found.check(0.02)
    refuses(rf"2 of {found.report['photos']} photos are unusable.*{names[0]} is missing", found.check, 0.001)


def test_a_wrong_folder_is_told_before_the_vae_is_asked(world, captions, tmp_path):
    wrong, first = tmp_path / "photos", world.table.file_name[int(np.unique(captions.image)[0])].as_py()
    wrong.mkdir()
    Image.new("RGB", (8, 8)).save(wrong / "other.png")
    vae = SimpleNamespace(state_dict=dict)  # cannot encode
    given = tmp_path / "latents", Photos(wrong), world.table, np.unique(captions.image), vae, 64, Accelerator(), 0.01
    refuses(rf"{first} is missing; .*of these", encode_photos, *given)
    for name in world.table.file_name.to_pylist():
        shutil.copy(wrong / "other.png", wrong / name)
    refuses("is 8 × 8 pixels, but annotated as", encode_photos, *given)
    assert not list(tmp_path.rglob("*.npy"))


@pytest.mark.parametrize("flow", [False, True])
def test_what_a_step_sees_does_not_depend_on_who_sees_it(captions, encoded, net, tiny_folders, flow):
    if flow:
        net = net_of(load_pipeline(tiny_folders("StableDiffusion3Pipeline"), device="cpu")[0])
    sampler = Sampler(captions, encoded, net, size=12, seed=3)
    whole = sampler(7, range(12))
    for parts in ([range(6), range(6, 12)], [range(i, i + 1) for i in range(12)], [range(8), range(8, 12)]):
        pieces = [sampler(7, part) for part in parts]
        for name in ("latents", "noise", "timestep"):
            assert torch.equal(torch.cat([getattr(piece, name) for piece in pieces]), getattr(whole, name))
        np.testing.assert_array_equal(np.concatenate([piece.caption for piece in pieces]), whole.caption)
    assert not torch.equal(sampler(8, range(12)).noise, whole.noise)
    assert not torch.equal(Sampler(captions, encoded, net, size=12, seed=4)(7, range(12)).noise, whole.noise)
    assert len(torch.unique(whole.noise)) > 0.99 * whole.noise.numel()  # no two places share their noise


def test_the_draw_has_the_distribution_that_it_says(captions, encoded, net):
    n = 4000
    batch = Sampler(captions, encoded, net, size=n, dropout=0.25)(0, range(n))
    assert abs((batch.caption == 0).mean() - 0.25) < 0.03
    assert abs(batch.noise.mean()) < 0.01 and abs(batch.noise.std() - 1) < 0.01
    assert batch.timestep.min() < 20 and batch.timestep.max() > 980 and abs(batch.timestep.float().mean() - 499.5) < 20
    sampler = Sampler(captions, encoded, net, size=n, dropout=0.0)
    relation = captions.relation[sampler.rows(0)]
    np.testing.assert_allclose(np.bincount(relation, minlength=14) / n, 1 / 14, atol=0.02)
    natural = Sampler(captions, encoded, net, size=n, balanced=False)
    relation, share = captions.relation[natural.rows(0)], np.bincount(captions.relation) / len(captions)
    np.testing.assert_allclose(np.bincount(relation, minlength=14) / n, share, atol=0.02)


def test_a_sample_s_latents_are_of_its_caption_s_photo(captions, encoded, net):
    sampler = Sampler(captions, encoded, net, size=50, dropout=0.0)
    batch = sampler(0, range(50))
    rows = sampler.rows(0)
    for row, noisy, said in zip(rows, batch.latents, batch.caption, strict=True):
        assert sampler.texts[said] == captions.text(captions.triplet[row])
        mean, deviation = encoded[int(captions.image[row])]
        sigma = (noisy.numpy() / net.scale - mean) / np.maximum(deviation, 1e-6)
        assert abs(sigma.mean()) < 0.4 and 0.7 < sigma.std() < 1.3


def test_text_states_are_the_pipeline_s_own_cached_or_not(captions, pipeline, net):
    texts = ["", *(captions.text(t) for t in np.unique(captions.triplet)[:40])]
    cached, fly = Text(net, texts, 512, 10**6), Text(net, texts, 512, 3)
    assert cached.cached and not fly.cached and not Text(net, texts, 0, 10**6).cached
    numbers = np.array([0, 5, 5, 40, 1])
    ours, again = (text(numbers)["encoder_hidden_states"] for text in (cached, fly))
    for i, state in enumerate(ours):
        own = pipeline.encode_prompt(texts[numbers[i]], "cpu", 1, False)[0][0]
        torch.testing.assert_close(state, own, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(ours, again, rtol=1e-5, atol=1e-5)


def test_the_next_batch_is_made_ahead():
    made: list[int] = []
    seen = list(batches.ahead(lambda step: made.append(step) or 10 * step, range(3, 7)))
    assert seen == [(step, 10 * step) for step in range(3, 7)] and made == [3, 4, 5, 6]
    assert list(batches.ahead(made.append, range(3, 3))) == []


def test_photos_of_things_that_are_kept_apart_are_left_out(captions):
    left = narrowed(captions, Choices(apart=0.2))
    shown = {image: {frozenset((s, o)) for s, _, o in (captions.parts(captions.triplet[i]) for i in rows)}
             for image, rows in pd.Series(range(len(captions))).groupby(captions.image).groups.items()}  # fmt: skip
    pairs = sorted({pair for pairs in shown.values() for pair in pairs if len(pair) == 2}, key=sorted)
    never = {pair for pair, apart in zip(pairs, triplets.kept_apart(map(sorted, pairs), 0.2), strict=True) if apart}
    assert 0 < len(never) < len(pairs) and set(left.image) == {i for i, own in shown.items() if not own & never}
    assert len(left) == np.isin(captions.image, left.image).sum(), "all other captions stay"


def test_withheld_triplets_and_other_families_are_in_no_caption(captions):
    left = narrowed(captions, Choices(withheld=0.3))
    gone = {captions.text(t) for t in captions.triplet} - {left.text(t) for t in left.triplet}
    every = [parse(captions.text(t)) for t in np.unique(captions.triplet)]
    expected = triplets.withheld(every, 0.3)
    assert gone == {caption(*triplet) for triplet, held in zip(every, expected, strict=True) if held}
    assert 0.2 < expected.mean() < 0.4
    left = narrowed(captions, Choices(families=["scale", "projective"]))
    kept = set(family("scale") + family("projective"))
    assert {NAMES[r] for r in left.relation} == kept
    assert len(left) == sum(NAMES[r] in kept for r in captions.relation)


def test_a_dosed_triplet_is_drawn_as_often_as_its_dose_says(captions, encoded, net):
    shown = np.random.default_rng(0).choice(np.unique(captions.triplet), 20, replace=False)
    rows = [(*parse(text), text, i % 5, i % 2 == 1) for i, text in enumerate(map(captions.text, shown))]
    asked = pd.DataFrame(rows, columns=["subject", "relation", "object", "caption", "group", "one_image"])
    doses, size, steps = [0, 1, 2, 4, 8], 30, 20
    drawn = dosed(captions, asked, doses, size * steps, seed=1)
    sampler = Sampler(drawn, encoded, net, size, dropout=0.0)
    said = [sampler.texts[n] for step in range(steps) for n in sampler(step, range(size)).caption]
    counts = Counter(text for text in said if " and " not in text)
    assert counts == {p.caption: doses[p.group] for p in asked.itertuples() if doses[p.group]}
    for p in asked[asked.group == 4].itertuples():
        (number,) = {n for n in captions.triplet if captions.text(n) == p.caption}
        images, all_images = drawn.image[drawn.words == number], captions.image[captions.triplet == number]
        assert set(images) <= set(all_images)
        assert len(set(images)) == (1 if p.one_image else min(len(all_images), 8)), "all images in turn, or one"
    lists = drawn.words >= drawn.kinds
    pairs = set(zip(captions.image, captions.triplet // len(NAMES), strict=True))
    assert set(zip(drawn.image[lists], (drawn.words[lists] - drawn.kinds) // len(NAMES), strict=True)) <= pairs
    again = dosed(captions, asked, doses, size * steps, seed=1)
    assert np.array_equal(again.words, drawn.words) and np.array_equal(again.image, drawn.image)
    refuses("doses: 60 draws of dosed triplets do not fit into 50 in all", dosed, captions, asked, doses, 50)
    refuses("doses: no photo of fine-tuning shows", dosed, captions.without([str(asked.subject[0])]), asked, doses, 600)


@pytest.mark.parametrize(("control", "share"), [("list", 0.0), ("list", 0.5), ("shuffled", 0.0), ("shuffled", 0.5)])
def test_a_control_shows_the_same_photos_and_says_less(captions, encoded, net, control, share):
    true = captions.without(["cat"])
    less = changed(true, Choices(control=control, told=share), None)
    ours, plain = (Sampler(each, encoded, net, 64, dropout=0.0, seed=3) for each in (less, true))
    same = lists = 0
    for step in range(3):
        one, two = ours(step, range(64)), plain(step, range(64))
        assert torch.equal(one.latents, two.latents) and torch.equal(one.noise, two.noise)
        for a, b in zip(one.caption, two.caption, strict=True):
            s, relation, o = parse(plain.texts[b])
            if ours.texts[a] == f"{with_article(s)} and {with_article(o)}":
                lists += 1
            else:
                assert parse(ours.texts[a])[::2] == (s, o)
                same += parse(ours.texts[a])[1] == relation
    if control == "list":
        assert same == 192 - lists and (70 < lists < 122 if share else lists == 192)
    else:
        assert len({parse(text)[1] for text in ours.texts[1:]}) == 14 and lists == 0
        assert 70 < same < 136 if share else 2 < same < 35  # by chance, 192 / 14 = 13.7


DIGESTS = {  # of all that twelve steps see, as computed when the first experiments ran
    "{}": "9882b35f2b868831", '{"balanced": false}': "207c8bd37d68c154", '{"rules": "sg2im"}': "6b7dc965c07eed5b",
    '{"control": "list"}': "e3fe33b7a4176481", '{"control": "list", "told": 0.5}': "557bb17354623f4c",
    '{"control": "shuffled"}': "0e6f288762a21994", '{"control": "shuffled", "told": 0.5}': "2679ae31e315a039",
    '{"families": ["scale"]}': "bc02ffc706e4f266", '{"withheld": 0.3}': "c80b1c635aef1cae",
    '{"control": "list", "told": 0.1, "families": ["projective", "scale"], "withheld": 0.1}': "145f88ae78d1ca6e",
    '{"doses": [0, 1, 2, 4, 8], "schedule": "cosine"}': "b8eeba41e75d6b85",
    '{"doses": [8, 4, 2, 1, 0], "schedule": "cosine", "families": ["projective"], "withheld": 0.1, "seed": 3, '
    '"balanced": false}': "710bb1742091d544",
}  # fmt: skip


@pytest.fixture(scope="module")
def boxes_and_latents(tmp_path_factory):
    """Boxes, latents and prompts of numbers drawn here, so that no other part of the project changes them."""
    folder, rng = tmp_path_factory.mktemp("photos"), np.random.default_rng(4)
    names, n = ["dog", "cat", "cup", "bus", "kite"], 40
    boxes = [
        {"id": 10 * i + k, "image_id": i, "category_id": int(rng.integers(1, 6)), "iscrowd": 0,
         "bbox": [int(v) for v in (*rng.integers(0, 40, 2), *rng.integers(4, 24, 2))]}
        for i in range(n) for k in range(3)
    ]  # fmt: skip
    images = [{"id": i, "width": 64, "height": 64, "file_name": f"{i}.png"} for i in range(n)]
    categories = [{"id": i, "name": name} for i, name in enumerate(names, 1)]
    write_json(folder / "train.json", {"images": images, "categories": categories, "annotations": boxes})
    table, usable = coco.read(folder / "train.json"), np.arange(n) % 9 != 3
    shard = np.random.default_rng(5).standard_normal((n, 2, 4, 8, 8)).astype(np.float16)
    shown = narrowed(true_captions(table).without(["cat"]), Choices(withheld=0.1, families=["projective"]))
    texts = shown.of_images(usable).texts()[0][::7][:20]
    rows = [(*parse(text), text, i % 5, i % 2 == 1, "dosed") for i, text in enumerate(texts)]
    columns = ["subject", "relation", "object", "caption", "group", "one_image", "objects"]
    pd.DataFrame(rows, columns=columns).to_parquet(folder / "prompts.parquet")
    encoded = Encoded([shard], np.arange(n), usable, {})
    return SimpleNamespace(table=table, encoded=encoded, prompts=folder / "prompts.parquet")


@pytest.mark.parametrize("choices", DIGESTS)
def test_what_is_drawn_never_changes(boxes_and_latents, net, choices):
    photos, c = boxes_and_latents, Choices.of({"steps": 12, "batch": 16, **json.loads(choices)})
    captions = narrowed(true_captions(photos.table, c.rules).without(["cat"]), c).of_images(photos.encoded.usable)
    captions = changed(captions, c, dosed_prompts(photos.prompts, c))
    sampler = Sampler(captions, photos.encoded, net, c.batch, c.caption_dropout, c.balanced, c.seed)
    digest = hashlib.sha256("\n".join(sampler.texts).encode())
    for step in range(c.steps):
        batch = sampler(step, range(c.batch))
        for part in (batch.latents, batch.noise, batch.timestep):
            digest.update(part.numpy().tobytes())
        digest.update(batch.caption.tobytes())
    assert digest.hexdigest()[:16] == DIGESTS[choices]
