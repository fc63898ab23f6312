"""nexttok: tokenizers and autoregressive objectives of visual and multimodal generation in JAX.

    import nexttok

    config = nexttok.load_config("configs/flextok.py:tiny")   # the library's, or a file of your own
    nexttok.override(config, "train.generator.steps=200")
    exp = nexttok.resolve(config)                             # checked parts: exp.tokenizer, ...
    results = nexttok.run_train(exp, "runs/tiny")             # trains, or resumes, and measures
    models = nexttok.trained(exp, "runs/tiny")                # jitted: encode, decode, sample
    tokens, _ = models.sample(labels, key)
    images = models.decode(tokens, tokens.shape[1], key)

Names are loaded when they are first used: importing nexttok does not import JAX.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nexttok.config import ConfigError
    from nexttok.config_files import load_config, override
    from nexttok.evaluate import Models
    from nexttok.experiment import Experiment, resolve
    from nexttok.extension import add_plan, extend
    from nexttok.generator import Generator
    from nexttok.plans import Plan
    from nexttok.run import run_eval, run_train, trained
    from nexttok.tokens import Tokens, TokenSpec

__version__ = "0.2.0"
__all__ = [
    "ConfigError", "Experiment", "Generator", "Models", "Plan", "TokenSpec", "Tokens",
    "add_plan", "extend", "load_config", "override", "resolve", "run_eval", "run_train", "trained",
]  # fmt: skip
_WHERE = {
    "config": ("ConfigError",),
    "config_files": ("load_config", "override"),
    "evaluate": ("Models",),
    "experiment": ("Experiment", "resolve"),
    "extension": ("add_plan", "extend"),
    "generator": ("Generator",),
    "plans": ("Plan",),
    "run": ("run_eval", "run_train", "trained"),
    "tokens": ("TokenSpec", "Tokens"),
}


def __getattr__(name: str) -> Any:
    """The public names, from the modules that hold them."""
    for module, names in _WHERE.items():
        if name in names:
            return getattr(importlib.import_module(f"nexttok.{module}"), name)
    raise AttributeError(f"module 'nexttok' has no attribute {name!r}")
