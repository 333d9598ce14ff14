"""Compressed frames to pixels, in a process of their own: a stream that crashes or hangs a decoder ends nothing else.

Every process that reads compressed files keeps one such process (this file, run as a script) and gives it one frame
after the other. imagecodecs bundles libjpeg-turbo, CharLS, OpenJPEG and OpenJPH, all under permissive licences.
"""

import atexit
import contextlib
import faulthandler
import json
import os
import struct
import subprocess
import sys
import threading
from typing import IO

import numpy as np

LIMIT = 4.0  # seconds a frame, and as much again for every 2048 x 2048 of its pixels: 500 times what decoding takes
MEMORY = 4 << 30  # bytes of address space; a stream may claim a larger picture than the header
READY = b"ready\n"
SYNTAXES = {
    "1.2.840.10008.1.2.5": "rle",
    "1.2.840.10008.1.2.4.50": "jpeg8",  # baseline
    "1.2.840.10008.1.2.4.51": "jpeg8",  # extended, 12 bits
    "1.2.840.10008.1.2.4.57": "jpeg8",  # lossless, any predictor
    "1.2.840.10008.1.2.4.70": "jpeg8",  # lossless, the first predictor
    "1.2.840.10008.1.2.4.80": "jpegls",
    "1.2.840.10008.1.2.4.81": "jpegls",  # near-lossless
    "1.2.840.10008.1.2.4.90": "jpeg2k",
    "1.2.840.10008.1.2.4.91": "jpeg2k",  # lossy
    "1.2.840.10008.1.2.4.201": "htj2k",
    "1.2.840.10008.1.2.4.202": "htj2k",
    "1.2.840.10008.1.2.4.203": "htj2k",  # lossy
}


class DecoderError(ValueError):
    """The decoder refused the stream, and said why."""


class DecoderCrashed(DecoderError):
    """The decoder took its process down."""


class DecoderHung(DecoderError):
    """The decoder took longer than it may."""


class NoDecodingProcess(RuntimeError):
    """The decoding process does not start: the installation is broken, and no file is to blame."""


# ---- in the decoding process


def pixels(codec: str, data: bytes, rows: int, columns: int, width: int) -> bytes:
    """A frame's stored values, little-endian, `width` bytes each. Raises what the decoder raises, and ValueError."""
    import imagecodecs

    if codec == "rle":
        plain = bytes(imagecodecs.dicomrle_decode(data, f"<u{width}"))
        if len(plain) < rows * columns * width:
            raise ValueError(f"{len(plain)} of {rows * columns * width} bytes")
        return plain[: rows * columns * width]
    # Decoders fill up what a cut stream lacks and do not say so; but each of these formats ends with this mark.
    if not data.rstrip(b"\0\xff").endswith(b"\xff\xd9"):  # padding may follow
        raise ValueError("the end of the stream is missing")
    if data.startswith(b"\xff\x4f\xff\x51"):  # JPEG 2000: a damaged size keeps its decoders busy for a long time
        right, below, left, above = struct.unpack_from(">4L", data, 8)
        if (below - above, right - left) != (rows, columns):
            raise ValueError(f"a stream of {below - above} x {right - left} where {rows} x {columns} were announced")
    picture = getattr(imagecodecs, f"{codec}_decode")(data)
    if picture.shape != (rows, columns) or picture.dtype.kind not in "iu" or picture.dtype.itemsize > width:
        raise ValueError(f"a picture of {picture.shape} {picture.dtype} where {rows} x {columns} were announced")
    return picture.astype(f"<{picture.dtype.kind}{width}").tobytes()


def serve() -> None:
    """Answer requests (a line of JSON, then bytes) from standard input until it ends."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever a library prints must not fall among the answers
    if sys.platform == "linux":
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    answers.write(READY)
    answers.flush()
    with open(os.devnull, "w") as nowhere:
        while line := sys.stdin.buffer.readline():
            request = json.loads(line)
            data = sys.stdin.buffer.read(request.pop("length"))
            # Ends this process from a thread of C, so that a decoder that never returns is no obstacle.
            faulthandler.dump_traceback_later(request.pop("limit"), exit=True, file=nowhere)
            try:
                said, plain = "", pixels(data=data, **request)
            except Exception as error:  # each library has its own
                said, plain = " ".join(f"{type(error).__name__} {error}".split()), b""
            faulthandler.cancel_dump_traceback_later()
            answers.write(json.dumps({"error": said, "length": len(plain)}).encode() + b"\n" + plain)
            answers.flush()


# ---- in the process that asks

COMMAND = [sys.executable, "-P", __file__]
_lock = threading.Lock()
_children: dict[int, subprocess.Popen[bytes]] = {}  # by the process that asks: a fork must not share one


def decode(syntax: str, data: bytes, rows: int, columns: int, width: int) -> np.ndarray:
    """A frame's stored values [rows, columns] as unsigned integers of `width` bytes, two's complement where signed.

    syntax: one of SYNTAXES. Raises DecoderError; NoDecodingProcess.
    """
    request = {"codec": SYNTAXES[syntax], "rows": rows, "columns": columns, "width": width}
    limit = LIMIT * (1 + rows * columns / 2048**2)
    request |= {"length": len(data), "limit": limit}
    with _lock:
        child = _child()
        stdin, stdout = _pipes(child)
        try:
            stdin.write(json.dumps(request).encode() + b"\n" + data)
            stdin.flush()
            answer = json.loads(stdout.readline() or b"null")
        except BrokenPipeError:
            answer = None
        plain = stdout.read(answer["length"]) if answer else b""
        if answer is None or len(plain) < answer["length"]:
            stop()
            if child.returncode == 1:  # the watchdog's way out
                raise DecoderHung(f"more than {limit:.0f} s")
            raise DecoderCrashed(f"exit code {child.returncode}")
    if answer["error"]:
        raise DecoderError(answer["error"])
    return np.frombuffer(plain, f"<u{width}").reshape(rows, columns)


def _child() -> subprocess.Popen[bytes]:
    from ich.data.refusal import exhausted  # not in the decoding process, which starts sooner without

    child = _children.get(os.getpid())
    if child is None or child.poll() is not None:
        quiet = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        pipe, nothing = subprocess.PIPE, subprocess.DEVNULL
        try:
            child = subprocess.Popen(COMMAND, stdin=pipe, stdout=pipe, stderr=nothing, env=quiet)
        except OSError as error:
            if exhausted(error):
                raise
            raise NoDecodingProcess(f"the decoding process does not start: {error}") from None
        if _pipes(child)[1].readline() != READY:
            raise NoDecodingProcess(f"the decoding process does not start; try {' '.join(COMMAND)} < /dev/null")
        _children[os.getpid()] = child
    return child


def _pipes(child: subprocess.Popen[bytes]) -> tuple[IO[bytes], IO[bytes]]:
    assert child.stdin is not None
    assert child.stdout is not None
    return child.stdin, child.stdout


@atexit.register
def stop() -> None:
    """End this process's decoding process, if there is one; the next frame starts another."""
    child = _children.pop(os.getpid(), None)
    if child is not None:
        for pipe in _pipes(child):
            with contextlib.suppress(BrokenPipeError):  # what it did not read is not wanted any more
                pipe.close()
        try:
            child.wait(timeout=1)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


if __name__ == "__main__":
    serve()
