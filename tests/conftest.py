"""One thread: the tests' tensors are too small to share, and other jobs may be running."""

import torch

torch.set_num_threads(1)
