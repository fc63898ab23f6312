"""Slots -> vectors: the input layer that all backbones share."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from nexttok.nn.backbones.config import BackboneConfig, Inputs
from nexttok.nn.linear import INITS, Linear
from nexttok.nn.norms import Norm
from nexttok.nn.positions import rotate, time_features
from nexttok.nn.slots import CLASS, FILL, QUERY, START, TOKEN, Slots
from nexttok.nn.transformer import initializer


def _uniform(key, shape, dtype=jnp.float32):
    return jax.random.uniform(key, shape, dtype, -0.1, 0.1)


TABLES = {
    "normal02": INITS["normal02"],
    "normal1": nn.initializers.normal(1.0),
    "uniform01": _uniform,
}


class Embed(nn.Module):
    """Token, special, class, level and position embeddings, summed, normalized, dropped out.

    Attributes:
      config, inputs: see config.py.
      hidden_queries: QUERY slots are not embedded, as the stack above does not read them.
      spared: kinds of slots that dropout leaves alone.
    """

    config: BackboneConfig
    inputs: Inputs
    dtype: str
    hidden_queries: bool = False
    spared: tuple[int, ...] = ()

    @nn.compact
    def __call__(
        self, slots: Slots, label: Int[Array, "B"], train: bool
    ) -> tuple[Float[Array, "B S D"], Float[Array, "B D"], Array | None, Array | None]:
        """Vectors of the slots; class vectors; condition [B, D] or [B, G, E] of adaLN; rotary."""
        c, batch = self.config, slots.content.shape[0]
        words = self._classes(label)
        classes = words[:, 0]
        x = self._tokens(slots)
        if not c.concat_mask and self.inputs.query and not self.hidden_queries:
            x = self._place(x, slots, QUERY, self._queries(slots))
        if self.inputs.start:
            start = jnp.zeros((1, c.width), self.dtype)
            if c.start_vector:
                start = start + self._vector("sos")[None]
            if "start" in c.condition:
                start = start + classes
            start = jnp.broadcast_to(start, (batch, c.width))
            x = self._place(x, slots, START, start[:, None])
        if c.prefix:
            last = words.shape[1] - 1
            at = jnp.minimum(slots.index, last)
            word = words[:, at] if at.ndim == 1 else jnp.take_along_axis(words, at[..., None], 1)
            x = self._place(x, slots, CLASS, word)
        if self.inputs.fillers:
            table = self._table("fillers", self.inputs.fillers)
            at = jnp.maximum(slots.kind - FILL, 0)
            filler = jnp.take(table, at, axis=0)
            filler = filler[None] if filler.ndim == 2 else filler
            x = jnp.where(self._where(slots, slots.kind >= FILL), filler, x)
        if self.inputs.levels:
            x = x + jnp.take(self._table("levels", self.inputs.levels), slots.steps, axis=0)[None]
        if "learned" in c.positions:
            where = jnp.take(self._table("positions", self.inputs.slots), slots.index, axis=0)
            x = x + (where[None] if where.ndim == 2 else where)
        x = Norm(c.embed_norm, True, c.norm_eps, c.norm_bias, name="embed_norm")(x)
        rate = c.dropout if "embedding" in c.dropout_on else 0.0
        whole, x = x, nn.Dropout(rate, deterministic=not train)(x)
        for kind in self.spared:
            x = self._place(x, slots, kind, whole)
        rotary = self._rotary(slots) if "rope" in c.positions else None
        return x, classes, self._condition(slots, classes), rotary

    def _init(self):
        name = self.config.embed_init
        return TABLES[name] if name in TABLES else initializer(name, self.config.width)

    def _table(self, name, rows):
        return self.param(name, self._init(), (rows, self.config.width)).astype(self.dtype)

    def _vector(self, name):
        return self._table(name, 1)[0]

    @staticmethod
    def _where(slots, mask):
        mask = mask[None] if mask.ndim == 1 else mask
        return jnp.broadcast_to(mask, slots.content.shape[:2])[..., None]

    def _place(self, x, slots, kind, vectors):
        return jnp.where(self._where(slots, slots.kind == kind), vectors, x)

    def _classes(self, label):
        """Vectors of the class [B, P, D]: one, or one for every prefix slot."""
        c, count = self.config, self.inputs.classes
        words = c.prefix if c.prefix_words else 1
        if not count or not c.condition:
            return jnp.zeros((label.shape[0], 1, c.width), self.dtype)
        table = self._table("class_embedding", (count + c.null_class) * words)
        table = table.reshape(-1, words, c.width)
        if c.null_class:
            return jnp.take(table, jnp.where(label < 0, count, label), axis=0)
        known = jnp.take(table, jnp.maximum(label, 0), axis=0)
        return jnp.where(label[:, None, None] >= 0, known, jnp.zeros_like(known))

    def _tokens(self, slots):
        c = self.config
        if jnp.issubdtype(slots.content.dtype, jnp.integer):
            table = self._table("embedding", self.inputs.vocab)
            x = jnp.take(table, jnp.maximum(slots.content, 0), axis=0)
        else:
            x = Linear(c.width, init=c.init if c.init == "xavier" else self._init(),
                       dtype=self.dtype, name="project")(slots.content)  # fmt: skip
        if not c.concat_mask:
            return x
        flags, replaced = self._table("mask_flags", 2), self._vector("mask_token")
        hidden = self._where(slots, slots.kind == QUERY)
        content = jnp.where(hidden, replaced[None, None], x)
        flag = jnp.where(hidden, flags[:1, None], flags[1:, None])
        shown = jnp.concatenate([flag[..., ::2], content[..., ::2]], axis=-1)
        return jnp.where(self._where(slots, slots.kind == TOKEN) | hidden, shown, x)

    def _queries(self, slots):
        query = self._vector("mask_token")
        if not self.config.rotate_query:
            return query[None, None]
        heads = query.reshape(1, 1, -1, self.config.head_dim)
        places = slots.place.shape
        rows = (1, *places) if len(places) == 1 else places
        heads = jnp.broadcast_to(heads, (*rows, *heads.shape[2:]))
        turned = rotate(heads, self._rotary(slots))
        return turned.reshape(*turned.shape[:2], -1)

    def _rotary(self, slots):
        table = jnp.asarray(self.config.rotary(self.inputs), jnp.float32)
        return jnp.take(table, slots.place, axis=0)

    def _condition(self, slots, classes):
        c = self.config
        if "adaln" not in c.condition:
            return None
        cond = classes
        if self.inputs.noised:
            batch, count = slots.times.shape
            times = time_features(jnp.floor(1000.0 * slots.times.reshape(-1)), 256, 1e4)
            h = jax.nn.silu(Linear(c.width, init=c.init, dtype=self.dtype, name="time1")(times))
            h = Linear(c.width, init=c.init, dtype=self.dtype, name="time2")(h)
            cond = classes[:, None] + h.reshape(batch, count, c.width)
        if c.adaln_shared:
            shared = Linear(6 * c.width, init=initializer(c.init, c.width), dtype=self.dtype,
                            name="adaln")(jax.nn.silu(cond))  # fmt: skip
            return shared.reshape(shared.shape[0], -1, 6 * c.width)
        return cond
