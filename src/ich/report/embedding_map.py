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
    nothing, lie at 0. (van der Maaten and Hinton, 2008; docs/background/seeds.md, HOHOHO)
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


def mixed(
    points: NDArray[np.floating], parts: NDArray[np.str_], studies: NDArray[np.str_], nearest: int = 10
) -> tuple[float, float]:
    """How often the nearest points [n, 2] of other studies are of the same part of the data, and how often by chance.

    A study's slices look alike and all belong to one part, so they do not count as each other's neighbours. Chance is
    the mean share of a point's own part among the points of other studies. NaN where there are none.
    """
    same, own = studies[:, None] == studies, parts[:, None] == parts
    others = (~same).sum(axis=1)
    k = min(nearest, int(others.min()))
    if k == 0:
        return np.nan, np.nan
    x = points.astype(np.float64)
    distance = ((x[:, None] - x) ** 2).sum(axis=-1)
    distance[same] = np.inf
    near = np.argsort(distance, axis=1, kind="stable")[:, :k]
    found = np.take_along_axis(own, near, axis=1).mean()
    return float(found), float(((own & ~same).sum(axis=1) / others).mean())
