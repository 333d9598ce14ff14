"""`ich predict`: score a folder of DICOM files with the trained ensemble, on the very path of the test set.

Fold by fold each CNN and end-to-end network, each sequence model on its fold's CNNs, the stacker, the blend; then the
mean over folds.
"""

import json
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from ich.console import progress, say, table
from ich.data.files import below
from ich.data.files import image_ids as _image_ids
from ich.errors import UserError
from ich.pipeline.graph import BLEND, SMOOTH, Task
from ich.pipeline.plan import Made, Plan
from ich.recipe import Recipe
from ich.stages.artefacts import as_written, pictures_of, table_of
from ich.stages.fitting import enough
from ich.stages.inputs import (
    Slices,
    blended,
    pictures,
    series_codes,
    smoother_input,
    stacker_input,
    studies_of,
    study_pictures,
)
from ich.stages.networks import (
    file_of,
    joined,
    predict_pictures,
    predict_sequence,
    predict_study_pictures,
    study_head,
    with_weights,
)
from ich.store.atomic import atomic, read_json
from ich.store.records import Record

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

    from ich.data.cache import Quarantined

LISTED = 20  # quarantined files that are named one by one

Advance = Callable[[int], None]


def run(plan: Plan, source: Path, out: Path) -> None:
    """Score `source`, a folder of DICOM files at any depth or one file, and write the table `out`."""
    plan.require(_task(plan, out))
    if out.is_dir():
        raise UserError(f"{out}: this is a folder; give the name of the table to write, as {out / 'out.csv'}")
    root, names = _files(source)
    with TemporaryDirectory(prefix="ich-predict-") as folder:
        slices, quarantined = _read(plan, source, root, names, Path(folder) / "hu.npy")
        logits = _ensemble(plan, slices, Path(folder) / "hu.npy")
    scored = _scored(plan, slices, logits)
    with atomic(out) as temporary:
        scored.to_csv(temporary, index=False)
    _show(scored, quarantined, Slices(plan).classes)
    say(f"\npredict: wrote {out}, {len(scored)} slices, {len(quarantined)} files quarantined")


def run_outside(plan: Plan, *, force: bool = False) -> None:
    """Score the prepared scans of an outside validation with the ensemble of the recipe that it names."""
    trained, path = plan.trained, plan.workspace.submissions / "slices.csv"
    if trained.recipe.image != plan.recipe.image:
        raise UserError(f"image differs from that of {plan.recipe.competition.trained_by}; give both recipes the same")
    if not plan.state(plan.outside).done:
        try:
            trained.require(_task(trained, path))
        except UserError as error:
            raise UserError(f"{plan.recipe.competition.trained_by}: {error}") from None
    made = plan.make(plan.outside, lambda _: _outside(plan, trained, path), force=force)
    say(f"predict: {'wrote' if made else 'done'}, {path}")


def _outside(plan: Plan, trained: Plan, path: Path) -> Made:
    from ich.data.competitions.cq500 import scan_of

    slices = table_of(plan.prepared.folder / "slices.parquet")
    slices = slices.assign(series=series_codes(slices))
    scored = _scored(trained, slices, _ensemble(trained, slices, plan.prepared.folder / "hu.npy"))
    scored.insert(0, "scan", slices["path"].map(scan_of))
    with atomic(path) as temporary:
        scored.to_csv(temporary, index=False)
    return {path.name: path}, {"slices": len(scored)}


def _task(plan: Plan, out: Path) -> Task:
    """What predicting reads: every fold of the blend, hence of every member, and the thresholds once there are any."""
    upstream = tuple((plan.fold("blend", k), ()) for k in plan.fold_numbers)
    if plan.thresholds.record.read() is not None:
        upstream += ((plan.thresholds, ()),)
    return Task("predict", "predict", Record(out), {}, upstream)


# ---- the slices


def _files(source: Path) -> tuple[Path, list[str]]:
    """A folder, and the files below it as relative paths in order; links are followed, each folder is read once."""
    if source.is_file():
        return source.parent, [source.name]
    if not source.is_dir():
        raise UserError(f"{source}: no such file or folder")

    try:
        found = below(source)
    except OSError as error:
        raise UserError(f"{error.filename}: this folder cannot be read ({error.strerror})") from None
    except ValueError as error:
        raise UserError(str(error)) from None
    if not found:
        raise UserError(f"{source}: there is no file in this folder")
    return source, found


def _read(
    plan: Plan, source: Path, root: Path, names: Sequence[str], hu: Path
) -> tuple["pd.DataFrame", list["Quarantined"]]:
    """Write the Hounsfield cache `hu` as `ich prepare` does for a test set; its slice table, and what was refused."""
    import pandas as pd

    from ich.data import cache
    from ich.data.competitions import Raw

    image, classes, values = plan.recipe.image, Slices(plan).classes, Slices(plan).values
    files = pd.DataFrame({"image_id": _image_ids(names), "split": "test", "path": list(names)})
    labels = pd.DataFrame({"image_id": pd.Series(dtype="str")} | {name: pd.Series(dtype="float") for name in classes})
    with progress("predict: headers", len(names), "files") as advance:
        geometries = cache.read_geometries(root, names, plan.cores, advance, values)
    try:
        slices, quarantined = cache.slice_table(Raw(files, labels, [], dict.fromkeys(classes, 1.0), "", ()), geometries)
    except ValueError as error:
        raise UserError(f"{source}: {error}") from None
    if not slices.empty:
        with progress("predict: pixels", len(slices)) as advance:
            slices, unread = cache.fill(hu, slices, root, image.size, image.crop, plan.cores, advance, values)
        quarantined += unread
    if slices.empty:
        first = quarantined[0]
        raise UserError(f"{source}: not one readable slice in {len(names)} files; {first.path}: {_why(first)}")
    return slices.assign(series=series_codes(slices)), quarantined


def _why(item: "Quarantined") -> str:
    from ich.data.dicom import Reason

    return f"{Reason[item.reason.upper()]}{f' ({item.detail})' if item.detail else ''}"


# ---- the ensemble


def _ensemble(plan: Plan, slices: "pd.DataFrame", hu: Path) -> "np.ndarray":
    """The blend's logits [n, c], mean over folds."""
    import numpy as np
    import torch

    # torch and LightGBM share this process: torch comes first, and LightGBM then finds its OpenMP runtime loaded.
    torch.set_num_threads(plan.recipe.compute.threads)
    cached = pictures_of(hu)
    members = _needed(plan.recipe)
    with progress("predict: ensemble", len(slices) * len(members) * len(plan.fold_numbers)) as advance:
        folds = [_fold(plan, k, members, slices, cached, advance) for k in plan.fold_numbers]
    return np.asarray(np.mean(folds, axis=0, dtype=np.float64))


def _needed(recipe: Recipe) -> list[str]:
    """The blend's members and those that they read, in the order in which they can be made."""
    wanted = set(recipe.blend_members)
    for name, stack in recipe.stack.items():
        wanted |= set(recipe.stack_members(stack)) if name in wanted else set()
    for name, smooth in recipe.smooth.items():
        wanted |= set(recipe.smooth_members(smooth)) if name in wanted else set()
    for name, sequence in recipe.sequence.items():
        wanted |= set(sequence.on) if name in wanted else set()
    return [name for name in recipe.members if name in wanted]


def _fold(
    plan: Plan, fold: int, members: list[str], slices: "pd.DataFrame", hu: "np.ndarray", advance: Advance
) -> "np.ndarray":
    """The blend's logits float32 [n, c] from the models of one fold, one in memory at a time.

    Each member's logits are rounded to float32, as those that later members were trained on were in their files.
    """
    logits: dict[str, np.ndarray] = {}
    embeddings: dict[str, np.ndarray] = {}
    for member in members:
        stage = plan.stage_of(member)
        if stage == "cnn":
            found = _cnn(plan, member, fold, slices, hu)
            logits[member], embeddings[member] = found["logits"], found["embeddings"]
        elif stage == "end_to_end":
            logits[member] = _end_to_end(plan, member, fold, slices, hu)
        elif stage == "sequence":
            logits[member] = _sequence(plan, member, fold, slices, embeddings, logits)
        elif stage == "smooth":
            logits[member] = _smooth(plan, member, fold, slices, logits)
        else:
            logits[member] = _stack(plan, member, fold, slices, logits)
        advance(len(slices))
    task, read = plan.fold("blend", fold), [logits[name] for name in plan.recipe.blend_members]
    with as_written(task.folder / BLEND):
        fitted = json.loads(file_of(task, BLEND))["classes"]
        return blended(fitted, read, Slices(plan).classes, Slices(plan).class_weights).astype("float32")


def _cnn(plan: Plan, member: str, fold: int, slices: "pd.DataFrame", hu: "np.ndarray") -> dict[str, "np.ndarray"]:
    """Logits float32 [n, c] and embeddings float16 [n, d]."""
    import numpy as np

    from ich.networks.cnn import Cnn, CnnSpec

    settings = plan.recipe.cnn[member]
    network = with_weights(plan, member, fold, lambda shape: Cnn(CnnSpec(**shape)))
    shown = pictures(hu, slices, settings, Slices(plan).values)
    with enough(f"{member} fold {fold}", settings):
        return predict_pictures(network, shown(np.arange(len(slices))), settings)


def _end_to_end(plan: Plan, member: str, fold: int, slices: "pd.DataFrame", hu: "np.ndarray") -> "np.ndarray":
    """Logits float32 [n, c]."""
    import numpy as np

    from ich.networks.cnn import Cnn, CnnSpec

    settings = plan.recipe.end_to_end[member]
    network = with_weights(plan, member, fold, lambda shape: joined(settings, Cnn(CnnSpec(**shape))))
    shown = study_pictures(hu, slices, settings, Slices(plan).values)
    with enough(f"{member} fold {fold}", settings):
        return predict_study_pictures(network, shown(np.arange(len(slices))), settings)


def _sequence(
    plan: Plan,
    member: str,
    fold: int,
    slices: "pd.DataFrame",
    embeddings: dict[str, "np.ndarray"],
    logits: dict[str, "np.ndarray"],
) -> "np.ndarray":
    """Logits float32 [n, c]; the embeddings are those of the same fold's CNNs, so there is nothing to align."""
    import numpy as np

    settings = plan.recipe.sequence[member]
    network = with_weights(plan, member, fold, lambda shape: study_head(settings, shape))
    seen = np.concatenate([embeddings[name] for name in settings.on], axis=1)
    studies = studies_of(slices, seen, [logits[name] for name in settings.on])
    with enough(f"{member} fold {fold}", settings):
        return predict_sequence(network, studies, np.arange(len(studies.offsets) - 1), settings)


def _smooth(
    plan: Plan, member: str, fold: int, slices: "pd.DataFrame", logits: dict[str, "np.ndarray"]
) -> "np.ndarray":
    """Logits float32 [n, c]."""
    from ich.ensemble.smoothing import smooth_each

    read = [logits[name] for name in plan.recipe.smooth_members(plan.recipe.smooth[member])]
    task = plan.fold(member, fold)
    with as_written(task.folder / SMOOTH):
        widths = json.loads(file_of(task, SMOOTH))["widths"]
        found = smooth_each(*smoother_input(slices, read), [widths[name] for name in Slices(plan).classes])
    return found.astype("float32")


def _stack(plan: Plan, member: str, fold: int, slices: "pd.DataFrame", logits: dict[str, "np.ndarray"]) -> "np.ndarray":
    """Logits float32 [n, c]."""
    import numpy as np

    from ich.ensemble import stacker

    settings, threads = plan.recipe.stack[member], plan.recipe.compute.threads
    read = [logits[name] for name in plan.recipe.stack_members(settings)]
    x, _, base = stacker_input(member, settings, slices, read)
    task, columns = plan.fold(member, fold), []
    for c, name in enumerate(Slices(plan).classes):
        path = task.folder / f"model_{name}.txt"
        with as_written(path):
            columns.append(stacker.predict(file_of(task, path.name).decode(), x, base[:, c], threads=threads))
    return np.column_stack(columns).astype(np.float32)


# ---- the table


def _scored(plan: Plan, slices: "pd.DataFrame", logits: "np.ndarray") -> "pd.DataFrame":
    """out.csv: identifiers (the patient's is not among them), prob_<class>, positive_<class>."""
    from ich.ensemble import thresholds
    from ich.ensemble.members import sigmoid

    classes = Slices(plan).classes
    probability = sigmoid(logits)
    scored = slices[["image_id", "study_id", "series_id", "index"]].copy()
    scored[[f"prob_{name}" for name in classes]] = probability
    if plan.state(plan.thresholds).done:
        with as_written(plan.workspace.thresholds):
            cuts = (read_json(plan.workspace.thresholds) or {})["thresholds"]
            positive = thresholds.apply(probability, [cuts[name] for name in classes])
        scored[[f"positive_{name}" for name in classes]] = positive.astype(int)
    else:
        say("predict: no columns positive_<class>, for there are no thresholds; `ich thresholds` finds them")
    return scored


def _show(scored: "pd.DataFrame", quarantined: Sequence["Quarantined"], classes: Sequence[str]) -> None:
    for item in quarantined[:LISTED]:
        say(f"quarantined: {item.path}: {_why(item)}", asked=True)
    if len(quarantined) > LISTED:
        rest = Counter(item.reason for item in quarantined[LISTED:])
        say(
            "quarantined: and further " + ", ".join(f"{count} x {reason}" for reason, count in sorted(rest.items())),
            asked=True,
        )
    studies = scored.groupby("study_id", sort=False)
    largest = studies[[f"prob_{name}" for name in classes]].max()
    rows = [
        [str(study), str(count), *(f"{p:.3f}" for p in values)]
        for study, count, values in zip(largest.index, studies.size(), largest.to_numpy(), strict=True)
    ]
    table(["study", "slices", *classes], rows, "The largest probability of a study's slices")
