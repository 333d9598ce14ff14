"""A disk that is full at the first write of each file, in every Python that starts with this folder on PYTHONPATH.

FAULTS names a folder: `failed` lists the files whose write has failed already, and goes through from then on;
`written` those that were written. How a write fails is drawn by FAULTS_SEED and the file's name: its temporary file
cannot be opened, no more than half of it can be written, it cannot be brought to the disk, it cannot be renamed.
One process at a time, on one core, so that stages have no
worker processes.
"""

import errno
import os
import resource
import signal
import tempfile
from pathlib import Path
from random import Random

HERE, HOME = Path(os.environ["FAULTS"]), Path(os.environ["FAULTS_ROOT"])
MODES = ("opening", "half", "fsync", "rename")
faulty: dict[str, str] = {}  # temporary name -> how its write fails


def full(path: object) -> OSError:
    return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))


def lines(name: str) -> list[str]:
    path = HERE / name
    return path.read_text().splitlines() if path.is_file() else []


def note(name: str, line: str) -> None:
    with real_open(HERE / name, "a") as file:
        file.write(line + "\n")


def drawn(target: str, modes: tuple[str, ...]) -> str | None:
    """How the write of this file fails; None: it goes through."""
    known = [line.partition(" ")[2] for line in lines("failed")]
    if target in known:
        return None
    mode = Random(f"{os.environ['FAULTS_SEED']} {target}").choice(modes)
    note("failed", f"{mode} {target}")
    return mode


def relative(path: object) -> str:
    return os.path.relpath(str(path), HOME)


def temporary(make):
    """tempfile.mkstemp or mkdtemp, as `atomic` and `atomic_folder` call them."""

    def made(suffix=None, prefix=None, dir=None, *arguments, **more):
        if suffix != ".tmp" or prefix is None or dir is None:
            return make(suffix, prefix, dir, *arguments, **more)
        target = Path(dir, prefix.strip("."))
        mode = drawn(relative(target), MODES)
        if mode == "opening":
            raise full(target)
        result = make(suffix, prefix, dir, *arguments, **more)
        name = result if isinstance(result, str) else result[1]
        if mode == "half" and not isinstance(result, str):
            size = target.stat().st_size if target.is_file() else 2
            resource.setrlimit(resource.RLIMIT_FSIZE, (size // 2, resource.RLIM_INFINITY))
        elif mode is not None:
            faulty[name] = "fsync" if mode == "half" else mode  # of a folder: of the first file in it
        return result

    return made


def fsync(descriptor: int) -> None:
    path = os.readlink(f"/proc/self/fd/{descriptor}")
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    if any(mode == "fsync" and (path == name or path.startswith(f"{name}/")) for name, mode in faulty.items()):
        raise full(path)
    real_fsync(descriptor)


def renaming(rename):
    def renamed(source, target, **more):
        if faulty.get(str(source)) == "rename":
            raise full(source)
        rename(source, target, **more)
        if Path(source).name.startswith(".") and Path(target).suffix != ".old":  # from a temporary name
            note("written", relative(target))

    return renamed


def write_text(path: Path, *arguments, **more):
    """Path.write_text, as a lock's owner is written."""
    if path.suffix == ".lock" and drawn(relative(path), ("opening",)):
        raise full(path)
    return real_write_text(path, *arguments, **more)


real_open, real_fsync, real_write_text = open, os.fsync, Path.write_text
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
tempfile.mkstemp, tempfile.mkdtemp = temporary(tempfile.mkstemp), temporary(tempfile.mkdtemp)
os.fsync, os.replace, os.rename = fsync, renaming(os.replace), renaming(os.rename)
Path.write_text = write_text
