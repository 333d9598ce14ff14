"""What members have in common: folds side by side, what a fold leaves, the assembled oof and test tables."""

import csv
import io
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ich import ranks
from ich.console import begin, detail, left_in_all, say, whole
from ich.errors import UserError
from ich.pipeline.graph import CHECKPOINT, Task
from ich.pipeline.plan import SHARED, Busy, Made, Plan
from ich.processes import side_by_side
from ich.recipe import Recipe
from ich.stages.artefacts import as_written, table_of
from ich.stages.inputs import Slices
from ich.store.atomic import atomic, write_text
from ich.store.records import read_sealed, write_sealed

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

ROWS_LOOKED_AT = 1 << 14  # at a time, for numbers that are none


# ---- which folds, and running them


def named(names: Sequence[str], model: str | None) -> Sequence[str]:
    """The members that --model names. Raises UserError where there is none of that name."""
    if model is not None and model not in names:
        raise UserError(f"--model {model}: this recipe has {', '.join(names) or 'none of this stage'}")
    return names if model is None else [model]


def chosen(plan: Plan, names: Sequence[str], model: str | None, fold: int | None) -> list[tuple[str, int]]:
    """(member, fold) pairs that --model and --fold name. Raises UserError for names that do not exist."""
    if fold is not None and fold not in plan.fold_numbers:
        raise UserError(f"--fold {fold}: this recipe has folds 0 to {plan.fold_numbers[-1]}")
    return [(name, k) for name in named(names, model) for k in plan.fold_numbers if fold is None or k == fold]


def run_folds(
    plan: Plan,
    names: Sequence[str],
    make: Callable[[Plan, str, int, str], Made],
    *,
    model: str | None,
    fold: int | None,
    force: bool,
) -> None:
    """Make the folds that are not done, side by side, then assemble each member whose folds are complete.

    Raises Busy at the end where folds were left to other processes.
    """
    pairs = chosen(plan, names, model, fold)
    todo = [(name, k) for name, k in pairs if force or not plan.finished(plan.fold(name, k))]
    for name, k in todo:
        plan.require(plan.fold(name, k))
    done, left = len(pairs) - len(todo), None
    try:
        for name, k in made_side_by_side(plan, todo, make, force):
            done += 1
            say(f"{plan.stage_of(name)}: {name} fold {k} finished ({done} of {len(pairs)}){left_in_all()}")
    except Busy as busy:
        left = busy
    plan.forget()
    for name in dict.fromkeys(name for name, _ in pairs):
        assemble(plan, name)
    if left is not None:
        raise left
    if pairs and not todo:
        say(f"{plan.stage_of(pairs[0][0])}: done, {len(pairs)} folds")


def made_side_by_side(
    plan: Plan,
    todo: list[tuple[str, int]],
    make: Callable[[Plan, str, int, str], Made],
    force: bool,
    task: Callable[[Plan, str, int], Task] = Plan.fold,
) -> Iterator[tuple[str, int]]:
    """Make that task of each (member, fold), and yield the pairs as they are finished.

    Raises Busy at the end where some were left to other processes.
    """
    tasks = ((plan.recipe, plan.root, *pair, make, force, task) for pair in todo)
    processes, left = min(plan.processes, len(todo)), []
    again = "with fewer of them (--set compute.processes=1) or a smaller batch_size"
    threads, stage = plan.recipe.compute.threads, plan.stage_of(todo[0][0]) if todo else ""
    if todo:
        detail(f"{stage}: {len(todo)} folds to be made, {processes} side by side, CPU threads of each: {threads}")
    with whole(stage, [_said(*pair) for pair in todo], processes) as finished:
        for pair, busy in side_by_side(_make_fold, tasks, processes, ordered=False, threads=threads, again=again):
            finished(_said(*pair))
            if busy is None:
                yield pair
            else:
                left.append(busy)
    if left:
        raise Busy("\n".join(map(str, left)))


def _said(name: str, k: int) -> str:
    """What a fold is called wherever something is said of it."""
    return f"{name} fold {k}"


def _make_fold(
    recipe: Recipe,
    root: Path,
    name: str,
    k: int,
    make: Callable[[Plan, str, int, str], Made],
    force: bool,
    task: Callable[[Plan, str, int], Task],
) -> tuple[tuple[str, int], Busy | None]:
    begin(_said(name, k))
    plan = Plan(recipe, root)
    this = task(plan, name, k)

    def made(fingerprint: str) -> Made:
        if this.stage in SHARED:
            return ranks.together(make, plan, name, k, fingerprint)
        return make(plan, name, k, fingerprint)

    try:
        plan.make(this, made, force=force)
    except Busy as busy:
        return (name, k), busy
    return (name, k), None


# ---- what a fold leaves


def _by_the_first(leave: Callable[..., dict[str, Path]]) -> Callable[..., dict[str, Path]]:
    """Of several processes that make a fold together, only the first leaves anything."""

    @wraps(leave)
    def left(*args: Any, **kwargs: Any) -> dict[str, Path]:
        return leave(*args, **kwargs) if ranks.first() else {}

    return left


@_by_the_first
def leave_predictions(
    slices: Slices,
    folder: Path,
    fold: int,
    split: str,
    rows: "np.ndarray",
    logits: "np.ndarray",
    embeddings: "np.ndarray | None" = None,
) -> dict[str, Path]:
    """valid.parquet (rows of the fold, with it) or test.parquet: image_id and logit_<class> as float32.

    With embeddings, <split>_embeddings.npy too. Raises UserError as `finite` does, before anything is written.
    """
    import pandas as pd

    from ich.ensemble.members import logit_columns

    member = folder.relative_to(slices.plan.workspace.oof).parts[0]
    found = {"logits": logits} if embeddings is None else {"logits": logits, "embeddings": embeddings}
    finite(f"{member} fold {fold}", split, slices.ids(rows), found)
    table = pd.DataFrame(logits.astype("float32"), columns=pd.Index(logit_columns(slices.classes)))
    if split == "valid":
        table.insert(0, "fold", fold)
    table.insert(0, "image_id", slices.ids(rows))
    path = folder / f"{split}.parquet"
    with atomic(path) as temporary:
        table.to_parquet(temporary, index=False)
    array = {} if embeddings is None else leave_array(folder / f"{split}_embeddings.npy", embeddings)
    return {path.name: path, **array}


def finite(what: str, split: str, ids: "pd.Index", found: "Mapping[str, np.ndarray]") -> None:
    """Raise UserError, which names the first slice, unless the arrays [n, ...] of the slices `ids` are all finite."""
    import numpy as np

    for name, array in found.items():
        parts = np.array_split(array, len(array) // ROWS_LOOKED_AT + 1)  # else as many bools as there are numbers
        bad = np.flatnonzero(~np.concatenate([np.isfinite(part).all(axis=1) for part in parts]))
        if len(bad):
            raise UserError(
                f"{what}: the {name} of {len(bad)} of {len(ids)} {split} slices are not finite, the first of"
                f" {ids[bad[0]]}; lower learning_rate, lengthen warmup, set gradient_clip or train with precision fp32"
            )


@_by_the_first
def leave_array(path: Path, array: "np.ndarray") -> dict[str, Path]:
    """The array as np.save leaves it, which itself writes past Python's files and overlooks that the disk is full."""
    import numpy as np

    whole = np.ascontiguousarray(array)
    with atomic(path) as temporary, temporary.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, np.lib.format.header_data_from_array_1_0(whole))
        file.write(whole.data if whole.size else b"")
    return {path.name: path}


@_by_the_first
def leave_bytes(path: Path, data: bytes) -> dict[str, Path]:
    with atomic(path) as temporary:
        temporary.write_bytes(data)
    return {path.name: path}


@_by_the_first
def leave_table(path: Path, rows: "pd.DataFrame") -> dict[str, Path]:
    write_text(path, rows.to_csv(index=False, float_format="%.4f", lineterminator="\n"))
    return {path.name: path}


@_by_the_first
def leave_history(path: Path, history: Sequence[Mapping[str, float]]) -> dict[str, Path]:
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(history[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(history)
    write_text(path, text.getvalue())
    return {path.name: path}


def log_loss(slices: Slices, rows: "np.ndarray", logits: "np.ndarray") -> float:
    """Weighted log loss of the rows' logits."""
    from ich.ensemble import metrics
    from ich.ensemble.members import sigmoid

    return metrics.weighted_log_loss(slices.labels[rows], sigmoid(logits), slices.class_weights)


def figures(slices: Slices, rows: "np.ndarray", logits: "np.ndarray") -> dict[str, float | None]:
    """What the record says of a fold's validation rows; the AUC is None where no class has both labels."""
    from ich.ensemble import metrics

    auc = metrics.macro(metrics.class_auc(slices.labels[rows], logits))
    return {"weighted_log_loss": log_loss(slices, rows, logits), "macro_auc": None if math.isnan(auc) else auc}


class Checkpoint:
    """The state after a fold's last finished epoch; it belongs to one fingerprint and vanishes with the fold's end."""

    def __init__(self, folder: Path, fingerprint: str) -> None:
        self.path = folder / CHECKPOINT
        self.fingerprint = fingerprint

    def load(self) -> dict[str, Any] | None:
        from ich.training import checkpoint

        data = ranks.from_first(lambda: read_sealed(self.path, self.fingerprint))
        with as_written(self.path):
            return None if data is None else checkpoint.from_bytes(data)

    def save(self, state: dict[str, Any]) -> None:
        from ich.training import checkpoint

        if ranks.first():
            write_sealed(self.path, self.fingerprint, checkpoint.to_bytes(state))


# ---- the assembled member


def assemble(plan: Plan, member: str) -> bool:
    """oof.parquet (every labelled slice exactly once) and test.parquet (mean over folds), once all folds are done."""
    task = plan.member(member)
    waiting = [k for k in plan.fold_numbers if not plan.state(plan.fold(member, k)).done]
    if waiting:
        say(f"{task.name}: not assembled yet, fold {', '.join(map(str, waiting))} to be made")
        return False
    return plan.make(task, lambda _: _assembled(plan, task, member))


def _assembled(plan: Plan, task: Task, member: str) -> Made:
    from ich.ensemble.members import aligned, assemble_oof, mean_test

    slices = Slices(plan)
    folders = [plan.workspace.fold(member, k) for k in plan.fold_numbers]
    valid = {k: table_of(folder / "valid.parquet") for k, folder in enumerate(folders)}
    left = [table_of(folder / "test.parquet") for folder in folders]
    try:
        oof = assemble_oof(valid, {k: slices.ids(slices.valid_rows(k)).tolist() for k in valid}, slices.classes)
        test = mean_test(left, slices.classes)
    except (ValueError, TypeError) as error:
        raise UserError(f"{task.name}: {error}; run `ich {task.stage} --model {member} --force`") from None
    files: dict[str, Path] = {}
    for name, table in (("oof.parquet", oof), ("test.parquet", test)):
        with atomic(task.folder / name) as temporary:
            table.to_parquet(temporary, index=False)
        files[name] = task.folder / name
    rows = slices.labelled.nonzero()[0]
    return files, {"metrics": figures(slices, rows, aligned(oof, slices.ids(rows), slices.classes))}
