"""`ich score`: every member's figures with intervals, out of fold and, where a solution is at hand, on the test set."""

import csv
import io
import shutil
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from ich.console import say, table
from ich.pipeline.plan import Made, Plan
from ich.recipe import BETAS
from ich.stages.artefacts import as_written, logits_of
from ich.store.atomic import read_json, write_json, write_text

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

    from ich.ensemble.intervals import Bootstrap
    from ich.ensemble.scoring import Figure
    from ich.stages.inputs import Slices

RESAMPLES = 1000  # of the bootstrap over patients
TABLES = ("scores.csv", "scores_by_class.csv", "confusion.csv", "reliability.csv")


def run(plan: Plan, *, force: bool = False) -> None:
    from ich.report import scores

    plan.make(plan.score, lambda _: _scores(plan), force=force)
    path = plan.workspace.submissions / "scores.json"
    found = read_json(path)
    width = shutil.get_terminal_size((120, 24)).columns  # a log file has room for the widest table
    for title, columns, rows in scores.tables(found, width):
        table(columns, rows, title, asked=True)
    say("", asked=True)
    for line in (*scores.sentences(found), *(f"warning: {warning}" for warning in found["warnings"])):
        say(textwrap.fill(line, width, break_long_words=False, break_on_hyphens=False), asked=True)
    say(f"\nscore: {path}, and as tables {', '.join(TABLES)}", asked=True)


# ---- the rows, and what each member makes of them


@dataclass(frozen=True)
class _Rows:
    """Rows that members are judged on: labels [n, c], each row's patient [n], and draws of these patients."""

    ids: "pd.Index"
    labels: "np.ndarray"
    patients: "np.ndarray"
    bootstrap: "Bootstrap"


@dataclass(frozen=True)
class _Judged:
    """A member's figures by rows; thresholds tuned on all out-of-fold rows, and what figures on own rows would be."""

    figures: "dict[str, dict[str, Figure]]"
    thresholds: dict[str, dict[str, float]]
    own: dict[str, float]
    confusion: list[dict[str, Any]]


def _row_sets(plan: Plan, slices: "Slices") -> dict[str, _Rows]:
    """oof, and test where the solution knows slices of the test set."""
    import pandas as pd

    from ich.data.competitions import ADAPTERS
    from ich.ensemble.intervals import Bootstrap
    from ich.stages.inputs import layout_errors

    tables = {"oof": slices.table[slices.labelled]}
    with layout_errors():
        solution = ADAPTERS[plan.recipe.competition.format].solution(plan.raw_root)
    known = None if solution is None else _of_test_slices(solution, slices)
    if known is not None:
        tables["test"] = known
    return {
        where: _Rows(
            pd.Index(rows["image_id"]),
            rows[slices.classes].to_numpy("float64"),
            rows["patient_id"].to_numpy(),
            Bootstrap(rows["patient_id"].to_numpy(), resamples=RESAMPLES),
        )
        for where, rows in tables.items()
    }


def _of_test_slices(solution: "pd.DataFrame", slices: "Slices") -> "pd.DataFrame | None":
    """The solution (by image_id, or by study_id) for the test slices at hand; None where it knows none of them."""
    key = "image_id" if "image_id" in solution else "study_id"
    test = slices.table.iloc[slices.test_rows][list(dict.fromkeys(["image_id", "patient_id", key]))]
    known = test.merge(solution, on=key, validate="many_to_one")
    return known if len(known) else None


def _probability(plan: Plan, slices: "Slices", member: str, where: str, on: _Rows) -> "np.ndarray":
    from ich.ensemble.members import sigmoid

    return sigmoid(logits_of(plan.workspace.member(member) / f"{where}.parquet", on.ids, slices.classes))


def _judged(plan: Plan, slices: "Slices", member: str, sets: Mapping[str, _Rows]) -> _Judged:
    """Out of fold the thresholds of the other folds decide, on the test set those of all out-of-fold rows."""
    from ich.ensemble import thresholds
    from ich.ensemble.scoring import Decisions, figures

    folds = slices.table["fold"].to_numpy()[slices.labelled]
    settings = plan.recipe.thresholds
    betas = BETAS | {settings.metric: settings.beta}
    judged = _Judged({}, {}, _own_rows(plan, member), [])
    for where, on in sets.items():
        probability = _probability(plan, slices, member, where, on)
        decisions: dict[str, Decisions] = {}
        for metric, beta in betas.items():
            if where == "oof":
                goal = thresholds.Goal(beta, "macro", shrink=settings.shrink)
                # without trials the exact optimum: the same for every member, and no search to wait for
                tuned = thresholds.tune(on.labels, probability, slices.classes, goal, trials=0, seed=0, fold=folds)
                judged.thresholds[metric], judged.own[metric] = tuned.thresholds, tuned.score
                decided = cast("np.ndarray", tuned.decided)  # as there are folds
            else:
                cuts = [judged.thresholds[metric][name] for name in slices.classes]
                decided = thresholds.apply(probability, cuts)
            decisions[metric] = Decisions(beta, decided)
            decisions[f"{metric}_half"] = Decisions(beta, probability >= 0.5)
        for name, positive in {"0.5": probability >= 0.5, **{m: decisions[m].positive for m in betas}}.items():
            said = {"member": member, "rows": where, "thresholds": name}
            judged.confusion.extend(said | row for row in _confusion(on.labels, positive, slices.classes))
        judged.figures[where] = figures(on.bootstrap, on.labels, probability, decisions, slices.class_weights)
    return judged


def _own_rows(plan: Plan, member: str) -> dict[str, float]:
    """Mean over folds of the figures on the rows that the fold was tuned on; none for networks."""
    records = [plan.record_of(plan.fold(member, k).record) or {} for k in plan.fold_numbers]
    found = {}
    for figure, key in (("log_loss", "weighted_log_loss"), ("auc", "macro_auc")):
        values = [record.get("own_rows", {}).get(key) for record in records]
        if None not in values:
            found[figure] = sum(values) / len(values)
    return found


def _one_fold(
    plan: Plan, slices: "Slices", sets: Mapping[str, _Rows], thresholds_of: Mapping[str, Mapping[str, float]]
) -> dict[str, float | None]:
    """The blend's figures on the test set where one fold's models predict it alone, mean over folds.

    Out of fold a slice is judged by one fold's models too; the test set has the mean of all folds', which is better.
    """
    from ich.ensemble import metrics, thresholds
    from ich.ensemble.members import sigmoid
    from ich.ensemble.scoring import rounded

    if "test" not in sets:
        return {}
    on, settings = sets["test"], plan.recipe.thresholds
    cuts = [thresholds_of[settings.metric][name] for name in slices.classes]
    found: dict[str, list[float]] = {"log_loss": [], "auc": [], settings.metric: []}
    for k in plan.fold_numbers:
        p = sigmoid(logits_of(plan.workspace.fold("blend", k) / "test.parquet", on.ids, slices.classes))
        found["log_loss"].append(metrics.weighted_log_loss(on.labels, p, slices.class_weights))
        found["auc"].append(metrics.macro(metrics.class_auc(on.labels, p)))
        found[settings.metric].append(metrics.f_beta(on.labels, thresholds.apply(p, cuts), settings.beta, "macro"))
    return {name: rounded(sum(values) / len(values)) for name, values in found.items()}


def _submission(plan: Plan, slices: "Slices", sets: Mapping[str, _Rows]) -> dict[str, Any]:
    """What is submitted, judged as the recipe's thresholds say: its goal's F and the log loss on the test set."""
    from ich.ensemble import metrics, thresholds
    from ich.ensemble.scoring import rounded
    from ich.stages.inputs import submitted

    if "test" not in sets:
        return {}
    on, tuned = sets["test"], read_json(plan.workspace.thresholds)
    logits = logits_of(plan.workspace.member("blend") / "test.parquet", on.ids, slices.classes)
    with as_written(plan.workspace.thresholds):
        p, cuts = submitted(tuned, logits, slices.classes, slices.class_weights)
        goal = thresholds.Goal(tuned["beta"], tuned["average"], tuned["zero_division"])
    positive = thresholds.apply(p, cuts)
    value = metrics.f_beta(on.labels, positive, goal.beta, goal.average, goal.zero_division)
    low, high = thresholds.f_interval(on.labels, positive, goal, on.bootstrap)
    return {
        "average": goal.average,
        "f": {"value": rounded(value), "low": rounded(low), "high": rounded(high)},
        "log_loss": rounded(metrics.weighted_log_loss(on.labels, p, slices.class_weights)),
    }


def _confusion(truth: "np.ndarray", positive: "np.ndarray", classes: list[str]) -> list[dict[str, Any]]:
    from ich.ensemble import metrics

    counts = metrics.confusion(truth, positive)
    return [
        {"class": name, **{key: column[c].item() for key, column in counts.items()}} for c, name in enumerate(classes)
    ]


# ---- files


def _scores(plan: Plan) -> Made:
    """scores.json, and as tables what it says."""
    from ich.ensemble import scoring
    from ich.report import scores as report
    from ich.stages.inputs import Slices

    slices = Slices(plan)
    sets = _row_sets(plan, slices)
    judged = {member: _judged(plan, slices, member, sets) for member in plan.members}
    curves, errors = _calibration(plan, slices, sets)
    found = {
        "recipe": plan.recipe.name,
        "metric": plan.recipe.thresholds.metric,
        "level": scoring.LEVEL,
        "resamples": RESAMPLES,
        "class_weights": dict(zip(slices.classes, slices.class_weights, strict=True)),
        "rows": {where: _rows_said(on, slices.classes) for where, on in sets.items()},
        "members": {member: _member_said(plan, judged, member, slices.classes) for member in plan.members},
        "one_fold": _one_fold(plan, slices, sets, judged["blend"].thresholds),
        "submission": _submission(plan, slices, sets),
        "calibration_error": errors,
        "warnings": [*_warnings(plan), *_missing(sets, slices.classes)],
    }
    folder = plan.workspace.submissions
    write_json(folder / "scores.json", found)
    tables = {
        "scores.csv": list(report.lines(found)),
        "scores_by_class.csv": list(report.lines_by_class(found)),
        "confusion.csv": [line for member in judged.values() for line in member.confusion],
        "reliability.csv": curves,
    }
    for name, lines in tables.items():
        text = io.StringIO()
        writer = csv.DictWriter(text, fieldnames=list(lines[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows({k: f"{v:.4f}" if isinstance(v, float) else v for k, v in line.items()} for line in lines)
        write_text(folder / name, text.getvalue())
    return {name: folder / name for name in ("scores.json", *tables)}, {}


def _rows_said(on: _Rows, classes: list[str]) -> dict[str, Any]:
    import numpy as np

    return {
        "slices": len(on.labels),
        "patients": len(set(on.patients)),
        "classes": {
            name: {
                "positives": int(column.sum()),
                "patients": len(set(on.patients[column > 0])),
                "prevalence": round(float(np.mean(column)), 6),
            }
            for name, column in zip(classes, on.labels.T, strict=True)
        },
    }


def _member_said(plan: Plan, judged: Mapping[str, _Judged], member: str, classes: list[str]) -> dict[str, Any]:
    """By rows: each figure of all classes, with what it differs from the blend's; and below `classes` of each class."""
    from ich.ensemble.scoring import rounded

    mine, said = judged[member], {}
    for where, figures in mine.figures.items():
        cells: dict[str, Any] = {name: figure.cell() for name, figure in figures.items()}
        for name, cell in cells.items():
            if where == "oof" and name in mine.own:
                cell["own"] = rounded(mine.own[name])
            if member != "blend":
                cell["minus_blend"] = figures[name].minus(judged["blend"].figures[where][name])
        cells["classes"] = {
            label: {
                **{name: figure.cell(c) for name, figure in figures.items()},
                "thresholds": {metric: rounded(cuts[label]) for metric, cuts in mine.thresholds.items()},
            }
            for c, label in enumerate(classes)
        }
        said[where] = cells
    return {"stage": plan.stage_of(member), **said}


# ---- calibration and warnings


def _calibration(
    plan: Plan, slices: "Slices", sets: Mapping[str, _Rows]
) -> tuple[list[dict[Any, Any]], dict[str, dict[str, float]]]:
    """The lines of reliability.csv, and by rows and class the expected calibration error; both of the blend."""
    import pandas as pd

    from ich.ensemble.reliability import expected_calibration_error, reliability
    from ich.ensemble.scoring import DIGITS, LEVEL

    curves: list[pd.DataFrame] = []
    errors: dict[str, dict[str, float]] = {}
    for where, on in sets.items():
        probability, errors[where] = _probability(plan, slices, "blend", where, on), {}
        for name, y, p in zip(slices.classes, on.labels.T, probability.T, strict=True):
            curve = reliability(y, p, patients=on.patients, level=LEVEL)
            curve.insert(0, "rows", where)
            curve.insert(1, "class", name)
            curves.append(curve)
            errors[where][name] = round(expected_calibration_error(y, p), DIGITS)
    return pd.concat(curves).to_dict("records"), errors


def _warnings(plan: Plan) -> Iterator[str]:
    """What the folds' records warn of, whose scores that touches beside their own, and what folds by slice do."""
    touched: list[str] = []
    for member in plan.recipe.networks:
        for k in plan.fold_numbers:
            for warning in (plan.record_of(plan.fold(member, k).record) or {}).get("warnings", []):
                yield f"{member}: {warning}"
                touched.append(member)
    readers: list[str] = []
    for member in plan.members:
        if member not in touched and not {*touched, *readers}.isdisjoint(plan.recipe.read_by(member)):
            readers.append(member)
    if readers:
        yield f"{', '.join(readers)}: what they read is optimistic, and so are their scores"
    if plan.recipe.folds.by == "slice":
        yield "folds.by is slice: slices of one patient stand in several folds, and the scores above know them"


def _missing(sets: Mapping[str, _Rows], classes: list[str]) -> Iterator[str]:
    """Which classes have one label only, and so no AUC and no average precision."""
    for where, on in sets.items():
        share = on.labels.mean(axis=0)
        names = [name for name, positive in zip(classes, share, strict=True) if positive in (0, 1)]
        if names:
            rows = {"oof": "the labelled slices", "test": "the hidden solution"}[where]
            yield f"{', '.join(names)}: one label only in {rows}, so macro AUC and average precision go without"
