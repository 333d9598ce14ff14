"""The task graph of a recipe: inputs, settings and files of every artifact. Without heavy imports, for `ich status`."""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, Self

from ich.console import progress
from ich.errors import UserError
from ich.models.inputs import input_splits
from ich.pipeline.starts import files_of_bundle, fold_number
from ich.pipeline.tasks import (
    ASSEMBLED,
    ASSEMBLED_STUDIES,
    IN_SAMPLE,
    NOT_RAW,
    PREDICTED,
    PREDICTED_STUDIES,
    SHARDS,
    SLICES,
    SPEC,
    VERSIONS,
    WEIGHTS,
    Task,
    Upstream,
)
from ich.recipe import Model, Recipe, Start, Supervised, load
from ich.store import raw
from ich.store.hashes import digest
from ich.store.paths import Workspace
from ich.store.records import Record, read_record


class Graph:
    """All tasks of a recipe, with their settings and inputs."""

    def __init__(self, recipe: Recipe, root: Path) -> None:
        self.recipe = recipe
        self.root = root
        self.workspace = Workspace(root, recipe.name)
        self.raw_root = root / recipe.competition.root
        self.raw_files: raw.RawFiles = {}
        """Of the latest call of `prepare`."""
        self.above: tuple[str, ...] = ()
        """Names of the recipes that start from this one."""
        self._others: dict[str, Self] = {}
        self._tasks: dict[tuple[str, int | None], Task] = {}
        self._records: dict[Path, dict[str, Any] | None] = {}

    def relative(self, path: Path) -> str:
        """Return a path relative to the workspace, as it is named in the store."""
        return os.path.relpath(path, self.root)

    def record_of(self, task: Task) -> dict[str, Any]:
        """Return the record of a task, empty if there is none. Each record is read once."""
        path = task.record.path
        if path not in self._records:
            self._records[path] = task.record.read()
        return self._records[path] or {}

    def files_of(self, task: Task) -> Mapping[str, str]:
        """Return the recorded SHA-256 of each file of a task, by name."""
        return self.record_of(task).get("files", {})

    # ---- data

    @cached_property
    def demo(self) -> Task:
        settings = self.recipe.demo.model_dump(mode="json") if self.recipe.demo else {}
        return Task("demo", "demo", Record(self.raw_root / "run.json"), settings)

    @property
    def image_settings(self) -> dict[str, Any]:
        return self.recipe.model_dump(mode="json", include={"competition", "image"})

    def prepare(self) -> Task:
        """Cache task of the current raw files. Later stages use `prepared`."""
        if self.workspace.cache_root.resolve().is_relative_to(self.raw_root.resolve()):
            raise UserError(
                f"competition.root: {self.recipe.competition.root} contains the caches. Move the raw files to a folder"
                f" of their own, such as input/{self.recipe.name}"
            )
        if not self.raw_root.is_dir():
            hint = "Run `ich demo` first" if self.recipe.demo else "See input/README.md for its content"
            raise UserError(f"{self.raw_root}: no such folder. {hint}")
        stamps, known = raw.listing(self.raw_root, NOT_RAW), self.raw_files or self.known_raw_files()
        new = raw.unknown(stamps, known)
        found = {path: known[path][2] for path in stamps.keys() - set(new)}
        with progress("raw files", len(new), "files", inner=True) as advance:
            for path, sample in raw.samples(self.raw_root, new):
                found[path] = sample
                advance(1)
        self.raw_files = {path: [*stamp, found[path]] for path, stamp in stamps.items()}
        settings = {**self.image_settings, "raw": digest(raw.identity(self.raw_files))}
        settings["competition"].pop("root")  # the files may be moved
        key = digest([VERSIONS["prepare"], settings])[:16]
        return self._cache(key, settings)

    @property
    def preparing(self) -> Task:
        """Cache task that several machines make: that of `prepare` when it was begun."""
        found = read_record(self.workspace.preparing) or {}
        return self._cache(Path(str(found.get("key") or "none")).name, found.get("settings", {}))

    def known_raw_files(self) -> raw.RawFiles:
        """Return the raw files of the latest `ich prepare`."""
        root = self.recipe.competition.root
        return raw.read_files(self.workspace.raw_files(root), root)

    @cached_property
    def prepared(self) -> Task:
        """Cache task of the latest `ich prepare`; without one, a task that is missing."""
        pointer = read_record(self.workspace.cache_pointer) or {}
        fits = pointer.get("settings") == self.image_settings
        key = (Path(str(pointer.get("key"))).name if fits else "") or "none"  # only a name: the pointer may be hostile
        return self._cache(key, self.record_of(self._cache(key, {})).get("settings", {}))

    def _cache(self, key: str, settings: Mapping[str, Any]) -> Task:
        record = Record(self.workspace.cache(key) / "run.json")
        return Task("prepare", "prepare", record, settings, files=(SLICES, "quarantine.csv"))

    @property
    def raw_is_here(self) -> bool:
        """Whether the raw folder has more than tables, which also arrive from the store."""
        files = (name for _, _, names in os.walk(self.raw_root) for name in names)
        return any(name not in NOT_RAW and not name.endswith(raw.TABLES) for name in files)

    def _raw(self, *names: str) -> dict[str, Path]:
        """Files of the raw folder that exist."""
        return {name: self.raw_root / name for name in names if (self.raw_root / name).is_file()}

    def _prepared(self, *files: str) -> Upstream:
        return ((self.prepared, files),)

    @cached_property
    def folds(self) -> Task:
        if self.recipe.competition.trained_by is not None:
            raise UserError(
                f"recipe {self.recipe.name} has no models of its own, since it evaluates those of"
                f" {self.recipe.competition.trained_by}. Use `ich prepare`, `ich predict` and `ich score`"
            )
        path = self.workspace.folds
        settings = self.recipe.folds.model_dump(mode="json")
        record = Record(path.with_suffix(".run.json"))
        return Task("folds", "folds", record, settings, self._prepared(SLICES), files=(path.name,))

    @property
    def _folds_and_slices(self) -> Upstream:
        return ((self.folds, (self.workspace.folds.name,)), *self._prepared(SLICES))

    @property
    def fold_numbers(self) -> range:
        return range(self.recipe.folds.n)

    # ---- models

    @property
    def models(self) -> list[str]:
        """Names of all models that predict. Each model follows its inputs; the blend is last."""
        return list(self.recipe.models)

    def settings_of(self, model: str) -> Model:
        """Return the settings of a model, including pretraining."""
        return self.recipe.pretrain[model] if model in self.recipe.pretrain else self.recipe.models[model]

    def fold(self, model: str, fold: int | None) -> Task:
        """Task of one fold of a model; fold None: of pretraining, which has no folds."""
        if (model, fold) not in self._tasks:
            self._tasks[model, fold] = self._fold(model, fold)
        return self._tasks[model, fold]

    def _fold(self, model: str, fold: int | None) -> Task:
        settings = self.settings_of(model)
        values = settings.model_dump(mode="json", exclude=set(settings.fingerprint_ignores))
        sources = {name: self.root / path for name, path in settings.sources().items()} | self._labels(model, fold)
        if getattr(settings, "masks", 0):
            sources["masks.npz"] = self.raw_root / "masks.npz"
        upstream = self._prepared(SHARDS) if settings.reads_images else ()
        if isinstance(start := self.start_of(model, fold), Task):
            upstream += ((start, (WEIGHTS,) if start.recipe is None else (WEIGHTS, SPEC)),)
        elif start is not None:
            sources |= {f"start/{path.name}": path for path in start}
        name, folder, files = f"{settings.stage}/{model}", self.workspace.model(model), settings.files
        if fold is None:
            upstream = (*self._prepared(SLICES), *upstream)
        else:
            name, folder, values = f"{name}/fold{fold}", self.workspace.fold(model, fold), {**values, "fold": fold}
            upstream = (*self._folds_and_slices, *upstream, *self._inputs(model, fold))
            files += PREDICTED
            files += ("valid_embeddings.npy", "test_embeddings.npy") if settings.writes_embeddings else ()
            files += PREDICTED_STUDIES if settings.writes_studies else ()
        record = Record(folder / "run.json", staged=True)
        return Task(name, settings.stage, record, values, upstream, sources, model, fold, files)

    def _labels(self, model: str, fold: int | None) -> dict[str, Path]:
        """The label table of a network. Its name has the settings, so that their change makes the fold stale."""
        labels = self.recipe.labels
        if labels is None or fold is None or not isinstance(self.settings_of(model), Supervised):
            return {}
        return {f"labels.table ({labels.mode}, weight {labels.weight})": self.root / labels.file(fold)}

    def start_of(self, model: str, fold: int | None) -> Task | list[Path] | None:
        """Task of the weights that initialize a network, or files from elsewhere, the weights first; None without."""
        settings: Any = self.settings_of(model)
        start = getattr(settings, "start", None)
        if start is None or fold is None:
            return None
        if isinstance(start, str):
            return self.fold(start, None if start in self.recipe.pretrain else fold)
        if start.file is not None:
            return [self.root / start.file]
        where = f"{settings.stage}.{model}.start"
        if start.recipe is not None:
            return self._fold_of_recipe(where, start, settings.starts_from, fold)
        return files_of_bundle(where, start, self.root, fold)

    def _fold_of_recipe(self, where: str, start: Start, stages: Sequence[str], fold: int) -> Task:
        """Task of a fold of another recipe that a fold of this one starts from."""
        path, model = str(start.recipe), str(start.model)
        other = self._other(where, path)
        models = [name for stage in stages for name in getattr(other.recipe, stage)]
        if model not in models:
            known = ", ".join(models) or "none"
            raise UserError(f"{where}: {path} has no {' or '.join(stages)} model {model!r}. Choose from {known}")
        number = None
        if model not in other.recipe.pretrain:
            number = fold_number(where, start, fold, other.fold_numbers)
            same_data = os.path.normpath(other.raw_root) == os.path.normpath(self.raw_root)
            if same_data and (number != fold or not self._same_folds(other)):
                raise UserError(
                    f"{where}: {path} has the same competition, so that its fold {number} was trained on patients of"
                    f" fold {fold}. Use the same section and file of folds in both recipes, and no `fold` here"
                )
        task = other.fold(model, number)
        return replace(task, name=f"{task.name} of {other.recipe.name}", recipe=path)

    def _same_folds(self, other: Self) -> bool:
        """Return whether both recipes have the same settings and, once they are written, the same file of folds."""
        files = [list(self.files_of(graph.folds).values()) for graph in (self, other)]
        return self.recipe.folds == other.recipe.folds and (not all(files) or files[0] == files[1])

    def _other(self, where: str, path: str) -> Self:
        """Graph of another recipe. Raises UserError if it is this one, or one that starts from this one."""
        if path not in self._others:
            other = self._others[path] = type(self)(load(self.root / path), self.root)
            other.above = (*self.above, self.recipe.name)
        other = self._others[path]
        if other.recipe.name in other.above:
            names = " -> ".join((*other.above, other.recipe.name))
            raise UserError(f"{where}: a recipe cannot start from itself: {names}. Name another recipe")
        return other

    def _inputs(self, model: str, fold: int) -> Upstream:
        """Predictions that a fold of a model reads.

        features: in_sample: all predictions of the same fold. Otherwise the out-of-fold predictions of all folds and
        the test predictions of the same fold, or of all folds if embeddings are aligned.
        """
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
        """In-sample predictions of a fold, for sequence models with features: in_sample."""
        record = Record(self.workspace.fold(model, fold) / "train" / "run.json")  # has a lock of its own
        fitted = self.fold(model, fold)
        upstream = (*self._folds_and_slices, *self._prepared(SHARDS), (fitted, self.settings_of(model).files))
        name = f"{fitted.name}/train"
        return Task(name, fitted.stage, record, {}, upstream, self._labels(model, fold), model, fold, IN_SAMPLE)

    @cached_property
    def read_in_sample(self) -> set[str]:
        """Models whose in-sample predictions another model reads."""
        sequences = self.recipe.sequence.values()
        return {name for s in sequences if s.features == "in_sample" for name in s.inputs}

    def assembled(self, model: str) -> Task:
        """Task of oof.parquet and test.parquet of a model, and of those of studies."""
        stage, read, files = self.settings_of(model).stage, PREDICTED, ASSEMBLED
        if self.settings_of(model).writes_studies:
            read, files = read + PREDICTED_STUDIES, files + ASSEMBLED_STUDIES
        parts = tuple((self.fold(model, k), read) for k in self.fold_numbers)
        record, upstream = Record(self.workspace.model(model) / "run.json"), self._folds_and_slices + parts
        return Task(f"{stage}/{model}", stage, record, {}, upstream, model=model, files=files)

    def model_task(self, name: str) -> Task:
        """Return the task of a model by its name, such as cnn/resnet/fold0 or cnn/resnet."""
        _, model, fold, *in_sample = [*name.split("/"), ""][:4]
        if not fold:
            return self.fold(model, None) if model in self.recipe.pretrain else self.assembled(model)
        number = int(fold.removeprefix("fold"))
        return self.in_sample(model, number) if any(in_sample) else self.fold(model, number)

    def tasks_of(self, stage: str, model: str | None = None, fold: int | None = None) -> list[Task]:
        """Folds of a stage, selected by --model and --fold, and the in-sample predictions that other models read.

        Raises UserError for an unknown model or fold.
        """
        names = ["blend"] if stage == "blend" else list(getattr(self.recipe, stage))
        if model is not None and model not in names:
            raise UserError(f"--model {model}: unknown model. Choose from {', '.join(names) or 'none'}")
        if fold is not None and fold not in self.fold_numbers:
            raise UserError(f"--fold {fold}: no such fold. Choose from 0 to {self.fold_numbers[-1]}")
        tasks: list[Task] = []
        for name in names if model is None else [model]:
            folds = [k for k in self.fold_numbers if fold is None or k == fold]
            if name in self.recipe.pretrain:
                tasks.append(self.fold(name, None))
                continue
            tasks += [self.fold(name, k) for k in folds]
            tasks += [self.in_sample(name, k) for k in folds if name in self.read_in_sample]
        return tasks

    # ---- after the models

    @property
    def _blends_of_folds(self) -> Upstream:
        return tuple((self.fold("blend", k), ("test.parquet",)) for k in self.fold_numbers)

    @cached_property
    def thresholds(self) -> Task:
        path = self.workspace.thresholds
        settings = self.recipe.thresholds.model_dump(mode="json")
        upstream = (*self._folds_and_slices, (self.assembled("blend"), ("oof.parquet", "test.parquet")))
        upstream += self._blends_of_folds
        record = Record(path.with_suffix(".run.json"))
        return Task("thresholds", "thresholds", record, settings, upstream, files=(path.name,))

    def _submission(self, record: str, *also: str) -> Record:
        """Record of files in submissions/<recipe>."""
        return Record(self.workspace.submissions / record, also)

    @cached_property
    def submit(self) -> Task:
        upstream = (
            *self._prepared(SLICES, "quarantine.csv"),
            (self.assembled("blend"), ("test.parquet",)),
            (self.thresholds, (self.workspace.thresholds.name,)),
        )
        template = self.record_of(self.prepared).get("template")
        sources = {"template": self.raw_root / template} if template else {}
        record = self._submission("submission.json", "submission_binary", "submission_probabilities")
        return Task("submit", "submit", record, {}, upstream, sources)

    @cached_property
    def score(self) -> Task:
        upstream = self._folds_and_slices
        upstream += tuple((self.assembled(m), self.assembled(m).files) for m in self.models)
        upstream += (*self._blends_of_folds, (self.thresholds, (self.workspace.thresholds.name,)))
        settings = self.recipe.thresholds.model_dump(mode="json", include={"metric", "shrink"})
        record = self._submission("scores.run.json", "scores_by_class", "scores_by_study", "confusion", "reliability")
        return Task("score", "score", record, settings, upstream, self._raw("solution.csv"))

    @cached_property
    def trained(self) -> Self:
        """Graph of the recipe whose ensemble an outside validation evaluates."""
        path = self.recipe.competition.trained_by
        return self if path is None else self._other("competition.trained_by", path)

    @property
    def graphs(self) -> list[Self]:
        """Graphs of the recipes that it evaluates or starts from, at any depth, and this one, the last."""
        starts = (getattr(settings, "start", None) for settings in self.recipe.models.values())
        paths = {self.recipe.competition.trained_by, *(one.recipe for one in starts if isinstance(one, Start))}
        others = [self._other("start", path) for path in sorted(filter(None, paths))]
        return [*(graph for other in others for graph in other.graphs), self]

    @cached_property
    def outside(self) -> Task:
        """Task of the predictions for an outside validation."""
        blend = self.trained.settings_of("blend")
        folds = tuple((self.trained.fold("blend", k), blend.files) for k in self.trained.fold_numbers)
        settings, upstream = {"trained_by": self.trained.recipe.name}, (*self._prepared(SHARDS, SLICES), *folds)
        return Task("predict", "predict", self._submission("slices.run.json"), settings, upstream)

    @cached_property
    def scans(self) -> Task:
        """Task of the scores of an outside validation."""
        record, upstream = self._submission("scores.run.json", "scans"), ((self.outside, ("slices.csv",)),)
        return Task("score", "score", record, {}, upstream, {"reads.csv": self.raw_root / "reads.csv"})

    @cached_property
    def explain(self) -> Task:
        """Task of Grad-CAM, the embedding map and suspicious labels."""
        parts = (WEIGHTS, "valid.parquet", "valid_embeddings.npy")
        upstream = (*self._prepared(SHARDS), *self._folds_and_slices)
        upstream += tuple((self.fold(m, k), parts) for m in self.recipe.cnn for k in self.fold_numbers)
        for first in list(self.recipe.cnn)[:1]:  # its embeddings are mapped
            upstream += ((self.fold(first, 0), ("test.parquet", "test_embeddings.npy")),)
            upstream += ((self.in_sample(first, 0), IN_SAMPLE),) if first in self.read_in_sample else ()
        upstream += ((self.assembled("blend"), ("oof.parquet",)),)
        sources = self._raw("masks.npz", "mislabelled.csv")
        return Task("explain", "explain", self._submission("explain/run.json"), {}, upstream, sources)

    @cached_property
    def report(self) -> Task:
        """Task of the report page."""
        upstream = (*self._prepared(SHARDS), *self._folds_and_slices, (self.prepared, ("quarantine.csv",)))
        for model, settings in self.recipe.models.items():
            upstream += tuple((self.fold(model, k), settings.files) for k in self.fold_numbers)
            upstream += ((self.assembled(model), ("oof.parquet", "test.parquet")),)
        upstream += ((self.thresholds, (self.workspace.thresholds.name,)), (self.submit, ("submission.csv",)))
        upstream += ((self.score, ("scores.json", "confusion.csv", "reliability.csv")),)
        upstream += ((self.explain, ("suspicious_labels.csv", "label_audit.csv", "embedding_map.csv")),)
        settings = self.recipe.report.model_dump(mode="json")
        return Task("report", "report", self._submission("report.run.json"), settings, upstream)

    def all(self) -> Iterator[Task]:
        """Yield all tasks. Each task follows its inputs."""
        if self.recipe.demo:
            yield self.demo
        yield self.prepare() if self.raw_is_here else self.prepared
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
