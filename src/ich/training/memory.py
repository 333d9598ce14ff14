"""Out-of-memory errors as messages that name the settings to lower."""

import gc
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from ich.errors import UserError

OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED")
LOST_LOADER = ("DataLoader worker (pid", "Pin memory thread exited", "shared memory", "Too many open files")


@contextmanager
def memory_errors(name: str) -> Iterator[None]:
    """Turn out-of-memory errors and lost loader processes into a UserError."""
    try:
        yield
    except Exception as error:
        if lost_loader(error):
            reason = str(error).partition("\n")[0].strip(" .") or type(error).__name__
            message = (
                f"{name}: lost a loader process, probably because memory or shared memory (/dev/shm) is full: {reason}."
                " Lower workers (0 loads in the training process), batch_size or compute.processes"
            )
        elif out_of_memory(error):
            message = (
                f"{name}: out of memory. Lower batch_size and raise accumulate by the same factor, or lower chunk,"
                " image.size or compute.processes"
            )
        else:
            raise
        _release(error)
        raise UserError(f"{message}; finished epochs are kept") from None


def out_of_memory(error: Exception) -> bool:
    """Return True if the device or the host ran out of memory; torch raises RuntimeErrors with several wordings."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in OUT_OF_MEMORY)


def lost_loader(error: Exception) -> bool:
    """Return True if a loader process was killed or ran out of memory, shared memory or file handles."""
    if isinstance(error, ConnectionError | EOFError):
        return True
    if isinstance(error, RuntimeError) and any(sign in str(error) for sign in LOST_LOADER):
        return True
    return out_of_memory(error) and "in DataLoader worker process" in str(error)


def _release(error: BaseException) -> None:
    """Free the objects that the frames of the error hold.

    torch raises further errors for a lost loader at any later point, until the loader is freed.
    """
    chain: BaseException | None = error
    while chain is not None:
        traceback.clear_frames(chain.__traceback__)
        chain = chain.__cause__ or chain.__context__
    gc.collect()
    torch.cuda.empty_cache()
