"""A repository's folders for any number of slices, made up: RSNA 2019's table, and what its members would have left.

Pictures and embeddings are zeros in files with holes, so that 750,000 of them need no disk; tables, folds and records
are as the stages write them, and the stages find everything done.
"""

import io
import shutil
from collections.abc import Iterator, Sequence
from contextlib import redirect_stdout
from pathlib import Path

import numpy as np
import pandas as pd

from benchmarks import folds
from ich.data import cache
from ich.data.competitions import Raw
from ich.data.dicom import Geometry
from ich.pipeline.graph import BLEND, WEIGHTS, Task
from ich.pipeline.plan import Made, Plan
from ich.recipe import load
from ich.stages.inputs import Slices

ROOT = Path(__file__).parents[1]
CLASSES = (*folds.POSITIVES, "any")
TEST_SHARE = 121_232 / folds.SLICES
NETWORK = "{{backbone: resnet14t, pretrained: false, epochs: 1, workers: 0, kwargs: {{stem_width: 4, channels: {}}}}}"
WIDTH = {"resnet": 512, "resnext": 2048, "seresnet": 16, "densenet": 16}  # of embeddings; those of the first two real
NARROW = 16  # of embeddings that nobody reads: other folds' than the first


def raw_of(slices: int) -> tuple[Raw, list[Geometry]]:
    """So many training slices, a sixth as many test slices, and their headers, as `ich prepare` reads them."""
    table = folds.rsna_sized()
    train, test = _some(table, slices, seed=1), _some(table, round(TEST_SHARE * slices), seed=2)
    test = test.assign(**{name: "t" + test[name] for name in ("image_id", "study_id", "patient_id")}, split="test")
    table = pd.concat([train, test], ignore_index=True)
    paths = "stage_2_" + table["split"] + "/" + table["image_id"] + ".dcm"
    files = table[["image_id", "split"]].assign(path=paths)
    labels = train[["image_id", *CLASSES]].astype(dict.fromkeys(CLASSES, "float64"))
    place = table.groupby("study_id", sort=False).cumcount()
    columns = zip(table["patient_id"], table["study_id"], place, strict=True)
    headers = [
        Geometry(patient, study, f"{study}_series", 5.0 * k, k, 12.5, 0.488281, 0.488281)
        for patient, study, k in columns
    ]
    weights = dict.fromkeys(CLASSES, 1.0) | {"any": 2.0}
    return Raw(files, labels, test["image_id"].tolist(), weights, "stage_2_sample_submission.csv", ()), headers


def _some(table: pd.DataFrame, slices: int, seed: int) -> pd.DataFrame:
    """So many rows of the table, of studies of any patients."""
    study = pd.factorize(table["study_id"])[0]
    place = np.random.default_rng(seed).permutation(study.max() + 1)[study]
    return table.iloc[np.sort(np.argsort(place, kind="stable")[:slices])].reset_index(drop=True)


def path(root: Path) -> Path:
    """The recipe."""
    return root / "configs" / "house.yaml"


def _recipe(root: Path, size: int) -> None:
    """configs/rsna2019.yaml with small pictures and networks; those that its first sequence model reads are as wide."""
    (root / "configs").mkdir(parents=True)
    shutil.copy(ROOT / "configs" / "rsna2019.yaml", root / "configs")
    networks = [f"  {name}: {NETWORK.format([8, 8, 8, width // 4])}\n" for name, width in WIDTH.items()]
    heads = "".join(f"  {name}: {{hidden: 16, layers: 1, epochs: 1}}\n" for name in ("bigru", "bilstm"))
    path(root).write_text(
        "base: rsna2019.yaml\nname: house\ncompetition: {format: rsna2019, root: input/house}\n"
        f"image: {{size: {size}, crop: head}}\ncnn:\n{''.join(networks)}sequence:\n{heads}"
        "stack: {lgbm: {rounds: 5}}\nthresholds: {trials: 20}\ncompute: {processes: 1, threads: 1}\n"
    )


def prepared(root: Path, slices: int, size: int = 16, overrides: Sequence[str] = (), *, noise: bool = False) -> Plan:
    """As after `ich prepare` and `ich folds`; pictures of zeros, or of noise."""
    from ich.stages import folds as stage

    _recipe(root, size)
    plan = Plan(load(path(root), list(overrides)), root)
    raw, headers = raw_of(slices)
    plan.raw_root.mkdir(parents=True)
    half = pd.DataFrame({"image_id": raw.test_ids}).assign(**dict.fromkeys(CLASSES, 0.5))
    _long(plan.raw_root / raw.template, half)
    _long(plan.raw_root / "stage_2_train.csv", raw.labels.astype(dict.fromkeys(CLASSES, int)))

    def make(_fingerprint: str) -> Made:
        table, _ = cache.slice_table(raw, headers)
        task = plan.prepare()
        task.folder.mkdir(parents=True)
        files = {name: task.folder / name for name in ("hu.npy", "slices.parquet", "quarantine.csv")}
        zeros(files["hu.npy"], (len(table), size, size), np.int16)
        if noise:
            pictures = np.lib.format.open_memmap(files["hu.npy"], mode="r+")
            pictures[:] = np.random.default_rng(7).integers(-1000, 1500, pictures.shape, dtype=np.int16)
        table.to_parquet(files["slices.parquet"], index=False)
        files["quarantine.csv"].write_text("image_id,split,path,reason,detail\n")
        said = {"slices": len(table), "quarantined": 0, "template": raw.template, "values": "hu", "notes": []}
        return files, {**said, "classes": list(raw.classes), "class_weights": list(raw.classes.values())}

    task = plan.prepare()
    plan.make(task, make)
    plan.point_to(task)
    with redirect_stdout(io.StringIO()):
        stage.run(plan)
    return plan


def _long(path: Path, wide: pd.DataFrame) -> None:
    """A table of images as the competition writes it, a row a class."""
    names = np.char.add(
        np.repeat(wide["image_id"].to_numpy(str), len(CLASSES)), np.tile([f"_{c}" for c in CLASSES], len(wide))
    )
    pd.DataFrame({"ID": names, "Label": wide[list(CLASSES)].to_numpy().ravel()}).to_csv(path, index=False)


def raw_files(plan: Plan) -> None:
    """The competition's files, empty, for those who only want their names."""
    for split in ("train", "test"):
        (plan.raw_root / f"stage_2_{split}").mkdir()
    for path in pd.read_parquet(plan.prepared.folder / "slices.parquet", columns=["path"])["path"]:
        (plan.raw_root / path).touch()


def complete(plan: Plan) -> None:
    """As after `ich blend`: the members' logits and the networks' embeddings, whose files only look full."""
    from ich.stages.member import assemble

    slices, random = Slices(plan), np.random.default_rng(7)
    for member in plan.members:
        for fold in plan.fold_numbers:
            rows = {"valid": slices.valid_rows(fold), "test": slices.test_rows}
            width = 0 if member not in WIDTH else NARROW if fold else WIDTH[member]
            _made(plan, slices, plan.fold(member, fold), rows, width, random)
            if member in plan.read_in_sample:
                rows = {"train": slices.train_rows(fold)}
                _made(plan, slices, plan.training_rows(member, fold), rows, width, random)
        assemble(plan, member)


def _made(
    plan: Plan, slices: Slices, task: Task, rows: dict[str, np.ndarray], width: int, random: np.random.Generator
) -> None:
    """What a fold of a member leaves, and its record."""

    def make(_fingerprint: str) -> Made:
        files = dict(_tables(slices, task, rows, width, random))
        for name in (WEIGHTS, BLEND):
            files[name] = task.folder / name
            files[name].write_text("{}")
        return files, {"metrics": {"weighted_log_loss": 0.1, "macro_auc": 0.9}}

    plan.make(task, make)


def _tables(
    slices: Slices, task: Task, rows: dict[str, np.ndarray], width: int, random: np.random.Generator
) -> Iterator[tuple[str, Path]]:
    """Logits as good as a network's, AUC 0.96."""
    task.folder.mkdir(parents=True, exist_ok=True)
    for split, these in rows.items():
        labels = np.nan_to_num(slices.labels[these])
        logits = (random.normal(0, 1, labels.shape) + 2.5 * labels - 4).astype("float32")
        table = pd.DataFrame(logits, columns=pd.Index([f"logit_{name}" for name in slices.classes]))
        table.insert(0, "image_id", slices.ids(these))
        if split == "valid":
            table.insert(1, "fold", int(task.settings["fold"]))
        path = task.folder / f"{split}.parquet"
        table.to_parquet(path, index=False)
        yield path.name, path
        if width:
            path = task.folder / f"{split}_embeddings.npy"
            zeros(path, (len(these), width), np.float16)
            yield path.name, path


def zeros(path: Path, shape: Sequence[int], dtype: type) -> None:
    """An .npy file that is one hole."""
    with path.open("wb") as file:
        kind = {"descr": np.lib.format.dtype_to_descr(np.dtype(dtype)), "fortran_order": False, "shape": tuple(shape)}
        np.lib.format.write_array_header_1_0(file, kind)
        file.truncate(file.tell() + int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize)
