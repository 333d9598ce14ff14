"""Device, precision and determinism, and copies between main memory and the device."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal, TypeVar

import torch
import torch.utils.deterministic
from torch import Tensor

from ich.errors import UserError
from ich.processes import cores

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # otherwise cuBLAS may sum in another order

Precision = Literal["auto", "fp32", "bf16", "fp16"]
MAX_LOADER_WORKERS = 8
Batch = TypeVar("Batch", bound=tuple[Any, ...])


def default_device() -> torch.device:
    """The GPU if the machine has one, else the CPU."""
    return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")


def loader_workers(setting: int | Literal["auto"]) -> int:
    """Number of loader processes. auto: none if the CPU trains, which they would slow down; at most 8 for a GPU."""
    if setting != "auto":
        return setting
    if default_device().type == "cpu":
        return 0
    return max(1, min(MAX_LOADER_WORKERS, cores() - 1))


def resolve(precision: Precision, device: torch.device) -> Precision:
    """Replace "auto" by half precision if the hardware supports it, else by fp32."""
    if precision == "fp16" and device.type == "cpu":
        raise UserError("precision fp16 needs a GPU; use bf16, fp32 or auto on a CPU")
    if precision != "auto":
        return precision
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    if device.type == "cpu":
        capabilities = torch.cpu.get_capabilities()
        return "bf16" if any(capabilities.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16")) else "fp32"
    return "fp32"


def autocast(precision: Precision, device: torch.device) -> torch.autocast:
    half = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(resolve(precision, device))
    return torch.autocast(device.type, half, enabled=half is not None)


@contextmanager
def deterministic() -> Iterator[None]:
    """Use deterministic kernels if torch has them."""
    enabled = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    memory: Any = torch.utils.deterministic
    fill = memory.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True, warn_only=True)
    memory.fill_uninitialized_memory = False  # for debugging only, and slow
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(enabled, warn_only=warn_only)
        memory.fill_uninitialized_memory = fill


def to_device(batch: Batch, device: torch.device) -> Batch:
    """Copy the tensors of a named tuple to the device; asynchronously from pinned memory."""
    if device.type == "cpu":
        return batch
    values = (value.to(device, non_blocking=True) if isinstance(value, Tensor) else value for value in batch)
    return type(batch)(*values)


def fetch(values: Tensor) -> Callable[[], Tensor]:
    """Start a copy to main memory; the returned function waits for it.

    Call it one batch later, so that the GPU does not wait for the CPU.
    """
    if values.device.type != "cuda":
        return values.cpu
    host = torch.empty_like(values, device="cpu", pin_memory=True)
    host.copy_(values, non_blocking=True)
    copied = torch.cuda.Event(blocking=True)
    copied.record(torch.cuda.current_stream(values.device))

    def wait() -> Tensor:
        copied.synchronize()
        return host

    return wait
