"""`ich report`: one page to look at. The run's verdict, its figures, its mistakes, and a viewer of its studies."""

from ich.console import say
from ich.pipeline.plan import Made, Plan
from ich.store.atomic import write_text


def run(plan: Plan, *, force: bool = False) -> None:
    made = plan.make(plan.report, lambda _: _report(plan), force=force)
    path = plan.workspace.submissions / "report.html"
    say(f"report: {'wrote' if made else 'done'}, {path} ({path.stat().st_size / 1e6:.1f} MB)")


def _report(plan: Plan) -> Made:
    import torch

    from ich.report.page import Page, render
    from ich.stages.reporting import embeddings, members, mistakes, per_class, provenance, studies, verdict
    from ich.stages.reporting.evidence import Evidence

    torch.set_num_threads(plan.recipe.compute.threads)
    evidence = Evidence(plan)
    parts = (verdict, studies, per_class, members, embeddings, mistakes, provenance)
    page = Page(
        f"Intracranial hemorrhage: {plan.recipe.name}",
        "How good the ensemble is, where it is wrong, and what it was made of.",
        [part.section(evidence) for part in parts],
    )
    path = plan.workspace.submissions / "report.html"
    write_text(path, render(page))
    return {path.name: path}, {}
