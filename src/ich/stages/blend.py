"""`ich blend`: a weighted mean of the members' logits, as a member of its own: a fold's weights never saw that fold."""

from ich.console import say, table
from ich.stages.inputs import Slices
from ich.stages.member import assemble, figures, leave_predictions
from ich.stages.plan import Made, Plan, seed_of
from ich.workspace import write_json


def run(plan: Plan, *, force: bool = False) -> None:
    made = [plan.make(plan.fold("blend", k), lambda _, k=k: _fold(plan, k), force=force) for k in plan.fold_numbers]
    assemble(plan, "blend")
    records = [plan.fold("blend", k).record.read() or {} for k in plan.fold_numbers]
    say(f"blend: {'wrote' if any(made) else 'done'}, {len(plan.recipe.blend_members)} members")
    if any(made):
        rows = [[m, *(f"{record['weights'][m]:.3f}" for record in records)] for m in plan.recipe.blend_members]
        table(["member", *(f"fold {k} ({r['method']})" for k, r in enumerate(records))], rows)


def _fold(plan: Plan, fold: int) -> Made:
    """Choose weights on the other folds' out-of-fold rows, and blend this fold and the test set with them."""
    from ich.ensemble import blend

    settings, members, folder = (
        plan.recipe.blend,
        plan.recipe.blend_members,
        plan.workspace.fold("blend", fold),
    )
    slices = Slices(plan)
    logits = {member: slices.out_of_fold(member, fold) for member in members}
    rows = slices.train_rows(fold)
    folds = slices.table["fold"].to_numpy()[rows]
    if settings.weights == "optuna" and len(set(folds)) > 1:
        choice = blend.choose(
            {member: values[rows] for member, values in logits.items()},
            slices.labels[rows],
            folds,
            slices.class_weights,
            trials=settings.trials,
            seed=seed_of(settings.seed, "blend", fold),
        )
        weights, method = choice.weights, choice.method
        why = {"equal": choice.score_equal, "optuna_cross_fitted": choice.score_cross_fitted}
    else:  # with two folds nothing would be left to judge the weights on
        weights, method, why = {member: 1 / len(members) for member in members}, "equal", {}
    files = {}
    write_json(folder / "weights.json", weights)
    files["weights.json"] = folder / "weights.json"
    blended = blend.raise_any(blend.blend_logits(logits, weights, settings.mean), slices.classes)
    valid, test = slices.valid_rows(fold), slices.test_rows
    files |= leave_predictions(slices, folder, fold, "valid", valid, blended[valid])
    files |= leave_predictions(slices, folder, fold, "test", test, blended[test])
    metrics = figures(slices, valid, blended[valid])
    return files, {"weights": weights, "method": method, "log_loss": why, "metrics": metrics}
