"""Codebooks at several resolutions, coarse to fine: VQ-VAE-2 (Razavi et al., "Generating Diverse
High-Fidelity Images with VQ-VAE-2", 2019) and, causal in time, HiTVideo (Zhou et al., "HiTVideo:
Hierarchical Tokenizers for Enhancing Text-to-Video Generation with Autoregressive Large Language
Models", 2025).

Level K - 1 has the encoder's latents h, level 0 is the coarsest. A network per level after the
first, any convolutional pair of nn/networks/, joins it to the level before: down_k makes the
features h_{k-1} of h_k, and up_k enlarges what the coarser levels say, each on its own. The code of
a level is that of its features, given the coarser codes q_j:

    concat      q_k = VQ_k(W_k [up(q_0), .., up(q_{k-1}), h_k])     VQ-VAE-2
    residual    q_k = VQ_k(W_k (h_k - sum_j up(V_j q_j)))           HiTVideo

where up reaches from level j to k by way of those between. A decoder takes all of them at level
K - 1, side by side or summed. Every level has its own codebook; all have as many codes, so that ids
of all levels share one vocabulary: a token's place says its level. Ids are ordered coarse to fine,
row-major inside a level. float32 throughout.

Both papers' code is not public: VQ-VAE-2's figures and sizes leave open how coarse codes are
enlarged (here by one network for the finer level and the decoder), and HiTVideo's residual form is
a reconstruction.
"""

import dataclasses
import itertools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int
from ml_collections import ConfigDict

from nexttok import bottlenecks
from nexttok.bottlenecks.contract import Coded, Codes
from nexttok.config import ConfigError, build, check, check_keys, part
from nexttok.nn import networks as pairs
from nexttok.nn.linear import Linear
from nexttok.rng import stream
from nexttok.tokens import Tokens, TokenSpec

COMBINE, NETWORKS = ("concat", "residual"), ("strided", "video", "magvit2")


@dataclasses.dataclass(frozen=True)
class Hierarchy:
    """K levels of codes; parameters {level0, .., level<K - 1>}.

    Of a level: {to_latents (W), codes}; of levels with a coarser one {encoder (down), decoder (up)}
    and under `dropout` {mask_token}; under combine = 'residual' {from_latents (V)}.

    Attributes:
      inputs: channels of the encoder's latents and of every level's features.
      combine: concat | residual.
      dropout: share of training examples whose decoder sees the first 1 .. K - 1 levels only, a
        learned vector in place of the codes of the others.
      networks: sizes of the pairs of levels 1 .. K - 1.
      codes: the bottleneck of every level, with parameters of its own; one id per position.
    """

    inputs: int
    combine: str
    dropout: float
    networks: tuple[Any, ...]
    codes: Codes
    where: str

    def __post_init__(self):
        check(self.inputs >= 1, f"{self.where}.inputs", self.inputs, "at least 1")
        check(self.combine in COMBINE, f"{self.where}.combine", self.combine, " | ".join(COMBINE))
        check(0 <= self.dropout <= 1, f"{self.where}.dropout", self.dropout, "0 .. 1")

    @property
    def levels(self) -> int:
        """Number of levels K."""
        return 1 + len(self.networks)

    @property
    def width(self) -> int:
        """Channels of what a level says."""
        return self.codes.channels if self.combine == "concat" else self.inputs

    @property
    def channels(self) -> int:
        """Of what the decoder takes."""
        return self.width * (self.levels if self.combine == "concat" else 1)

    def grids(self, grid: tuple[int, ...]) -> tuple[tuple[int, ...], ...]:
        """Latents per axis of every level, of which the finest has `grid`."""
        found = [grid]
        for k in reversed(range(1, self.levels)):
            network = self.networks[k - 1]
            try:
                found.insert(0, network.grid((*found[0], self.inputs)))
            except ConfigError:
                named = f"{self.where}.networks.level{k}"
                check(False, named, f"of stride {network.stride}", f"one for latents {found[0]}")
        return tuple(found)

    def spec(self, grid: tuple[int, ...]) -> TokenSpec:
        """All levels in one row; a prefix decodes as far as its last whole level."""
        counts = tuple(math.prod(g) for g in self.grids(grid))
        codes = self.codes
        return TokenSpec((sum(counts),), codes.vocab, codes.channels, True, levels=counts)

    def _modules(self, k):
        """name -> (a network of level k, shape of an example of its input)."""
        own = self.inputs + k * self.width if self.combine == "concat" else self.inputs
        found = {"to_latents": (Linear(self.codes.inputs), (own,))}
        if self.combine == "residual":
            found["from_latents"] = (Linear(self.width), (self.codes.channels,))
        if k:
            network = self.networks[k - 1]
            stride, single = network.stride, (1,) * len(network.stride)
            found["encoder"] = (
                network.encoder((*stride, self.inputs), self.inputs), (*stride, self.inputs)
            )  # fmt: skip
            found["decoder"] = (network.decoder((*stride, self.width)), (*single, self.width))
        return found

    def _apply(self, params, k, name, x):
        return self._modules(k)[name][0].apply({"params": params[f"level{k}"][name]}, x)

    def init(self, key: Array) -> dict:
        """Parameters; see the class."""
        params = {}
        for k in range(self.levels):
            here = stream(key, "level", k)
            level = {}
            for name, (module, shape) in self._modules(k).items():
                example = jnp.zeros((1, *shape))
                # Linear's own field hides Module.init
                _, made = module.init_with_output(stream(here, name), example)
                level[name] = made["params"]
            codes = self.codes.init(stream(here, "codes"))
            level |= {"codes": codes} if codes else {}
            if k and self.dropout:
                row = jax.random.normal(stream(here, "mask"), (1, self.codes.channels))
                level["mask_token"] = 0.02 * row
            params[f"level{k}"] = level
        return params

    def _features(self, params, z):
        """h of every level."""
        found = [z]
        for k in reversed(range(1, self.levels)):
            found.insert(0, self._apply(params, k, "encoder", found[0]))
        return found

    def _raised(self, params, k, parts):
        """What the levels before k say, at level k."""
        return [self._apply(params, k, "decoder", x) for x in parts]

    def _said(self, params, k, code):
        """What a code says at its own level."""
        return self._apply(params, k, "from_latents", code) if self.combine == "residual" else code

    def _joined(self, parts):
        return jnp.concatenate(parts, -1) if self.combine == "concat" else sum(parts)

    def _asked(self, params, k, h, parts):
        """The latents that level k quantizes, given its features and what coarser levels say."""
        if self.combine == "concat":
            h = jnp.concatenate([*parts, h], -1)
        elif parts:
            h = h - sum(parts)
        return self._apply(params, k, "to_latents", h)

    def contributions(self, params: dict, codes: list[Array]) -> list[Array]:
        """What the codes [B, *grid, c] of each level say at the finest level, [B, *g, w].

        None depends on another level's codes. Under combine = 'residual' their sum is what the
        decoder takes, else they lie side by side.
        """
        parts = []
        for k, code in enumerate(codes):
            parts = [*self._raised(params, k, parts), self._said(params, k, code)]
        return parts

    def quantize(self, params: dict, z: Array, rng: Array | None, train: bool = True) -> Coded:
        """See the module. Training draws from rng under `dropout`, and as `codes` does."""
        parts, found = [], []
        for k, h in enumerate(self._features(params, z.astype(jnp.float32))):
            parts = self._raised(params, k, parts)
            asked, key = self._asked(params, k, h, parts), rng
            if rng is not None:
                key = stream(rng, "level", k)
            coded = self.codes.quantize(params[f"level{k}"].get("codes", {}), asked, key, train)
            parts.append(self._said(params, k, coded.values))
            found.append(coded)
        if train and self.dropout:
            kept = self._drawn(stream(rng, "dropout"), len(z))
            codes = [self._kept(params, k, c.values, kept > k) for k, c in enumerate(found)]
            parts = self.contributions(params, codes)
        ids = jnp.concatenate([c.ids.reshape(len(z), -1) for c in found], 1)
        moves = {f"level{k}": {"codes": c.moves} for k, c in enumerate(found) if c.moves}
        loss = sum(c.loss for c in found)
        return Coded(self._joined(parts), ids, loss, self._metrics(found), moves)

    def _metrics(self, found):
        """Sums over levels; perplexities are means, and there is one per level as well."""
        metrics = {name: sum(c.metrics[name] for c in found) for name in found[0].metrics}
        if "perplexity" in metrics:
            metrics["perplexity"] /= self.levels
            metrics |= {f"perplexity{k}": c.metrics["perplexity"] for k, c in enumerate(found)}
        return metrics

    def _drawn(self, key, batch):
        """Levels that the decoder of each example sees."""
        some = jax.random.bernoulli(jax.random.fold_in(key, 0), self.dropout, (batch,))
        fewer = jax.random.randint(jax.random.fold_in(key, 1), (batch,), 1, self.levels)
        return jnp.where(some, fewer, self.levels)

    def _kept(self, params, k, code, seen):
        """The codes where `seen` [B], else the level's mask vector, zero without one."""
        mask = params[f"level{k}"].get("mask_token", jnp.zeros((1, self.codes.channels)))
        axes = (1,) * (code.ndim - 1)
        return jnp.where(seen.reshape(-1, *axes), code, mask.reshape(*axes, -1))

    def encode(self, params: dict, z: Array, rng: Array | None = None) -> Tokens:
        """Ids [B, N], coarse to fine and row-major inside a level, and their codes [B, N, c];
        deterministic, rng is not used."""
        del rng
        ids = self.quantize(params, z, None, False).ids
        parts = split(ids, self.spec(z.shape[1:-1]).levels)
        return Tokens(ids=ids, values=jnp.concatenate(self._codes(params, parts), 1))

    def _codes(self, params, ids):
        """The codes of every level's ids."""
        tables = [params[f"level{k}"].get("codes", {}) for k in range(self.levels)]
        return [self.codes.ids_to_values(t, part) for t, part in zip(tables, ids, strict=True)]

    def decode(
        self,
        params: dict,
        tokens: Tokens,
        grid: tuple[int, ...],
        keep: Int[Array, "B"] | None = None,
    ) -> Float[Array, "B *g c"]:
        """Of ids [B, M <= N] where there are any, else of codes [B, M, c].

        Levels that are not complete count as dropped, and so do those beyond the first `keep`
        tokens: mask vectors stand for their codes, zeros where training never dropped them.
        """
        given = tokens.values if tokens.ids is None else tokens.ids
        counts, grids, (batch, length) = self.spec(grid).levels, self.grids(grid), given.shape[:2]
        keep = jnp.full(batch, length) if keep is None else jnp.minimum(keep, length)
        rest = ((0, 0), (0, sum(counts) - length), *[(0, 0)] * (given.ndim - 2))
        parts = split(jnp.pad(given, rest), counts)
        codes = parts if tokens.ids is None else self._codes(params, parts)
        ends = itertools.accumulate(counts)
        codes = [
            self._kept(params, k, code.reshape(batch, *own, -1), keep >= end)
            for k, (code, own, end) in enumerate(zip(codes, grids, ends, strict=True))
        ]
        return self._joined(self.contributions(params, codes))


def split(tokens: Array, counts: tuple[int, ...]) -> list[Array]:
    """Tokens [B, N, ...] of each level."""
    ends = tuple(itertools.accumulate(counts))
    return [tokens[:, a:b] for a, b in itertools.pairwise((0, *ends))]


def make(section, where: str) -> Hierarchy:
    """From a config section {inputs, combine, dropout, networks, codes}: networks hold a pair's
    section for each of level1 .. level<K - 1>, codes a bottleneck's.

    Raises:
      ConfigError: unknown or missing key, wrong type, or a part that a level cannot be made of.
    """
    check_keys(section, ("name", "inputs", "combine", "dropout", "networks", "codes"), where)
    here = f"{where}.networks"
    count = len(section.networks) if isinstance(section.networks, ConfigDict) else 1
    check_keys(section.networks, [f"level{k + 1}" for k in range(max(count, 1))], here)
    found = []
    for k in range(count):
        at, own = f"{here}.level{k + 1}", section.networks[f"level{k + 1}"]
        module = part(pairs, own, at)
        check(own.name in NETWORKS, f"{at}.name", own.name, " | ".join(NETWORKS))
        found.append(module.make(own, "float32", at))
    at = f"{where}.codes"
    codes = part(bottlenecks, section.codes, at).make(section.codes, at)
    single = isinstance(codes, Codes) and codes.spec((1,)).codes == 1
    check(single, f"{at}.name", section.codes.name, "one id per position, of no pyramid")
    rest = ConfigDict({key: section[key] for key in ("name", "inputs", "combine", "dropout")})
    return build(Hierarchy, rest, where, named=True, networks=tuple(found), codes=codes)
