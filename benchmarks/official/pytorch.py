"""What the PyTorch peers share."""

import os
import sys
import types
from collections.abc import Callable

import torch


def setup() -> str:
    """Threads as OMP_NUM_THREADS says, `.cuda()` the identity where there is none; words."""
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))
    torch.manual_seed(0)
    torch.Tensor.cuda = lambda self, *_, **__: self
    return f"PyTorch {torch.__version__}, {torch.get_num_threads()} threads"


def absent(name: str, **attributes) -> None:
    """Stands in for a module that is imported and not needed."""
    try:
        __import__(name)
    except ImportError:
        module = types.ModuleType(name)
        vars(module).update(attributes)
        sys.modules[name] = module


def trainer(model: torch.nn.Module, loss: Callable[[], torch.Tensor]) -> Callable[[], None]:
    """One step: forward, backward, clipping, AdamW with decay on matrices; as released, fused."""
    weights = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in weights if p.ndim >= 2], "weight_decay": 0.05},
        {"params": [p for p in weights if p.ndim < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=1e-4, betas=(0.9, 0.95), fused=True)
    model.train()

    def run():
        optimizer.zero_grad()
        loss().backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()

    return run
