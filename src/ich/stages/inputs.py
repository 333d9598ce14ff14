"""What the models read, in training and in `ich predict`: slices, pictures, studies, the stacker's table."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from ich.recipe import Cnn, Stack
from ich.recipe import Sequence as SequenceSettings
from ich.stages.plan import Plan
from ich.workspace import UserError

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

    from ich.data.augment import Augment
    from ich.data.datasets import SliceDataset, Studies

USUAL_GAP = 5.0  # mm between slices; gaps are given to the network as multiples of it


@dataclass(frozen=True)
class Slices:
    """The slice table with its folds, read once a fold. Row numbers are those of hu.npy."""

    plan: Plan

    @cached_property
    def table(self) -> "pd.DataFrame":
        import pandas as pd

        table = pd.read_parquet(self.plan.prepared.folder / "slices.parquet")
        folds = pd.read_csv(self.plan.workspace.folds, dtype={"study_id": str, "patient_id": str})
        table["fold"] = table["study_id"].map(folds.set_index("study_id")["fold"]).where(table["split"] == "train")
        return table.assign(series=series_codes(table))

    @property
    def classes(self) -> list[str]:
        """The competition's classes, as `ich prepare` found them."""
        return (self.plan.record_of(self.plan.prepared.record) or {})["classes"]

    @property
    def class_weights(self) -> list[float]:
        """What each class counts in the competition's log loss."""
        return (self.plan.record_of(self.plan.prepared.record) or {})["class_weights"]

    @property
    def values(self) -> str:
        """hu | grey: what hu.npy holds."""
        return (self.plan.record_of(self.plan.prepared.record) or {})["values"]

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
        import pandas as pd

        from ich.ensemble.members import aligned

        found = np.full((len(self.table), len(self.classes)), np.nan)
        for k in self.plan.fold_numbers:
            rows = self.valid_rows(k)
            table = pd.read_parquet(self.plan.workspace.fold(member, k) / "valid.parquet")
            found[rows] = aligned(table, self.ids(rows), self.classes)
        table = pd.read_parquet(self.plan.workspace.fold(member, fold) / "test.parquet")
        found[self.test_rows] = aligned(table, self.ids(self.test_rows), self.classes)
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


def pictures(
    hu: "np.ndarray",
    table: "pd.DataFrame",
    settings: Cnn,
    values: str,
    labels: "np.ndarray | None" = None,
    seed: int = 0,
) -> "Callable[..., SliceDataset]":
    """A function of rows (and an augmentation) to their data set, over the cache [n, S, S] of the table.

    values: hu: shown in the settings' windows; grey: shown as they are, one channel.
    """
    from ich.data.datasets import SliceDataset
    from ich.data.views import View, Window, neighbour_rows

    neighbours = neighbour_rows(table["series"].to_numpy(), table["index"].to_numpy())
    windows = tuple(Window(level, width) for level, width in settings.windows)
    view = View("grey") if values == "grey" else View(settings.input, windows)

    def of(rows: "np.ndarray", augment: "Augment | None" = None) -> "SliceDataset":
        targets = None if labels is None else labels[rows]
        ids = table["image_id"].iloc[rows].tolist()
        return SliceDataset(hu, rows, neighbours, ids, targets, view, augment, seed)

    return of


def predict_pictures(network: Any, dataset: "SliceDataset", settings: Cnn) -> dict[str, "np.ndarray"]:
    """Logits float32 [n, c] and embeddings float16 [n, d] of a data set's slices, in its order."""
    import numpy as np

    from ich.data.datasets import slice_loader
    from ich.training.predict import predict

    if not len(dataset):  # no test set
        width = (len(network.classifier.bias), network.embedding_size)
        return {"logits": np.empty((0, width[0]), np.float32), "embeddings": np.empty((0, width[1]), np.float16)}
    batches = slice_loader(dataset, 0, 2 * settings.batch_size, shuffle=False, workers=settings.workers)
    return predict(network, batches, len(dataset), settings.precision)


def studies_of(
    table: "pd.DataFrame",
    embeddings: Sequence["np.ndarray"],
    logits: Sequence["np.ndarray"],
    labels: "np.ndarray | None" = None,
) -> "Studies":
    """What a sequence model reads of the table's rows, each series a study of its own.

    The table holds each series together and in order. embeddings [n, d] and logits [n, c], one of each a CNN.
    """
    import numpy as np

    from ich.data.datasets import Studies

    base = np.asarray(np.mean(logits, axis=0, dtype=np.float64), dtype=np.float32)
    starts = np.flatnonzero(np.diff(table["series"].to_numpy(), prepend=-1))
    offsets = np.append(starts, len(table)).astype(np.int64)
    return Studies(np.concatenate(embeddings, axis=1), base, _geometry(table), labels, offsets)


def _geometry(table: "pd.DataFrame") -> "np.ndarray":
    """float32 [n, 2]: the gap to the next slice, in usual gaps less one, and the place in the study, -1..1."""
    import numpy as np

    gap = table.groupby("series")["position"].diff(-1).abs().to_numpy() / USUAL_GAP - 1
    place = 2 * (table["index"] + 0.5).to_numpy() / table["n_slices"].to_numpy() - 1
    return np.column_stack([np.nan_to_num(gap).clip(-1, 3), place]).astype(np.float32)


def predict_sequence(
    network: Any, studies: "Studies", chosen: "np.ndarray", settings: SequenceSettings
) -> "np.ndarray":
    """Logits float32 of the slices of the `chosen` studies (numbers), in the order of the packed rows."""
    import numpy as np

    from ich.data.datasets import study_loader
    from ich.training.predict import predict_studies

    if not len(chosen):  # no test set
        return np.empty((0, studies.base.shape[1]), np.float32)
    batches = study_loader(studies, chosen, settings.batch_size, shuffle=False)
    found = predict_studies(network, batches, int(np.diff(studies.offsets)[chosen].sum()), settings.precision)
    return found["logits"][found["rows"].argsort()]


def stacker_input(
    name: str, settings: Stack, table: "pd.DataFrame", logits: Sequence["np.ndarray"]
) -> tuple["np.ndarray", list[str], "np.ndarray"]:
    """The stacker's columns [n, f], their names, and the logits [n, c] that boosting starts from.

    logits: [n, c] of each member, rows as in the table.
    """
    import numpy as np

    from ich.ensemble import stacker

    cube = np.stack(logits, axis=1).astype(np.float64)
    placed = table.groupby("series")["position"].transform("count") == table["n_slices"]
    position = table["position"].where(placed, USUAL_GAP * table["index"])
    try:
        x, names = stacker.features(cube, table["series"], table["index"], position, settings.neighbours)
    except ValueError as error:
        raise UserError(f"stack.{name}: {error}") from None
    return x, names, cube.mean(axis=1)
