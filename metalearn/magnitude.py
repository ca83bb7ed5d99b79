"""How large a number may be that an option takes."""

import torch

LARGEST = float(torch.finfo(torch.float32).max)
"""3.4e38, the largest that float32 holds. Above it a rate is an error of torch's own in the middle
of a run, and another number infinite from the first step on."""
