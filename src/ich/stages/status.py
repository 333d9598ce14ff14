"""`ich status`: the state of all artifacts of a recipe. `ich changes`: what other settings made. Its files."""

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence

from ich.console import duration, say, table, warn
from ich.pipeline.state import Plan
from ich.pipeline.tasks import MODEL_STAGES, Task
from ich.recipe import how_to_write, in_yaml


def run(plan: Plan, words: str) -> None:
    """Print the state of all artifacts and how to make those that are out of date.

    words: the recipe and the --set options, as typed.
    """
    tasks, rows, todo = list(plan.all()), list[list[str]](), list[Task]()
    counts: Counter[str] = Counter()
    for task in tasks:
        state = plan.standing(task)
        seconds = plan.record_of(task).get("seconds")
        rows.append([task.name, state.kind, "" if seconds is None else f"{seconds:.1f}", state.why])
        counts[state.kind] += 1
        todo += [] if state.done else [task]
    table(["artifact", "state", "seconds", "why"], rows, always=True)
    say("\n" + ", ".join(f"{count} {kind}" for kind, count in counts.items()), always=True)
    for line in _advice(plan, tasks, todo, words):
        say(line, always=True)


def _advice(plan: Plan, tasks: Sequence[Task], todo: Sequence[Task], words: str) -> Iterator[str]:
    """Yield what is out of date, the command that makes it, and the estimated time."""
    if not todo:
        yield "Nothing is out of date."
        return
    stages = Counter(task.stage for task in todo)
    yield f"Out of date: {', '.join(f'{stage} ({n})' if n > 1 else stage for stage, n in stages.items())}"
    every = len(stages) > 1 and plan.recipe.competition.trained_by is None
    if every:
        command = "bash run_all.sh" if (plan.root / "run_all.sh").is_file() else "ich run"
        yield f"To make it:  {command} {words}"
    else:
        yield f"To make it:  {' && '.join(f'ich {stage} {words}' for stage in stages)}"
    seconds, unknown = _estimate(plan, tasks, todo)
    if len(unknown) == len(stages):
        yield "Estimated time: unknown, none of these stages has run yet"
    else:
        more = f", without {', '.join(unknown)}, which have not run yet" if unknown else ""
        yield f"Estimated time: {duration(seconds)}, by recorded times{more}"


def _estimate(plan: Plan, tasks: Sequence[Task], todo: Sequence[Task]) -> tuple[float, list[str]]:
    """Return the seconds to make the tasks, with folds in parallel, and the stages without a recorded time.

    A task takes its recorded time, else the mean of similar `tasks`: other folds of the model, or models of the stage.
    """
    known: dict[tuple[str, ...], list[float]] = defaultdict(list)
    for task in (*tasks, plan.prepared):
        if (seconds := plan.record_of(task).get("seconds")) is not None:
            for key in _similar(task):
                known[key].append(seconds)
    total, unknown = 0.0, dict[str, None]()
    folds = Counter(task.stage for task in todo if task.fold is not None)
    for task in todo:
        times = next((known[key] for key in _similar(task) if key in known), None)
        if times is None:
            unknown[task.stage] = None
        else:
            parallel = 1 if task.fold is None else min(plan.processes, folds[task.stage])
            total += sum(times) / len(times) / parallel
    return total, list(unknown)


def _similar(task: Task) -> list[tuple[str, ...]]:
    """Return keys of a task, the most specific first. Folds, their in-sample predictions and tables are not similar."""
    part = "/" * task.name.count("/")
    return [(task.name,), (task.stage, task.model, part), (task.stage, part)]


def changes(plan: Plan, recipe: str) -> None:
    """Warn of folds and thresholds that other settings made, and say how to keep them.

    recipe: the file in which the old settings would keep them; empty if --set has changed them.
    """
    if plan.recipe.competition.trained_by is not None:
        return
    found: dict[tuple[str, str, str], list[Task]] = defaultdict(list)
    for task in (*(task for stage in MODEL_STAGES for task in plan.tasks_of(stage)), plan.thresholds):
        section = task.stage if task.model in ("", "blend") else f"{task.stage}.{task.model}"
        changed = [(key, in_yaml(was), in_yaml(now)) for key, was, now in plan.changed_settings(task)]
        if changed:
            said = ", ".join(f"{key} was {was}, is {now}" for key, was, now in changed)
            keeps = how_to_write([(f"{section}.{key}", was) for key, was, _ in changed])
            found[section, said, keeps].append(task)
    for (section, said, keeps), tasks in found.items():
        what = f"{len(tasks)} fold{'s' * (len(tasks) > 1)}" if tasks[0].fold is not None else tasks[0].name
        advice = f". To avoid this, {keeps} in {recipe}" if recipe else ""
        warn(f"{section}: {said}. {what} will be made again{advice}")


def results(plan: Plan, seconds: int | None) -> None:
    """Print the file to submit, the page to open and the time of `run_all.sh`."""
    record, folder = plan.record_of(plan.submit), plan.workspace.submissions
    submission, page = folder / "submission.csv", folder / "report.html"
    none = "nothing, there is no test set" if record and not record["files"] else "not written yet, run `ich submit`"
    say(f"\nSubmit: {submission if submission.name in record.get('files', {}) else none}", always=True)
    say(f"Open:   {page if page.is_file() else 'not written yet, run `ich report`'}", always=True)
    if seconds is not None:
        say(f"Time:   {duration(seconds)}", always=True)
