"""Hostile or poor environments: the umask, no shared memory, and folders that other users can write."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from ich.store.atomic import atomic_folder, write_text


@pytest.fixture
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002], indirect=True)
def test_files_and_folders_respect_the_umask(tmp_path: Path, umask: int):
    write_text(tmp_path / "new" / "a.json", "{}")
    with atomic_folder(tmp_path / "folder") as folder:
        write_text(folder / "b.json", "{}")
    modes = {path.name: path.stat().st_mode & 0o777 for path in tmp_path.rglob("*")}
    files, folders = 0o666 & ~umask, 0o777 & ~umask
    assert modes == {"new": folders, "a.json": files, "folder": folders, "b.json": files}
