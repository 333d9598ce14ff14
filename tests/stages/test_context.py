"""What reads a study's neighbouring slices: smoothing, reading from both ends, and what stage 2 is trained on."""

import io
from contextlib import redirect_stdout
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from conftest import RECIPE, cloned
from ich.data.studies import Studies, from_the_other_end, study_batch
from ich.ensemble.members import aligned
from ich.ensemble.smoothing import choose_widths, smooth_each
from ich.errors import UserError
from ich.networks.sequence import build_head
from ich.pipeline.plan import Plan
from ich.recipe import Sequence, load
from ich.stages import cnn, demo, folds, prepare, sequence, smooth
from ich.stages.inputs import Slices, positions, smoother_input, studies_of
from ich.stages.networks import predict_sequence
from ich.store.atomic import read_json
from ich.training import loop

# ---- a study read from both ends


def studies_table(seed: int, lengths: list[int]) -> pd.DataFrame:
    """Studies with gaps of their own; a gap of 0 is one of two slices at one position."""
    rng = np.random.default_rng(seed)
    parts = []
    for series, n in enumerate(lengths):
        position = np.cumsum(rng.choice([0.0, 0.6, 5.0, 7.5, 40.0], n)) - 100
        parts.append(pd.DataFrame({"series": series, "index": np.arange(n), "n_slices": n, "position": position}))
    return pd.concat(parts, ignore_index=True)


def numbered_from_the_other_end(table: pd.DataFrame) -> tuple[pd.DataFrame, np.ndarray]:
    """The table of the same scans, and which of the table's rows its rows are; by hand, study by study."""
    rows: list[int] = []
    for _, study in table.groupby("series"):
        rows += study.index[::-1].tolist()
    turned = table.iloc[rows].reset_index(drop=True)
    return turned.assign(index=turned["n_slices"] - 1 - turned["index"]), np.array(rows)


def packed(table: pd.DataFrame, features: np.ndarray, base: np.ndarray) -> Studies:
    return studies_of(table, features, [base])


def drawn(seed: int, lengths: list[int]) -> tuple[pd.DataFrame, np.ndarray, np.ndarray]:
    table, rng = studies_table(seed, lengths), np.random.default_rng(seed)
    return table, rng.normal(size=(len(table), 5)).astype(np.float16), rng.normal(size=(len(table), 2))


LENGTHS = st.lists(st.integers(1, 7), min_size=1, max_size=5)


@settings(max_examples=40)
@given(st.integers(0, 1000), LENGTHS)
def test_turning_a_study_is_numbering_its_slices_from_the_other_end(seed, lengths):
    table, features, base = drawn(seed, lengths)
    other, rows = numbered_from_the_other_end(table)
    every = np.arange(len(lengths))
    found = from_the_other_end(study_batch(packed(table, features, base), every))
    expected = study_batch(packed(other, features[rows], base[rows]), every)
    for name in ("features", "base", "lengths"):
        torch.testing.assert_close(getattr(found, name), getattr(expected, name), rtol=0, atol=0)
    torch.testing.assert_close(found.geometry, expected.geometry, rtol=0, atol=1e-6)
    inside = expected.rows >= 0
    np.testing.assert_array_equal(found.rows[inside], rows[expected.rows[inside]])
    assert (found.rows[~inside] == -1).all()


@given(st.integers(0, 1000), LENGTHS)
def test_turned_twice_it_is_what_it_was(seed, lengths):
    batch = study_batch(packed(*drawn(seed, lengths)), np.arange(len(lengths)))
    for name, value in from_the_other_end(from_the_other_end(batch))._asdict().items():
        assert value is None or torch.equal(*map(torch.as_tensor, (value, getattr(batch, name)))), name


def network_of(head: str, cell: str) -> torch.nn.Module:
    """A network whose every weight is drawn at random; a residual head begins at zero."""
    torch.manual_seed(0)
    network = build_head(head, features=5, classes=2, cell=cell, hidden=4, layers=2, dropout=0.3)
    for values in network.parameters():
        torch.nn.init.normal_(values, std=0.5)
    return network


def reading(*, reverse: bool, batch_size: int = 2) -> Sequence:
    return Sequence(on=("resnet",), reverse=reverse, batch_size=batch_size, precision="fp32")


@pytest.mark.parametrize(
    ("head", "cell"), [("residual", "gru"), ("residual", "lstm"), ("plain", "gru"), ("sdl", "conv")]
)
def test_both_ways_is_the_mean_with_the_studies_turned_by_hand(head, cell):
    table, features, base = drawn(1, [4, 1, 7, 2])
    other, rows = numbered_from_the_other_end(table)
    network, every = network_of(head, cell), np.arange(4)
    forwards = predict_sequence(network, packed(table, features, base), every, reading(reverse=False))
    turned = predict_sequence(network, packed(other, features[rows], base[rows]), every, reading(reverse=False))
    backwards = np.empty_like(turned)
    backwards[rows] = turned
    found = predict_sequence(network, packed(table, features, base), every, reading(reverse=True))
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, (forwards + backwards) / 2, atol=1e-6)
    assert np.abs(forwards - backwards).max() > 0.01


def test_a_study_that_is_the_same_from_both_ends_is_read_the_same():
    rng = np.random.default_rng(0)
    table = pd.DataFrame({"series": 0, "index": range(5), "n_slices": 5, "position": [0.0, 3.0, 8.0, 13.0, 16.0]})
    features, base = rng.normal(size=(5, 5)).astype(np.float16), rng.normal(size=(5, 2))
    features[3:], base[3:] = features[1::-1], base[1::-1]
    studies, network = packed(table, features, base), network_of("residual", "gru")
    # the gap after a slice has become that before it, but the gap after the last one is unknown at either end
    batch = study_batch(studies, np.array([0]))
    for name in ("features", "base", "geometry"):
        torch.testing.assert_close(getattr(from_the_other_end(batch), name), getattr(batch, name), rtol=0, atol=1e-6)
    forwards = predict_sequence(network, studies, np.array([0]), reading(reverse=False))
    both = predict_sequence(network, studies, np.array([0]), reading(reverse=True))
    np.testing.assert_allclose(both, (forwards + forwards[::-1]) / 2, atol=1e-6)


def test_padding_does_not_matter_to_a_study_read_from_both_ends():
    studies, network = packed(*drawn(2, [3, 7, 1, 5])), network_of("residual", "gru")
    together = predict_sequence(network, studies, np.arange(4), reading(reverse=True, batch_size=4))
    alone = [predict_sequence(network, studies, np.array([k]), reading(reverse=True)) for k in range(4)]
    np.testing.assert_allclose(together, np.concatenate(alone), atol=1e-6)


# ---- the stages


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A clone with the tiny recipe's slice networks."""
    root = cloned(tmp_path_factory.mktemp("context")).root
    with redirect_stdout(io.StringIO()):
        for stage in (demo, prepare, folds, cnn, smooth):
            stage.run(plan_of(root))
    return root


FEWER = ("demo.train_studies=8", "demo.test_studies=2", "name=context", "sequence.bigru.features=aligned")
IN_SAMPLE = ("sequence.bigru.features=in_sample",)


def plan_of(root: Path, *changes: str) -> Plan:
    return Plan(load(root / RECIPE, [*FEWER, *changes]), root)


@pytest.fixture
def relabelled(monkeypatch) -> None:
    """The labels of fold 0 are turned round wherever they are read."""
    labels = Slices.labels.func  # pyright: ignore[reportAttributeAccessIssue]

    def turned(self: Slices) -> np.ndarray:
        found = labels(self).copy()
        inside = (self.table["fold"] == 0).to_numpy()
        found[inside] = 1 - found[inside]
        return found

    monkeypatch.setattr(Slices, "labels", property(turned))


def widths_of(plan: Plan, fold: int) -> dict[str, float]:
    return read_json(plan.workspace.fold("gauss", fold) / "smooth.json")["widths"]


def test_a_fold_s_own_labels_have_no_say_in_its_widths(trained, relabelled):
    plan = plan_of(trained)
    path = plan.workspace.fold("gauss", 0) / "valid.parquet"
    before, other = (widths_of(plan, 0), path.read_bytes()), widths_of(plan, 1)
    for k in (0, 1):
        smooth.fit_fold(plan, "gauss", k, "unused")
    assert (widths_of(plan, 0), path.read_bytes()) == before
    assert widths_of(plan, 1) != other, "they have one in the other fold's"


def test_a_smooth_member_is_the_smoothed_mean_of_the_networks(trained):
    plan = plan_of(trained)
    slices = Slices(plan)
    for fold in (0, 1):
        smooth.fit_fold(plan, "gauss", fold, "unused")
        mean = np.mean([slices.out_of_fold(name, fold) for name in ("resnet", "resnext")], axis=0)
        series, position = slices.table["series"].to_numpy(), slices.table["position"].to_numpy()
        train = slices.train_rows(fold)
        widths = choose_widths(
            mean[train], slices.labels[train], series[train], position[train], (0, 2.5, 5, 7.5, 10, 15, 20)
        )
        assert list(widths_of(plan, fold).values()) == widths
        for split, rows in (("valid", slices.valid_rows(fold)), ("test", slices.test_rows)):
            expected = smooth_each(mean[rows], series[rows], position[rows], widths)
            table = pd.read_parquet(plan.workspace.fold("gauss", fold) / f"{split}.parquet")
            np.testing.assert_allclose(aligned(table, slices.ids(rows), slices.classes), expected, atol=1e-6)


def test_slices_without_a_position_stand_in_usual_gaps():
    table = studies_table(0, [3, 2]).assign(position=[1.0, np.nan, 9.0, 4.0, 5.0])
    assert positions(table).tolist() == [0.0, 5.0, 10.0, 4.0, 5.0]
    base, series, position = smoother_input(table, [np.zeros((5, 1)), np.ones((5, 1))])
    assert (base == 0.5).all()
    assert position.tolist() == [0.0, 5.0, 10.0, 4.0, 5.0]
    assert series.tolist() == [0, 0, 0, 1, 1]


# ---- features: in_sample


@pytest.fixture
def unchanging(monkeypatch) -> None:
    """No network is trained."""

    def fit(*_arguments: object, **_settings: object) -> None:
        raise AssertionError("a network was trained")

    monkeypatch.setattr(loop, "fit", fit)


@pytest.fixture
def read(trained, unchanging) -> Plan:
    """The recipe with the option switched on, its training rows predicted."""
    plan = plan_of(trained, *IN_SAMPLE)
    cnn.run(plan)
    return plan


def test_switching_it_on_asks_for_the_training_rows_and_trains_no_cnn_again(read):
    tasks = [task for task in read.all() if task.name.endswith("/train")]
    assert [t.name for t in tasks] == [f"cnn/{name}/fold{k}/train" for name in ("resnet", "resnext") for k in (0, 1)]
    assert all(read.state(task).done for task in tasks)
    assert not [task.name for task in plan_of(read.root).all() if task.name.endswith("/train")]


def test_the_training_rows_are_all_of_the_other_folds_as_the_fold_s_model_sees_them(read):
    slices = Slices(read)
    for fold in (0, 1):
        folder = read.training_rows("resnet", fold).folder
        table = pd.read_parquet(folder / "train.parquet")
        assert sorted(table["image_id"]) == sorted(slices.ids(slices.train_rows(fold)))
        embeddings = np.load(folder / "train_embeddings.npy", allow_pickle=False)
        assert embeddings.dtype == np.float16
        assert len(embeddings) == len(table)
        other = pd.read_parquet(read.workspace.fold("resnet", 1 - fold) / "valid.parquet")  # by the other fold's model
        logits = aligned(table, other["image_id"].tolist(), slices.classes)
        assert not np.allclose(logits, aligned(other, other["image_id"].tolist(), slices.classes))


def test_what_the_fold_itself_left_is_what_the_task_would_find_for_its_rows(read, monkeypatch):
    monkeypatch.setattr(Slices, "train_rows", Slices.valid_rows)
    cnn.predict_training_rows(read, "resnext", 0, "unused")
    folder, task = read.workspace.fold("resnext", 0), read.training_rows("resnext", 0)
    pd.testing.assert_frame_equal(
        pd.read_parquet(task.folder / "train.parquet"), pd.read_parquet(folder / "valid.parquet").drop(columns="fold")
    )
    embeddings = [np.load(path) for path in (task.folder / "train_embeddings.npy", folder / "valid_embeddings.npy")]
    np.testing.assert_array_equal(*embeddings)
    monkeypatch.undo()
    read.forget()
    assert read.state(task).kind == "stale"
    cnn.run(read)
    assert read.state(task).done


def test_a_sequence_model_is_trained_on_the_fold_s_own_model_alone(read):
    slices, on = Slices(read), ("resnet", "resnext")
    for fold in (0, 1):
        rows, studies = sequence._studies(slices, on, fold, "in_sample")
        for split, folder, wanted in (
            ("train", "train/", slices.train_rows(fold)),
            ("valid", "", slices.valid_rows(fold)),
            ("test", "", slices.test_rows),
        ):
            paths = [read.workspace.fold(name, fold) / f"{folder}{split}" for name in on]
            tables = [pd.read_parquet(path.with_suffix(".parquet")) for path in paths]
            base = np.mean([aligned(table, slices.ids(wanted), slices.classes) for table in tables], axis=0)
            here = np.isin(rows, wanted)
            np.testing.assert_allclose(studies.base[here], base, rtol=1e-6)
            order = [pd.Index(table["image_id"]).get_indexer(slices.ids(wanted)) for table in tables]
            arrays = [np.load(f"{path}_embeddings.npy")[of] for path, of in zip(paths, order, strict=True)]
            np.testing.assert_array_equal(studies.features[here], np.concatenate(arrays, axis=1))


def test_it_reads_no_other_fold_and_says_what_to_run_first(trained):
    plan = plan_of(trained, *IN_SAMPLE, "name=elsewhere")
    read = {task.name for task, _ in plan.fold("bigru", 1).upstream}
    parts = {f"cnn/{name}/fold1{part}" for name in ("resnet", "resnext") for part in ("", "/train")}
    assert read == {"folds", "prepare"} | parts
    plan = plan_of(trained, *IN_SAMPLE)
    record = plan.training_rows("resnet", 1).record.path
    record.unlink(missing_ok=True)
    plan.forget()
    with pytest.raises(UserError, match=r"needs cnn/resnet/fold1/train, which is missing; run `ich cnn` first"):
        sequence.run(plan, fold=1)


def test_a_fold_made_again_makes_its_training_rows_again_and_a_second_look_makes_nothing(trained):
    plan = plan_of(trained, *IN_SAMPLE)
    cnn.run(plan)
    tasks = [plan.training_rows("resnet", k) for k in (0, 1)]
    before = [task.record.path.stat().st_mtime_ns for task in tasks]
    cnn.run(plan)
    assert [task.record.path.stat().st_mtime_ns for task in tasks] == before
    cnn.run(plan, model="resnet", fold=0, force=True)
    after = [task.record.path.stat().st_mtime_ns for task in tasks]
    assert after[0] > before[0]
    assert after[1] == before[1]


def test_other_weights_make_the_training_rows_stale(read):
    changed = plan_of(read.root, *IN_SAMPLE, "cnn.resnet.seed=8")
    assert changed.state(changed.training_rows("resnet", 0)).why == "cnn/resnet/fold0 is stale"
    assert changed.state(changed.training_rows("resnext", 0)).done
