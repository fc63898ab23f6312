"""Equal blocks under one scan, and how their parameters reach the devices that use them."""

import functools
from typing import Any

import flax.linen as nn
import jax
from jax.sharding import PartitionSpec
from jaxtyping import Array

from nexttok.mesh import gradient_placed, param_spec, path_name, placed

ZERO = (2, 3)  # stages of ZeRO that a stack knows


def scanned(
    block: type[nn.Module], depth: int, shared: int, config: Any, initializing: bool = False
) -> type[nn.Module]:
    """The class of `depth` blocks, each applied to what the one before it returned.

    Args:
      block: its __call__ takes a carry, a slice of what is scanned over, and `shared` arguments
        that are every block's; it returns (carry, None).
      config: `remat` (rematerialize each block in the backward pass), `unroll` (blocks per scan
        iteration), `zero` and `dtype`. zero=3: a block's matrices are gathered over the fsdp axis
        when it uses them, and again in the backward pass. zero=2: those of all blocks are gathered
        at once, in the compute dtype, and stay to the end of a step's (micro-)batch; their
        gradients are still reduced to where the parameters lie (Rajbhandari et al., "ZeRO: Memory
        Optimizations Toward Training Trillion Parameter Models", 2020).
      initializing: parameters are made, not used.
    """
    mesh = jax.sharding.get_abstract_mesh()
    early = config.zero == 2 and not initializing and not mesh.empty and mesh.shape["fsdp"] > 1
    if early:
        block = nn.map_variables(block, "params", _reduce)
    layers = nn.scan(
        nn.remat(block, prevent_cse=False) if config.remat else block,
        variable_axes={"params": 0, "attention": 0},
        split_rngs={"params": True, "dropout": True},
        in_axes=(0, *[nn.broadcast] * shared),
        length=depth,
        unroll=min(config.unroll, depth),
    )
    if early:
        layers = nn.map_variables(layers, "params", functools.partial(_gather, config.dtype))
    return layers


def _gather(dtype: str, stack: Any) -> Any:
    """All blocks' matrices, whole over the fsdp axis; their gradients stay divided."""

    def whole(path, x: Array):
        spec = _spec("/blocks/" + path_name(path), x)
        if "fsdp" not in spec:
            return x
        gathered = PartitionSpec(*(None if entry == "fsdp" else entry for entry in spec))
        return placed(x.astype(dtype), gathered, spec)

    return jax.tree_util.tree_map_with_path(whole, stack)


def _reduce(block: Any) -> Any:
    """One block's matrices as they are; their gradients are divided over the fsdp axis."""

    def divided(path, x: Array):
        spec = _spec(path_name(path), x)
        return gradient_placed(x, spec) if "fsdp" in spec else x

    return jax.tree_util.tree_map_with_path(divided, block)


def _spec(name: str, x: Array) -> PartitionSpec:
    return param_spec(jax.sharding.get_abstract_mesh(), name, x.shape)
