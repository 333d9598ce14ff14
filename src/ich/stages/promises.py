"""What the artefacts of a recipe promise beyond their hashes, asked of the finished files for `ich verify`."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from ich.console import progress
from ich.pipeline.graph import BLEND, SMOOTH, TRAINING_ROWS, WEIGHTS, Task
from ich.pipeline.plan import Plan
from ich.store.atomic import read_json
from ich.store.hashes import digest

if TYPE_CHECKING:
    import pandas as pd

    from ich.data.invariants import Broken

Faults = Iterator[tuple[str, str]]  # a file's name, and what is wrong with it
PREDICTED = ("valid.parquet", "test.parquet")
NETWORK = (WEIGHTS, "history.csv", *PREDICTED)
FOLD_FILES = {  # what the record of a fold must name, by stage
    "cnn": (*NETWORK, "valid_embeddings.npy", "test_embeddings.npy"),
    "end_to_end": NETWORK,
    "sequence": NETWORK,
    "smooth": (SMOOTH, *PREDICTED),
    "stack": PREDICTED,  # and a model a class
    "blend": (BLEND, *PREDICTED),
}


def broken_promises(plan: Plan, sound: Mapping[Path, Task]) -> Iterator[tuple[Task, Sequence[tuple[str, str]]]]:
    """Each task of `sound`, by the paths of their records, with its faults: a file's name, and what is wrong with it.

    Of what is made from slices or folds that are not sound or break a promise, only the record is looked at.
    """
    for task in sound.values():
        yield task, list(_record(plan, task))
    if plan.prepared.record.path not in sound:
        return
    files = _Files(plan)
    faults = list(files.cache())
    yield plan.prepared, faults
    if faults or plan.recipe.competition.trained_by is not None or plan.folds.record.path not in sound:
        return
    faults = list(files.folds())
    yield plan.folds, faults
    if faults:
        return
    for member in plan.members:
        parts = [plan.fold(member, k) for k in plan.fold_numbers]
        for k, task in enumerate(parts):
            rows = plan.training_rows(member, k)
            if task.record.path in sound:
                yield task, list(files.fold(task, k))
            if rows.record.path in sound:
                yield rows, list(files.predicted(rows, "train", files.fold_of.index[files.fold_of != k]))
        if all(task.record.path in sound for task in (*parts, plan.member(member))):
            yield plan.member(member), list(files.member(plan.member(member), parts))
    for task, check in ((plan.thresholds, files.thresholds), (plan.submit, files.submission)):
        if task.record.path in sound:
            yield task, list(check())


def _record(plan: Plan, task: Task) -> Faults:
    """It names the files that there must be, what is read of others as it is now, and what network its weights are."""
    record, name = plan.record_of(task.record) or {"files": {}}, task.record.path.name
    named = _files_of(plan, task)
    lacking = [file for file in named if file not in record["files"]]
    if lacking:
        yield name, f"names no {', '.join(lacking)}"
    if WEIGHTS in named and "model" not in record:
        yield name, f"does not say which network {WEIGHTS} belongs to"
    if digest(record.get("inputs")) != digest(plan.inputs(task)):
        yield name, "names other inputs than those that are there"


def _files_of(plan: Plan, task: Task) -> tuple[str, ...]:
    """What the record of a task must name at least."""
    stage, parts = task.stage, task.name.count("/")
    if parts == 0:
        tables = {"folds": (plan.workspace.folds.name,), "thresholds": (plan.workspace.thresholds.name,)}
        return {"prepare": ("hu.npy", "slices.parquet", "quarantine.csv"), **tables}.get(stage, ())
    if parts == 1:
        return (WEIGHTS,) if stage == "pretrain" else ("oof.parquet", "test.parquet")
    if parts == 3:
        return TRAINING_ROWS
    classes = (plan.record_of(plan.prepared.record) or {"classes": ()})["classes"] if stage == "stack" else ()
    return (*FOLD_FILES[stage], *(f"model_{name}.txt" for name in classes))


def _told(name: str, check: "Callable[[], Broken]") -> Faults:
    """What a check finds wrong with a file. The check reads the file, which may be of any kind."""
    try:
        for names, what in check():
            if len(names):
                several = f" (first of {len(names)})" if len(names) > 1 else ""
                yield name, f"{next(iter(names))}{several} {what}"
    except (ValueError, KeyError, TypeError, OSError) as error:
        yield name, f"is not what it should be ({' '.join(str(error).split())})"


class _Files:
    """The finished files, read when a check asks for them; each public method tells the faults of one task."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.record = plan.record_of(plan.prepared.record) or {}
        self.classes: list[str] = self.record["classes"]

    @cached_property
    def slices(self) -> "pd.DataFrame":
        import pandas as pd

        return pd.read_parquet(self.plan.prepared.folder / "slices.parquet")

    @cached_property
    def labelled(self) -> "pd.DataFrame":
        return self.slices[(self.slices["split"] == "train") & self.slices[self.classes].notna().all(axis=1)]

    @cached_property
    def test_ids(self) -> "pd.Index":
        import pandas as pd

        return pd.Index(self.slices.loc[self.slices["split"] == "test", "image_id"])

    @cached_property
    def quarantined(self) -> "pd.DataFrame":
        import pandas as pd

        return pd.read_csv(self.plan.prepared.folder / "quarantine.csv", dtype=str, keep_default_na=False)

    @cached_property
    def assigned(self) -> "pd.DataFrame":
        import pandas as pd

        return pd.read_csv(self.plan.workspace.folds, dtype={"image_id": str, "study_id": str, "patient_id": str})

    @cached_property
    def fold_of(self) -> "pd.Series":
        """Fold of each labelled slice, by image_id."""
        from ich.data import invariants

        return invariants.fold_of(self.assigned, self.labelled)

    def cache(self) -> Faults:
        import numpy as np

        from ich.data import invariants

        def pixels() -> "Broken":
            hu = np.load(self.plan.prepared.folder / "hu.npy", mmap_mode="r", allow_pickle=False)
            with progress("verify: pixels", len(hu)) as advance:
                yield from invariants.pixels(hu, self.slices["image_id"], self.record["values"], advance)

        yield from _told("slices.parquet", lambda: invariants.slice_table(self.slices, self.classes))
        yield from _told("hu.npy", pixels)
        yield from _told("quarantine.csv", lambda: invariants.quarantine(self.quarantined))

    def folds(self) -> Faults:
        from ich.data import invariants

        n = self.plan.recipe.folds.n
        yield from _told(self.plan.workspace.folds.name, lambda: invariants.folds(self.assigned, self.labelled, n))

    def fold(self, task: Task, k: int) -> Faults:
        yield from self.predicted(task, "valid", self.fold_of.index[self.fold_of == k], self.fold_of)
        yield from self.predicted(task, "test", self.test_ids)

    def predicted(self, task: Task, split: str, wanted: "pd.Index", folds: "pd.Series | None" = None) -> Faults:
        """<split>.parquet, and the embeddings of its rows where a CNN leaves them."""
        import numpy as np
        import pandas as pd

        from ich.ensemble import invariants

        path, array = task.folder / f"{split}.parquet", task.folder / f"{split}_embeddings.npy"

        def embeddings() -> "Broken":
            ids = pd.read_parquet(path, columns=["image_id"])["image_id"]
            return invariants.embeddings(np.load(array, mmap_mode="r", allow_pickle=False), ids)

        yield from _told(path.name, lambda: invariants.predictions(pd.read_parquet(path), wanted, self.classes, folds))
        if task.stage == "cnn":
            yield from _told(array.name, embeddings)

    def member(self, task: Task, parts: Sequence[Task]) -> Faults:
        """oof.parquet and test.parquet against the slices and against the folds."""
        import pandas as pd

        from ich.ensemble import invariants

        def of_folds(split: str) -> "list[pd.DataFrame]":
            return [pd.read_parquet(part.folder / f"{split}.parquet") for part in parts]

        def oof() -> "Broken":
            table = pd.read_parquet(task.folder / "oof.parquet")
            yield from invariants.predictions(table, self.fold_of.index, self.classes, self.fold_of)
            yield from invariants.as_in(table, of_folds("valid"), self.classes)

        def test() -> "Broken":
            table = pd.read_parquet(task.folder / "test.parquet")
            yield from invariants.predictions(table, self.test_ids, self.classes)
            yield from invariants.mean_of(table, of_folds("test"), self.classes)

        yield from _told("oof.parquet", oof)
        yield from _told("test.parquet", test)

    def thresholds(self) -> Faults:
        from ich.ensemble import invariants

        path = self.plan.workspace.thresholds
        yield from _told(path.name, lambda: invariants.thresholds(read_json(path), self.classes))

    def submission(self) -> Faults:
        import pandas as pd

        from ich.data.competitions import ADAPTERS
        from ich.ensemble import invariants

        names = set((self.plan.record_of(self.plan.submit.record) or {"files": {}})["files"])
        if not names:  # there is no test set
            return
        likely, decided = "submission.csv", "submission_binary.csv"
        if ADAPTERS[self.plan.recipe.competition.format].SUBMITS == "decisions":
            likely, decided = "submission_probabilities.csv", "submission.csv"

        def read(name: str) -> "pd.DataFrame":
            key = self.wanted[0].columns[0]
            return pd.read_csv(self.plan.submit.folder / name, dtype={key: str})

        yield from _told(likely, lambda: invariants.probabilities(read(likely), self.wanted[0]))
        yield from _told(decided, lambda: invariants.decisions(read(decided), read(likely), self.wanted[1]))

    @cached_property
    def wanted(self) -> "tuple[pd.DataFrame, pd.DataFrame]":
        """Probabilities (NaN for images that could not be read) and thresholds, laid out as the competition wants."""
        import numpy as np
        import pandas as pd

        from ich.data.competitions import ADAPTERS
        from ich.ensemble.members import aligned
        from ich.stages.inputs import submitted

        plan, tuned = self.plan, read_json(self.plan.workspace.thresholds)
        logits = aligned(pd.read_parquet(plan.member("blend").folder / "test.parquet"), self.test_ids, self.classes)
        probability, cuts = submitted(tuned, logits, self.classes, self.record["class_weights"])
        of_test = self.quarantined.loc[self.quarantined["split"] == "test", "image_id"]
        images = [*self.test_ids, *sorted(set(of_test) - set(self.test_ids))]
        shape = (len(images) - len(probability), len(self.classes))

        def laid_out(values: "np.ndarray") -> "pd.DataFrame":
            frame = pd.DataFrame(values, columns=pd.Index(self.classes)).assign(image_id=images)
            return ADAPTERS[plan.recipe.competition.format].submission(plan.raw_root, frame)

        return laid_out(np.vstack([probability, np.full(shape, np.nan)])), laid_out(np.tile(cuts, (len(images), 1)))
