"""Small files other than artifacts that the machines of a recipe share through its object store.

These are the pointer to the cache, files of the user that tasks read (label tables, solution.csv, predictions made
elsewhere), and the key of the pseudonyms.
"""

import json
from collections.abc import Iterable
from typing import Any

from ich.console import warn
from ich.errors import UserError, parsing
from ich.models.pseudonyms import Pseudonyms
from ich.pipeline.state import Plan
from ich.pipeline.tasks import Task
from ich.store.hashes import sha256_file
from ich.store.records import Record, read_record, record_text, record_value, write_record
from ich.store.remote import Remote, plain, plain_files

DATA = (".csv", ".txt", ".parquet", ".npz")  # files that the store may write to a workspace


def tasks_of(plan: Plan, model: str | None = None) -> list[Task]:
    """Return all tasks of a recipe from `prepare` on, or those of a model and of what it reads. Inputs come first.

    Raises UserError for an unknown model.
    """
    names = [*plan.recipe.pretrain, *plan.models]
    if model is not None and model not in names:
        raise UserError(f"--model {model}: unknown model. Choose from {', '.join(names)}")
    if plan.recipe.competition.trained_by is not None:
        return _with_inputs([plan.scans])
    ends: list[Task] = []
    for name in names if model is None else [model]:
        ends += plan.tasks_of(plan.settings_of(name).stage, name)
        ends += [] if name in plan.recipe.pretrain else [plan.assembled(name)]
    return _with_inputs(ends + ([] if model else [plan.thresholds, plan.submit, plan.score, plan.explain, plan.report]))


def _with_inputs(tasks: Iterable[Task]) -> list[Task]:
    found: dict[str, Task] = {}

    def add(task: Task) -> None:
        if str(task.record.path) not in found:
            for upstream, _ in task.upstream:
                add(upstream)
            found[str(task.record.path)] = task

    for task in tasks:
        add(task)
    return list(found.values())


def push_shared(plan: Plan, remote: Remote) -> None:
    """Write these files to the store. The pointer is last: a machine that reads it finds all that it needs."""
    key = Pseudonyms.of(plan.workspace, plan.recipe.competition.format)
    if key.file is not None and key.file.is_file():
        name = plan.relative(key.file)
        key.require_same(remote.read_latest(name))
        remote.write_latest(name, key.file.read_bytes())
    paths = {path for task in tasks_of(plan) for path in task.sources.values() if path.is_file()}
    if plan.recipe.demo:  # each machine writes its own
        paths = {path for path in paths if plan.raw_root not in path.parents}
    files = {plan.relative(path): path for path in sorted(paths)}
    for file in [file for file in files if not plain(file)]:
        warn(
            f"{files.pop(file)} is outside of {plan.root}, so it is not copied. Copy it to the other machines yourself"
        )
    hashes = {file: sha256_file(path) for file, path in files.items()}
    remote.push_files({files[file]: sha256 for file, sha256 in hashes.items()})
    remote.write_latest(_sources(plan), json.dumps({**_read_sources(plan, remote), **hashes}).encode())
    for each in plan.graphs:
        if each.state(each.prepared).done:
            pointer = {"key": each.prepared.folder.name, "settings": each.image_settings}
            pointer["fingerprint"] = each.record_of(each.prepared)["fingerprint"]
            remote.write_latest(each.relative(each.workspace.cache_pointer), record_text(pointer).encode())


def pull_shared(plan: Plan, remote: Remote, *, strict: bool = False) -> None:
    """Write those files of the store to the workspace that are missing here, and use the cache of its pointer.

    Create a new `Plan` afterwards: tasks depend on these files. strict: raise UserError for a file of the user that
    differs here.
    """
    key = Pseudonyms.of(plan.workspace, plan.recipe.competition.format)
    if key.file is not None and (secret := remote.read_latest(plan.relative(key.file))) is not None:
        key.adopt(secret)
        key.require_same(secret)
    files = _read_sources(plan, remote)
    here = [file for file in files if (plan.root / file).exists()]
    for file in here if strict else ():
        if sha256_file(plan.root / file) != files[file]:
            raise UserError(
                f"{plan.root / file} differs from {remote.url}. Delete it here, then rerun the same command"
            )
    remote.pull({plan.root / file: files[file] for file in files.keys() - set(here)})
    for each in plan.graphs:
        _pull_pointer(each, remote)


def _pull_pointer(plan: Plan, remote: Remote) -> None:
    pointer = record_value(remote.read_latest(plan.relative(plan.workspace.cache_pointer)) or b"") or {}
    fingerprint, key = str(pointer.pop("fingerprint", None)), str(pointer.get("key"))
    if pointer.get("settings") != plan.image_settings or not plain(key) or not plain(fingerprint):
        return
    record = Record(plan.workspace.cache(key) / "run.json")
    if record.read() is None:  # its settings contain the hash of the raw files, which are not here
        value = remote.read_record(plan.relative(record.path), fingerprint)
        if value is None:
            return
        write_record(record.path, value)
    if read_record(plan.workspace.cache_pointer) != pointer:
        write_record(plan.workspace.cache_pointer, pointer)


def _sources(plan: Plan) -> str:
    return f"sources/{plan.recipe.name}.json"


def _read_sources(plan: Plan, remote: Remote) -> dict[str, str]:
    """Return the SHA-256 of the files of the user in the store by path relative to the workspace."""
    files = latest_table(remote, _sources(plan))
    return {file: sha for file, sha in files.items() if file.endswith(DATA)} if plain_files(files) else {}


def latest_table(remote: Remote, name: str) -> dict[str, Any]:
    """Return the JSON object of this name in the store, empty if there is none."""
    with parsing(f"{remote.url}/latest/{name}", "delete it and run `ich push` again"):
        return dict(json.loads(remote.read_latest(name) or b"{}"))
