"""What a step of fine-tuning sees: captions, latents and text, drawn by seed, step and place."""

import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest
import tiny
import torch
from PIL import Image
from tuning import encode

from sr4g_utils.dataset import coco, photos
from sr4g_utils.finetuning import batches, latents
from sr4g_utils.finetuning.batches import Sampler, Text
from sr4g_utils.finetuning.captions import crop_changes, true_captions
from sr4g_utils.models.load import load_pipeline


def test_captions_are_those_of_the_dataset_without_held_out_categories(world, captions):
    rows = pq.read_table(world.triplets).to_pandas()
    rows = rows[rows.subject != rows.object]
    written = set(zip(rows.image_id, rows.caption, strict=True))
    pairs = zip(captions.image, captions.triplet, strict=True)
    assert {(int(world.table.image_id[i]), captions.text(t)) for i, t in pairs} == written
    assert len(captions) == len(written)
    assert (np.diff(captions.image.astype(np.int64) << 32 | captions.triplet) > 0).all()
    with_same = true_captions(world.table, same_category=True)
    assert len(with_same) == pq.read_metadata(world.triplets).num_rows
    left = captions.without(["cat", "dog"])
    texts = [captions.text(t) for t in np.unique(captions.triplet)]
    assert {left.text(t) for t in np.unique(left.triplet)} == {t for t in texts if not {"cat", "dog"} & set(t.split())}
    with pytest.raises(ValueError, match="held_out: the annotations have no category 'unicorn'"):
        captions.without(["unicorn"])


def test_crop_changes_are_counted(shared):
    table = coco.read(shared / "coco_excerpt" / "annotations" / "instances_val2017.json").without_crowds()
    cropped = photos.crop_table(table, 512, 0.5)
    before, after = true_captions(table), true_captions(cropped)
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


def test_latents_are_made_once_and_go_on_where_they_were_interrupted(world, captions, pipeline, tmp_path, monkeypatch):
    monkeypatch.setattr(latents, "SHARD", 40)
    encode(world, captions, pipeline, tmp_path)
    files = {path: path.read_bytes() for path in sorted(tmp_path.rglob("*.npy"))}
    assert len(files) == -(-len(np.unique(captions.image)) // 40)
    first, second, *_ = files
    second.unlink()
    stamp = first.stat().st_mtime_ns
    encode(world, captions, pipeline, tmp_path)
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
    with pytest.raises(ValueError, match=rf"2 of {found.report['photos']} photos are unusable.*{names[0]} is missing"):
        found.check(0.001)


def test_what_a_step_sees_does_not_depend_on_who_sees_it(captions, encoded, pipeline):
    sampler = Sampler(captions, encoded, pipeline, size=12, seed=3)
    whole = sampler(7, range(12))
    for parts in ([range(6), range(6, 12)], [range(i, i + 1) for i in range(12)], [range(8), range(8, 12)]):
        pieces = [sampler(7, part) for part in parts]
        for name in ("latents", "noise", "timestep"):
            assert torch.equal(torch.cat([getattr(piece, name) for piece in pieces]), getattr(whole, name))
        np.testing.assert_array_equal(np.concatenate([piece.caption for piece in pieces]), whole.caption)
    assert not torch.equal(sampler(8, range(12)).noise, whole.noise)
    assert not torch.equal(Sampler(captions, encoded, pipeline, size=12, seed=4)(7, range(12)).noise, whole.noise)
    assert len(torch.unique(whole.noise)) > 0.99 * whole.noise.numel()  # no two places share their noise


def test_the_draw_has_the_distribution_that_it_says(captions, encoded, pipeline):
    n = 4000
    batch = Sampler(captions, encoded, pipeline, size=n, dropout=0.25)(0, range(n))
    assert abs((batch.caption == 0).mean() - 0.25) < 0.03
    assert abs(batch.noise.mean()) < 0.01 and abs(batch.noise.std() - 1) < 0.01
    assert batch.timestep.min() < 20 and batch.timestep.max() > 980 and abs(batch.timestep.float().mean() - 499.5) < 20
    sampler = Sampler(captions, encoded, pipeline, size=n, dropout=0.0)
    relation = captions.relation[sampler.rows(0)]
    np.testing.assert_allclose(np.bincount(relation, minlength=14) / n, 1 / 14, atol=0.02)
    natural = Sampler(captions, encoded, pipeline, size=n, balanced=False)
    relation, share = captions.relation[natural.rows(0)], np.bincount(captions.relation) / len(captions)
    np.testing.assert_allclose(np.bincount(relation, minlength=14) / n, share, atol=0.02)


def test_a_sample_s_latents_are_of_its_caption_s_photo(captions, encoded, pipeline):
    sampler = Sampler(captions, encoded, pipeline, size=50, dropout=0.0)
    batch = sampler(0, range(50))
    rows = sampler.rows(0)
    for row, noisy, said in zip(rows, batch.latents, batch.caption, strict=True):
        assert sampler.texts[said] == captions.text(captions.triplet[row])
        mean, deviation = encoded[int(captions.image[row])]
        sigma = (noisy.numpy() / pipeline.vae.config.scaling_factor - mean) / np.maximum(deviation, 1e-6)
        assert abs(sigma.mean()) < 0.4 and 0.7 < sigma.std() < 1.3


def test_text_states_are_the_pipeline_s_own_cached_or_not(captions, pipeline):
    texts = ["", *(captions.text(t) for t in np.unique(captions.triplet)[:40])]
    cached, fly = Text(pipeline, texts, 512, 10**6), Text(pipeline, texts, 512, 3)
    assert cached.cached and not fly.cached and not Text(pipeline, texts, 0, 10**6).cached
    numbers = np.array([0, 5, 5, 40, 1])
    for i, state in enumerate(cached(numbers)):
        own = pipeline.encode_prompt(texts[numbers[i]], "cpu", 1, False)[0][0]
        torch.testing.assert_close(state, own, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(cached(numbers), fly(numbers), rtol=1e-5, atol=1e-5)


def test_the_next_batch_is_made_ahead():
    made: list[int] = []
    seen = list(batches.ahead(lambda step: made.append(step) or 10 * step, range(3, 7)))
    assert seen == [(step, 10 * step) for step in range(3, 7)] and made == [3, 4, 5, 6]
    assert list(batches.ahead(made.append, range(3, 3))) == []
