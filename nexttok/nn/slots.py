"""Slots: what a backbone reads, one vector per slot.

A context lays the slots out; a backbone embeds and transforms them. Neither knows the other.
"""

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

# Kinds of slots. FILL + j is the j-th filler vector.
TOKEN, START, QUERY, CLASS, FILL = 0, 1, 2, 3, 4


@flax.struct.dataclass
class Slots:
    """A batch of slots.

    Attributes:
      content: the token a slot holds: ids [B, S] or values [B, S, C]; ignored where kind is not
        TOKEN.
      kind: TOKEN, START, QUERY (a learned vector: a mask or a question for a position), CLASS, or
        FILL + j; [S] or [B, S].
      index: place in the sequence, for learned positions; int32 [S] or [B, S].
      place: index in the token grid, for rotary positions, -1 for none; int32 [S] or [B, S].
      steps: step ids; slot k is visible to slot q when steps[k] <= steps[q]; int32 [S] or [B, S].
      written: where these slots stand in a cache, int32 [B, S]; None for one behind the other.
      among: which of these slots each of them sees, [B, S, S], where steps do not tell (a tree of
        drafts) and `written` does; None elsewhere.
      times: noise level of every segment, [B, G], where tokens are noised.
      segments: static lengths of the parts that share a noise level, or of content and queries
        where they are separate.
      visible: at most so many slots are not QUERY (static; 0 for no promise), so that an encoder
        of the visible ones may be that short.
      runs: static promise that steps never fall, and lengths of the runs of slots that share one,
        so that attention may leave out what nobody sees; () for no promise.
      wanted: slots whose hidden states are wanted, int32 [B, n], where a last layer may be spared
        the others; None for all.
      filled: static promise that a cache holds at most so many slots once these are written; 0 for
        no promise.
    """

    content: Int[Array, "B S"] | Float[Array, "B S C"]
    kind: Int[Array, "S"] | Int[Array, "B S"]
    index: Int[Array, "S"] | Int[Array, "B S"]
    place: Int[Array, "S"] | Int[Array, "B S"]
    steps: Int[Array, "S"] | Int[Array, "B S"]
    written: Int[Array, "B S"] | None = None
    among: Bool[Array, "B S S"] | None = None
    times: Float[Array, "B G"] | None = None
    wanted: Int[Array, "B n"] | None = None
    segments: tuple[int, ...] = flax.struct.field(pytree_node=False, default=())
    visible: int = flax.struct.field(pytree_node=False, default=0)
    runs: tuple[int, ...] = flax.struct.field(pytree_node=False, default=())
    filled: int = flax.struct.field(pytree_node=False, default=0)

    def twice(self) -> "Slots":
        """The same slots for a batch of 2B: a conditional and an unconditional half."""

        def double(x, batched):
            return jnp.concatenate([x, x]) if batched else x

        return self.replace(
            content=double(self.content, True),
            kind=double(self.kind, self.kind.ndim == 2),
            index=double(self.index, self.index.ndim == 2),
            place=double(self.place, self.place.ndim == 2),
            steps=double(self.steps, self.steps.ndim == 2),
            **{
                name: None if value is None else double(value, True)
                for name, value in vars(self).items()
                if name in ("written", "among", "times", "wanted")
            },
        )


def visible(
    query_steps: Int[Array, "*b Q"],
    key_steps: Int[Array, "*b K"] | Int[Array, "K"],
    strict: bool = False,
) -> Bool[Array, "*b Q K"]:
    """True where a query may read a key: step[key] <= step[query], or < when `strict`."""
    key_steps = key_steps.reshape((1,) * (query_steps.ndim - key_steps.ndim) + key_steps.shape)
    q, k = query_steps[..., :, None], key_steps[..., None, :]
    return k < q if strict else k <= q


def join(first: Slots, second: Slots) -> Slots:
    """The slots of both, one after the other."""

    def cat(a, b):
        batch = max((x.shape[0] for x in (a, b) if x.ndim == 2), default=0)
        if batch:
            a, b = (jnp.broadcast_to(x, (batch, x.shape[-1])) for x in (a, b))
        return jnp.concatenate([a, b], axis=-1)

    return second.replace(
        content=jnp.concatenate([first.content, second.content], axis=1),
        kind=cat(first.kind, second.kind),
        index=cat(first.index, second.index),
        place=cat(first.place, second.place),
        steps=cat(first.steps, second.steps),
        runs=first.runs + second.runs if first.runs and second.runs else (),
    )


def runs(steps: Int[np.ndarray, "S"]) -> tuple[int, ...]:
    """Lengths of the runs of equal steps; () where steps fall."""
    rises = np.diff(steps)
    if (rises < 0).any():
        return ()
    ends = np.flatnonzero(np.append(rises, 1)) + 1
    return tuple(np.diff(ends, prepend=0).tolist())


def class_slots(content: Array, count: int) -> Slots:
    """`count` CLASS slots in front of everything, for tokens that look like `content` [B, ...]."""
    blank = jnp.zeros((content.shape[0], count, *content.shape[2:]), content.dtype)
    return Slots(
        content=blank,
        kind=jnp.full((count,), CLASS, jnp.int32),
        index=jnp.arange(count, dtype=jnp.int32),
        place=jnp.full((count,), -1, jnp.int32),
        steps=jnp.full((count,), -1, jnp.int32),
        runs=(count,),
    )


def pick(x: Array | None, wanted: Int[Array, "B n"] | None, shared: bool = False) -> Array | None:
    """The wanted slots [B, n, ...] of x [B, S, ...], or of [S, ...] that a batch has `shared`.

    Without an x there is none to pick; without `wanted` x stays as it is.
    """
    if x is None or wanted is None:
        return x
    if shared:
        return jnp.take(x, wanted, axis=0)
    return jnp.take_along_axis(x, wanted.reshape(*wanted.shape, *[1] * (x.ndim - 2)), axis=1)


def at(values: Array, first, size: int) -> Array:
    """`size` entries of the last axis from `first` on, which may be traced."""
    return jax.lax.dynamic_slice_in_dim(values, first, size, axis=-1)
