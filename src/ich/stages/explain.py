"""`ich explain`: what the networks look at, how they arrange the slices, and which labels look wrong.

Maps and figures are of validation rows, by the network that never saw them. How often a map's maximum meets the bleed
can be said where the bleeds are known, in the synthetic competition; so can how well the wrong labels are found.
"""

import csv
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from ich.console import say, table
from ich.stages.artefacts import as_written, logits_of, table_of
from ich.stages.inputs import Slices
from ich.stages.maps import RATES, galleries, pointing_game
from ich.stages.member import leave_bytes, leave_table
from ich.stages.plan import Made, Plan

if TYPE_CHECKING:
    import numpy as np

MAPPED = 2000  # slices on the embedding map; t-SNE takes longer than their number
SUSPECTS = 200  # labels that are listed whatever they look like
PRINTED = 10
NOT_ONE = ("no bleed", "no subtype", "several")  # groups of the embedding map besides the subtypes


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
    """Fold 0's validation rows: embedding_map.csv, and its figures coloured by place in the study and by label."""
    import numpy as np

    from ich.report import embedding_map, figures

    parts, folder = plan.workspace.fold(member, 0), plan.explain.folder
    with as_written(parts / "valid_embeddings.npy"):
        embeddings = np.load(parts / "valid_embeddings.npy", mmap_mode="r", allow_pickle=False)
    ids = table_of(parts / "valid.parquet", ["image_id"])["image_id"]
    chosen = embedding_map.sample_rows(len(ids), MAPPED, seed=0)
    if len(chosen) < embedding_map.FEWEST:
        return {}
    points = embedding_map.coordinates(embeddings[chosen], seed=0)
    shown = slices.table.set_index("image_id").loc[ids.iloc[chosen]].reset_index()
    subtypes = [name for name in slices.classes if name != "any"] or slices.classes
    count, bleeds = shown[subtypes].sum(axis=1).to_numpy(), shown[slices.classes].max(axis=1).to_numpy() > 0
    group = np.select([~bleeds, count == 0, count > 1], NOT_ONE, shown[subtypes].idxmax(axis=1))
    names = [NOT_ONE[0], *subtypes, *(name for name in NOT_ONE[1:] if name in group)]
    place = ((shown["index"] + 0.5) / shown["n_slices"]).to_numpy()
    mapped = shown[["image_id", "study_id", "index"]].assign(place=place, group=group, x=points[:, 0], y=points[:, 1])
    title = f"t-SNE of {len(points)} embeddings, {member}, validation rows of fold 0"
    labels = figures.scatter_groups(points, group.tolist(), names, title)
    files = leave_table(folder / "embedding_map.csv", mapped) | leave_bytes(folder / "embedding_map_label.png", labels)
    if (shown["n_slices"] == 1).all():  # single pictures have no place in a study
        return files
    positions = figures.scatter_values(points, place, title, "place in the study (0 first slice, 1 last)")
    return files | leave_bytes(folder / "embedding_map_position.png", positions)
