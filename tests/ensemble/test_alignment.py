import numpy as np
import pytest
from scipy.linalg import orthogonal_procrustes

from ich.ensemble.alignment import into_space_of


def moved(reference, shared, embeddings, blocks=1):
    pairs = list(zip(np.array_split(reference, blocks), np.array_split(shared, blocks), strict=True))
    return into_space_of(lambda: pairs)(embeddings)


def test_a_quarter_turn_by_hand():
    reference = np.array([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]])
    shared = np.array([[0.0, 1.0], [-1.0, 0.0], [0.0, -1.0], [1.0, 0.0]])  # each turned by +90 degrees
    np.testing.assert_allclose(moved(reference, shared, np.array([[0.0, 2.0]])), [[2.0, 0.0]], atol=1e-6)


@pytest.mark.parametrize("blocks", [1, 7, 60])
def test_the_rotation_is_scipys_whatever_the_blocks(blocks):
    random = np.random.default_rng(0)
    reference, shared = (random.normal(size=(40, 4)).astype(np.float16) for _ in range(2))
    to, of = reference.mean(axis=0, dtype=np.float64), shared.mean(axis=0, dtype=np.float64)
    rotation, _ = orthogonal_procrustes(shared - of, reference - to)
    expected = ((shared - of) @ rotation + to).astype(np.float32)
    np.testing.assert_allclose(moved(reference, shared, shared, blocks), expected, atol=1e-6)
    if blocks == 1:
        np.testing.assert_array_equal(moved(reference, shared, shared), expected)
