"""DetailFlow: tokens ordered by resolution (Liu et al., "DetailFlow: 1D Coarse-to-Fine
Autoregressive Image Generation via Next-Detail Prediction", 2025).

The encoder's registers are causal by groups, the first token by token. The first t tokens draw the
picture at r(t) pixels a side: a share of the batches decodes t < N of them at the least side of
whole patches, judged by the picture shrunk to r(t) and enlarged again. For self-correction, some
codes of each batch (one, or a later group) are replaced by codes near them; the tokens after those
are encoded anew, given the picture and all before, and the whole must draw the picture as well.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int
from ml_collections import ConfigDict

from nexttok.bottlenecks import multiscale, vq
from nexttok.config import build, check, check_keys
from nexttok.nn.detailflow import Registers
from nexttok.nn.flextok import Projector
from nexttok.nn.networks.vit import ViTSizes
from nexttok.nn.norms import unit
from nexttok.rng import stream
from nexttok.tokenizers import autoencoder, detail
from nexttok.tokens import Tokens, TokenSpec

OPTIONS = ("degrade", "power", "correct", "neighbours", "align_weight", "align_hidden")


@dataclasses.dataclass(frozen=True, kw_only=True)
class DetailFlow(autoencoder.Autoencoder):
    """An autoencoder, see there, whose networks are transformers with registers.

    Parameters "registers" hold what the encoder's start as; "projector" is that of the alignment,
    whose provider's are frozen "features".

    Attributes:
      degrade: share of the batches that are drawn from fewer than all tokens.
      power: exponent of detail.resolutions.
      correct: train self-correction.
      neighbours: codes, the nearest to a latent, among which a disturbed one is drawn.
      align_weight: of the alignment of the first token to the provider's mean feature; its
        projector has a width of `align_hidden`.
      dtype: of the registers and the projector.
    """

    degrade: float
    power: float
    correct: bool
    neighbours: int
    align_weight: float
    align_hidden: int
    dtype: str = "float32"

    def __post_init__(self):
        here, shape = self.where, self.image_shape
        still = len(shape) == 3
        check(still, "data.frames", shape[0], "0: this tokenizer takes pictures")
        super().__post_init__()
        check(shape[0] == shape[1], "data", shape, "square pictures")
        for name in ("encoder", "decoder"):
            sizes = getattr(self, f"{name}_sizes")
            fits = type(sizes) is ViTSizes and sizes.registers > 0 and not sizes.scrambled
            check(fits, f"{here}.{name}", type(sizes).__name__, "name 'vit', with registers")
        visible = self.encoder_sizes.visible
        check(visible == "causal", f"{here}.encoder.visible", visible, "causal")
        seen = self.decoder_sizes.visible
        check(seen == "all", f"{here}.decoder.visible", seen, "all")
        rows, columns = self.decoder_sizes.patch
        check(rows == columns, f"{here}.decoder.patch", (rows, columns), "a square")
        allowed = f"at least two groups of {self.group}"
        check(
            self.count >= max(2, 2 * self.group), f"{here}.encoder.registers", self.count, allowed
        )
        check(0 <= self.degrade <= 1, f"{here}.degrade", self.degrade, "0 .. 1")
        check(self.power > 0, f"{here}.power", self.power, "above 0")
        fits = isinstance(self.bottleneck, vq.VQ)
        check(fits, f"{here}.bottleneck.name", type(self.bottleneck).__name__, "vq")
        size = self.bottleneck.size
        check(1 <= self.neighbours <= size, f"{here}.neighbours", self.neighbours, f"1 .. {size}")
        fits = self.align_weight == 0 or (self.align_weight > 0 and self.features is not None)
        allowed = "0, or above 0 with a feature provider in config.features"
        check(fits, f"{here}.align_weight", self.align_weight, allowed)
        check(self.align_hidden >= 1, f"{here}.align_hidden", self.align_hidden, "at least 1")

    def _check_losses(self):
        found = self.losses.align_weight or self.losses.warm_start
        allowed = "0: tokenizer.align_weight is that of these tokens, and there is no warm start"
        check(not found, f"{self.where}.losses.align_weight, warm_start", found, allowed)

    @property
    def count(self) -> int:
        """Number of tokens N."""
        return self.grid[0]

    @property
    def group(self) -> int:
        """Tokens of a group."""
        return self.encoder_sizes.group

    @property
    def spec(self) -> TokenSpec:
        """N ordered ids of which every prefix decodes."""
        return dataclasses.replace(self.bottleneck.spec(self.grid), nested=True)

    @functools.cached_property
    def pixels(self) -> Int[np.ndarray, "N"]:
        """Resolution of each prefix."""
        return detail.resolutions(self.count, self.image_shape[0], self.power)

    @functools.cached_property
    def sides(self) -> Int[np.ndarray, "N"]:
        """Side at which each prefix is drawn."""
        return detail.drawn_sides(self.pixels, self.decoder_sizes.patch[0])

    @functools.cached_property
    def registers(self) -> Registers:
        """What the encoder's registers start as."""
        return Registers(self.count, self.encoder_sizes.width, self.dtype)

    @functools.cached_property
    def projector(self) -> Projector:
        """The first token's value -> the provider's width."""
        return Projector(self.features.channels, self.dtype, self.align_hidden, False)

    def init(self, rng: Array) -> dict:
        """Parameters {encoder, registers, decoder, quantizer[, projector, ...]}."""
        image = jnp.zeros((1, *self.image_shape))
        values = jnp.zeros((1, self.count, self.bottleneck.channels))
        known = values if self.correct else None
        first, registers = self.registers.init_with_output(stream(rng, "registers"), known)
        params = {
            "encoder": self.encoder.init(stream(rng, "encoder"), image, first)["params"],
            "registers": registers["params"],
            "decoder": self.decoder.init(stream(rng, "decoder"), values)["params"],
            "quantizer": self.bottleneck.init(stream(rng, "quantizer")),
            **self.losses.init(rng),
        }
        if self.align_weight:
            key = stream(rng, "projector")
            params["projector"] = self.projector.init(key, values[:, :1])["params"]
        return params

    def latents(
        self,
        params: dict,
        x: Float[Array, "B H W C"],
        values: Float[Array, "B N c"] | None = None,
        given: Int[Array, ""] | int = 0,
    ) -> Float[Array, "B N c"]:
        """What the bottleneck takes; with values, where the first `given` tokens have those."""
        own = {"params": params["registers"]}
        first = self.registers.apply(own, values, given)
        return self.encoder.apply({"params": params["encoder"]}, x, first)

    def decode(
        self,
        params: dict,
        tokens: Tokens,
        rng: Array | None = None,
        keep: Int[Array, "B"] | None = None,
    ) -> Float[Array, "B H W C"]:
        """Pictures of the first `keep` tokens (None: of all); deterministic, rng is not used.

        Args:
          params: as of `init`.
          tokens: ids [B, M], or values [B, M, c], with M <= N.
          rng: not used.
          keep: int32 [B], 1 .. M. Each picture is drawn at the side of its prefix, then enlarged.
        """
        del rng
        values = tokens.values
        if tokens.ids is not None:
            values = self.bottleneck.ids_to_values(params["quantizer"], tokens.ids)
        batch, given = values.shape[:2]
        values = jnp.pad(values, ((0, 0), (0, self.count - given), (0, 0)))
        if keep is None and given == self.count:
            return self.render(params, values)
        if keep is None:
            keep = jnp.full((batch,), given, jnp.int32)
        one = lambda row: self.prefix(params, row[0][None], row[1])[0]
        return jax.lax.cond(
            (keep == keep[0]).all(),
            lambda: self.prefix(params, values, keep[0]),
            lambda: jax.lax.map(one, (values, keep)),
        )

    def prefix(
        self, params: dict, values: Float[Array, "B N c"], t: Int[Array, ""]
    ) -> Float[Array, "B H W C"]:
        """Pictures of the first t tokens, drawn at their side and enlarged."""

        def at(side):
            enlarge = multiscale.bicubic(self.image_shape[0], side)
            return lambda: multiscale.resample(self.render_at(params, values, t, side), enlarge)

        return self._by_side(t, at)

    def render_at(
        self, params: dict, values: Float[Array, "B N c"], t: Int[Array, ""] | int, side: int
    ) -> Float[Array, "B s s C"]:
        """Pictures of `side` pixels, a multiple of the decoder's patch, of the first t tokens."""
        keep = jnp.full((len(values),), t, jnp.int32)
        grid = (side // self.decoder_sizes.patch[0],) * 2
        return self.decoder.apply({"params": params["decoder"]}, values, keep, grid)

    def _by_side(self, t, at, *operands):
        """at(side)(*operands), of the side of the first t tokens."""
        sides = np.unique(self.sides)
        branch = jnp.asarray(np.searchsorted(sides, self.sides), jnp.int32)
        return jax.lax.switch(branch[t - 1], [at(int(side)) for side in sides], *operands)

    def disturb(
        self, params: dict, z: Float[Array, "B N c"], ids: Int[Array, "B N"], window, key: Array
    ) -> Int[Array, "B N"]:
        """The ids with those of window = (start, end) drawn among the codes near their latents."""
        start, end = window
        part = jax.lax.dynamic_slice_in_dim(z, start, self.group, 1)
        near = self.bottleneck.disturbed(params["quantizer"], part, key, self.neighbours)
        moved = jax.lax.dynamic_update_slice_in_dim(ids, near, start, 1)
        at = jnp.arange(self.count)[None]
        return jnp.where((at >= start) & (at < end), moved, ids)

    def corrected(
        self, params: dict, x: Float[Array, "B H W C"], key: Array
    ) -> tuple[Int[Array, "B N"], Int[Array, "B N"]]:
        """What teaches a generator to repair its own errors.

        No generator is trained on it yet: `generator.loss` takes one sequence as input and label.

        Returns:
          Input ids: a window is disturbed, the tokens after it repair that. Label ids: the same
          with the clean codes in the window. One window for all x.

        Raises:
          ConfigError: self-correction is not trained.
        """
        check(self.correct, f"{self.where}.correct", self.correct, "True, to correct tokens")
        z = self.latents(params, x)
        clean = self.bottleneck.quantize(params["quantizer"], z, None, False)
        window = detail.sample_window(stream(key, "window"), self.count, self.group, self.count)
        noisy = self.disturb(params, z, clean.ids, window, stream(key, "near"))
        values = self.bottleneck.ids_to_values(params["quantizer"], noisy)
        again = self.bottleneck.quantize(
            params["quantizer"], self.latents(params, x, values, window[1]), None, False
        )
        before = jnp.arange(self.count)[None] < window[1]
        return jnp.where(before, noisy, again.ids), jnp.where(before, clean.ids, again.ids)

    def loss(self, params: dict, batch: dict, rng: Array) -> tuple[Float[Array, "B"], dict]:
        """The training loss of every network, per example.

        Args:
          params: as of `init`, and frozen "perceptual" or "features" where they are read.
          batch: "image" float [B, H, W, C] and, with an adversarial loss, "step" int32 [].
          rng: key of the lengths, windows and disturbed codes.

        Returns:
          The objective's, the mean of clean and corrected tokens, plus the bottleneck's and the
          alignment's; metrics, with "length", the tokens drawn, and "moves" (see train.Task).
        """
        x = batch["image"]
        t = detail.sample_length(rng, self.count, self.group, self.degrade)
        z = self.latents(params, x)
        key = stream(rng, "posterior")
        clean = self.bottleneck.quantize(params["quantizer"], z, key)
        values, shares, codes = clean.values, jnp.ones(1), clean.loss
        if self.correct:
            values, shares, codes = self._corrected(params, x, z, clean, t, rng)
        judged, metrics = self._judged(
            params, x, values, t, batch.get("step"), stream(rng, "judge")
        )
        judged = (shares[:, None] * judged.reshape(len(shares), -1)).sum(0)
        metrics |= clean.metrics | {"length": t.astype(jnp.float32)}
        total = judged + codes
        if self.align_weight:
            align = self._alignment(params, x, clean.values[:, :1])
            metrics["align"] = align.mean()
            total = total + self.align_weight * align
        if clean.moves:
            moves = {"quantizer": jax.lax.stop_gradient(clean.moves)}
            metrics["moves"] = metrics.get("moves", {}) | moves
        return total, metrics

    def _corrected(self, params, x, z, clean, t, rng):
        """Values [2B, N, c] of clean and corrected tokens, the pictures' shares of either, and the
        bottleneck's loss, weighted by the tokens that either encodes."""
        window = detail.sample_window(stream(rng, "window"), self.count, self.group, t)
        end, at = window[1], jnp.arange(self.count)[None]
        noisy = self.disturb(params, z, clean.ids, window, stream(rng, "near"))
        known = self.bottleneck.ids_to_values(params["quantizer"], noisy)
        known = jax.lax.stop_gradient(known)
        weight = jnp.broadcast_to((at >= end).astype(jnp.float32), noisy.shape)
        again = self.bottleneck.quantize(
            params["quantizer"], self.latents(params, x, known, end), stream(rng, "again"),
            weight=weight,
        )  # fmt: skip
        values = jnp.where((at < end)[..., None], known, again.values)
        first, second = detail.shares(self.count, end)
        half = jnp.where(end == self.count, 0.0, 0.5)
        both = jnp.concatenate([clean.values, values])
        return both, jnp.stack([1 - half, half]), first * clean.loss + second * again.loss

    def _judged(self, params, x, values, t, step, rng):
        """The objective [rows of values] of the first t tokens at their side, and its metrics."""
        last, times = self.decoder_sizes.last, len(values) // len(x)
        kernel = functools.reduce(lambda tree, name: tree[name], last, params["decoder"])

        def at(side):
            lengths, full = np.flatnonzero(self.sides == side), self.image_shape[0]
            tables = [detail.degraded(full, int(self.pixels[n]), side) for n in lengths]
            row = np.searchsorted(lengths, np.arange(self.count)).clip(0, len(lengths) - 1)

            def run(values):
                matrix = jnp.asarray(np.stack(tables))[jnp.asarray(row, jnp.int32)[t - 1]]
                target = jnp.tile(multiscale.resample(x, matrix), (times, 1, 1, 1))

                def draw(kernel):
                    decoder = autoencoder.replaced(params["decoder"], last, kernel)
                    return self.render_at({"decoder": decoder}, values, t, side), None

                return self.losses(params, target, draw, kernel, step, rng)[2:]

            # else every branch would keep what its own gradient needs; the full side is the usual
            return run if side == self.sides[-1] else jax.checkpoint(run)

        return self._by_side(t, at, values)

    def _alignment(self, params, x, first):
        """1 - cosine between the first token's projection and the provider's mean feature."""
        target = jax.lax.stop_gradient(self.features.apply(params["features"], x))
        guess = self.projector.apply({"params": params["projector"]}, first)[:, 0]
        return 1.0 - (unit(guess) * unit(target.mean((1, 2)))).sum(-1)


def make(section, image_shape, dtype="float32", latent=None, features=None) -> DetailFlow:
    """DetailFlow from `config.tokenizer`: {encoder, decoder, bottleneck, losses}, see
    autoencoder.py, and its own keys, see DetailFlow.

    Raises:
      ConfigError: unknown or missing key, wrong type, parts that do not fit each other, or a latent
        provider, which it does not take.
    """
    here = "tokenizer"
    check(latent is None, "latent.name", "", f"'' under {here}.name = 'detailflow'")
    check_keys(section, (*autoencoder.PARTS, *OPTIONS, "name"), here)
    parts = ConfigDict(
        {name: section[name] for name in autoencoder.PARTS} | {"name": "autoencoder"}
    )
    made = autoencoder.make(parts, image_shape, dtype, where=here)
    given = {f.name: getattr(made, f.name) for f in dataclasses.fields(made)}
    given |= {"features": features, "dtype": dtype}
    del given["where"]
    own = ConfigDict({name: section[name] for name in OPTIONS} | {"name": section.name})
    return build(DetailFlow, own, here, named=True, **given)
