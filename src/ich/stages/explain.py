"""`ich explain`: what the networks look at, how they arrange the slices, and which labels look wrong.

Maps and figures are of validation rows, by the network that never saw them; the table of the embeddings' map holds
training and test rows too, to be set beside them. How often a map's maximum meets the bleed can be said where the
bleeds are known, in the synthetic competition; so can how well the wrong labels are found.
"""

import csv
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from ich.console import say, table
from ich.pipeline.plan import Made, Plan
from ich.stages.artefacts import as_written, logits_of, table_of
from ich.stages.inputs import Slices
from ich.stages.maps import RATES, galleries, pointing_game
from ich.stages.member import leave_bytes, leave_table

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

MAPPED = {"valid": 1000, "train": 300, "test": 300}  # slices on the embedding map at most; t-SNE takes its time
SUSPECTS = 200  # labels that are listed whatever they look like
PRINTED = 10
NOT_ONE = ("no bleed", "no subtype", "several")  # groups of the embedding map besides the subtypes
TEST = "test"  # the fold and the group of test slices there


def run(plan: Plan, *, force: bool = False) -> None:
    made = plan.make(plan.explain, lambda _: _explained(plan), force=force)
    folder = plan.explain.folder
    columns = ["rank", "image_id", "index", "class", "label", "probability", "pattern", "suspicion"]
    suspects = [[row[c] for c in columns] for row in _read(folder / "suspicious_labels.csv")[:PRINTED]]
    table(columns, suspects, "The labels most likely wrong")
    if (folder / "label_audit.csv").is_file():
        judged = _read(folder / "label_audit.csv")
        table(list(judged[0]), [list(row.values()) for row in judged], "Wrong labels, found by three rules")
    if (folder / "pointing_game.csv").is_file():
        _show_pointing(_read(folder / "pointing_game.csv"))
    say(f"\nexplain: {'wrote' if made else 'done'}, {folder}")


def _show_pointing(played: list[dict[str, str]]) -> None:
    """A row a class, the mean over members."""
    classes = dict.fromkeys(row["class"] for row in played)
    rows: list[list[str]] = []
    for name in classes:
        of_class = [row for row in played if row["class"] == name]
        means = [sum(float(row[rate]) for row in of_class) / len(of_class) for rate in RATES]
        rows.append([name, of_class[0]["slices"], *(f"{mean:.3f}" for mean in means)])
    table(["class", "slices", *RATES], rows, "How often the maximum of Grad-CAM lies in the bleed (mean over members)")


def _read(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def _explained(plan: Plan) -> Made:
    import torch

    torch.set_num_threads(plan.recipe.compute.threads)
    slices = Slices(plan)
    files = _audit(plan, slices)
    if plan.recipe.cnn:
        first = next(iter(plan.recipe.cnn))
        files |= _embedding_map(plan, slices, first) | galleries(plan, slices, first)
        if (plan.raw_root / "masks.npz").is_file():
            files |= pointing_game(plan, slices)
    before = (plan.explain.record.read() or {"files": {}})["files"]
    for left in before.keys() - files.keys():  # by a run that knew more: where the bleeds are
        (plan.explain.folder / left).unlink(missing_ok=True)
    return files, {}


# ---- the labels


def _audit(plan: Plan, slices: Slices) -> dict[str, Path]:
    """suspicious_labels.csv; where it is known which labels are wrong, label_audit.csv."""
    import pandas as pd

    from ich.ensemble.members import sigmoid
    from ich.report import label_audit

    rows, folder = slices.labelled.nonzero()[0], plan.explain.folder
    logits = logits_of(plan.workspace.member("blend") / "oof.parquet", slices.ids(rows), slices.classes)
    labelled, probability = slices.table.iloc[rows], sigmoid(logits)
    suspects = label_audit.ranked(labelled, slices.classes, probability, SUSPECTS)
    files = leave_table(folder / "suspicious_labels.csv", suspects)
    if not (plan.raw_root / "mislabelled.csv").is_file():
        return files
    wrong = _wrong(plan.raw_root / "mislabelled.csv", slices, rows)
    labels, series, index = slices.labels[rows], labelled["series"].to_numpy(), labelled["index"].to_numpy()
    odds = label_audit.suspicion(labels, probability, series, index)
    found = {
        "101 and 010": label_audit.judge_set(wrong, label_audit.patterns(labels, series, index)),
        "disagreement": label_audit.judge_ranking(wrong, label_audit.disagreement(labels, probability)),
        "suspicion": label_audit.judge_ranking(wrong, odds),
    }
    judged = pd.DataFrame([{"rule": rule, **asdict(figures)} for rule, figures in found.items()])
    return files | leave_table(folder / "label_audit.csv", judged)


def _wrong(path: Path, slices: Slices, rows: "np.ndarray") -> "np.ndarray":
    """bool [n, c]: labels of the rows that the synthetic competition wrote wrong on purpose."""
    import numpy as np

    listed = {row["ID"] for row in _read(path)}
    return np.array([[f"{i}_{name}" in listed for name in slices.classes] for i in slices.ids(rows)])


# ---- the embeddings


def _embedding_map(plan: Plan, slices: Slices, member: str) -> dict[str, Path]:
    """embedding_map.csv, of all that fold 0's network has seen; figures of its validation rows, by place and label."""
    import numpy as np

    from ich.report import embedding_map, figures

    ids, embeddings = _embedded(plan, member)
    shown = slices.table.set_index("image_id").loc[ids].reset_index()
    unseen = (shown["fold"] == 0).to_numpy()
    if unseen.sum() < embedding_map.FEWEST:
        return {}
    points, folder = embedding_map.coordinates(embeddings, seed=0), plan.explain.folder
    group = _groups(shown, slices.classes)
    place = ((shown["index"] + 0.5) / shown["n_slices"]).to_numpy()
    fold = [TEST if np.isnan(k) else f"{k:.0f}" for k in shown["fold"]]
    mapped = shown[["image_id", "study_id", "index"]].assign(place=place, fold=fold, group=group)
    files = leave_table(folder / "embedding_map.csv", mapped.assign(x=points[:, 0], y=points[:, 1]))
    points, group, place = points[unseen], group[unseen], place[unseen]
    names = [NOT_ONE[0], *_subtypes(slices.classes), *(name for name in NOT_ONE[1:] if name in group)]
    title = f"t-SNE of {len(points)} embeddings, {member}, validation rows of fold 0"
    labels = figures.scatter_groups(points, group.tolist(), names, title)
    files |= leave_bytes(folder / "embedding_map_label.png", labels)
    if (shown["n_slices"] == 1).all():  # single pictures have no place in a study
        return files
    positions = figures.scatter_values(points, place, title, "place in the study (0 first slice, 1 last)")
    return files | leave_bytes(folder / "embedding_map_position.png", positions)


def _embedded(plan: Plan, member: str) -> "tuple[list[str], np.ndarray]":
    """Ids and embeddings [n, d] of fold 0's validation rows, its training rows where kept, and the test rows."""
    import numpy as np

    from ich.report.embedding_map import sample_rows

    fold = plan.workspace.fold(member, 0)
    folders = {"valid": fold, "train": fold / "train", "test": fold}
    if member not in plan.read_in_sample:
        del folders["train"]
    ids: list[str] = []
    parts: list[np.ndarray] = []
    for split, folder in folders.items():
        with as_written(folder / f"{split}_embeddings.npy"):
            embeddings = np.load(folder / f"{split}_embeddings.npy", mmap_mode="r", allow_pickle=False)
        there = table_of(folder / f"{split}.parquet", ["image_id"])["image_id"]
        chosen = sample_rows(len(there), MAPPED[split], seed=0)
        ids += there.iloc[chosen].tolist()
        parts.append(embeddings[chosen])
    return ids, np.concatenate(parts)


def _subtypes(classes: list[str]) -> list[str]:
    return [name for name in classes if name != "any"] or classes


def _groups(shown: "pd.DataFrame", classes: list[str]) -> "np.ndarray":
    """The one subtype of each slice, or why it has not one."""
    import numpy as np

    labels, subtypes = shown[classes].fillna(0), _subtypes(classes)
    count, bleeds = labels[subtypes].sum(axis=1).to_numpy(), labels.max(axis=1).to_numpy() > 0
    test = (shown["split"] == "test").to_numpy()
    return np.select([test, ~bleeds, count == 0, count > 1], [TEST, *NOT_ONE], labels[subtypes].idxmax(axis=1))
