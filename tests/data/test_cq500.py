from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from ich.data import dicom
from ich.data.competitions import cq500
from ich.data.competitions.layout import LayoutError

REAL = Path(__file__).parents[3] / "shared/data/cq500"  # optional


def series(scan: str, folder: str, count: int, gap: float, patient: str | None = None, tilt: float = 0.0):
    return pd.DataFrame(
        {
            "image_id": [f"{folder}{k}" for k in range(count)],
            "patient_id": patient or scan.replace("CQ500CT", "CQ500-CT-"),
            "series_id": f"{scan}/{folder}/{patient}",
            "position": np.arange(count) * gap,
            "tilt": tilt,
            "path": [f"{scan}/{folder}/{k}.dcm" for k in range(count)],
        }
    )


def kept(*parts: pd.DataFrame) -> tuple[list[str], cq500.Selection, pd.DataFrame]:
    table = pd.concat(parts, ignore_index=True)
    selection = cq500.select(table)
    return sorted(set(table.loc[selection.keep, "path"].str.split("/").str[1])), selection, table


def test_the_thick_axial_series_without_contrast_is_selected():
    folders, selection, table = kept(
        series("CQ500CT1", "thin", 240, 0.625),
        series("CQ500CT1", "POST CONTRAST", 40, 4),
        series("CQ500CT1", "bone", 32, 5),
        series("CQ500CT1", "coronal", 60, 3, tilt=90),
        series("CQ500CT1", "plain", 30, 5),
        series("CQ500CT1", "short", 12, 5),
    )
    assert folders == ["plain"]
    assert selection.keep.sum() == 30
    why = {table.at[i, "path"].split("/")[1]: detail for i, (_, detail) in selection.reasons.items()}
    assert why == {
        "thin": "thin",
        "POST CONTRAST": "with contrast",
        "bone": "bone",
        "coronal": "not axial, or too few slices",
        "short": "shorter or further from 5 mm",
    }


def test_a_series_of_thin_slices_is_thinned_to_5_mm():
    _, selection, table = kept(series("CQ500CT1", "thin", 240, 0.625))
    assert np.diff(table.loc[selection.keep, "position"]).tolist() == [5.0] * 29
    assert "1 scans with thin slices only, thinned to about 5 mm" in selection.notes


def test_a_series_of_another_patient_is_refused():
    folders, selection, _ = kept(
        series("CQ500CT1", "thin", 100, 0.625), series("CQ500CT1", "plain", 30, 5, patient="CQ500-CT-2")
    )
    assert folders == ["thin"]
    assert [reason for reason in selection.reasons.values() if reason[0] == "other_patient"] == [
        ("other_patient", "CQ500-CT-2")
    ] * 30
    assert "30 files of other patients refused, in CQ500-CT-1" in selection.notes


def test_a_scan_belongs_to_the_patient_with_most_files_if_ids_are_anonymous():
    folders, _, _ = kept(
        series("CQ500CT1", "a", 9, 5, patient="anon1"), series("CQ500CT1", "b", 20, 5, patient="anon2")
    )
    assert folders == ["b"]


def write_reads(root, rows, names=("ICH", "IPH", "IVH", "SDH", "EDH", "SAH")):
    header = ",".join(["name", *(f"R{r}:{f}" for r in (1, 2, 3) for f in names)])
    (root / "reads.csv").write_text("\n".join([header, *rows]) + "\n")


def test_labels_are_the_majority_of_three_readers(tmp_path):
    write_reads(tmp_path, ["CQ500-CT-7," + "1,1,0,0,0,1," + "1,0,0,1,0,1," + "0,1,0,0,0,1"])
    reads = cq500.reads(tmp_path)
    assert reads.values.tolist() == [["CQ500-CT-7", 1, 1, 0, 0, 0, 1]]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (["CQ500-CT-7," + ",".join("2" + "0" * 17)], r"reads\.csv: row 2: '2'; .* 'R1:ICH'"),
        (["CQ500-CT-7," + ",".join("0" * 17)], r"row 2: ''; expected in column 'R3:SAH'"),
        (["patient7," + ",".join("0" * 18)], "expected a name CQ500-CT-<number>"),
        (["CQ500-CT-7," + ",".join("0" * 18)] * 2, "expected each scan once"),
    ],
)
def test_a_bad_row_of_the_readers_is_an_error(tmp_path, rows, message):
    write_reads(tmp_path, rows)
    with pytest.raises(LayoutError, match=message):
        cq500.reads(tmp_path)


def test_a_folder_without_scans_is_refused(tmp_path):
    write_reads(tmp_path, ["CQ500-CT-7," + ",".join("0" * 18)])
    with pytest.raises(LayoutError, match="no file below a folder CQ500CT<number>"):
        cq500.raw(tmp_path)


@pytest.mark.skipif(not REAL.is_dir(), reason="the CQ500 sample is not here")
def test_the_stray_file_of_the_real_scan_is_refused():
    raw = cq500.raw(REAL)
    headers = [vars(dicom.geometry(REAL / path)) for path in raw.files["path"]]
    table = pd.concat([raw.files, pd.DataFrame(headers)], axis=1).sort_values("position", ignore_index=True)
    selection = cq500.select(table)
    assert {table.at[i, "path"]: why[0] for i, why in selection.reasons.items()} == {
        "CQ500CT0/CT000000.dcm": "other_patient"
    }
    assert len(cq500.reads(REAL)) == 491
