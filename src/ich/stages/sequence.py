"""`ich sequence`: stage 2. A recurrent network over each study, on what the stage-1 members say of its slices."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from ich.console import say
from ich.errors import UserError
from ich.pipeline.graph import Task
from ich.pipeline.plan import Made, Plan, seed_of
from ich.stages.artefacts import logits_of, table_of
from ich.stages.fitting import loss_for, splits, train_member
from ich.stages.inputs import Slices, studies_of
from ich.stages.member import run_folds
from ich.stages.networks import Advance, array_of, head_shape, predict_sequence, study_head

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np

    from ich.data.studies import Studies


def run(plan: Plan, *, model: str | None = None, fold: int | None = None, force: bool = False) -> None:
    run_folds(plan, list(plan.recipe.sequence), fit_fold, model=model, fold=fold, force=force)


def fit_fold(plan: Plan, member: str, fold: int, fingerprint: str) -> Made:
    """Train one sequence model on the studies outside fold `fold`, then predict that fold and the test set."""
    import torch

    from ich.data.studies import study_loader
    from ich.training.device import default_device

    settings = plan.recipe.sequence[member]
    torch.set_num_threads(plan.recipe.compute.threads)
    slices, seed, size = Slices(plan), seed_of(settings.seed, member, fold), settings.batch_size
    rows = splits(slices, settings, fold)
    if settings.features == "aligned" and not len(slices.test_rows):
        say(f"  {member} fold {fold}: there is no test set to align the folds' embeddings by; they stay as they are")
    packed, studies = _studies(slices, settings.on, fold, settings.features)
    studies = studies.near(default_device())
    numbers = {split: _numbers(studies, packed, wanted) for split, wanted in rows.items()}
    shape = head_shape(settings, studies.features.shape[1], len(slices.classes))
    torch.manual_seed(seed)
    network = study_head(settings, shape)
    if settings.output_bias:
        network.output_bias(slices.labels[rows["train"]].mean(axis=0))
    loss = loss_for(settings, slices, slices.labels[rows["train"]])

    def predict(model: Any, split: str, advance: Advance) -> "dict[str, np.ndarray]":
        """Logits in the order of rows[split]: packed rows and rows of the slice table both rise."""
        return {"logits": predict_sequence(model, studies, numbers[split], settings, advance)}

    def loss_of(model: Any, batch: Any) -> Any:
        logits = model(batch.features, batch.base, batch.geometry, batch.lengths)
        return loss(batch.slices(logits), batch.slices(batch.targets))

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
    """Row numbers of the slice table [N], a series after the other in order of position, and what is known of them.

    Memory: the features, 2 bytes x N x the members' widths, are held once and filled block by block from the files.
    Beside them: the slice table, each member's logits (8 bytes x rows x classes), the table of one file of predictions,
    and a few blocks (networks.BLOCK; aligned: in float64, and squares of a member's width).
    """
    import numpy as np

    used = slices.labelled.copy()
    used[slices.test_rows] = True
    rows = used.nonzero()[0]  # the slice table holds each series together and in order
    members = [_parts(slices, member, fold, features) for member in on]
    ends = np.cumsum([0, *(next(array_of(parts[0].task, parts[0].embeddings)).shape[1] for parts in members)])
    found, logits = np.zeros((len(rows), ends[-1]), dtype=np.float16), []
    for parts, begin, end in zip(members, ends, ends[1:], strict=False):
        _fill(slices, parts, rows, found[:, begin:end], aligned=features == "aligned")
        logits.append(_logits(slices, parts)[rows])
    return rows, studies_of(slices.table.iloc[rows], found, logits, np.nan_to_num(slices.labels[rows]))


@dataclass(frozen=True)
class _Part:
    """Rows of the slice table, and what a task says of them: a split of what a fold leaves."""

    task: Task
    split: str
    rows: "np.ndarray"

    @property
    def table(self) -> "Path":
        return self.task.folder / f"{self.split}.parquet"

    @property
    def embeddings(self) -> str:
        return f"{self.split}_embeddings.npy"


def _parts(slices: Slices, member: str, fold: int, features: str) -> list[_Part]:
    """Where a member's embeddings and logits are, the test set first. Its rows come from fold `fold`'s network.

    in_sample: all from that network. One space, but the network has learned the labels of the training rows: what it
    says of them is surer than what it will say of others. Else as `Slices.out_of_fold`.
    """
    plan = slices.plan
    test = _Part(plan.fold(member, fold), "test", slices.test_rows)
    if features == "in_sample":
        train = _Part(plan.training_rows(member, fold), "train", slices.train_rows(fold))
        return [test, train, _Part(test.task, "valid", slices.valid_rows(fold))]
    return [test, *(_Part(plan.fold(member, k), "valid", slices.valid_rows(k)) for k in plan.fold_numbers)]


def _logits(slices: Slices, parts: list[_Part]) -> "np.ndarray":
    """Logits float64 [n, c] of the slice table's rows, NaN where there are none."""
    import numpy as np

    found = np.full((len(slices.table), len(slices.classes)), np.nan)
    for part in parts:
        found[part.rows] = logits_of(part.table, slices.ids(part.rows), slices.classes)
    return found


def _fill(slices: Slices, parts: list[_Part], rows: "np.ndarray", found: "np.ndarray", *, aligned: bool) -> None:
    """Write a member's embeddings into `found` float16 [N, d], whose rows are `rows` of the slice table.

    aligned: the other folds' models are turned into the space of the first part's, by what both say of the test set.
    """
    from ich.ensemble.alignment import into_space_of

    test = parts[0]
    for part in parts:
        move = None
        if aligned and part.task is not test.task and len(test.rows):  # without a test set they stay as they are
            same = replace(test, task=part.task)
            move = into_space_of(lambda same=same: ((found[at], block) for at, block in _blocks(slices, same, rows)))
        for at, block in _blocks(slices, part, rows):
            found[at] = block if move is None else move(block)


def _blocks(slices: Slices, part: _Part, rows: "np.ndarray") -> Iterator[tuple["np.ndarray", "np.ndarray"]]:
    """A part's embeddings float16 [b, d], joined by image id: the numbers among `rows` [b] that each block is of."""
    import numpy as np
    import pandas as pd

    ids = pd.Index(table_of(part.table, ["image_id"])["image_id"])
    order = ids.get_indexer(slices.ids(part.rows))
    misfit = UserError(f"{part.task.name}: {part.embeddings} does not hold the slices of {part.table.name}")
    if (order < 0).any():
        raise misfit
    places = np.full(len(ids), -1)
    places[order] = np.searchsorted(rows, part.rows)
    for block in array_of(part.task, part.embeddings):
        at, places = places[: len(block)], places[len(block) :]
        if len(at) < len(block):
            raise misfit
        yield at[at >= 0], block[at >= 0]
    if len(places):
        raise misfit


def _numbers(studies: "Studies", rows: "np.ndarray", wanted: "np.ndarray") -> "np.ndarray":
    """Numbers of the studies whose first row is among `wanted`; splits never divide a study."""
    import numpy as np

    return np.flatnonzero(np.isin(rows[studies.offsets[:-1]], wanted))
