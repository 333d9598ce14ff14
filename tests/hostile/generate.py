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
import re
import resource
import select
import signal
import struct
import sys
import tempfile
import time
import traceback
import warnings
import zipfile
import zlib
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path
from random import Random
from typing import NamedTuple

import imagecodecs
import numpy as np
import pandas as pd

from ich.data import decoders, dicom
from ich.data.cache import ImageFormat, read_frames, write_shards
from ich.data.competitions import folder, ntu_dlmi, rsna2019, unibuc
from ich.data.refusal import Quarantined
from ich.data.slice_table import read_geometries, read_geometry, slice_table
from ich.ensemble.thresholds import user_table
from ich.errors import UserError
from ich.recipe import Recipe, RecipeError, load
from tests.plain_slice import HEADER

MEMORY = 1 << 30  # bytes
SECONDS, WAIT = 5.0, 300.0
Read = Callable[[], Sequence[Quarantined]]


class Slow(BaseException):
    """Reading takes more than SECONDS of CPU time."""


class Outcome(NamedTuple):
    number: int
    strategy: str
    kind: str  # read | quarantined | refused | failed
    detail: str
    seconds: float
    mebibytes: float


# ---- inputs


def slice_bytes(random: Random) -> bytes:
    """A small intact DICOM file; the same for the same state of `random`."""
    number = b"%010d" % random.randrange(1 << 30)
    return intact()[:-2].replace(b"0000000000", number) + number[-2:]


@cache
def intact() -> bytes:
    header = replace(HEADER, image_id="1.2.0000000000", study_id="1.3.0000000000", series_id="1.4.0000000000")
    with tempfile.NamedTemporaryFile() as file:
        dicom.write(Path(file.name), np.full((16, 16), 40, np.int16), header)
        return Path(file.name).read_bytes()


def read_folder(root: Path) -> Sequence[Quarantined]:
    """Read the files below `root`, as `ich prepare` does, up to the quarantine list."""
    raw = folder.raw(root)
    paths = raw.files["path"].tolist()
    table, quarantined = slice_table(raw, read_geometries(root, paths, 1, lambda _: None))
    if len(table):
        with tempfile.TemporaryDirectory() as made:
            image = ImageFormat(32, "head")
            quarantined += write_shards(Path(made), table, root, image, 1, lambda _: None)[1]
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
ATOMS += [*b"\xff \xc3 ..".split(), b" ", *b"- $(x) ' \" , =1+1 .dcm .DCM .".split(), b"a" * 120, b"1", b"a"]


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


CELLS = ["0", "1", "", "nan", "a", "1e999", "-1", "9" * 5000, "0.5", "\0", "é", '"', "'", "=1+1", "\t", ";", "1,0"]
CELLS += ["x" * 20_000]
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


PIXELS, UNDEFINED = 0x7FE00010, 0xFFFFFFFF
SYNTAXES = ["", ".1", ".1", ".1", ".1.99", ".1.99", ".2", ".5", ".4.70", ".4.80", ".4.90", ".4.201"]
VRS = [*b"AE AS AT CS DA DS FD FL IS LO LT OB OD OF OL OW PN SH SL SQ SS ST SV TM UC UI UL UN US UT".split(), b"\0\0"]
LONG = (b"OB", b"OD", b"OF", b"OL", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UT", b"\0\0")
ITEM = struct.pack("<HHL", 0xFFFE, 0xE000, UNDEFINED)
VALUES = [*b"\0 0 -1 nan 1e300 2147483648 4096 4097 1\\2\\3\\4 \\".split(b" "), b"", b"\xff" * 40, b"\x1b[2J\n"]
VALUES += [b"x" * 9000, b"ab\\" * 3000, bytes(8), b"\xfe\xff\0\xe0" * 9]
VALUES += [struct.pack("<H", k) for k in (0, 1, 8, 12, 32, 4096, 65535)]
ELEMENTS = {
    tag: (vr, value)
    for vr, values in {
        b"UI": {0x80016: b"1.2.840.10008.5.1.4.1.1.2", 0x80018: b"1.2.3", 0x20000D: b"1.3", 0x20000E: b"1.4"},
        b"CS": {0x80060: b"CT", 0x280004: b"MONOCHROME2", 0x80005: b"ISO_IR 6"},
        b"LO": {0x100020: b"p"},
        b"IS": {0x200013: b"1", 0x280008: b"1"},
        b"DS": {0x200032: b"0\\0\\0", 0x200037: b"1\\0\\0\\0\\1\\0", 0x280030: b"1\\1", 0x281052: b"0", 0x281053: b"1"},
        b"US": {0x280002: b"\1\0", 0x280100: b"\x10\0", 0x280101: b"\x0c\0", 0x280102: b"\x0b\0", 0x280103: b"\0\0"},
    }.items()
    for tag, value in values.items()
}


def element(tag: int, vr: bytes, value: bytes, explicit: bool = True, order: str = "<", length: int = -1) -> bytes:
    value += b"\0" * (len(value) % 2)
    length = len(value) if length < 0 else length
    head = struct.pack(f"{order}HH", tag >> 16, tag & 0xFFFF)
    if not explicit:
        return head + struct.pack(f"{order}L", length) + value
    if vr in LONG:
        return head + vr + struct.pack(f"{order}2xL", length) + value
    return head + vr + struct.pack(f"{order}H", min(length, 0xFFFF)) + value[:0xFFFF]


@cache
def compressed(syntax: str, side: int) -> bytes:
    """A frame of zeros, side x side; some kilobytes may be 4096 x 4096 pixels."""
    zeros = np.zeros((side, side), np.uint16)
    match syntax:
        case ".5":
            run = b"\x81\0" * (side * side // 128)
            return struct.pack("<16L", 2, 64, 64 + len(run), *[0] * 13) + run + run
        case ".4.70":
            return imagecodecs.jpeg8_encode(zeros, lossless=True)
        case ".4.80":
            return imagecodecs.jpegls_encode(zeros)
        case ".4.90":
            return imagecodecs.jpeg2k_encode(zeros, reversible=True, codecformat="j2k")
        case _:
            return imagecodecs.htj2k_encode(zeros, reversible=True)


def nested(random: Random) -> bytes:
    """Sequences in sequences of undefined or false length, or many elements; seldom enough of them to take seconds."""
    many = random.choice([2, 30, 500]) if random.random() < 0.998 else 200_000
    length = random.choice([UNDEFINED, UNDEFINED, 0, 0x7FFFFF])
    sequence = element(random.choice([0x00081140, 0x00400275]), b"SQ", b"", length=length)
    return random.choice(
        [(sequence + ITEM) * many, sequence + ITEM * many, bytes(8 * many), element(0x00090010, b"UN", b"") * many]
    )


def dicom_bytes(random: Random, side: int = 16, frames: int = 1) -> bytes:
    """A DICOM file, encoded in one of SYNTAXES, in most cases with some impossible elements."""
    syntax = random.choice(SYNTAXES) if side == 16 else random.choice(SYNTAXES[7:])
    explicit, order = syntax != "", ">" if syntax == ".2" else "<"
    size = struct.pack("<H", side)
    elements = ELEMENTS | {0x280010: (b"US", size), 0x280011: (b"US", size), 0x280008: (b"IS", b"%d" % frames)}
    elements |= {
        0x80018: (b"UI", b"1.2.%d" % random.randrange(1 << 30)),
        0x200013: (b"IS", b"%d" % random.randrange(999)),
    }
    parts = {tag: (tag, *element) for tag, element in elements.items()}
    lengths: dict[int, int] = {}
    extra: list[bytes] = []
    for _ in range(random.choice([0, 1, 1, 2, 4]) if side == 16 else 0):
        tag = random.choice(list(parts))
        match random.randrange(7):
            case 0 | 1:
                parts[tag] = (tag, parts[tag][1], random.choice(VALUES))
            case 2:
                parts[tag] = (tag, random.choice(VRS), parts[tag][2])
            case 3:
                lengths[tag] = random.choice([0, 1, 7, 0xFFFE, 0x7FFFFF, UNDEFINED])
            case 4:
                parts[tag] = (random.choice([0, 8, tag - 1, 0xFFFEE00D, 0x7FE00001]), *parts[tag][1:])
            case 5:
                del parts[tag]
            case _:
                extra.append(nested(random))
    data = [element(*part, explicit, order, lengths.get(tag, -1)) for tag, part in sorted(parts.items())]
    for one in extra:
        data.insert(random.randrange(len(data) + 1), one)
    if syntax[:2] in (".5", ".4"):
        frame = compressed(syntax, side)
        frame = overwritten(random, frame) if random.random() < 0.3 else frame
        items = [b"", *[frame + b"\0" * (len(frame) % 2)] * frames]
        pixels = b"".join(struct.pack("<HHL", 0xFFFE, 0xE000, len(item)) + item for item in items)
        data.append(element(PIXELS, b"OB", pixels + struct.pack("<HHL", 0xFFFE, 0xE0DD, 0), length=UNDEFINED))
    else:
        data.append(element(PIXELS, b"OW", bytes(2 * side * side * frames), explicit, order))
    body = b"".join(data)
    if syntax == ".1.99":
        packer = zlib.compressobj(1, zlib.DEFLATED, -zlib.MAX_WBITS)
        body = zero_bytes(1 << 29) if random.random() < 0.001 else packer.compress(body) + packer.flush()
    meta = element(0x00020010, b"UI", b"1.2.840.10008.1.2" + syntax.encode())
    wrong = random.choice([0, 0, 0, 7, -7, 1 << 31]) if random.random() < 0.2 else 0
    meta = element(0x00020000, b"UL", struct.pack("<L", max(0, len(meta) + wrong))) + meta
    start = random.choice([b"", b"DICM"]) if random.random() < 0.05 else bytes(128) + b"DICM" + meta
    found = start + body
    return overwritten(random, found) if side == 16 and random.random() < 0.3 else found


@cache
def zero_bytes(count: int) -> bytes:
    """A deflated stream of so many zeros."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    return b"".join(packer.compress(bytes(1 << 20)) for _ in range(count >> 20)) + packer.flush()


def structures(random: Random, root: Path) -> Read:
    """A damaged DICOM file; at times a series of them, and seldom files with many large frames."""
    kind = random.random()
    if kind < 0.0005:
        for k in range(random.choice([4, 9])):
            (root / f"{k}.dcm").write_bytes(dicom_bytes(random, 4096 if k else 2048))
        return lambda: read_folder(root)
    if kind < 0.02:
        for k in range(random.choice([1, 3, 9])):
            (root / f"{k}.dcm").write_bytes(dicom_bytes(random, frames=random.choice([1, 1, 2, 50])))
        return lambda: read_folder(root)
    (root / "0.dcm").write_bytes(dicom_bytes(random, frames=random.choice([1, 1, 1, 3])))
    return lambda: read_file(root / "0.dcm")


def read_file(path: Path) -> Sequence[Quarantined]:
    """Read the header of a file and its pixels, as `ich prepare` does."""
    header = read_geometry(path, "hu")
    if isinstance(header, dicom.Unreadable):
        return [Quarantined("0", "train", path.name, header.reason.name.lower(), header.detail)]
    refused = []
    for one in read_frames(path, range(1 + len(header.further)), "hu", header.crc):
        if isinstance(one, dicom.Unreadable):
            refused.append(Quarantined("0", "train", path.name, one.reason.name.lower(), one.detail))
        else:
            assert (one.dtype, one.shape) == (np.int16, (header.rows, header.columns))
            assert dicom.HU_LOW <= one.min() <= one.max() <= dicom.HU_HIGH
    assert all(one.detail.isprintable() for one in refused)
    return refused


RECIPE = "name: x\ncompetition: {format: rsna2019, root: input/x}\ncnn: {a: {backbone: resnet10t, kwargs: {x: 1}}}\n"
SHIPPED = {path: path.read_text() for path in sorted(Path("configs").rglob("*.yaml"))}
KEYS = sorted(set(re.findall(r"\w+(?=:)", "".join(SHIPPED.values()))))
TOKENS = re.split(
    " ", "[ ] { } - : , ? | > # ' \" &a *a <<: !!int !x %YAML --- ... null true ~ 0 -1 1e999 0x_ .nan ../x"
)
TOKENS += [
    "\n",
    "\n  ",
    "\t",
    "\0",
    "\ufeff",
    "\x85",
    "\ud800",
    '"\\ud800"',
    *("9" * 30, "9" * 5000, "[" * 40, "{a: " * 40),
]
TOKENS += ["&a [*a, *a]", "{<<: *a}", "checkpoint_path: x", "!!python/object/apply:os.system [x]"]


def recipes(random: Random, root: Path) -> Read:
    """A recipe with some tokens inserted, keys and values exchanged, and lines repeated; or overrides of this kind."""
    text, overrides = RECIPE, list[str]()
    if random.random() < 0.1:
        shipped = random.choice(list(SHIPPED))
        text = SHIPPED[shipped].replace("base: ", f"base: {shipped.parent.absolute()}/")
    for _ in range(random.randint(0, 5)):
        at, token = random.randrange(len(text) + 1), random.choice([*TOKENS, *KEYS])
        match random.randrange(5):
            case 0 | 1:
                text = text[:at] + token + text[at:]
            case 2:
                text += f"{random.choice(KEYS)}: {token}\n"
            case 3:
                words = re.findall(r"[\w.]+", text) or [""]
                text = text.replace(random.choice(words), token, 1)
            case _:
                overrides.append(".".join(random.choices(KEYS, k=random.randint(1, 4))) + f"={token}")
    data = text.encode("utf-8", "surrogatepass")
    (root / "x.yaml").write_bytes(overwritten(random, data) if random.random() < 0.2 else data)

    def recipe() -> Sequence[Quarantined]:
        try:
            load(root / "x.yaml", overrides)
        except RecipeError as error:  # one line per error
            lines = str(error).split("\n")
            assert all(line.startswith((str(root), "--set ")) for line in lines), lines
            raise UserError(lines[0]) from None
        return ()

    return recipe


STRATEGIES: dict[str, Callable[[Random, Path], Read]] = {
    "dicom": structures,
    "recipes": recipes,
    "tables": tables,
    "archives": archives,
    "names": names,
}
SHARES = [46, 44, 7, 1.5, 1.5]  # percent; the last ones take the most time


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
        return "failed", " | ".join(line[:200] for line in traceback.format_exc().splitlines()[-5:])
    return ("quarantined", quarantined[0].reason) if quarantined else ("read", "")


def slow(*_: object) -> None:
    raise Slow


def memory(key: str, process: int | str = "self") -> float:
    """Return VmSize, VmRSS or VmHWM of a process in MiB; 0 if it has ended."""
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith(key)), 0.0)


def used(key: str) -> tuple[float, float]:
    """CPU seconds, and MiB of VmRSS or VmHWM, of this process and its decoding process."""
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds, size = time.process_time() + ended.ru_utime + ended.ru_stime, memory(key)
    for child in filter(None, [decoders._children.get(os.getpid())]):
        user, system = Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2].split()[11:13]
        seconds += (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")
        size += memory(key, child.pid)
    return seconds, size


def strategy_of(number: int) -> str:
    """The strategy of an input: all of them in turn at first, then by SHARES."""
    if number < len(STRATEGIES):
        return list(STRATEGIES)[number]
    return Random(number).choices(list(STRATEGIES), SHARES[: len(STRATEGIES)])[0]


def outcome_of(number: int, seed: int) -> Outcome:
    """Write one input and read it within limits, in this process."""
    strategy = strategy_of(number)
    with tempfile.TemporaryDirectory(prefix="ich-hostile-", ignore_cleanup_errors=True) as root:
        read = STRATEGIES[strategy](Random(f"{seed} {number}"), Path(root))
        for process in ("self", *(child.pid for child in decoders._children.values())):
            with contextlib.suppress(OSError):
                Path(f"/proc/{process}/clear_refs").write_text("5")  # VmHWM starts again
        started, before = used("VmRSS")
        resource.setrlimit(resource.RLIMIT_AS, (int(memory("VmSize") * 2**20) + MEMORY, resource.RLIM_INFINITY))
        signal.setitimer(signal.ITIMER_PROF, SECONDS)
        kind, detail = classified(read)
        signal.setitimer(signal.ITIMER_PROF, 0)
        resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        ended, peak = used("VmHWM")
        seconds, mebibytes = round(ended - started, 2), round(peak - before, 1)
        if seconds > SECONDS or mebibytes > MEMORY >> 20:
            kind, detail = "failed", f"{seconds} s, {mebibytes} MiB ({detail})"
        return Outcome(number, strategy, kind, detail, seconds, mebibytes)


def child(numbers: range, seed: int, answer: int) -> None:
    """Send the outcome of each input as a line of JSON."""
    os.dup2(os.open(os.devnull, os.O_RDWR), 2)
    signal.signal(signal.SIGPROF, slow)
    warnings.simplefilter("ignore")
    for number in numbers:
        os.write(answer, json.dumps(outcome_of(number, seed)).encode() + b"\n")


def run(count: int, seed: int, first: int = 0) -> list[Outcome]:
    """Read inputs in a child process; in another one after a crash or a hang."""
    Recipe.model_json_schema = cache(Recipe.model_json_schema)  # pyright: ignore  # it takes 30 ms
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
            strategy = strategy_of(number)
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
