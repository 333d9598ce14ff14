"""A map of a network's embeddings: two coordinates a slice, in which slices that the network finds alike lie close."""

import numpy as np
from numpy.typing import NDArray
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

FEWEST = 4  # slices that have neighbourhoods
COMPONENTS = 50  # t-SNE's distances are taken in so many principal components
PERPLEXITY = 30.0


def coordinates(embeddings: NDArray[np.floating], seed: int) -> NDArray[np.float32]:
    """t-SNE of embeddings [n, d], float32 [n, 2], the same for the same seed, however many cores there are.

    Each dimension is standardised first. Embeddings that are all the same, those of a network that has learned
    nothing, lie at 0. (van der Maaten and Hinton, 2008; docs/seeds.md, HOHOHO)
    Raises ValueError for fewer than FEWEST embeddings.
    """
    if embeddings.ndim != 2 or len(embeddings) < FEWEST:
        raise ValueError(f"a map needs embeddings [n, d] of at least {FEWEST} slices, got {list(embeddings.shape)}")
    if (embeddings == embeddings[0]).all():  # t-SNE would divide by their spread, and crash
        return np.zeros((len(embeddings), 2), dtype=np.float32)
    # sums over threads may come out in another order elsewhere, and t-SNE enlarges the smallest difference
    with threadpool_limits(1):
        x = StandardScaler().fit_transform(embeddings.astype(np.float64))
        x = PCA(min(COMPONENTS, *x.shape), svd_solver="full").fit_transform(x)
        tsne = TSNE(init="pca" if x.shape[1] > 1 else "random", random_state=seed, n_jobs=1)
        tsne.set_params(perplexity=min(PERPLEXITY, (len(x) - 1) / 3))
        return np.asarray(tsne.fit_transform(x), dtype=np.float32)


def sample_rows(n: int, most: int, seed: int) -> NDArray[np.int64]:
    """Row numbers 0..n-1, ascending; `most` of them drawn by the seed where there are more."""
    if n <= most:
        return np.arange(n, dtype=np.int64)
    return np.sort(np.random.default_rng(seed).choice(n, most, replace=False)).astype(np.int64)
