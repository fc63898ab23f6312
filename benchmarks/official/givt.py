"""GIVT by google-research/big_vision (JAX): --official=<checkout>, in an environment with flax.

distrax, clu and tensorflow need not be there: of distrax the release uses three distributions,
which are stood in for; of big_vision.utils a loader of checkpoints, which is not called. Its
debugging prints are silenced. The causal model, as released: one token a step from a cache.
"""

import os
import sys
import types

import jax
import jax.numpy as jnp

from benchmarks.official import serve
from benchmarks.sizes import Size


class Categorical:
    """distrax.Categorical."""

    def __init__(self, logits=None, probs=None):
        self.logits = jnp.log(probs) if logits is None else jax.nn.log_softmax(logits)

    def sample(self, seed):
        """Ids."""
        return jax.random.categorical(seed, self.logits)


class Normal:
    """distrax.Normal; MultivariateNormalDiag where `rank` is 1."""

    rank = 0

    def __init__(self, loc, scale=None, scale_diag=None):
        self.loc, self.scale = loc, scale_diag if scale is None else scale
        self.scale_diag = self.scale

    def log_prob(self, x):
        """Log-density."""
        each = -0.5 * ((x - self.loc) / self.scale) ** 2 - jnp.log(self.scale)
        each = each - 0.5 * jnp.log(2 * jnp.pi)
        return each.sum(-1) if self.rank else each

    def prob(self, x):
        """Density."""
        return jnp.exp(self.log_prob(x))

    def sample(self, seed, sample_shape=()):
        """Draws."""
        return self.loc + self.scale * jax.random.normal(seed, (*sample_shape, *self.loc.shape))


class MultivariateNormalDiag(Normal):
    """distrax.MultivariateNormalDiag."""

    rank = 1


class MixtureSameFamily:
    """distrax.MixtureSameFamily; guided draws read its parts only."""

    def __init__(self, mixture_distribution, components_distribution):
        self.mixture_distribution = mixture_distribution
        self.components_distribution = components_distribution


def stand_in() -> None:
    """Puts stand-ins where distrax or big_vision.utils cannot be imported."""
    try:
        import distrax  # noqa: F401
    except ImportError:
        module = types.ModuleType("distrax")
        parts = (Categorical, Normal, MultivariateNormalDiag, MixtureSameFamily)
        vars(module).update({part.__name__: part for part in parts}, Distribution=object)
        sys.modules["distrax"] = module
    try:
        import big_vision.utils
    except ImportError:
        import big_vision

        big_vision.utils = types.ModuleType("big_vision.utils")
        sys.modules["big_vision.utils"] = big_vision.utils


def generate(size: Size):
    """All tokens, guided with weight 0.4 at temperature 0.95; one jit."""
    stand_in()
    jax.tree_map = jax.tree.map  # the release names functions of an older jax
    jax.debug.print = lambda *_, **__: None
    from big_vision.models.proj.givt import decode, givt

    net = givt.Model(
        num_heads=size.heads, num_decoder_layers=size.depth, mlp_dim=4 * size.width,
        emb_dim=size.width, num_labels=size.classes, seq_len=size.tokens, style="ar",
        num_mixtures=16, out_dim=16, drop_labels_probability=0.1, fix_square_plus=True,
        per_channel_mixtures=False, scan=True,
    )  # fmt: skip
    label = jnp.arange(size.batch) % size.classes
    values = jnp.zeros((size.batch, size.tokens, 16))
    params = net.init(jax.random.PRNGKey(0), values, label)["params"]
    kernel = params["decoder"]["LogitsDense"]["kernel"]
    noise = 0.02 * jax.random.normal(jax.random.PRNGKey(2), kernel.shape)
    params["decoder"]["LogitsDense"]["kernel"] = noise

    @jax.jit
    def sample(params, rng):
        options = {"cfg_inference_weight": 0.4, "temp": 0.95}
        return decode.generate(
            {"params": params}, rng, model=net, seq_len=size.tokens, feature_dim=16,
            labels=label, config=options,
        )[0]  # fmt: skip

    rng = jax.random.PRNGKey(1)
    words = f"JAX {jax.__version__}, {len(os.sched_getaffinity(0))} cores"
    return lambda: sample(params, rng).block_until_ready(), words


if __name__ == "__main__":
    serve.serve({"generate": generate})
