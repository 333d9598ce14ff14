"""`ich demo`: write the synthetic competition into the recipe's competition folder."""

import os

from ich.console import progress, say
from ich.errors import UserError
from ich.phantom.competition import write_competition
from ich.pipeline.state import Made, Plan
from ich.recipe.types import Demo
from ich.store.atomic import atomic_folder


def run(plan: Plan, *, force: bool = False) -> None:
    demo, root = plan.recipe.demo, plan.raw_root
    if demo is None:
        say(f"demo: the recipe has no section demo, nothing to write in {root}")
        return
    if root.exists() and any(root.iterdir()) and not (root / "run.json").is_file():
        raise UserError(f"{root} has files that `ich demo` did not write. Move them or change competition.root")
    made = plan.make(plan.demo, lambda _: _write(plan, demo), force=force)
    say(f"demo: wrote {root}" if made else f"demo: up to date, {root}")


def _write(plan: Plan, demo: Demo) -> Made:
    root = plan.raw_root
    with (
        atomic_folder(root) as folder,
        progress("demo", demo.train_studies + demo.test_studies, "studies") as advance,
    ):
        write_competition(folder, **demo.model_dump(), jobs=plan.cores, on_progress=advance)
        (folder / "run.json").write_text("{}\n")  # not a record, but marks the folder as written by `ich demo`
    tables = {path.name: path for path in sorted(root.iterdir()) if path.is_file() and path.name != "run.json"}
    return tables, {"slices": sum(len(files) for _, _, files in os.walk(root)) - len(tables)}
