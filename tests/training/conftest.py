"""One thread: these networks are too small for several."""

import torch

torch.set_num_threads(1)
