"""Hostile or poor environments: the umask, no shared memory, and folders that other users can write."""

import errno
import multiprocessing
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from ich import console
from ich.data.batches import Batches, epoch_loader
from ich.processes import run_parallel
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


@pytest.fixture
def no_shared_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error of a read-only /dev/shm, as in a container."""

    def lock() -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(multiprocessing, "Lock", lock)
    monkeypatch.setattr(console._here, "warned", set())


@pytest.mark.usefixtures("no_shared_memory")
def test_without_shared_memory_the_work_is_done_in_this_process(capsys: pytest.CaptureFixture[str]):
    for _ in range(2):
        assert list(run_parallel(os.getpid, [()] * 3, 2, threads=1)) == [os.getpid()] * 3
    assert capsys.readouterr().out == (
        "warning: /dev/shm is not writable (Read-only file system): working in one process\n"
    )


class Numbers(Batches[torch.Tensor]):
    seed = 0

    def __len__(self) -> int:
        return 4

    def __getitems__(self, items: list[tuple[int, int]]) -> torch.Tensor:
        return torch.tensor([row for _, row in items])


def test_loaders_in_worker_processes_can_start_workers():
    """The default context of joblib's workers is loky, which cannot."""
    assert epoch_loader(Numbers(), 0, 2, shuffle=False, workers=2).multiprocessing_context.get_start_method() == "fork"


@pytest.mark.usefixtures("no_shared_memory")
def test_without_shared_memory_batches_are_loaded_in_this_process():
    loader = epoch_loader(Numbers(), 0, 2, shuffle=False, workers=2)
    assert (loader.num_workers, sorted(torch.cat(list(loader)).tolist())) == (0, [0, 1, 2, 3])
