"""Every competition format from raw files to a submission, on small competitions."""

import json
import shutil
import zipfile
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
import yaml

from conftest import score_scans
from ich.data import dicom
from ich.data.cache import HuCache
from ich.errors import UserError
from ich.phantom.study import CLASSES, Study, make_study
from ich.pipeline.runner import run_stage
from ich.pipeline.state import Plan
from ich.recipe import load
from ich.stages import demo, explain, folds, predict, prepare, report, score, score_outside, submit, thresholds
from plain_slice import HEADER

SUBTYPES = CLASSES[:5]
STAGES = (prepare, folds, "cnn", "sequence", "stack", "blend", thresholds, submit, score)
SMALL = {
    "image": {"size": 32},
    "folds": {"n": 2},
    "cnn": {
        "resnet": {
            "backbone": "resnet10t",
            "kwargs": {"channels": [4, 8, 8, 8], "stem_width": 4},
            "epochs": 1,
            "batch_size": 16,
        }
    },
    "sequence": {"bigru": {"cell": "gru", "inputs": ["resnet"], "hidden": 4, "epochs": 1}},
    "stack": {"lgbm": {"neighbours": 1, "num_iterations": 2, "min_data_in_leaf": 5}},
    "blend": {"inputs": "all", "trials": 5},
    "thresholds": {"trials": 5},
    "compute": {"processes": 1},
}


def small(root: Path, name: str, **sections: object) -> Plan:
    """A recipe with small models in `root`."""
    competition = {"format": name, "root": f"input/{name}"}
    path = root / f"{name}.yaml"
    path.write_text(yaml.safe_dump({"name": name, "competition": competition, **SMALL, **sections}))
    return Plan(load(path), root)


def ran(plan: Plan, *stages) -> Plan:
    for stage in stages or STAGES:
        run_stage(plan, stage) if isinstance(stage, str) else stage.run(plan)
        plan = Plan(plan.recipe, plan.root)
    return plan


def patient(number: int, slices: int = 6) -> Study:
    """A study of a new patient with two subtypes."""
    return make_study(9, number, 0, slices=slices, size=64, kinds=(number % 5, (number + 2) % 5))


def write_study(folder: Path, study: Study, names: list[str] | None = None, gap: float = 1.0, **identity: str) -> None:
    """Write the DICOM files of a study. gap: factor of its positions; identity: replaces ids of the header."""
    folder.mkdir(parents=True, exist_ok=True)
    for k, image_id in enumerate(study.image_ids):
        x, y, z = study.scan.positions[k] * gap
        ids = {"patient_id": study.patient_id, "study_id": study.study_id, "series_id": study.series_id} | identity
        header = replace(
            HEADER,
            image_id=image_id,
            position=(float(x), float(y), float(z)),
            orientation=study.scan.orientation,
            pixel_spacing=(study.scan.pixel, study.scan.pixel),
            explicit_vr=study.scan.explicit_vr,
            **ids,
        )
        dicom.write(folder / f"{names[k] if names else image_id}.dcm", study.hu[k], header)


def slice_table(plan: Plan) -> pd.DataFrame:
    return pd.read_parquet(plan.prepared.folder / "slices.parquet")


def final_probabilities(plan: Plan, name: str = "submission") -> pd.DataFrame:
    return pd.read_csv(plan.workspace.submissions / f"{name}.csv", dtype={"id": str})


# ---- NTU DLMI


def write_ntu(root: Path) -> None:
    """Labelled, unlabelled and test studies, some of them in folders of their own; the label table has no header."""
    rows, sample = [], []
    for number in range(9):
        study = patient(number)
        split = "train1" if number < 6 else ("train2" if number == 6 else "test")
        write_study(root / split / ("below/deep" if number % 2 else ""), study)
        for image_id, labels in zip(study.image_ids, study.labels, strict=True):
            rows += [f"{image_id},{n},{v}" for n, v in zip(SUBTYPES, labels, strict=False) if split == "train1"]
            sample += [f"{image_id}_{name},0" for name in SUBTYPES if split == "test"]
    (root / "train.csv").write_text("\n".join(rows) + "\n")
    (root / "sample_submission.csv").write_text("\n".join(["id,label", *reversed(sample)]) + "\n")


@pytest.fixture(scope="module")
def ntu(tmp_path_factory) -> Plan:
    root = tmp_path_factory.mktemp("ntu")
    write_ntu(root / "input/ntu_dlmi")
    return ran(small(root, "ntu_dlmi"))


def test_ntu_dlmi_submits_hard_labels_in_the_order_of_the_sample(ntu):
    sample = pd.read_csv(ntu.raw_root / "sample_submission.csv")
    decided = final_probabilities(ntu)
    assert list(decided.columns) == ["id", "label"]
    assert decided["id"].tolist() == sample["id"].tolist()
    assert set(decided["label"]) <= {0, 1}
    likely = final_probabilities(ntu, "submission_probabilities").merge(decided, on="id")
    cuts = json.loads(ntu.workspace.thresholds.read_text())["thresholds"]
    cut = likely["id"].str.rsplit("_", n=1).str[-1].map(cuts)
    assert (likely["label_y"] == (likely["label_x"] >= cut)).all()


def test_ntu_dlmi_keeps_unlabelled_slices_and_does_not_train_on_them(ntu):
    table = slice_table(ntu)
    unlabelled = table["path"].str.startswith("train2/")
    assert set(table.loc[unlabelled, "image_id"]) == set(patient(6).image_ids)
    assert table.loc[unlabelled, list(SUBTYPES)].isna().all(axis=None)
    oof = pd.read_parquet(ntu.workspace.model("blend") / "oof.parquet")
    assert set(oof["image_id"]) == set(table.loc[table["path"].str.startswith("train1/"), "image_id"])


# ---- UniBuc


def write_unibuc(root: Path) -> None:
    """Grey, RGB, RGBA and 16-bit images whose grey value is the label; ids have leading zeros."""
    random = np.random.default_rng(3)
    labels: dict[str, int] = {}
    (root / "data").mkdir(parents=True)
    for number in range(1, 49):
        name, label = f"{number:06d}", number % 2
        image = (random.normal(60 + 90 * label, 10, (40, 40))).clip(0, 255).astype(np.uint8)
        match number % 4:
            case 1:
                image = cv2.cvtColor(image, cv2.COLOR_GRAY2BGR)
            case 2:
                image = cv2.cvtColor(image, cv2.COLOR_GRAY2BGRA)
            case 3:
                image = image.astype(np.uint16) * 257
        cv2.imwrite(str(root / "data" / f"{name}.png"), image)
        labels[name] = label
    names = list(labels)
    for file, part in (("train_labels", names[:28]), ("validation_labels", names[28:36])):
        (root / f"{file}.txt").write_text("\n".join(["id,class", *(f"{n},{labels[n]}" for n in part)]) + "\n")
    (root / "sample_submission.txt").write_text("\n".join(["id,class", *(f"{n},0" for n in names[36:])]) + "\n")
    (root / "solution.csv").write_text("\n".join(["id,class", *(f"{n},{labels[n]}" for n in names[36:])]) + "\n")


@pytest.fixture(scope="module")
def unibuc(tmp_path_factory) -> Plan:
    root = tmp_path_factory.mktemp("unibuc")
    write_unibuc(root / "input/unibuc")
    learning = {"resnet": {**SMALL["cnn"]["resnet"], "epochs": 6, "batch_size": 8, "learning_rate": 0.01}}
    return ran(small(root, "unibuc", cnn=learning, sequence={}, image={"size": 32, "crop": "head"}))


def test_unibuc_submits_hard_labels_for_padded_ids(unibuc):
    decided = final_probabilities(unibuc)
    assert list(decided.columns) == ["id", "class"]
    assert decided["id"].tolist() == [f"{n:06d}" for n in range(37, 49)]
    assert set(decided["class"]) <= {0, 1}


def test_unibuc_images_are_cached_as_grey_values(unibuc):
    record = json.loads(unibuc.prepared.record.path.read_text())
    assert record["values"] == "grey"
    table = slice_table(unibuc)
    hu = HuCache.open(unibuc.prepared.folder, table)[:]
    assert hu.min() >= 0
    assert hu.max() <= 255
    mean = hu.mean(axis=(1, 2))
    number = table["image_id"].astype(int)
    np.testing.assert_allclose(mean, 60 + 90 * (number % 2), atol=5)  # whatever channels and bits they have
    assert table["patient_id"].is_unique


def test_unibuc_networks_have_one_channel_and_learn(unibuc):
    assert '"in_channels": 1' in (unibuc.workspace.fold("resnet", 0) / "model.json").read_text()
    scores = pd.read_csv(unibuc.workspace.submissions / "scores.csv").set_index(["model", "rows"])
    assert scores.loc[("blend", "test"), "auc"] > 0.9


def test_a_trained_unibuc_recipe_scores_new_images(unibuc, tmp_path):
    shutil.copy(unibuc.raw_root / "data/000040.png", tmp_path / "000040.png")
    score_scans(unibuc, tmp_path, tmp_path / "out.csv")
    scored = pd.read_csv(tmp_path / "out.csv", dtype={"image_id": str})
    assert scored["image_id"].tolist() == ["000040"]


def test_unibuc_has_maps_and_a_report_of_single_images(unibuc):
    ran(unibuc, explain, report)
    folder = unibuc.explain.folder
    assert {"grad_cam.png", "saliency.png", "suspicious_labels.csv"} <= {path.name for path in folder.iterdir()}
    assert set(pd.read_csv(folder / "embedding_map.csv")["group"]) == {"no bleed", "hemorrhage", "test"}
    page = (unibuc.workspace.submissions / "report.html").read_text()
    assert "labelled images." in page
    assert "Grad-CAM for hemorrhage" in page
    assert "By position in the study" not in page, "a single image has no position"


def test_neighbours_are_refused_for_single_images(tmp_path):
    with pytest.raises(UserError, match=r"cnn\.resnet\.input: unibuc has single images"):
        small(tmp_path, "unibuc", cnn={"resnet": {**SMALL["cnn"]["resnet"], "input": "neighbours"}})


# ---- folder


def write_own(root: Path) -> list[Study]:
    """One folder per study, one of them an archive. Files of all studies are named 1.dcm, 2.dcm, ..."""
    studies = [patient(number) for number in range(8)]
    for number, study in enumerate(studies):
        write_study(root / f"scan{number}", study, names=[str(k + 1) for k in range(len(study.image_ids))])
    with zipfile.ZipFile(root / "scan0.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted((root / "scan0").iterdir()):
            archive.write(path, path.name)
        archive.writestr("../../escaped.dcm", b"out")
    shutil.rmtree(root / "scan0")
    (root / "readme.txt").write_text("not a scan")
    return studies


def test_a_folder_with_study_labels_and_without_a_test_set(tmp_path):
    root = tmp_path / "input/folder"
    studies = write_own(root)
    rows = [f"{s.study_id},{int(s.labels[:, 5].any())},{int(s.labels[:, 4].any())}" for s in studies]
    (root / "labels.csv").write_text("\n".join(["study_id,bleed,subdural", *rows]) + "\n")
    plan = ran(small(tmp_path, "folder"))
    table = slice_table(plan)
    assert set(table["study_id"]) == {study.study_id for study in studies}
    for study in studies:
        part = table[table["study_id"] == study.study_id]
        assert (part["subdural"] == study.labels[:, 4].any()).all(), "every slice has the label of its study"
    assert table["path"].str.startswith("scan0.zip!/").sum() == len(studies[0].image_ids)
    notes = json.loads(plan.prepared.record.path.read_text())["notes"]
    assert any("weak labels" in note for note in notes)
    quarantined = pd.read_csv(plan.prepared.folder / "quarantine.csv")["path"]
    assert "scan0.zip!/../../escaped.dcm" in set(quarantined)
    assert not list(tmp_path.parent.rglob("escaped.dcm"))
    assert not list(plan.workspace.submissions.glob("submission*.csv"))
    scores = pd.read_csv(plan.workspace.submissions / "scores.csv")
    assert set(scores["rows"]) == {"oof"}
    assert set(scores["model"]) == {"resnet", "bigru", "lgbm", "blend"}


def test_a_folder_with_slice_labels_and_a_test_folder(tmp_path):
    root = tmp_path / "input/folder"
    rows = []
    for number in range(6):
        study = patient(number)
        write_study(root / ("test" if number > 3 else "train"), study)
        rows += [f"{i},{v[5]}" for i, v in zip(study.image_ids, study.labels, strict=True)]
    (root / "labels.csv").write_text("\n".join(["image_id,any", *rows]) + "\n")
    sections = {"sequence": {}, "stack": {}}
    plan = ran(small(tmp_path, "folder", **sections))
    table = final_probabilities(plan)
    assert list(table.columns) == ["image_id", "any"]
    assert table["image_id"].tolist() == sorted(p.stem for p in (root / "test").iterdir())
    assert table["any"].between(0, 1).all()
    assert slice_table(plan).query("split == 'test'")["any"].isna().all()
    assert "test" in set(pd.read_csv(plan.workspace.submissions / "scores.csv")["rows"])
    explain.run(plan)
    mapped = pd.read_csv(plan.explain.folder / "embedding_map.csv")
    assert set(mapped["group"]) == {"no bleed", "any", "test"}


# ---- CQ500


@pytest.fixture(scope="module")
def outside(tmp_path_factory) -> Plan:
    """A small CQ500 with thick, thin and contrast series and files of another patient, and a trained recipe."""
    root = tmp_path_factory.mktemp("outside")
    made = {"train_studies": 8, "test_studies": 2, "slices": 6, "size": 64, "seed": 3}
    ran(small(root, "rsna2019", demo=made), demo, *STAGES[: STAGES.index(thresholds) + 1])
    columns = [f"R{r}:{f}" for r in (1, 2, 3) for f in ("ICH", "IPH", "IVH", "SDH", "EDH", "SAH")]
    order = [5, 1, 2, 4, 0, 3]
    rows = []
    for number in range(6):
        study = patient(number, slices=16)
        scan = root / f"input/cq500/CQ500CT{number} CQ500CT{number}/Unknown Study"
        identity = {"patient_id": f"CQ500-CT-{number}"}
        write_study(scan / "CT Plain", study, gap=0.5, **identity)
        if number == 0:
            thin = {"series_id": "1.2.3", **identity}
            write_study(scan / "CT Plain THIN", study, gap=0.1, **thin)
            write_study(scan / "CT POST CONTRAST", study, series_id="1.2.4", **identity)
            stranger = patient(5, slices=16)
            write_study(
                scan / "CT Plain", stranger, patient_id="CQ500-CT-77", names=[f"x{i}" for i in stranger.image_ids]
            )
        truth = study.labels.max(axis=0)[order]
        minority = [1 - v for v in truth]  # one reader of three is wrong everywhere
        rows.append([f"CQ500-CT-{number}", "B1", *truth, *minority, *truth])
    table = pd.DataFrame(rows, columns=["name", "Category", *columns])
    table.to_csv(root / "input/cq500/reads.csv", index=False)
    competition = {"format": "cq500", "root": "input/cq500", "trained_by": "rsna2019.yaml"}
    (root / "outside.yaml").write_text(
        yaml.safe_dump({"base": "rsna2019.yaml", "name": "outside", "competition": competition})
    )
    plan = ran(Plan(load(root / "outside.yaml"), root), prepare)
    predict.run_outside(plan)
    return ran(Plan(plan.recipe, root), score_outside)


def test_cq500_selects_one_series_per_scan_and_reports_the_others(outside):
    table = slice_table(outside)
    assert len(table) == sum(len(patient(number, slices=16).image_ids) for number in range(6))
    assert (table.groupby("study_id")["series_id"].nunique() == 1).all()
    assert table["path"].str.contains("CT Plain/").all()
    quarantine = pd.read_csv(outside.prepared.folder / "quarantine.csv")
    why = quarantine.groupby(["reason", "detail"]).size().to_dict()
    notes = json.loads(outside.prepared.record.path.read_text())["notes"]
    assert {"1 series not used: thin", "1 series not used: with contrast"} <= set(notes)
    own, stranger = (len(patient(number, slices=16).image_ids) for number in (0, 5))
    assert why == {
        ("other_patient", "CQ500-CT-77"): stranger,
        ("other_series", "thin"): own,
        ("other_series", "with contrast"): own,
    }


def test_cq500_findings_are_majorities_and_probabilities_maxima(outside):
    scans = pd.read_csv(outside.workspace.submissions / "scans.csv").set_index("scan")
    slices = pd.read_csv(outside.workspace.submissions / "slices.csv")
    for number in range(6):
        scan, labels = f"CQ500-CT-{number}", patient(number, slices=16).labels.max(axis=0)
        assert scans.loc[scan, ["EDH", "IPH", "IVH", "SAH", "SDH", "ICH"]].tolist() == labels.tolist()
        assert scans.loc[scan, "prob_any"] == slices.loc[slices["scan"] == scan, "prob_any"].max()


def test_cq500_scores_have_one_interval_per_finding(outside):
    scores = pd.read_csv(outside.workspace.submissions / "scores.csv", na_values="-").set_index("finding")
    assert scores.index.tolist() == ["ICH", "IPH", "IVH", "SDH", "EDH", "SAH"]
    assert (scores["scans"] == 6).all()
    known = scores.dropna(subset=["auc"])
    assert len(known) >= 3
    assert (known["low"] <= known["auc"]).all()
    assert (known["auc"] <= known["high"]).all()


def test_an_outside_recipe_has_no_folds_and_a_second_run_is_up_to_date(outside, capsys):
    with pytest.raises(UserError, match="recipe outside has no models of its own"):
        folds.run(Plan(outside.recipe, outside.root))
    predict.run_outside(Plan(outside.recipe, outside.root))
    assert "predict: up to date" in capsys.readouterr().out


# ---- errors


@pytest.mark.parametrize("name", ["ntu_dlmi", "unibuc", "folder"])
def test_a_missing_or_empty_folder_is_an_error(tmp_path, name):
    plan = small(tmp_path, name, sequence={})
    with pytest.raises(UserError, match=r"no such folder\. See input/README\.md"):
        prepare.run(plan)
    plan.raw_root.mkdir(parents=True)
    with pytest.raises(UserError, match=f"input/{name}.*(no label table|no DICOM file)"):
        prepare.run(Plan(plan.recipe, tmp_path))


def test_a_sample_submission_of_training_slices_is_an_error(tmp_path):
    plan = small(tmp_path, "ntu_dlmi")
    write_ntu(plan.raw_root)
    rows = [line.split(",") for line in (plan.raw_root / "train.csv").read_text().splitlines()]
    lines = ["id,label", *(f"{image_id}_{name},0" for image_id, name, _ in rows)]
    (plan.raw_root / "sample_submission.csv").write_text("\n".join(lines))
    with pytest.raises(UserError, match=r"sample_submission\.csv: train1/.* is a training slice \(40 such images\)"):
        prepare.run(plan)


@pytest.mark.parametrize("root", ["input", "."])
def test_raw_files_next_to_the_caches_are_refused(tmp_path, root):
    plan = small(tmp_path, "folder", competition={"format": "folder", "root": root})
    with pytest.raises(UserError, match=r"contains the caches\. Move the raw files .* such as input/folder"):
        prepare.run(plan)
