"""A two-dimensional t-SNE map of embeddings."""

import numpy as np
from numpy.typing import NDArray
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

FEWEST = 4  # embeddings of a map
COMPONENTS = 50  # principal components that t-SNE reads
PERPLEXITY = 30.0


def coordinates(embeddings: NDArray[np.floating], seed: int) -> NDArray[np.float32]:
    """t-SNE of standardised embeddings [n, d], n >= FEWEST; float32 [n, 2], independent of the number of threads.

    Embeddings that are all equal, as those of a dead network, are mapped to 0.
    (van der Maaten and Hinton, 2008; docs/background/seeds.md, HOHOHO)
    """
    if (embeddings == embeddings[0]).all():  # t-SNE divides by their spread
        return np.zeros((len(embeddings), 2), dtype=np.float32)
    # t-SNE amplifies the last digit, which depends on the order in which threads add
    with threadpool_limits(1):
        x = StandardScaler().fit_transform(embeddings.astype(np.float64))
        x = PCA(min(COMPONENTS, *x.shape), svd_solver="full").fit_transform(x)
        tsne = TSNE(init="pca" if x.shape[1] > 1 else "random", random_state=seed, n_jobs=1)
        tsne.set_params(perplexity=min(PERPLEXITY, (len(x) - 1) / 3))
        return np.asarray(tsne.fit_transform(x), dtype=np.float32)


def sample_rows(n: int, most: int, seed: int) -> NDArray[np.int64]:
    """Ascending row numbers below n: all of them, or a random sample of `most`."""
    return np.sort(np.random.default_rng(seed).choice(n, min(n, most), replace=False)).astype(np.int64)


def mixed(
    points: NDArray[np.floating], parts: NDArray[np.str_], studies: NDArray[np.str_], nearest: int = 10
) -> tuple[float, float]:
    """Share of the nearest points [n, 2] that are in the same part of the data, and its expectation by chance.

    Points of the same study are ignored: they look alike and belong to one part. NaN if there is only one study.
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
