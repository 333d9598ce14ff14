import numpy as np
import pytest
from threadpoolctl import threadpool_limits

from ich.report.embedding_map import coordinates, mixed, sample_rows


def three_groups(each: int = 40, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    group = np.repeat(np.arange(3), each)
    return (rng.normal(size=(3, 64))[group] * 3 + rng.normal(size=(3 * each, 64))).astype(np.float16), group


def test_neighbours_on_the_map_are_neighbours_in_the_embedding():
    embeddings, group = three_groups()
    points = coordinates(embeddings, seed=0)
    assert points.shape == (120, 2)
    assert points.dtype == np.float32
    distance = ((points[:, None] - points) ** 2).sum(-1) + 1e9 * np.eye(120)
    assert (group[distance.argmin(1)] == group).all()


def test_the_map_does_not_depend_on_the_number_of_threads():
    embeddings, _ = three_groups(20)
    with threadpool_limits(2):
        two = coordinates(embeddings, seed=1)
    np.testing.assert_array_equal(coordinates(embeddings, seed=1), two)


@pytest.mark.parametrize("shape", [(4, 64), (5, 1), (9, 3)])
def test_few_slices_narrow_embeddings_and_dead_units_have_finite_coordinates(shape):
    embeddings = np.random.default_rng(0).normal(size=shape)
    embeddings[:, 10:20] = 0
    points = coordinates(embeddings, 0)
    assert np.isfinite(points).all()
    assert len(points) == shape[0]


def test_equal_embeddings_share_one_place():
    np.testing.assert_array_equal(coordinates(np.full((40, 16), 0.1, np.float16), 0), np.zeros((40, 2)))


def test_a_sample_is_sorted_without_repetition_and_depends_on_the_seed():
    assert sample_rows(5, 8, 0).tolist() == [0, 1, 2, 3, 4]
    rows = sample_rows(1000, 100, 7)
    assert len(set(rows.tolist())) == 100
    assert (np.diff(rows) > 0).all()
    assert rows.max() < 1000
    np.testing.assert_array_equal(rows, sample_rows(1000, 100, 7))
    assert rows.tolist() != sample_rows(1000, 100, 8).tolist()


def test_mixing_counts_neighbours_of_the_same_part_from_other_studies_only():
    points = np.array([[0.0, 0.0], [1.0, 0.0], [10.0, 0.0], [11.0, 0.0]])
    studies = np.array(["a", "b", "c", "d"])
    assert mixed(points, np.array(["x", "x", "y", "y"]), studies, nearest=1) == pytest.approx((1.0, 1 / 3))
    assert mixed(points, np.array(["x", "y", "x", "y"]), studies, nearest=1) == pytest.approx((0.0, 1 / 3))
    parts = np.array(["x", "x", "y", "y"])
    assert mixed(points, parts, np.array(["a", "a", "b", "b"])) == (0.0, 0.0)
    assert np.isnan(mixed(points, parts, np.array(["a"] * 4))).all()
