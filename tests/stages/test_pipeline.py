"""The whole path as a user runs it, on the tiny recipe: what is left, what is redone, what survives a kill."""

import json
import os
import shutil
import signal
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from filelock import FileLock

from ich.store.locks import hold
from ich.store.records import Record, write_record

CLASSES = ["epidural", "intraparenchymal", "intraventricular", "subarachnoid", "subdural", "any"]
LOGITS = [f"logit_{name}" for name in CLASSES]
MEMBERS = ["resnet", "resnext", "bigru", "gauss", "lgbm", "blend"]
TRAINING_ROWS = {f"cnn/{member}/fold{k}/train" for member in ("resnet", "resnext") for k in (0, 1)}  # bigru reads them


def cache(house):
    key = json.loads((house.root / "input/cache/tiny.json").read_text())["key"]
    return house.root / "input" / "cache" / key


@pytest.fixture(scope="module")
def slices(finished):
    return pd.read_parquet(cache(finished) / "slices.parquet")


def test_every_artefact_is_done(finished):
    states = finished.states()
    assert set(states.values()) == {"done"}
    assert {name for name in states if name.endswith("/train")} == TRAINING_ROWS
    assert len(states) == 3 + len(MEMBERS) * 3 + len(TRAINING_ROWS) + 5


def test_the_slice_table_describes_the_cache_row_by_row(finished, slices):
    hu = np.load(cache(finished) / "hu.npy", allow_pickle=False)
    assert hu.dtype == np.int16
    assert hu.shape == (len(slices), 32, 32)
    assert hu.min() >= -1024
    assert hu.max() <= 3071
    series = slices.groupby(["split", "series_id"])
    assert (series["position"].diff().dropna() > 0).all()
    assert (series["index"].diff().dropna() == 1).all()
    assert slices.loc[slices["split"] == "test", CLASSES].isna().all(axis=None)


def test_no_patient_lies_in_two_folds(finished):
    folds = pd.read_csv(finished.root / "folds/tiny.csv")
    assert folds.groupby("patient_id")["fold"].nunique().max() == 1
    assert set(folds["fold"]) == {0, 1}


@pytest.mark.parametrize("member", MEMBERS)
def test_a_member_predicts_every_labelled_slice_once_and_out_of_its_fold(finished, slices, member):
    folds = pd.read_csv(finished.root / "folds/tiny.csv").set_index("study_id")["fold"]
    train = slices[slices["split"] == "train"].set_index("image_id")
    oof = pd.read_parquet(finished.root / f"oof/tiny/{member}/oof.parquet")
    assert sorted(oof["image_id"]) == sorted(train.index)
    assert (oof["fold"].to_numpy() == folds[train.loc[oof["image_id"], "study_id"]].to_numpy()).all()
    assert np.isfinite(oof[LOGITS]).all(axis=None)


@pytest.mark.parametrize("member", MEMBERS)
def test_the_test_logits_are_the_mean_of_the_folds(finished, member):
    folder = finished.root / f"oof/tiny/{member}"
    parts = [pd.read_parquet(folder / f"fold{k}/test.parquet").set_index("image_id")[LOGITS] for k in (0, 1)]
    mean = pd.read_parquet(folder / "test.parquet").set_index("image_id")[LOGITS]
    pd.testing.assert_frame_equal(mean, (parts[0] + parts[1]).loc[mean.index] / 2, check_dtype=False, atol=1e-6)


def test_embeddings_have_the_rows_of_their_table(finished):
    for split in ("valid", "test"):
        folder = finished.root / "oof/tiny/resnet/fold1"
        embeddings = np.load(folder / f"{split}_embeddings.npy", allow_pickle=False)
        assert embeddings.dtype == np.float16
        assert len(embeddings) == len(pd.read_parquet(folder / f"{split}.parquet"))


def test_a_fold_s_record_can_rebuild_its_model(finished):
    from safetensors.torch import load_file

    from ich.networks.cnn import Cnn, CnnSpec

    folder = finished.root / "oof/tiny/resnext/fold0"
    record = json.loads((folder / "run.json").read_text())
    Cnn(CnnSpec(**record["model"])).load_state_dict(load_file(folder / "model.safetensors"))
    assert {"settings", "inputs", "files", "metrics", "seconds", "peak_memory_mib", "versions"} <= set(record)


def test_the_submission_has_the_sample_s_ids_in_its_order(finished):
    sample = pd.read_csv(finished.root / "input/tiny/stage_2_sample_submission.csv")
    probabilities = pd.read_csv(finished.root / "submissions/tiny/submission.csv")
    binary = pd.read_csv(finished.root / "submissions/tiny/submission_binary.csv")
    assert probabilities["ID"].tolist() == sample["ID"].tolist() == binary["ID"].tolist()
    assert probabilities["Label"].between(0, 1).all()
    assert set(binary["Label"]) <= {0, 1}


def test_a_slice_is_positive_where_its_probability_reaches_the_threshold(finished):
    cuts = json.loads((finished.root / "oof/tiny/thresholds.json").read_text())["thresholds"]
    probabilities = pd.read_csv(finished.root / "submissions/tiny/submission.csv")
    binary = pd.read_csv(finished.root / "submissions/tiny/submission_binary.csv")
    cut = probabilities["ID"].str.rsplit("_", n=1).str[1].map(cuts)
    assert ((probabilities["Label"] >= cut).astype(int) == binary["Label"]).all()


def test_any_is_at_least_its_largest_subtype(finished):
    table = pd.read_csv(finished.root / "submissions/tiny/submission.csv")
    table[["image", "kind"]] = table["ID"].str.rsplit("_", n=1, expand=True)
    wide = table.pivot(index="image", columns="kind", values="Label")
    assert (wide["any"] >= wide[CLASSES[:-1]].max(axis=1)).all()


def test_scores_stand_for_every_member_on_both_sets(finished):
    scores = pd.read_csv(finished.root / "submissions/tiny/scores.csv")
    assert sorted(scores["member"]) == sorted(MEMBERS * 2)
    assert scores["log_loss"].gt(0).all()


@pytest.mark.parametrize("stage", ["smooth", "stack", "blend", "thresholds", "submit", "score"])
def test_the_stages_after_the_networks_run_without_torch(house, stage):
    code = (
        f"import sys; sys.argv = ['ich', '{stage}', 'tests/tiny.yaml', '--force']\n"
        "from ich import cli\n"
        "try:\n    cli.main()\nexcept SystemExit as end:\n    assert end.code == 0, end.code\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], cwd=house.root, check=True, capture_output=True)


def test_a_fold_being_made_is_shown_as_running(house):
    (house.root / "oof/tiny/resnet/fold0/run.json").unlink()
    lock = house.root / "oof/tiny/resnet/.locks/fold0.lock"
    with FileLock(lock):
        assert house.states()["cnn/resnet/fold0"] == "running"
        assert "another process is making" in house.ich("stack", code=2)
    assert house.states()["cnn/resnet/fold0"] == "missing"


def test_a_fold_that_another_process_makes_is_left_where_the_recipe_says_so(house):
    for k in (0, 1):
        (house.root / f"oof/tiny/resnet/fold{k}/run.json").unlink()
    with hold(house.root / "oof/tiny/resnet/.locks/fold0.lock", on_wait=pytest.fail):
        said = house.ich("cnn", "--model", "resnet", "--set", "compute.busy=leave", code=2)
    assert "fold 1 finished" in said
    assert f"error: cnn/resnet/fold0 is being made by process {os.getpid()} on " in said
    assert (house.states()["cnn/resnet/fold0"], house.states()["cnn/resnet/fold1"]) == ("missing", "done")


@pytest.mark.parametrize("processes", [1, 2])
def test_an_interrupted_stage_ends_at_once_and_goes_on_the_next_time(house, processes):
    before = house.files()
    (house.root / "oof/tiny/resnet/fold0/run.json").unlink()
    (house.root / "oof/tiny/resnet/fold1/run.json").unlink()
    arguments = ("--model", "resnet", "--set", f"compute.processes={processes}")
    process = house.start("cnn", *arguments)
    assert process.stdout is not None
    for line in process.stdout:
        if "epoch 1 of 2" in line:
            process.send_signal(signal.SIGINT)
            break
    _, err = process.communicate(timeout=20)
    assert process.returncode == 130
    assert err == "\ninterrupted; what was finished is kept: the same command goes on from there\n"
    assert "goes on from the last finished epoch" in house.ich("status")
    house.ich("cnn", *arguments)
    after = house.files()
    assert {path: after[path][1] for path in before if not path.endswith("run.json")} == {
        path: before[path][1] for path in before if not path.endswith("run.json")
    }


def test_a_new_sample_submission_makes_a_new_submission(house):
    path = house.root / "input/tiny/stage_2_sample_submission.csv"
    sample = pd.read_csv(path)
    sample.iloc[::-1].to_csv(path, index=False)
    for stage in ("prepare", "submit"):  # `ich demo` would put its own file back
        house.ich(stage)
    submission = pd.read_csv(house.root / "submissions/tiny/submission.csv")
    assert submission["ID"].tolist() == sample["ID"].tolist()[::-1]


def test_two_runs_at_once_leave_what_one_leaves(house):
    before = house.files()
    for name in ("oof/tiny/lgbm", "oof/tiny/blend"):
        shutil.rmtree(house.root / name)
    shutil.rmtree(cache(house))
    for stage in ("prepare", "stack", "blend"):
        both = [house.start(stage) for _ in range(2)]
        for process in both:
            out, err = process.communicate(timeout=300)
            assert process.returncode == 0, out + err
    after = house.files()
    kept = {path for path in before if not path.endswith("run.json")}
    assert {path: after[path][1] for path in kept} == {path: before[path][1] for path in kept}


def test_a_second_run_writes_nothing(house):
    before = house.files()
    house.run_all()
    assert house.files() == before


def test_no_training_stage_reads_the_solution_the_wrong_labels_or_the_masks(house):
    for name in ("solution.csv", "mislabelled.csv", "masks.npz"):
        (house.root / "input/tiny" / name).unlink()
    states = house.states()
    assert {name for name, state in states.items() if state != "done"} == {"demo", "score", "explain", "report"}


def test_a_changed_fold_makes_stale_what_was_made_from_it_and_nothing_else(house):
    damaged = house.root / "oof/tiny/resnext/fold1/valid.parquet"
    damaged.write_bytes(damaged.read_bytes()[:-1])
    stale = {name for name, state in house.states().items() if state != "done"}
    later = {
        f"{stage}{part}" for stage in ("smooth/gauss", "stack/lgbm", "blend/blend") for part in ("", "/fold0", "/fold1")
    }
    later |= {"sequence/bigru", "sequence/bigru/fold1"}  # its fold 0 reads nothing of the network of fold 1
    begun = {"cnn/resnext/fold1", "cnn/resnext/fold1/train", "cnn/resnext"}
    assert stale == begun | later | {"thresholds", "submit", "score", "explain", "report"}


def test_a_forced_fold_comes_out_the_same_and_leaves_the_rest_alone(house):
    before = house.files()
    house.ich("cnn", "--model", "resnet", "--fold", "1", "--force")
    house.run_all()
    after = house.files()
    rewritten = {path for path in after if after[path] != before.get(path)}
    assert all(path.startswith("oof/tiny/resnet/fold1/") for path in rewritten), rewritten
    changed = {path for path in rewritten if after[path][1] != before[path][1]}
    records = {f"oof/tiny/resnet/fold1/{record}" for record in ("run.json", "train/run.json")}
    assert changed == records  # their seconds


def test_another_setting_of_one_member_remakes_its_dependants_only(house):
    before = house.files()
    house.run_all("--set", "cnn.resnext.learning_rate=0.001")
    after = house.files()
    kept = [path for path in after if path.startswith(("input/", "folds/", "oof/tiny/resnet/"))]
    assert all(after[path] == before[path] for path in kept)
    for member in ("resnext", "bigru", "lgbm", "blend"):
        assert after[f"oof/tiny/{member}/test.parquet"][1] != before[f"oof/tiny/{member}/test.parquet"][1]


def test_a_killed_fold_goes_on_from_its_last_epoch_to_the_same_bytes(house):
    before = house.files()
    (house.root / "oof/tiny/resnet/fold0/run.json").unlink()
    process = house.start("cnn", "--model", "resnet", "--fold", "0")
    assert process.stdout is not None
    for line in process.stdout:
        if "epoch 1 of 2" in line:
            process.kill()
            break
    process.communicate()
    assert house.states()["cnn/resnet/fold0"] == "killed"
    said = house.ich("cnn", "--model", "resnet", "--fold", "0")
    assert "epoch 1 of 2" not in said
    assert "epoch 2 of 2" in said
    after = house.files()
    for name in ("model.safetensors", "valid.parquet", "test_embeddings.npy", "history.csv"):
        path = f"oof/tiny/resnet/fold0/{name}"
        assert after[path][1] == before[path][1], name
    assert "oof/tiny/resnet/fold0/checkpoint.bin" not in after


def test_a_checkpoint_that_outlived_its_fold_by_a_kill_is_removed_and_nothing_is_trained(house):
    before = house.files()
    left = house.root / "oof/tiny/resnet/fold1/checkpoint.bin"
    left.write_bytes(b"a kill came between the record and its removal")
    house.ich("cnn")
    assert house.files() == before


def test_a_broken_test_file_is_quarantined_and_submitted_with_the_prior(house, slices):
    victim = slices.loc[slices["split"] == "test", "image_id"].iloc[0]
    path = house.root / f"input/tiny/stage_2_test/{victim}.dcm"
    path.write_bytes(path.read_bytes()[:-500])
    folds = (house.root / "folds/tiny.csv").read_bytes()
    said = house.run_all()
    assert "1 test images could not be read" in said
    assert (house.root / "folds/tiny.csv").read_bytes() == folds
    quarantine = pd.read_csv(cache(house) / "quarantine.csv")
    assert quarantine[["image_id", "split", "reason"]].values.tolist() == [[victim, "test", "truncated"]]
    submission = pd.read_csv(house.root / "submissions/tiny/submission.csv").set_index("ID")["Label"]
    train = slices[slices["split"] == "train"]
    for name in CLASSES:
        assert submission[f"{victim}_{name}"] == pytest.approx(train[name].mean(), rel=1e-5)


def test_a_committed_fold_file_is_used_as_it_is(house):
    path = house.root / "folds/tiny.csv"
    swapped = pd.read_csv(path)
    swapped["fold"] = 1 - swapped["fold"]
    swapped.to_csv(path, index=False)
    (house.root / "folds/tiny.run.json").unlink()
    before = path.read_bytes()
    house.ich("folds")
    assert path.read_bytes() == before


def test_a_fold_file_that_was_changed_since_is_refused_until_it_is_said_which_to_use(house):
    path, record = house.root / "folds/tiny.csv", house.root / "folds/tiny.run.json"
    before = path.read_bytes()
    swapped = pd.read_csv(path)
    swapped.assign(fold=1 - swapped["fold"]).to_csv(path, index=False)
    assert f"error: {path} is not as `ich folds` left it" in house.ich("folds", code=2)
    record.unlink()
    house.ich("folds")
    assert path.read_bytes() != before
    house.ich("folds", "--force")
    assert path.read_bytes() == before


def test_a_kill_between_the_fold_file_and_its_record_is_no_dead_end(house):
    record = Record(house.root / "folds/tiny.run.json")
    value = record.read()
    assert value is not None
    write_record(record.path, value | {"files": {"tiny.csv": "of the file before"}})
    before = (house.root / "folds/tiny.csv").read_bytes()
    house.ich("folds")
    assert (house.root / "folds/tiny.csv").read_bytes() == before
    assert house.states()["folds"] == "done"


def test_a_kill_between_the_demo_and_its_record_is_no_dead_end(house):
    (house.root / "input/tiny/run.json").write_text("{}\n")
    house.ich("demo")
    assert house.states()["demo"] == "done"


def test_folds_of_our_own_are_divided_anew_for_other_studies(house):
    before = pd.read_csv(house.root / "folds/tiny.csv")
    house.ich("demo", "--set", "demo.seed=4")
    house.ich("prepare")
    assert "divided anew" in house.ich("folds")
    assert not set(before["study_id"]) & set(pd.read_csv(house.root / "folds/tiny.csv")["study_id"])


def test_a_fold_file_that_splits_a_patient_is_refused(house):
    path = house.root / "folds/tiny.csv"
    folds = pd.read_csv(path)
    patient = folds["patient_id"].value_counts().index[0]
    rows = folds.index[folds["patient_id"] == patient]
    assert len(rows) > 1, "the tiny competition has a patient with two studies"
    folds.loc[rows[0], "fold"] = 1 - folds.loc[rows[0], "fold"]
    folds.to_csv(path, index=False)
    (house.root / "folds/tiny.run.json").unlink()
    assert f"patient {patient} lies in two folds" in house.ich("folds", code=2)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("cnn", "--model", "resnt"), "--model resnt: this recipe has resnet, resnext"),
        (("cnn", "--fold", "7"), "--fold 7: this recipe has folds 0 to 1"),
        (("cnn", "--set", "cnn.resnet.epoch=3"), "did you mean epochs?"),
        (("cnn", "--set", "cnn.resnet.backbone=resnet10"), "did you mean"),
        (("prepare", "--set", "competition.root=input/nowhere"), "no such folder"),
        (("sequence", "--set", "image.size=48"), "run `ich prepare` first"),
    ],
)
def test_a_user_s_mistake_is_one_line(finished, arguments, says):
    said = finished.ich(*arguments, code=2)
    assert says in said
    assert said.strip().splitlines()[-1].startswith("error: ")
