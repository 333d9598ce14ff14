"""`ich clean`: the caches of no recipe are listed, and removed with --yes."""

import shutil
from pathlib import Path

import pytest

from conftest import plan_of
from ich.errors import UserError
from ich.stages import clean
from ich.store.locks import hold
from ich.store.records import Record

OLD, UNFINISHED = "0123456789abcdef", "fedcba9876543210"


@pytest.fixture
def caches(copy: Path) -> Path:
    """The caches of a workspace, with a finished and an unfinished one of no recipe."""
    place = copy / "input/cache"
    shutil.copytree(plan_of(copy).prepared.folder, place / OLD)
    (place / UNFINISHED).mkdir()
    (place / UNFINISHED / "hu-00000.npy").write_bytes(bytes(5_000_000))
    (place / "0123").mkdir()  # not the name of a cache
    (place / "aaaaaaaaaaaaaaaa").symlink_to(copy / "oof")
    return place


def cleaned(place: Path, capsys, *, yes: bool = False) -> dict[str, str]:
    """The users of each cache, and the last line under the name "clean:"."""
    clean.run(place.parents[1], yes=yes)
    lines = capsys.readouterr().out.splitlines()
    table = [line.split(maxsplit=3) for line in lines[2 : lines.index("")]]
    return {cells[0]: f"{cells[1]} {cells[3]}" for cells in table} | {"clean:": lines[-1].removeprefix("clean: ")}


def test_caches_of_no_recipe_are_listed_and_removed_with_yes(caches, capsys):
    used = plan_of(caches.parents[1]).prepared.folder
    before = sorted(caches.rglob("*"))
    found = cleaned(caches, capsys)
    assert found.pop("clean:").startswith("no recipe uses 2 of 3 caches, 0.00")
    assert found[used.name].endswith(" parts")
    assert found[OLD].endswith(" no recipe")
    assert found[UNFINISHED] == "0.005 no recipe, unfinished"
    assert len(found) == 3
    assert sorted(caches.rglob("*")) == before, "a list changes nothing"
    assert cleaned(caches, capsys, yes=True)["clean:"].startswith("removed 2 of 3 caches, 0.00")
    gone = [path for path in before if path.is_relative_to(caches / OLD) or path.is_relative_to(caches / UNFINISHED)]
    left = {path for path in caches.rglob("*") if path.parent.name != ".locks"}
    assert left == {path for path in set(before) - set(gone) if path.parent.name != ".locks"}
    assert cleaned(caches, capsys)["clean:"] == f"nothing to remove in {caches}"
    assert plan_of(caches.parents[1]).state(plan_of(caches.parents[1]).prepared).done


def test_a_locked_cache_is_never_removed(caches, capsys, monkeypatch):
    with hold(Record(caches / UNFINISHED / "run.json").lock, on_wait=pytest.fail):
        found = cleaned(caches, capsys, yes=True)
        assert found[UNFINISHED] == "0.005 a process that is writing it"
        assert (caches / UNFINISHED / "hu-00000.npy").exists()
        monkeypatch.setattr(clean, "held", lambda _: False)  # it is locked after the list was made
        assert cleaned(caches, capsys, yes=True)["clean:"].startswith("removed 0 of 2 caches")
        assert (caches / UNFINISHED / "hu-00000.npy").exists()
    assert not (caches / OLD).exists()


def test_an_unfinished_cache_of_a_recipe_in_configs_is_kept(caches, capsys):
    root = caches.parents[1]
    text = "name: mine\ncompetition: {format: rsna2019, root: input/tiny}\nimage: {size: 48}\n"
    (root / "configs/mine.yaml").write_text(text + "cnn: {resnet: {backbone: resnet10t}}\n")
    cache = plan_of(root, recipe="configs/mine.yaml").prepare().folder
    (caches / UNFINISHED).rename(cache)
    (root / "configs/invalid.yaml").write_text("name: [")
    found = cleaned(caches, capsys, yes=True)
    assert found[cache.name] == "0.005 mine"
    assert cache.exists()


def test_a_damaged_pointer_stops_it(caches):
    (caches / "parts.json").write_text("{")
    with pytest.raises(UserError, match=r"parts\.json is damaged.* Run `ich prepare` for it first"):
        clean.run(caches.parents[1], yes=True)
    assert (caches / OLD).exists()
