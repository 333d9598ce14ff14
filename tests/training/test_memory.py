"""Errors of training and prediction when memory runs out."""

import os
import signal
import weakref

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from ich.errors import UserError
from ich.training.fit import fit
from ich.training.memory import lost_loader, memory_errors, out_of_memory
from ich.training.predict import predict
from ich.training.run import Run
from tests.training.small import LOADER, SETTINGS, Batch, batches


class Large(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight, self.seen = nn.Parameter(torch.ones(1)), list[weakref.ref[Tensor]]()

    def forward(self, features: Tensor) -> Tensor:
        activations = features * self.weight
        self.seen.append(weakref.ref(activations))
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")


def test_out_of_memory_frees_the_activations_and_names_the_settings_to_lower():
    network = Large()
    with pytest.raises(UserError, match=r"^net fold 0: out of memory\. Lower batch_size and raise accumulate") as kept:
        fit(network, LOADER, lambda network, batch: network(*batch.inputs), SETTINGS, Run("net fold 0"))
    with pytest.raises(UserError, match=r"^prediction: out of memory\. Lower batch_size") as caught:
        predict(Large(), batches(0), 32)
    assert caught.value.__suppress_context__
    assert kept.tb is not None
    assert [value() for value in network.seen] == [None], "held by the error"


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError("of a future wording"), True),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (MemoryError(), True),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_only_a_lack_of_memory_is_reported_as_such(error, expected):
    assert out_of_memory(error) is expected
    assert not lost_loader(error)
    with pytest.raises(UserError if expected else type(error)) as caught, memory_errors("x"):
        raise error
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("error", [None, MemoryError(), RuntimeError("unable to allocate shared memory(shm)")], ids=str)
def test_a_lost_loader_process_is_an_error_that_names_workers(error):
    def batch(k: int) -> Batch:
        """Fail at the third batch."""
        if k == 2 and error:
            raise error
        if k == 2:
            os.kill(os.getpid(), signal.SIGKILL)  # as the out-of-memory killer does
        return list(batches(0))[k]

    loader = DataLoader(range(4), batch_size=None, num_workers=1, collate_fn=batch)  # pyright: ignore[reportArgumentType]
    with pytest.raises(UserError, match=r"^prediction: lost a loader process, .* Lower workers \(0 loads") as caught:
        predict(nn.Linear(4, 2), loader, 32)
    assert "\n" not in str(caught.value)
