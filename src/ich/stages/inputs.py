"""What the stages read, in training and in `ich predict`: slices, pictures, studies, members' logits made one."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from functools import cached_property
from typing import TYPE_CHECKING, Any

from ich.errors import UserError
from ich.pipeline.plan import Plan
from ich.recipe import Backbone, Stack
from ich.stages.artefacts import FOLDS, as_written, logits_of, table_of

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

    from ich.data.augment import Augment
    from ich.data.datasets import SliceDataset
    from ich.data.studies import Studies
    from ich.data.study_pictures import StudyPictures
    from ich.data.views import View

USUAL_GAP = 5.0  # mm between slices; gaps are given to the network as multiples of it


@dataclass(frozen=True)
class Slices:
    """The slice table with its folds, read once a fold. Row numbers are those of hu.npy."""

    plan: Plan

    @cached_property
    def table(self) -> "pd.DataFrame":
        import pandas as pd

        path = self.plan.prepared.folder / "slices.parquet"
        table = table_of(path)
        texts = {"image_id": str, "study_id": str, "patient_id": str}
        with as_written(self.plan.workspace.folds, FOLDS):
            folds = pd.read_csv(self.plan.workspace.folds, dtype=texts)
            key = "image_id" if "image_id" in folds else "study_id"  # folds.by slice or patient
            fold = folds.set_index(key)["fold"]
        with as_written(path):
            table["fold"] = table[key].map(fold).where(table["split"] == "train")
            return table.assign(series=series_codes(table))

    @property
    def classes(self) -> list[str]:
        """The competition's classes, as `ich prepare` found them."""
        return self._recorded("classes")

    @property
    def class_weights(self) -> list[float]:
        """What each class counts in the competition's log loss."""
        return self._recorded("class_weights")

    @property
    def values(self) -> str:
        """hu | grey: what hu.npy holds."""
        return self._recorded("values")

    def _recorded(self, key: str) -> Any:
        record = self.plan.prepared.record
        with as_written(record.path):
            return (self.plan.record_of(record) or {})[key]

    @cached_property
    def labels(self) -> "np.ndarray":
        """float32 [n, c], NaN where unlabelled."""
        return self.table[self.classes].to_numpy("float32")

    @cached_property
    def labelled(self) -> "np.ndarray":
        """bool [n]: rows that have a fold and all labels."""
        import numpy as np

        return self.table["fold"].notna().to_numpy() & ~np.isnan(self.labels).any(axis=1)

    def train_rows(self, fold: int) -> "np.ndarray":
        return (self.labelled & (self.table["fold"] != fold).to_numpy()).nonzero()[0]

    def valid_rows(self, fold: int) -> "np.ndarray":
        return (self.labelled & (self.table["fold"] == fold).to_numpy()).nonzero()[0]

    @cached_property
    def test_rows(self) -> "np.ndarray":
        return (self.table["split"] == "test").to_numpy().nonzero()[0]

    def ids(self, rows: "np.ndarray") -> "pd.Index":
        import pandas as pd

        return pd.Index(self.table["image_id"].iloc[rows])

    def out_of_fold(self, member: str, fold: int) -> "np.ndarray":
        """A member's logits [n, c] as fold `fold` of a later member reads them, NaN where there are none.

        Labelled rows come out of their own fold's model, test rows out of the model of `fold`: so a later model meets
        on the test set what it meets on its validation rows, the logits of one model.
        """
        import numpy as np

        found = np.full((len(self.table), len(self.classes)), np.nan)
        for k in self.plan.fold_numbers:
            rows = self.valid_rows(k)
            path = self.plan.workspace.fold(member, k) / "valid.parquet"
            found[rows] = logits_of(path, self.ids(rows), self.classes)
        path = self.plan.workspace.fold(member, fold) / "test.parquet"
        found[self.test_rows] = logits_of(path, self.ids(self.test_rows), self.classes)
        return found


@contextmanager
def layout_errors() -> Iterator[None]:
    """A competition's folder that is not laid out as it should be is the user's to mend."""
    from ich.data.competitions import LayoutError

    try:
        yield
    except LayoutError as error:
        raise UserError(str(error)) from None


# ---- what the models read of a slice table


def series_codes(table: "pd.DataFrame") -> "pd.Series":
    """int64 [n]: a number a series, in the order in which the slice table holds them."""
    return table.groupby(["split", "study_id", "series_id"], sort=False).ngroup()


def view_of(settings: Backbone, values: str) -> "View":
    """What a network is shown. values: hu: in the settings' windows; grey: as they are, one channel."""
    from ich.data.views import View, Window

    enhance = settings.model_dump(include={field.name for field in fields(View)} - {"windows"})
    if values == "grey":
        return View("grey", **enhance)
    return View(settings.input, tuple(Window(level, width) for level, width in settings.windows), **enhance)


def pictures(
    hu: "np.ndarray",
    table: "pd.DataFrame",
    settings: Backbone,
    values: str,
    labels: "np.ndarray | None" = None,
    seed: int = 0,
) -> "Callable[..., SliceDataset]":
    """A function of rows (an augmentation, CutMix's alpha) to their data set, over the cache [n, S, S] of the table."""
    from ich.data.datasets import SliceDataset
    from ich.data.views import neighbour_rows

    neighbours = neighbour_rows(table["series"].to_numpy(), table["index"].to_numpy())
    view = view_of(settings, values)

    def of(rows: "np.ndarray", augment: "Augment | None" = None, cutmix: float = 0.0) -> "SliceDataset":
        targets = None if labels is None else labels[rows]
        ids = table["image_id"].iloc[rows].tolist()
        return SliceDataset(hu, rows, neighbours, ids, targets, view, augment, seed, cutmix)

    return of


def study_pictures(
    hu: "np.ndarray",
    table: "pd.DataFrame",
    settings: Backbone,
    values: str,
    labels: "np.ndarray | None" = None,
    seed: int = 0,
) -> "Callable[..., StudyPictures]":
    """As `pictures`, in whole studies: a series after the other, each in order of position, as the table holds them."""
    import numpy as np

    from ich.data.study_pictures import StudyPictures

    slices, geometry = pictures(hu, table, settings, values, labels, seed), _geometry(table)
    series = table["series"].to_numpy()

    def of(rows: "np.ndarray", augment: "Augment | None" = None, cutmix: float = 0.0) -> "StudyPictures":
        starts = np.flatnonzero(np.diff(series[rows], prepend=-1))
        ids = table["series_id"].iloc[rows[starts]].tolist()
        return StudyPictures(slices(rows, augment, cutmix), np.append(starts, len(rows)), ids, geometry)

    return of


def studies_of(
    table: "pd.DataFrame",
    embeddings: "np.ndarray",
    logits: Sequence["np.ndarray"],
    labels: "np.ndarray | None" = None,
) -> "Studies":
    """What a sequence model reads of the table's rows, each series a study of its own.

    The table holds each series together and in order. embeddings [n, d]: the CNNs' side by side; logits [n, c] of each.
    """
    import numpy as np

    from ich.data.studies import Studies

    base = np.asarray(np.mean(logits, axis=0, dtype=np.float64), dtype=np.float32)
    starts = np.flatnonzero(np.diff(table["series"].to_numpy(), prepend=-1))
    offsets = np.append(starts, len(table)).astype(np.int64)
    return Studies(embeddings, base, _geometry(table), labels, offsets)


def _geometry(table: "pd.DataFrame") -> "np.ndarray":
    """float32 [n, 2]: the gap to the next slice, in usual gaps less one, and the place in the study, -1..1."""
    import numpy as np

    gap = table.groupby("series")["position"].diff(-1).abs().to_numpy() / USUAL_GAP - 1
    place = 2 * (table["index"] + 0.5).to_numpy() / table["n_slices"].to_numpy() - 1
    return np.column_stack([np.nan_to_num(gap).clip(-1, 3), place]).astype(np.float32)


def positions(table: "pd.DataFrame") -> "pd.Series":
    """float64 [n]: mm along the study; in a series that lacks a slice's position, by usual gaps."""
    placed = table["position"].notna().groupby(table["series"]).transform("all")
    return table["position"].where(placed, USUAL_GAP * table["index"])


def smoother_input(
    table: "pd.DataFrame", logits: Sequence["np.ndarray"]
) -> tuple["np.ndarray", "np.ndarray", "np.ndarray"]:
    """The members' mean logit float64 [n, c], the series [n] and the position in mm [n] of the table's rows.

    logits: [n, c] of each member, rows as in the table.
    """
    import numpy as np

    base = np.asarray(np.mean(logits, axis=0, dtype=np.float64))
    return base, table["series"].to_numpy(), positions(table).to_numpy("float64")


def stacker_input(
    name: str, settings: Stack, table: "pd.DataFrame", logits: Sequence["np.ndarray"]
) -> tuple["np.ndarray", list[str], "np.ndarray"]:
    """The stacker's columns [n, f], their names, and the logits [n, c] that boosting starts from.

    logits: [n, c] of each member, rows as in the table.
    """
    import numpy as np

    from ich.ensemble import stacker

    cube = np.stack(logits, axis=1).astype(np.float64)
    try:
        x, names = stacker.features(cube, table["series"], table["index"], positions(table), settings.neighbours)
    except ValueError as error:
        raise UserError(f"stack.{name}: {error}") from None
    return x, names, cube.mean(axis=1)


def blended(
    fitted: Mapping[str, Any], logits: Sequence["np.ndarray"], classes: Sequence[str], class_weights: Sequence[float]
) -> "np.ndarray":
    """The blend's logits [n, c] of its members' [n, c], as a fold's blend.json says for each class."""
    import numpy as np

    from ich.ensemble.blend import Combination
    from ich.ensemble.calibration import Calibrator
    from ich.ensemble.hierarchy import project_any

    found = np.empty(logits[0].shape, dtype=np.float64)
    for c, name in enumerate(classes):
        combined = Combination.from_dict(fitted[name]["combination"]).apply(np.column_stack([z[:, c] for z in logits]))
        found[:, c] = Calibrator.from_dict(fitted[name]["calibration"]).apply(combined)
    return project_any(found, classes, class_weights)


def submitted(
    tuned: Mapping[str, Any], logits: "np.ndarray", classes: Sequence[str], class_weights: Sequence[float]
) -> tuple["np.ndarray", list[float]]:
    """Probabilities [n, c] of the blend's logits, and thresholds [c], as thresholds.json has them for the test set."""
    from ich.ensemble import prevalence
    from ich.ensemble.members import sigmoid

    if not tuned["prevalence"]["applied"]:
        return sigmoid(logits), [tuned["thresholds"][name] for name in classes]
    there = [tuned["prevalence"]["classes"][name] for name in classes]
    shifted = prevalence.shift_all(logits, classes, class_weights, [(one["train"], one["test"]) for one in there])
    return sigmoid(shifted), [one["threshold"] for one in there]
