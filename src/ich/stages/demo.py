"""`ich demo`: write the synthetic competition into the recipe's competition folder."""

import os

from ich.console import progress, say
from ich.errors import UserError
from ich.pipeline.plan import Made, Plan
from ich.store.atomic import atomic_folder


def run(plan: Plan, *, force: bool = False) -> None:
    demo = plan.recipe.demo
    if demo is None:
        say(f"demo: nothing to write, the competition in {plan.raw_root} is not a synthetic one")
        return
    root = plan.raw_root
    if root.exists() and any(root.iterdir()) and not (root / "run.json").is_file():
        raise UserError(f"{root} holds files that `ich demo` did not write; move them away first")

    def make(fingerprint: str) -> Made:
        from ich.phantom.competition import write_competition

        with (
            atomic_folder(root) as folder,
            progress("demo", demo.train_studies + demo.test_studies, "studies") as bar,
        ):
            done = 0

            def advance(so_far: int, _total: int) -> None:
                nonlocal done
                bar(so_far - done)
                done = so_far

            write_competition(
                folder,
                train_studies=demo.train_studies,
                test_studies=demo.test_studies,
                slices=demo.slices,
                size=demo.size,
                seed=demo.seed,
                jobs=plan.cores,
                on_progress=advance,
            )
            (folder / "run.json").write_text("{}\n")  # no record yet, but a sign that the folder is ours
        tables = {path.name: path for path in sorted(root.iterdir()) if path.is_file() and path.name != "run.json"}
        return tables, {"slices": sum(len(files) for _, _, files in os.walk(root)) - len(tables)}

    if plan.make(plan.demo, make, force=force):
        say(f"demo: wrote {root}")
    else:
        say("demo: done")
