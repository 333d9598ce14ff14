"""`ich stack`: LightGBM over the members' logits of a slice, its neighbours and its study; a model a class."""

from ich.console import progress
from ich.pipeline.plan import Made, Plan, seed_of
from ich.stages.inputs import Slices, stacker_input
from ich.stages.member import figures, leave_bytes, leave_predictions, run_folds


def run(plan: Plan, *, force: bool = False) -> None:
    run_folds(plan, list(plan.recipe.stack), fit_fold, model=None, fold=None, force=force)


def fit_fold(plan: Plan, member: str, fold: int, _fingerprint: str) -> Made:
    import numpy as np

    from ich.ensemble import stacker

    settings, folder = plan.recipe.stack[member], plan.workspace.fold(member, fold)
    slices, members = Slices(plan), plan.recipe.stack_members(settings)
    train, valid, test = slices.train_rows(fold), slices.valid_rows(fold), slices.test_rows
    used = np.sort(np.concatenate([train, valid, test]))
    logits = [slices.out_of_fold(name, fold)[used] for name in members]
    x, names, base = stacker_input(member, settings, slices.table.iloc[used], logits)
    at = {split: np.searchsorted(used, rows) for split, rows in (("train", train), ("valid", valid), ("test", test))}

    parts = {split: x[places] for split, places in at.items()}
    del x  # which is as large as its parts
    found = {split: np.empty((len(rows), len(slices.classes))) for split, rows in at.items()}
    texts: list[str] = []
    fitted = stacker.fit(
        parts["train"],
        slices.labels[train],
        base[at["train"]],
        seeds=[seed_of(settings.seed, member, fold, name) for name in slices.classes],
        threads=plan.recipe.compute.threads,
        rounds=settings.rounds,
        learning_rate=settings.learning_rate,
        num_leaves=settings.leaves,
        min_data_in_leaf=settings.min_leaf,
    )
    with progress(f"{member} fold {fold}", len(slices.classes), "classes", inner=True) as advance:
        for c, text in enumerate(fitted):
            texts.append(text)
            for split, places in at.items():
                found[split][:, c] = stacker.predict(text, parts[split], base[places, c])
            advance(1)

    files = {}
    for name, text in zip(slices.classes, texts, strict=True):
        files |= leave_bytes(folder / f"model_{name}.txt", text.encode())
    for split, rows in (("valid", valid), ("test", test)):
        files |= leave_predictions(slices, folder, fold, split, rows, found[split])
    return files, {
        "on": members,
        "features": names,
        "classes": slices.classes,
        "metrics": figures(slices, valid, found["valid"]),
        "own_rows": figures(slices, train, found["train"]),
    }
