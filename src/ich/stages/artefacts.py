"""Reading what a stage left: what is not as this program writes it is one line that names the file, no traceback.

The hash of a file is compared before, by the state of its task, or by those who read it (networks.file_of, array_of);
none of this runs anything that a file holds.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from ich.errors import UserError

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

FOLDS = "put back the file that was there, or make other folds by `ich folds --force`"  # of a fold file, as a remedy


@contextmanager
def as_written(path: Path, remedy: str = "delete it, and the stage that left it makes it again") -> Iterator[None]:
    """A block that does nothing but read `path` and take it apart. Where it cannot: UserError, with the remedy."""
    try:
        yield
    except (UserError, OSError, MemoryError):  # they say themselves what to do
        raise
    except Exception as error:  # pyarrow's, safetensors', torch's, LightGBM's errors have no common base
        why = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise UserError(f"{path} is not as this program writes it ({why}); {remedy}") from None


def table_of(path: Path, columns: Sequence[str] | None = None) -> "pd.DataFrame":
    """A .parquet file, without what pandas noted in it."""
    import pyarrow.parquet

    with as_written(path):
        return pyarrow.parquet.read_table(path, columns=columns).to_pandas(ignore_metadata=True)


def logits_of(path: Path, ids: "pd.Index", classes: Sequence[str]) -> "np.ndarray":
    """Logits float64 [n, c] of slices out of a member's table, by image id."""
    from ich.ensemble.members import aligned

    table = table_of(path)
    with as_written(path):
        return aligned(table, ids, classes)


def pictures_of(path: Path) -> "np.ndarray":
    """The int16 [n, S, S] of a cache, as a memory map."""
    import numpy as np

    with as_written(path):
        found = np.load(path, mmap_mode="r", allow_pickle=False)
        if found.dtype != np.int16 or found.ndim != 3:
            raise ValueError(f"{found.dtype} {list(found.shape)}")
    return found
