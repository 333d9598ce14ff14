"""What the synthetic competition leaves on disk."""

import csv
import hashlib
from itertools import pairwise
from pathlib import Path

import numpy as np
import pydicom
import pytest

from ich.data import dicom
from ich.phantom.competition import (
    CLASSES,
    make_study,
    plan_competition,
    write_competition,
    wrong_labels,
)


def digests(root: Path) -> dict[str, str]:
    files = (p for p in sorted(root.rglob("*")) if p.is_file())
    return {str(p.relative_to(root)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def by_image(rows: list[dict[str, str]], column: str = "Label") -> dict[str, dict[str, float]]:
    images: dict[str, dict[str, float]] = {}
    for row in rows:
        image, name = row["ID"].rsplit("_", 1)
        images.setdefault(image, {})[name] = float(row[column])
    return images


def test_the_same_seed_gives_the_same_bytes_however_many_processes_write(written, written_by_two):
    one, two = digests(written.root), digests(written_by_two)
    assert len(one) > 90
    assert one == two


def test_another_seed_gives_other_slices():
    first, second = (make_study(s, 0, 0, slices=5, size=48, bleed_rate=0.0) for s in (1, 2))
    assert not set(first.image_ids) & set(second.image_ids)
    assert first.hu.shape != second.hu.shape or (first.hu != second.hu).any()


def test_tables_hold_six_rows_a_slice_and_name_exactly_the_files(written):
    for split, name in (
        ("train", "stage_2_train.csv"),
        ("test", "stage_2_sample_submission.csv"),
        ("test", "solution.csv"),
    ):
        files = {p.stem for p in (written.root / f"stage_2_{split}").glob("*.dcm")}
        rows = table(written.root / name)
        assert list(rows[0]) == ["ID", "Label"]
        assert len({r["ID"] for r in rows}) == len(rows) == 6 * len(files)
        images = by_image(rows)
        assert set(images) == files
        assert all(tuple(labels) == CLASSES for labels in images.values())
    assert {r["Label"] for r in table(written.root / "stage_2_sample_submission.csv")} == {"0.5"}


@pytest.mark.parametrize("name", ["stage_2_train.csv", "solution.csv"])
def test_any_is_the_largest_of_the_subtypes(written, name):
    for labels in by_image(table(written.root / name)).values():
        assert labels["any"] == max(labels[c] for c in CLASSES[:5])


def test_wrong_labels_are_exactly_those_that_are_listed(written):
    assert len(table(written.root / "mislabelled.csv")) == written.summary.mislabelled
    listed = {r["ID"]: (int(r["Label_written"]), int(r["Label_true"])) for r in table(written.root / "mislabelled.csv")}
    as_written = {r["ID"]: int(r["Label"]) for r in table(written.root / "stage_2_train.csv")}
    differing: dict[str, tuple[int, int]] = {}
    for p in plan_competition(train_studies=9, test_studies=5, seed=5):
        if p.split == "test":
            continue
        study = make_study(5, p.patient, p.study, slices=7, size=64, bleed_rate=0.0, kinds=p.kinds)
        for image_id, labels in zip(study.image_ids, study.labels, strict=True):
            for name, label in zip(CLASSES, labels, strict=True):
                key = f"{image_id}_{name}"
                if as_written[key] != label:
                    differing[key] = (as_written[key], int(label))
    assert differing == listed
    assert listed


def test_the_solution_is_true(written):
    truth = by_image(table(written.root / "solution.csv"))
    planned = [p for p in plan_competition(train_studies=9, test_studies=5, seed=5) if p.split == "test"]
    study = make_study(
        5, planned[0].patient, planned[0].study, slices=7, size=64, bleed_rate=0.0, kinds=planned[0].kinds
    )
    for image_id, labels in zip(study.image_ids, study.labels, strict=True):
        assert [truth[image_id][c] for c in CLASSES] == labels.tolist()


def test_wrong_labels_are_few_and_never_touch_a_healthy_study():
    rng = np.random.default_rng(0)
    healthy = np.zeros((30, 6), np.uint8)
    assert not wrong_labels(healthy, rng).any()
    bleeding = healthy.copy()
    bleeding[10:18, [4, 5]] = 1
    changed = np.mean([(wrong_labels(bleeding, rng) != bleeding).any(1).mean() for _ in range(400)])
    # 4 slices beside an end at 0.07 and 8 inside at 0.035 / 3 x 4/5, of 30 slices
    assert changed == pytest.approx((4 * 0.07 + 8 * 0.035 / 3 * 0.8) / 30, abs=0.003)


def test_no_patient_is_in_train_and_test(written):
    patients = {
        split: {dicom.geometry(p).patient_id for p in (written.root / f"stage_2_{split}").glob("*.dcm")}
        for split in ("train", "test")
    }
    assert patients["train"]
    assert patients["test"]
    assert not patients["train"] & patients["test"]


def test_both_kinds_of_file_are_there_with_both_value_representations(written):
    kinds = set()
    for path in written.root.rglob("*.dcm"):
        header = pydicom.dcmread(path, stop_before_pixels=True)
        several = isinstance(header.WindowCenter, pydicom.multival.MultiValue)
        kinds.add((int(header.BitsStored), int(header.PixelRepresentation), several))
        assert header.SOPInstanceUID == path.stem
    assert kinds == {(12, 0, True), (16, 1, False)}
    syntaxes = {
        pydicom.dcmread(p, stop_before_pixels=True).file_meta.TransferSyntaxUID for p in written.root.rglob("*.dcm")
    }
    assert len(syntaxes) == 2


def test_files_give_back_the_hounsfield_units_and_the_order_of_the_slices(written):
    for p in plan_competition(train_studies=9, test_studies=5, seed=5)[:4]:
        study = make_study(5, p.patient, p.study, slices=7, size=64, bleed_rate=0.0, kinds=p.kinds)
        paths = [written.root / "stage_2_train" / f"{i}.dcm" for i in study.image_ids]
        for path, hu in zip(paths, study.hu, strict=True):
            np.testing.assert_array_equal(pydicom.dcmread(path).pixel_array + study.intercept, np.clip(hu, -3024, 3071))
        positions = [dicom.geometry(path).position for path in paths]
        assert all(a is not None and b is not None and a < b for a, b in pairwise(positions))


def test_names_say_nothing_about_the_order_of_the_slices():
    study = make_study(5, 3, 0, slices=20, size=32, bleed_rate=0.0)
    assert sorted(study.image_ids) not in (list(study.image_ids), list(study.image_ids)[::-1])


def test_progress_is_told_after_each_study(written):
    assert written.calls == [(k, 14) for k in range(1, 15)]


def test_summary_counts_the_solution(written):
    images = by_image(table(written.root / "solution.csv"))
    assert written.summary.test_slices == len(images)
    for name in CLASSES:
        assert written.summary.test_positives[name] == sum(v[name] for v in images.values())


def test_a_folder_that_holds_something_is_refused(tmp_path):
    (tmp_path / "mine.txt").write_text("keep me")
    with pytest.raises(ValueError, match="not empty"):
        write_competition(tmp_path, train_studies=1, test_studies=1, slices=4, size=32, seed=0)
    assert (tmp_path / "mine.txt").read_text() == "keep me"
