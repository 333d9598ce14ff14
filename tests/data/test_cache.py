import pickle
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from unittest.mock import Mock

import cv2
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ich.data import cache, dicom, slice_table
from ich.data.cache import ImageFormat
from ich.data.competitions import Raw
from ich.data.crop import box_around, edge_box, head_piece, resized
from ich.data.dicom import Reason, SliceHeader, Unreadable
from ich.errors import UserError
from plain_slice import HEADER


def head(size: int = 128, row: int = 50, column: int = 64, radius: int = 36) -> np.ndarray:
    """A disc of brain in a ring of bone, in air."""
    y, x = np.mgrid[:size, :size]
    distance = np.hypot(y - row, x - column)
    return np.where(distance < radius - 4, 35, np.where(distance < radius, 1200, -1000)).astype(np.int16)


def with_head_rest(image: np.ndarray) -> np.ndarray:
    """Add the shell of a head-rest that touches the scalp, and a table across the image below it."""
    size = len(image)
    y, x = np.mgrid[:size, :size]
    arc = np.abs(np.hypot(y - 50, x - 64) - 38.5) < 1.6
    result = np.where(arc & (y > 60), 100, image)
    result[size - 12 : size - 9] = 300
    return result.astype(np.int16)


def test_the_box_is_the_head_and_its_margin_without_head_rest_and_table():
    plain, real = (box_around([head_piece(one)], one.shape) for one in (head(), with_head_rest(head())))
    row, column, side = plain
    assert side == pytest.approx(72 * 1.04, abs=3)
    assert (row + side / 2, column + side / 2) == pytest.approx((50, 64), abs=2)
    assert np.abs(np.subtract(plain, real)).max() <= 3


def test_a_resize_by_area_is_the_mean_of_the_pixels():
    image = np.arange(16, dtype=np.int16).reshape(4, 4) * 10
    assert resized(image, (0, 0, 4), 2).tolist() == [[25, 45], [105, 125]]


def test_a_box_beyond_the_image_is_filled_with_air():
    outer, inner = [-1024] * 4, [-1024, 40, 40, -1024]
    assert resized(np.full((2, 2), 40, np.int16), (-1, -1, 4), 4).tolist() == [outer, inner, inner, outer]


# ---- black edges


@pytest.mark.parametrize("place", [(128, 50, 64, 36), (512, 201, 253, 146), (512, 203, 250, 147), (300, 150, 149, 91)])
def test_the_edges_are_those_of_the_head_to_the_pixel(place):
    size, y, x, radius = place
    row, column, side = edge_box(head(size, y, x, radius), -300)
    assert (row, column) == (y - radius + 1, x - radius + 1)
    assert side == 2 * radius - 1


@pytest.mark.parametrize("size", [128, 512])
def test_table_and_head_rest_are_no_part_of_the_edges(size):
    plain, real = (np.kron(one, np.ones((size // 128,) * 2, np.int16)) for one in (head(), with_head_rest(head())))
    rows, columns = np.nonzero(real > -300)
    assert (columns.min(), columns.max() + 1) == (0, size)  # the table: a box of all bright pixels would crop nothing
    assert rows.max() + 1 == size * 119 / 128
    difference = np.subtract(edge_box(plain, -300), edge_box(real, -300))
    assert np.abs(difference).max() <= size * 3 / 128


@pytest.mark.parametrize("row", [3, 50, 125])
def test_a_wide_head_gets_a_square_around_its_centre(row):
    image = np.full((128, 200), -1000, np.int16)
    inside = slice(max(row - 20, 0), min(row + 20, 128))
    image[inside, 70:150] = 40
    top, left, side = edge_box(image, -300)
    assert (left, side) == (70, 80)
    assert top == (inside.start + inside.stop - 80) // 2  # beyond the image, if need be


@pytest.mark.parametrize("value", [-1000, -300])
def test_a_slice_without_or_with_little_tissue_is_not_cropped(value):
    image = np.full((100, 80), value, np.int16)
    assert edge_box(image, -300) == (0, 0, 100)
    image[40:52, 40:52] = 40  # 1.8 % of the image
    assert edge_box(image, -300) == (0, 0, 100)


def test_each_slice_has_its_own_edges(tmp_path):
    """Heads of three sizes: one box with `head`, three with `edges`, and each fills its image."""
    for i, radius in enumerate((100, 60, 40)):
        dicom.write(tmp_path / f"{i}.dcm", head(256, 128, 128, radius), replace(at(i), image_id=str(i)))
    table, _ = table_of(tmp_path, raw_of(["0.dcm", "1.dcm", "2.dcm"]))
    sides = {}
    for crop in ("head", "edges", "none"):
        found, hu, _ = filled(tmp_path / crop, table, tmp_path, ImageFormat(64, crop))
        sides[crop] = found["crop_side"].tolist()
        if crop == "edges":
            assert (hu > -300).any(axis=1).sum(axis=1).min() >= 62
    assert sides["edges"] == pytest.approx([199, 119, 79], abs=1)
    assert sides["none"] == [256, 256, 256]
    assert len(set(sides["head"])) == 1


@pytest.mark.parametrize(("crop", "box"), [("head", [0, 0, 100]), ("edges", [20, 30, 40]), ("none", [0, 0, 100])])
def test_grey_images_have_edges_but_no_head(tmp_path, crop, box):
    image = np.full((100, 100), 10, np.uint8)  # black after a lossy compression
    image[20:60, 30:70] = 11
    cv2.imwrite(str(tmp_path / "a.png"), image)
    table, _ = table_of(tmp_path, raw_of(["a.png"]), "grey")
    found, _, _ = filled(tmp_path / "cache", table, tmp_path, ImageFormat(20, crop, "grey"))
    assert found[["crop_row", "crop_column", "crop_side"]].iloc[0].tolist() == box


# ---- from files to the slice table and its rows


def raw_of(paths: list[str], labels: dict[str, float] | None = None, test_ids: Sequence[str] = ()) -> Raw:
    """Training files, each with the label 1 unless `labels` are given."""
    ids = [Path(path).stem for path in paths]
    labels = dict.fromkeys(ids, 1.0) if labels is None else labels
    files = pd.DataFrame({"image_id": ids, "split": "train", "path": paths})
    table = pd.DataFrame({"image_id": list(labels), "bleed": list(labels.values())})
    return Raw(files, table, list(test_ids), {"bleed": 1.0}, "", ())


def table_of(root: Path, raw: Raw, values: str = "hu", jobs: int = 1):
    """The slice table and the rejected files."""
    paths = raw.files["path"].tolist()
    return slice_table.slice_table(raw, slice_table.read_geometries(root, paths, jobs, lambda _: None, values))


def filled(folder: Path, table: pd.DataFrame, root: Path, image: ImageFormat):
    """The table, the pixels and the unreadable slices."""
    table, unread, _ = cache.write_shards(folder, table, root, image, 1, lambda _: None)
    return table, cache.HuCache.open(folder, table)[:], unread


def competition(root: Path, headers: dict[str, SliceHeader]) -> Raw:
    """One file per image, whose pixels all have its number in `headers`."""
    for value, (image, header) in enumerate(headers.items()):
        dicom.write(root / f"{image}.dcm", np.full((8, 8), value, np.int16), replace(header, image_id=image))
    return raw_of([f"{image}.dcm" for image in headers])


def at(z: float, **changes) -> SliceHeader:
    return replace(HEADER, position=(0.0, 0.0, z), **changes)


def test_a_tilted_series_is_sorted_along_its_normal_and_not_along_z(tmp_path):
    cos, sin = np.cos(np.radians(70)), np.sin(np.radians(70))
    tilted = replace(HEADER, orientation=(1.0, 0.0, 0.0, 0.0, cos, sin))  # normal (0, -sin, cos)
    low_z_first = {"a": replace(tilted, position=(0.0, -20.0, 1.0)), "b": replace(tilted, position=(0.0, 0.0, 2.0))}
    table, _ = table_of(tmp_path, competition(tmp_path, low_z_first))
    assert table["image_id"].tolist() == ["b", "a"]


def test_two_series_of_a_study_are_kept_apart(tmp_path):
    headers = {"a": at(0, series_id="r1"), "b": at(1, series_id="r2"), "c": at(2, series_id="r1")}
    table, _ = table_of(tmp_path, competition(tmp_path, headers))
    assert table["image_id"].tolist() == ["a", "c", "b"]
    assert table["position"].tolist() == [0, 2, 1]
    assert table["index"].tolist() == [0, 1, 0]
    assert table["n_slices"].tolist() == [2, 2, 1]


def test_slices_at_one_position_are_sorted_by_acquisition_then_instance_then_id(tmp_path):
    raw = competition(tmp_path, {name: at(z) for name, z in zip("abcdef", (5, 5, 5, 5.0004, 0, 9), strict=True)})
    headers = [dicom.geometry(tmp_path / path) for path in raw.files["path"]]
    places = {"a": (2, 1), "b": (1, 9), "c": (1, 7), "d": (1, 7), "e": (3, 9), "f": (0, 0)}
    headers = [replace(h, acquisition=a, instance=i) for h, (a, i) in zip(headers, places.values(), strict=True)]
    table, _ = slice_table.slice_table(raw, headers)
    assert table["image_id"].tolist() == ["e", "c", "d", "b", "a", "f"]
    one_without = [headers[0], replace(headers[1], position=None), *headers[2:]]
    table, _ = slice_table.slice_table(raw, one_without)
    assert table["image_id"].tolist() == ["f", "a", "c", "d", "b", "e"]  # 0, 1, 7, 7, 9 (first), 9


def test_an_unreadable_slice_leaves_no_gap(tmp_path):
    table, _ = table_of(tmp_path, competition(tmp_path, {"a": at(0), "b": at(1), "c": at(2)}))
    cut = tmp_path / "b.dcm"
    cut.write_bytes(cut.read_bytes()[:-10])
    table, hu, unread = filled(tmp_path / "cache", table, tmp_path, ImageFormat(8))
    assert table["image_id"].tolist() == ["a", "c"]
    assert table["index"].tolist() == [0, 1]
    assert table["n_slices"].tolist() == [2, 2]
    assert hu[:, 0, 0].tolist() == [0, 2]
    assert [(q.image_id, q.reason) for q in unread] == [("b", "truncated")]


@pytest.mark.parametrize("values", ["hu", "grey"])
def test_a_file_replaced_after_its_header_was_read_is_quarantined(tmp_path, values):
    """Otherwise the slices of one patient would have the pixels of another."""
    if values == "hu":
        raw = competition(tmp_path, {name: at(0, patient_id=name, study_id=name) for name in "abc"})
    else:
        raw = raw_of(["a.png", "b.png", "c.png"])
        for grey, path in enumerate(raw.files["path"]):
            cv2.imwrite(str(tmp_path / path), np.full((8, 8), grey, np.uint8))
    table, _ = table_of(tmp_path, raw, values)
    one, two = (tmp_path / path for path in raw.files["path"][:2])
    one.rename(tmp_path / "other")
    two.rename(one)
    (tmp_path / "other").rename(two)
    table, hu, unread = filled(tmp_path / "cache", table, tmp_path, ImageFormat(8, values=values))
    assert [(q.image_id, q.reason) for q in unread] == [("a", "replaced"), ("b", "replaced")]
    assert (table["image_id"].tolist(), hu[:, 0, 0].tolist()) == (["c"], [2])


def test_a_damaged_header_and_labelled_or_test_images_without_a_file_are_quarantined(tmp_path):
    competition(tmp_path, {"a": at(0)})
    (tmp_path / "b.dcm").write_text("no")
    _, quarantined = table_of(tmp_path, raw_of(["a.dcm", "b.dcm"], {"a": 1.0, "b": 1.0, "y\nz": 0.0}, ["t"]))
    assert [(q.image_id, q.split, q.reason) for q in quarantined] == [
        ("b", "train", "not_dicom"),
        (r"y\nz", "train", "label_without_file"),
        ("t", "test", "label_without_file"),
    ]


@pytest.mark.parametrize("crop", ["head", "edges"])
def test_the_cache_is_the_same_with_any_number_of_processes_and_little_memory(tmp_path, crop, monkeypatch):
    raw = competition(tmp_path, {f"i{k}": at(k % 7, study_id=f"s{k // 7}") for k in range(40)})
    table, _ = table_of(tmp_path, raw, jobs=2)
    found = []
    for jobs, held in ((1, cache.MOST_HELD), (2, cache.MOST_HELD), (1, 3 * 128), (1, 0)):  # bytes; a slice has 128
        monkeypatch.setattr(cache, "MOST_HELD", held)
        folder = tmp_path / f"{jobs}-{held}"
        cache.write_shards(folder, table, tmp_path, ImageFormat(8, crop), jobs, lambda _: None)
        found.append({path.name: path.read_bytes() for path in folder.iterdir()})
    assert len(found[0]) == 2 * 6  # a shard and its note per series: a small cache is divided as far as possible
    assert all(one == found[0] for one in found)


def test_an_image_in_two_folders_is_rejected(tmp_path):
    raw = competition(tmp_path, {"a": at(0)})
    with pytest.raises(ValueError, match="image a is in two folders"):
        table_of(tmp_path, replace(raw, files=pd.concat([raw.files, raw.files.assign(split="test")])))


# ---- shards


class Killed(BaseException):
    pass


class Scanner:
    """Slices of 4 x 4 pixels in series of these lengths, two per file; those `refused` are unreadable."""

    def __init__(self, folder: Path, lengths: list[int], refused: set[int], monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self.refused, self.read = folder, refused, set()
        series = np.repeat(np.arange(len(lengths)), lengths)
        names = pd.DataFrame({"image_id": [f"i{k}" for k in range(len(series))], "series_id": series.astype(str)})
        names = names.assign(split="train", study_id="s", path=(series + 1) // 2, crc=0, frame=range(len(series)))
        self.table = names.astype({"path": str})
        monkeypatch.setattr(cache, "read_frames", self.frames)
        monkeypatch.setattr(cache, "LEAST_SHARDS", 3)

    def frames(self, _path, frames, _values, _crc):
        self.read |= set(frames)
        noise = [np.random.default_rng(k).integers(-1000, 1000, (4, 4)).astype(np.int16) for k in frames]
        return [
            Unreadable(Reason.TRUNCATED, f"at {k}") if k in self.refused else image
            for k, image in zip(frames, noise, strict=True)
        ]

    def fill(self, killed_after: int | None = None, fingerprint: str = "f"):
        """The files, the table and the unreadable slices; killed after `killed_after` slices."""
        self.read.clear()
        slices = 0

        def advance(count: int) -> None:
            nonlocal slices
            slices += count
            if killed_after is not None and slices >= killed_after:
                raise Killed

        table, unread, self.reused = cache.write_shards(
            self.folder, self.table, Path(), ImageFormat(4), 1, advance, fingerprint
        )
        return {path.name: path.read_bytes() for path in self.folder.iterdir()}, table.to_csv(), unread


@settings(max_examples=40)
@given(data=st.data(), lengths=st.lists(st.integers(1, 4), min_size=1, max_size=6))
def test_a_killed_call_is_resumed_and_writes_the_same_bytes(tmp_path_factory, data, lengths):
    total = sum(lengths)
    refused = data.draw(st.sets(st.integers(0, total - 1)))
    with pytest.MonkeyPatch.context() as patch:
        scanner = Scanner(tmp_path_factory.mktemp("fill"), lengths, refused, patch)
        whole = scanner.fill()
        rows = [np.load(scanner.folder / name).shape for name in sorted(whole[0]) if name.endswith(".npy")]
        assert sum(n for n, *_ in rows) == total - len(refused)
        assert [q.image_id for q in whole[2]] == [f"i{k}" for k in sorted(refused)]
        for path in scanner.folder.iterdir():
            path.unlink()
        with pytest.raises(Killed):
            scanner.fill(killed_after=data.draw(st.integers(1, total)))
        assert scanner.fill() == whole
        assert len(scanner.read) == total - scanner.reused
        assert scanner.reused > 0
        assert scanner.fill() == whole
        assert not scanner.read


def test_shards_contain_whole_series_up_to_the_size_limit(tmp_path, monkeypatch):
    scanner = Scanner(tmp_path, [3, 1, 2, 5, 1, 1], {1, 4}, monkeypatch)
    for least, most, expected in ((3, 1 << 27, [4, 2, 5, 2]), (1, 1 << 27, [13]), (1, 32 * 5, [4, 2, 5, 2])):
        monkeypatch.setattr(cache, "LEAST_SHARDS", least)
        monkeypatch.setattr(cache, "SHARD_BYTES", most)
        table, _, _ = cache.write_shards(tmp_path, scanner.table, Path(), ImageFormat(4), 1, lambda _: None)
        shards = np.repeat(np.arange(len(expected)), expected)
        assert table["shard"].tolist() == np.delete(shards, [1, 4]).tolist()
        assert len(list(tmp_path.glob("*.npy"))) == len(expected)  # those of the division before are removed


@pytest.mark.parametrize(
    "damage", ["flipped pixel", "cut shard", "lost shard", "flipped note", "cut note", "lost note"]
)
def test_only_a_damaged_shard_or_note_is_written_again(tmp_path, monkeypatch, damage):
    scanner = Scanner(tmp_path, [2, 3, 1, 2], {3}, monkeypatch)
    whole = scanner.fill()
    what, which = damage.split()
    path = tmp_path / ("hu-00001.npy" if which in ("pixel", "shard") else "hu-00001.json")
    data = bytearray(path.read_bytes())
    data[-7] ^= 1
    path.unlink()
    if what != "lost":
        path.write_bytes(data if what == "flipped" else data[:-1])
    assert scanner.fill() == whole
    assert scanner.read == {2, 3, 4}


def test_a_shard_with_another_fingerprint_or_other_slices_is_written_again(tmp_path, monkeypatch):
    scanner = Scanner(tmp_path, [2, 3], set(), monkeypatch)
    scanner.fill()
    scanner.fill(fingerprint="g")
    assert scanner.read == set(range(5))
    scanner.table = scanner.table.drop(index=3).reset_index(drop=True)
    scanner.fill(fingerprint="g")
    assert scanner.read == {2, 4}


def test_a_shard_has_the_bytes_of_numpy_save(tmp_path, monkeypatch):
    for refused in ({0, 5}, set()):
        Scanner(tmp_path, [4, 3], refused, monkeypatch).fill(fingerprint=str(refused))
        for path in sorted(tmp_path.glob("hu-*.npy")):
            np.save(tmp_path / "saved.npy", np.load(path, allow_pickle=False))
            assert path.read_bytes() == (tmp_path / "saved.npy").read_bytes()


def test_too_little_disk_space_is_an_error_before_any_slice_is_read(tmp_path, monkeypatch):
    scanner = Scanner(tmp_path, [4, 3], set(), monkeypatch)
    monkeypatch.setattr(cache.shutil, "disk_usage", lambda _: Mock(free=200))
    with pytest.raises(UserError, match=r"No space left.*2.24e-07 GB are needed.*ree disk space"):
        scanner.fill()
    assert not scanner.read


@pytest.fixture
def opened(tmp_path, monkeypatch):
    """A cache of five shards, the last without a readable slice; and its pixels as one array."""
    scanner = Scanner(tmp_path, [3, 3, 3, 3, 1], {4, 12}, monkeypatch)
    monkeypatch.setattr(cache, "LEAST_SHARDS", 5)
    table, _, _ = cache.write_shards(tmp_path, scanner.table, Path(), ImageFormat(4), 1, lambda _: None)
    noise = [np.random.default_rng(k).integers(-1000, 1000, (4, 4)) for k in range(12) if k != 4]
    return cache.HuCache.open(tmp_path, table), np.stack(noise).astype(np.int16)


def test_the_cache_is_indexed_like_one_array_in_the_order_of_the_slice_table(opened):
    hu, whole = opened
    assert (len(hu), hu.shape, hu.dtype) == (11, whole.shape, whole.dtype)
    for rows in (0, np.int64(10), -1, slice(2, 9), [10, 0, 5], np.array([[3, 3], [9, 1]]), slice(0, 0)):
        np.testing.assert_array_equal(hu[rows], whole[rows])
    assert not hu[3].flags.writeable


def test_a_shard_is_mapped_when_it_is_read_and_never_pickled(opened):
    hu, whole = opened
    assert list(hu._mapped) == [0]
    np.testing.assert_array_equal(hu[10], whole[10])
    assert list(hu._mapped) == [0, 3]
    other = pickle.loads(pickle.dumps(hu))
    assert not other._mapped
    np.testing.assert_array_equal(other[:], whole)


@pytest.mark.parametrize(
    "content", [b"", b"no array", np.zeros((3, 4, 4)), np.zeros((2, 4, 4), np.int16), np.zeros((3, 4, 5), np.int16)]
)
def test_the_error_for_a_damaged_shard_names_it(opened, content):
    hu, _ = opened
    path = hu.folder / "hu-00002.npy"
    path.unlink()
    path.write_bytes(content) if isinstance(content, bytes) else np.save(path, content)
    with pytest.raises(UserError, match=r"hu-00002.npy is malformed \(.*`ich prepare`"):
        hu[6]
