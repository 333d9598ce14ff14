"""Bring the embeddings of different folds' models into one space.

Two networks trained on different folds may see the same things along other axes, so a model that reads embeddings of
several folds meets several languages. Where both have looked at the same slices (the test set, without its labels),
the best rotation from one to the other is known in closed form.
"""

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import orthogonal_procrustes


def into_space_of(
    reference: NDArray[np.floating], shared: NDArray[np.floating], embeddings: NDArray[np.floating]
) -> NDArray[np.float32]:
    """Move `embeddings` [n, d] of one model into the space of another, float32 [n, d].

    reference, shared [m, d]: what the other model and this one say of the same m rows, in the same order. The map is a
    shift between the means and the rotation or reflection that minimises the squared distance over the shared rows
    (Schoenemann, "A generalized solution of the orthogonal Procrustes problem", Psychometrika 31, 1966); with fewer
    shared rows than dimensions, what they do not determine stays arbitrary but orthogonal.
    """
    if reference.shape != shared.shape or embeddings.shape[1:] != shared.shape[1:] or len(shared) == 0:
        raise ValueError(
            f"reference {reference.shape}, shared {shared.shape} and embeddings {embeddings.shape} do not fit: "
            "the first two have one shape with a row or more, the third the same width"
        )
    to, of = reference.mean(axis=0, dtype=np.float64), shared.mean(axis=0, dtype=np.float64)
    rotation, _ = orthogonal_procrustes(shared - of, reference - to)
    return ((embeddings - of) @ rotation + to).astype(np.float32)
