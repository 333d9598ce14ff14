"""How processes that were started side by side say something: by a pipe to the first, which alone prints.

A message is one line of JSON that the system writes as a whole or not at all, so a process that is killed leaves no
half of one. Nobody waits long for room in the pipe.
"""

import json
import os
import select
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

PATIENCE = 2.0  # seconds in which the first process should have made room
Message = list[Any]  # a word, and what belongs to it


class Ear:
    """The end of the first process. `writer` is for the others; `heard` gets each message, with the lock held."""

    def __init__(self, heard: Callable[[Message], None], lock: AbstractContextManager[Any]) -> None:
        from multiprocessing import Pipe

        ends: Any = Pipe(duplex=False)
        self.reader, self.writer = ends
        os.set_blocking(self.writer.fileno(), False)
        self.heard, self.lock, self.rest = heard, lock, b""
        threading.Thread(target=self._listen, name="console", daemon=True).start()

    def _listen(self) -> None:
        while True:
            self.reader.poll(None)
            with suppress(OSError, ValueError):  # nobody reads what is printed: the first process will find that out
                self.catch_up()

    def catch_up(self) -> None:
        """Hear what was said until now."""
        with self.lock:
            while self.reader.poll(0):
                *lines, self.rest = (self.rest + os.read(self.reader.fileno(), 1 << 16)).split(b"\n")
                for line in lines:
                    self.heard(json.loads(line))


class Mouth:
    """The end of another process."""

    def __init__(self, writer: "Connection") -> None:
        self.writer = writer

    def send(self, *message: Any, patience: float = 0.0) -> bool:
        """Whether it was sent within so many seconds; not where it is longer than the system writes as a whole."""
        data, until = json.dumps(message).encode() + b"\n", time.monotonic() + patience
        while len(data) <= select.PIPE_BUF:
            try:
                os.write(self.writer.fileno(), data)
                return True
            except BlockingIOError:
                left = until - time.monotonic()
                if left <= 0:
                    break
                select.select((), (self.writer,), (), left)
            except OSError:  # the first process has ended
                break
        return False
