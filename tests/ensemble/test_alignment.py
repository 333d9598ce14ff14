import numpy as np
import pytest
from scipy.stats import ortho_group

from ich.ensemble.alignment import into_space_of


@pytest.fixture
def random():
    return np.random.default_rng(0)


def test_a_turned_and_shifted_space_is_brought_back_exactly(random):
    reference = random.normal(size=(50, 8))
    turn, shift = ortho_group.rvs(8, random_state=1), random.normal(size=8)
    unseen = random.normal(size=(20, 8))
    moved = into_space_of(reference, reference @ turn + shift, unseen @ turn + shift)
    np.testing.assert_allclose(moved, unseen, atol=1e-5)


def test_a_quarter_turn_by_hand():
    reference = np.array([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]])
    shared = np.array([[0.0, 1.0], [-1.0, 0.0], [0.0, -1.0], [1.0, 0.0]])  # each turned by +90 degrees
    np.testing.assert_allclose(into_space_of(reference, shared, np.array([[0.0, 2.0]])), [[2.0, 0.0]], atol=1e-6)


def test_distances_between_embeddings_are_kept(random):
    reference, shared, unseen = random.normal(size=(30, 5)), random.normal(size=(30, 5)), random.normal(size=(10, 5))
    moved = into_space_of(reference, shared, unseen)
    before = np.linalg.norm(unseen[:, None] - unseen, axis=-1)
    np.testing.assert_allclose(np.linalg.norm(moved[:, None] - moved, axis=-1), before, atol=1e-5)


def test_noise_on_the_shared_rows_leaves_the_map_close(random):
    reference = random.normal(size=(500, 6))
    turn = ortho_group.rvs(6, random_state=2)
    moved = into_space_of(reference, (reference + 0.1 * random.normal(size=(500, 6))) @ turn, reference @ turn)
    assert np.abs(moved - reference).mean() < 0.03


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="do not fit"):
        into_space_of(np.zeros((3, 2)), np.zeros((4, 2)), np.zeros((1, 2)))
    with pytest.raises(ValueError, match="do not fit"):
        into_space_of(np.zeros((0, 2)), np.zeros((0, 2)), np.zeros((1, 2)))
