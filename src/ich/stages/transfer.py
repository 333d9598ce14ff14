"""`ich push` and `ich pull`: copy artifacts, or with --raw the raw files, to the object store and back."""

import json
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from itertools import islice
from pathlib import Path

from ich.console import progress, say, warn
from ich.errors import UserError, parsing
from ich.pipeline import exchange
from ich.pipeline.state import IN_STORE, Plan, State
from ich.recipe import Store
from ich.stages import demo
from ich.store import raw as raw_files
from ich.store.hashes import sha256_file
from ich.store.locks import hold
from ich.store.remote import OnBytes, Remote, in_parallel, plain, plain_files

MB = 1_000_000
RawTable = Mapping[str, tuple[int, str, str]]  # size, sample and SHA-256 of raw files by path
TOGETHER = 1000  # raw files that are hashed before they are written


def push(plan: Plan, *, model: str | None, raw: bool) -> None:
    """Write what is finished here and missing in the store."""
    remote = _remote(plan)
    if raw:
        _push_raw(plan, remote)
        exchange.push_shared(plan, remote)
        return
    local = Plan(plan.recipe.model_copy(update={"store": Store()}), plan.root)  # without looking into the store
    tasks = exchange.tasks_of(local, model)
    done = [task for task in tasks if local.state(task).done]
    size = sum((task.folder / name).stat().st_size for task in done for name in local.files_of(task))
    with _bytes("push", size) as advance:
        for task in done:
            record = local.record_of(task)
            files = {name: task.folder / name for name in record["files"]}
            remote.push(plan.relative(task.record.path), record, files, advance)
    exchange.push_shared(local, remote)
    say(f"push: {len(done)} of {len(tasks)} artifacts are in {remote.url}", always=True)
    _say_missing("not up to date here", [task.name for task in tasks if task not in done])


def pull(plan: Plan, *, model: str | None, raw: bool) -> None:
    """Copy what fits the recipe from the store, each record before its files, which are compared at every use."""
    remote = _remote(plan)
    if raw:
        table = _read_raw(plan, remote)
        if not table:
            raise UserError(f"{remote.url} has no raw files. Run `ich push --raw` where they are")
        root = plan.raw_root
        same = [path for path, (size, *_) in table.items() if (root / path).is_file() and _size(root / path) == size]
        kept = {path for path, sample in raw_files.samples(root, same) if sample == table[path][1]}
        _pull_raw(plan, remote, {path: found for path, found in table.items() if path not in kept})
        say(f"pull: {len(table):,} raw files are in {root}, {len(table) - len(kept):,} of them new", always=True)
        return
    if plan.recipe.demo:  # each machine writes its own
        demo.run(plan)
    exchange.pull_shared(plan, remote)
    plan = Plan(plan.recipe, plan.root)
    tasks = exchange.tasks_of(plan, model)
    states = {task.name: plan.state(task) for task in tasks}
    remote_tasks = [task for task in tasks if states[task.name] == State("done", IN_STORE)]
    missing = {sha for task in remote_tasks for sha in plan.missing(task).values()}
    with _bytes("pull", sum(remote.sizes(missing).values())) as advance:
        for task in remote_tasks:
            with hold(task.record.lock, on_wait=lambda who: say(f"pull: waiting for {who}")):
                plan.pull(((task, ("*",)),), advance)
    here = sum(state.done for state in states.values())
    say(f"pull: {here} of {len(tasks)} artifacts are up to date here, {len(remote_tasks)} of them new", always=True)
    _say_missing(f"not in {remote.url}", [name for name, state in states.items() if not state.done])


def _remote(plan: Plan) -> Remote:
    if plan.remote is None:
        raise UserError(
            f"recipe {plan.recipe.name} has no store. Add the line `store: {{remote: s3://bucket/prefix}}` to it, or"
            " use --set store.remote=s3://bucket/prefix"
        )
    return plan.remote


def _say_missing(what: str, names: list[str]) -> None:
    if names:
        say(f"  {what}: {', '.join(names[:5])}{f' and {len(names) - 5} more' if names[5:] else ''}", always=True)


@contextmanager
def _bytes(what: str, total: int) -> Iterator[OnBytes]:
    """Show the progress of a transfer. Yields a function to call with numbers of bytes."""
    done = 0
    with progress(what, total // MB, "MB") as work:

        def advance(count: int) -> None:
            nonlocal done
            done += count
            work.at(done // MB)

        yield advance


# ---- raw files


def _push_raw(plan: Plan, remote: Remote) -> None:
    plan.prepare()  # lists and samples the raw files
    plan.remember_raw_files()
    name, known = _raw_name(plan), _read_raw(plan, remote)
    files = {path: (int(size), str(sample)) for path, (size, _, sample) in plan.raw_files.items() if sample}
    if left := plan.raw_files.keys() - files.keys():
        warn(f"{len(left)} unreadable files in {plan.raw_root} are not copied, such as {min(left)}")
    if odd := [path for path in files if not plain(path)]:
        raise UserError(f"{plan.raw_root}/{min(odd)}: rename this file, the store cannot hold its name")
    hashes = {path: known[path][2] for path, found in files.items() if known.get(path, ())[:2] == found}
    sizes = remote.sizes(set(hashes.values()))
    todo = iter([path for path, (size, _) in files.items() if path not in hashes or sizes.get(hashes[path]) != size])
    with _bytes("push", sum(size for size, _ in files.values())) as advance:
        advance(sum(files[path][0] for path, sha256 in hashes.items() if sizes.get(sha256) == files[path][0]))
        while part := list(islice(todo, TOGETHER)):
            found = dict(in_parallel(lambda path: sha256_file(plan.raw_root / path), part))
            remote.push_files({plan.raw_root / path: sha256 for path, sha256 in found.items()}, advance)
            hashes |= found
    table = {path: [*found, hashes[path]] for path, found in files.items()}
    remote.write_latest(name, json.dumps(table).encode())
    say(f"push: {len(table):,} raw files are in {remote.url}", always=True)


def fetch_raw(plan: Plan, paths: Collection[str] | None = None) -> None:
    """Write raw files to this machine that it does not have: those of the demo, or of the store.

    paths: only these and all tables. Raises UserError if one of them is neither here nor in the store.
    """
    if plan.remote is None:
        return
    if plan.recipe.demo:
        demo.run(plan)
        return
    table, root = _read_raw(plan, plan.remote), plan.raw_root
    lost = [path for path in paths or () if path not in table and not (root / path).is_file()]
    if lost:
        raise UserError(f"{root / lost[0]} is not in {plan.remote.url}. Run `ich push --raw` where it is")
    wanted = [path for path in table if paths is None or path in paths or path.endswith(raw_files.TABLES)]
    here = [path for path in wanted if (root / path).is_file()]
    read = dict(raw_files.samples(root, [path for path in here if path.endswith(raw_files.TABLES)]))
    for path in here:
        if _size(root / path) != table[path][0] or read.get(path, table[path][1]) != table[path][1]:
            raise UserError(
                f"{root / path} differs from {plan.remote.url}. Keep it by `ich push --raw`, or replace it by"
                " `ich pull --raw`"
            )
    _pull_raw(plan, plan.remote, {path: table[path] for path in set(wanted) - set(here)})


def _pull_raw(plan: Plan, remote: Remote, table: RawTable) -> None:
    todo = iter(sorted(table))
    with _bytes("pull", sum(size for size, *_ in table.values())) as advance:
        while part := list(islice(todo, TOGETHER)):
            remote.pull({plan.raw_root / path: table[path][2] for path in part}, advance)


def _size(path: Path) -> int:
    return path.stat().st_size


def _raw_name(plan: Plan) -> str:
    return plan.relative(plan.workspace.raw_files(plan.recipe.competition.root))


def _read_raw(plan: Plan, remote: Remote) -> RawTable:
    """Return the raw files in the store."""
    name = _raw_name(plan)
    with parsing(f"{remote.url}/latest/{name}", "run `ich push --raw` again"):
        table = exchange.latest_table(remote, name)
        found = {path: (int(size), str(sample), str(sha256)) for path, (size, sample, sha256) in table.items()}
        if not plain_files({path: sha256 for path, (*_, sha256) in found.items()}):
            raise ValueError
    return found
