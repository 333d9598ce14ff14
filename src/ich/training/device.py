"""Where the networks run and how exactly they compute: device, precision, determinism; and the way there and back."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal, TypeVar

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import send_to_device
from torch import Tensor

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # without it, cuBLAS may sum in another order

Precision = Literal["auto", "fp32", "bf16", "fp16"]
Parts = TypeVar("Parts", bound=tuple)


def default_device() -> torch.device:
    """The GPU where there is one, else the CPU."""
    return torch.device(PartialState().device or "cpu")


def resolve(precision: Precision, device: torch.device) -> Precision:
    """What "auto" means on this device: half precision where the hardware computes in it, else fp32."""
    if precision == "fp16" and device.type == "cpu":
        raise ValueError("fp16 needs a GPU; use bf16, fp32 or auto on a CPU")
    if precision != "auto":
        return precision
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    if device.type == "cpu":
        able = torch.cpu.get_capabilities()
        return "bf16" if any(able.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16")) else "fp32"
    return "fp32"


def accelerator_for(precision: Precision) -> Accelerator:
    """A new Accelerator; those made before must no longer be used."""
    chosen = resolve(precision, default_device())
    # accelerate keeps one precision a process; a second fit may want another
    AcceleratorState._reset_state()
    return Accelerator(mixed_precision="no" if chosen == "fp32" else chosen)


@contextmanager
def deterministic() -> Iterator[None]:
    """Same seed, same bytes: no kernel that adds up in a varying order, where there is a choice."""
    before = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )
    memory: Any = torch.utils.deterministic
    filled = memory.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True, warn_only=True)
    memory.fill_uninitialized_memory = False  # costs time and finds bugs only
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        memory.fill_uninitialized_memory = filled


class Mover:
    """Takes tuples of tensors to a device; to a GPU beside what it computes, if they are in pinned memory."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def __call__(self, parts: Parts) -> Parts:
        if self.stream is None:
            return send_to_device(parts, self.device)  # pyright: ignore[reportReturnType]
        with torch.cuda.stream(self.stream):
            there: Any = send_to_device(parts, self.device, non_blocking=True)
        computing = torch.cuda.current_stream(self.device)
        computing.wait_stream(self.stream)
        for part in there:
            if isinstance(part, Tensor):
                part.record_stream(computing)  # its memory is not given away before the computation has passed
        return there


def fetch(values: Tensor) -> Callable[[], Tensor]:
    """Begin to copy to main memory; the function that is returned waits for the copy and gives it.

    Whoever calls it a batch later does not keep a GPU waiting for its next work.
    """
    if values.device.type != "cuda":
        return values.cpu
    here = torch.empty_like(values, device="cpu", pin_memory=True)
    here.copy_(values, non_blocking=True)
    copied = torch.cuda.Event(blocking=True)
    copied.record(torch.cuda.current_stream(values.device))

    def arrived() -> Tensor:
        copied.synchronize()
        return here

    return arrived
