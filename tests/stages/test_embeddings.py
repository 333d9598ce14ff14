"""The embeddings that a sequence model reads: joined by image id, checked by hash, held in memory once."""

import tracemalloc
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from ich.ensemble.members import aligned, logit_columns
from ich.errors import UserError
from ich.pipeline.graph import Task
from ich.pipeline.plan import Plan
from ich.recipe import load
from ich.stages import networks, sequence
from ich.stages.inputs import Slices
from ich.store.records import Record, write_record

TINY = Path(__file__).parents[1] / "tiny.yaml"
CLASSES = ["epidural", "any"]
FEATURES = ("in_sample", "aligned", "oof")
ON = ("resnet", "resnext")


def left_by(
    task: Task, split: str, ids: "Sequence[str] | pd.Index", width: int, rng: np.random.Generator
) -> dict[str, Path]:
    """A split's table and embeddings, in an order of its own."""
    task.folder.mkdir(parents=True, exist_ok=True)
    table = pd.DataFrame({"image_id": rng.permutation(np.array(ids, dtype=object))})
    table[logit_columns(CLASSES)] = rng.normal(size=(len(ids), len(CLASSES))).astype("float32")
    paths = [task.folder / f"{split}.parquet", task.folder / f"{split}_embeddings.npy"]
    table.to_parquet(paths[0], index=False)
    with paths[1].open("wb") as file:  # in blocks, so that it may be larger than the memory
        header = {"descr": "<f2", "fortran_order": False, "shape": (len(ids), width)}
        np.lib.format.write_array_header_1_0(file, header)
        for first in range(0, len(ids), 4096):
            block = rng.standard_normal((min(4096, len(ids) - first), width), dtype=np.float32)
            file.write((3 * block + np.arange(width) / width).astype(np.float16).tobytes())
    return {path.name: path for path in paths}


def competition(
    root: Path,
    *,
    studies: int,
    test_studies: int,
    slices: int,
    width: int,
    n: int = 2,
    features: Sequence[str] = FEATURES,
) -> Plan:
    """A prepared competition with folds and what two slice networks of that many features left, all of it random."""
    plan = Plan(load(TINY, [f"folds.n={n}"]), root)
    rng, total = np.random.default_rng(0), studies + test_studies
    study = np.repeat(np.arange(total), slices)
    place = np.tile(np.arange(slices, dtype="int32"), total)
    names = pd.Series([f"S{i:06}" for i in range(total)]).take(study).reset_index(drop=True)
    ids = names + "_" + pd.Series(place).astype(str)
    table = pd.DataFrame({"image_id": ids, "patient_id": names, "study_id": names, "series_id": names})
    table = table.assign(position=5.0 * place, index=place, n_slices=np.int32(slices))
    table["split"] = np.where(study < studies, "train", "test")
    labels = (rng.random((len(table), len(CLASSES))) < 0.2).astype("float32")
    table[CLASSES] = np.where((study < studies)[:, None], labels, np.nan).astype("float32")
    cache = plan.workspace.cache("key")
    cache.mkdir(parents=True)
    table.to_parquet(cache / "slices.parquet", index=False)
    files = {"slices.parquet": cache / "slices.parquet"}
    Record(cache / "run.json").write("f", files, classes=CLASSES, class_weights=[1.0, 1.0], values="hu", settings={})
    write_record(plan.workspace.cache_pointer, {"key": "key", "settings": plan.image_settings})
    plan.workspace.folds.parent.mkdir()
    folds = pd.DataFrame({"study_id": names.unique()[:studies], "fold": np.arange(studies) % n})
    folds.assign(patient_id=folds["study_id"]).to_csv(plan.workspace.folds, index=False)
    known = Slices(plan)
    for member in ON:
        for k in plan.fold_numbers:
            splits = {"valid": known.ids(known.valid_rows(k)), "test": known.ids(known.test_rows)}
            made = [left_by(plan.fold(member, k), split, rows, width, rng) for split, rows in splits.items()]
            plan.fold(member, k).record.write("f", made[0] | made[1])
            if "in_sample" in features:
                task = plan.training_rows(member, k)
                task.record.write("f", left_by(task, "train", known.ids(known.train_rows(k)), width, rng))
    return plan


@pytest.fixture(scope="module")
def plan(tmp_path_factory) -> Plan:
    return competition(tmp_path_factory.mktemp("embeddings"), studies=12, test_studies=9, slices=7, width=5)


def said(task: Task, split: str, ids: pd.Index) -> tuple[np.ndarray, np.ndarray]:
    """Embeddings and logits of some slices, found row by row."""
    table = pd.read_parquet(task.folder / f"{split}.parquet")
    array = np.load(task.folder / f"{split}_embeddings.npy", allow_pickle=False)
    where = {name: i for i, name in enumerate(table["image_id"])}
    return array[[where[name] for name in ids]], aligned(table, ids, CLASSES)


def expected(plan: Plan, fold: int, features: str) -> tuple[np.ndarray, np.ndarray]:
    """Features and mean logits of all slices, member by member, split by split, as a reader would do it by hand."""
    slices = Slices(plan)
    embeddings = np.zeros((len(slices.table), 2, 5), dtype=np.float16)
    logits = np.zeros((len(slices.table), 2, len(CLASSES)))
    for m, member in enumerate(ON):
        own, test = plan.fold(member, fold), slices.ids(slices.test_rows)
        embeddings[slices.test_rows, m], logits[slices.test_rows, m] = said(own, "test", test)
        for k in plan.fold_numbers:
            rows = slices.valid_rows(k)
            inside = features == "in_sample" and k != fold
            task = plan.training_rows(member, fold) if inside else plan.fold(member, k)
            part, logits[rows, m] = said(task, "train" if inside else "valid", slices.ids(rows))
            if features == "aligned" and k != fold:
                here, there = said(own, "test", test)[0].astype(float), said(task, "test", test)[0].astype(float)
                cross = (here - here.mean(0)).T @ (there - there.mean(0))
                u, _, v = np.linalg.svd(cross)
                part = (part - there.mean(0)) @ (u @ v).T + here.mean(0)
            embeddings[rows, m] = part
    return embeddings.reshape(len(embeddings), -1), logits.mean(axis=1)


@pytest.mark.parametrize("block", [1, 64, 1 << 22])
@pytest.mark.parametrize("features", FEATURES)
def test_each_slice_has_what_the_right_networks_say_of_it(plan, monkeypatch, features, block):
    monkeypatch.setattr(networks, "BLOCK", block)
    for fold in plan.fold_numbers:
        rows, studies = sequence._studies(Slices(plan), ON, fold, features)
        embeddings, logits = expected(plan, fold, features)
        assert studies.features.dtype == np.float16
        tolerance = 0.02 if features == "aligned" else 0  # a float16 of values up to 10
        np.testing.assert_allclose(studies.features.astype(float), embeddings[rows].astype(float), atol=tolerance)
        np.testing.assert_allclose(studies.base, logits[rows], atol=1e-6)
        np.testing.assert_array_equal(rows, np.arange(21 * 7))


@pytest.mark.parametrize("features", FEATURES)
def test_embeddings_are_held_once(tmp_path, monkeypatch, features):
    monkeypatch.setattr(networks, "BLOCK", 1 << 18)
    plan = competition(tmp_path, studies=800, test_studies=60, slices=40, width=256, features=[features])
    slices = Slices(plan)
    size = 2 * len(slices.table) * 2 * 256
    assert len(slices.labels)  # the table is read before
    tracemalloc.start()
    _, studies = sequence._studies(slices, ON, 0, features)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert studies.features.nbytes == size
    assert peak < size + 16 * 2**20


@pytest.mark.parametrize("damage", ["bit", "cut", "more", "objects", "shape", "missing"])
@pytest.mark.parametrize("split", ["train", "valid", "test"])
def test_embeddings_that_are_not_as_recorded_are_named_whatever_their_date(plan, tmp_path, damage, split):
    """As a file that is too large to be hashed by a look at the state may be changed, its date kept."""
    work = Plan(plan.recipe, tmp_path)
    (tmp_path / "x").mkdir()
    for name in ("input", "folds", "oof"):
        (tmp_path / name).symlink_to(plan.root / name)
    task = work.training_rows("resnet", 0) if split == "train" else work.fold("resnet", 0)
    path = task.folder / f"{split}_embeddings.npy"
    whole = path.read_bytes()
    try:
        if damage == "bit":
            path.write_bytes(whole[:-2] + bytes([whole[-2] ^ 1]) + whole[-1:])
        elif damage == "cut":
            path.write_bytes(whole[:-4])
        elif damage == "more":
            path.write_bytes(whole + b"\0")
        elif damage == "objects":
            np.save(path, np.array([[{}]]), allow_pickle=True)
        elif damage == "shape":
            path.write_bytes(whole.replace(b", 5)", b",50)"))
        else:
            np.save(path, np.zeros((3, 5), np.float16))
        with pytest.raises(UserError, match=rf"^{task.name}/{split}_embeddings.npy was changed .* run `ich cnn`"):
            sequence._studies(Slices(work), ON, 0, "in_sample")
    finally:
        path.write_bytes(whole)


def test_rows_that_the_table_does_not_have_are_named(plan, tmp_path):
    task = plan.fold("resnet", 1)
    path = task.folder / "valid.parquet"
    whole = path.read_bytes()
    try:
        table = pd.read_parquet(path)
        table.iloc[:-1].to_parquet(path, index=False)
        with pytest.raises(UserError, match=r"cnn/resnet/fold1: valid_embeddings.npy does not hold the slices of"):
            sequence._studies(Slices(plan), ON, 0, "oof")
        pd.concat([table, table.iloc[:1].assign(image_id="more")]).to_parquet(path, index=False)
        with pytest.raises(UserError, match=r"cnn/resnet/fold1: valid_embeddings.npy does not hold the slices of"):
            sequence._studies(Slices(plan), ON, 0, "oof")
    finally:
        path.write_bytes(whole)
