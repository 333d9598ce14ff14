"""`ich sequence`: stage 2. A recurrent network over each study, on what the stage-1 members say of its slices."""

from typing import TYPE_CHECKING, Any

from ich.console import say
from ich.stages.fitting import loss_for, splits, train_member
from ich.stages.inputs import Slices, studies_of
from ich.stages.member import run_folds
from ich.stages.networks import head_shape, predict_sequence, study_head
from ich.stages.plan import Made, Plan, seed_of

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np

    from ich.data.datasets import Studies


def run(plan: Plan, *, model: str | None = None, fold: int | None = None, force: bool = False) -> None:
    run_folds(plan, list(plan.recipe.sequence), fit_fold, model=model, fold=fold, force=force)


def fit_fold(plan: Plan, member: str, fold: int, fingerprint: str) -> Made:
    """Train one sequence model on the studies outside fold `fold`, then predict that fold and the test set."""
    import torch

    from ich.data.datasets import study_loader

    settings = plan.recipe.sequence[member]
    torch.set_num_threads(plan.recipe.compute.threads)
    slices, seed, size = Slices(plan), seed_of(settings.seed, member, fold), settings.batch_size
    rows = splits(slices, settings, fold)
    if settings.features == "aligned" and not len(slices.test_rows):
        say(f"  {member} fold {fold}: there is no test set to align the folds' embeddings by; they stay as they are")
    packed, studies = _studies(slices, settings.on, fold, settings.features)
    numbers = {split: _numbers(studies, packed, wanted) for split, wanted in rows.items()}
    shape = head_shape(settings, studies.features.shape[1], len(slices.classes))
    torch.manual_seed(seed)
    network = study_head(settings, shape)
    if settings.output_bias:
        network.output_bias(slices.labels[rows["train"]].mean(axis=0))
    loss = loss_for(settings, slices, slices.labels[rows["train"]])

    def predict(model: Any, split: str) -> "dict[str, np.ndarray]":
        """Logits in the order of rows[split]: packed rows and rows of the slice table both rise."""
        return {"logits": predict_sequence(model, studies, numbers[split], settings)}

    def loss_of(model: Any, batch: Any) -> Any:
        inside = batch.rows >= 0
        logits = model(batch.features, batch.base, batch.geometry, batch.lengths)
        return loss(logits[inside], batch.targets[inside])

    return train_member(
        plan,
        member,
        fold,
        fingerprint,
        network,
        settings,
        slices,
        rows,
        batches=lambda epoch: study_loader(studies, numbers["train"], size, shuffle=True, seed=seed, epoch=epoch),
        steps=-(-len(numbers["train"]) // size),
        loss_of=loss_of,
        predict=predict,
        counts=(len(numbers["train"]), "studies"),
        record={"model": shape, "on": settings.on},
    )


def _studies(slices: Slices, on: tuple[str, ...], fold: int, features: str) -> tuple["np.ndarray", "Studies"]:
    """Row numbers of the slice table [N], a series after the other in order of position, and what is known of them."""
    import numpy as np

    used = slices.labelled.copy()
    used[slices.test_rows] = True
    rows = used.nonzero()[0]  # the slice table holds each series together and in order
    if features == "in_sample":
        read = [_of_one_model(slices, member, fold) for member in on]
    else:
        read = [(_embeddings(slices, member, fold, features), slices.out_of_fold(member, fold)) for member in on]
    embeddings, logits = [part[rows] for part, _ in read], [part[rows] for _, part in read]
    return rows, studies_of(slices.table.iloc[rows], embeddings, logits, np.nan_to_num(slices.labels[rows]))


def _of_one_model(slices: Slices, member: str, fold: int) -> "tuple[np.ndarray, np.ndarray]":
    """Embeddings float16 [n, d] and logits [n, c] of the slice table's rows, all from the network of fold `fold`.

    One space, but the network has learned the labels of the training rows: what it says of them is surer than what it
    will say of others.
    """
    import numpy as np
    import pandas as pd

    from ich.ensemble.members import aligned

    folder, trained = slices.plan.workspace.fold(member, fold), slices.plan.training_rows(member, fold).folder
    parts = {
        "train": (trained, slices.train_rows(fold)),
        "valid": (folder, slices.valid_rows(fold)),
        "test": (folder, slices.test_rows),
    }
    logits = np.full((len(slices.table), len(slices.classes)), np.nan)
    embeddings = np.zeros((len(slices.table), 0), dtype=np.float16)
    for split, (where, rows) in parts.items():
        logits[rows] = aligned(pd.read_parquet(where / f"{split}.parquet"), slices.ids(rows), slices.classes)
        part = _rows_of(slices, where, split, rows)
        if not embeddings.shape[1]:
            embeddings = np.zeros((len(slices.table), part.shape[1]), dtype=np.float16)
        embeddings[rows] = part
    return embeddings, logits


def _embeddings(slices: Slices, member: str, fold: int, features: str) -> "np.ndarray":
    """float16 [n, d] of the slice table's rows, from the same models as `Slices.out_of_fold`.

    aligned: the other folds' models are turned into the space of fold `fold`'s, by what both say of the test set.
    """
    import numpy as np

    from ich.ensemble.alignment import into_space_of

    folders = [slices.plan.workspace.fold(member, k) for k in slices.plan.fold_numbers]
    reference = _rows_of(slices, folders[fold], "test", slices.test_rows)
    alike = features == "aligned" and len(reference) > 0  # without a test set they stay as they are
    found = np.zeros((len(slices.table), reference.shape[1]), dtype=np.float16)
    found[slices.test_rows] = reference
    for k, folder in enumerate(folders):
        rows = slices.valid_rows(k)
        part = _rows_of(slices, folder, "valid", rows)
        if alike and k != fold:
            part = into_space_of(reference, _rows_of(slices, folder, "test", slices.test_rows), part)
        found[rows] = part
    return found


def _rows_of(slices: Slices, folder: "Path", split: str, rows: "np.ndarray") -> "np.ndarray":
    """A fold's embeddings float16 [len(rows), d] of rows of the slice table, joined by image id."""
    import numpy as np
    import pandas as pd

    array = np.load(folder / f"{split}_embeddings.npy", mmap_mode="r", allow_pickle=False)
    ids = pd.Index(pd.read_parquet(folder / f"{split}.parquet", columns=["image_id"])["image_id"])
    order = ids.get_indexer(slices.ids(rows))
    if len(ids) != len(array) or (order < 0).any():
        raise ValueError(f"{folder}: {split}_embeddings.npy does not hold the slices of {split}.parquet")
    return array[order]


def _numbers(studies: "Studies", rows: "np.ndarray", wanted: "np.ndarray") -> "np.ndarray":
    """Numbers of the studies whose first row is among `wanted`; splits never divide a study."""
    import numpy as np

    return np.flatnonzero(np.isin(rows[studies.offsets[:-1]], wanted))
