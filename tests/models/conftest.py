"""One thread: the networks of these tests are small, and threads only wait for one another."""

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _one_core(one_core) -> None:
    """Run stages on one core."""
