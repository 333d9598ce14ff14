"""Files are prefetched, without any other effect."""

import os

import pytest

from ich.data import files


@pytest.mark.skipif(not hasattr(os, "posix_fadvise"), reason="this system cannot prefetch")
def test_each_regular_file_is_prefetched_once_and_a_few_files_ahead(tmp_path, monkeypatch):
    prefetched, real = [], os.open
    monkeypatch.setattr(files.os, "open", lambda path, flags: prefetched.append(path) or real(path, flags))
    regular = [tmp_path / f"{k:02}" for k in range(files.AHEAD + 5)]
    for path in regular:
        path.write_bytes(b"a")
    found = []
    for path in files.ahead(regular):
        found.append(path)
        assert len(prefetched) == min(len(found) + files.AHEAD, len(regular))
    assert found == prefetched == regular
    os.mkfifo(tmp_path / "pipe")
    others = [tmp_path / "pipe", tmp_path / "none", tmp_path, tmp_path / "a.zip!/member"]
    assert list(files.ahead(others)) == others
    assert prefetched == regular
