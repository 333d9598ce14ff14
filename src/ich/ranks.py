"""Several processes that make one fold together, as `accelerate launch` begins them: who does what, and how they agree.

The first of them runs the command. It alone looks at artefacts, holds locks and writes. The others wait for what it
does by `together` and do the same with it: there, each batch is divided among all. Elsewhere, and in a process that was
not launched so, `count` is 1, and what is here does nothing.

    accelerate launch --num_processes 2 --module ich cnn configs/rsna2019.yaml --model resnet --fold 0

On a machine without a GPU, where it would begin one process, with --multi_gpu; `accelerate-launch` is the same program
with fewer imports.

Wherever they meet, each first says whether it is out of memory (`tell`), for then all have to go another way. Nobody
waits for one that has ended: the rest end too, and one of them all says why (`heard`).
"""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

from ich.errors import UserError
from ich.processes import end_after

if TYPE_CHECKING:
    import numpy as np

NEVER = timedelta(days=30)  # the first may wait long for a lock; a process that has ended is noticed at once
SOON = timedelta(seconds=2)
VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")  # of a launch
T = TypeVar("T")


class Left(BaseException):
    """Another process has ended. No Exception: a fold that ends so was killed."""


class Short(MemoryError):
    """Another process is out of memory."""


@dataclass
class _Here:
    number: int = 0
    of: int = 1
    together: bool = False
    store: Any = None
    """What all processes of the launch can reach, even if some of them have ended."""


_here = _Here()


# ---- who is who


def count() -> int:
    """How many processes do what this one does right now."""
    return _here.of if _here.together else 1


def number() -> int:
    return _here.number


def first() -> bool:
    """Whether this process writes."""
    return _here.number == 0


def joined() -> bool:
    """Whether there are others, at work or waiting."""
    return _here.of > 1


def part(n: int) -> slice:
    """This process's part of n places."""
    return stretch(n, number() if count() > 1 else 0, count())


def stretch(n: int, k: int, of: int) -> slice:
    """Part k of n places in a row, divided among `of`: their sizes differ by one at most, and never grow with k."""
    size, more = divmod(n, of)
    start = k * size + min(k, more)
    return slice(start, start + size + (k < more))


# ---- the launch


def launched() -> bool:
    """Whether `accelerate launch` (or torchrun) has begun this process and others beside it."""
    return "TORCHELASTIC_RUN_ID" in os.environ and int(os.environ.get("WORLD_SIZE", "1")) > 1


def run(command: Callable[[], object], *, shared: bool) -> None:
    """The command in the first of the launched processes; the others follow it or, where nothing is shared, leave."""
    _here.number = int(os.environ["RANK"])
    if not shared:
        for name in VARIABLES:  # libraries would wait for the others
            os.environ.pop(name, None)
        if first():
            command()
        return
    try:
        _join()
        if first():
            _lead(command)
        else:
            _follow()
    except Left as left:
        if heard():
            print(f"error: {left}", file=sys.stderr)
        leave(1)
    except Exception:
        if not heard():
            leave(2)
        raise
    import torch.distributed as dist

    dist.destroy_process_group()


def _join() -> None:
    import torch
    import torch.distributed as dist

    end_after(os.getppid())
    gpus, here = torch.cuda.device_count(), int(os.environ["LOCAL_WORLD_SIZE"])
    if 0 < gpus < here:
        raise UserError(f"{here} processes want a GPU each, and there are {gpus}: lower --num_processes")
    _here.of = int(os.environ["WORLD_SIZE"])
    dist.init_process_group("cpu:gloo,cuda:nccl" if gpus else "gloo", timeout=NEVER)
    address = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    of_torch: Any = dist
    _here.store = of_torch.TCPStore(*address, is_master=False, timeout=SOON)

    def ended(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        sys.__excepthook__(kind, error, trace)
        leave(1)

    sys.excepthook = ended


def _lead(command: Callable[[], object]) -> None:
    try:
        command()
    except SystemExit as end:
        if end.code:
            heard()
            leave(end.code if isinstance(end.code, int) else 1)
    _said_by_first(None)


def _follow() -> None:
    sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    while (told := _said_by_first(None)) is not None:
        function, arguments = told
        together(function, *arguments)


def together(function: Callable[..., T], *arguments: Any) -> T:
    """function(*arguments), in all processes at once; the first returns what it returned here."""
    if not joined():
        return function(*arguments)
    if first():
        _said_by_first((function, arguments))
    _here.together = True
    try:
        return function(*arguments)
    finally:
        _here.together = False


def heard() -> bool:
    """Whether this process may say why it ends: of those that end, one for another or all for one reason, the first."""
    if _here.store is None:
        return first()
    try:
        return _here.store.add("ich/ended", 1) == 1
    except RuntimeError:  # nobody is there any more who could have said it
        return first()


def leave(code: int) -> None:
    """End this process; at once where there are others, for an orderly end might wait for them."""
    if joined():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


# ---- meeting


def tell(error: Exception) -> None:
    """Tell the others that this process is out of memory, unless one of them told it: they raise Short."""
    if count() > 1 and not isinstance(error, Short):
        meet(short=True)


def from_first(read: Callable[[], T]) -> T:
    """What `read` returns in the first process, which alone calls it."""
    if count() == 1:
        return read()
    value: Any = read() if first() else None
    meet()
    return _said_by_first(value)


def agreed(value: T) -> T:
    """The first process's value, which the others' might differ from by rounding."""
    return from_first(lambda: value)


def gathered(found: "dict[str, np.ndarray]", n: int) -> "tuple[dict[str, np.ndarray], int]":
    """The first n rows of these arrays, of all processes, one after the other's; and how many there are now."""
    if count() == 1:
        return found, n
    import numpy as np
    import torch
    import torch.distributed as dist

    meet()
    with others():
        kinds = [
            _said_by(k, (n, {name: (a.dtype.str, a.shape[1:]) for name, a in found.items()})) for k in range(_here.of)
        ]
        ends = np.cumsum([0, *(rows for rows, _ in kinds)]).tolist()
        whole = {}
        for name, (dtype, shape) in {name: kind for _, each in kinds for name, kind in each.items()}.items():
            whole[name] = np.empty((ends[-1], *shape), dtype)
            for k in range(_here.of):
                rows = whole[name][ends[k] : ends[k + 1]]
                if k == number() and len(rows):
                    rows[:] = found[name][:n]
                if rows.size:
                    dist.broadcast(torch.from_numpy(rows.reshape(-1).view(np.uint8)), k)
    return whole, ends[-1]


def meet(*counts: float, short: bool = False) -> list[float]:
    """Wait for all; the sums of their counts, two at most. Raises Short where another is out of memory."""
    import torch
    import torch.distributed as dist

    status = torch.tensor([short, *counts, 0, 0][:3], dtype=torch.float64)
    with others():
        dist.all_reduce(status)
    if status[0] and not short:
        raise Short("another process is out of memory")
    return status[1:].tolist()


def _said_by_first(value: Any) -> Any:
    with others():
        return _said_by(0, value)


def _said_by(k: int, value: Any) -> Any:
    import torch
    import torch.distributed as dist

    box = [value]
    dist.broadcast_object_list(box, k, device=torch.device("cpu"))
    return box[0]


@contextmanager
def others() -> Iterator[None]:
    """A block that needs all processes. What fails in it cannot be mended by this one: it raises Left."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        why = str(error).partition("\n")[0].partition(". ")[0].rpartition("] ")[2][:200]
        raise Left(
            f"the {_here.of} processes have lost each other ({why}); what was finished is kept: the same command goes"
            " on from there"
        ) from error
