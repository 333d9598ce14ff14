"""The fold, and the files of a bundle, that a network starts from."""

from collections.abc import Sequence
from pathlib import Path

from ich.errors import UserError
from ich.pipeline.tasks import SPEC, WEIGHTS
from ich.recipe import Start


def fold_number(where: str, start: Start, fold: int, folds: Sequence[int]) -> int:
    """Return the one of `folds` that a fold starts from. where: the setting, for errors."""
    if start.fold is None:
        return folds[fold % len(folds)]
    if start.fold not in folds:
        raise UserError(f"{where}.fold: no such fold {start.fold}. Choose from {', '.join(map(str, folds))}")
    return start.fold


def files_of_bundle(where: str, start: Start, root: Path, fold: int) -> list[Path]:
    """Return the weights of a fold in a bundle, and the files that describe them."""
    bundle = root / str(start.bundle)
    parts = [path.parent for path in bundle.glob(f"*/fold*/{WEIGHTS}")]
    numbers = [part.name.removeprefix("fold") for part in parts if part.parent.name == start.model]
    folds = sorted(int(number) for number in numbers if number.isdecimal())
    if not folds:
        known = ", ".join(sorted({part.parent.name for part in parts})) or "none"
        raise UserError(f"{where}: {start.bundle} has no network {start.model!r}. Choose from {known}")
    folder = bundle / str(start.model) / f"fold{fold_number(where, start, fold, folds)}"
    return [folder / WEIGHTS, folder / SPEC, bundle / "bundle.json"]
