"""Head `gmm`: a mixture of diagonal Gaussians over a whole continuous token.

Tschannen et al., "GIVT: Generative Infinite-Vocabulary Transformers", 2023. Guidance is
density-based: p_c^(1+w) p_u^(-w) of one mixture component, drawn by rejection.
"""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from nexttok.config import build, check
from nexttok.heads.draw import Draw
from nexttok.nn.linear import Linear
from nexttok.rng import stream
from nexttok.tokens import TokenSpec

FLOOR = 1e-6  # of standard deviations
TRIES = 1000  # proposals before the conditional distribution is used
AT_ONCE = 8  # of them computed together
LOG_2PI = 1.8378770664093453


class Mixture(nn.Module):
    """Linear map to mixture parameters; zero-initialized: equal weights, mean 0, deviation 1."""

    size: int

    @nn.compact
    def __call__(self, hidden: Float[Array, "B S D"]) -> Float[Array, "B S M"]:
        return Linear(self.size, init="zeros", name="moments")(hidden.astype(jnp.float32))


def squareplus(x: Float[Array, "*n"], halved: bool = True) -> Float[Array, "*n"]:
    """(x + sqrt(x^2 + 4)) / 2; older checkpoints have x + sqrt(x^2 + 4) / 2."""
    root = jnp.sqrt(jnp.square(x) + 4.0)
    return (x + root) / 2.0 if halved else x + root / 2.0


def split(
    params: Float[Array, "*n M"], channels: int, halved: bool = True
) -> tuple[Float[Array, "*n K"], Float[Array, "*n K C"], Float[Array, "*n K C"]]:
    """Mixture logits, means and deviations of M = K + 2 K C numbers."""
    count = params.shape[-1] // (1 + 2 * channels)
    rest = params[..., count:].reshape(*params.shape[:-1], count, 2, channels)
    scale = jnp.maximum(squareplus(rest[..., 1, :], halved), FLOOR)
    return params[..., :count], rest[..., 0, :], scale


def normal_log_prob(
    x: Float[Array, "*n C"], loc: Float[Array, "*n C"], scale: Float[Array, "*n C"]
) -> Float[Array, "*n C"]:
    """log N(x; loc, scale^2) per channel."""
    return -0.5 * jnp.square((x - loc) / scale) - jnp.log(scale) - 0.5 * LOG_2PI


def log_prob(
    logits: Float[Array, "*n K"],
    loc: Float[Array, "*n K C"],
    scale: Float[Array, "*n K C"],
    x: Float[Array, "*n C"],
) -> Float[Array, "*n"]:
    """log sum_k pi_k prod_c N(x_c; mu_kc, sigma_kc)."""
    each = normal_log_prob(jnp.broadcast_to(x[..., None, :], loc.shape), loc, scale).sum(-1)
    return jax.nn.logsumexp(jax.nn.log_softmax(logits, axis=-1) + each, axis=-1)


def pick(component: Array, values: Float[Array, "*n K C"]) -> Float[Array, "*n C"]:
    """values[..., component, :]."""
    return jnp.take_along_axis(values, component[..., None, None], axis=-2)[..., 0, :]


def guided_log_prob(x: Array, cond: tuple, uncond: tuple, w: Array) -> Array:
    """(1 + w) log p_c - w log p_u per channel, unnormalized; cond and uncond are (loc, scale)."""
    return (1.0 + w) * normal_log_prob(x, *cond) - w * normal_log_prob(x, *uncond)


def gaussian_sample(key: Array, loc: Array, scale: Array) -> Float[Array, "*n C"]:
    """Draws from N(loc, scale^2)."""
    return loc + scale * jax.random.normal(stream(key, "fallback"), loc.shape)


def rejection_sample(
    key: Array, cond: tuple[Array, Array], uncond: tuple[Array, Array], w: Array
) -> Float[Array, "*n C"]:
    """Draws every channel from p_c^(1+w) p_u^(-w).

    Proposals are N(mu_c, (2 max(sigma_c, sigma_u))^2); the bound is the largest density at 1,001
    points within 10 of mu_c over the proposal's at its mode. A channel that rejects all of TRIES
    proposals is drawn from p_c.

    Args:
      key: random key.
      cond, uncond: (mean, deviation) of the two Gaussians.
      w: strength; 0 draws what `gaussian_sample` of p_c does.
    """
    loc, wide = cond[0], 2.0 * jnp.maximum(cond[1], uncond[1])
    points = jnp.linspace(-10.0, 10.0, 1001)
    bound = jax.vmap(lambda point: guided_log_prob(loc + point, cond, uncond, w))(points).max(0)
    bound = bound - normal_log_prob(loc, loc, wide)

    def judge(normal, height):
        proposal = loc + wide * normal
        level = bound + normal_log_prob(proposal, loc, wide)
        return proposal, jnp.log(height) + level < guided_log_prob(proposal, cond, uncond, w)

    def undecided(state):
        tries, _, accepted = state
        return (tries < TRIES) & ~accepted.all()

    def attempt(state):
        tries, x, accepted = state
        draws = tried(key, tries + jnp.arange(AT_ONCE, dtype=jnp.int32), loc.shape)
        proposals, fits = jax.vmap(judge)(*draws)
        first = jnp.take_along_axis(proposals, jnp.argmax(fits, 0)[None], axis=0)[0]
        fits = fits.any(0)
        return tries + AT_ONCE, jnp.where(fits & ~accepted, first, x), accepted | fits

    accepted = jnp.broadcast_to(w == 0.0, loc.shape)
    state = (jnp.zeros((), jnp.int32), gaussian_sample(key, *cond), accepted)
    return jax.lax.while_loop(undecided, attempt, state)[1]


def tried(
    key: Array, numbers: Int[Array, "A"], shape: tuple[int, ...]
) -> tuple[Float[Array, "A *n C"], Float[Array, "A *n C"]]:
    """Normal draws of the tries of these numbers, and uniform ones that accept them."""

    def one(number):
        return (
            jax.random.normal(stream(key, "proposal", number), shape),
            jax.random.uniform(stream(key, "accept", number), shape),
        )

    return jax.vmap(one)(numbers)


@dataclasses.dataclass(frozen=True)
class Gmm:
    """`config.generator.head` of name gmm.

    Attributes:
      channels, hidden: of the tokens, of the hidden states.
      mixtures: K.
      halved: squareplus as fixed; False for older checkpoints.
    """

    channels: int
    hidden: int
    mixtures: int
    halved: bool
    likelihood = True
    reads = ("temperature",)

    def __post_init__(self):
        allowed = "categorical, as these tokens are discrete"
        check(self.channels > 0, "generator.head.name", "gmm", allowed)
        check(self.mixtures >= 1, "generator.head.mixtures", self.mixtures, "at least 1")

    @property
    def _net(self):
        return Mixture(self.mixtures * (1 + 2 * self.channels))

    def init_params(self, rng: Array) -> dict:
        """Parameters of the output layer."""
        return self._net.init(rng, jnp.zeros((1, 1, self.hidden)))["params"]

    def outputs(self, params: dict, hidden: Float[Array, "B S D"]) -> Float[Array, "B S M"]:
        """Mixture parameters, see `split`."""
        return self._net.apply({"params": params}, hidden)

    def loss(
        self,
        params: dict,
        hidden: Float[Array, "B S D"],
        target: Float[Array, "B S C"],
        rng: Array,
        train: bool,
    ) -> tuple[Float[Array, "B S"], dict]:
        """-log p in nats per token (a density: it may be negative)."""
        del rng, train
        return -log_prob(*self._parts(params, hidden), target), {}

    def _parts(self, params, hidden):
        return split(self.outputs(params, hidden), self.channels, self.halved)

    def sample(
        self,
        params: dict,
        cond: Float[Array, "B S D"],
        uncond: Float[Array, "B S D"] | None,
        rng: Array,
        scale: Float[Array, ""],
        draw: Draw,
    ) -> tuple[Float[Array, "B S C"], Float[Array, "B S"]]:
        """A component, then its Gaussian; deviations are multiplied by draw.temperature.

        With guidance (scale = 1 + w) the component is drawn from the conditional weights and both
        densities use it; with w = 0 draws and densities are those without guidance.

        Returns:
          Tokens, and the log-density of each (unnormalized, of the component, when guided).
        """
        logits, loc, spread = self._parts(params, cond)
        spread = spread * draw.temperature
        component = jax.random.categorical(stream(rng, "component"), logits, axis=-1)
        mean, deviation = pick(component, loc), pick(component, spread)
        key = stream(rng, "value")
        if uncond is None:
            x = gaussian_sample(key, mean, deviation)
            return x, log_prob(logits, loc, spread, x)
        _, other_loc, other_spread = self._parts(params, uncond)
        other = pick(component, other_loc), pick(component, other_spread) * draw.temperature
        w = scale - 1.0
        x = rejection_sample(key, (mean, deviation), other, w)
        guided = guided_log_prob(x, (mean, deviation), other, w).sum(-1)
        return x, jnp.where(w == 0.0, log_prob(logits, loc, spread, x), guided)


def make(section, spec: TokenSpec, width: int) -> Gmm:
    """The head of a config section.

    Raises:
      ConfigError: a bad option, or discrete tokens.
    """
    channels = 0 if spec.vocab else spec.channels
    return build(Gmm, section, "generator.head", named=True, channels=channels, hidden=width)
