"""Networks whose gradient computes activations anew instead of keeping them (Chen et al., arXiv:1604.06174)."""

from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


def count_once(model: nn.Module) -> None:
    """Let batch norm leave its running statistics alone while a gradient is worked out: a batch seen twice counts once.

    They are then written into copies. Leaving them out would not do: a layer must keep for its gradient the second time
    what it kept the first time.
    """
    for norm in norms(model):
        if _set_aside in norm._forward_pre_hooks.values():
            continue
        norm.register_forward_pre_hook(_set_aside)
        norm.register_forward_hook(_put_back, always_call=True)  # computing anew stops within the last layer needed


def norms(model: nn.Module) -> list[_BatchNorm]:
    return [module for module in model.modules() if isinstance(module, _BatchNorm)]


def _set_aside(norm: Any, _inputs: Any) -> None:
    if norm.training and torch._C._current_graph_task_id() != -1:  # torch's own checkpoints tell by it too
        norm.set_aside = dict(norm._buffers)
        norm._buffers.update({name: value.clone() for name, value in norm.set_aside.items()})


def _put_back(norm: Any, _inputs: Any, _output: Any) -> None:
    norm._buffers.update(norm.__dict__.pop("set_aside", {}))
