"""DICOM results of scored scans."""

import numpy as np
import pandas as pd
import pydicom
import pytest

from hospital_slice import STUDY, write_slice
from ich.data.cache import ImageFormat
from ich.data.dicom.results import Model
from ich.models.cnn import FittedCnn
from ich.stages import dicom_out
from ich.stages.dicom_out import Results, write_files

OTHER = "1.2.9"


def scored(folder, probabilities, **elements) -> Results:
    """Results of one series of slices with these probabilities of (subdural, any); the threshold is 0.5."""
    rows = []
    for number, row in enumerate(probabilities):
        pixels = np.full((40, 40), -1000, np.int16)
        pixels[4:28, 12:36] = 40  # the head, to which the networks' images are cropped
        write_slice(folder / f"{number}.dcm", number, pixels=pixels, **elements)
        rows.append({"image_id": str(number), "study_id": STUDY, "series_id": f"{STUDY}.1", "index": number})
        for name, p in zip(("subdural", "any"), row, strict=True):
            rows[-1] |= {f"prob_{name}": p, f"positive_{name}": int(p >= 0.5)}
        rows[-1]["path"] = f"{number}.dcm"
    cuts, model = {"subdural": 0.5, "any": 0.5}, Model("tiny", "0.1.0", "ab" * 32)
    studies = {STUDY: {"subdural": 0.7, "any": 0.8}}
    return Results(folder, pd.DataFrame(rows), studies, cuts, model, [FittedCnn({})], ImageFormat(10, "head"))


@pytest.fixture(autouse=True)
def hot_corner(monkeypatch):
    """Grad-CAM whose maximum is in the last row and the first column."""
    heat = np.zeros((10, 10), np.float32)
    heat[9, 0] = 1
    monkeypatch.setattr(dicom_out, "_cams", lambda fitted, slices, indices, size: np.stack([heat] * len(slices)))


def test_each_positive_slice_has_a_heat_map_at_its_place(tmp_path):
    files = scored(tmp_path, [(0.1, 0.2), (0.6, 0.9), (0.2, 0.7)]).of_study(STUDY)
    assert list(files) == ["sr.dcm", "heat-map-001.dcm", "heat-map-002.dcm"]
    (tmp_path / "out.dcm").write_bytes(files["heat-map-001.dcm"])
    capture = pydicom.dcmread(tmp_path / "out.dcm")
    assert capture.SourceImageSequence[0].ReferencedSOPInstanceUID == f"{STUDY}.1.2"
    picture = capture.pixel_array[: -2 * dicom_out.LINE - 8].astype(int)
    assert picture.shape == (520, 520, 3)  # 13 times the slice, so that the legend is readable
    coloured = np.argwhere(np.ptp(picture, axis=2) > 50)
    row, column = coloured.mean(axis=0) / 13
    assert row == pytest.approx(27, abs=2)
    assert column == pytest.approx(13, abs=2)
    assert capture.pixel_array[-2 * dicom_out.LINE :].max() == 255  # the legend


def test_the_most_probable_subtype_is_shown_and_any_without_one():
    rows = pd.DataFrame(
        {"prob_a": [0.6, 0.6, 0.1, 0.1], "prob_b": [0.7, 0.1, 0.1, 0.1], "prob_any": [0.9, 0.9, 0.9, 0.1]}
    )
    for name in ("a", "b", "any"):
        rows[f"positive_{name}"] = (rows[f"prob_{name}"] > 0.5).astype(int)
    assert dicom_out._shown(rows, ["a", "b", "any"]) == {0: "b", 1: "a", 2: "any"}


def test_the_number_of_heat_maps_is_limited(monkeypatch):
    monkeypatch.setattr(dicom_out, "HEAT_MAPS", 2)
    rows = pd.DataFrame({"prob_any": [0.6, 0.9, 0.7], "positive_any": [1, 1, 1]})
    assert dicom_out._shown(rows, ["any"]) == {1: "any", 2: "any"}


def test_a_study_of_two_patients_gets_no_results(tmp_path, capsys):
    found = scored(tmp_path, [(0.1, 0.2), (0.6, 0.9)])
    write_slice(tmp_path / "1.dcm", 1, pixels=np.zeros((40, 40), np.int16), PatientID="other")
    write_files(tmp_path / "out", found)
    assert "its files have several PatientIDs" in capsys.readouterr().out
    assert not (tmp_path / "out").exists()


def test_files_are_written_by_study_and_nobody_is_named_outside(tmp_path, capsys):
    write_files(tmp_path / "out", scored(tmp_path, [(0.6, 0.9)]))
    assert "Doe" not in str(capsys.readouterr())
    assert sorted(path.name for path in (tmp_path / "out" / STUDY).iterdir()) == ["heat-map-001.dcm", "sr.dcm"]
