"""Files are fetched ahead of their reading, and nothing else comes of it."""

import os

import pytest

from ich.data import files


@pytest.fixture
def asked(monkeypatch):
    """The names of the files that were asked for ahead."""
    names, real = [], os.open

    def opened(path, *flags):
        names.append(path.name)
        return real(path, *flags)

    monkeypatch.setattr(files.os, "open", opened)
    return names


@pytest.mark.skipif(not hasattr(os, "posix_fadvise"), reason="this system fetches nothing ahead")
def test_each_file_is_asked_for_once_and_a_few_files_ahead(tmp_path, asked):
    paths = [tmp_path / f"{k:02}" for k in range(files.AHEAD + 5)]
    for path in paths:
        path.write_bytes(b"a")
    seen = []
    for path in files.ahead(paths):
        seen.append(path)
        assert len(asked) == min(len(seen) + files.AHEAD, len(paths))
    assert seen == paths
    assert asked == [path.name for path in paths]


def test_what_cannot_be_fetched_is_left_to_its_reader(tmp_path, asked):
    os.mkfifo(tmp_path / "pipe")
    paths = [tmp_path / "pipe", tmp_path / "none", tmp_path, tmp_path / "a.zip!/member"]
    assert list(files.ahead(paths)) == paths
    assert asked == []
    assert list(files.ahead([])) == []
