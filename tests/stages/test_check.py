import os
import re
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from conftest import Clone
from ich.data import dicom
from ich.data.cache import HuCache
from ich.data.competitions.rsna2019 import CLASSES
from ich.errors import UserError
from ich.models.table import SliceTable, read_folds
from ich.pipeline.state import Plan
from ich.recipe import load
from ich.stages import check, folds, prepare
from plain_slice import HEADER

ALL, NONE = "111111", "000000"
RECIPE = """
name: small
competition: {format: rsna2019, root: input/small}
image: {size: 16, crop: none}
folds: {n: 2}
cnn: {net: {backbone: resnet10t}}
"""


class Competition:
    """An RSNA competition with three slices per patient, the last `patients - train` of which are the test set."""

    def __init__(self, root: Path, patients: int = 5, train: int = 4, crop: str = "none") -> None:
        self.root, self.raw = root, root / "input" / "small"
        for folder in (self.raw / "stage_2_train", self.raw / "stage_2_test", root / "configs"):
            folder.mkdir(parents=True)
        (root / "configs" / "small.yaml").write_text(RECIPE.replace("none", crop))
        self.labels: dict[str, str] = {}
        self.asked: list[str] = []
        self.noise = np.random.default_rng(7)
        for k in range(patients):
            for z in range(3):
                self.add("train" if k < train else "test", f"ID_{k}{z}", k, z)
        self.tables()

    def add(self, split: str, image: str, patient: int, z: float, digits: str = "", **changes) -> Path:
        header = replace(
            HEADER, image_id=image, patient_id=f"p{patient}", study_id=f"s{patient}", series_id=f"r{patient}"
        )
        header = replace(header, **{"position": (0.0, 0.0, 5.0 * z), **changes})
        path = self.raw / f"stage_2_{split}" / f"{image}.dcm"
        dicom.write(path, self.noise.integers(-1000, 1000, (32, 32)).astype(np.int16), header)
        if split == "train":
            self.labels[image] = digits or (ALL if z == 1 else NONE)
        else:
            self.asked.append(image)
        return path

    def tables(self) -> None:
        rows = [f"{i}_{c},{d}" for i, digits in self.labels.items() for c, d in zip(CLASSES, digits, strict=True)]
        (self.raw / "stage_2_train.csv").write_text("\n".join(["ID,Label", *rows]) + "\n")
        rows = [f"{i}_{c},0.5" for i in self.asked for c in CLASSES]
        (self.raw / "stage_2_sample_submission.csv").write_text("\n".join(["ID,Label", *rows]) + "\n")

    def plan(self, *overrides: str) -> Plan:
        return Plan(load(self.root / "configs" / "small.yaml", overrides), self.root)

    def check(self, *overrides: str) -> tuple[int, pd.DataFrame]:
        """Exit code and check.csv."""
        code = check.run(self.plan(*overrides))
        return code, pd.read_csv(self.root / "submissions/small/check.csv", dtype=str, keep_default_na=False)

    def files(self) -> dict[str, tuple[int, int]]:
        """Every file except those that `ich check` writes."""
        found = {}
        for folder, _, names in os.walk(self.root):
            for path in (Path(folder, name) for name in names):
                if "submissions" not in path.parts:
                    found[str(path)] = (path.stat().st_size, path.stat().st_mtime_ns)
        return found


@pytest.fixture
def competition(tmp_path, monkeypatch) -> Competition:
    monkeypatch.setattr(Plan, "cores", 1)
    return Competition(tmp_path)


def complaints(found: pd.DataFrame) -> set[str]:
    return set(found.loc[found["severity"] != "info", "rule"])


def break_everything(competition: Competition) -> None:
    """One fault of each kind that leaves the tables readable."""
    add, folder = competition.add, competition.raw / "stage_2_train"
    shutil.copy(folder / "ID_00.dcm", folder / "ID_copy.dcm")  # the same UID, pixels and place; no label
    (folder / "notes.bak").write_text("")
    competition.labels["ID_lost"] = NONE
    competition.asked.append("ID_gone")
    shutil.copy(folder / "ID_10.dcm", competition.raw / "stage_2_test" / "ID_shared.dcm")  # patient, study and pixels
    (folder / "ID_01.dcm").write_bytes((folder / "ID_01.dcm").read_bytes()[:-100])
    add("train", "ID_alone", 5, 0)
    add("train", "ID_other", 2, 1, series_id="r9")
    add("train", "ID_far", 3, 9)
    add("train", "ID_wrong", 7, 0, pixel_spacing=(90.0, 0.5))
    add("train", "ID_lean1", 8, 0, orientation=(1.0, 0.0, 0.0, 0.0, 0.966, 0.259))
    add("train", "ID_lean2", 8, 1)
    competition.labels = {image: digits[:4] + "0" + digits[5:] for image, digits in competition.labels.items()}
    competition.tables()


def test_each_fault_is_found_and_no_file_is_changed(competition):
    break_everything(competition)
    before = competition.files()
    said = Clone(competition.root).ich("check", recipe="configs/small.yaml", code=2)
    assert competition.files() == before
    assert "error:" not in said
    found = pd.read_csv(competition.root / "submissions/small/check.csv", dtype=str, keep_default_na=False)
    names = {rule: set(part["name"]) for rule, part in found.groupby("rule")}
    train, test = "stage_2_train", "stage_2_test"
    for rule, expected in {
        "value_out_of_place": {"slices: ID_wrong"},
        "label_without_file": {"ID_lost"},
        "test_image_without_file": {"ID_gone"},
        "file_without_label": {f"{train}/ID_copy.dcm"},
        "test_file_not_asked_for": {f"{test}/ID_shared.dcm"},
        "extra_file": {f"{train}/notes.bak"},
        "quarantined": {f"{train}/ID_01.dcm"},
        "duplicate_uid": {f"{train}/ID_copy.dcm", f"{test}/ID_shared.dcm"},
        "duplicate_pixels": {f"{train}/ID_copy.dcm", f"{test}/ID_shared.dcm"},
        "patient_in_train_and_test": {"p1"},
        "class_without_positives": {"subdural"},
        "single_slice": {"s5", "s7"},
        "duplicate_position": {f"{train}/ID_copy.dcm"},
        "gap": {"s3/r3"},
        "mixed_series": {"s2"},
        "mixed_tilt": {"s8/r8"},
    }.items():
        assert names.get(rule) == expected, rule
    table = [line for line in said.splitlines() if line.startswith(("finding", "label without file", "gap"))]
    assert table[0].split() == ["finding", "severity", "count", "examples", "what", "to", "do"]
    assert table[1].split()[3:6] == ["warning", "1", "ID_lost"]
    assert len(table) == 3


def test_warnings_alone_give_code_1(competition):
    (competition.raw / "stage_2_train" / ".DS_Store").write_text("")
    said = Clone(competition.root).ich("check", recipe="configs/small.yaml", code=1)
    assert "errors: 0, warnings: 1" in said


def test_dropped_rows_are_noted(competition):
    path = competition.raw / "stage_2_train.csv"
    path.write_text(path.read_text() + path.read_text().partition("\n")[2])
    code, found = competition.check()
    assert code == 0
    assert found.loc[found["rule"] == "note", "name"].tolist() == ["stage_2_train.csv: 72 repeated rows dropped"]


# ---- errors that stop check and prepare


def truncated(c: Competition) -> None:
    path = c.raw / "stage_2_train.csv"
    path.write_text(path.read_text()[:-15])


def missing_folder(c: Competition) -> None:
    shutil.rmtree(c.raw / "stage_2_test")


def nothing_there(c: Competition) -> None:
    shutil.rmtree(c.raw)


BREAKS = {
    truncated: ("stage_2_train.csv", "row 72", "expected"),
    missing_folder: ("no folder of test slices", "expected stage_2_test"),
    nothing_there: ("input/small", "no such folder", "input/README.md"),
}


@pytest.mark.parametrize("damage", BREAKS, ids=lambda f: f.__name__)
def test_an_unusable_layout_is_one_line(competition, damage, capsys):
    damage(competition)
    code, found = competition.check()
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("layout")]
    assert code == 2
    assert found["rule"].tolist() == ["layout"]
    assert len(lines) == 1
    with pytest.raises(UserError) as stopped:
        prepare.run(competition.plan())
    assert len(str(stopped.value).splitlines()) == 1
    for words in BREAKS[damage]:
        assert words in " ".join(found.iloc[0])
        assert words in str(stopped.value)
    assert not [name for name in competition.files() if "cache" in name and not name.endswith(".lock")]


def test_a_missing_demo_is_an_error_with_a_remedy(competition):
    nothing_there(competition)
    code, found = competition.check("demo.slices=8")
    assert code == 2
    assert "Run `ich demo` first" in found["detail"].iloc[0]


# ---- the folds


def test_a_fold_table_is_checked(competition):
    (competition.root / "folds").mkdir()
    path = competition.root / "folds" / "small.csv"
    header, digits = ",".join(["study_id,patient_id,fold", *CLASSES]), ",1" * 6
    path.write_text("\n".join([header, *(f"s{k},p{k},{k % 2}{digits}" for k in range(4))]) + "\n")
    code, found = competition.check()
    assert code == 0
    shares = found[found["rule"] == "fold_prevalence"]
    assert shares["name"].tolist() == list(CLASSES)
    assert set(shares["detail"]) == {"fold 0 33.33%, fold 1 33.33%"}
    path.write_text(path.read_text().replace("s3,p3,1", "s3,p3,x"))
    code, found = competition.check()
    assert code == 2
    wrong = found[found["severity"] == "error"]
    assert wrong[["rule", "name", "row", "detail"]].to_numpy().tolist() == [
        ["value_out_of_place", "small.csv: s3", "5", "fold: x; expected one of 0, 1"]
    ]
    path.write_text("")
    code, found = competition.check()
    assert (code, complaints(found)) == (2, {"folds"})


# ---- own scans


class OwnScans:
    """Studies s0, s1, ... of three slices each, in format folder; labels.csv has labels of studies."""

    def __init__(self, root: Path, patients: Sequence[str]) -> None:
        self.root, self.raw = root, root / "input" / "own"
        self.raw.mkdir(parents=True)
        for k, patient in enumerate(patients):
            for z in range(3):
                header = replace(HEADER, image_id=f"{k}{z}", patient_id=patient, study_id=f"s{k}", series_id=f"s{k}")
                image = np.random.default_rng((k, z)).integers(-1000, 1000, (32, 32)).astype(np.int16)
                dicom.write(self.raw / f"{k}{z}.dcm", image, replace(header, position=(0.0, 0.0, 5.0 * z)))
        self.labels("study_id,any", *(f"s{k},{k % 2}" for k in range(len(patients))))
        (root / "own.yaml").write_text(
            RECIPE.replace("small", "own", 1).replace(
                "format: rsna2019, root: input/small", "format: folder, root: input/own"
            )
        )

    def labels(self, *lines: str) -> None:
        (self.raw / "labels.csv").write_text("\n".join(lines) + "\n")

    def plan(self) -> Plan:
        return Plan(load(self.root / "own.yaml"), self.root)

    def check(self) -> tuple[int, pd.DataFrame]:
        code = check.run(self.plan())
        return code, pd.read_csv(self.root / "submissions/own/check.csv", dtype=str, keep_default_na=False)

    def folds(self) -> pd.DataFrame:
        prepare.run(self.plan())
        folds.run(self.plan())
        workspace, cache = self.plan().workspace, self.plan().prepared.folder
        slices = SliceTable.read(workspace, cache)
        return read_folds(workspace.folds, slices.pseudonyms, slices.table).sort_values("study_id", ignore_index=True)


@pytest.fixture
def alone(monkeypatch) -> None:
    monkeypatch.setattr(Plan, "cores", 1)


@pytest.mark.usefixtures("alone")
def test_studies_without_patient_id_count_as_patients_with_one_warning(tmp_path, capsys):
    own = OwnScans(tmp_path, ["", "", "", "p"])
    code, found = own.check()
    assert (code, complaints(found)) == (1, {"no_patient_id"})
    assert found.loc[found["rule"] == "no_patient_id", "name"].tolist() == ["s0", "s1", "s2"]
    capsys.readouterr()
    assert own.folds()["patient_id"].tolist() == ["s0", "s1", "s2", "p"]
    out = capsys.readouterr().out
    assert out.count("warning") == out.count("warning: 3 of 4 labelled studies have no PatientID") == 1
    assert "leakage" in out

    own.labels("study_id,patient_id,any", "s0,A,0", "s1,A,1", "s2,B,0", "s3,B,1")
    table = own.folds().set_index("study_id")
    assert table["patient_id"].tolist() == ["A", "A", "B", "B"]
    assert table["fold"]["s0"] == table["fold"]["s1"] != table["fold"]["s2"] == table["fold"]["s3"]
    assert "warning" not in capsys.readouterr().out
    code, found = own.check()
    assert (code, complaints(found)) == (0, set())


@pytest.mark.usefixtures("alone")
def test_the_same_patient_in_all_scans_is_an_error_with_a_remedy(tmp_path):
    own = OwnScans(tmp_path, ["ANON"] * 4)
    code, found = own.check()
    assert (code, complaints(found)) == (2, {"too_few_patients"})
    remedy = "all 4 labelled studies have the same PatientID; add a column patient_id to labels.csv"
    assert remedy in found.loc[found["rule"] == "too_few_patients", "detail"].iloc[0]
    with pytest.raises(UserError, match=remedy) as stopped:
        own.folds()
    assert "--force" not in str(stopped.value)


@pytest.mark.usefixtures("alone")
@pytest.mark.filterwarnings("error")
def test_scans_without_labels_are_checked_and_not_prepared(tmp_path):
    own = OwnScans(tmp_path, ["p", "q"])
    (own.raw / "labels.csv").unlink()
    (own.raw / "00.dcm").write_text("damaged")
    code, found = own.check()
    assert (code, complaints(found)) == (2, {"no_labels", "quarantined"})
    assert {"study_lengths", "unlabelled_study"} <= set(found["rule"])
    with pytest.raises(UserError, match=r"labels\.csv: no such file; write one row per image or study"):
        prepare.run(own.plan())


@pytest.mark.usefixtures("alone")
def test_ids_that_match_nothing_are_shown_in_both_spellings(tmp_path):
    own = OwnScans(tmp_path, ["p", "q"])
    own.labels("study_id,any", "S 0,1", "S 1,0")
    both = r"first label is of StudyInstanceUID 'S 0', but 00\.dcm is of StudyInstanceUID 's0'"
    code, found = own.check()
    assert code == 2
    assert re.search(both, found.loc[found["rule"] == "nothing_to_read", "detail"].iloc[0])
    with pytest.raises(UserError, match=both):
        prepare.run(own.plan())
    own.labels("study_id,any", "s0,", "s1,")
    with pytest.raises(UserError, match="no readable training slice has a label for each class"):
        prepare.run(own.plan())


# ---- patients of the test set in the training set


def test_exclude_overlap_drops_training_studies(competition, capsys):
    competition.add("test", "ID_50", 5, 0, patient_id="p1")
    competition.tables()
    assert competition.check()[0] == 1
    code, found = competition.check("competition.exclude_overlap=true")
    assert code == 1  # a test study of one slice
    assert found.loc[found["rule"] == "overlap_left_out", "name"].tolist() == ["p1"]
    assert "patient_in_train_and_test" not in set(found["rule"])
    assert "3 of 9 slices (33.33%), 3 of 3 studies" in set(found["detail"])

    plain, without = competition.plan(), competition.plan("competition.exclude_overlap=true")
    prepare.run(plain)
    assert "1 patients of the test set are also in the training set\n" in capsys.readouterr().out
    prepare.run(without)
    assert "in the training set too: their 1 training studies (3 slices) are left out" in capsys.readouterr().out
    left, all_ = (pd.read_parquet(p.prepare().folder / "slices.parquet") for p in (without, plain))
    assert sorted(set(all_["image_id"]) - set(left["image_id"])) == ["ID_10", "ID_11", "ID_12"]
    assert left.groupby("split")["patient_id"].unique().map(sorted).to_dict() == {
        "test": ["p1", "p4"],
        "train": ["p0", "p2", "p3"],
    }
    hu = HuCache.open(without.prepare().folder, left)
    assert len(hu) == 13
    assert hu[:].std() > 0


def test_a_network_that_cannot_be_trained_is_an_error(competition):
    code, found = competition.check("cnn.net.backbone=resnet10", "cnn.deep={backbone: resnet18, kwargs: {widht: 2}}")
    rows = found[found["rule"] == "network"].set_index("name")["detail"]
    assert (code, list(rows.index)) == (2, ["cnn.net", "cnn.deep"])
    assert "Did you mean resnet10t" in rows["cnn.net"]
    assert "does not take" in rows["cnn.deep"]
