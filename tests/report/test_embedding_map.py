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


def test_the_map_is_the_same_for_the_same_seed_however_many_threads_there_are():
    embeddings, _ = three_groups(20)
    with threadpool_limits(2):
        two = coordinates(embeddings, seed=1)
    np.testing.assert_array_equal(coordinates(embeddings, seed=1), two)


def test_the_unit_of_a_dimension_does_not_matter():
    embeddings, _ = three_groups(10)
    wide = embeddings.astype(np.float64)
    scaled = wide * 2.0 ** np.arange(-8, 8).repeat(4)
    np.testing.assert_allclose(coordinates(scaled, 0), coordinates(wide, 0), rtol=1e-3, atol=1e-2)


def test_embeddings_that_are_all_the_same_lie_in_one_place():
    points = coordinates(np.full((40, 16), 0.1, np.float16), 0)
    assert points.dtype == np.float32
    np.testing.assert_array_equal(points, np.zeros((40, 2)))


@pytest.mark.parametrize("shape", [(4, 64), (5, 1), (9, 3)])
def test_few_slices_and_narrow_embeddings_have_a_map_too(shape):
    points = coordinates(np.random.default_rng(0).normal(size=shape), 0)
    assert np.isfinite(points).all()
    assert len(points) == shape[0]


def test_dead_units_are_no_trouble():
    embeddings, _ = three_groups(5)
    embeddings[:, :10] = 0
    assert np.isfinite(coordinates(embeddings, 0)).all()


def test_too_few_slices_are_refused():
    with pytest.raises(ValueError, match="at least 4"):
        coordinates(np.zeros((3, 8)), 0)


def test_a_sample_is_ascending_without_repetition_and_the_seeds():
    assert sample_rows(5, 8, 0).tolist() == [0, 1, 2, 3, 4]
    rows = sample_rows(1000, 100, 7)
    assert len(set(rows.tolist())) == 100
    assert (np.diff(rows) > 0).all()
    assert rows.max() < 1000
    np.testing.assert_array_equal(rows, sample_rows(1000, 100, 7))
    assert rows.tolist() != sample_rows(1000, 100, 8).tolist()


def test_parts_that_lie_apart_are_told_from_mixed_ones_by_hand():
    points = np.array([[0.0, 0.0], [1.0, 0.0], [10.0, 0.0], [11.0, 0.0]])
    studies = np.array(["a", "b", "c", "d"])
    apart = mixed(points, np.array(["x", "x", "y", "y"]), studies, nearest=1)
    assert apart == pytest.approx((1.0, 1 / 3))
    assert mixed(points, np.array(["x", "y", "x", "y"]), studies, nearest=1) == pytest.approx((0.0, 1 / 3))


def test_slices_of_one_study_are_no_neighbours_of_each_other():
    points = np.array([[0.0, 0.0], [0.1, 0.0], [5.0, 0.0], [5.1, 0.0]])
    parts, studies = np.array(["x", "x", "y", "y"]), np.array(["a", "a", "b", "b"])
    assert mixed(points, parts, studies) == (0.0, 0.0)
    assert np.isnan(mixed(points, parts, np.array(["a"] * 4))).all()


def test_a_map_without_any_order_is_mixed():
    random = np.random.default_rng(0)
    points, parts = random.normal(size=(600, 2)), random.choice(["x", "y", "z"], 600)
    found, chance = mixed(points, parts, np.arange(600).astype(str))
    assert found == pytest.approx(chance, abs=0.03)
