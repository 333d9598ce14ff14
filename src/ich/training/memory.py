"""Errors that say that the machine is too small: for a batch, or for the processes that load pictures."""

import traceback

import torch
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size

# what neither torch has a class for nor accelerate looks for
OUT_OF_MEMORY = ("CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED")
LOST_LOADER = ("DataLoader worker (pid", "Pin memory thread exited", "shared memory", "Too many open files")


def out_of_memory(error: Exception) -> bool:
    """Whether a smaller batch might do: the device, or the host as far as it says so, has no more memory."""
    known = isinstance(error, MemoryError | torch.OutOfMemoryError) or should_reduce_batch_size(error)
    return known or (isinstance(error, RuntimeError) and any(sign in str(error) for sign in OUT_OF_MEMORY))


def lost_loader(error: Exception) -> bool:
    """Whether a process that loads pictures was killed, or has no memory, shared memory or file handles left.

    torch tells of it by RuntimeErrors of many wordings, or the connection to the process breaks.
    """
    if isinstance(error, RuntimeError) and any(sign in str(error) for sign in LOST_LOADER):
        return True
    starved = out_of_memory(error) and "in DataLoader worker process" in str(error)
    return starved or isinstance(error, ConnectionError | EOFError)


def free(error: BaseException) -> None:
    """Give back what was in use where the error was raised: tensors, and processes that load pictures.

    While lost ones are not let go, torch goes on to raise errors of them, in the middle of whatever comes next.
    """
    chain: BaseException | None = error
    while chain is not None:
        traceback.clear_frames(chain.__traceback__)
        chain = chain.__cause__ or chain.__context__
    clear_device_cache(garbage_collection=True)
