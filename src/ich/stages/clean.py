"""`ich clean`: list the caches in input/cache that no recipe uses, and remove them with --yes."""

import re
import shutil
from collections import defaultdict
from pathlib import Path

from ich.console import say, table
from ich.errors import UserError
from ich.pipeline.state import Busy, Plan
from ich.recipe import load
from ich.store.locks import held, hold
from ich.store.paths import Workspace
from ich.store.records import Record, read_record

NAME = re.compile("[0-9a-f]{16}")  # of a cache folder


def run(root: Path, *, yes: bool) -> None:
    """List the caches below `root` and their recipes; with `yes`, remove those without a recipe."""
    place = Workspace(root, "").cache_root
    caches = sorted(
        path for path in place.glob("*") if NAME.fullmatch(path.name) and path.is_dir() and not path.is_symlink()
    )
    users = _pointers(place)
    if any(cache.name not in users for cache in caches):
        for key, names in _configured(root).items():
            users[key] |= names
    sizes = {cache: sum(path.lstat().st_size for path in cache.rglob("*")) for cache in caches}
    unused = [cache for cache in caches if cache.name not in users and not held(_record(cache).lock)]
    rows: list[list[str]] = []
    for cache in caches:
        by = ", ".join(sorted(users.get(cache.name, ()))) or "a process that is writing it"
        if cache in unused:
            by = "no recipe" if _record(cache).read() else "no recipe, unfinished"
        rows.append([cache.name, f"{sizes[cache] / 1e9:.3g} GB", by])
    table(["cache", "size", "used by"], rows, always=True)
    removed = [cache for cache in unused if yes and _remove(cache)]
    size = f"{sum(sizes[cache] for cache in (removed if yes else unused)) / 1e9:.3g} GB"
    if yes:
        say(f"\nclean: removed {len(removed)} of {len(caches)} caches, {size}", always=True)
    elif unused:
        share = f"{len(unused)} of {len(caches)} caches"
        say(f"\nclean: no recipe uses {share}, {size}. Remove them with `ich clean --yes`", always=True)
    else:
        say(f"\nclean: nothing to remove in {place}", always=True)


def _record(cache: Path) -> Record:
    return Record(cache / "run.json")


def _pointers(place: Path) -> dict[str, set[str]]:
    """Return the names of the recipes whose latest `ich prepare` made each cache."""
    users: dict[str, set[str]] = defaultdict(set)
    for path in (*place.glob("*.json"), *place.glob("*.preparing")):
        pointer = read_record(path)
        if pointer is None:
            raise UserError(
                f"{path} is damaged, so the cache of this recipe is unknown. Run `ich prepare` for it first"
            )
        users[str(pointer.get("key"))].add(path.stem)
    return users


def _configured(root: Path) -> dict[str, set[str]]:
    """Return the names of the recipes in configs/ whose next `ich prepare` would use each cache."""
    users: dict[str, set[str]] = defaultdict(set)
    for path in sorted((root / "configs").rglob("*.yaml")):
        try:
            plan = Plan(load(path), root)
            users[plan.prepare().folder.name].add(plan.recipe.name)
        except UserError:  # an invalid recipe, or one without raw files
            continue
    return users


def _remove(cache: Path) -> bool:
    """Remove a cache, the record first. Return False if a process has begun to write or use it."""

    def leave(who: str) -> None:
        raise Busy(who)

    try:
        with hold(_record(cache).lock, on_wait=leave):
            if cache.name in _pointers(cache.parent):
                return False
            _record(cache).path.unlink(missing_ok=True)
            shutil.rmtree(cache)
    except Busy as busy:
        say(f"{cache}: not removed, {busy} is writing it", always=True)
        return False
    return True
