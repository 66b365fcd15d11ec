"""Photos of every kind, and the proof that boxes and pixels go through the same crop, synthetic and real."""

import itertools
import os
import re
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from test_boxes import made_unreadable

from sr4g_utils.dataset import boxes, coco, photos
from sr4g_utils.dataset.boxes import BoxTable
from sr4g_utils.dataset.photos import PhotoError, Photos
from sr4g_utils.relations import judge


def table_of(width: float, height: float, xywh: np.ndarray) -> BoxTable:
    """One image with boxes of one category."""
    n, (x, y, w, h) = len(xywh), np.asarray(xywh, np.float64).T
    return BoxTable(
        np.array([1]), pa.array(["a.jpg"]), np.array([float(width)]), np.array([float(height)]), boxes.COCO_CATEGORIES,
        np.zeros(n, np.int32), np.zeros(n, np.int16), x, y, w, h, np.zeros(n, bool),
    )  # fmt: skip


def gradient(width: int, height: int) -> np.ndarray:
    """An image in which no two corners look alike."""
    y, x = np.mgrid[:height, :width]
    return np.stack([x * 255 // width, y * 255 // height, np.full_like(x, 60)], axis=-1).astype(np.uint8)


def save(path: Path, pixels: np.ndarray, **options) -> Path:
    Image.fromarray(pixels).save(path, **options)
    return path


# --------------------------------------------------------------------------------------------------------- reading
@pytest.mark.parametrize(("mode", "suffix", "counted"), [
    ("L", "jpg", "grayscale"), ("LA", "png", "grayscale"), ("1", "png", "grayscale"), ("CMYK", "jpg", "CMYK"),
    ("RGBA", "png", "transparent"), ("P", "png", None),
])  # fmt: skip
def test_other_colour_spaces_become_rgb_and_are_counted(tmp_path: Path, mode: str, suffix: str, counted: str) -> None:
    grey = np.full((20, 30, 3), 204, np.uint8)  # a colour of Pillow's palette
    Image.fromarray(grey).convert(mode).save(tmp_path / f"a.{suffix}")
    source = Photos(tmp_path)
    pixels = source.read(f"a.{suffix}")
    assert pixels.shape == (20, 30, 3) and pixels.dtype == np.uint8
    assert set(np.unique(pixels)) == {0, 255} if mode == "1" else np.abs(pixels.astype(int) - 204).max() <= 6
    assert (counted in source.counts) if counted else not source.counts


def test_colours_stay_sixteen_bit_grey_is_scaled_and_transparent_pixels_are_seen_on_white(tmp_path: Path) -> None:
    save(tmp_path / "colour.png", gradient(30, 20))
    source = Photos(tmp_path)
    np.testing.assert_array_equal(source.read("colour.png", (30, 20)), gradient(30, 20))
    assert not source.counts
    save(tmp_path / "grey.png", np.full((4, 6), 40_000, np.uint16))
    assert (Photos(tmp_path).read("grey.png") == 40_000 >> 8).all(), "not clipped"
    save(tmp_path / "transparent.png", np.dstack([gradient(6, 4), np.zeros((4, 6), np.uint8)]))
    assert (Photos(tmp_path).read("transparent.png") == 255).all()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_undone_unless_the_boxes_were_drawn_without_it(tmp_path: Path, orientation: int) -> None:
    upright = Image.fromarray(gradient(30, 20))
    undo = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # the transposition that stores an upright photo so
    stored = upright.transpose(Image.Transpose(undo[orientation])) if orientation > 1 else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.save(tmp_path / "a.png", exif=exif)
    source = Photos(tmp_path)
    np.testing.assert_array_equal(source.read("a.png", (30, 20)), gradient(30, 20))
    assert source.counts == ({"EXIF-rotated": 1} if orientation > 1 else {})
    if orientation >= 5:  # turned by a right angle: the annotated size tells what the annotators saw
        np.testing.assert_array_equal(source.read("a.png", (20, 30)), np.asarray(stored))
        assert source.counts["EXIF rotation ignored"] == 1


def test_what_cannot_be_used_is_named_in_one_line(tmp_path: Path) -> None:
    whole = save(tmp_path / "a.jpg", gradient(300, 200)).read_bytes()
    broken = {"half.jpg": whole[: len(whole) // 2], "empty.jpg": b"", "text.jpg": b"<html>not found</html>"}
    for name, content in broken.items():
        (tmp_path / name).write_bytes(content)
    problems = dict.fromkeys(broken, "not a readable photo") | {"gone.jpg": "missing"}
    problems["a.jpg"] = "300 × 200 pixels, but annotated as 400 × 200"
    for name, problem in problems.items():
        with pytest.raises(PhotoError, match=problem) as caught:
            Photos(tmp_path).read(name, (400.0, 200.0) if name == "a.jpg" else None)
        assert name in str(caught.value) and "\n" not in str(caught.value)


def test_a_zip_is_read_like_its_folder(tmp_path: Path) -> None:
    folder = tmp_path / "train2017"
    folder.mkdir()
    with zipfile.ZipFile(tmp_path / "train2017.zip", "w") as archive:
        for i in range(8):
            archive.write(save(folder / f"{i}.png", gradient(30 + i, 20)), f"train2017/{i}.png")
    packed, loose = Photos(tmp_path / "train2017.zip"), Photos(folder)
    names = [f"{i}.png" for i in range(8)] * 20
    with ThreadPoolExecutor(8) as threads:  # they share one file
        for a, b in zip(threads.map(packed.read, names), map(loose.read, names), strict=True):
            np.testing.assert_array_equal(a, b)
    assert packed.contents(["0.png", "gone.png"])[1] == loose.contents(["0.png", "gone.png"])[1] == ""
    with pytest.raises(PhotoError, match=r"gone\.png is missing"):
        packed.read("gone.png")


# ------------------------------------------------------------------------------------------------- which photo is meant
def source_of(folder: Path, kind: str, *paths: str, name: str = "all") -> Photos:
    """Photos at these paths of a folder or zip; the width of each tells which it is, 30 pixels for the first."""
    packed, root = zipfile.ZipFile(folder / f"{name}.zip", "w"), folder / name
    with packed as archive:
        for i, path in enumerate(paths):
            file = root / path.replace("\\", "/")
            file.parent.mkdir(parents=True, exist_ok=True)
            archive.write(save(file, gradient(30 + i, 20)), path)
    return Photos(root if kind == "folder" else folder / f"{name}.zip")


def found(source: Photos, file_name: str) -> int:
    return source.read(file_name).shape[1] - 30


@pytest.mark.parametrize("kind", ["folder", "zip"])
def test_the_full_path_comes_first_and_a_bare_name_must_be_unique(tmp_path: Path, kind: str) -> None:
    source = source_of(tmp_path, kind, "video_a/1.png", "video_b/1.png", "video_b/2.png", "1.png")
    for name in ("video_b/1.png", r"video_b\1.png", "./video_b/1.png", r".\video_b\..\video_b\1.png", "video_b//1.png"):
        assert found(source, name) == 1
    assert found(source, "video_a/1.png") == 0 and found(source, "1.png") == 3
    assert found(source, "2.png") == found(source, r"C:\data\all\video_b\2.png") == 2
    sizes = source.contents(["video_a/1.png", r"video_b\1.png", "2.png", "video_b/2.png", "video_c/1.png", "", "."])
    assert sizes[0] != sizes[1] and sizes[2] == sizes[3] != "" and sizes[4:] == ["", "", ""]


@pytest.mark.parametrize("kind", ["folder", "zip"])
def test_a_missing_photo_is_never_somebody_elses(tmp_path: Path, kind: str) -> None:
    source = source_of(tmp_path, kind, "video_a/1.png", "video_b/1.png", "video_b/2.png")
    for name, problem in (
        ("1.png", r"could be any of .*video_a/1\.png, .*video_b/1\.png; write the folder"),
        ("video_c/1.png", "is missing; there is .*video_a/1.png.*, but in a folder of another name"),
        ("video_a/2.png", "is missing; there is .*video_b/2.png.*, but in a folder of another name"),
        *((name, "is missing") for name in ("3.png", "", "..", "\0")),
    ):
        with pytest.raises(PhotoError, match=rf"{re.escape(name)} {problem}"):
            source.read(name)
    assert source.contents(["1.png", "video_c/1.png", "video_a/2.png"]) == [""] * 3


@pytest.mark.parametrize("kind", ["folder", "zip"])
def test_the_sources_own_name_counts_as_a_folder(tmp_path: Path, kind: str) -> None:
    source = source_of(tmp_path, kind, "1.png", name="video_a")
    assert found(source, "video_a/1.png") == found(source, "/data/video_a/1.png") == found(source, "../1.png") == 0
    told = r"video_b/1\.png is missing; there is .*1\.png, but in a folder of another name"
    with pytest.raises(PhotoError, match=told):
        source.read("video_b/1.png")


def test_a_zip_packed_with_backslashes_and_a_folder_with_hidden_and_linked_folders(tmp_path: Path) -> None:
    source = source_of(tmp_path, "zip", r"images\1.png", r"images\2.png")
    assert found(source, "images/2.png") == found(source, r"images\2.png") == found(source, "2.png") == 1
    source = source_of(tmp_path, "folder", "a/1.png", ".trash/1.png", "a/.trash/2.png", name="linked")
    for name in ("b", "c", "a/round"):
        (source.source / name).symlink_to(source.source / "a")
    assert found(source, "1.png") == found(source, "b/1.png") == 0  # by its name once, by each of its paths
    (tmp_path / "else.png").write_bytes((source.source / "a/1.png").read_bytes())
    for name in ("2.png", "../else.png", str(tmp_path / "else.png")):
        with pytest.raises(PhotoError, match="is missing"):
            source.read(name)


@pytest.mark.parametrize("kind", ["folder", "zip"])
@pytest.mark.parametrize(("there", "name"), [
    ("1.JPG", "1.jpg"), ("1.jpeg", "1.JPG"), ("a b.png", "a%20b.png"), ("a%20b.png", "a b.png"), ("A/1.PNG", "a/1.png"),
    ("cafe\u0301.png", "café.png"), ("ärger/ö.png", "%C3%A4rger/%C3%B6.png"), ("1.jfif", "1.jpg"),
])  # fmt: skip
def test_a_name_may_differ_in_capitals_escapes_and_accents(tmp_path: Path, kind: str, there: str, name: str) -> None:
    source = source_of(tmp_path, kind, "other.png", there)
    assert found(source, name) == 1 and source.contents([name]) != [""]
    source = source_of(tmp_path, kind, name, there, name="both")
    assert found(source, name) == 0, "the very name comes first"


def test_two_that_differ_in_capitals_are_not_guessed_between(tmp_path: Path) -> None:
    with pytest.raises(PhotoError, match=r"a\.png could be any of .*A\.png, .*a\.PNG"):
        found(source_of(tmp_path, "zip", "A.png", "a.PNG"), "a.png")


def test_names_in_a_zip_are_utf_8_also_without_the_flag(tmp_path: Path) -> None:
    class Plain(zipfile.ZipInfo):
        def _encodeFilenameFlags(self):  # as some programs write it
            return self.filename.encode(), 0

    pixels = save(tmp_path / "a.png", gradient(30, 20)).read_bytes()
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as archive:
        for name in ("café/père.png", "plain.png", "日本/犬.png"):
            archive.writestr(Plain(name), pixels)
    source = Photos(tmp_path / "all.zip")
    for name in ("café/père.png", "père.png", "日本/犬.png", "plain.png"):
        assert source.read(name).shape == (20, 30, 3)


def test_a_wrong_folder_is_told_by_its_first_missing_photo(tmp_path: Path) -> None:
    source = source_of(tmp_path, "folder", "1.png", "2.png")
    assert source.contents(["1.png", "3.png"], 0.5)[1] == ""
    told = r"3\.png is missing; 1 of 2 photos are missing, it holds 2 files such as 1\.png\. Is it the folder of these"
    with pytest.raises(PhotoError, match=told):
        source.contents(["1.png", "3.png"], 0.4)


def test_what_would_take_too_much_is_refused_by_limits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for kind in ("folder", "zip"):
        source = source_of(tmp_path, kind, "1.png")
        for name, most, told in (("PIXELS", 599, "its pixels: 600"), ("BYTES", 50, r"its bytes: \d+")):
            with monkeypatch.context() as patch:
                patch.setenv(f"SR4G_PHOTO_{name}", str(most))
                with pytest.raises(PhotoError, match=rf"1\.png .*{told} is above the limit of {most}; .* SR4G_PHOTO_"):
                    source.read("1.png")
    assert found(source, "1.png") == 0
    os.mkfifo(tmp_path / "all" / "pipe.png")
    Image.fromarray(gradient(9, 9)).save(tmp_path / "all" / "2.png", "EPS")
    for name, told in (("pipe.png", "is no regular file"), ("2.png", "it is PostScript")):
        with pytest.raises(PhotoError, match=rf"{name} .*{told}"):
            Photos(tmp_path / "all").read(name)


letters = st.lists(st.sampled_from("ab"), min_size=1, max_size=3).map("/".join)


@given(st.sets(letters, min_size=1, max_size=4).map(sorted), letters, st.sampled_from(["folder", "zip"]))
def test_a_photo_is_found_by_the_slow_rule(tmp_path_factory, paths: list[str], name: str, kind: str) -> None:
    """The exact path; or else the only one that agrees from the end, the folder's own name included."""
    paths = [f"{path}/{path[-1]}.png" for path in paths]
    name = f"{name}/{name[-1]}.png"
    source = source_of(tmp_path_factory.mktemp("photos"), kind, *paths, name="a")
    whole = {path: f"a/{path}" if kind == "folder" else path for path in paths}
    agree = [p for p, full in whole.items() if f"/{full}".endswith(f"/{name}") or f"/{name}".endswith(f"/{full}")]
    meant = [name] if name in paths else agree
    if len(meant) == 1:
        assert found(source, name) == paths.index(meant[0])
    else:
        with pytest.raises(PhotoError, match="could be any of" if meant else "is missing"):
            source.read(name)


def test_a_source_that_cannot_be_read(tmp_path: Path) -> None:
    source_of(tmp_path, "zip", "1.png", "2.png")
    for problem in made_unreadable(tmp_path / "all.zip"):
        with pytest.raises(PhotoError, match=rf"1\.png cannot be read from the zip .*{problem}"):
            Photos(tmp_path / "all.zip").read("1.png")
    with pytest.raises(PhotoError, match="no folder or zip"):
        Photos(tmp_path / "nowhere")
    (tmp_path / "cut.zip").write_bytes(b"PK\x03\x04 and no more")
    with pytest.raises(PhotoError, match="not a complete zip file"):
        Photos(tmp_path / "cut.zip")


# -------------------------------------------------------------------------------------------------------- the crop
sides = st.integers(8, 700)


@given(sides, sides, st.sampled_from([64, 96, 512]))
def test_the_crop_is_the_middle_square(width: int, height: int, resolution: int) -> None:
    resized, corner = photos.geometry(np.array(width), np.array(height), resolution)
    assert min(resized) == resolution
    left, right = corner, resized - resolution - corner
    assert (corner >= 0).all() and (np.abs(right - left) <= 1).all()
    x, y, w, h = photos.frame(width, height, resolution)
    assert min(x, y) >= 0 and x + w <= width + 1e-9 and y + h <= height + 1e-9


@given(st.integers(16, 200), st.integers(16, 200), st.integers(0, 2**32 - 1))
def test_a_box_ends_where_its_pixels_end(width: int, height: int, seed: int) -> None:
    """The box, painted and cropped as a photo, lies where the cropped table says; to the pixel, as far as pixels go."""
    rng = np.random.default_rng(seed)
    x, y = rng.integers(0, [width - 8, height - 8])
    w, h = rng.integers(8, [width - x + 1, height - y + 1])
    check_against_pixels(table_of(width, height, np.array([[x, y, w, h]])), 64)


def painted(xywh: np.ndarray, width: int, height: int, resolution: int) -> np.ndarray | None:
    """A box measured from the pixels of its painted, cropped image; None where it is cut away."""
    canvas = np.zeros((height, width, 3), np.uint8)
    x, y, w, h = xywh
    canvas[round(y) : round(y + h), round(x) : round(x + w)] = 255
    rows, columns = np.nonzero(photos.crop_photo(canvas, resolution)[:, :, 0] > 127)
    if not len(rows):
        return None
    return np.array([columns.min(), rows.min(), np.ptp(columns) + 1, np.ptp(rows) + 1], np.float64)


def check_against_pixels(table: BoxTable, resolution: int) -> tuple[BoxTable, np.ndarray]:
    """Each box that the crop leaves against its painted pixels; the boxes that pixels show, cropped and measured."""
    cropped, measured = [], []
    for i in range(len(table)):
        width, height = (int(side[table.image[i]]) for side in (table.width, table.height))
        found = painted(table.xywh([i])[0], width, height, resolution)
        left = photos.crop_table(table.rows(slice(i, i + 1)), resolution, 0.0)
        slack = 1 + max(resolution / min(width, height), 1)  # a pixel of crop and one of photo: painting rounds
        if len(left) and found is not None:
            corners = [np.concatenate([box[:2], box[:2] + box[2:]]) for box in (found, left.xywh()[0])]
            assert np.abs(corners[0] - corners[1]).max() <= slack
            cropped.append(i)
            measured.append(found)
        else:
            assert (found is None or min(found[2:]) <= slack) and (not len(left) or min(left.w[0], left.h[0]) <= slack)
    shown = photos.crop_table(table.rows(np.array(cropped, int)), resolution, 0.0)
    return shown, np.array(measured).reshape(-1, 4)


def test_captions_are_true_of_the_pixels_on_the_real_excerpt(shared: Path) -> None:
    """Relations of cropped boxes are those of boxes measured from cropped pixels, but where a pixel decides."""
    table = coco.read(shared / "coco_excerpt" / "annotations" / "instances_val2017.json").without_crowds()
    cropped, measured = check_against_pixels(table.rows(table.image < 25), 256)
    same = cropped.image[:, None] == cropped.image[None]
    s, o = np.nonzero(same & ~np.eye(len(cropped), dtype=bool))
    exact, pixels = judge(cropped.xywh(s), cropped.xywh(o)), judge(measured[s], measured[o])
    # small moves and changes of size of a box: if none of them changes a verdict, no pixel decides it
    moved = [judge(cropped.xywh(s) + shift, cropped.xywh(o)) for shift in itertools.product([-4.0, 0.0, 4.0], repeat=4)]
    clear = np.logical_and.reduce([exact == verdict for verdict in moved])
    assert len(s) > 1000 and clear.mean() > 0.7 and (exact == pixels)[clear].all()


def test_real_photos_match_their_boxes_and_crop(shared: Path) -> None:
    excerpt = shared / "coco_excerpt"
    table = coco.read(excerpt / "annotations" / "instances_val2017.json")
    source = Photos(excerpt / "val2017")
    for i in range(30):
        size = table.width[i].item(), table.height[i].item()
        photo = source.read(table.file_name[i].as_py(), size)
        crop = photos.crop_photo(photo, 128)
        assert crop.shape == (128, 128, 3)
        x, y, w, h = photos.frame(*size, 128)
        window = Image.fromarray(photo).resize((128, 128), Image.Resampling.BICUBIC, box=(x, y, x + w, y + h))
        assert np.abs(crop.astype(int) - np.asarray(window).astype(int)).mean() < 1.5  # cut first or resized first


def test_nothing_is_mirrored_and_a_photo_of_the_models_own_size_is_left_as_it_is() -> None:
    crop = photos.crop_photo(gradient(200, 100), 64).astype(int)
    assert (np.diff(crop[:, :, 0].mean(axis=0)) > 0).all() and (np.diff(crop[:, :, 1].mean(axis=1)) > 0).all()
    np.testing.assert_array_equal(photos.crop_photo(gradient(64, 64), 64), gradient(64, 64))


def test_boxes_mostly_outside_are_dropped_and_counted() -> None:
    # a photo of 200 × 100: the crop keeps x from 50 to 150
    table = table_of(200, 100, np.array([[0, 0, 40, 50], [30, 10, 30, 40], [40, 10, 40, 40], [60, 10, 20, 20]]))
    cropped = photos.crop_table(table, 100, 0.5)
    np.testing.assert_array_equal(cropped.xywh(), [[0, 10, 30, 40], [10, 10, 20, 20]])
    assert cropped.excluded == {photos.DROPPED: 2} and table.excluded == {}
    assert (cropped.width == 100).all() and (cropped.height == 100).all()
    assert len(photos.crop_table(table, 100, 0.0)) == 3  # what is wholly outside is gone in any case
    for arguments in ((0, 0.5), (100, 1.5)):
        with pytest.raises(ValueError, match="crop: resolution must be positive"):
            photos.crop_table(table, *arguments)
    table = table_of(200, 100, np.array([[0, 0, 40, 50], [60, 10, 30, 40], [80, 10, 40, 40]]))
    cropped = photos.crop_table(table, 100)
    assert photos.most_cropped(table, cropped) == 0, "the most cropped image keeps two boxes"
    assert [name for name, _ in photos.boxes_of(cropped, 0)] == ["person", "person"]
