import dataclasses
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pytest
from torch.utils.data import DataLoader

from data import (
    AugmentationSpec,
    BoxSpec,
    CropSpec,
    DataError,
    Draw,
    Frame,
    FrameDataset,
    GoodFrame,
    ImageError,
    Item,
    Manifest,
    SplitSpec,
    assign_splits,
    import_folder,
)
from data.dataset import load_frame
from data.loader import prefetch
from data.storage import sha256_hex
from data.synthetic import write_dataset

EVERYTHING = AugmentationSpec(
    rotation_deg=8, gradient=0.2, blur_px=1.5, shot_noise=0.02, paste_rate=0.5
)
CROP = CropSpec(height_px=64, width_px=64, defect_rate=1.0)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("drawn")
    write_dataset(folder, count=12, good_rate=0.34, seed=1, width_px=160, height_px=128)
    return folder


@pytest.fixture(scope="module")
def manifest(root: Path) -> Manifest:
    imported = import_folder(root, classes=["scratch", "pit", "stain"])
    assert imported.problems == ()
    items = assign_splits(imported.items, SplitSpec(group_pattern=r"part_(\d+)"))
    return Manifest("segmentation", imported.classes, items)


def dataset(manifest: Manifest, root: Path, **options: Any) -> FrameDataset:
    chosen: dict[str, Any] = {
        "seed": 0,
        "augmentation": AugmentationSpec(),
        "crop": CROP,
    }
    return FrameDataset(manifest, root, "train", **(chosen | options))


def assert_equal(one: Frame, other: Frame) -> None:
    assert one.name == other.name
    np.testing.assert_array_equal(one.pixels, other.pixels)
    np.testing.assert_array_equal(one.mask, other.mask)


def test_a_whole_frame_is_the_picture_and_its_mask(manifest: Manifest, root: Path) -> None:
    frames = dataset(manifest, root, augmentation=None, crop=None)
    for index, item in enumerate(frames.items):
        frame = frames.frame(index, epoch=0)
        assert frame.pixels.shape == (128, 160, 1)
        assert frame.mask.shape == (128, 160, 3)
        picture = imagecodecs.png_decode((root / item.file).read_bytes())
        np.testing.assert_array_equal(frame.pixels[:, :, 0], picture)
        assert frame.mask.any() == item.is_defective


def test_a_frame_depends_on_seed_epoch_and_index_alone(manifest: Manifest, root: Path) -> None:
    frames = dataset(manifest, root)
    first = [frames.frame(index, epoch=3) for index in range(len(frames))]
    again = dataset(manifest, root)
    for index in reversed(range(len(frames))):
        again.frame(index, epoch=1)
        assert_equal(again.frame(index, epoch=3), first[index])
    assert not np.array_equal(frames.frame(0, epoch=4).pixels, first[0].pixels)
    other_seed = dataset(manifest, root, seed=1).frame(0, epoch=3)
    assert not np.array_equal(other_seed.pixels, first[0].pixels)


def test_worker_processes_give_the_same_frames(manifest: Manifest, root: Path) -> None:
    frames = dataset(manifest, root)
    pairs = [(epoch, index) for epoch in (0, 1) for index in range(3)]
    loader = DataLoader(
        frames,
        sampler=pairs,
        batch_size=None,
        num_workers=2,
        # A forked child of a process with threads may hang; a fresh one also proves that nothing
        # is inherited.
        multiprocessing_context="spawn",
    )
    loaded = dict(zip(pairs, loader, strict=True))
    for pair, frame in loaded.items():
        expected = frames[pair]
        assert frame.name == expected.name
        np.testing.assert_array_equal(np.asarray(frame.pixels), expected.pixels)


def test_a_defect_crop_shows_a_defect_and_a_uniform_one_often_none(
    manifest: Manifest, root: Path
) -> None:
    shown: dict[float, list[bool]] = {0.0: [], 1.0: []}
    for rate, found in shown.items():
        frames = dataset(
            manifest,
            root,
            augmentation=None,
            crop=CropSpec(height_px=32, width_px=32, defect_rate=rate),
        )
        for index, item in enumerate(frames.items):
            if item.is_defective:
                found += [bool(frames.frame(index, epoch).mask.any()) for epoch in range(10)]
    assert all(shown[1.0])
    assert sum(shown[0.0]) < 0.8 * len(shown[0.0])


def test_a_frame_smaller_than_the_crop_is_extended_and_reported(
    manifest: Manifest, root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    crop = CropSpec(height_px=200, width_px=96, defect_rate=0.5)
    frames = dataset(manifest, root, augmentation=None, crop=crop)
    assert frames.padded_names == tuple(item.name for item in frames.items)
    assert "smaller than the crop" in caplog.text
    frame = frames.frame(0, epoch=0)
    assert frame.pixels.shape == (200, 96, 1)
    np.testing.assert_array_equal(frame.pixels[128:], frame.pixels[127:55:-1])
    np.testing.assert_array_equal(frame.mask[128:], frame.mask[127:55:-1])
    assert dataset(manifest, root).padded_names == ()


def test_one_colour_frame_makes_every_frame_of_the_set_colour(
    manifest: Manifest, root: Path
) -> None:
    items: list[Item] = list(manifest.items)
    train = next(index for index, item in enumerate(items) if item.split == "train")
    other = next(index for index, item in enumerate(items) if item.split == "test")
    items[other] = dataclasses.replace(items[other], channels=3)
    mixed = dataset(
        dataclasses.replace(manifest, items=tuple(items)), root, augmentation=None, crop=None
    )
    assert mixed.channels == 3
    index = [item.name for item in mixed.items].index(items[train].name)
    pixels = mixed.frame(index, epoch=0).pixels
    assert pixels.shape == (128, 160, 3)
    assert (pixels[:, :, 0] == pixels[:, :, 2]).all()


def test_a_picture_that_was_exchanged_is_refused_by_name(
    manifest: Manifest, root: Path, tmp_path: Path
) -> None:
    item = manifest.subset("train").items[0]
    (tmp_path / "images").mkdir()
    (tmp_path / item.file).write_bytes(b"another")
    with pytest.raises(DataError) as caught:
        dataset(manifest, tmp_path).frame(0, epoch=0)
    assert (caught.value.code, caught.value.file) == ("file_changed", item.name)


def test_there_is_no_frame_beyond_the_last(manifest: Manifest, root: Path) -> None:
    frames = dataset(manifest, root)
    for index in (-1, len(frames)):
        with pytest.raises(IndexError):
            frames.frame(index, epoch=0)


def test_16_bit_frames_stay_16_bit(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for index in range(3):
        pixels = rng.integers(0, 65536, (80, 80), dtype=np.uint16)
        (tmp_path / f"{index}.png").write_bytes(imagecodecs.png_encode(pixels))
    imported = import_folder(tmp_path, unlabelled="good")
    items = assign_splits(imported.items, SplitSpec())
    frames = dataset(Manifest("segmentation", ("defect",), items), tmp_path)
    frame = frames.frame(0, epoch=0)
    assert frame.pixels.dtype == np.uint16
    assert len(np.unique(frame.pixels)) > 1000


def test_a_picture_of_another_size_than_the_manifest_says_is_refused_by_its_name(
    tmp_path: Path,
) -> None:
    raw = bytes(imagecodecs.png_encode(np.zeros((48, 64), np.uint8)))
    (tmp_path / "a").write_bytes(raw)
    digest = sha256_hex(raw)
    item = Item("a.png", "a", "a", digest, 48, 64, 1, 8, None, "train", GoodFrame())
    with pytest.raises(ImageError) as caught:
        load_frame(item, tmp_path, ("pit",), 1, bayer=None)
    assert (caught.value.code, caught.value.file) == ("image_size_mismatch", "a.png")


def test_threads_that_load_ahead_give_the_same_frames_in_order(
    manifest: Manifest, root: Path
) -> None:
    frames = dataset(manifest, root, augmentation=EVERYTHING)
    draws = [Draw(index, repeat) for repeat in (0, 1) for index in range(len(frames))]
    expected = [frames.show(draw, 2) for draw in draws]
    for workers in (1, 3):
        loaded = prefetch(
            lambda draw: frames.show(draw, 2), draws, workers=workers, ahead=2 * workers
        )
        for one, other in zip(loaded, expected, strict=True):
            assert_equal(one, other)
    assert not np.array_equal(expected[0].pixels, expected[len(frames)].pixels)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_frame_damaged_in_storage_is_named_by_the_loader(
    manifest: Manifest, root: Path, tmp_path: Path, workers: int
) -> None:
    frames = dataset(manifest, tmp_path)
    (tmp_path / "images").mkdir()
    (tmp_path / frames.items[0].file).write_bytes(b"another")
    loaded = prefetch(lambda index: frames.frame(index, 0), [0], workers=workers, ahead=2)
    with pytest.raises(DataError) as caught:
        next(loaded)
    assert (caught.value.code, caught.value.file) == ("file_changed", frames.items[0].name)


def test_a_pasted_defect_comes_with_its_label_and_its_box(manifest: Manifest, root: Path) -> None:
    plain = AugmentationSpec(flips=False, light=False, noise=False)
    pasting = plain.model_copy(update={"paste_rate": 1.0})
    crop = CropSpec(height_px=96, width_px=96, defect_rate=0.0)
    before = dataset(manifest, root, augmentation=plain, crop=crop, boxes=BoxSpec(0.0))
    after = dataset(manifest, root, augmentation=pasting, crop=crop, boxes=BoxSpec(0.0))
    pasted = 0
    for index in range(len(before)):
        old, new = before.frame(index, 0), after.frame(index, 0)
        assert old.boxes is not None
        assert new.boxes is not None
        assert (new.mask >= old.mask).all()
        pasted += new.mask.sum() > old.mask.sum()
        assert (new.mask.sum() > old.mask.sum()) == (len(new.boxes) > len(old.boxes))
        within = np.zeros(new.mask.shape, np.bool_)
        for box in new.boxes:
            plane = manifest.classes.index(box.class_name)
            within[box.y : box.y + box.height, box.x : box.x + box.width, plane] = True
        assert not new.mask[~within].any(), "every labelled pixel lies in a box of its class"
        clean = after.show(Draw(index, wish="clean"), 0)
        assert clean.mask.sum() <= old.mask.sum()
    assert pasted > len(before) // 2


def test_a_wish_decides_what_a_window_shows(manifest: Manifest, root: Path) -> None:
    crop = CropSpec(height_px=48, width_px=48, defect_rate=0.0)
    turning = AugmentationSpec(rotation_deg=20, paste_rate=0.5)
    frames = dataset(manifest, root, augmentation=turning, crop=crop)
    for index, item in enumerate(frames.items):
        for epoch in range(6):
            if item.is_defective:
                assert frames.show(Draw(index, wish="defect"), epoch).mask.any()
            assert not frames.show(Draw(index, wish="clean"), epoch).mask.any()
