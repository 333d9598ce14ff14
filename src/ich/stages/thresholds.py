"""`ich thresholds`: Optuna searches a threshold a class that maximises F1 or F2, for a blend or for any table."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ich.console import say, table
from ich.recipe import BETAS, Thresholds
from ich.stages.plan import Made, Plan
from ich.workspace import UserError, read_json, write_json

if TYPE_CHECKING:
    import numpy as np


def run(plan: Plan, *, force: bool = False) -> None:
    path = plan.workspace.thresholds

    def make(_fingerprint: str) -> Made:
        import pandas as pd

        from ich.ensemble.members import aligned, sigmoid
        from ich.stages.inputs import Slices

        slices = Slices(plan)
        rows = slices.labelled.nonzero()[0]
        oof = pd.read_parquet(plan.workspace.member("blend") / "oof.parquet")
        probability = sigmoid(aligned(oof, slices.ids(rows), slices.classes))
        folds = slices.table["fold"].to_numpy()[rows]
        found = tuned(slices.labels[rows], probability, slices.classes, plan.recipe.thresholds, folds)
        write_json(path, found)
        return {path.name: path}, {}

    made = plan.make(plan.thresholds, make, force=force)
    say(f"thresholds: {'wrote' if made else 'done'}, {path}")
    if made:
        show(read_json(path))


def tuned(
    labels: "np.ndarray",
    probability: "np.ndarray",
    classes: list[str],
    settings: Thresholds,
    folds: "np.ndarray | None",
) -> dict[str, Any]:
    """thresholds.json: what was maximised, the thresholds, the score on these rows and cross-fitted over `folds`."""
    from ich.ensemble import thresholds

    beta = BETAS[settings.metric]
    found = thresholds.tune(
        labels,
        probability,
        classes,
        beta=beta,
        average=settings.average,
        trials=settings.trials,
        seed=settings.seed,
        fold=folds,
    )
    return {
        "metric": settings.metric,
        "beta": beta,
        "average": settings.average,
        "thresholds": found.thresholds,
        "score": found.score,
        "score_cross_fitted": found.score_cross_fitted,
        "score_exact": found.exact,
        "trials": settings.trials,
        "rows": len(labels),
        "positives": {name: int(labels[:, c].sum()) for c, name in enumerate(classes)},
        "warnings": list(found.warnings),
    }


def run_on_table(source: Path, settings: Thresholds, out: Path | None) -> None:
    """Tune on a .parquet or .csv of columns <class> (0/1) and prob_<class>, with a column fold where there is one."""
    import pandas as pd

    try:
        rows = pd.read_csv(source) if source.suffix == ".csv" else pd.read_parquet(source)
    except (OSError, ValueError) as error:
        raise UserError(f"{source}: not a readable table ({' '.join(str(error).split())[:120]})") from None
    classes = [str(c).removeprefix("prob_") for c in rows.columns if str(c).startswith("prob_")]
    missing = [name for name in classes if name not in rows.columns]
    if not classes or missing:
        lacking = f"no column {missing[0]!r} beside 'prob_{missing[0]}'" if missing else "no column prob_<class>"
        raise UserError(f"{source}: {lacking}; a table needs <class> (0 or 1) and prob_<class> for each class")
    folds = rows["fold"].to_numpy() if "fold" in rows.columns and rows["fold"].nunique() > 1 else None
    try:
        labels = rows[classes].to_numpy("float64")
        probability = rows[[f"prob_{name}" for name in classes]].to_numpy("float64")
        found = tuned(labels, probability, classes, settings, folds)
    except ValueError as error:
        raise UserError(f"{source}: {error}") from None
    if out is not None:
        write_json(out, found)
        say(f"thresholds: wrote {out}")
        show(found)
    else:
        say(json.dumps(found, indent=2))


def show(found: dict[str, Any]) -> None:
    rows = [[name, f"{t:.4f}", str(found["positives"][name])] for name, t in found["thresholds"].items()]
    title = f"{found['average']} {found['metric'].upper()} {found['score']:.4f} tuned on its own rows"
    if found["score_cross_fitted"] is not None:
        title += f", {found['score_cross_fitted']:.4f} with thresholds from other folds"
    table(["class", "threshold", "positives"], rows, title)
    for warning in found["warnings"]:
        say(f"warning: {warning}")
