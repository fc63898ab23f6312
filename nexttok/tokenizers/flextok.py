"""FlexTok: an image as 1 .. N ordered tokens (Bachmann et al., "FlexTok: Resampling Images into 1D
Token Sequences of Flexible Length", 2025).

A register encoder compresses latents to N vectors, FSQ makes them ids, nested dropout keeps a
random prefix, and a rectified-flow decoder draws the latents that the prefix describes. Any prefix
decodes to a plausible image, coarse to fine.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from nexttok.bottlenecks import fsq
from nexttok.config import build, check
from nexttok.heads import flow
from nexttok.nn.flextok import AXES, FlowDecoder, Projector, RegisterEncoder, trunk
from nexttok.rng import stream
from nexttok.tokenizers import criteria, nested
from nexttok.tokens import Tokens, TokenSpec


@dataclasses.dataclass(frozen=True)
class FlexTok:
    """Static configuration; parameters are passed to every method.

    Attributes:
      image_shape: (H, W, C) of the pictures, values in [-1, 1].
      dtype: compute dtype of the networks.
      latent: frozen autoencoder whose latents are tokenized, or None for pixels. Its parameters
        are `params["latent"]`.
      features: frozen feature provider of the alignment loss, or None; `params["features"]`.
      registers: number of tokens N.
      levels: FSQ levels.
      patch: side of a latent patch.
      positions: coordinate in the first half of the patches' position channels, columns | rows
        (as released).
      encoder_width, encoder_depth, decoder_width, decoder_depth, head_dim: sizes.
      keep: nested dropout, uniform | pow2 | uniform_pow2.
      null_probability: share of training examples without any token (for guidance).
      noise: training noise levels, uniform | mode | logit_normal; `mode_scale` of mode.
      align_weight: of the alignment loss, with decoder block `align_layer` (0-based).
      max_timestep: the time embedding's arguments are scaled by 1000 / max_timestep.
      flow_steps, solver, guidance, guidance_rule: of decoding.
      remat, unroll: of the scanned layers.
    """

    image_shape: tuple[int, ...]
    dtype: str
    latent: Any
    features: Any
    registers: int
    levels: tuple[int, ...]
    patch: int
    positions: str
    encoder_width: int
    encoder_depth: int
    decoder_width: int
    decoder_depth: int
    head_dim: int
    keep: str
    null_probability: float
    noise: str
    mode_scale: float
    align_weight: float
    align_layer: int
    max_timestep: float
    flow_steps: int
    solver: str
    guidance: float
    guidance_rule: str
    remat: bool
    unroll: int

    def __post_init__(self):
        here = "tokenizer"
        still = len(self.image_shape) == 3
        check(still, "data.frames", self.image_shape[0], "0: this tokenizer takes pictures")
        check(self.registers >= 1, f"{here}.registers", self.registers, "at least 1")
        fsq.validate(self.levels, f"{here}.levels")
        nested.validate(self.keep, self.registers, f"{here}.keep")
        for side in self.latent_shape[:2]:
            allowed = f"a divisor of the latent side {side}"
            check(self.patch >= 1 and side % self.patch == 0, f"{here}.patch", self.patch, allowed)
        check(self.positions in AXES, f"{here}.positions", self.positions, " | ".join(AXES))
        check(self.head_dim >= 1, f"{here}.head_dim", self.head_dim, "at least 1")
        for name in ("encoder_width", "decoder_width"):
            width = getattr(self, name)
            fits = width > 0 and width % self.head_dim == 0 and width % 4 == 0
            allowed = f"a positive multiple of 4 and of tokenizer.head_dim = {self.head_dim}"
            check(fits, f"{here}.{name}", width, allowed)
        for name in ("encoder_depth", "decoder_depth", "flow_steps", "unroll"):
            check(getattr(self, name) >= 1, f"{here}.{name}", getattr(self, name), "at least 1")
        p = self.null_probability
        check(0 <= p < 1, f"{here}.null_probability", p, "at least 0 and below 1")
        check(
            self.guidance == 1 or p > 0,
            f"{here}.guidance",
            self.guidance,
            "1, as nothing is trained without tokens (tokenizer.null_probability = 0)",
        )
        check(self.noise in flow.NOISE_SCHEDULES, f"{here}.noise", self.noise,
              " | ".join(flow.NOISE_SCHEDULES))  # fmt: skip
        check(self.solver in flow.SOLVERS, f"{here}.solver", self.solver, " | ".join(flow.SOLVERS))
        rule = self.guidance_rule
        check(rule in flow.GUIDANCE_RULES, f"{here}.guidance_rule", rule,
              " | ".join(flow.GUIDANCE_RULES))  # fmt: skip
        if self.align_weight:
            check(self.features is not None, f"{here}.align_weight", self.align_weight,
                  "0, or a feature provider in config.features")  # fmt: skip
            layer = self.align_layer
            check(0 <= layer < self.decoder_depth, f"{here}.align_layer", layer,
                  f"0 .. {self.decoder_depth - 1}")  # fmt: skip

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """(h, w, c) of what is tokenized: latents, or the pixels themselves."""
        if self.latent is None:
            return self.image_shape
        return (*self.latent.spec.grid, self.latent.spec.channels)

    @property
    def spec(self) -> TokenSpec:
        """N ordered ids of which every prefix decodes."""
        return TokenSpec((self.registers,), fsq.vocabulary(self.levels), len(self.levels), True)

    @functools.cached_property
    def encoder(self) -> RegisterEncoder:
        """Latents -> one vector per register."""
        return RegisterEncoder(
            trunk(self.encoder_width, self.encoder_depth, self.head_dim, 0, self.remat,
                  self.unroll, self.dtype),
            self.patch, self.registers, len(self.levels), self.positions,
        )  # fmt: skip

    @functools.cached_property
    def decoder(self) -> FlowDecoder:
        """(tokens, noised latents, time) -> velocity."""
        config = trunk(self.decoder_width, self.decoder_depth, self.head_dim, 2, self.remat,
                       self.unroll, self.dtype)  # fmt: skip
        return FlowDecoder(config, self.patch, 1000.0 / self.max_timestep, self.positions)

    def init(self, rng: Array) -> dict:
        """Trainable parameters {encoder, decoder[, projector]}; frozen parts are not among them."""
        x = jnp.zeros((1, *self.latent_shape))
        one = jnp.ones((1,), jnp.int32)
        values = jnp.zeros((1, self.registers, len(self.levels)))
        times = jnp.zeros((1,))
        params = {
            "encoder": self.encoder.init(stream(rng, "encoder"), x)["params"],
            "decoder": self.decoder.init(
                stream(rng, "decoder"), values, one, jnp.zeros((1,), bool), x, times
            )["params"],
        }
        if self.align_weight:
            features = jnp.zeros((1, 1, self.decoder_width))
            projector = Projector(self.features.channels, self.dtype)
            params["projector"] = projector.init(stream(rng, "projector"), features)["params"]
        return params

    def latents(
        self, params: dict, x: Float[Array, "B H W C"], rng: Array | None
    ) -> Float[Array, "B h w c"]:
        """What is tokenized: the frozen autoencoder's latents (sampled when rng is given)."""
        if self.latent is None:
            return x
        values = self.latent.encode(params["latent"], x, rng).values
        return jax.lax.stop_gradient(values).reshape(len(x), *self.latent_shape)

    def encode(self, params: dict, x: Float[Array, "B H W C"], rng: Array | None = None) -> Tokens:
        """Images -> ids [B, N] and their FSQ values [B, N, c]; rng samples the latents, if any."""
        z = self.encoder.apply({"params": params["encoder"]}, self.latents(params, x, rng))
        values, ids, _ = fsq.quantize(z, self.levels)
        return Tokens(ids=ids, values=values)

    def velocity(self, params, values, keep, null, noised, times, tap=-1):
        """The decoder network; see nexttok.nn.flextok.FlowDecoder."""
        variables = {"params": params["decoder"]}
        return self.decoder.apply(variables, values, keep, null, noised, times, tap)

    def decode(
        self,
        params: dict,
        tokens: Tokens,
        rng: Array,
        keep: Int[Array, "B"] | None = None,
    ) -> Float[Array, "B H W C"]:
        """Draws the images described by the first `keep` tokens (None: by all of them).

        Args:
          params: encoder/decoder and frozen parts.
          tokens: ids [B, M] (or values [B, M, c]) with M <= N; slots past `keep` are never read.
          rng: key of the initial noise.
          keep: int32 [B], 1 .. M.
        """
        values = tokens.values
        if tokens.ids is not None:
            values = fsq.ids_to_values(tokens.ids, self.levels)
        batch, given = values.shape[:2]
        values = jnp.pad(values, ((0, 0), (0, self.registers - given), (0, 0)))
        if keep is None:
            keep = jnp.full((batch,), given, jnp.int32)

        def velocity(x, times, null):
            nulls = jnp.full((batch,), null)
            return self.velocity(params, values, keep, nulls, x, times)[0]

        noise = jax.random.normal(stream(rng, "noise"), (batch, *self.latent_shape))
        x = flow.solve_guided(
            velocity, noise, self.flow_steps, self.solver, self.guidance, self.guidance_rule
        )
        if self.latent is None:
            return x
        latents = Tokens(values=x.reshape(batch, -1, x.shape[-1]))
        return self.latent.decode(params["latent"], latents, stream(rng, "latent"))

    def loss(self, params: dict, batch: dict, rng: Array) -> tuple[Float[Array, "B"], dict]:
        """Flow loss (+ alignment) of random prefixes; batch["image"] is float [B, H, W, C].

        Returns:
          Per-example loss [B]; metrics {flow, keep[, align]}.
        """
        image = batch["image"]
        count = len(image)
        x = self.latents(params, image, stream(rng, "posterior"))
        z = self.encoder.apply({"params": params["encoder"]}, x)
        values, _, _ = fsq.quantize(z, self.levels)
        keep = nested.sample_keep(stream(rng, "keep"), count, self.registers, self.keep)
        null = jax.random.bernoulli(stream(rng, "null"), self.null_probability, (count,))
        times = flow.sample_times(stream(rng, "time"), count, self.noise, self.mode_scale)
        noise = jax.random.normal(stream(rng, "noise"), x.shape)
        noised = flow.interpolate(x, noise, times)
        tap = self.align_layer if self.align_weight else -1
        velocity, tapped = self.velocity(params, values, keep, null, noised, times, tap)
        total = per_example = flow.loss(velocity, x, noise)
        metrics = {"flow": per_example.mean(), "keep": keep.astype(jnp.float32).mean()}
        if self.align_weight:
            align = self._alignment(params, image, tapped)
            metrics["align"] = align.mean()
            total = total + self.align_weight * align
        return total, metrics

    def _alignment(self, params, image, tapped):
        """Of the decoder's features with the provider's."""
        grid = (self.latent_shape[0] // self.patch, self.latent_shape[1] // self.patch)
        projector = Projector(self.features.channels, self.dtype)
        project = functools.partial(projector.apply, {"params": params["projector"]})
        return criteria.alignment(self.features, params["features"], image, tapped, grid, project)


def make(section, image_shape, dtype="float32", latent=None, features=None) -> FlexTok:
    """FlexTok from `config.tokenizer`; see FlexTok for the keys.

    Raises:
      ConfigError: unknown or missing key, wrong type, or sizes that do not fit together.
    """
    given = dict(image_shape=tuple(image_shape), dtype=dtype, latent=latent, features=features)
    return build(FlexTok, section, "tokenizer", named=True, **given)
