"""One thread: these networks are too small for several."""

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _one_core(one_core) -> None:
    """Run stages on one core."""
