"""`ich explain` on the finished tiny recipe: its files and tables, with and without known bleeds and wrong labels."""

import csv

import numpy as np
import pandas as pd
import pytest

from conftest import RECIPE, make, plan_of
from ich.stages.maps import highest_and_lowest

MAPS = {"embedding_map.csv", "embedding_map_label.png", "embedding_map_position.png", "grad_cam.png", "saliency.png"}
FILES = MAPS | {"suspicious_labels.csv", "label_audit.csv", "pointing_game.csv", "run.json"}


def test_all_files_are_written_and_match_the_competition(finished):
    folder = finished.root / "submissions/tiny/explain"
    assert {path.name for path in folder.iterdir()} == FILES
    slices = pd.read_parquet(next((finished.root / "input/cache").glob("*/slices.parquet")))
    train = slices[slices["split"] == "train"].set_index("image_id")

    suspects = pd.read_csv(folder / "suspicious_labels.csv")
    assert suspects["rank"].tolist() == list(range(1, len(suspects) + 1))
    written = [train.loc[i, name] for i, name in zip(suspects["image_id"], suspects["class"], strict=True)]
    assert suspects["label"].tolist() == written

    mapped = pd.read_csv(folder / "embedding_map.csv", dtype={"fold": str}).set_index("image_id")
    assert np.isfinite(mapped[["x", "y"]]).all(axis=None)
    folds = pd.read_csv(finished.root / "folds/tiny.csv").set_index("study_id")["fold"].astype(str)
    assert set(mapped.index) == set(slices["image_id"]), "all slices of a small competition are shown"
    known = slices.set_index("image_id")["study_id"].map(folds).fillna("test")
    assert (mapped["fold"] == known[mapped.index]).all()
    assert ((mapped["group"] == "test") == (mapped["fold"] == "test")).all()

    played = pd.read_csv(folder / "pointing_game.csv")
    assert set(played["model"]) == {"resnet", "resnext"}
    assert (played["rate_with_tolerance"] >= played["rate"]).all()
    assert played["chance"].between(0, 1).all()

    with (finished.root / "input/tiny/mislabelled.csv").open(newline="") as file:
        errors = sum(1 for _ in csv.DictReader(file))
    audit = pd.read_csv(folder / "label_audit.csv").set_index("rule")
    assert errors
    assert audit.index.tolist() == ["101 and 010", "disagreement", "suspicion"]
    assert audit.loc["suspicion", "flagged"] == errors
    assert audit["precision"].dropna().between(0, 1).all()


@pytest.mark.parametrize(("order", "shown"), [([0, 1, 2, 3, 4, 5], [0, 2, 3, 5]), ([1, 0, 3], [1, 3, 0]), ([4], [4])])
def test_a_gallery_shows_different_studies_at_each_end_and_no_slice_twice(order, shown):
    assert highest_and_lowest(np.array(order), np.array(["a", "a", "b", "b", "c", "c"])).tolist() == shown


def test_without_masks_and_known_errors_all_other_files_keep_their_bytes(clone_copy):
    folder = clone_copy.root / "submissions/tiny/explain"
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    for name in ("masks.npz", "mislabelled.csv"):
        (clone_copy.root / "input/tiny" / name).unlink()
    (folder / "notes.txt").write_text("written by the user")
    assert "Wrong labels" not in make(plan_of(clone_copy.root, recipe=RECIPE), "explain", force=True)
    (folder / "notes.txt").unlink()  # raises if the command deleted it
    after = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert set(after) == FILES - {"label_audit.csv", "pointing_game.csv"}
    changed = {name for name, data in after.items() if data != before[name]}
    assert changed == {"run.json", "grad_cam.png", "saliency.png"}  # the outlines are gone
