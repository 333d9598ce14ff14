"""What every artifact of a recipe is made from. Imports nothing heavy: `ich status` starts at once."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Self

from ich.errors import UserError
from ich.models.inputs import input_splits
from ich.recipe import SECTIONS, Model, Recipe, load
from ich.store.hashes import digest
from ich.store.paths import Workspace, listing
from ich.store.records import Record, read_record

# Raised by hand when a stage computes something else from the same settings, so that old artifacts become stale.
VERSIONS = {
    "demo": 2,
    "prepare": 2,
    "folds": 1,
    "pretrain": 2,
    "cnn": 2,
    "end_to_end": 2,
    "sequence": 2,
    "external": 1,
    "smooth": 2,
    "stack": 3,
    "blend": 3,
    "thresholds": 2,
    "submit": 1,
    "score": 3,
    "explain": 3,
    "report": 3,
    "predict": 1,
}
NOT_RAW = ("run.json", "solution.csv", "mislabelled.csv", "masks.npz")  # beside the raw data, not read in training
PREDICTED = ("valid.parquet", "test.parquet")
SHARDS = "hu-*.npy"  # the pixels of the Hounsfield cache
WEIGHTS = "model.safetensors"
CHECKPOINT = "checkpoint.bin"  # while a network is trained: the state after the last finished epoch
IN_SAMPLE = ("train.parquet", "train_embeddings.npy")

Upstream = tuple[tuple["Task", tuple[str, ...]], ...]


@dataclass(frozen=True)
class Task:
    """One artifact folder or file with its record. `upstream` names files of other tasks, `sources` plain files."""

    name: str
    stage: str
    record: Record
    settings: Mapping[str, Any]
    upstream: Upstream = ()
    sources: Mapping[str, Path] = field(default_factory=dict)
    model: str = ""
    fold: int | None = None
    files: tuple[str, ...] = ()
    """Names that its record lists at least."""

    @property
    def folder(self) -> Path:
        return self.record.path.parent


class Graph:
    """The tasks of a recipe in the order in which they can be made, each with its settings and all that it reads."""

    def __init__(self, recipe: Recipe, root: Path) -> None:
        self.recipe = recipe
        self.root = root
        self.workspace = Workspace(root, recipe.name)
        self.raw_root = root / recipe.competition.root
        self._tasks: dict[tuple[str, int | None], Task] = {}
        self._records: dict[Path, dict[str, Any] | None] = {}

    def record_of(self, task: Task) -> dict[str, Any]:
        """The record of a task, empty where there is none; each is read once."""
        path = task.record.path
        if path not in self._records:
            self._records[path] = task.record.read()
        return self._records[path] or {}

    def files_of(self, task: Task) -> Mapping[str, str]:
        """SHA-256 of the files of a task by name, as recorded."""
        return self.record_of(task).get("files", {})

    # ---- data

    @cached_property
    def demo(self) -> Task:
        settings = self.recipe.demo.model_dump(mode="json") if self.recipe.demo else {}
        return Task("demo", "demo", Record(self.raw_root / "run.json"), settings)

    @property
    def image_settings(self) -> dict[str, Any]:
        competition = self.recipe.competition.model_dump(mode="json")
        return {"competition": competition, "image": self.recipe.image.model_dump(mode="json")}

    def prepare(self) -> Task:
        """The cache task of the raw files as they are now; `prepared` is the one that later stages use."""
        if not self.raw_root.is_dir():
            hint = "run `ich demo` first" if self.recipe.demo else "see input/README.md for what belongs there"
            raise UserError(f"{self.raw_root}: no such folder; {hint}")
        settings = {**self.image_settings, "raw": digest(listing(self.raw_root, NOT_RAW))}
        key = digest([VERSIONS["prepare"], settings])[:16]
        return self._cache(key, settings)

    @cached_property
    def prepared(self) -> Task:
        """The cache that this recipe's latest `ich prepare` made or found; never done where there is none."""
        pointer = read_record(self.workspace.cache_pointer) or {}
        fits = pointer.get("settings") == self.image_settings
        key = Path(str(pointer.get("key"))).name if fits else ""  # a name below input/cache, whatever the pointer holds
        task = self._cache(key or "none", {})
        return self._cache(key or "none", self.record_of(task).get("settings", {}))

    def _cache(self, key: str, settings: Mapping[str, Any]) -> Task:
        record = Record(self.workspace.cache(key) / "run.json")
        return Task("prepare", "prepare", record, settings, files=("slices.parquet", "quarantine.csv"))

    @property
    def _slices(self) -> Upstream:
        return ((self.prepared, ("slices.parquet",)),)

    @property
    def _shards(self) -> Upstream:
        return ((self.prepared, (SHARDS,)),)

    @cached_property
    def folds(self) -> Task:
        if self.recipe.competition.trained_by is not None:  # every task of training reads the folds
            raise UserError(
                f"recipe {self.recipe.name} trains nothing: it evaluates {self.recipe.competition.trained_by} on other"
                " scans, by `ich prepare`, `ich predict` and `ich score`"
            )
        path = self.workspace.folds
        settings = self.recipe.folds.model_dump(mode="json")
        record = Record(path.with_suffix(".run.json"))
        return Task("folds", "folds", record, settings, self._slices, files=(path.name,))

    def fold_settings_hold(self) -> bool:
        """Whether the fold file was made with the present folds.n and folds.seed, or by somebody unknown."""
        record = self.record_of(self.folds)
        return not record or record.get("settings") == self.folds.settings

    @property
    def _folds_and_slices(self) -> Upstream:
        return ((self.folds, (self.workspace.folds.name,)), *self._slices)

    @property
    def fold_numbers(self) -> range:
        return range(self.recipe.folds.n)

    # ---- models

    @property
    def models(self) -> list[str]:
        """Everything that predicts, each after its inputs; the blend is the last."""
        return list(self.recipe.models)

    def settings_of(self, model: str) -> Model:
        """The section of the recipe of a model that is fitted, of pre-training too."""
        return self.recipe.pretrain[model] if model in self.recipe.pretrain else self.recipe.models[model]

    def stage_of(self, model: str) -> str:
        return self.settings_of(model).stage

    def fold(self, model: str, fold: int | None) -> Task:
        """The task of one fold of a model, or of pre-training, which has no folds: its settings, and all it reads."""
        if (model, fold) not in self._tasks:
            self._tasks[model, fold] = self._fold(model, fold)
        return self._tasks[model, fold]

    def _fold(self, model: str, fold: int | None) -> Task:
        settings = self.settings_of(model)
        values = settings.model_dump(mode="json", exclude=set(settings.fingerprint_ignores))
        sources = {name: self.root / path for name, path in settings.sources().items()}
        upstream = self._shards if settings.reads_images else ()
        if start := self.start_of(model, fold):
            upstream += ((start, (WEIGHTS,)),)
        if fold is None:
            record, upstream = Record(self.workspace.model(model) / "run.json"), (*self._slices, *upstream)
            return Task(
                f"{settings.stage}/{model}",
                settings.stage,
                record,
                values,
                upstream,
                sources,
                model,
                None,
                settings.files,
            )
        upstream = (*self._folds_and_slices, *upstream, *self._inputs(model, fold))
        splits = (
            (*PREDICTED, "valid_embeddings.npy", "test_embeddings.npy") if settings.writes_embeddings else PREDICTED
        )
        record = Record(self.workspace.fold(model, fold) / "run.json")
        name, values = f"{settings.stage}/{model}/fold{fold}", {**values, "fold": fold}
        return Task(name, settings.stage, record, values, upstream, sources, model, fold, (*settings.files, *splits))

    def start_of(self, model: str, fold: int | None) -> Task | None:
        """The task whose weights a network starts from."""
        start = getattr(self.settings_of(model), "start", None)
        return None if start is None else self.fold(start, None if start in self.recipe.pretrain else fold)

    def _inputs(self, model: str, fold: int) -> Upstream:
        """Predictions of the inputs that a fold of a model reads."""
        settings, upstream = self.settings_of(model), []
        splits = input_splits(getattr(settings, "features", "oof"), fold, self.recipe.folds.n)
        parts = {part for parts in splits.values() for part in parts}
        suffixes = (".parquet", "_embeddings.npy") if settings.reads_embeddings else (".parquet",)
        for name in settings.input_models(self.recipe):
            for k in self.fold_numbers:
                files = [
                    f"{split}{suffix}" for split in ("valid", "test") if (k, split) in parts for suffix in suffixes
                ]
                if files:
                    upstream.append((self.fold(name, k), tuple(files)))
                if (k, "train") in parts:
                    upstream.append((self.in_sample(name, k), IN_SAMPLE))
        return tuple(upstream)

    def in_sample(self, model: str, fold: int) -> Task:
        """Predictions of a fold's network for its training rows, for sequence models with features: in_sample."""
        record = Record(self.workspace.fold(model, fold) / "train" / "run.json")  # a folder with a lock of its own
        fitted = self.fold(model, fold)
        upstream = (*self._folds_and_slices, *self._shards, (fitted, self.settings_of(model).files))
        name = f"{fitted.name}/train"
        return Task(name, fitted.stage, record, {}, upstream, {}, model, fold, IN_SAMPLE)

    @cached_property
    def read_in_sample(self) -> set[str]:
        """The models whose in-sample predictions another model reads."""
        sequences = self.recipe.sequence.values()
        return {name for s in sequences if s.features == "in_sample" for name in s.inputs}

    def assembled(self, model: str) -> Task:
        """oof.parquet and test.parquet of a model."""
        stage = self.stage_of(model)
        parts = tuple((self.fold(model, k), PREDICTED) for k in self.fold_numbers)
        record, upstream = Record(self.workspace.model(model) / "run.json"), self._folds_and_slices + parts
        return Task(f"{stage}/{model}", stage, record, {}, upstream, model=model, files=("oof.parquet", "test.parquet"))

    def tasks_of(self, stage: str, model: str | None = None, fold: int | None = None) -> list[Task]:
        """The folds of a stage that --model and --fold name, with the in-sample predictions that other models read.

        Raises UserError where there is no model of that name or no such fold.
        """
        names = ["blend"] if stage == "blend" else list(getattr(self.recipe, stage))
        if model is not None and model not in names:
            raise UserError(f"--model {model}: this recipe has {', '.join(names) or f'no {stage} model'}")
        if fold is not None and fold not in self.fold_numbers:
            raise UserError(f"--fold {fold}: this recipe has folds 0 to {self.fold_numbers[-1]}")
        tasks: list[Task] = []
        for name in names if model is None else [model]:
            folds = [k for k in self.fold_numbers if fold is None or k == fold]
            if name in self.recipe.pretrain:
                tasks.append(self.fold(name, None))
                continue
            tasks += [self.fold(name, k) for k in folds]
            tasks += [self.in_sample(name, k) for k in folds if name in self.read_in_sample]
        return tasks

    # ---- what is made of their predictions

    @cached_property
    def thresholds(self) -> Task:
        path = self.workspace.thresholds
        settings = self.recipe.thresholds.model_dump(mode="json")
        upstream = (*self._folds_and_slices, (self.assembled("blend"), ("oof.parquet", "test.parquet")))
        record = Record(path.with_suffix(".run.json"))
        return Task("thresholds", "thresholds", record, settings, upstream, files=(path.name,))

    @cached_property
    def submit(self) -> Task:
        upstream = (
            (self.prepared, ("slices.parquet", "quarantine.csv")),
            (self.assembled("blend"), ("test.parquet",)),
            (self.thresholds, (self.workspace.thresholds.name,)),
        )
        template = self.record_of(self.prepared).get("template")
        sources = {"template": self.raw_root / template} if template else {}
        path = self.workspace.submissions / "submission.json"
        record = Record(path, ("submission_binary", "submission_probabilities"))
        return Task("submit", "submit", record, {}, upstream, sources)

    @cached_property
    def trained(self) -> Self:
        """The graph of the recipe whose ensemble an outside validation evaluates."""
        path = self.recipe.competition.trained_by
        return self if path is None else type(self)(load(self.root / path), self.root)

    @cached_property
    def outside(self) -> Task:
        """The slices of an outside validation, scored by the trained ensemble of another recipe."""
        blend = self.trained.settings_of("blend")
        folds = tuple((self.trained.fold("blend", k), blend.files) for k in self.trained.fold_numbers)
        record = Record(self.workspace.submissions / "slices.run.json")
        settings = {"trained_by": self.trained.recipe.name}
        return Task("predict", "predict", record, settings, (*self._shards, *self._slices, *folds))

    @cached_property
    def scans(self) -> Task:
        """The scores of an outside validation per finding."""
        sources = {"reads.csv": self.raw_root / "reads.csv"}
        record = Record(self.workspace.submissions / "scores.run.json", ("scans",))
        return Task("score", "score", record, {}, ((self.outside, ("slices.csv",)),), sources)

    @cached_property
    def score(self) -> Task:
        upstream = self._folds_and_slices
        upstream += tuple((self.assembled(m), ("oof.parquet", "test.parquet")) for m in self.models)
        upstream += ((self.thresholds, (self.workspace.thresholds.name,)),)
        solution = self.raw_root / "solution.csv"
        sources = {"solution.csv": solution} if solution.is_file() else {}
        settings = self.recipe.thresholds.model_dump(mode="json", include={"metric", "shrink"})
        path = self.workspace.submissions / "scores.run.json"
        record = Record(path, ("scores_by_class", "confusion", "reliability"))
        return Task("score", "score", record, settings, upstream, sources)

    @cached_property
    def explain(self) -> Task:
        """Grad-CAM, the embedding map and suspicious labels."""
        parts = (WEIGHTS, "valid.parquet", "valid_embeddings.npy")
        upstream = (*self._shards, *self._folds_and_slices)
        upstream += tuple((self.fold(m, k), parts) for m in self.recipe.cnn for k in self.fold_numbers)
        for first in list(self.recipe.cnn)[:1]:  # its embeddings are mapped
            upstream += ((self.fold(first, 0), ("test.parquet", "test_embeddings.npy")),)
            upstream += ((self.in_sample(first, 0), IN_SAMPLE),) if first in self.read_in_sample else ()
        upstream += ((self.assembled("blend"), ("oof.parquet",)),)
        known = {name: self.raw_root / name for name in ("masks.npz", "mislabelled.csv")}
        sources = {name: path for name, path in known.items() if path.is_file()}
        return Task(
            "explain", "explain", Record(self.workspace.submissions / "explain" / "run.json"), {}, upstream, sources
        )

    @cached_property
    def report(self) -> Task:
        """One page with everything that the other stages found."""
        upstream = (*self._shards, *self._folds_and_slices, (self.prepared, ("quarantine.csv",)))
        for model, settings in self.recipe.models.items():
            upstream += tuple((self.fold(model, k), settings.files) for k in self.fold_numbers)
            upstream += ((self.assembled(model), ("oof.parquet", "test.parquet")),)
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
        yield from (self.fold(name, None) for name in self.recipe.pretrain)
        for model in self.models:
            yield from (self.fold(model, k) for k in self.fold_numbers)
            yield from (self.in_sample(model, k) for k in self.fold_numbers if model in self.read_in_sample)
            yield self.assembled(model)
        yield from (self.thresholds, self.submit, self.score, self.explain, self.report)


MODEL_STAGES = (*SECTIONS, "blend")  # stages that fit models, in the order of the flow
