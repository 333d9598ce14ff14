"""`ich prepare`: read the raw files into the Hounsfield cache, the slice table and the quarantine list."""

import io
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import astuple, fields
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet

from ich.console import progress, say, warn
from ich.data import cache, rules, slice_table
from ich.data.competitions import ADAPTERS, Raw
from ich.data.files import INSIDE
from ich.data.slice_table import Quarantined
from ich.errors import UserError
from ich.pipeline.state import Made, Plan
from ich.pipeline.tasks import HEADERS, Task
from ich.stages import transfer
from ich.store.atomic import atomic, write_bytes, write_text
from ich.store.locks import held
from ich.store.records import Record, read_hashed, record_value, write_hashed, write_record


def run(plan: Plan, *, force: bool = False, parts: bool = False) -> None:
    """Write the cache. parts: by the headers and shards of `make_headers` and `make_part`."""
    if parts:
        _receive(plan, plan.workspace.preparing)
    task = plan.preparing if parts else plan.prepare()
    _name_unfinished(plan, task)
    made = plan.make(task, lambda fingerprint: _prepare(plan, task.folder, fingerprint, force, parts), force=force)
    plan.point_to(task)
    plan.workspace.preparing.unlink(missing_ok=True)
    _forget(task.folder)  # only now: a kill before the record must not lose shards
    record = task.record.read() or {}
    say(
        f"prepare: {'wrote' if made else 'up to date,'} {record['slices']} slices in {task.folder},"
        f" {record['quarantined']} quarantined"
    )
    if burned_in := record.get("burned_in"):
        warn(burned_in)
    for remark in record["notes"]:
        say(f"  {remark}")


def _image(plan: Plan, found: dict[str, Any]) -> cache.ImageFormat:
    return cache.ImageFormat(plan.recipe.image.size, plan.recipe.image.crop, found["values"])


def _forget(folder: Path) -> None:
    """Remove what an unfinished cache resumes from. The notes are last: they show that something is left."""
    for path in (folder / HEADERS, *cache.notes(folder)):
        path.unlink(missing_ok=True)


def _name_unfinished(plan: Plan, task: Task) -> None:
    """List unfinished caches of other settings or files, which may use much disk space."""
    for folder in sorted(path for path in plan.workspace.cache_root.glob("*") if cache.notes(path)):
        record = Record(folder / "run.json")
        if folder != task.folder and record.read() is None and not held(record.lock):
            say(f"prepare: {folder} is unfinished, of other files or settings; delete it unless you return to them")


def _prepare(plan: Plan, folder: Path, fingerprint: str, force: bool, parts: bool) -> Made:
    if force:
        _forget(folder)
    if parts:
        _receive(plan, folder / HEADERS)
    table, quarantined, found = _read_headers(plan, folder, fingerprint)
    if parts:
        _receive_shards(plan, cache.shard_tasks(folder, table, plan.raw_root, _image(plan, found), fingerprint))
    with progress("prepare: pixels", len(table)) as advance:
        table, unread, reused = cache.write_shards(
            folder, table, plan.raw_root, _image(plan, found), plan.cores, advance, fingerprint
        )
    if reused:
        say(f"prepare: resumed, {reused:,} of {len(table) + len(unread):,} slices were in finished shards")
    quarantined += unread
    refused = pd.DataFrame(list(map(astuple, quarantined)), columns=[f.name for f in fields(Quarantined)])
    rules.require(rules.slice_table(table, found["classes"]), table, "image_id")
    rules.require(rules.quarantine(refused), refused, "image_id")
    with atomic(folder / "slices.parquet") as temporary:
        table.to_parquet(temporary, index=False)
    write_text(folder / "quarantine.csv", refused.to_csv(index=False))

    files = [*sorted(path.name for path in folder.glob("hu-*.npy")), "slices.parquet", "quarantine.csv"]
    found["notes"] += [*_remarks(table), *_reasons(quarantined)]
    counts = {"slices": len(table), "quarantined": len(quarantined)}
    return {name: folder / name for name in files}, counts | found


def _read_headers(plan: Plan, folder: Path, fingerprint: str) -> tuple[pd.DataFrame, list[Quarantined], dict[str, Any]]:
    """Return the slice table of the readable headers, the quarantined files, and entries of the record.

    They are kept in the folder until the record is written: a line of JSON, then the table as Parquet.
    """
    payload = read_hashed(folder / HEADERS, fingerprint)
    if payload is None:
        payload = _headers(plan)
        write_hashed(folder / HEADERS, fingerprint, payload)
    text, _, data = payload.partition(b"\n")
    found = json.loads(text)
    quarantined = [Quarantined(*item) for item in found.pop("quarantined")]
    table = pyarrow.parquet.read_table(io.BytesIO(data)).to_pandas(ignore_metadata=True)
    return table, quarantined, found


def _headers(plan: Plan) -> bytes:
    """Read all headers. Raises UserError if there is no readable slice."""
    recipe, root = plan.recipe, plan.raw_root
    raw = ADAPTERS[recipe.competition.format].raw(root)
    if raw.no_labels:
        raise UserError(raw.no_labels)
    plan.remember_raw_files()
    with progress("prepare: headers", len(raw.files), "files") as advance:
        geometries = slice_table.read_geometries(root, raw.files["path"].tolist(), plan.cores, advance, raw.values)
    try:
        table, quarantined = slice_table.slice_table(raw, geometries)
    except ValueError as error:
        raise UserError(f"{root}: {error}") from None
    remarks = list(raw.notes)
    if raw.select is not None:
        selection = raw.select(table)
        table, others = slice_table.apply_selection(table, selection)
        quarantined, remarks = quarantined + others, [*remarks, *selection.notes]
    if recipe.competition.exclude_overlap:
        table, left_out = slice_table.without_overlap(table)
        remarks += [left_out] if left_out else []
    _refuse_empty(plan, raw, table, quarantined)
    found = {"template": raw.template, "values": raw.values, "burned_in": slice_table.burned_in(geometries)}
    found |= {"classes": list(raw.classes), "class_weights": list(raw.classes.values()), "notes": remarks}
    found |= {"quarantined": list(map(astuple, quarantined))}
    return json.dumps(found).encode() + b"\n" + table.to_parquet(index=False)


def _refuse_empty(plan: Plan, raw: Raw, table: pd.DataFrame, quarantined: Sequence[Quarantined]) -> None:
    """Raise UserError if there is no readable labelled slice, or no readable slice of an expected test set."""
    outside = plan.recipe.competition.trained_by is not None
    expected = {"train": not outside, "test": bool(outside or raw.test_ids or (raw.files["split"] == "test").any())}
    for split, wanted in expected.items():
        if wanted and not (table["split"] == split).any():
            said = next((f"{q.path}: {q.reason}" for q in quarantined if q.split == split and q.path), "no file")
            raise UserError(f"{plan.raw_root}: no readable slice in the {split} set ({said})")
    trained = raw.files.loc[(raw.files["split"] == "train") & raw.files["image_id"].isin(raw.test_ids), "path"]
    if len(trained):
        what = f"{trained.iloc[0]} is a training slice ({len(trained)} such images)"
        raise UserError(f"{plan.raw_root / raw.template}: {what}; use the sample submission of the test set")
    if not outside and (why := slice_table.without_labels(raw, table)):
        raise UserError(f"{plan.raw_root}: {why}")


def _remarks(table: pd.DataFrame) -> list[str]:
    """Return notes about the readable slices."""
    remarks: list[str] = []
    if unplaced := int((table["position"].isna() & (table["n_slices"] > 1)).sum()):
        remarks.append(f"{unplaced} slices have no position; their series are ordered by instance number")
    groups = table.dropna(subset=["position"]).groupby(["split", "series_id"])["position"]
    if same := int((groups.diff().abs() < rules.SAME_PLACE).sum()):
        remarks.append(f"{same} slices have the same position as the slice before them")
    train = set(table.loc[table["split"] == "train", "patient_id"])
    if both := train & set(table.loc[table["split"] == "test", "patient_id"]):
        remarks.append(f"{len(both)} patients of the test set are also in the training set")
    return remarks


def _reasons(quarantined: Sequence[Quarantined]) -> list[str]:
    counts = Counter(item.reason for item in quarantined)
    return [f"quarantined: {count} x {reason}" for reason, count in sorted(counts.items())]


# ---- parts of the cache, by several machines


def make_headers(plan: Plan) -> None:
    """Read the headers, for `make_part` and `run` on any machine. Do nothing if the cache is up to date."""
    transfer.fetch_raw(plan)
    task = plan.prepare()
    write_record(plan.workspace.preparing, {"key": task.folder.name, "settings": task.settings})
    _offer(plan, plan.workspace.preparing)
    if not plan.state(task).done:
        _read_headers(plan, task.folder, plan.fingerprint(task, plan.inputs(task)))
        _offer(plan, task.folder / HEADERS)


def make_part(plan: Plan, part: int) -> None:
    """Write one of the cache.PARTS parts of the shards, with one process. Do nothing if the cache is up to date.

    No lock is needed: the shards of other parts are other files, and a second maker writes the same bytes.
    """
    _receive(plan, plan.workspace.preparing)
    task = plan.preparing
    if plan.state(task).done:
        return
    _receive(plan, task.folder / HEADERS)
    fingerprint = plan.fingerprint(task, plan.inputs(task))
    table, _, found = _read_headers(plan, task.folder, fingerprint)
    shards = cache.shard_tasks(task.folder, table, plan.raw_root, _image(plan, found), fingerprint)[part :: cache.PARTS]
    paths = {path.partition(INSIDE)[0] for _, _, _, series, _ in shards for places in series for path, *_ in places}
    transfer.fetch_raw(plan, paths)
    written = {shard[0]: cache.write_shard(*shard).sha256 for shard in shards}
    if plan.remote is not None:
        plan.remote.push_files(written)
        _offer(plan, *(cache.note(path) for path in written))


def _receive_shards(plan: Plan, shards: Sequence[cache.ShardTask]) -> None:
    """Copy the shards that are not here. Without this, all raw files would be needed here."""
    if plan.remote is None:
        return
    missing = [path for path, *_ in shards if not (path.is_file() and cache.note(path).is_file())]
    notes = {path: record_value(plan.remote.read_latest(plan.relative(cache.note(path))) or b"") for path in missing}
    if lost := [path for path, note in notes.items() if note is None]:
        raise UserError(f"{lost[0]}: neither here nor in {plan.remote.url}. Rerun the same command to make it")
    found = {path: note for path, note in notes.items() if note is not None}
    plan.remote.pull({path: note["shard"] for path, note in found.items()})
    for path, note in found.items():  # after all shards: a shard without a note is copied again
        write_record(cache.note(path), note)


def _offer(plan: Plan, *paths: Path) -> None:
    """Write small files to the store, if there is one."""
    if plan.remote is None:
        return
    for path in paths:
        plan.remote.write_latest(plan.relative(path), path.read_bytes())


def _receive(plan: Plan, path: Path) -> None:
    """Copy a small file from the store, if there is one and it has the file."""
    found = None if plan.remote is None else plan.remote.read_latest(plan.relative(path))
    if found is not None:
        write_bytes(path, found)
