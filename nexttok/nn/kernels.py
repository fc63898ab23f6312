"""softmax(scale q k^T) v, by the kernel that suits the platform.

Self-attention whose steps never fall, and are known when the program is compiled, needs one number
per query: how many keys it sees. On TPUs Splash attention computes its mask from that number and
skips the blocks that nobody sees (Dao et al., 2022; jax.experimental.pallas.ops.tpu); on GPUs cuDNN
takes the mask; elsewhere, and for all other attention, a dense form does.
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash_lib
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, Float, Int

from nexttok.flops import attention_scope
from nexttok.mesh import batch_ways, platform, spec_of

BLOCK = 128  # rows and columns of Splash attention's blocks, the lanes of a TPU
LEAST = 256  # slots from which on kernels are used; like BLOCK not tuned, for want of a TPU
PART = 64  # slots that the dense form treats alike, at least


def attend(
    q: Float[Array, "B Q H d"],
    k: Float[Array, "B K H d"],
    v: Float[Array, "B K H d"],
    mask: Bool[Array, "Q K"] | Bool[Array, "B Q K"] | None,
    scale: float,
    drop: Callable[[Array], Array] | None = None,
    runs: tuple[int, ...] = (),
) -> Float[Array, "B Q H d"]:
    """Attention over visible keys.

    Args:
      q, k, v: per head.
      mask: True where a query sees a key; None for everywhere.
      scale: of the scores.
      drop: applied to the weights [B, H, Q, K] (dropout in training).
      runs: a static promise on slots that attend to each other (K = Q): each sees the slots up to
        the end of its own run, of these lengths; () for no promise. `mask` says the same.

    A kernel is used from LEAST slots on, without dropout, where it takes these shapes on this mesh.
    """
    where = platform()
    if runs and drop is None and q.shape[1] >= LEAST:
        if where == "tpu" and _splash_takes(q):
            return splash(q, k, v, runs, scale)
        if where == "gpu" and _cudnn_takes(q):
            return fused(q, k, v, runs, scale)
    # parts gain nothing on TPUs, whose compiler (libtpu 0.0.42) crashes on rematerialized dropout
    return dense(q, k, v, mask, scale, drop, () if where == "tpu" else cuts(runs))


def cuts(runs: tuple[int, ...]) -> tuple[int, ...]:
    """Ends of runs, PART slots apart or more: the queries before one see no key from it on."""
    found = [0]
    for end in itertools.accumulate(runs[:-1]):
        if end - found[-1] >= PART:
            found.append(end)
    return tuple(found[1:])


def ends(runs: tuple[int, ...]) -> Int[np.ndarray, "S"]:
    """How many slots every slot sees."""
    return np.repeat(np.cumsum(runs), runs).astype(np.int32)


def dense(q, k, v, mask, scale, drop=None, cuts=()) -> Float[Array, "B Q H d"]:
    """Scores and softmax in float32. The queries between two cuts meet only the keys up to the
    second, near half of the products of a causal mask."""
    if cuts:
        parts = []
        for low, high in itertools.pairwise((0, *cuts, q.shape[1])):
            seen = None if mask is None else mask[..., low:high, :high]
            parts.append(dense(q[:, low:high], k[:, :high], v[:, :high], seen, scale, drop))
        return jnp.concatenate(parts, axis=1)
    weights = _weights(q, k, mask, scale).astype(v.dtype)
    weights = weights if drop is None else drop(weights)
    return jnp.einsum("bhqk,bkhd->bqhd", weights, v)


def _weights(q, k, mask, scale):
    """[B, H, Q, K], float32."""
    scores = jnp.einsum("bqhd,bkhd->bhqk", q, k, preferred_element_type=jnp.float32) * scale
    if mask is not None:
        mask = mask[None, None] if mask.ndim == 2 else mask[:, None]
        scores = jnp.where(mask, scores, jnp.finfo(jnp.float32).min)
    return jax.nn.softmax(scores, axis=-1)


def received(
    q: Float[Array, "B Q H d"],
    k: Float[Array, "B K H d"],
    mask: Bool[Array, "Q K"] | Bool[Array, "B Q K"] | None,
    scale: float,
) -> Float[Array, "B K"]:
    """The attention that every key receives, the mean over queries and heads; it sums to one."""
    return _weights(q, k, mask, scale).mean((1, 2))


def _splash_takes(q) -> bool:
    """A kernel is divided by hand: examples and heads must divide over a known mesh."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return jax.device_count() == 1
    return q.shape[0] % batch_ways() == 0 and q.shape[2] % mesh.shape["tensor"] == 0


def _cudnn_takes(q) -> bool:
    half = q.dtype in (jnp.bfloat16, jnp.float16)
    return half and q.shape[3] % 8 == 0 and q.shape[3] <= 128 and q.shape[1] % 8 == 0


def fused(q, k, v, runs, scale, implementation="cudnn") -> Float[Array, "B S H d"]:
    """cuDNN's flash attention, in half precision; heads of at most 128, in eights."""
    causal = set(runs) == {1}
    mask = None
    if len(runs) > 1 and not causal:
        mask = jnp.asarray(ends(runs)[:, None] > np.arange(sum(runs)))[None, None]
    return jax.nn.dot_product_attention(
        q, k, v, mask=mask, scale=scale, is_causal=causal, implementation=implementation
    )


class StepMask(masks.Mask):
    """A query sees the keys from `front` up to its own end; computed, never stored."""

    def __init__(self, layout: "Layout"):
        """`q_sequence` and `mask_function` are what Splash attention computes masks from."""
        self.layout = layout
        self.q_sequence = np.asarray(layout.ends, np.int32)
        self.mask_function = functools.partial(_sees, layout.front)

    @property
    def shape(self) -> tuple[int, int]:
        """Queries, keys."""
        return (len(self.q_sequence),) * 2

    def __getitem__(self, index) -> np.ndarray:
        rows, columns = index
        keys = np.arange(self.shape[1])[columns]
        return self.mask_function(self.q_sequence[rows][:, None], keys[None])

    def __eq__(self, other) -> bool:
        return isinstance(other, StepMask) and self.layout == other.layout

    def __hash__(self) -> int:
        return hash(self.layout)


def _sees(front, end, key):
    return (key < end) & (key >= front)


@dataclasses.dataclass(frozen=True)
class Layout:
    """Slots padded to whole blocks.

    Where runs are long, it matters which blocks their ends fall into: `layout` chooses the padding
    in front that leaves the fewest blocks to visit.

    Attributes:
      front: padding before the first slot.
      ends: the key behind the last that each padded slot sees.
    """

    front: int
    ends: tuple[int, ...]

    @property
    def visited(self) -> int:
        """Blocks of BLOCK x BLOCK in which some query sees some key."""
        first = self.front // BLOCK
        last = np.max(np.reshape(self.ends, (-1, BLOCK)), axis=1)
        return int(np.sum(-(-last // BLOCK) - first))


@functools.lru_cache(maxsize=256)
def layout(runs: tuple[int, ...], ways: int = 1) -> Layout:
    """Slots of these runs padded to blocks, as many as divide `ways` ways."""
    slots, unit = sum(runs), BLOCK * ways
    pad = -slots % unit
    seen = ends(runs)

    def padded(front):
        # padding asks like its neighbour, so that it visits no more
        ends_ = np.pad(seen + front, (front, pad - front), mode="edge")
        return Layout(front, tuple(ends_.tolist()))

    return min((padded(front) for front in range(pad + 1)), key=lambda x: (x.visited, x.front))


SIZES = splash_lib.BlockSizes(
    **{name: BLOCK for name in (
        "block_q", "block_kv", "block_kv_compute", "block_q_dkv", "block_kv_dkv",
        "block_kv_dkv_compute", "block_q_dq", "block_kv_dq")}
)  # fmt: skip


def splash(q, k, v, runs, scale, interpret: bool = False) -> Float[Array, "B S H d"]:
    """Splash attention; queries, examples and heads are divided over the mesh, keys over heads."""
    mesh = jax.sharding.get_abstract_mesh()
    ways = 1 if mesh.empty else mesh.shape["sequence"]
    padded, slots = layout(runs, ways), q.shape[1]
    front, pad = padded.front, len(padded.ends) - slots

    def fit(x):  # [B, H, padded, d]
        return jnp.pad(x, ((0, 0), (front, pad - front), (0, 0), (0, 0))).swapaxes(1, 2)

    def run(kernel, q, k, v):
        return jax.vmap(kernel)(q, k, v)

    tensor = 1 if mesh.empty else mesh.shape["tensor"]
    mask = masks.MultiHeadMask([StepMask(padded)] * (q.shape[2] // tensor))
    kernel = splash_lib.make_splash_mha(
        mask, block_sizes=SIZES, head_shards=1, q_seq_shards=ways, interpret=interpret
    )
    if mesh.size > 1:
        asks, keeps = spec_of(("batch", "heads", "sequence")), spec_of(("batch", "heads"))
        place = NamedSharding(mesh, PartitionSpec(None, "sequence"))
        run = jax.shard_map(
            run, mesh=mesh, in_specs=(kernel.manual_sharding_spec(place), asks, keeps, keeps),
            out_specs=asks, check_vma=False,
        )  # fmt: skip
    pairs, area = int(ends(runs).sum()), padded.visited * BLOCK * BLOCK
    with jax.named_scope(attention_scope(pairs // ways, area // ways)):  # of one device
        y = run(kernel, fit(q * scale), fit(k), fit(v))
    return y.swapaxes(1, 2)[:, front : front + slots]
