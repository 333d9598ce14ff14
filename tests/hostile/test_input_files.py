"""Pipes, devices and huge files in place of input files are refused at once, by whatever reads them."""

import ast
import gzip
import os
import signal
from pathlib import Path
from types import SimpleNamespace

import pytest

from ich.data import dicom, files, images
from ich.data.competitions import layout
from ich.data.refusal import Unreadable
from ich.ensemble.thresholds import user_table
from ich.errors import UserError
from ich.models import labels
from ich.models.external import External
from ich.phantom.masks import lesion_masks
from ich.recipe import load

SOURCE = Path(__file__).parents[2] / "src" / "ich"
SECONDS = 2.0


def external(path: Path) -> None:
    External._read(SimpleNamespace(), SimpleNamespace(model="theirs"), path, None)


READERS = {
    "geometry of a .dcm": dicom.geometry,
    "pixels of a .dcm": dicom.hounsfield,
    "geometry of a .png": images.geometry,
    "grey values of a .png": images.grey,
    "members of a .zip": files.members,
    "member of a .zip": lambda path: files.located(Path(f"{path}!/a")).__enter__(),
    "dialect of a .csv": layout.dialect,
    "rows of a .csv": layout.read_text,
    "own table .csv": user_table.read,
    "own table .csv.gz": user_table.read,
    "own table .parquet": user_table.read,
    "external .csv": external,
    "external .parquet": external,
    "labels .csv": labels._read,
    "labels .parquet": labels._read,
    "masks .npz": lambda path: lesion_masks(path, [], [], 8, None),
    "recipe .yaml": load,
}


def huge(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(1 << 43)


OTHERS = {
    "pipe": os.mkfifo,
    "device": lambda path: path.symlink_to("/dev/zero"),
    "folder": Path.mkdir,
    "link to itself": lambda path: path.symlink_to(path),
    "huge": huge,
}


@pytest.fixture
def no_hang():
    signal.signal(signal.SIGALRM, lambda *_: pytest.fail(f"still running after {SECONDS} s"))
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    yield
    signal.setitimer(signal.ITIMER_REAL, 0)


@pytest.mark.usefixtures("no_hang")
@pytest.mark.parametrize("other", OTHERS)
@pytest.mark.parametrize("reader", READERS)
def test_what_is_not_an_ordinary_file_is_refused_in_one_line(tmp_path, reader, other):
    path = tmp_path / f"a{reader.split()[-1]}"
    OTHERS[other](path)
    with pytest.raises((Unreadable, UserError, ValueError, OSError)) as refused:
        READERS[reader](path)
    assert "\n" not in str(refused.value)


def test_a_gzip_bomb_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(user_table, "MAX_TABLE", 1 << 20)
    (tmp_path / "a.csv.gz").write_bytes(gzip.compress(b"any,prob_any\n" + bytes(1 << 21)))
    with pytest.raises(ValueError, match="larger than 1,048,576 bytes"):
        user_table.read(tmp_path / "a.csv.gz")


INPUTS = ["data", "phantom", "recipe", "ensemble", "models/external.py", "models/labels.py"]  # read files of the user
OPENS = {"open", "read_bytes", "read_text", "ZipFile", "read_csv", "read_table", "read_schema", "load", "imread"}
OURS = ("read_text", "layout.read_text")  # functions of this program
OPENED = ("file", "data", "source", "table", "text", "io.BytesIO(content(")  # arguments that are no paths
OTHERWISE = {  # what is no input file
    "data/cache.py": ["temporary.open('wb')", "np.load(path, mmap_mode='r', allow_pickle=False)"],
    "data/decoders.py": ["Path('/proc/self/statm').read_text()"],
    "data/files.py": ["os.open(path, os.O_RDONLY | os.O_NONBLOCK)", "opened.open(entries[name])"],
    "phantom/masks.py": ["archive.open(entry, 'w')"],
    "phantom/competition.py": [
        "zipfile.ZipFile(root / 'masks.npz', 'w')",
        "(root / name).open('w', newline='', encoding='ascii')",
    ],
}


def test_each_input_file_is_opened_in_the_same_way():
    paths = [
        path for name in INPUTS for path in ([SOURCE / name] if "." in name else sorted((SOURCE / name).rglob("*.py")))
    ]
    assert len(paths) > 50
    for path in paths:
        calls = [node for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.Call)]
        found = {ast.unparse(node): ast.unparse(node.func) for node in calls}
        opens = [call for call, name in found.items() if name.rpartition(".")[2] in OPENS and name not in OURS]
        others = [call for call in opens if not call.partition("(")[2].startswith(OPENED)]
        name = path.relative_to(SOURCE).as_posix()
        assert sorted(call for call in others if "opener=regular(" not in call) == sorted(OTHERWISE.get(name, [])), name
