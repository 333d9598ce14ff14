"""Sequence models: series read from both ends, and embeddings of the right networks."""

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ich.data.series import SeriesArrays, series_batch
from ich.errors import UserError
from ich.models.sequence import FittedSequence, series_of
from ich.models.slices import Predictions, Slices, positions

CLASSES = ["one", "any"]
LENGTHS = st.lists(st.integers(1, 7), min_size=1, max_size=5)


def series_table(seed: int, lengths: list[int]) -> pd.DataFrame:
    """Series with uneven gaps; a gap of 0 is one of two slices at one position."""
    rng = np.random.default_rng(seed)
    parts = []
    for series, n in enumerate(lengths):
        position = np.cumsum(rng.choice([0.0, 0.6, 5.0, 7.5, 40.0], n)) - 100
        parts.append(pd.DataFrame({"series": series, "index": np.arange(n), "n_slices": n, "position": position}))
    return pd.concat(parts, ignore_index=True)


def drawn(seed: int, lengths: list[int]) -> tuple[Slices, Predictions]:
    """Slices of series of these lengths, and embeddings and logits of one input."""
    table, rng = series_table(seed, lengths), np.random.default_rng(seed)
    found = Predictions(rng.normal(size=(len(table), 2)), rng.normal(size=(len(table), 5)).astype(np.float16))
    return slices_of(table), found


def slices_of(table: pd.DataFrame) -> Slices:
    return Slices(table, np.arange(len(table)), CLASSES)


def packed(slices: Slices, found: Predictions) -> SeriesArrays:
    return series_of(slices, {"a": found}, ["a"])


def turned(slices: Slices, found: Predictions) -> tuple[Slices, Predictions, np.ndarray]:
    """The same series numbered from the other end, and the original row of each row."""
    rows = np.concatenate([part.index[::-1] for _, part in slices.table.groupby("series")])
    table = slices.table.iloc[rows].reset_index(drop=True)
    table["index"] = table["n_slices"] - 1 - table["index"]
    assert found.embeddings is not None
    return slices_of(table), Predictions(found.logits[rows], found.embeddings[rows]), rows


@settings(max_examples=40)
@given(st.integers(0, 1000), LENGTHS)
def test_a_reversed_series_equals_one_numbered_from_the_other_end(seed, lengths):
    slices, found = drawn(seed, lengths)
    other, moved, rows = turned(slices, found)
    every = np.arange(len(lengths))
    mirrored = series_batch(packed(slices, found), every, reverse=True)
    expected = series_batch(packed(other, moved), every)
    for name in ("features", "base", "lengths"):
        torch.testing.assert_close(getattr(mirrored, name), getattr(expected, name), rtol=0, atol=0)
    torch.testing.assert_close(mirrored.geometry, expected.geometry, rtol=0, atol=1e-6)
    np.testing.assert_array_equal(mirrored.rows, rows[expected.rows])


def model(head: str, cell: str, *, reverse: bool, batch_size: int = 2, studies: bool = False) -> FittedSequence:
    """A model with random weights; a residual head begins at zero."""
    shape = {"features": 5, "classes": 2, "cell": cell, "hidden": 4, "layers": 2, "dropout": 0.3}
    spec = {"inputs": ["a"], "head": {"name": head, **shape}, "tta": {"reverse": reverse}}
    spec |= {"batch_size": batch_size, "precision": "fp32", "studies": studies}
    network = FittedSequence.build(spec)
    torch.manual_seed(0)
    for values in network.parameters():
        torch.nn.init.normal_(values, std=0.5)
    return FittedSequence(spec, "model", network=network)


@pytest.mark.parametrize(
    ("head", "cell"), [("residual", "gru"), ("residual", "lstm"), ("plain", "gru"), ("sdl", "conv")]
)
def test_reverse_is_the_mean_of_both_directions(head, cell):
    slices, found = drawn(1, [4, 1, 7, 2])
    other, moved, rows = turned(slices, found)
    once, both = model(head, cell, reverse=False), model(head, cell, reverse=True)
    forwards, backwards = once.predict(slices, {"a": found}).logits, np.empty((14, 2), np.float32)
    backwards[rows] = once.predict(other, {"a": moved}).logits
    result = both.predict(slices, {"a": found}).logits
    assert result.dtype == np.float32
    np.testing.assert_allclose(result, (forwards + backwards) / 2, atol=1e-6)
    assert np.abs(forwards - backwards).max() > 0.01


@pytest.mark.parametrize("head", ["residual", "shortcut"])
def test_a_study_has_the_largest_logit_of_its_series_in_the_mean_of_both_directions(head):
    slices, found = drawn(1, [4, 1, 7, 2])
    other, moved, _ = turned(slices, found)
    table = slices.table
    once, both = (model(head, "gru", reverse=reverse, studies=True) for reverse in (False, True))

    def studies(fitted: FittedSequence, of: Slices, inputs: Predictions, names: list[str]) -> pd.DataFrame:
        named = Slices(of.table.assign(study_id=np.array(names)[of.table["series"]]), of.rows, CLASSES)
        result = fitted.predict(named, {"a": inputs})
        assert result.studies is not None
        assert result.logits.shape == (len(table), 2)
        return result.studies

    own = studies(once, slices, found, list("abcd"))
    assert own.index.tolist() == list("abcd")
    assert (own.dtypes == np.float32).all()
    shared = studies(once, slices, found, list("baab"))  # in the order of the slices
    assert shared.index.tolist() == ["b", "a"]
    np.testing.assert_array_equal(shared.loc["b"], own.loc[["a", "d"]].max())
    mean = (own + studies(once, other, moved, list("abcd"))) / 2
    np.testing.assert_allclose(studies(both, slices, found, list("abcd")), mean, atol=1e-6)
    none = Slices(table.assign(study_id="a"), np.arange(0), CLASSES)
    empty = once.predict(none, {}).studies
    assert empty is not None
    assert empty.shape == (0, 2)


def test_inputs_are_in_the_order_of_the_settings_and_need_embeddings():
    slices, first = drawn(3, [2, 3])
    second = Predictions(first.logits + 2, np.arange(15, dtype=np.float16).reshape(5, 3))
    studies = series_of(slices, {"b": second, "a": first}, ["a", "b"])
    assert [id(array) for array in studies.features] == [id(first.embeddings), id(second.embeddings)], "not copied"
    np.testing.assert_allclose(studies.base, first.logits + 1, atol=1e-6)
    assert studies.offsets.tolist() == [0, 2, 5]
    with pytest.raises(UserError, match="b has no embeddings"):
        series_of(slices, {"a": first, "b": Predictions(second.logits)}, ["a", "b"])


def test_slices_without_a_position_are_a_usual_gap_apart():
    table = series_table(0, [3, 2]).assign(position=[1.0, np.nan, 9.0, 4.0, 5.0])
    assert positions(table).tolist() == [0.0, 5.0, 10.0, 4.0, 5.0]
