"""`ich verify`: check all artifacts against their recorded hashes and the rules of their kind, without changes.

Exit code 0: sound, including missing artifacts; 2: damaged. Raw files have no hashes, except those of `ich demo`;
`ich check` examines them.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ich.console import progress, say
from ich.data import rules
from ich.data.cache import shard_name
from ich.data.competitions import ADAPTERS
from ich.data.folds import fold_of
from ich.ensemble import invariants
from ich.ensemble.final import final_probabilities
from ich.ensemble.predictions import aligned
from ich.models.data import FoldData
from ich.models.pseudonyms import Pseudonyms
from ich.models.table import FOLDS_REMEDY, read_folds, read_parquet
from ich.pipeline.state import Plan
from ich.pipeline.tasks import Task
from ich.store.atomic import read_json
from ich.store.hashes import digest
from ich.store.paths import SUBMITTED
from ich.store.records import read_record

MB = 1_000_000
MALFORMED = (ValueError, KeyError, TypeError, OSError)  # raised for malformed files
DAMAGED_RECORD = "is damaged (its own hash differs)"
Fault = tuple[str, str]  # file name and error
Broken = Iterable[tuple[Sequence[str] | pd.Series | pd.Index, str]]


def run(plan: Plan) -> int:
    """Print one line per fault with a remedy; return the exit code."""
    used = [plan.prepared] if plan.prepared.record.path.is_file() else []  # it may be of other raw files
    tasks = list({task.record.path: task for task in [*plan.all(), *used]}.values())
    looks = _looks(plan, tasks)
    damaged = [(task, *fault) for task, kind, faults in looks if kind == "damaged" for fault in faults]
    sound = [task for task, kind, _ in looks if kind == "sound"]
    broken = [(task, *fault) for task, faults in _Rules(plan, sound).check() for fault in faults]
    for task, name, what in [*damaged, *broken]:
        say(f"error: {plan.relative(task.folder / name)}: {what}; {_remedy(plan, task, name, what)}", always=True)
    pointer = plan.workspace.cache_pointer
    lost = pointer.is_file() and read_record(pointer) is None
    if lost:
        say(f"error: {plan.relative(pointer)}: {DAMAGED_RECORD}; run `ich prepare`", always=True)
    for note in _notes(plan, looks):
        say(f"note: {note}", always=True)
    unsound = {task.record.path for task, *_ in broken}
    counts = Counter("broken" if task.record.path in unsound else kind for task, kind, _ in looks)
    ordered = sorted(counts, key=lambda kind: kind != "sound")
    say("verify: " + ", ".join(f"{counts[kind]} {kind}" for kind in ordered), always=True)
    if counts["stale"] or counts["missing"] or counts["killed"] or counts["running"]:
        say("Only sound artifacts were checked against the rules. See `ich status` for the others", always=True)
    return 2 if damaged or broken or lost else 0


def _remedy(plan: Plan, task: Task, name: str, what: str) -> str:
    """Return the remedy. Damaged files must be deleted, since stages compare large files by size and date only."""
    if name == plan.workspace.folds.name:
        return FOLDS_REMEDY
    gone = what in ("is missing", DAMAGED_RECORD)
    return f"{'' if gone else 'delete it, then '}run `ich {task.stage}`"


# ---- hashes


def _looks(plan: Plan, tasks: list[Task]) -> list[tuple[Task, str, list[Fault]]]:
    """Return each task with its state (sound, damaged, stale, missing, running or killed) and its damaged files."""
    looks: list[tuple[Task, str, list[Fault]]] = []
    paths = [task.folder / name for task in tasks for name in plan.files_of(task)]
    left = 0
    with progress("verify: files", sum(p.stat().st_size for p in paths if p.is_file()) // MB, "MB") as advance:

        def on_read(count: int) -> None:
            nonlocal left
            whole, left = divmod(left + count, MB)
            advance(whole)

        for task in tasks:
            faults: list[Fault] = []
            for name in plan.files_of(task):
                try:
                    what = task.record.damage(plan.record_of(task), name, on_read)
                except OSError as error:
                    what = f"cannot be read ({error.strerror})"
                faults += [] if what is None else [(name, what)]
            if not plan.record_of(task) and task.record.path.is_file():
                faults.append((task.record.path.name, DAMAGED_RECORD))
            try:
                kind = plan.standing(task).kind
            except OSError:  # it or one of its inputs cannot be read
                kind = "stale"
            if kind == "running":
                faults = []
            elif faults and kind != "killed":  # a killed run may have replaced files of the old record
                kind = "damaged"
            looks.append((task, "sound" if kind == "done" else kind, faults))
    return looks


def _notes(plan: Plan, looks: Sequence[tuple[Task, str, list[Fault]]]) -> Iterator[str]:
    """Yield notes on files of killed processes and on files that are in no record."""
    for task, kind, faults in looks:
        if kind == "killed" and faults:
            listed = ", ".join(f"{name} {what}" for name, what in faults)
            yield f"{task.name} was killed while running again: {listed}; run `ich {task.stage}`"
    if any(kind == "running" for _, kind, _ in looks):
        return
    left = {path for task, _, _ in looks for path in task.record.leftovers()}
    for task, kind, _ in looks:
        if task.record.path.name != "run.json" or kind != "sound" or task.stage == "demo":
            continue
        known = {task.record.path.name, *plan.files_of(task)}
        found = (p for p in task.folder.iterdir() if p.is_file() or p == task.record.work)
        strays = sorted(p.name for p in found if p.name not in known and p not in left)
        if strays:
            yield f"{plan.relative(task.folder)}: unknown files, which are ignored: {', '.join(strays)}"
    for path in sorted(left):
        yield f"{plan.relative(path)}: temporary file of a killed process, which is ignored"


# ---- rules


class _Rules:
    """Rules of the sound tasks. Files are read when a rule needs them."""

    def __init__(self, plan: Plan, sound: list[Task]) -> None:
        self.plan, self.tasks = plan, sound
        self.sound = {task.record.path for task in sound}

    def check(self) -> Iterator[tuple[Task, Iterable[Fault]]]:
        """Yield the faults of each task. Nothing that depends on broken slices or folds is checked."""
        plan = self.plan
        yield from ((task, self._record(task)) for task in self.tasks)
        if not self._is_sound(plan.prepared):
            return
        faults = list(self._cache())
        yield plan.prepared, faults
        if faults or plan.recipe.competition.trained_by is not None or not self._is_sound(plan.folds):
            return
        name, n = plan.workspace.folds.name, plan.recipe.folds.n
        faults = list(
            _ruled(name, lambda: self.assigned, lambda table: rules.folds(table, self.labelled, n, self.classes))
        )
        yield plan.folds, faults
        if faults:
            return
        for model in plan.models:
            parts = [plan.fold(model, k) for k in plan.fold_numbers]
            for k, task in enumerate(parts):
                if self._is_sound(task):
                    ids = self.fold_of.index[self.fold_of == k]
                    yield task, self._predicted(task, "valid", ids, self.fold_of)
                    yield task, self._predicted(task, "test", self.test_ids)
                    if plan.settings_of(model).writes_studies:
                        ids = self.study_fold.index[self.study_fold == k]
                        yield task, self._predicted(task, "valid_studies", ids, self.study_fold, "study_id")
                        yield task, self._predicted(task, "test_studies", self.test_studies, key="study_id")
                if self._is_sound(in_sample := plan.in_sample(model, k)):
                    ids = self.fold_of.index[self.fold_of != k]
                    if plan.recipe.labels is not None:
                        data = FoldData.read(plan.recipe, plan.workspace, plan.prepared.folder, model, k)
                        ids = data.table.ids(data.in_sample_rows)
                    yield in_sample, self._predicted(in_sample, "train", ids)
            assembled = plan.assembled(model)
            if all(self._is_sound(task) for task in (*parts, assembled)):
                yield assembled, self._assembled(assembled, parts)
        if self._is_sound(plan.thresholds):
            path = plan.workspace.thresholds
            yield plan.thresholds, _told(path.name, lambda: invariants.thresholds(read_json(path), self.classes))
        if self._is_sound(plan.submit):
            yield plan.submit, self._submission()

    def _is_sound(self, task: Task) -> bool:
        return task.record.path in self.sound

    def _record(self, task: Task) -> Iterator[Fault]:
        """The record must list all files of the task and its current inputs."""
        record, name = self.plan.record_of(task), task.record.path.name
        missing = [file for file in task.files if file not in record["files"]]
        if missing:
            yield name, f"does not list {', '.join(missing)}"
        if digest(record.get("inputs")) != digest(self.plan.inputs(task)):
            yield name, "lists outdated inputs"

    # ---- files

    @cached_property
    def classes(self) -> list[str]:
        return self.plan.record_of(self.plan.prepared)["classes"]

    @cached_property
    def slices(self) -> pd.DataFrame:
        return read_parquet(self.plan.prepared.folder / "slices.parquet")

    @cached_property
    def labelled(self) -> pd.DataFrame:
        return self.slices[(self.slices["split"] == "train") & self.slices[self.classes].notna().all(axis=1)]

    @cached_property
    def test_ids(self) -> pd.Index:
        return pd.Index(self.slices.loc[self.slices["split"] == "test", "image_id"])

    @cached_property
    def quarantined(self) -> pd.DataFrame:
        return pd.read_csv(self.plan.prepared.folder / "quarantine.csv", dtype=str, keep_default_na=False)

    @cached_property
    def assigned(self) -> pd.DataFrame:
        pseudonyms = Pseudonyms.of(self.plan.workspace, self.plan.recipe.competition.format)
        return read_folds(self.plan.workspace.folds, pseudonyms, self.slices)

    @cached_property
    def fold_of(self) -> pd.Series:
        """Fold of each labelled slice, by image_id."""
        return fold_of(self.assigned, self.labelled)

    @cached_property
    def study_fold(self) -> pd.Series:
        """Fold of each study with a label, by study_id."""
        study = self.labelled.set_index("image_id")["study_id"].loc[self.fold_of.index]
        return self.fold_of.groupby(study.to_numpy()).first()

    @cached_property
    def test_studies(self) -> pd.Index:
        return pd.Index(self.slices.loc[self.slices["split"] == "test", "study_id"].unique())

    def _cache(self) -> Iterator[Fault]:
        folder, values = self.plan.prepared.folder, self.plan.record_of(self.plan.prepared)["values"]
        yield from _ruled("slices.parquet", lambda: self.slices, lambda table: rules.slice_table(table, self.classes))
        yield from _ruled("quarantine.csv", lambda: self.quarantined, rules.quarantine)
        with progress("verify: pixels", len(self.slices)) as advance:
            for number, rows in self.slices.groupby("shard"):
                name = shard_name(int(str(number)))

                def shard(table: pd.DataFrame, name: str = name) -> rules.Faults:
                    array = np.load(folder / name, mmap_mode="r", allow_pickle=False)
                    return rules.pixels(array, len(table), values, advance)

                yield from _ruled(name, lambda rows=rows: rows, shard)

    def _predicted(
        self, task: Task, split: str, ids: pd.Index, folds: pd.Series | None = None, key: str = "image_id"
    ) -> Iterator[Fault]:
        """Check <split>.parquet and, if there are any, the embeddings of its rows."""
        path, array = task.folder / f"{split}.parquet", task.folder / f"{split}_embeddings.npy"

        def embeddings() -> Broken:
            image_ids = pd.read_parquet(path, columns=["image_id"])["image_id"]
            return invariants.embeddings(np.load(array, mmap_mode="r", allow_pickle=False), image_ids)

        rule = lambda: invariants.predictions(pd.read_parquet(path), ids, self.classes, folds, key)
        yield from _told(path.name, rule)
        if array.name in task.files:
            yield from _told(array.name, embeddings)

    def _assembled(self, task: Task, parts: list[Task]) -> Iterator[Fault]:
        """Check the out-of-fold and test tables against the slices, the studies and the folds."""

        def of_folds(name: str) -> list[pd.DataFrame]:
            return [pd.read_parquet(part.folder / name) for part in parts]

        def oof(end: str, folds: pd.Series, key: str) -> Broken:
            table = pd.read_parquet(task.folder / f"oof{end}")
            yield from invariants.predictions(table, folds.index, self.classes, folds, key)
            yield from invariants.as_in(table, of_folds(f"valid{end}"), self.classes, key)

        def test(end: str, ids: pd.Index, key: str) -> Broken:
            table = pd.read_parquet(task.folder / f"test{end}")
            yield from invariants.predictions(table, ids, self.classes, key=key)
            yield from invariants.mean_of(table, of_folds(f"test{end}"), self.classes, key)

        yield from _told("oof.parquet", lambda: oof(".parquet", self.fold_of, "image_id"))
        yield from _told("test.parquet", lambda: test(".parquet", self.test_ids, "image_id"))
        if self.plan.settings_of(task.model).writes_studies:
            end, key = "_studies.parquet", "study_id"
            yield from _told(f"oof{end}", lambda: oof(end, self.study_fold, key))
            yield from _told(f"test{end}", lambda: test(end, self.test_studies, key))

    def _submission(self) -> Iterator[Fault]:
        """Check both files against the logits of the blend and the thresholds."""
        plan = self.plan
        if not plan.files_of(plan.submit):  # there is no test set
            return
        adapter = ADAPTERS[plan.recipe.competition.format]
        likely, decided = SUBMITTED[adapter.SUBMITS]
        table = read_parquet(plan.assembled("blend").folder / "test.parquet")
        weights = plan.record_of(plan.prepared)["class_weights"]
        logits = aligned(table, self.test_ids, self.classes)
        probability, cuts = final_probabilities(read_json(plan.workspace.thresholds), logits, self.classes, weights)
        unread = self.quarantined.loc[self.quarantined["split"] == "test", "image_id"]
        images = [*self.test_ids, *sorted(set(unread) - set(self.test_ids))]
        prior = np.full((len(images) - len(probability), len(self.classes)), np.nan)

        def laid_out(values: NDArray) -> pd.DataFrame:
            """Values in the format of the competition."""
            table = pd.DataFrame(values, columns=pd.Index(self.classes)).assign(image_id=images)
            return adapter.submission(plan.raw_root, table)

        expected, limits = laid_out(np.vstack([probability, prior])), laid_out(np.tile(cuts, (len(images), 1)))

        def read(name: str) -> pd.DataFrame:
            return pd.read_csv(plan.submit.folder / name, dtype={expected.columns[0]: str})

        yield from _told(likely, lambda: invariants.probabilities(read(likely), expected))
        yield from _told(decided, lambda: invariants.decisions(read(decided), read(likely), limits))


def _ruled(
    name: str, read: Callable[[], pd.DataFrame], rule: Callable[[pd.DataFrame], rules.Faults]
) -> Iterator[Fault]:
    """Yield the faults of a table by a rule of `ich.data.rules`."""
    try:
        table = read()
        yield from ((name, rules.describe(fault, table, rules.fold_key(table))) for fault in rule(table))
    except MALFORMED as error:
        yield name, f"is malformed ({' '.join(str(error).split())})"


def _told(name: str, rule: Callable[[], Broken]) -> Iterator[Fault]:
    """Yield the faults of a file by a rule of `ich.ensemble.invariants`, which also reads the file."""
    try:
        for names, what in rule():
            if len(names):
                several = f" (first of {len(names)})" if len(names) > 1 else ""
                yield name, f"{next(iter(names))}{several} {what}"
    except MALFORMED as error:
        yield name, f"is malformed ({' '.join(str(error).split())})"
