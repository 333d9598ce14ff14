"""What every artefact of a recipe is made from. Imports nothing heavy: a look is cheap."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Self

from ich.errors import UserError
from ich.recipe import Backbone, Recipe, load
from ich.store.hashes import digest
from ich.store.paths import Workspace, listing
from ich.store.records import Record, read_record

# Raised by hand when a stage computes something else from the same settings, so that old artefacts become stale.
VERSIONS = {
    "demo": 2,
    "prepare": 1,
    "folds": 1,
    "pretrain": 1,
    "cnn": 1,
    "end_to_end": 1,
    "sequence": 1,
    "smooth": 1,
    "stack": 2,
    "blend": 2,
    "thresholds": 2,
    "submit": 1,
    "score": 3,
    "explain": 2,
    "report": 1,
    "predict": 1,
}
# beside the raw data, but no input of a stage that trains
NOT_RAW = ("run.json", "solution.csv", "mislabelled.csv", "masks.npz")
WEIGHTS = "model.safetensors"  # what a network's fold leaves
INDIFFERENT = {"workers", "checkpointing"}  # settings of a member that change nothing in what it leaves
CHECKPOINT = "checkpoint.bin"  # the state after the last finished epoch, while a network is trained
PROGRESS = "progress.bin"  # which series are there, while a cache is prepared
SMOOTH = "smooth.json"  # what a fold of a smooth member leaves
BLEND = "blend.json"  # what a fold of the blend leaves
TRAINING_ROWS = ("train.parquet", "train_embeddings.npy")


@dataclass(frozen=True)
class Task:
    """One artefact folder or file with its record. `upstream` names files of other tasks, `sources` plain files."""

    name: str
    stage: str
    record: Record
    settings: Mapping[str, Any]
    upstream: tuple[tuple["Task", tuple[str, ...]], ...] = ()
    sources: Mapping[str, Path] = field(default_factory=dict)

    @property
    def folder(self) -> Path:
        return self.record.path.parent


class Tasks:
    """The tasks of a recipe, in the order they are made, each with its settings and all that it reads."""

    def __init__(self, recipe: Recipe, root: Path) -> None:
        self.recipe = recipe
        self.root = root
        self.workspace = Workspace(root, recipe.name)
        self.raw_root = root / recipe.competition.root
        self._tasks: dict[tuple[str, int | None], Task] = {}
        self._records: dict[Path, dict[str, Any] | None] = {}

    def record_of(self, record: Record) -> dict[str, Any] | None:
        """What a record says; read once a look."""
        if record.path not in self._records:
            self._records[record.path] = record.read()
        return self._records[record.path]

    @cached_property
    def demo(self) -> Task:
        settings = self.recipe.demo.model_dump(mode="json") if self.recipe.demo else {}
        return Task("demo", "demo", Record(self.raw_root / "run.json"), settings)

    @property
    def image_settings(self) -> dict[str, Any]:
        competition = self.recipe.competition.model_dump(mode="json")
        return {"competition": competition, "image": self.recipe.image.model_dump(mode="json")}

    def prepare(self) -> Task:
        """The cache task of the raw files as they lie there now; `prepared` is the one that later stages use."""
        if not self.raw_root.is_dir():
            hint = "run `ich demo` first" if self.recipe.demo else "see input/README.md for what belongs there"
            raise UserError(f"{self.raw_root}: no such folder; {hint}")
        raw = digest(listing(self.raw_root, NOT_RAW))
        settings = {**self.image_settings, "raw": raw}
        key = digest([VERSIONS["prepare"], settings])[:16]
        return Task("prepare", "prepare", Record(self.workspace.cache(key) / "run.json"), settings)

    @cached_property
    def prepared(self) -> Task:
        """The cache that this recipe's latest `ich prepare` made or found; a task never done where there is none."""
        pointer = read_record(self.workspace.cache_pointer) or {}
        fits = pointer.get("settings") == self.image_settings
        key = Path(str(pointer.get("key"))).name if fits else ""  # a name below input/cache, whatever is written there
        record = Record(self.workspace.cache(key or "none") / "run.json")
        return Task("prepare", "prepare", record, (self.record_of(record) or {}).get("settings", {}))

    @cached_property
    def folds(self) -> Task:
        if self.recipe.competition.trained_by is not None:  # every later task of training reads the folds
            raise UserError(
                f"recipe {self.recipe.name} trains nothing: it judges {self.recipe.competition.trained_by} on other"
                " scans, by `ich prepare`, `ich predict` and `ich score`"
            )
        path = self.workspace.folds
        settings = self.recipe.folds.model_dump(mode="json")
        return Task("folds", "folds", Record(path.with_suffix(".run.json")), settings, self._cache("slices.parquet"))

    def fold_settings_hold(self) -> bool:
        """Whether the fold file there was made with the present folds.n and folds.seed, or by somebody unknown."""
        record = self.record_of(self.folds.record)
        return record is None or record.get("settings") == self.folds.settings

    def _cache(self, *files: str) -> tuple[tuple[Task, tuple[str, ...]], ...]:
        return ((self.prepared, files),)

    @property
    def _folds_table(self) -> tuple[tuple[Task, tuple[str, ...]], ...]:
        return ((self.folds, (self.workspace.folds.name,)),)

    @property
    def fold_numbers(self) -> range:
        return range(self.recipe.folds.n)

    def stage_of(self, member: str) -> str:
        stages = ("pretrain", "cnn", "end_to_end", "sequence", "smooth", "stack")
        return next((stage for stage in stages if member in getattr(self.recipe, stage)), "blend")

    def pretrained(self, name: str) -> Task:
        """The backbone that a pretrain member leaves: one for all folds, for it reads no label."""
        settings = self.recipe.pretrain[name]
        record = Record(self.workspace.member(name) / "run.json")
        return Task(
            f"pretrain/{name}",
            "pretrain",
            record,
            settings.model_dump(mode="json", exclude=INDIFFERENT),
            self._cache("hu.npy", "slices.parquet"),
            self._weights(settings),
        )

    def _weights(self, settings: Backbone) -> dict[str, Path]:
        return {} if settings.weights is None else {"weights": self.root / settings.weights}

    def fold(self, member: str, fold: int) -> Task:
        """The task of one fold of a member: its settings and everything it reads."""
        if (member, fold) not in self._tasks:
            self._tasks[member, fold] = self._fold(member, fold)
        return self._tasks[member, fold]

    def _fold(self, member: str, fold: int) -> Task:
        stage, sources, tables = self.stage_of(member), {}, self._folds_table
        match stage:
            case "cnn":
                settings = self.recipe.cnn[member]
                below = () if settings.start is None else ((self.pretrained(settings.start), (WEIGHTS,)),)
                tables, sources = tables + self._cache("hu.npy", "slices.parquet"), self._weights(settings)
            case "end_to_end":
                settings = self.recipe.end_to_end[member]
                below = () if settings.start is None else ((self.fold(settings.start, fold), (WEIGHTS,)),)
                tables, sources = tables + self._cache("hu.npy", "slices.parquet"), self._weights(settings)
            case "sequence":
                settings = self.recipe.sequence[member]
                if settings.features == "in_sample":
                    below = tuple(part for name in settings.on for part in self._of_one_model(name, fold))
                else:
                    below = self._below(settings.on, fold, embeddings=True)
                tables += self._cache("slices.parquet")
            case "smooth":
                settings = self.recipe.smooth[member]
                below = self._below(self.recipe.smooth_members(settings), fold)
                tables += self._cache("slices.parquet")
            case "stack":
                settings = self.recipe.stack[member]
                below = self._below(self.recipe.stack_members(settings), fold)
                tables += self._cache("slices.parquet")
            case _:
                settings = self.recipe.blend
                below = self._below(self.recipe.blend_members, fold)
                tables += self._cache("slices.parquet")
        values = settings.model_dump(mode="json", exclude=INDIFFERENT)
        record = Record(self.workspace.fold(member, fold) / "run.json")
        return Task(f"{stage}/{member}/fold{fold}", stage, record, {**values, "fold": fold}, tables + below, sources)

    def _below(
        self, members: list[str] | tuple[str, ...], fold: int, *, embeddings: bool = False
    ) -> tuple[tuple[Task, tuple[str, ...]], ...]:
        """What fold `fold` of a later member reads: everyone's validation rows, and its own fold's test rows.

        With embeddings it reads the test rows of all folds: by them the folds' embeddings are brought into one space.
        """
        upstream: list[tuple[Task, tuple[str, ...]]] = []
        for member in members:
            for k in self.fold_numbers:
                splits = ("valid", "test") if embeddings or k == fold else ("valid",)
                files = [f"{split}.parquet" for split in splits]
                files += [f"{split}_embeddings.npy" for split in splits] if embeddings else []
                upstream.append((self.fold(member, k), tuple(files)))
        return tuple(upstream)

    def _of_one_model(self, member: str, fold: int) -> tuple[tuple[Task, tuple[str, ...]], ...]:
        """All rows as the network of one fold sees them, those that it was trained on too."""
        files = tuple(f"{split}{of}" for split in ("valid", "test") for of in (".parquet", "_embeddings.npy"))
        return (self.fold(member, fold), files), (self.training_rows(member, fold), TRAINING_ROWS)

    def training_rows(self, member: str, fold: int) -> Task:
        """What a fold's network says of the rows that it was trained on; for sequence members that want it."""
        record = Record(self.workspace.fold(member, fold) / "train" / "run.json")  # a folder with a lock of its own
        upstream = (*self._folds_table, *self._cache("hu.npy", "slices.parquet"), (self.fold(member, fold), (WEIGHTS,)))
        return Task(f"cnn/{member}/fold{fold}/train", "cnn", record, {}, upstream)

    def member(self, member: str) -> Task:
        """The assembled oof.parquet and test.parquet of a member."""
        if (member, None) not in self._tasks:
            self._tasks[member, None] = self._member(member)
        return self._tasks[member, None]

    def _member(self, member: str) -> Task:
        stage = self.stage_of(member)
        parts = tuple((self.fold(member, k), ("valid.parquet", "test.parquet")) for k in self.fold_numbers)
        record = Record(self.workspace.member(member) / "run.json")
        return Task(f"{stage}/{member}", stage, record, {}, self._folds_table + self._cache("slices.parquet") + parts)

    @property
    def members(self) -> list[str]:
        return self.recipe.members

    @property
    def read_in_sample(self) -> set[str]:
        """The cnn members whose training rows some sequence member reads."""
        return {name for s in self.recipe.sequence.values() if s.features == "in_sample" for name in s.on}

    @cached_property
    def thresholds(self) -> Task:
        path = self.workspace.thresholds
        settings = self.recipe.thresholds.model_dump(mode="json")
        upstream = (
            *self._cache("slices.parquet"),
            *self._folds_table,
            (self.member("blend"), ("oof.parquet", "test.parquet")),
        )
        return Task("thresholds", "thresholds", Record(path.with_suffix(".run.json")), settings, upstream)

    @cached_property
    def submit(self) -> Task:
        path = self.workspace.submissions / "submission.json"
        upstream = (
            *self._cache("slices.parquet", "quarantine.csv"),
            (self.member("blend"), ("test.parquet",)),
            (self.thresholds, (self.workspace.thresholds.name,)),
        )
        template = (self.record_of(self.prepared.record) or {}).get("template")
        sources = {"template": self.raw_root / template} if template else {}
        record = Record(path, ("submission_binary", "submission_probabilities"))
        return Task("submit", "submit", record, {}, upstream, sources)

    @cached_property
    def trained(self) -> Self:
        """The plan of the recipe whose ensemble an outside validation judges."""
        path = self.recipe.competition.trained_by
        return self if path is None else type(self)(load(self.root / path), self.root)

    @cached_property
    def outside(self) -> Task:
        """The slices of an outside validation as the trained ensemble of another recipe scores them."""
        folds = tuple((self.trained.fold("blend", k), (BLEND,)) for k in self.trained.fold_numbers)
        record = Record(self.workspace.submissions / "slices.run.json")
        settings = {"trained_by": self.trained.recipe.name}
        return Task("predict", "predict", record, settings, self._cache("hu.npy", "slices.parquet") + folds)

    @cached_property
    def scans(self) -> Task:
        """The scores of an outside validation, a finding."""
        reads = self.raw_root / "reads.csv"
        record = Record(self.workspace.submissions / "scores.run.json", ("scans",))
        return Task("score", "score", record, {}, ((self.outside, ("slices.csv",)),), {"reads.csv": reads})

    @cached_property
    def score(self) -> Task:
        path = self.workspace.submissions / "scores.run.json"
        upstream = (*self._cache("slices.parquet"), *self._folds_table)
        upstream += tuple((self.member(m), ("oof.parquet", "test.parquet")) for m in self.members)
        upstream += ((self.thresholds, (self.workspace.thresholds.name,)),)
        solution = self.raw_root / "solution.csv"
        sources = {"solution.csv": solution} if solution.is_file() else {}
        settings = self.recipe.thresholds.model_dump(mode="json", include={"metric", "shrink"})
        record = Record(path, ("scores_by_class", "confusion", "reliability"))
        return Task("score", "score", record, settings, upstream, sources)

    @cached_property
    def explain(self) -> Task:
        """Pictures and tables that show what the networks look at, and which labels look wrong."""
        parts = (WEIGHTS, "valid.parquet", "valid_embeddings.npy")
        folds = tuple((self.fold(m, k), parts) for m in self.recipe.cnn for k in self.fold_numbers)
        upstream = (*self._cache("hu.npy", "slices.parquet"), *self._folds_table, *folds)
        for first in list(self.recipe.cnn)[:1]:  # whose embeddings are mapped
            upstream += ((self.fold(first, 0), ("test.parquet", "test_embeddings.npy")),)
            upstream += ((self.training_rows(first, 0), TRAINING_ROWS),) if first in self.read_in_sample else ()
        upstream += ((self.member("blend"), ("oof.parquet",)),)
        known = {name: self.raw_root / name for name in ("masks.npz", "mislabelled.csv")}
        sources = {name: path for name, path in known.items() if path.is_file()}
        record = Record(self.workspace.submissions / "explain" / "run.json")
        return Task("explain", "explain", record, {}, upstream, sources)

    @cached_property
    def report(self) -> Task:
        """The page of all that the others found."""
        folds = tuple((self.fold(m, k), ("history.csv",)) for m in self.recipe.networks for k in self.fold_numbers)
        weights = tuple((self.fold(m, k), (WEIGHTS,)) for m in self.recipe.cnn for k in self.fold_numbers)
        blends = tuple((self.fold("blend", k), (BLEND,)) for k in self.fold_numbers)
        members = tuple((self.member(m), ("oof.parquet", "test.parquet")) for m in self.members)
        upstream = (*self._cache("hu.npy", "slices.parquet", "quarantine.csv"), *self._folds_table)
        upstream += folds + weights + blends + members
        upstream += ((self.thresholds, (self.workspace.thresholds.name,)), (self.submit, ("submission.csv",)))
        upstream += ((self.score, ("scores.json", "reliability.csv")),)
        upstream += ((self.explain, ("suspicious_labels.csv", "label_audit.csv", "embedding_map.csv")),)
        settings = self.recipe.report.model_dump(mode="json")
        return Task("report", "report", Record(self.workspace.submissions / "report.run.json"), settings, upstream)

    def all(self) -> Iterator[Task]:
        """Every task, in the order of the flow."""
        if self.recipe.demo:
            yield self.demo
        yield self.prepare() if self.raw_root.is_dir() else self.prepared
        if self.recipe.competition.trained_by is not None:
            yield from (self.outside, self.scans)
            return
        yield self.folds
        yield from map(self.pretrained, self.recipe.pretrain)
        for member in self.members:
            yield from (self.fold(member, k) for k in self.fold_numbers)
            yield from (self.training_rows(member, k) for k in self.fold_numbers if member in self.read_in_sample)
            yield self.member(member)
        yield from (self.thresholds, self.submit, self.score, self.explain, self.report)
