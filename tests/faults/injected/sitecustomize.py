"""A full disk at the first write of each file, in every Python process with this folder on PYTHONPATH.

FAULTS names a folder: `failed` lists the files whose write has already failed, and now succeeds; `written` lists those
that were written. FAULTS_SEED and the file's name determine how a write fails: the temporary file cannot be opened,
only half of it can be written, or fsync or the renaming fails. One core is used, so that stages have no workers.
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
    """Return how the write of this file fails, or None."""
    known = [line.partition(" ")[2] for line in lines("failed")]
    if target in known:
        return None
    mode = Random(f"{os.environ['FAULTS_SEED']} {target}").choice(modes)
    note("failed", f"{mode} {target}")
    return mode


def relative(path: object) -> str:
    return os.path.relpath(str(path), HOME)


def temporary(make):
    """Wrap tempfile.mkstemp or mkdtemp, as `atomic` and `atomic_folder` call them."""

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
        passing = Path(source).name.startswith(".") or Path(source).parent.name == "unfinished"
        if passing and Path(target).suffix != ".old":
            note("written", relative(target))

    return renamed


def write_text(path: Path, *arguments, **more):
    """Replace Path.write_text, which writes the owner of a lock."""
    if path.suffix == ".lock" and drawn(relative(path), ("opening",)):
        raise full(path)
    return real_write_text(path, *arguments, **more)


real_open, real_fsync, real_write_text = open, os.fsync, Path.write_text
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
tempfile.mkstemp, tempfile.mkdtemp = temporary(tempfile.mkstemp), temporary(tempfile.mkdtemp)
os.fsync, os.replace, os.rename = fsync, renaming(os.replace), renaming(os.rename)
Path.write_text = write_text
