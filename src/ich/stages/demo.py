"""`ich demo`: write the synthetic competition into the recipe's competition folder."""

from pathlib import Path

from ich.console import progress, say
from ich.data.files import escaped
from ich.errors import UserError
from ich.phantom.competition import write_competition
from ich.pipeline.state import Made, Plan
from ich.recipe.types import Demo
from ich.store.atomic import atomic_folder
from ich.store.raw import listing
from ich.store.records import read_record, write_record


def run(plan: Plan, *, force: bool = False) -> None:
    demo, root = plan.recipe.demo, plan.raw_root
    if demo is None:
        say(f"demo: the recipe has no section demo, nothing to write in {root}")
        return
    if root.exists() and (force or not plan.finished(plan.demo)):
        _refuse_others(root)
    made = plan.make(plan.demo, lambda _: _write(plan, demo), force=force)
    say(f"demo: wrote {root}" if made else f"demo: up to date, {root}")


def _refuse_others(root: Path) -> None:
    """Raise UserError if the folder has files that the record of `ich demo` does not list: it will be replaced."""
    written = (read_record(root / "run.json") or {}).get("written")
    own = {str(name) for name in written} if isinstance(written, list) else set()
    if others := [escaped(name) for name in listing(root) if name not in own]:
        names = ", ".join(others[:3]) + (f" and {len(others) - 3} more" if others[3:] else "")
        raise UserError(
            f"{root} has files that `ich demo` did not write: {names}. Move or delete them, or change competition.root"
        )


def _write(plan: Plan, demo: Demo) -> Made:
    root = plan.raw_root
    with (
        atomic_folder(root) as folder,
        progress("demo", demo.train_studies + demo.test_studies, "studies") as advance,
    ):
        write_competition(folder, **demo.model_dump(), jobs=plan.cores, on_progress=advance)
        names = list(listing(folder))
        written = {"written": [*names, "run.json"]}
        write_record(folder / "run.json", written)  # until the whole record: a kill may come first
        if root.exists():  # others may have arrived meanwhile
            _refuse_others(root)
    tables = {name: root / name for name in names if "/" not in name}
    return tables, {"slices": len(names) - len(tables), **written}
