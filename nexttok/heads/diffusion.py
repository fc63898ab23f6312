"""Head `diffusion`: a small MLP denoises each token given its hidden state.

The diffusion loss of MAR (Li et al., "Autoregressive Image Generation without Vector Quantization",
2024): DDPM with a squared-cosine schedule of 1,000 steps, noise prediction and learned variances
(Nichol and Dhariwal, 2021), sampled on fewer, respaced steps.
"""

import dataclasses
import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from nexttok.config import build, check
from nexttok.heads import guidance
from nexttok.heads.draw import Draw
from nexttok.mesh import constrain
from nexttok.nn.linear import Linear
from nexttok.nn.norms import Norm, layer_norm
from nexttok.nn.positions import time_features
from nexttok.rng import stream
from nexttok.tokens import TokenSpec

TIMES = 1000
normal02 = nn.initializers.normal(0.02)


class Denoiser(nn.Module):
    """SimpleMLPAdaLN of MAR: (x_t, t, W z) -> (noise, variance logits).

    The condition comes as W z, as it is the same at all times; t may be one time for all rows.

    Attributes:
      channels: C of a token; width, depth: of the residual blocks.
    """

    channels: int
    width: int
    depth: int
    dtype: str = "float32"

    @nn.compact
    def __call__(
        self, x: Float[Array, "M C"], t: Float[Array, "T"], condition: Float[Array, "M W"]
    ) -> tuple[Float[Array, "M C"], Float[Array, "M C"]]:
        def linear(features, name, init="xavier"):
            return Linear(features, init=init, dtype=self.dtype, name=name)

        h = constrain(linear(self.width, "project")(x), "batch", None)
        times = time_features(t, 256, 1e4)
        y = linear(self.width, "time2", normal02)(
            jax.nn.silu(linear(self.width, "time1", normal02)(times))
        )
        y = constrain(jax.nn.silu(y + condition), "batch", None)
        for i in range(self.depth):
            mods = linear(3 * self.width, f"block{i}_adaln", "zeros")(y)
            shift, scale, gate = jnp.split(mods, 3, axis=-1)
            r = Norm("layer", True, 1e-6, name=f"block{i}_norm")(h) * (1.0 + scale) + shift
            r = jax.nn.silu(linear(self.width, f"block{i}_fc1")(r))
            r = linear(self.width, f"block{i}_fc2")(constrain(r, "batch", "mlp"))
            h = constrain(h + gate * r, "batch", None)
        shift, scale = jnp.split(linear(2 * self.width, "adaln", "zeros")(y), 2, axis=-1)
        h = layer_norm(h, 1e-6) * (1.0 + scale) + shift
        out = linear(2 * self.channels, "moments", "zeros")(h).astype(jnp.float32)
        return out[..., : self.channels], out[..., self.channels :]


class Condition(nn.Module):
    """W z of a hidden state z."""

    width: int

    @nn.compact
    def __call__(self, z: Float[Array, "M D"]) -> Float[Array, "M W"]:
        return Linear(self.width, name="bridge")(z)


class Steps:
    """Constants of a DDPM's steps."""

    table: dict[str, Array] | dict[str, np.ndarray]

    def at(self, name: str, step: Int[Array, "M"]) -> Float[Array, "M 1"]:
        """A constant at each step."""
        return jnp.take(jnp.asarray(self.table[name]), step)[:, None]


@dataclasses.dataclass(frozen=True)
class Traced(Steps):
    """Constants of which a program picks, as it runs, those of one chain."""

    table: dict[str, Array]


@dataclasses.dataclass(frozen=True)
class Chain(Steps):
    """A DDPM over some of the 1,000 times.

    Attributes:
      times: original time of each step, ascending.
      betas: noise variances between consecutive kept times.
    """

    times: tuple[int, ...]
    betas: tuple[float, ...]

    @functools.cached_property
    def table(self) -> dict[str, Float[np.ndarray, "T"]]:
        """Constants of every step, float32."""
        beta = np.asarray(self.betas, np.float64)
        total = np.cumprod(1.0 - beta)
        before = np.append(1.0, total[:-1])
        variance = beta * (1.0 - before) / (1.0 - total)
        clipped = np.log(np.append(variance[1], variance[1:]) if len(beta) > 1 else beta)
        constants = {
            "signal": np.sqrt(total),
            "noise": np.sqrt(1.0 - total),
            "inverse": np.sqrt(1.0 / total),
            "inverse_noise": np.sqrt(1.0 / total - 1.0),
            "mean_start": beta * np.sqrt(before) / (1.0 - total),
            "mean_now": (1.0 - before) * np.sqrt(1.0 - beta) / (1.0 - total),
            "low": clipped,
            "high": np.log(beta),
            "times": np.asarray(self.times, np.float64),
        }
        return {k: v.astype(np.float32) for k, v in constants.items()}


@functools.cache
def cosine_chain(steps: int) -> Chain:
    """The squared-cosine schedule, respaced to `steps` of its 1,000 times."""
    return respaced(
        (0,) if steps == 1 else tuple(round(i * (TIMES - 1) / (steps - 1)) for i in range(steps))
    )


def respaced(times: tuple[int, ...]) -> Chain:
    """The squared-cosine schedule on these of its 1,000 times, ascending."""
    u = np.arange(TIMES + 1) / TIMES
    bar = np.cos((u + 0.008) / 1.008 * math.pi / 2) ** 2
    total = np.cumprod(1.0 - np.minimum(1.0 - bar[1:] / bar[:-1], 0.999))
    kept = total[list(times)]
    return Chain(times, tuple(1.0 - kept / np.append(1.0, kept[:-1])))


def _normal_cdf(x):
    return 0.5 * (1.0 + jnp.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * x**3)))


def discretized_nll(
    x: Float[Array, "M C"], mean: Float[Array, "M C"], log_std: Float[Array, "M C"]
) -> Float[Array, "M C"]:
    """-log of a Gaussian's mass on the 1/255 bin around x, the ends open, in nats."""
    inverse = jnp.exp(-log_std)
    upper = _normal_cdf(inverse * (x - mean + 1.0 / 255.0))
    lower = _normal_cdf(inverse * (x - mean - 1.0 / 255.0))
    mass = jnp.where(x < -0.999, upper, jnp.where(x > 0.999, 1.0 - lower, upper - lower))
    return -jnp.log(jnp.maximum(mass, 1e-12))


def posterior(
    chain: Steps,
    x: Float[Array, "M C"],
    noise: Float[Array, "M C"],
    v: Array,
    step: Array,
    clip: float = 0.0,
) -> tuple[Float[Array, "M C"], Float[Array, "M C"]]:
    """Mean and log-variance of the previous x, from predicted noise and variance logits.

    With a `clip` above 0 the clean x that the noise implies is kept within -clip .. clip.
    """
    start = chain.at("inverse", step) * x - chain.at("inverse_noise", step) * noise
    start = jnp.clip(start, -clip, clip) if clip else start
    mean = chain.at("mean_start", step) * start + chain.at("mean_now", step) * x
    share = (v + 1.0) / 2.0
    return mean, share * chain.at("high", step) + (1.0 - share) * chain.at("low", step)


def ancestral(
    chain: Steps,
    x: Float[Array, "M C"],
    noise: Float[Array, "M C"],
    v: Array,
    step: Array,
    fresh: Float[Array, "M C"],
    temperature: float,
    clip: float = 0.0,
) -> Float[Array, "M C"]:
    """The previous x: `fresh` normal numbers spread the mean, but not at step 0."""
    mean, log_var = posterior(chain, x, noise, v, step, clip)
    spread = jnp.where(step > 0, temperature, 0.0)[:, None]
    return mean + spread * jnp.exp(0.5 * log_var) * fresh


def terms(
    x0: Float[Array, "M C"],
    noise: Float[Array, "M C"],
    step: Int[Array, "M"],
    predicted: Float[Array, "M C"],
    v: Float[Array, "M C"],
) -> tuple[Float[Array, "M"], Float[Array, "M"]]:
    """Squared noise error, and the variational bound of the variances in bits (channel means)."""
    chain = cosine_chain(TIMES)
    x = chain.at("signal", step) * x0 + chain.at("noise", step) * noise
    mean, log_var = posterior(chain, x, jax.lax.stop_gradient(predicted), v, step)
    true = chain.at("mean_start", step) * x0 + chain.at("mean_now", step) * x
    low = chain.at("low", step)
    gap = jnp.square(true - mean) * jnp.exp(-log_var)
    kl = 0.5 * (log_var - low + jnp.exp(low - log_var) - 1.0 + gap)
    nll = discretized_nll(x0, mean, 0.5 * log_var)
    bound = jnp.where((step == 0)[:, None], nll, kl).mean(-1) / math.log(2.0)
    return jnp.square(predicted - noise).mean(-1), bound


@dataclasses.dataclass(frozen=True)
class Diffusion:
    """`config.generator.head` of name diffusion.

    Attributes:
      channels, hidden: of the tokens, of the hidden states.
      width, depth: of the MLP.
      repeats: noise levels drawn per token and training step.
      steps: denoising steps when sampling.
      clip: bound of what a denoising step takes the token to be; 0 for none, as MAR. At the first
        steps an error of the predicted noise counts several hundred times, which small networks
        cannot afford.
    """

    channels: int
    hidden: int
    width: int
    depth: int
    repeats: int
    steps: int
    clip: float
    reads = ("temperature",)

    def __post_init__(self):
        allowed = "categorical, as these tokens are discrete"
        check(self.channels > 0, "generator.head.name", "diffusion", allowed)
        for name in ("width", "depth", "repeats", "steps"):
            value = getattr(self, name)
            check(value >= 1, f"generator.head.{name}", value, "at least 1")
        check(self.clip >= 0, "generator.head.clip", self.clip, "at least 0 (0 for none)")
        check(self.steps <= TIMES, "generator.head.steps", self.steps, f"1 .. {TIMES}")

    @property
    def _net(self):
        return Denoiser(self.channels, self.width, self.depth)

    def init_params(self, rng: Array) -> dict:
        """Parameters of the denoiser and, as "bridge", of its condition."""
        x, z, told = (jnp.zeros((1, n)) for n in (self.channels, self.hidden, self.width))
        first = Condition(self.width).init(stream(rng, "bridge"), z)["params"]
        return first | self._net.init(rng, x, jnp.zeros((1,)), told)["params"]

    def condition(self, params: dict, hidden: Float[Array, "*n D"]) -> Float[Array, "M W"]:
        """What the denoiser is told of the hidden states."""
        own = {"params": {"bridge": params["bridge"]}}
        return Condition(self.width).apply(own, hidden.reshape(-1, self.hidden))

    def denoise(
        self, params: dict, x: Float[Array, "M C"], t: Float[Array, "T"], condition: Array
    ) -> tuple[Float[Array, "M C"], Float[Array, "M C"]]:
        """Noise and variance logits of x at times t, one per row or one for all."""
        own = {k: v for k, v in params.items() if k != "bridge"}
        return self._net.apply({"params": own}, x, t, condition)

    def loss(
        self,
        params: dict,
        hidden: Float[Array, "B S D"],
        target: Float[Array, "B S C"],
        rng: Array,
        train: bool,
    ) -> tuple[Float[Array, "B S"], dict]:
        """Noise error plus variational bound, averaged over `repeats` noise levels per token."""
        del train
        several = (len(target), self.repeats, target.shape[1])  # an example's rows stay together
        told = self.condition(params, hidden).reshape(*target.shape[:2], self.width)
        x0, told = (
            jnp.broadcast_to(a[:, None], (*several, a.shape[-1])).reshape(-1, a.shape[-1])
            for a in (target, told)
        )
        step = jax.random.randint(stream(rng, "time"), (len(x0),), 0, TIMES, jnp.int32)
        noise = jax.random.normal(stream(rng, "noise"), x0.shape)
        error, bound = self.parts(params, x0, noise, step, told)
        total = (error + bound).reshape(several).mean(1)
        return total, {"noise_mse": error.mean(), "bound_bits": bound.mean()}

    def parts(
        self, params: dict, x0: Array, noise: Array, step: Int[Array, "M"], condition: Array
    ) -> tuple[Float[Array, "M"], Float[Array, "M"]]:
        """The two terms of the loss for given noise and times; see `condition`."""
        chain = cosine_chain(TIMES)
        x = chain.at("signal", step) * x0 + chain.at("noise", step) * noise
        predicted, v = self.denoise(params, x, chain.at("times", step)[:, 0], condition)
        return terms(x0, noise, step, predicted, v)

    def sample(
        self,
        params: dict,
        cond: Float[Array, "B S D"],
        uncond: Float[Array, "B S D"] | None,
        rng: Array,
        scale: Float[Array, ""],
        draw: Draw,
    ) -> tuple[Float[Array, "B S C"], None]:
        """Ancestral sampling from noise; guidance mixes the predicted noises only."""
        shape = cond.shape[:2]
        table, steps = draw.tables(self.steps, lambda count: cosine_chain(count).table)
        chain = Traced(table)
        both = cond if uncond is None else jnp.concatenate([cond, uncond])
        told, rows = self.condition(params, both), math.prod(shape)

        def back(i, x):
            twice = x if uncond is None else jnp.concatenate([x, x])
            step = jnp.asarray(steps - 1 - i, jnp.int32)
            t = jnp.take(table["times"], step[None])
            noise, v = self.denoise(params, twice, t, told)
            if uncond is not None:
                noise = guidance.cfg(noise[:rows], noise[rows:], scale)
                v = v[:rows]
            fresh = jax.random.normal(stream(rng, "denoise", step), x.shape)
            at = jnp.full((rows,), step)
            return ancestral(chain, x, noise, v, at, fresh, draw.temperature, self.clip)

        x = jax.random.normal(stream(rng, "start"), (rows, self.channels))
        x = jax.lax.fori_loop(0, steps, back, x)
        return x.reshape(*shape, self.channels), None


def make(section, spec: TokenSpec, width: int) -> Diffusion:
    """The head of a config section.

    Raises:
      ConfigError: a bad option, or discrete tokens.
    """
    channels = 0 if spec.vocab else spec.channels
    return build(Diffusion, section, "generator.head", named=True, channels=channels, hidden=width)
