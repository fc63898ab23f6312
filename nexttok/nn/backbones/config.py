"""What every backbone is told: a section of a config, and the slots it will be given."""

import dataclasses

import numpy as np
from jaxtyping import Float

from nexttok.config import check
from nexttok.nn.positions import grid_positions, pyramid_positions, rope_table
from nexttok.nn.stack import ZERO
from nexttok.nn.transformer import ACTIVATIONS, TransformerConfig

POSITIONS = ("learned", "rope")
CONDITIONS = ("start", "prefix", "adaln")
PLACES = ("embedding", "weights", "attention", "hidden", "mlp")
NORMS = ("none", "layer", "rms")


@dataclasses.dataclass(frozen=True)
class Inputs:
    """The slots a backbone will be given.

    Attributes:
      vocab: ids that can be embedded; channels: of values.
      grid: token grid, for rotary positions; scales: sides of a pyramid of maps, () for none.
      slots: longest sequence, prefix included.
      levels: number of scales with an embedding of their own; 0 for none.
      classes: number of classes; 0 for none.
      query: QUERY slots occur; fillers: how many FILL vectors occur; start: START slots occur.
      noised: slots carry noise levels.
    """

    vocab: int
    channels: int
    grid: tuple[int, ...]
    scales: tuple[int, ...]
    slots: int
    levels: int
    classes: int
    query: bool
    fillers: int
    start: bool
    noised: bool


@dataclasses.dataclass(frozen=True)
class BackboneConfig:
    """`config.generator.backbone`.

    Attributes:
      width, depth, head_dim, mlp_hidden: sizes of the (first) stack.
      decoder_depth: layers of the second stack, where the backbone has one.
      activation: gelu | gelu_tanh | silu; gated: SwiGLU and its kin.
      norm, norm_eps, norm_affine, norm_bias, post_norm, qk_norm: see nn/transformer.py.
      bias, key_bias, mlp_bias, init, depth_scaled, adaln_gain, adaln_shared: likewise.
      positions: how slots know their place: learned (by slot) and/or rope (by grid place).
      condition: how the class enters: added to the start vector, as prefix slots, through adaLN.
      prefix: number of class slots in front; prefix_words: a class has a vector for each of them,
        as the words of its name would (else one vector fills them all).
      start_vector: the START slot has a vector of its own (else it is the class alone).
      null_class: an extra class row stands for no class (else no class adds nothing).
      rotate_query: QUERY slots are one vector rotated to their place (RandAR).
      concat_mask: QUERY slots interleave a mask flag with content, half the channels each (GIVT).
      embed_norm: none | layer | rms, after the embeddings are summed.
      final_norm: none | layer | rms, or adaln (conditioned, without affine parameters).
      output_positions: learned positions are added to the hidden states as well (MAR).
      embed_init: normal02 | normal1 | third | uniform01, of tables and special vectors.
      dropout, dropout_on: rate, and where: some of embedding, weights, attention, hidden, mlp (see
        nn/transformer.py).
      drop_path: see nn/transformer.py; remat, unroll, zero: see nn/stack.py.
    """

    width: int
    depth: int
    decoder_depth: int
    head_dim: int
    mlp_hidden: int
    activation: str
    gated: bool
    norm: str
    norm_eps: float
    norm_affine: bool
    norm_bias: bool
    post_norm: bool
    qk_norm: str
    bias: bool
    key_bias: bool
    mlp_bias: bool
    init: str
    depth_scaled: bool
    adaln_gain: tuple[float, ...]
    adaln_shared: bool
    positions: tuple[str, ...]
    condition: tuple[str, ...]
    prefix: int
    prefix_words: bool
    start_vector: bool
    null_class: bool
    rotate_query: bool
    concat_mask: bool
    embed_norm: str
    final_norm: str
    output_positions: bool
    embed_init: str
    dropout: float
    dropout_on: tuple[str, ...]
    drop_path: float
    remat: bool
    unroll: int
    zero: int

    def __post_init__(self):
        def one_of(name, allowed):
            value = getattr(self, name)
            fits = " | ".join(map(str, allowed))
            check(value in allowed, f"generator.backbone.{name}", value, fits)

        def each_of(name, allowed):
            value = getattr(self, name)
            fits = all(v in allowed for v in value)
            check(fits, f"generator.backbone.{name}", value, f"some of {', '.join(allowed)}")

        here = "generator.backbone"
        fits = self.head_dim > 0 and self.width > 0 and self.width % self.head_dim == 0
        allowed = f"a positive multiple of {here}.head_dim = {self.head_dim}"
        check(fits, f"{here}.width", self.width, allowed)
        for name in ("depth", "mlp_hidden", "unroll"):
            check(getattr(self, name) >= 1, f"{here}.{name}", getattr(self, name), "at least 1")
        for name in ("decoder_depth", "prefix"):
            check(getattr(self, name) >= 0, f"{here}.{name}", getattr(self, name), "at least 0")
        one_of("norm", NORMS[1:])
        one_of("qk_norm", (*NORMS, "l2"))
        one_of("embed_norm", NORMS)
        one_of("final_norm", (*NORMS, "adaln"))
        one_of("activation", tuple(ACTIVATIONS))
        one_of("init", ("xavier", "normal02", "third"))
        one_of("embed_init", ("normal02", "normal1", "third", "uniform01"))
        one_of("zero", ZERO)
        each_of("positions", POSITIONS)
        each_of("condition", CONDITIONS)
        each_of("dropout_on", PLACES)
        check(("prefix" in self.condition) == (self.prefix > 0), f"{here}.prefix", self.prefix,
              "at least 1 exactly when condition has 'prefix'")  # fmt: skip
        alone = not self.prefix_words or tuple(self.condition) == ("prefix",)
        check(alone, f"{here}.prefix_words", self.prefix_words, "False unless condition is prefix")
        check(len(self.adaln_gain) == 2, f"{here}.adaln_gain", self.adaln_gain, "two numbers")
        for name in ("dropout", "drop_path"):
            rate = getattr(self, name)
            check(0 <= rate < 1, f"{here}.{name}", rate, "at least 0 and below 1")

    def transformer(self, dtype: str, depth: int) -> TransformerConfig:
        """A stack of `depth` layers."""
        same = [f.name for f in dataclasses.fields(TransformerConfig) if f.name not in OWN]
        return TransformerConfig(
            **{name: getattr(self, name) for name in same},
            depth=depth,
            adaln=int("adaln" in self.condition),
            dtype=dtype,
        )

    def rotary(self, inputs: Inputs) -> Float[np.ndarray, "M half 2"]:
        """(cos, sin) of every grid place; the last row, zeros, serves slots without a place."""
        scales, grid = inputs.scales, inputs.grid
        places = pyramid_positions(scales) if scales else grid_positions(grid)
        table = rope_table(places, self.head_dim)
        return np.concatenate([table, np.zeros_like(table[:1])])


OWN = (
    "depth", "adaln", "dtype", "cross", "score_scale", "qk_affine", "qk_eps", "residual_gates",
    "qkv_bias", "norm_input",
)  # fmt: skip
