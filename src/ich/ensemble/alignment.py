"""Align the embeddings of networks trained on different folds.

Such networks may represent the same features along different axes. The best rotation from one embedding to the other
has a closed form, given slices that both have embedded (the test set, without its labels).
"""

from collections.abc import Callable, Iterable

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import svd

Embeddings = NDArray[np.floating]


def into_space_of(shared: Callable[[], Iterable[tuple[Embeddings, Embeddings]]]) -> Callable[[Embeddings], Embeddings]:
    """A function that maps embeddings [n, d] of one network into the space of another, as float32 [n, d].

    shared(): blocks of rows that both have embedded, the other network's and this one's embeddings, each [b, d]; it is
    called twice, so that a block and [d, d] fit into memory. The map is a shift between the means and the rotation or
    reflection that minimises the squared distance over these rows (Schoenemann, "A generalized solution of the
    orthogonal Procrustes problem", Psychometrika 31, 1966). With fewer rows than dimensions the undetermined part is
    arbitrary but orthogonal.
    """
    rows, sums = 0, np.zeros((2, 1))
    for pair in shared():
        rows += len(pair[0])
        sums = sums + [block.sum(axis=0, dtype=np.float64) for block in pair]
    to, of = sums / rows
    together = sum((other - to).T @ (one - of) for other, one in shared())
    left, _, right = svd(np.asarray(together).T)
    rotation = left @ right
    return lambda embeddings: ((embeddings - of) @ rotation + to).astype(np.float32)
