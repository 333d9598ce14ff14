"""`ich prepare`: raw files -> hu.npy (Hounsfield units), slices.parquet (the slice table), quarantine.csv."""

from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING

from ich.console import progress, say
from ich.errors import UserError
from ich.pipeline.graph import PROGRESS, Task
from ich.pipeline.plan import Made, Plan
from ich.stages.inputs import layout_errors
from ich.store.atomic import lasting_folder, part_of
from ich.store.hashes import digest, sha256_bytes
from ich.store.locks import held
from ich.store.records import Record, read_sealed, write_sealed

if TYPE_CHECKING:
    import pandas as pd

    from ich.data.cache import Quarantined
    from ich.data.competitions import Raw


def run(plan: Plan, *, force: bool = False) -> None:
    task = plan.prepare()
    _name_left_over(plan, task)
    made = plan.make(task, lambda fingerprint: _prepare(plan, task.folder, fingerprint, force), force=force)
    plan.point_to(task)
    record = task.record.read() or {}
    say(
        f"prepare: {'wrote' if made else 'done'}, {record['slices']} slices in {task.folder},"
        f" {record['quarantined']} quarantined"
    )
    for note in record["notes"]:
        say(f"  {note}")


def _name_left_over(plan: Plan, task: Task) -> None:
    """Say which half-made caches lie there that this call does not go on with. They may be as large as a whole one."""
    for part in sorted(plan.workspace.cache_root.glob(part_of(Path("*")).name)):
        folder = plan.workspace.cache(part.name.split(".")[1])
        goes_on = folder == task.folder and not plan.state(task).done
        if not goes_on and not held(Record(folder / "run.json").lock):
            say(f"prepare: {part} is left of another killed prepare; remove it unless its files and settings return")


def _prepare(plan: Plan, folder: Path, fingerprint: str, force: bool) -> Made:
    import pandas as pd

    from ich.data import cache
    from ich.data.competitions import ADAPTERS

    adapter, root = ADAPTERS[plan.recipe.competition.format], plan.raw_root
    with layout_errors():
        raw = adapter.raw(root)
    with progress("prepare: headers", len(raw.files), "files") as advance:
        geometries = cache.read_geometries(root, raw.files["path"].tolist(), plan.cores, advance, raw.values)
    try:
        table, quarantined = cache.slice_table(raw, geometries)
    except ValueError as error:
        raise UserError(f"{root}: {error}") from None
    remarks = list(raw.notes)
    if raw.choose is not None:
        choice = raw.choose(table)
        table, aside = cache.chosen(table, choice)
        quarantined, remarks = quarantined + aside, [*remarks, *choice.notes]
    left_out = ""
    if plan.recipe.competition.exclude_overlap:
        table, left_out = cache.without_overlap(table)
    _refuse_empty(plan, raw, table, quarantined)

    with lasting_folder(folder, PROGRESS, anew=force) as part:
        table, unread = _filled(plan, part, table, raw.values, fingerprint)
        table.to_parquet(part / "slices.parquet", index=False)
        quarantined += unread
        columns = [field.name for field in fields(cache.Quarantined)]
        pd.DataFrame([asdict(item) for item in quarantined], columns=pd.Index(columns)).to_csv(
            part / "quarantine.csv", index=False
        )
    files = {name: folder / name for name in ("hu.npy", "slices.parquet", "quarantine.csv")}
    counts = {"slices": len(table), "quarantined": len(quarantined), "template": raw.template}
    counts |= {"classes": list(raw.classes), "class_weights": list(raw.classes.values()), "values": raw.values}
    return files, {**counts, "notes": [*remarks, *filter(None, [left_out]), *_remarks(table), *_reasons(quarantined)]}


def _filled(
    plan: Plan, part: Path, table: "pd.DataFrame", values: str, fingerprint: str
) -> tuple["pd.DataFrame", list["Quarantined"]]:
    """Write hu.npy, from the last series on that a killed call has kept there."""
    import pandas as pd

    from ich.data import cache

    hu, image = part / "hu.npy", plan.recipe.image
    places = table[["split", "study_id", "series_id", "path", "frame"]]
    rows = pd.util.hash_pandas_object(places, index=False).to_numpy().tobytes()
    seal = digest([fingerprint, sha256_bytes(rows)])  # a header that could not be read this time moves the rows
    kept = cache.from_bytes(read_sealed(part / PROGRESS, seal) or b"[]")
    done: list[cache.Series] = []
    if kept:
        with progress("prepare: kept pixels", sum(len(series.boxes) for series in kept)) as advance:
            done = cache.intact(hu, image.size, kept, advance)
    there = sum(len(series.boxes) for series in done)
    if there:
        say(f"prepare: goes on, {there:,} of {len(table):,} slices are there")
    with progress("prepare: pixels", len(table) - there) as advance:
        return cache.fill(
            hu,
            table,
            plan.raw_root,
            image.size,
            image.crop,
            plan.cores,
            advance,
            values,
            done=done,
            save=lambda series: write_sealed(part / PROGRESS, seal, cache.to_bytes(series)),
        )


def _refuse_empty(plan: Plan, raw: "Raw", table: "pd.DataFrame", quarantined: Sequence["Quarantined"]) -> None:
    """Raise UserError where nothing is left to train on, or nothing of a test set that there should be."""
    outside = plan.recipe.competition.trained_by is not None
    expected = {"train": not outside, "test": bool(outside or raw.test_ids or (raw.files["split"] == "test").any())}
    for split, wanted in expected.items():
        if wanted and not (table["split"] == split).any():
            said = next((f"{q.path}: {q.reason}" for q in quarantined if q.split == split and q.path), "no file")
            raise UserError(f"{plan.raw_root}: not one readable slice in the {split} set ({said})")
    if not outside and not table.loc[table["split"] == "train", list(raw.classes)].notna().all(axis=1).any():
        named = next((q.image_id for q in quarantined if q.reason == "label_without_file"), "none")
        raise UserError(
            f"{plan.raw_root}: not one readable training slice has a label; the labels name {named}, and there is"
            f" image {table['image_id'].iloc[0]} of study {table['study_id'].iloc[0]}"
        )


def _remarks(table: "pd.DataFrame") -> list[str]:
    """What a user should know about the readable slices, in words."""
    from ich.data import cache

    remarks: list[str] = []
    placeless = int((table["position"].isna() & (table["n_slices"] > 1)).sum())
    if placeless:
        remarks.append(f"{placeless} slices have no position; their series are ordered by instance number")
    groups = table.dropna(subset=["position"]).groupby(["split", "series_id"])["position"]
    same = int((groups.diff().abs() < cache.SAME_PLACE).sum())
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
