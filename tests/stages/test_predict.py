"""`ich predict` on the tiny recipe: the test folder comes out as submitted, anything else is told in one line."""

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.special import expit, logit

from ich.ensemble.hierarchy import project_any
from ich.errors import UserError
from ich.pipeline.plan import Plan
from ich.recipe import load
from ich.stages import predict
from ich.store.hashes import sha256_bytes
from ich.store.records import read_record, write_record

CLASSES = ["epidural", "intraparenchymal", "intraventricular", "subarachnoid", "subdural", "any"]
PROBABILITIES = [f"prob_{name}" for name in CLASSES]
POSITIVES = [f"positive_{name}" for name in CLASSES]
TEST = "input/tiny/stage_2_test"

# Probabilities are compared as logits, for the small networks' hardly differ: their logits do by 2e-3 (standard
# deviation). In the same batches a slice meets the same kernels, float32 and bf16, and comes out the same to the bit
# here. In other company it meets batches of other sizes, whose kernels may add up in another order: on larger networks
# a study alone was 3e-7 off. Both bounds leave room for other processors.
SAME_BATCHES = 1e-5
OTHER_BATCHES = 1e-4


def score(house, source: Path, out: Path, *overrides: str) -> pd.DataFrame:
    """The command's stage in this process; the written table."""
    predict.run(Plan(load(house.root / "tests/tiny.yaml", overrides), house.root), source, out)
    return pd.read_csv(out)


def submitted(house, name: str = "submission") -> pd.DataFrame:
    """A submission as a table: a row an image, a column a class."""
    table = pd.read_csv(house.root / f"submissions/tiny/{name}.csv")
    table[["image_id", "kind"]] = table["ID"].str.rsplit("_", n=1, expand=True)
    return table.pivot(index="image_id", columns="kind", values="Label")[CLASSES]


def assert_same(scored: pd.DataFrame, expected: pd.DataFrame, tolerance: float) -> None:
    """The table's probabilities are the submission's: [n, c] each, joined by image id."""
    assert expected.pipe(logit).std().min() > 10 * tolerance, "of slices that are all alike equality says nothing"
    found = scored.set_index("image_id").loc[expected.index, PROBABILITIES]
    np.testing.assert_allclose(logit(found), logit(expected), rtol=0, atol=tolerance)


def slice_table(house) -> pd.DataFrame:
    key = json.loads((house.root / "input/cache/tiny.json").read_text())["key"]
    return pd.read_parquet(house.root / "input/cache" / key / "slices.parquet").query("split == 'test'")


def study_files(house) -> list[Path]:
    """The test files of one study, in order of position."""
    slices = slice_table(house)
    return [house.root / "input/tiny" / p for p in slices[slices["study_id"] == slices["study_id"].iloc[0]]["path"]]


@pytest.fixture(scope="module")
def said_and_scored(finished, tmp_path_factory) -> tuple[str, pd.DataFrame]:
    """The recipe's own test folder by the command itself: what it said, and its table."""
    out = tmp_path_factory.mktemp("scored") / "below" / "out.csv"
    said = finished.ich("predict", TEST, "-o", str(out))
    return said, pd.read_csv(out)


def test_the_test_folder_is_scored_as_it_was_submitted(finished, said_and_scored):
    scored, expected = said_and_scored[1], submitted(finished)
    assert sorted(scored["image_id"]) == sorted(expected.index)
    assert_same(scored, expected, SAME_BATCHES)


def test_a_slice_is_positive_where_the_binary_submission_says_so(finished, said_and_scored):
    expected = submitted(finished, "submission_binary")
    scored = said_and_scored[1].set_index("image_id").loc[expected.index]
    assert (scored[POSITIVES].to_numpy() == expected.to_numpy()).all()


def test_the_table_names_study_series_and_place_and_no_patient(finished, said_and_scored):
    scored = said_and_scored[1]
    slices = slice_table(finished)
    assert list(scored.columns) == ["image_id", "study_id", "series_id", "index", *PROBABILITIES, *POSITIVES]
    same = ["image_id", "study_id", "series_id", "index"]
    pd.testing.assert_frame_equal(scored[same], slices[same].reset_index(drop=True), check_dtype=False)
    assert not set(slices["patient_id"]) & set(scored.astype(str).to_numpy().ravel())


def test_a_study_is_shown_with_the_maximum_of_its_slices(said_and_scored):
    said, scored = said_and_scored
    for study, part in scored.groupby("study_id"):
        row = next(line.split() for line in said.splitlines() if line.startswith(str(study)))
        assert row == [str(study), str(len(part)), *(f"{p:.3f}" for p in part[PROBABILITIES].max())]


def test_a_study_alone_scores_as_among_others_whatever_its_folders_and_names(finished, tmp_path, capsys):
    files = study_files(finished)
    source = tmp_path / "cd"
    (source / "A/B").mkdir(parents=True)
    # as on a hospital's disc: no suffix, dots in the names, the same name in two folders
    for number, file in enumerate(files):
        shutil.copy(file, source / ("A" if number % 2 else "A/B") / f"1.2.840.{number // 2}")
    (source / "notes.txt").write_text("nothing to see")
    (source / "A/broken.dcm").write_bytes(files[0].read_bytes()[:-500])
    scored = score(finished, source, tmp_path / "out.csv", "compute.threads=2")

    assert scored["index"].tolist() == list(range(len(files)))
    names = [f"{'A' if number % 2 else 'A/B'}/1.2.840.{number // 2}" for number in range(len(files))]
    if len(files) % 2:  # the last one has its name for itself
        names[-1] = f"1.2.840.{len(files) // 2}"
    assert scored["image_id"].tolist() == names
    expected = submitted(finished).loc[[file.stem for file in files]]
    assert_same(scored.assign(image_id=expected.index), expected, OTHER_BATCHES)
    said = capsys.readouterr().out
    assert "quarantined: notes.txt: this is not a DICOM file" in said
    assert "quarantined: A/broken.dcm: there are fewer pixels than the header says" in said


def test_one_file_is_scored_like_a_folder_that_holds_nothing_else(finished, tmp_path, monkeypatch):
    file, between = study_files(finished)[0], tmp_path / "between"
    between.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(between))
    (tmp_path / "one").mkdir()
    shutil.copy(file, tmp_path / "one" / file.name)
    alone = score(finished, file, tmp_path / "a.csv")
    folder = score(finished, tmp_path / "one", tmp_path / "b.csv")
    assert alone["image_id"].tolist() == [file.stem]
    pd.testing.assert_frame_equal(alone, folder)
    assert not list(between.glob("ich-*")), "the pictures read on the way"


@pytest.mark.parametrize(
    ("names", "ids"),
    [
        (["a/1.dcm", "a/2.DCM"], ["1", "2"]),
        (["a/1.dcm", "b/1.dcm", "b/2.dcm"], ["a/1", "b/1", "2"]),
        (["1.2.840.5", "1.2.840.6"], ["1.2.840.5", "1.2.840.6"]),
        (["a/1", "a/1.dcm", "b/1.dcm"], ["a/1", "a/1.dcm", "b/1"]),
    ],
)
def test_image_ids_are_as_short_as_they_can_be(names, ids):
    assert predict._image_ids(names) == ids


def test_each_fold_blends_its_own_models_as_its_own_file_says(house, tmp_path):
    chosen = {0: "resnet", 1: "bigru"}
    parts = []
    for fold, member in chosen.items():
        folder = house.root / f"oof/tiny/blend/fold{fold}"
        record = read_record(folder / "run.json") or {}
        blend = json.loads((folder / "blend.json").read_text())
        weights = [float(name == member) for name in blend["members"]]
        for name in blend["classes"]:
            blend["classes"][name] = {
                "combination": {"method": "weights", "weights": weights},
                "calibration": {"method": "temperature", "temperature": 2.0},
            }
        content = json.dumps(blend).encode()
        (folder / "blend.json").write_bytes(content)
        record["files"]["blend.json"] = sha256_bytes(content)
        write_record(folder / "run.json", record)
        test = pd.read_parquet(house.root / f"oof/tiny/{member}/fold{fold}/test.parquet").set_index("image_id") / 2
        parts.append(test.set_axis(CLASSES, axis=1))
        parts[-1][CLASSES] = project_any(parts[-1].to_numpy(), CLASSES, [1, 1, 1, 1, 1, 2])
    scored = score(house, house.root / TEST, tmp_path / "out.csv")
    assert_same(scored, expit((parts[0] + parts[1]) / 2), SAME_BATCHES)


def test_any_is_at_least_its_largest_subtype_in_each_fold(finished):
    for k in (0, 1):
        for split in ("valid", "test"):
            logits = pd.read_parquet(finished.root / f"oof/tiny/blend/fold{k}/{split}.parquet").filter(like="logit_")
            assert (logits["logit_any"] >= logits.drop(columns="logit_any").max(axis=1)).all()


def test_linked_folders_are_read_once_even_in_a_circle(tmp_path):
    for folder in ("disc/a", "elsewhere"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "1.dcm").touch()
    (tmp_path / "disc/a/up").symlink_to(tmp_path / "disc")
    (tmp_path / "disc/b").symlink_to(tmp_path / "elsewhere")
    assert predict._files(tmp_path / "disc") == (tmp_path / "disc", ["a/1.dcm", "b/1.dcm"])


def test_without_thresholds_there_are_probabilities_alone(house, tmp_path):
    (house.root / "oof/tiny/thresholds.run.json").unlink()
    scored = score(house, study_files(house)[0], tmp_path / "out.csv")
    assert list(scored.columns)[4:] == PROBABILITIES


def test_members_that_the_blend_does_not_read_are_left_aside(house, tmp_path):
    setting = "blend.members=[resnext]"
    for stage in ("blend", "thresholds", "submit"):
        house.ich(stage, "--set", setting)
    shutil.rmtree(house.root / "oof/tiny/bigru")
    scored = score(house, house.root / TEST, tmp_path / "out.csv", setting)
    assert_same(scored, submitted(house), SAME_BATCHES)


def test_a_missing_fold_is_named_with_the_command_that_makes_it(house, tmp_path):
    (house.root / "oof/tiny/bigru/fold1/run.json").unlink()
    said = house.ich("predict", TEST, "-o", "out.csv", code=2)
    assert "needs sequence/bigru/fold1, which is missing; run `ich sequence` first" in said
    assert not (house.root / "out.csv").exists()


@pytest.mark.parametrize(
    ("file", "stage"),
    [
        ("resnet/fold0/model.safetensors", "cnn"),
        ("lgbm/fold1/model_any.txt", "stack"),
        ("blend/fold0/blend.json", "blend"),
        ("thresholds.json", "thresholds"),
    ],
)
def test_a_changed_model_is_refused_before_anything_is_read(house, tmp_path, file, stage):
    path = house.root / "oof/tiny" / file
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(UserError, match=f"is stale .* was changed.*; run `ich {stage}` first"):
        score(house, house.root / "nowhere", tmp_path / "out.csv")


def test_a_model_that_changes_during_the_run_is_refused(house, tmp_path, monkeypatch):
    path = house.root / "oof/tiny/lgbm/fold1/model_any.txt"
    unchanged = predict._read

    def read(*arguments):
        path.write_bytes(path.read_bytes() + b" ")
        return unchanged(*arguments)

    monkeypatch.setattr(predict, "_read", read)
    with pytest.raises(UserError, match=r"model_any\.txt was changed while it was in use"):
        score(house, study_files(house)[0], tmp_path / "out.csv")
    assert not (tmp_path / "out.csv").exists()


def test_other_settings_than_those_trained_with_are_refused(finished, tmp_path):
    with pytest.raises(UserError, match="run `ich cnn` first"):
        score(
            finished,
            finished.root / TEST,
            tmp_path / "out.csv",
            "cnn.resnet.input=neighbours",
            "cnn.resnet.windows=[[40, 80]]",
        )


@pytest.mark.parametrize(
    ("files", "says"),
    [
        ({}, "there is no file in this folder"),
        ({"a.txt": b"text", "b/c": b""}, "not one readable slice in 2 files; a.txt: this is not a DICOM file"),
        ({"a.dcm": None}, "not one readable slice in 1 files; a.dcm: there are fewer pixels than the header says"),
    ],
)
def test_a_folder_without_a_readable_slice_is_one_line(finished, tmp_path, files, says):
    source = tmp_path / "source"
    source.mkdir()
    for name, content in files.items():
        (source / name).parent.mkdir(exist_ok=True)
        (source / name).write_bytes(study_files(finished)[0].read_bytes()[:-500] if content is None else content)
    with pytest.raises(UserError) as error:
        score(finished, source, tmp_path / "out.csv")
    assert says in str(error.value)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out.csv").exists()


def test_a_path_that_is_not_there_ends_with_code_2_and_one_line(finished):
    said = finished.ich("predict", "input/nowhere", "-o", "out.csv", code=2)
    assert said == "error: input/nowhere: no such file or folder\n"
