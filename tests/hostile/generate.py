"""Generate hostile inputs by strategy and seed, and read each in a child process with limits.

    python -m tests.hostile.generate --count 100000 --seed 1 --out hostile.json

Each input is `read`, `quarantined` in part or `refused` with one line. Anything else is `failed`: another exception, a
crash, more than MEMORY bytes above the start, or more than SECONDS of CPU time (WAIT in all). `--first k --count 1`
repeats input k of a seed. A strategy writes an input into an empty folder and returns the function that reads it.
"""

import argparse
import contextlib
import io
import json
import os
import resource
import select
import signal
import sys
import tempfile
import time
import traceback
import zipfile
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from random import Random
from typing import NamedTuple

import numpy as np
import pandas as pd

from ich.data import dicom
from ich.data.competitions import folder, ntu_dlmi, rsna2019, unibuc
from ich.data.refusal import Quarantined
from ich.data.slice_table import read_geometries, slice_table
from ich.ensemble.thresholds import user_table
from ich.errors import UserError
from tests.plain_slice import HEADER

MEMORY = 1 << 30  # bytes
SECONDS, WAIT = 5.0, 60.0
Read = Callable[[], Sequence[Quarantined]]


class Slow(BaseException):
    """Reading takes more than SECONDS of CPU time."""


class Outcome(NamedTuple):
    number: int
    strategy: str
    kind: str
    """read | quarantined | refused | failed"""
    detail: str
    seconds: float
    mebibytes: float


# ---- inputs


def slice_bytes(random: Random) -> bytes:
    """A small intact DICOM file; the same for the same state of `random`."""
    number = random.randrange(1 << 30)
    header = replace(HEADER, image_id=f"1.2.{number}", study_id=f"1.3.{number}", series_id=f"1.4.{number}")
    with tempfile.NamedTemporaryFile() as file:
        dicom.write(Path(file.name), np.full((16, 16), number % 99, np.int16), header)
        return Path(file.name).read_bytes()


def read_folder(root: Path) -> Sequence[Quarantined]:
    """Read the files below `root`, as `ich prepare` does, up to the quarantine list."""
    raw = folder.raw(root)
    paths = raw.files["path"].tolist()
    table, quarantined = slice_table(raw, read_geometries(root, paths, 1, lambda _: None))
    for path, frame in zip(table["path"], table["frame"], strict=True):
        with contextlib.suppress(dicom.Unreadable), folder.found_files.located(root / path) as file:
            dicom.hounsfields(file, [int(frame)])
    text = pd.DataFrame([asdict(item) for item in quarantined]).to_csv(index=False)
    assert len(text.encode().splitlines()) == len(text.splitlines()) == max(1, len(quarantined)) + bool(quarantined), (
        text
    )
    return [item for item in quarantined if item.path]


def overwritten(random: Random, data: bytes) -> bytes:
    """Damage a file: cut it, insert, repeat, or replace some bytes by extreme values."""
    damaged = bytearray(data)
    for _ in range(random.randint(1, 6)):
        at, end = random.randrange(len(damaged) + 1), len(data)
        match random.randrange(5):
            case 0:
                del damaged[at : at + random.choice([1, 4, 30, end])]
            case 1:
                damaged[at:at] = random.randbytes(random.choice([1, 4, 1000]))
            case 2:
                damaged[at : at + 4] = random.choice([b"\xff" * 4, b"\0" * 4, b"\xff\xff\xff\x7f"])
            case 3:
                damaged[at : at + 1] = random.randbytes(1)
            case _:
                damaged += damaged[at : at + random.choice([22, 100, end])]
    return bytes(damaged)


ATOMS = [
    *map(os.fsencode, ("\n", "\r", "\t", "\x1b[2J", "é", "\u202e", "\u2028", "\x85", "\\", "#0", "!", ".zip", ".zip!"))
]
ATOMS += [
    b"\xff",
    b"\xc3",
    b"..",
    b" ",
    b"-",
    b"$(x)",
    b"'",
    b'"',
    b",",
    b"=1+1",
    b".dcm",
    b".DCM",
    b".",
    b"a" * 120,
    b"1",
    b"a",
]


def name_of(random: Random) -> bytes:
    name = b"".join(random.choices(ATOMS, k=random.randint(1, 4)))[:200]
    return name + random.choice([b"", b".dcm", b".zip"]) if name.strip(b".") else b"x"


def archive(random: Random) -> bytes:
    """An archive of slices, some of them with hostile names, sizes and methods."""
    data = io.BytesIO()
    with zipfile.ZipFile(
        data, "w", random.choice([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2])
    ) as made:
        for k in range(random.choice([0, 1, 3, 3, 3, 3, 3, 3, 500])):
            entry = zipfile.ZipInfo(name_of(random).decode("utf-8", "replace") if random.random() < 0.3 else f"{k}.dcm")
            entry.compress_type = made.compression
            entry.external_attr = random.choice([0, 0o100644 << 16, 0o120777 << 16]) if random.random() < 0.1 else 0
            content = bytes(random.choice([1 << 12, 1 << 26])) if random.random() < 0.02 and k < 9 else b""
            made.writestr(entry, content or (slice_bytes(random) if k < 9 else b""))
        made.comment = random.choice([b"", b"PK\5\6" * 9])
    return data.getvalue()


def special(random: Random, path: Path) -> None:
    """A pipe, a device, a broken link or one to itself, or a huge file."""
    match random.randrange(5):
        case 0:
            os.mkfifo(path)
        case 1:
            path.symlink_to(random.choice(["/dev/zero", "/dev/urandom", "/dev/tty", "/proc/self/mem", "/proc/kmsg"]))
        case 2:
            path.symlink_to(random.choice([path, path.parent, path.parent / "none"]))
        case 3:
            path.mkdir()
        case _:
            with path.open("wb") as file:
                file.truncate(random.choice([0, 1, 1 << 20, 1 << 33, 1 << 43]))


# ---- strategies


def archives(random: Random, root: Path) -> Read:
    (root / "0.dcm").write_bytes(slice_bytes(random))
    for k in range(random.randint(1, 2)):
        data = archive(random)
        if random.random() < 0.1:
            special(random, root / f"{k}.zip")
        else:
            (root / f"{k}.zip").write_bytes(overwritten(random, data) if random.random() < 0.7 else data)
    return lambda: read_folder(root)


def names(random: Random, root: Path) -> Read:
    places = [os.fsencode(root)]
    for _ in range(random.randint(1, 12)):
        path = os.path.join(random.choice(places), name_of(random))
        if os.path.lexists(path):
            continue
        with contextlib.suppress(OSError):  # too long
            match random.randrange(8):
                case 0 | 1:
                    os.mkdir(path)
                    places.append(path)
                case 2:
                    special(random, Path(os.fsdecode(path)))
                case 3:
                    os.symlink(random.choice(places), path)
                case _:
                    Path(os.fsdecode(path)).write_bytes(
                        archive(random) if path.endswith(b".zip") else slice_bytes(random)
                    )
    return lambda: read_folder(root)


CELLS = [
    "0",
    "1",
    "",
    "nan",
    "a",
    "1e999",
    "-1",
    "9" * 5000,
    "0.5",
    "\0",
    "é",
    '"',
    "'",
    "=1+1",
    "\t",
    ";",
    "1,0",
    "x" * 20_000,
]
TABLES: dict[str, tuple[str, Callable[[Path], object]]] = {
    "labels.csv": ("image_id,any\n0,1\n", read_folder),
    "stage_2_train.csv": ("ID,Label\nID_0_any,1\n", lambda root: rsna2019._labels(root / "stage_2_train.csv")),
    "train.csv": ("a.dcm,epidural,1\n", lambda root: ntu_dlmi._labels(root / "train.csv")),
    "train_labels.txt": ("id,class\n000,1\n", lambda root: unibuc._labels(root / "train_labels.txt")),
    "own.csv": ("any,prob_any\n1,0.5\n", lambda root: user_table.read(root / "own.csv")),
}


def tables(random: Random, root: Path) -> Read:
    name = random.choice(list(TABLES))
    text, read = TABLES[name]
    (root / "0.dcm").write_bytes(slice_bytes(random))
    for _ in range(random.randint(0, 4)):
        cells = [
            "".join(random.choices(CELLS, k=random.choice([1, 1, 2])))
            for _ in range(random.choice([1, 2, 3, 3, 3, 2000]))
        ]
        text = random.choice(
            [text + ",".join(cells) + "\n", ",".join(cells) + "\n" + text, text.rstrip("\n") + ",".join(cells)]
        )
    data = text.encode(random.choice(["utf-8", "utf-8", "utf-8-sig", "utf-16"])).replace(
        b"\n", random.choice([b"\n", b"\r\n", b"\r"])
    )
    if random.random() < 0.05:
        special(random, root / name)
    else:
        (root / name).write_bytes(overwritten(random, data) if random.random() < 0.5 else data)

    def table() -> Sequence[Quarantined]:
        read(root)
        return ()

    return table


STRATEGIES: dict[str, Callable[[Random, Path], Read]] = {"archives": archives, "names": names, "tables": tables}


# ---- running


def classified(read: Read) -> tuple[str, str]:
    try:
        quarantined = read()
    except (UserError, ValueError) as error:  # the readers of tables raise ValueError
        expected = isinstance(error, UserError) or type(error) is ValueError
        lines = str(error).splitlines()
        if expected and len(lines) == 1:
            return "refused", lines[0][:200]
        return "failed", f"{type(error).__name__}: {str(error)[:200]!r}"
    except (Exception, Slow):
        return "failed", " | ".join(traceback.format_exc().splitlines()[-5:])[:500]
    return ("quarantined", quarantined[0].reason) if quarantined else ("read", "")


def slow(*_: object) -> None:
    raise Slow


def memory(key: str) -> float:
    """Return VmSize, VmRSS or VmHWM of this process in MiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(key))


def outcome_of(number: int, seed: int) -> Outcome:
    """Write one input and read it within limits, in this process."""
    strategy = list(STRATEGIES)[number % len(STRATEGIES)]
    with tempfile.TemporaryDirectory(prefix="ich-hostile-", ignore_cleanup_errors=True) as root:
        read = STRATEGIES[strategy](Random(f"{seed} {number}"), Path(root))
        Path("/proc/self/clear_refs").write_text("5")  # VmHWM starts again
        before, started = memory("VmRSS"), time.process_time()
        resource.setrlimit(resource.RLIMIT_AS, (int(memory("VmSize") * 2**20) + MEMORY, resource.RLIM_INFINITY))
        signal.setitimer(signal.ITIMER_PROF, SECONDS)
        kind, detail = classified(read)
        signal.setitimer(signal.ITIMER_PROF, 0)
        resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        seconds = time.process_time() - started
        return Outcome(number, strategy, kind, detail, round(seconds, 2), round(memory("VmHWM") - before, 1))


def child(numbers: range, seed: int, answer: int) -> None:
    """Send the outcome of each input as a line of JSON."""
    os.dup2(os.open(os.devnull, os.O_RDWR), 2)
    signal.signal(signal.SIGPROF, slow)
    for number in numbers:
        os.write(answer, json.dumps(outcome_of(number, seed)).encode() + b"\n")


def run(count: int, seed: int, first: int = 0) -> list[Outcome]:
    """Read inputs in a child process; in another one after a crash or a hang."""
    with tempfile.TemporaryDirectory() as root:  # load the libraries, for which pyarrow reserves 1 GiB
        (Path(root) / "0.dcm").write_bytes(slice_bytes(Random(0)))
        (Path(root) / "labels.csv").write_text("image_id,any\n0,1\n")
        read_folder(Path(root))
    outcomes: list[Outcome] = []
    while len(outcomes) < count:
        receive, send = os.pipe()
        process = os.fork()
        if process == 0:
            try:
                child(range(first + len(outcomes), first + count), seed, send)
            finally:
                os._exit(0)
        os.close(send)
        text = b""
        while select.select([receive], [], [], WAIT)[0] and (part := os.read(receive, 1 << 16)):
            *lines, text = (text + part).split(b"\n")
            outcomes += [Outcome(*json.loads(line)) for line in lines]
        os.close(receive)
        os.kill(process, signal.SIGKILL)
        _, status = os.waitpid(process, 0)
        if len(outcomes) < count:
            number = first + len(outcomes)
            strategy = list(STRATEGIES)[number % len(STRATEGIES)]
            outcomes.append(Outcome(number, strategy, "failed", f"crashed or hung, status {status}", 0.0, 0.0))
    return outcomes


def summary(outcomes: Sequence[Outcome], seed: int) -> dict[str, object]:
    kinds: dict[str, Counter[str]] = defaultdict(Counter)
    for outcome in outcomes:
        kinds[outcome.strategy][outcome.kind] += 1
    return {
        "inputs": len(outcomes),
        "seed": seed,
        "strategies": {name: dict(sorted(counts.items())) for name, counts in kinds.items()},
        "slowest_seconds": max(outcome.seconds for outcome in outcomes),
        "largest_mebibytes": max(outcome.mebibytes for outcome in outcomes),
        "failed": [outcome._asdict() for outcome in outcomes if outcome.kind == "failed"],
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    found = summary(run(options.count, options.seed, options.first), options.seed)
    text = json.dumps(found, indent=2) + "\n"
    if options.out:
        options.out.write_text(text, encoding="utf-8")
    print(text, end="")
    return 1 if found["failed"] else 0


if __name__ == "__main__":
    sys.exit(main())
