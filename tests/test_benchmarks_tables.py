"""Stage 2 and the stacker are timed on what they claim, against others that compute the same."""

import numpy as np
import pytest
import torch

from benchmarks import sequence, stacker
from ich.data.studies import Studies, study_batch


def test_stage_2_is_timed_on_a_table_of_the_competition_s_size():
    found = sequence.tables(width=1)
    lengths = np.diff(found.offsets)
    assert len(lengths) == 19_530
    assert len(found.features) == 674_258
    assert (lengths.min(), lengths.max()) == (20, 57)
    assert found.features.dtype == np.float16


@pytest.mark.parametrize("settings", sequence.SETTINGS.values(), ids=list(sequence.SETTINGS))
def test_the_padded_network_says_the_same_of_studies_without_padding(settings):
    drawn = sequence.tables(6, 180, 16)
    whole = Studies(drawn.features, drawn.base, drawn.geometry, drawn.targets, np.array([0, 60, 120, 180]))
    ours = sequence.network(settings, 16).eval()
    for values in ours.parameters():
        torch.nn.init.normal_(values, std=0.3)
    *inputs, targets, mask = (torch.stack(parts) for parts in zip(*sequence.PaddedStudies(whole), strict=True))
    batch = study_batch(whole, np.arange(3))
    assert mask.all()
    assert batch.targets is not None
    assert torch.equal(targets, batch.targets)
    assert isinstance(ours, sequence.SequenceHead | sequence.StackedHead)
    expected = ours(batch.features, batch.base, batch.geometry, batch.lengths)
    torch.testing.assert_close(sequence.PaddedNetwork(ours)(*inputs), expected, rtol=1e-4, atol=1e-5)


def test_all_ways_make_the_same_features_and_a_model_a_class():
    data = stacker.table(700)
    assert data.groupby("study_id").size()[:-1].between(20, 57).all()
    logits = stacker.cube(data)
    x = stacker.ours(data, logits)
    assert x.shape == (700, 112)
    for other in (stacker.as_written, stacker.at_its_best):
        np.testing.assert_allclose(other(data), x, rtol=1e-5, atol=1e-6)
    y = data[[f"label{c}" for c in range(stacker.CLASSES)]].to_numpy()
    ours, theirs = stacker.our_models(x, y, logits.mean(axis=1)), stacker.their_models(x, y)
    assert len(ours) == len(theirs) == stacker.CLASSES
    for text, model in zip(ours, theirs, strict=True):
        assert text.count("Tree=") == model.booster_.num_trees() == stacker.SETTINGS.rounds  # pyright: ignore
