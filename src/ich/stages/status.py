"""`ich status`: the state of all artifacts of a recipe."""

from collections import Counter

from ich.console import say, table
from ich.pipeline.state import Plan


def run(plan: Plan) -> None:
    rows: list[list[str]] = []
    counts: Counter[str] = Counter()
    for task in plan.all():
        state = plan.standing(task)
        seconds = plan.record_of(task).get("seconds")
        rows.append([task.name, state.kind, "" if seconds is None else f"{seconds:.1f}", state.why])
        counts[state.kind] += 1
    table(["artifact", "state", "seconds", "why"], rows, always=True)
    say("\n" + ", ".join(f"{count} {kind}" for kind, count in counts.items()), always=True)
