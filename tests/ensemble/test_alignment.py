import numpy as np
import pytest
from scipy.linalg import orthogonal_procrustes
from scipy.stats import ortho_group

from ich.ensemble.alignment import into_space_of


@pytest.fixture
def random():
    return np.random.default_rng(0)


def moved(reference, shared, embeddings, blocks=1):
    pairs = list(zip(np.array_split(reference, blocks), np.array_split(shared, blocks), strict=True))
    return into_space_of(lambda: pairs)(embeddings)


def test_a_turned_and_shifted_space_is_brought_back_exactly(random):
    reference = random.normal(size=(50, 8))
    turn, shift = ortho_group.rvs(8, random_state=1), random.normal(size=8)
    unseen = random.normal(size=(20, 8))
    found = moved(reference, reference @ turn + shift, unseen @ turn + shift)
    np.testing.assert_allclose(found, unseen, atol=1e-5)


def test_a_quarter_turn_by_hand():
    reference = np.array([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]])
    shared = np.array([[0.0, 1.0], [-1.0, 0.0], [0.0, -1.0], [1.0, 0.0]])  # each turned by +90 degrees
    np.testing.assert_allclose(moved(reference, shared, np.array([[0.0, 2.0]])), [[2.0, 0.0]], atol=1e-6)


def test_distances_between_embeddings_are_kept(random):
    reference, shared, unseen = random.normal(size=(30, 5)), random.normal(size=(30, 5)), random.normal(size=(10, 5))
    found = moved(reference, shared, unseen)
    before = np.linalg.norm(unseen[:, None] - unseen, axis=-1)
    np.testing.assert_allclose(np.linalg.norm(found[:, None] - found, axis=-1), before, atol=1e-5)


def test_noise_on_the_shared_rows_leaves_the_map_close(random):
    reference = random.normal(size=(500, 6))
    turn = ortho_group.rvs(6, random_state=2)
    found = moved(reference, (reference + 0.1 * random.normal(size=(500, 6))) @ turn, reference @ turn)
    assert np.abs(found - reference).mean() < 0.03


@pytest.mark.parametrize("blocks", [1, 7, 60])
def test_it_is_scipy_s_rotation_however_the_shared_rows_are_cut(random, blocks):
    reference, shared = (random.normal(size=(40, 4)).astype(np.float16) for _ in range(2))
    to, of = reference.mean(axis=0, dtype=np.float64), shared.mean(axis=0, dtype=np.float64)
    rotation, _ = orthogonal_procrustes(shared - of, reference - to)
    expected = ((shared - of) @ rotation + to).astype(np.float32)
    np.testing.assert_allclose(moved(reference, shared, shared, blocks), expected, atol=1e-6)
    if blocks == 1:
        np.testing.assert_array_equal(moved(reference, shared, shared), expected)


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="do not fit"):
        moved(np.zeros((3, 2)), np.zeros((4, 2)), np.zeros((1, 2)))
    with pytest.raises(ValueError, match="do not fit"):
        moved(np.zeros((0, 2)), np.zeros((0, 2)), np.zeros((1, 2)))
