"""One thread: the networks of these tests are small, and threads only wait for one another."""

import torch

torch.set_num_threads(1)
