"""Training states and weights as bytes and back: never a pickle that could run code."""

import io
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor


def to_bytes(state: dict[str, Any]) -> bytes:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


def from_bytes(data: bytes) -> dict[str, Any]:
    return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)


def weights_to_bytes(weights: dict[str, Tensor]) -> bytes:
    """A .safetensors file of contiguous tensors in main memory."""
    return save(weights)
