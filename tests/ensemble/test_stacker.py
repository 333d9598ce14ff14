import numpy as np
import pytest

from ich.ensemble import metrics, stacker


def studies(seed, counts=(4, 1, 3), models=2, classes=3):
    """A table sorted by study and index: logits, study, index, position."""
    rng = np.random.default_rng(seed)
    study = np.repeat(np.arange(len(counts)) * 3 + 1, counts)
    index = np.concatenate([np.arange(n) for n in counts])
    position = np.concatenate([np.cumsum(rng.uniform(1, 6, n)) - 50 for n in counts])
    return rng.normal(0, 2, (len(study), models, classes)), study, index, position


def features_by_loop(logits, study, index, position, k):
    """The same table by plain loops over slices."""
    n, _, classes = logits.shape
    rows = []
    for i in range(n):
        own = {int(index[j]): j for j in range(n) if study[j] == study[i]}
        whole = logits[sorted(own.values())].mean(axis=1)
        span = [position[j] for j in own.values()]
        row = list(logits[i].reshape(-1)) + list(logits[i].mean(axis=0))
        for offset in [o for o in range(-k, k + 1) if o]:
            j = own.get(int(index[i]) + offset)
            row += [np.nan] * classes if j is None else list(logits[j].mean(axis=0))
        row += list(whole.mean(axis=0)) + list(whole.max(axis=0)) + list(whole.std(axis=0))
        row.append(0.5 if len(own) == 1 else (position[i] - min(span)) / (max(span) - min(span)))
        row.append(len(own))
        before, after = own.get(int(index[i]) - 1), own.get(int(index[i]) + 1)
        row.append(np.nan if before is None else position[i] - position[before])
        row.append(np.nan if after is None else position[after] - position[i])
        rows.append(row)
    return np.array(rows)


@pytest.mark.parametrize("k", [0, 1, 6])
def test_features_equal_a_plain_loop(k):
    table = studies(0)
    x, names = stacker.features(*table, neighbours=k)
    assert len(set(names)) == len(names) == x.shape[1]
    assert x.dtype == np.float32
    np.testing.assert_allclose(x, features_by_loop(*table, k), rtol=1e-6)


@pytest.mark.parametrize(
    ("column", "place", "value", "message"),
    [(0, (2, 0, 1), np.nan, "finite"), (2, 1, 0, "study 1 has two slices with index 0"), (3, 0, np.inf, "finite")],
)
def test_invalid_slices_raise(column, place, value, message):
    table = studies(1)
    table[column][place] = value
    with pytest.raises(ValueError, match=message):
        stacker.features(*table, 1)


def smooth_competition(seed, count=60, length=20):
    """Labels in runs, noisy logits of two models for one class, study, index and position.

    The runs wrap around the ends, so that the index alone does not predict the label.
    """
    rng = np.random.default_rng(seed)
    y = np.zeros((count, length))
    for row in y[: count // 2]:
        row[(rng.integers(0, length) + np.arange(6)) % length] = 1
    y = y[rng.permutation(count)]
    logits = (3 * y[..., None] - 2 + rng.normal(0, 1.8, (count, length, 2))).reshape(-1, 2, 1)
    study, index = np.repeat(np.arange(count), length), np.tile(np.arange(length), count)
    return y.reshape(-1), logits, study, index, index * 5.0


def fitted(x, y, base, seed, **settings):
    [text] = stacker.fit(x, np.array(y)[:, None], base[:, None], seeds=[seed], threads=1, **settings)
    return text


def out_of_fold(y, logits, place, leak=False):
    x, _ = stacker.features(logits, *place, neighbours=3)
    study = place[0]
    base, prediction = logits.mean(axis=1)[:, 0], np.empty(len(y))
    for fold in range(3):
        inside = study % 3 == fold
        train = np.ones(len(y), dtype=bool) if leak else ~inside
        text = fitted(x[train], y[train], base[train], seed=fold, num_iterations=100)
        prediction[inside] = stacker.predict(text, x[inside], base[inside])
    return float(metrics.class_auc(y[:, None], prediction[:, None])[0])


def test_neighbours_help_and_shuffled_labels_give_chance_level_unless_they_leak():
    y, logits, *place = smooth_competition(0)
    assert out_of_fold(y, logits, place) > float(metrics.class_auc(y[:, None], logits.mean(axis=1))[0]) + 0.03
    honest, leaky = [], []
    for seed in range(4):
        y, logits, *place = smooth_competition(seed)
        shuffled = y.reshape(60, 20)[np.random.default_rng(seed).permutation(60)].reshape(-1)
        honest.append(out_of_fold(shuffled, logits, place))
        leaky.append(out_of_fold(shuffled, logits, place, leak=True))
    assert abs(np.mean(honest) - 0.5) < 0.04
    assert np.mean(leaky) > 0.7


def test_each_class_is_trained_independently():
    y, logits, *place = smooth_competition(0, count=20)
    x, _ = stacker.features(logits, *place, neighbours=1)
    labels = np.column_stack([y, 1 - y, np.roll(y, 7)])
    base = np.random.default_rng(0).normal(size=labels.shape)
    texts = list(stacker.fit(x, labels, base, seeds=[5, 6, 5], threads=1, num_iterations=8))
    assert texts == [fitted(x, labels[:, c], base[:, c], seed, num_iterations=8) for c, seed in enumerate((5, 6, 5))]
    assert texts[0] != fitted(x, labels[:, 0], base[:, 0], 6, num_iterations=8), "another seed"
    with pytest.raises(ValueError, match="shorter"):
        list(stacker.fit(x, labels, base, seeds=[5, 6], threads=1))


def test_features_of_a_study_do_not_depend_on_the_block():
    rng = np.random.default_rng(0)
    counts = [1, stacker.BLOCK - 1, 3, 2 * stacker.BLOCK, *rng.integers(1, 60, 200).tolist()]
    logits, study, index, position = studies(0, counts, models=1, classes=1)
    order = rng.permutation(len(study))
    x, _ = stacker.features(logits[order], study[order], index[order], position[order], 2)
    for number in range(len(counts)):
        at = study[order] == 3 * number + 1
        alone, _ = stacker.features(logits[order][at], study[order][at], index[order][at], position[order][at], 2)
        np.testing.assert_array_equal(x[at], alone)


def test_predictions_add_to_the_base():
    y, logits, *place = smooth_competition(0, count=20)
    x, _ = stacker.features(logits, *place, neighbours=1)
    base = logits.mean(axis=1)[:, 0]
    for label in (0, 1):  # of one label nothing is learned
        np.testing.assert_array_equal(stacker.predict(fitted(x, 0 * y + label, base, seed=0), x, base), base)
    text = fitted(x, y, base, seed=0, num_iterations=5)
    learned = stacker.predict(text, x, np.zeros(len(x)))
    assert np.ptp(learned) > 0
    np.testing.assert_allclose(stacker.predict(text, x, base), base + learned)
    assert stacker.predict(text, x[:0], base[:0]).shape == (0,)


def test_truncated_texts_and_features_of_another_width_raise():
    rng = np.random.default_rng(0)
    x, base = rng.normal(size=(80, 3)).astype(np.float32), np.zeros(80)
    text = fitted(x, rng.integers(0, 2, 80), base, seed=0, num_iterations=3)
    for broken in ("", text[:-2], text[:-30], text[: len(text) // 2], text[10:]):
        with pytest.raises(ValueError, match="not complete"):
            stacker.predict(broken, x, base)
    with pytest.raises(ValueError, match=r"\[n, 3\]"):
        stacker.predict(text, x[:, :2], base)
