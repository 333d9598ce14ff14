"""`ich prepare`: raw files -> hu.npy (Hounsfield units), slices.parquet (the slice table), quarantine.csv."""

from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING

from ich.console import progress, say
from ich.stages.inputs import layout_errors
from ich.stages.plan import Made, Plan
from ich.workspace import UserError, atomic_folder

if TYPE_CHECKING:
    import pandas as pd

    from ich.data.cache import Quarantined


def run(plan: Plan, *, force: bool = False) -> None:
    task = plan.prepare()
    made = plan.make(task, lambda _: _prepare(plan, task.folder), force=force)
    plan.point_to(task)
    record = task.record.read() or {}
    say(
        f"prepare: {'wrote' if made else 'done'}, {record['slices']} slices in {task.folder},"
        f" {record['quarantined']} quarantined"
    )
    for note in record["notes"]:
        say(f"  {note}")


def _prepare(plan: Plan, folder: Path) -> Made:
    import pandas as pd

    from ich.data import cache
    from ich.data.competitions import ADAPTERS

    adapter, root, image = ADAPTERS[plan.recipe.competition.format], plan.raw_root, plan.recipe.image
    with layout_errors():
        raw = adapter.raw(root)
    with progress("prepare: headers", len(raw.files), "files") as advance:
        geometries = cache.read_geometries(root, raw.files["path"].tolist(), plan.cores, advance)
    try:
        table, quarantined = cache.slice_table(raw, geometries)
    except ValueError as error:
        raise UserError(f"{root}: {error}") from None
    for split in ("train", "test"):
        if not (table["split"] == split).any():
            said = next((f"{q.path}: {q.reason}" for q in quarantined if q.split == split), "no file")
            raise UserError(f"{root}: not one readable slice in the {split} set ({said})")

    with atomic_folder(folder) as temporary:
        with progress("prepare: pixels", len(table)) as advance:
            table, unread = cache.fill(
                temporary / "hu.npy", table, root, image.size, image.crop == "head", plan.cores, advance
            )
        table.to_parquet(temporary / "slices.parquet", index=False)
        quarantined += unread
        columns = [field.name for field in fields(cache.Quarantined)]
        pd.DataFrame([asdict(item) for item in quarantined], columns=pd.Index(columns)).to_csv(
            temporary / "quarantine.csv", index=False
        )
    files = {name: folder / name for name in ("hu.npy", "slices.parquet", "quarantine.csv")}
    counts = {"slices": len(table), "quarantined": len(quarantined), "template": raw.template}
    counts |= {"classes": list(raw.classes), "class_weights": list(raw.classes.values())}
    return files, {**counts, "notes": [*raw.notes, *_remarks(table), *_reasons(quarantined)]}


def _remarks(table: "pd.DataFrame") -> list[str]:
    """What a user should know about the readable slices, in words."""
    remarks: list[str] = []
    placeless = int(table["position"].isna().sum())
    if placeless:
        remarks.append(f"{placeless} slices have no position; their series are ordered by instance number")
    groups = table.dropna(subset=["position"]).groupby(["split", "series_id"])["position"]
    same = int((groups.diff() == 0).sum())
    if same:
        remarks.append(f"{same} slices lie at the position of the slice before them")
    train = set(table.loc[table["split"] == "train", "patient_id"])
    both = train & set(table.loc[table["split"] == "test", "patient_id"])
    if both:
        remarks.append(f"{len(both)} patients of the test set are in the training set too")
    return remarks


def _reasons(quarantined: Sequence["Quarantined"]) -> list[str]:
    counts: dict[str, int] = {}
    for item in quarantined:
        counts[item.reason] = counts.get(item.reason, 0) + 1
    return [f"quarantined: {count} x {reason}" for reason, count in sorted(counts.items())]
