"""The tables of `ich predict`: slices, series, studies and files."""

import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ich.console import say
from ich.data.dicom import Geometry, Reason, Unreadable
from ich.data.slice_table import Quarantined
from ich.ensemble import thresholds
from ich.ensemble.calibration import Calibrator
from ich.ensemble.final import final_probabilities
from ich.ensemble.hierarchy import project_any
from ich.ensemble.predictions import sigmoid
from ich.errors import parsing
from ich.models.bundle import Bundle
from ich.store.atomic import atomic, write_text


def scored_slices(bundle: Bundle, slices: pd.DataFrame, logits: NDArray) -> pd.DataFrame:
    """Return ids without the patient's, prob_<class> and positive_<class>, equal to those of `ich submit`."""
    classes, tuned = list(bundle.spec.classes), bundle.spec.thresholds
    scored = slices[["image_id", "study_id", "series_id", "index"]].copy()
    if tuned is None:
        say("predict: no thresholds, so no columns positive_<class>. Run `ich thresholds` to tune them")
        scored[[f"prob_{name}" for name in classes]] = sigmoid(logits)
        return scored
    with parsing("thresholds.json", "run `ich thresholds`"):
        probability, cuts = final_probabilities(tuned, logits, classes, bundle.spec.class_weights)
    scored[[f"prob_{name}" for name in classes]] = probability
    scored[[f"positive_{name}" for name in classes]] = thresholds.apply(probability, cuts).astype(int)
    return scored


def study_probabilities(bundle: Bundle, studies: pd.Series, logits: NDArray) -> pd.DataFrame:
    """Return study_prob_<class> by study id: the calibrated maximum over the slices. Without columns if not tuned."""
    classes, tuned = list(bundle.spec.classes), bundle.spec.thresholds
    largest = pd.DataFrame(logits, columns=classes).groupby(studies.to_numpy(), sort=False).max()
    if tuned is None:
        return largest[[]]
    with parsing("thresholds.json", "run `ich thresholds`"):
        found = [Calibrator.from_dict(tuned["studies"][name]).apply(largest[name]) for name in classes]
    projected = project_any(np.column_stack(found), classes, bundle.spec.class_weights)
    return pd.DataFrame(sigmoid(projected), largest.index, [f"study_prob_{name}" for name in classes])


def file_table(
    headers: Mapping[str, Geometry | Unreadable], slices: pd.DataFrame, quarantined: Sequence[Quarantined]
) -> pd.DataFrame:
    """Return one row per file and refused member of an archive, sorted by path.

    status: scored, quarantined, or partly scored if frames of a multi-frame file are quarantined.
    """
    counts, refused = slices["path"].value_counts(), {item.path: item for item in reversed(quarantined)}
    rows: list[dict[str, object]] = []
    for path, header in headers.items():
        ids = vars(header) if isinstance(header, Geometry) else {}
        rows.append(_file_row(path, int(counts.get(path, 0)), refused.get(path), ids))
    rows += [_file_row(item.path, 0, item, {}) for item in quarantined if item.path not in headers]
    return pd.DataFrame(rows).sort_values("path", kind="stable", ignore_index=True)


def _file_row(path: str, scored: int, refused: Quarantined | None, ids: Mapping[str, object]) -> dict[str, object]:
    status = "quarantined" if not scored else "scored" if refused is None else "partly scored"
    reason, detail = ("", "") if refused is None else (refused.reason, reason_of(refused))
    found = {"path": path, "status": status, "reason": reason, "detail": detail, "slices": scored}
    names = {"sop_instance_uid": "instance_uid", "study_id": "study_id", "series_id": "series_id"}
    return found | {name: ids.get(key, "") for name, key in names.items()}


def largest_by(scored: pd.DataFrame, keys: list[str], **more: tuple[str, str]) -> pd.DataFrame:
    """Return one row per study or series: slices, and the maximum of each prob_<class> and positive_<class>.

    more: further columns, as in `DataFrameGroupBy.agg`.
    """
    groups = scored.groupby(keys, sort=False)
    found = groups[[name for name in map(str, scored) if name.startswith(("prob_", "positive_"))]].max()
    return groups.agg(**more, slices=("image_id", "size")).join(found).reset_index()


def reason_of(item: Quarantined) -> str:
    return f"{Reason[item.reason.upper()]}{f' ({item.detail})' if item.detail else ''}"


def write_tables(out: Path, tables: Mapping[str, pd.DataFrame]) -> list[str]:
    """Write the tables as `out` (the name ""), and as out.<name>.csv next to it. Return the paths.

    They are Parquet if `out` is a .parquet file, and CSV otherwise. A .zip archive holds all of them.
    """
    suffix = out.suffix.lower()
    texts = {name: table.to_csv(index=False) for name, table in tables.items() if suffix != ".parquet"}
    if suffix == ".zip":
        with atomic(out) as temporary, zipfile.ZipFile(temporary, "w") as archive:
            for name, text in texts.items():
                member = Path(out.stem).with_suffix(f".{name}.csv" if name else ".csv")
                archive.writestr(zipfile.ZipInfo(str(member)), text, zipfile.ZIP_DEFLATED)
        return [str(out)]
    paths = {name: out.with_suffix(f".{name}{out.suffix or '.csv'}") if name else out for name in tables}
    for name, path in paths.items():
        if suffix == ".parquet":
            with atomic(path) as temporary:
                tables[name].to_parquet(temporary, index=False)
        else:
            write_text(path, texts[name])
    return [str(path) for path in reversed(paths.values())]
