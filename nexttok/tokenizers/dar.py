"""D-AR: the order of tokens is the order of denoising (Gao and Shou, "D-AR: Diffusion via
Autoregressive Models", 2025).

Causal queries compress a picture to N codes. A pixel-space flow decoder reads one group of them per
stretch of its way from noise to data, the first groups at the noisy end, so that the tokens drawn
so far denoise a picture so far: a preview is that denoiser's estimate of the data.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int
from ml_collections import ConfigDict

from nexttok import bottlenecks
from nexttok.bottlenecks.vq import VQ
from nexttok.config import build, check, part
from nexttok.heads import flow
from nexttok.nn.dar import Conditioner, Denoiser, QueryEncoder, trunk
from nexttok.nn.flextok import Projector
from nexttok.rng import stream
from nexttok.tokenizers import criteria
from nexttok.tokens import Tokens, TokenSpec


@dataclasses.dataclass(frozen=True)
class DAR:
    """Static configuration; parameters are passed to every method.

    Attributes:
      image_shape: (H, W, C) of the pictures, values in [-1, 1].
      dtype: compute dtype of the networks.
      bottleneck: see bottlenecks/vq.py.
      features: frozen feature provider of the alignment loss, or None; `params["features"]`.
      queries, groups: number of tokens N and of equal groups that they form.
      query_rank: numbers that a query's vector is linear in.
      encoder_patch, decoder_patch: sides of the encoder's and the denoiser's patches.
      encoder_width, encoder_depth: of the encoder; condition_*: of the causal transformer over the
        tokens; decoder_*: of the denoiser; head_dim: of all heads.
      scale: the data is multiplied by it before noise is added.
      shift: of noise levels, in training and decoding alike (see flow.shift_times).
      flow_steps: of decoding.
      perceptual_weight: of the difference between the picture and the estimate of it from one
        velocity, by LPIPS or without its weights by criteria.pyramid.
      perceptual_checkpoint: files of LPIPS weights (interop/lpips.py); "" for none.
      align_weight: of the alignment loss, with denoiser block `align_layer` (0-based) and a
        projector of width `align_hidden`.
      remat, unroll: of the scanned layers.
    """

    image_shape: tuple[int, ...]
    dtype: str
    bottleneck: Any
    features: Any
    queries: int
    groups: int
    query_rank: int
    encoder_patch: int
    encoder_width: int
    encoder_depth: int
    condition_width: int
    condition_depth: int
    decoder_patch: int
    decoder_width: int
    decoder_depth: int
    head_dim: int
    scale: float
    shift: float
    flow_steps: int
    perceptual_weight: float
    perceptual_checkpoint: str
    align_weight: float
    align_layer: int
    align_hidden: int
    remat: bool
    unroll: int

    def __post_init__(self):
        still = len(self.image_shape) == 3
        check(still, "data.frames", self.image_shape[0], "0: this tokenizer takes pictures")
        for name in ("queries", "groups", "query_rank", "encoder_depth", "condition_depth",
                     "decoder_depth", "align_hidden", "unroll"):  # fmt: skip
            self._check(name, getattr(self, name) >= 1, "at least 1")
        fits = self.queries % self.groups == 0
        self._check("groups", fits, f"a divisor of tokenizer.queries = {self.queries}")
        fits = self.head_dim >= 4 and self.head_dim % 4 == 0
        self._check("head_dim", fits, "a positive multiple of 4")
        for name in ("encoder_width", "condition_width", "decoder_width"):
            width = getattr(self, name)
            fits = width > 0 and width % self.head_dim == 0
            self._check(name, fits, f"a positive multiple of tokenizer.head_dim = {self.head_dim}")
        for name in ("encoder_patch", "decoder_patch"):
            patch = getattr(self, name)
            fits = patch >= 1 and all(side % patch == 0 for side in self.image_shape[:2])
            self._check(name, fits, f"a divisor of the side {self.image_shape[0]}")
        for name in ("scale", "shift"):
            self._check(name, getattr(self, name) > 0, "above 0")
        least = f"at least tokenizer.groups = {self.groups}, so that every group is read"
        self._check("flow_steps", self.flow_steps >= self.groups, least)
        for name in ("perceptual_weight", "align_weight"):
            self._check(name, getattr(self, name) >= 0, "at least 0")
        criteria.check_perceptual(
            self.perceptual_checkpoint, self.perceptual_weight, self.image_shape, "tokenizer"
        )
        fits = not self.align_weight or self.features is not None
        self._check("align_weight", fits, "0, or a feature provider in config.features")
        fits = 0 <= self.align_layer < self.decoder_depth or not self.align_weight
        self._check("align_layer", fits, f"0 .. {self.decoder_depth - 1}")

    def _check(self, name, condition, allowed):
        check(condition, f"tokenizer.{name}", getattr(self, name), allowed)

    @property
    def checkpoints(self) -> dict[str, str]:
        """Files of frozen parameters that the loss reads, by the parameters' name."""
        path = self.perceptual_checkpoint
        return {"perceptual": path} if path else {}

    @property
    def group(self) -> int:
        """Tokens per group."""
        return self.queries // self.groups

    @property
    def spec(self) -> TokenSpec:
        """N ordered ids of which whole groups decode."""
        spec = self.bottleneck.spec((self.queries,))
        return dataclasses.replace(spec, nested=True, group=self.group)

    @functools.cached_property
    def encoder(self) -> QueryEncoder:
        """Pictures -> one latent per query."""
        return QueryEncoder(
            self._trunk("encoder"), self.encoder_patch, self.queries, self.query_rank,
            self.bottleneck.inputs,
        )  # fmt: skip

    @functools.cached_property
    def conditioner(self) -> Conditioner:
        """Dequantized latents -> one condition per token."""
        return Conditioner(self._trunk("condition"))

    @functools.cached_property
    def decoder(self) -> Denoiser:
        """(conditions of a group, noised pictures, noise levels) -> velocity."""
        return Denoiser(self._trunk("decoder"), self.decoder_patch)

    @functools.cached_property
    def projector(self) -> Projector:
        """Of the alignment loss."""
        return Projector(self.features.channels, self.dtype, self.align_hidden, normed=False)

    def _trunk(self, name):
        width, depth = getattr(self, f"{name}_width"), getattr(self, f"{name}_depth")
        return trunk(width, depth, self.head_dim, self.remat, self.unroll, self.dtype)

    def init(self, rng: Array) -> dict:
        """Parameters {encoder, quantizer, conditioner, decoder[, projector]}; none are frozen."""
        x = jnp.zeros((1, *self.image_shape))
        values = jnp.zeros((1, self.queries, self.bottleneck.channels))
        group = jnp.zeros((1, self.group, self.condition_width))
        inputs = {"encoder": (x,), "conditioner": (values,), "decoder": (group, x, jnp.zeros(1))}
        if self.align_weight:
            inputs["projector"] = (jnp.zeros((1, 1, self.decoder_width)),)
        params = {
            name: getattr(self, name).init(stream(rng, name), *args)["params"]
            for name, args in inputs.items()
        }
        return params | {"quantizer": self.bottleneck.init(stream(rng, "quantizer"))}

    def latents(self, params: dict, x: Float[Array, "B H W C"]) -> Float[Array, "B N c"]:
        """What the bottleneck takes."""
        return self.encoder.apply({"params": params["encoder"]}, x)

    def encode(self, params: dict, x: Float[Array, "B H W C"], rng: Array | None = None) -> Tokens:
        """Ids [B, N] and their values [B, N, c]; rng is not used."""
        return self.bottleneck.encode(params["quantizer"], self.latents(params, x), rng)

    def conditions(self, params: dict, values: Float[Array, "B N c"]) -> Float[Array, "B G n D"]:
        """What the denoiser reads, by group; a group depends on the tokens up to its last."""
        found = self.conditioner.apply({"params": params["conditioner"]}, values)
        return found.reshape(len(values), self.groups, self.group, self.condition_width)

    def velocity(
        self,
        params: dict,
        group: Float[Array, "B n D"],
        noised: Float[Array, "B H W C"],
        times: Float[Array, "B"],
        tap: int = -1,
    ) -> tuple[Float[Array, "B H W C"], Float[Array, "B P E"]]:
        """Noise minus scaled data; see nexttok.nn.dar.Denoiser."""
        return self.decoder.apply({"params": params["decoder"]}, group, noised, times, tap)

    def active(self, times: Float[Array, "*n"]) -> Int[Array, "*n"]:
        """The group that is read at noise levels before their shift.

        The nearest of G + 1 even points from noise to data, the last of which is left out: the
        first group rules half a stretch, the last one and a half.
        """
        nearest = jnp.floor((1.0 - times) * self.groups + 0.5).astype(jnp.int32)
        return jnp.minimum(nearest, self.groups - 1)

    @functools.cached_property
    def schedule(self) -> tuple[Float[np.ndarray, "K1"], Int[np.ndarray, "K"]]:
        """Shifted noise levels of decoding, and the group of each step."""
        steps = np.arange(self.flow_steps + 1) / self.flow_steps
        groups = np.floor(steps[:-1] * self.groups + 0.5).astype(np.int32)
        return flow.shift_times(1.0 - steps, self.shift), np.minimum(groups, self.groups - 1)

    def decode(
        self,
        params: dict,
        tokens: Tokens,
        rng: Array,
        keep: Int[Array, "B"] | None = None,
    ) -> Float[Array, "B H W C"]:
        """Draws the pictures described by the first `keep` tokens (None: by all of them).

        Where groups are missing the last step that has one leads straight to the data.

        Args:
          params: all but the frozen parts.
          tokens: ids [B, M] (or values [B, M, c]), M <= N a multiple of the group.
          rng: key of the initial noise.
          keep: int32 [B], rounded down to whole groups, at least one; slots past them are not read.

        Raises:
          ConfigError: M is no multiple of the group.
        """
        given = (tokens.values if tokens.ids is None else tokens.ids).shape[1]
        check(given >= 1 and given % self.group == 0, "sample.tokens", given,
              f"a multiple of the {self.group} tokens of a group")  # fmt: skip
        values = self.bottleneck.decode(params["quantizer"], tokens, (given,))
        values = jnp.pad(values, ((0, 0), (0, self.queries - given), (0, 0)))
        conditions = self.conditions(params, values)
        times, groups = self.schedule
        if keep is None:
            keep = jnp.full((len(values),), given, jnp.int32)
        kept = jnp.clip(keep // self.group, 1, given // self.group)
        stop = jnp.searchsorted(jnp.asarray(groups), kept, side="left")

        def velocity(x, s, i):
            group = jnp.take(conditions, jnp.take(jnp.asarray(groups), i), axis=1)
            return self.velocity(params, group, x, s)[0]

        noise = jax.random.normal(stream(rng, "noise"), (len(values), *self.image_shape))
        return flow.solve_multistep(velocity, noise, times, stop) / self.scale

    def loss(self, params: dict, batch: dict, rng: Array) -> tuple[Float[Array, "B"], dict]:
        """Flow loss at a random time with the group of that time, and the other losses.

        Codes of later groups are not asked for the quantizer's losses, whose mean is over those of
        the whole batch that are.

        Args:
          params: trainable ones, and frozen "perceptual" and "features" where they are used.
          batch: "image" float [B, H, W, C].
          rng: key of times, noise and the bottleneck.

        Returns:
          Per-example loss [B]; metrics {flow, codebook, commitment, ... [, perceptual, align]}, the
          last two unweighted, and "moves" of the bottleneck's parameters, where it has any.
        """
        image = batch["image"]
        even = flow.sample_times(stream(rng, "time"), len(image), "uniform")
        active, times = self.active(even), flow.shift_times(even, self.shift)
        asked = jnp.arange(self.queries)[None] < self.group * (active + 1)[:, None]
        asked = asked.astype(jnp.float32)
        coded = self.bottleneck.quantize(
            params["quantizer"], self.latents(params, image), stream(rng, "codes"),
            weight=asked / asked.mean(),
        )  # fmt: skip
        conditions = self.conditions(params, coded.values)
        group = jnp.take_along_axis(conditions, active[:, None, None, None], axis=1)[:, 0]
        noise, data = jax.random.normal(stream(rng, "noise"), image.shape), self.scale * image
        noised = flow.interpolate(data, noise, times)
        tap = self.align_layer if self.align_weight else -1
        velocity, tapped = self.velocity(params, group, noised, times, tap)
        errors = {"flow": flow.loss(velocity, data, noise) / self.scale**2}
        total = errors["flow"] + coded.loss
        if self.perceptual_weight:
            estimate = (noised - times[:, None, None, None] * velocity) / self.scale
            weights = params["perceptual"] if self.perceptual_checkpoint else None
            errors["perceptual"] = criteria.perceptual(weights, image, estimate, self.dtype)
            total = total + self.perceptual_weight * errors["perceptual"]
        if self.align_weight:
            errors["align"] = self._alignment(params, image, tapped)
            total = total + self.align_weight * errors["align"]
        metrics = coded.metrics | {name: error.mean() for name, error in errors.items()}
        if coded.moves:
            metrics["moves"] = {"quantizer": jax.lax.stop_gradient(coded.moves)}
        return total, metrics

    def _alignment(self, params, image, tapped):
        """Of the denoiser's features with the provider's."""
        grid = (image.shape[1] // self.decoder_patch, image.shape[2] // self.decoder_patch)
        project = functools.partial(self.projector.apply, {"params": params["projector"]})
        return criteria.alignment(self.features, params["features"], image, tapped, grid, project)


def make(section, image_shape, dtype="float32", latent=None, features=None) -> DAR:
    """D-AR's tokenizer from `config.tokenizer`; see DAR for the keys, `bottleneck` is a section.

    Raises:
      ConfigError: unknown or missing key, wrong type, sizes that do not fit together, another
        bottleneck than vq, or a latent provider, which it does not take.
    """
    check(latent is None, "latent.name", "", "'' under tokenizer.name = 'dar'")
    here = "tokenizer.bottleneck"
    check("bottleneck" in section, here, None, "a section of bottlenecks/vq.py")
    own = section.bottleneck
    bottleneck = part(bottlenecks, own, here).make(own, here)
    allowed = "vq, whose losses weigh positions"
    check(isinstance(bottleneck, VQ), f"{here}.name", own.name, allowed)
    flat = ConfigDict({key: section[key] for key in section if key != "bottleneck"})
    given = dict(
        image_shape=tuple(image_shape), dtype=dtype, bottleneck=bottleneck, features=features
    )
    return build(DAR, flat, "tokenizer", named=True, **given)
