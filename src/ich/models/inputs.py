"""Predictions of its input models that a fold reads. Imports nothing heavy: `ich status` needs it."""


def input_splits(features: str, fold: int, n_folds: int) -> dict[str, list[tuple[int, str]]]:
    """Sources of the predictions of an input, as (fold of the input, its split), for each split of a fold.

    Validation and test rows are read from the input's network of this fold. Training rows are read from each row's own
    fold, whose network never saw it; with features "in_sample" from the network of this fold, which was trained on
    them. With "aligned", the test predictions of every fold are read as well, to align their embeddings.
    """
    splits = {"valid": [(fold, "valid")], "test": [(fold, "test")]}
    if features == "in_sample":
        return {**splits, "train": [(fold, "train")]}
    if features == "aligned":
        splits["align"] = [(k, "test") for k in range(n_folds)]
    return {**splits, "train": [(k, "valid") for k in range(n_folds) if k != fold]}
