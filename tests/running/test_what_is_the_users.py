"""Folders and files that are the user's: nothing of theirs is deleted, and nothing is taken for what it is not."""

import os
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import processes
import pytest
import tiny
from PIL import Image

from sr4g_utils.dataset.captions import caption
from sr4g_utils.evaluation import detect, generate
from sr4g_utils.store import files
from sr4g_utils.store.run import Run

TRIPLETS = [("dog", "left of", "cat"), ("cup", "inside", "bowl"), ("bus", "below", "kite")]
FAST = {"images": 1, "steps": 1, "batch": 4, "group": 2}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """A pipeline, a detector, prompts and a folder of images."""
    at = tmp_path_factory.mktemp("world")
    tiny.stable_diffusion(at / "sd")
    tiny.owlvit(at / "owlvit")
    table = pd.DataFrame(TRIPLETS, columns=["subject", "relation", "object"])
    table = table.assign(prompt_id=range(3), caption=[caption(*triplet) for triplet in TRIPLETS])
    table.to_parquet(at / "prompts.parquet")
    generate.write_images(at / "images", at / "prompts.parquet", model=at / "sd", sampling=FAST)
    return SimpleNamespace(sd=at / "sd", owlvit=at / "owlvit", prompts=at / "prompts.parquet", images=at / "images")


def draw(world: SimpleNamespace, folder: Path, **sampling: Any) -> dict[str, Any]:
    return generate.write_images(folder, world.prompts, model=world.sd, sampling={**FAST, **sampling})


FOREIGN = ("2024-run-7/a.png", "00000/samples/0.png", "00000/metadata.jsonl", "notes.txt", "record.json")


@pytest.mark.parametrize("name", FOREIGN)
def test_a_folder_that_is_not_ours_is_refused_and_left_alone(world, tmp_path, name) -> None:
    files.write_text(tmp_path / name, "{}")
    with pytest.raises(ValueError, match=r"is not empty, and no folder of images made here; name another one"):
        draw(world, tmp_path)
    assert processes.tree(tmp_path) == {name: b"{}"}


def test_the_users_files_in_our_folder_are_never_deleted(world, tmp_path, capsys) -> None:
    draw(world, folder := tmp_path / "images")
    for name in ("2024-run-7", "00009", "00000"):
        files.write_text(folder / name / "mine.txt", name)
    draw(world, folder, seed=1)
    draw(world, folder, seed=2)
    assert {path.read_text() for path in tmp_path.rglob("mine.txt")} == {"2024-run-7", "00009", "00000"}
    told = capsys.readouterr().err
    assert f"the old one is {folder}.before\n" in told
    assert f"the old one is {folder}.before-2 (and older ones: {folder}.before)" in told
    assert len(list(tmp_path.glob("images*/00000/0_0.webp"))) == 3


def test_a_file_of_boxes_is_set_aside_if_it_is_ours_and_else_left_alone(world, tmp_path, capsys) -> None:
    pd.DataFrame({"a": [1]}).to_parquet(path := tmp_path / "boxes.parquet")
    before = path.read_bytes()
    with pytest.raises(ValueError, match="is there already, and no file of boxes made here"):
        detect.write_detections(path, world.images, detector=world.owlvit)
    assert path.read_bytes() == before
    path.unlink()
    first = detect.write_detections(path, world.images, detector=world.owlvit)
    before = path.read_bytes()
    second = detect.write_detections(path, world.images, detector=world.owlvit, floor=0.3)
    assert (tmp_path / "boxes.parquet.before").read_bytes() == before and len(list(tmp_path.iterdir())) == 2
    assert "holds boxes of another configuration; the old one is" in capsys.readouterr().err
    assert first["boxes"] > second["boxes"] > 0


def test_names_of_stages_lead_to_no_other_folder_and_share_no_record(tmp_path) -> None:
    run = Run(tmp_path / "run", "01_test")
    for name in ("../mine", "images/../../mine", "/tmp/mine", "."):
        with pytest.raises(ValueError, match="cannot name an artifact"):
            run.stage(name, write, text="a")
    for _ in range(2):
        for name in ("owner/name", "owner_name"):
            path, _ = run.stage(name, write, text=name)
            assert path.read_text() == name
    assert [path.name for path in written] == ["name", "owner_name"]


written: list[Path] = []


def write(path: Path, text: str, **more: Any) -> None:
    written.append(path)
    files.write_text(path, text)


def write_parts(path: Path, text: str, parts: int = 1) -> int:
    for i in range(parts):
        if not (path / f"{i}").exists():
            write(path / f"{i}", text)
    return parts


@pytest.fixture(autouse=True)
def nothing_written() -> None:
    written.clear()


def test_every_heavy_result_is_kept_under_a_number(tmp_path, capsys) -> None:
    run = Run(tmp_path / "run", "01_test")
    for text in ("first", "second", "third", "fourth"):
        run.stage("tuned", write_parts, heavy=True, text=text)
        run.stage("boxes.parquet", write, heavy=True, text=text)
    for name, part in (("tuned", "0"), ("boxes.parquet", "")):
        before = run.folder / "artifacts" / f"{name}.before"
        found = [before.with_name(before.name + number) / part for number in ("", "-2", "-3")]
        assert [path.read_text() for path in found] == ["first", "second", "third"]
        assert (before.with_suffix("") / part).read_text() == "fourth"
    told, before = capsys.readouterr().err, run.folder / "artifacts" / "tuned.before"
    assert f"starting afresh; the old one is {before}\n" in told and f"older ones: {before}, {before}-2)" in told


def test_what_only_prolongs_a_stage_goes_on(tmp_path, capsys) -> None:
    run = Run(tmp_path / "run", "01_test")
    for parts in (2, 3, 3, 2):
        _, result = run.stage("tuned", write_parts, heavy=True, prolongs={"parts": parts}, text="a")
        assert result == parts
    assert [path.name for path in written] == ["0", "1", "2"] and capsys.readouterr().err == ""
    run.stage("tuned", write_parts, heavy=True, prolongs={"parts": 3}, text="b")
    assert "starting afresh; the old one is" in capsys.readouterr().err and len(written) == 6


def image(path: Path, grey: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((8, 8, 3), grey, np.uint8)).save(path)


def test_images_replaced_by_others_of_equal_size_are_others_and_what_is_hidden_is_no_content(tmp_path) -> None:
    for i in range(3):
        image(tmp_path / "a" / f"{i}_0.bmp", 10 * i)
    first, times = files.digest(tmp_path / "a"), (tmp_path / "a" / "1_0.bmp").stat()
    image(tmp_path / "a" / "1_0.bmp", 99)
    assert (tmp_path / "a" / "1_0.bmp").stat().st_size == times.st_size
    assert files.digest(tmp_path / "a") != first
    os.utime(tmp_path / "a" / "1_0.bmp", ns=(times.st_atime_ns, times.st_mtime_ns))  # as unzip and rsync do
    assert files.digest(tmp_path / "a") != first
    image(tmp_path / "a" / "1_0.bmp", 10)
    assert files.digest(tmp_path / "a") == first
    (tmp_path / "a" / ".DS_Store").write_text("x")
    image(tmp_path / "a" / ".ipynb_checkpoints" / "0_0.png", 1)
    (tmp_path / "a" / "again").symlink_to(tmp_path / "a")  # followed once
    (tmp_path / "a" / "gone.png").symlink_to(tmp_path / "nowhere")
    (tmp_path / "a" / "gone.png").unlink()
    assert files.digest(tmp_path / "a") == first


def test_a_folder_of_many_images_is_read_once_and_a_copy_has_its_digest(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(files, "MANY", 3)
    monkeypatch.setattr(files, "CLOCK", -1)
    monkeypatch.setenv("SR4G_CACHE", str(tmp_path / "cache"))
    for i in range(4):
        image(tmp_path / "a" / f"{i}_0.png", i)
    first = files.digest(tmp_path / "a")
    monkeypatch.setattr(files, "_seen", {})  # another process
    opened: list[Path] = []
    own = Path.open
    monkeypatch.setattr(Path, "open", lambda self, *given, **more: (opened.append(self), own(self, *given, **more))[1])
    assert files.digest(tmp_path / "a") == first and not any(path.suffix == ".png" for path in opened)
    shutil.copytree(tmp_path / "a", tmp_path / "b", copy_function=shutil.copyfile)
    assert files.digest(tmp_path / "b") == first and sum(path.suffix == ".png" for path in opened) == 4
    image(tmp_path / "a" / "2_0.png", 200)
    assert files.digest(tmp_path / "a") != first


def test_detections_of_replaced_images_are_made_again(world, tmp_path) -> None:
    shutil.copytree(world.images, images := tmp_path / "images")
    path = tmp_path / "boxes.parquet"
    detect.write_detections(path, images, detector=world.owlvit, floor=0.0)
    before = path.read_bytes()
    one, two = images / "00000" / "0_0.webp", images / "00000" / "1_0.webp"
    pixels = [np.asarray(Image.open(each)) for each in (one, two)]
    for each, other in ((one, pixels[1]), (two, pixels[0])):
        Image.fromarray(other).save(each, **generate.LOSSLESS)
    detect.write_detections(path, images, detector=world.owlvit, floor=0.0)
    assert path.read_bytes() != before


def test_a_copied_run_is_not_made_again(tmp_path) -> None:
    run = Run(tmp_path / "run", "01_test")
    run.stage("images", write_parts, heavy=True, text="a", parts=3)
    shutil.copytree(run.folder, tmp_path / "copy", copy_function=shutil.copyfile)  # new times
    Run(tmp_path / "copy", "01_test").stage("images", write_parts, heavy=True, text="a", parts=3)
    assert len(written) == 3


def test_temporaries_are_unique_and_those_of_the_dead_are_swept(tmp_path) -> None:
    path = tmp_path / "file.txt"
    with files.atomic(path) as one, files.atomic(path) as two:
        one.write_text("1")
        two.write_text("2")
        files.sweep(tmp_path)
        assert one != two and one.exists() and two.exists(), "we are alive"
    assert path.read_text() == "1" and list(tmp_path.iterdir()) == [path]
    dead = os.fork()
    if not dead:
        files.temporary(path).write_text("half")
        files.temporary(tmp_path / "folder").mkdir()
        os._exit(0)
    os.waitpid(dead, 0)
    other = tmp_path / f".there.{'0' * 8}-1-{'0' * 8}.partial"  # of another machine, where process 1 may be alive
    kept = {path, other, *(tmp_path / name for name in (".mine.partial", "mine.partial", ".a.0-1-2.partial"))}
    for mine in kept - {path}:
        mine.write_text("the user's")
    assert len(list(tmp_path.iterdir())) == 7
    files.sweep(tmp_path)
    assert set(tmp_path.iterdir()) == kept
    os.utime(other, (0, 0))
    files.sweep(tmp_path)
    assert not other.exists()


def test_two_processes_do_not_make_one_stage(tmp_path) -> None:
    run = Run(tmp_path / "run", "01_test")

    def slow(path: Path) -> None:
        with pytest.raises(BlockingIOError, match=r"artifacts/x is in use by another run"):
            run.stage("x", slow)
        write(path, "a")

    slow.__module__ = "sr4g_utils.evaluation.generate"
    run.stage("x", slow)
