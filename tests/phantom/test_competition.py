"""The files of the synthetic competition."""

import csv
import hashlib
from itertools import pairwise
from pathlib import Path

import numpy as np
import pydicom
import pytest

from ich.data import dicom
from ich.data.dicom import plain
from ich.phantom import competition
from ich.phantom.competition import write_competition, wrong_labels
from ich.phantom.study import CLASSES, make_study


def digests(root: Path) -> dict[str, str]:
    files = (p for p in sorted(root.rglob("*")) if p.is_file())
    return {str(p.relative_to(root)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def by_image(path: Path) -> dict[str, dict[str, float]]:
    images: dict[str, dict[str, float]] = {}
    for row in table(path):
        image, name = row["ID"].rsplit("_", 1)
        images.setdefault(image, {})[name] = float(row["Label"])
    return images


def test_a_seed_gives_the_same_bytes_with_any_number_of_processes(written, written_by_two):
    one, two = digests(written.root), digests(written_by_two)
    assert len(one) > 90
    assert one == two
    assert written.calls == [1] * 14


def test_another_seed_gives_other_slices():
    first, second = (make_study(seed, 0, 0, slices=5, size=48) for seed in (1, 2))
    assert not set(first.image_ids) & set(second.image_ids)
    assert first.hu.shape != second.hu.shape or (first.hu != second.hu).any()


@pytest.mark.parametrize(
    ("split", "name"),
    [("train", "stage_2_train.csv"), ("test", "stage_2_sample_submission.csv"), ("test", "solution.csv")],
)
def test_tables_have_six_rows_per_slice_file(written, split, name):
    files = {p.stem for p in (written.root / f"stage_2_{split}").glob("*.dcm")}
    rows, images = table(written.root / name), by_image(written.root / name)
    assert list(rows[0]) == ["ID", "Label"]
    assert len({r["ID"] for r in rows}) == len(rows) == 6 * len(files)
    assert set(images) == files
    assert all(tuple(labels) == CLASSES for labels in images.values())
    if "sample" in name:
        assert {r["Label"] for r in rows} == {"0.5"}
    else:
        assert all(labels["any"] == max(labels[c] for c in CLASSES[:5]) for labels in images.values())


def test_the_solution_is_true_and_all_wrong_training_labels_are_listed(written):
    solution = by_image(written.root / "solution.csv")
    parsing = {r["ID"]: int(r["Label"]) for r in table(written.root / "stage_2_train.csv")}
    wrong: dict[str, tuple[int, int]] = {}
    for planned, study in written.studies:
        for image_id, labels in zip(study.image_ids, study.labels.tolist(), strict=True):
            if planned.split == "test":
                assert [solution[image_id][name] for name in CLASSES] == labels
                continue
            for key, label in ((f"{image_id}_{name}", n) for name, n in zip(CLASSES, labels, strict=True)):
                if parsing[key] != label:
                    wrong[key] = (parsing[key], label)
    rows = table(written.root / "mislabelled.csv")
    assert wrong
    assert wrong == {r["ID"]: (int(r["Label_written"]), int(r["Label_true"])) for r in rows}
    assert len(wrong) == len(rows)


def test_wrong_labels_are_few_and_never_in_a_healthy_study():
    rng = np.random.default_rng(0)
    healthy = np.zeros((30, 6), np.uint8)
    assert not wrong_labels(healthy, rng).any()
    bleeding = healthy.copy()
    bleeding[10:18, [4, 5]] = 1
    changed = np.mean([(wrong_labels(bleeding, rng) != bleeding).any(1).mean() for _ in range(400)])
    # 4 slices beside an end at 0.07 and 8 inside at 0.035 / 3 x 4/5, of 30 slices
    assert changed == pytest.approx((4 * 0.07 + 8 * 0.035 / 3 * 0.8) / 30, abs=0.003)


def test_files_have_both_pixel_formats_and_both_transfer_syntaxes(written):
    formats, syntaxes = set(), set()
    for path in written.root.rglob("*.dcm"):
        header = pydicom.dcmread(path, stop_before_pixels=True)
        several = isinstance(header.WindowCenter, pydicom.multival.MultiValue)
        formats.add((int(header.BitsStored), int(header.PixelRepresentation), several))
        syntaxes.add(header.file_meta.TransferSyntaxUID)
        assert header.SOPInstanceUID == path.stem
    assert formats == {(12, 0, True), (16, 1, False)}
    assert len(syntaxes) == 2


def test_implicit_files_of_real_size_have_the_short_meta_information_of_rsna(tmp_path, monkeypatch):
    monkeypatch.setattr(competition, "REAL_SIZE", 32)
    write_competition(tmp_path, train_studies=6, test_studies=1, slices=4, size=32, seed=0)
    kinds = set()
    for path in tmp_path.rglob("*.dcm"):
        meta = pydicom.dcmread(path, stop_before_pixels=True).file_meta
        kinds.add((meta.TransferSyntaxUID.is_implicit_VR, "FileMetaInformationGroupLength" in meta))
        assert plain.read(path.read_bytes()[: plain.HEAD]) is not None
    assert kinds == {(True, False), (False, True)}


def test_scans_of_another_hospital_have_its_field_of_view(tmp_path):
    write_competition(tmp_path, train_studies=3, test_studies=1, slices=4, size=32, seed=0, scanners="other")
    views = {32 * float(pydicom.dcmread(path).PixelSpacing[0]) for path in tmp_path.rglob("*.dcm")}
    assert len(views) == 4
    assert all(190 < view < 240 for view in views)


def test_files_contain_hounsfield_units_and_positions(written):
    for planned, study in written.studies[:4]:
        paths = [written.root / f"stage_2_{planned.split}" / f"{i}.dcm" for i in study.image_ids]
        for path, hu in zip(paths, study.hu, strict=True):
            stored = pydicom.dcmread(path).pixel_array
            np.testing.assert_array_equal(stored + study.scan.intercept, np.clip(hu, -3024, 3071))
        positions = [dicom.geometry(path).position for path in paths]
        assert all(a is not None and b is not None and a < b for a, b in pairwise(positions))


def test_image_ids_do_not_show_the_order_of_the_slices(written):
    assert not any(sorted(study.image_ids) == list(study.image_ids) for _, study in written.studies)


def test_a_folder_with_files_is_rejected(tmp_path):
    (tmp_path / "mine.txt").write_text("keep me")
    with pytest.raises(ValueError, match="not empty"):
        write_competition(tmp_path, train_studies=1, test_studies=1, slices=4, size=32, seed=0)
    assert (tmp_path / "mine.txt").read_text() == "keep me"
