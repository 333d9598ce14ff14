"""`ich push` and `ich pull`: artifacts, files of the user, the key of pseudonyms and raw files by way of a store."""

from pathlib import Path

import pytest

from conftest import PARTS, Clone, cloned, plan_of
from ich.errors import UserError
from ich.models.pseudonyms import Pseudonyms
from ich.pipeline import exchange
from ich.pipeline.state import Plan
from ich.stages import transfer
from ich.store.records import record_text
from ich.store.remote import Remote


@pytest.fixture
def url(tmp_path) -> str:
    return f"file://{tmp_path}/store"


@pytest.fixture
def other(tmp_path) -> Path:
    """A second machine: a clone without data."""
    (tmp_path / "other").mkdir()
    return cloned(tmp_path / "other").root


def run(what: str, plan: Plan, capsys, *, model: str | None = None, raw: bool = False) -> str:
    getattr(transfer, what)(plan, model=model, raw=raw)
    return capsys.readouterr().out


def artifacts(root: Path, *changes: str) -> dict[str, bytes]:
    """Content of all files of finished tasks and of their records, by path."""
    plan, found = plan_of(root, *changes), dict[str, bytes]()
    for task in exchange.tasks_of(plan):
        if plan.state(task).done:
            paths = [task.record.path, *(task.folder / name for name in plan.files_of(task))]
            found |= {str(path.relative_to(root)): path.read_bytes() for path in paths}
    return found


def changed(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock"}


def test_a_recipe_arrives_on_another_machine(trained, other, url, tmp_path, capsys):
    said = run("push", plan_of(trained, f"store.remote={url}"), capsys)
    assert f"push: 54 of 57 artifacts are in {url}\n  not up to date here: score, explain, report\n" in said
    said = run("pull", plan_of(other, f"store.remote={url}"), capsys)
    assert "pull: 54 of 57 artifacts are up to date here, 54 of them new\n" in said
    assert artifacts(other) == artifacts(trained)
    assert len(artifacts(other)) > 200
    assert (other / "input/tiny/solution.csv").read_bytes() == (trained / "input/tiny/solution.csv").read_bytes()

    before = changed(tmp_path / "store/objects") | changed(tmp_path / "store/records") | changed(other)
    run("push", plan_of(other, f"store.remote={url}"), capsys)
    assert "54 of 57 artifacts are up to date here, 0 of them new" in run(
        "pull", plan_of(other, f"store.remote={url}"), capsys
    )
    assert changed(tmp_path / "store/objects") | changed(tmp_path / "store/records") | changed(other) == before


def test_pull_replaces_missing_and_damaged_files_and_keeps_others(trained, other, url, capsys):
    run("push", plan_of(trained, f"store.remote={url}"), capsys, model="lr")
    assert "pull: 12 of 12 artifacts are up to date here, 12" in run(
        "pull", plan_of(other, f"store.remote={url}"), capsys, model="lr"
    )
    assert not (other / "oof/parts/bigru").exists()
    fold, whole = other / "oof/parts/lr/fold0", artifacts(other)
    (fold / "model.safetensors").write_bytes(b"damaged")
    (fold / "valid.parquet").unlink()
    kept = (fold / "test.parquet").stat().st_mtime_ns
    assert " 1 of them new" in run("pull", plan_of(other, f"store.remote={url}"), capsys, model="lr")
    assert artifacts(other) == whole
    assert (fold / "test.parquet").stat().st_mtime_ns == kept


def test_artifacts_of_other_settings_are_not_pulled(trained, other, url, capsys):
    run("push", plan_of(trained, f"store.remote={url}"), capsys, model="lr")
    plan = plan_of(other, f"store.remote={url}", "sequence.lr.epochs=3")
    said = run("pull", plan, capsys, model="lr")
    assert f"  not in {url}: sequence/lr/fold0, sequence/lr/fold1, sequence/lr/fold2, sequence/lr\n" in said
    assert not (other / "oof/parts/lr").exists()


def test_raw_files_arrive_on_another_machine(trained, other, url, tmp_path, capsys, monkeypatch):
    slices = len(list((trained / "input/tiny").rglob("*.dcm")))
    run("push", plan_of(trained, f"store.remote={url}"), capsys, raw=True)
    pull = lambda: run("pull", plan_of(other, f"store.remote={url}"), capsys, raw=True)
    assert "raw files are in" in pull()
    assert len(list((other / "input/tiny").rglob("*.dcm"))) == slices
    assert plan_of(other).prepare().folder.name == plan_of(trained).prepare().folder.name

    stored, (first, second, *_) = changed(tmp_path / "store/objects"), sorted((other / "input/tiny").rglob("*.dcm"))
    first.unlink()
    second.write_bytes(bytes(second.stat().st_size))
    assert " 2 of them new" in pull()
    assert plan_of(other).prepare().folder.name == plan_of(trained).prepare().folder.name
    monkeypatch.setattr(transfer, "sha256_file", None)  # files of the last push are not hashed again
    run("push", plan_of(other, f"store.remote={url}"), capsys, raw=True)
    assert changed(tmp_path / "store/objects") == stored


def test_a_step_reads_missing_raw_files_and_refuses_corrected_ones(trained, other, url, capsys):
    words = [f"store.remote={url}", "demo=null"]
    run("push", plan_of(trained, *words), capsys, raw=True)
    plan = plan_of(other, *words)
    transfer.fetch_raw(plan, ())
    assert sorted(path.name for path in plan.raw_root.iterdir()) == [
        "stage_2_sample_submission.csv",
        "stage_2_train.csv",
    ]
    transfer.fetch_raw(plan)
    assert plan.prepare().folder.name == plan_of(trained, *words).prepare().folder.name
    table = plan.raw_root / "stage_2_train.csv"
    corrected = table.read_text().replace(",1", ",0", 1)
    table.write_text(corrected)
    with pytest.raises(
        UserError, match=r"stage_2_train\.csv differs from file.*Keep it by `ich push --raw`, or replace"
    ):
        transfer.fetch_raw(plan, ())
    assert table.read_text() == corrected


def test_raw_files_with_hostile_names_are_refused(other, url, tmp_path):
    plan = plan_of(other, f"store.remote={url}")
    with pytest.raises(UserError, match=r"has no raw files\. Run `ich push --raw` where they are"):
        transfer.pull(plan, model=None, raw=True)
    for table in ('{"../../x": [1, "", "' + "0" * 64 + '"]}', '{"x": 1}', "[", "1"):
        Remote(url).write_latest(transfer._raw_name(plan), table.encode())
        with pytest.raises(UserError, match=r"is malformed .*; .*push"):
            transfer.pull(plan, model=None, raw=True)
    Remote(url).write_latest("sources/parts.json", ('{"../x": "' + "0" * 64 + '"}').encode())
    pointer = {"key": "../../x", "settings": plan.image_settings}
    Remote(url).write_latest("input/cache/parts.json", record_text(pointer).encode())
    exchange.pull_shared(plan, Remote(url))
    assert not plan.workspace.cache_pointer.exists()


def test_the_key_of_pseudonyms_arrives_for_its_owner_only(other, url, tmp_path, capsys):
    here = plan_of(cloned(tmp_path / "here").root, "competition.format=folder")
    there = plan_of(other, "competition.format=folder")
    keys = [Pseudonyms.of(plan.workspace, "folder") for plan in (here, there)]
    name = keys[0].of_id("patient_id", "7")
    exchange.push_shared(here, Remote(url))
    exchange.pull_shared(there, Remote(url))
    assert keys[1].of_id("patient_id", "7") == name
    assert (keys[1].file.stat().st_mode & 0o777, keys[1].file.parent.stat().st_mode & 0o777) == (0o600, 0o700)
    assert keys[1].file.read_text() not in capsys.readouterr().out

    keys[1].file.unlink()
    Pseudonyms(keys[1].file).of_id("patient_id", "7")  # a key of its own
    for exchanged in (exchange.push_shared, exchange.pull_shared):
        with pytest.raises(UserError, match=r"pseudonyms\.key is another key than that of the store") as error:
            exchanged(there, Remote(url))
        assert keys[0].file.read_text() not in str(error.value)


def test_wrong_commands_say_what_to_type(other, url):
    clone = Clone(other)
    said = clone.ich("push", code=2, recipe=PARTS)
    assert "recipe parts has no store. Add the line `store: {remote: s3://bucket/prefix}` to it, or use --set" in said
    store = ("--set", f"store.remote={url}")
    said = clone.ich("pull", "--model", "renset", *store, code=2, recipe=PARTS)
    assert "--model renset: unknown model. Choose from simclr, resnet, " in said
    said = clone.ich("pull", "--model", "resnet", "--raw", *store, code=2, recipe=PARTS)
    assert "--raw and --model exclude each other; use one" in said
