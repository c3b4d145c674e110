"""PyTorch with one thread: on these sizes others cost more than they bring."""

import torch

torch.set_num_threads(1)
