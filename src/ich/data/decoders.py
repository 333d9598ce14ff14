"""Decode compressed frames in a separate process, which a damaged stream may crash or hang.

Each process that reads compressed files keeps one decoding process (this file, run as a script). imagecodecs bundles
libjpeg-turbo, CharLS, OpenJPEG and OpenJPH, all under permissive licences.
"""

import atexit
import contextlib
import json
import os
import signal
import struct
import subprocess
import sys
import threading
from pathlib import Path
from typing import IO

import numpy as np

from ich.data.refusal import Reason, Unreadable, exhausted

LIMIT = 2.0  # seconds of CPU time per frame, and as much again per 4096 x 4096 pixels: 100 times the usual time
MEMORY = 384 << 20  # bytes above the start; 4096 x 4096 pixels take 150 MiB. A stream may claim more than the header
WAIT = 20  # times the limit in seconds of wall-clock time, for a decoder that blocks; a busy machine is slow
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


class NoDecodingProcess(RuntimeError):
    """The decoding process does not start: the installation is broken, not a file."""


# ---- in the decoding process


def pixels(codec: str, data: bytes, rows: int, columns: int, width: int) -> bytes:
    """Stored values of a frame, little-endian, `width` bytes each. Raises ValueError and errors of the decoder."""
    import imagecodecs

    if codec == "rle":
        plain = bytes(imagecodecs.dicomrle_decode(data, f"<u{width}"))
        if len(plain) < rows * columns * width:
            raise ValueError(f"{len(plain)} of {rows * columns * width} bytes")
        return plain[: rows * columns * width]
    # Decoders silently fill in the rest of a truncated stream. All these formats end with this marker.
    if not data.rstrip(b"\0\xff").endswith(b"\xff\xd9"):  # padding may follow
        raise ValueError("the stream is truncated")
    if data.startswith(b"\xff\x4f\xff\x51"):  # JPEG 2000: decoding a damaged size takes minutes
        right, below, left, above = struct.unpack_from(">4L", data, 8)
        if (below - above, right - left) != (rows, columns):
            raise ValueError(f"{below - above} x {right - left} pixels, expected {rows} x {columns}")
    image = getattr(imagecodecs, f"{codec}_decode")(data)
    if image.shape != (rows, columns) or image.dtype.kind not in "iu" or image.dtype.itemsize > width:
        raise ValueError(f"{image.dtype} {image.shape}, expected {rows} x {columns} of {width} bytes")
    return image.astype(f"<{image.dtype.kind}{width}").tobytes()


def serve() -> None:
    """Answer requests (a line of JSON, then bytes) from standard input until it ends."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints must not mix with the answers
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    if sys.platform == "linux":
        import resource

        most = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize() + MEMORY
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    answers.write(READY)
    answers.flush()
    while line := sys.stdin.buffer.readline():
        request = json.loads(line)
        data = sys.stdin.buffer.read(request.pop("length"))
        limit = request.pop("limit")
        signal.setitimer(signal.ITIMER_PROF, limit)  # these signals end this process, also within a decoder
        signal.setitimer(signal.ITIMER_REAL, WAIT * limit)
        try:
            message, plain = "", pixels(data=data, **request)
        except Exception as error:  # the libraries' errors have no common base
            message, plain = " ".join(f"{type(error).__name__} {error}".split()), b""
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)
        answers.write(json.dumps({"error": message, "length": len(plain)}).encode() + b"\n" + plain)
        answers.flush()


# ---- in the calling process

COMMAND = [sys.executable, "-P", __file__]
_lock = threading.Lock()
_children: dict[int, subprocess.Popen[bytes]] = {}  # by process id: forks must not share a child


def decode(syntax: str, data: bytes, rows: int, columns: int, width: int) -> np.ndarray:
    """Stored values [rows, columns] of a frame: unsigned integers of `width` bytes, two's complement if signed.

    syntax: one of SYNTAXES. Raises Unreadable and NoDecodingProcess.
    """
    limit = LIMIT * (1 + rows * columns / 4096**2)
    request = {"codec": SYNTAXES[syntax], "rows": rows, "columns": columns, "width": width}
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
            if child.returncode in (-signal.SIGPROF, -signal.SIGALRM):
                raise Unreadable(Reason.DECODER_HUNG, f"more than {limit:.0f} s")
            raise Unreadable(Reason.DECODER_CRASHED, f"exit code {child.returncode}")
    if answer["error"]:
        raise Unreadable(Reason.NOT_DECODED, answer["error"])
    return np.frombuffer(plain, f"<u{width}").reshape(rows, columns)


def _child() -> subprocess.Popen[bytes]:
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
            raise NoDecodingProcess(f"the decoding process does not start; run {' '.join(COMMAND)} < /dev/null")
        _children[os.getpid()] = child
    return child


def _pipes(child: subprocess.Popen[bytes]) -> tuple[IO[bytes], IO[bytes]]:
    assert child.stdin is not None
    assert child.stdout is not None
    return child.stdin, child.stdout


@atexit.register
def stop() -> None:
    """End the decoding process of this process, if any; the next frame starts another."""
    child = _children.pop(os.getpid(), None)
    if child is not None:
        for pipe in _pipes(child):
            with contextlib.suppress(BrokenPipeError):  # by unread data
                pipe.close()
        try:
            child.wait(timeout=1)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


if __name__ == "__main__":
    serve()
