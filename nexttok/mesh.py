"""One mesh of five axes, and the two tables that place every array on it.

Table 1 (PARAM_AXES): regex of a parameter's path -> logical axes. Every parameter must match.
Table 2 (RULES): logical axis -> mesh axes. One array may use a mesh axis once.
"""

import contextlib
import dataclasses
import functools
import re
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array

from nexttok.config import ConfigError, check

AXES = ("data", "fsdp", "tensor", "sequence", "expert")
SMALL = 2**20  # numbers of an array that need not be divided

RULES: dict[str | None, tuple[str, ...]] = {
    None: (),
    "batch": ("data", "fsdp"),
    "embed": ("fsdp",),
    "mlp": ("tensor",),
    "heads": ("tensor",),
    "vocab": ("tensor",),
    "sequence": ("sequence",),
    "expert": ("expert",),
    "layers": (),
}

# First match wins. Parameters under a scanned stack (".../blocks/...") get "layers" in front.
PARAM_AXES: tuple[tuple[str, tuple[str | None, ...]], ...] = (
    (r"(wq|wk|wv)/kernel$", ("embed", "heads")),
    (r"(wq|wk|wv)/bias$", ("heads",)),
    (r"proj/kernel$", ("heads", "embed")),
    (r"(fc1|fc3)/kernel$", ("embed", "mlp")),
    (r"(fc1|fc3)/bias$", ("mlp",)),
    (r"fc2/kernel$", ("mlp", "embed")),
    (r"adaln/kernel$", ("embed", "mlp")),
    (r"adaln/bias$", ("mlp",)),
    (r"logits/kernel$", ("embed", "vocab")),
    (r"logits/bias$", ("vocab",)),
    (r"quantizer/(\w+/codes/)?(embedding|sums)$", ("vocab", None)),
    (r"quantizer/(\w+/codes/)?(counts|logits)$", ("vocab",)),
    (r"quantizer/(\w+/codes/)?numbers$", (None, None)),
    (r"quantizer/(\w+/codes/)?seen$", ()),
    (r"lecam/(real|fake)$", ()),
    (r"(^|/)embedding$", ("vocab", "embed")),
    (r"(^|/)(\w*registers|\w*positions|mask_token|null_token|class_embedding)$", (None, None)),
    (r"(^|/)(cls_token|register_tokens|queries|sos|fillers|levels|mask_flags)$", (None, None)),
    (r"(^|/)(gamma|scale|ns_coeffs|modulation|gate1|gate2|slot_mean|slot_log_scale)$", (None,)),
    (r"(project|bridge|transform|velocity|moments|score|gru_\w+)/kernel$", (None, None)),
    (r"(restyle\d+/(scale|shift)|embed|from_means|to_z)/kernel$", (None, None)),
    (r"discriminator/head\d+_(conv\d|out)/kernel$", (None, None, None)),
    (r"discriminator/head\d+_(conv\d|out)/u$", (None,)),
    (r"conv_out/kernel$", (None, None, None, None)),
    (r"(conv|up)\w*/kernel$", (None, None, None, "embed")),
    (r"mix\d+/kernel$", (None, "embed")),
    (r"(patch_embed|from_latents|time1|time2|to_patches|to_latents|out)/kernel$", (None, None)),
    (r"(bias|offset)$", (None,)),
)


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """`config.mesh`: devices along each axis; one of them may be -1 for all that are left."""

    data: int
    fsdp: int
    tensor: int
    sequence: int
    expert: int

    def __post_init__(self):
        for name in AXES:
            size = getattr(self, name)
            check(size >= 1 or size == -1, f"mesh.{name}", size, "at least 1, or -1 for the rest")
        free = [name for name in AXES if getattr(self, name) == -1]
        check(len(free) <= 1, "mesh", free, "at most one axis of -1")


def make_mesh(cfg: MeshConfig, devices: Any = None) -> Mesh:
    """The mesh over `devices` (default: all), with Auto axes (linen needs them).

    Of several slices, the data axis alone crosses the network between them.

    Raises:
      ConfigError: the sizes do not multiply to the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    sizes = [getattr(cfg, name) for name in AXES]
    known = int(np.prod([s for s in sizes if s != -1]))
    if -1 in sizes:
        fits = len(devices) % known == 0
        sizes[sizes.index(-1)] = len(devices) // known
    else:
        fits = known == len(devices)
    given = ", ".join(f"{n}={getattr(cfg, n)}" for n in AXES)
    if not fits:
        raise ConfigError(
            f"config.mesh = ({given}): expected sizes that multiply to the {len(devices)} devices "
            "here (one axis may be -1 for the rest)"
        )
    kinds = (AxisType.Auto,) * len(AXES)
    slices = len({getattr(d, "slice_index", 0) for d in devices})
    if slices == 1:  # an axis of the mesh may be a part of one of the torus
        found = mesh_utils.create_device_mesh(sizes, devices, allow_split_physical_axes=True)
        return Mesh(found, AXES, kinds)
    if sizes[0] % slices:
        raise ConfigError(
            f"config.mesh.data = {sizes[0]}: expected a multiple of the {slices} slices, as the "
            "data axis alone crosses them"
        )
    within, across = [sizes[0] // slices, *sizes[1:]], [slices, 1, 1, 1, 1]
    found = mesh_utils.create_hybrid_device_mesh(
        within, across, devices, allow_split_physical_axes=True
    )
    return Mesh(found, AXES, kinds)


@contextlib.contextmanager
def use_mesh(mesh: Mesh) -> Iterator[Mesh]:
    """Makes `mesh` the one that `constrain` places activations on."""
    with jax.set_mesh(mesh):
        yield mesh


def spec_of(axes: tuple[str | None, ...]) -> PartitionSpec:
    """Logical axes -> PartitionSpec.

    Raises:
      ValueError: two of them want the same mesh axis.
    """
    placed = [RULES[a] for a in axes]
    used = [m for p in placed for m in p]
    if len(set(used)) != len(used):
        raise ValueError(f"logical axes {axes} use a mesh axis twice: {used}")
    return PartitionSpec(*[p[0] if len(p) == 1 else (p or None) for p in placed])


def axes_of(path: str, shape: tuple[int, ...]) -> tuple[str | None, ...]:
    """Logical axes of a parameter by table 1; scalars (optimizer counters) have none.

    Raises:
      ValueError: nothing matches, or what matches has another rank.
    """
    if not shape:
        return ()
    for pattern, axes in PARAM_AXES:
        if re.search(pattern, path):
            if "/blocks/" in path:
                axes = ("layers", *axes)
            if len(axes) != len(shape):
                raise ValueError(f"parameter {path} {shape}: {pattern!r} describes {axes}")
            return axes
    raise ValueError(f"parameter {path} {shape} matches no row of PARAM_AXES in nexttok/mesh.py")


def path_name(path: tuple) -> str:
    """'/'-joined keys of a tree path: "0/mu/encoder/trunk/blocks/attn/wq/kernel"."""
    return "/".join(str(getattr(k, "key", getattr(k, "idx", getattr(k, "name", k)))) for k in path)


def param_spec(mesh: Any, name: str, shape: tuple[int, ...]) -> PartitionSpec:
    """Where a parameter of this path and shape lies on a mesh.

    The fsdp axis only says where parameters lie, so that arrays of less than SMALL numbers stay
    whole where it does not divide them.

    Raises:
      ConfigError: a dimension of another array does not divide over its mesh axes.
      ValueError: the tables do not place it.
    """
    spec = list(spec_of(axes_of(name, shape)))
    for i, (size, entry) in enumerate(zip(shape, spec, strict=True)):
        names = (entry,) if isinstance(entry, str) else (entry or ())
        ways = int(np.prod([mesh.shape[n] for n in names]))
        if size % ways and entry == "fsdp" and np.prod(shape) < SMALL:
            spec[i] = None
        elif size % ways:
            raise ConfigError(
                f"config.mesh.{names[0]} = {mesh.shape[names[0]]}: expected a divisor of "
                f"{size}, a dimension of parameter {name} {tuple(shape)}"
            )
    return PartitionSpec(*spec)


def param_shardings(mesh: Mesh, tree: Any) -> Any:
    """NamedSharding of every leaf of parameters, or of optimizer state that mirrors them; raises
    what `param_spec` does."""

    def place(path, leaf):
        return NamedSharding(mesh, param_spec(mesh, path_name(path), leaf.shape))

    return jax.tree_util.tree_map_with_path(place, tree)


def replicated(mesh: Mesh) -> NamedSharding:
    """The whole array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Rows over the data and fsdp axes."""
    return NamedSharding(mesh, PartitionSpec(("data", "fsdp")))


def host_to_device(batch: dict, mesh: Mesh) -> dict:
    """Puts this process's rows of a host batch on the mesh; entries that are no numbers stay."""
    rows = batch_sharding(mesh)
    return {
        name: jax.make_array_from_process_local_data(rows, np.asarray(value))
        for name, value in batch.items()
        if np.asarray(value).dtype.kind in "biuf"
    }


def platform() -> str:
    """Of the mesh in use, which may be described only, else of JAX: "tpu", "gpu" or "cpu"."""
    mesh = jax.sharding.get_abstract_mesh()
    device = None if mesh.empty else mesh.abstract_device
    if device is None:
        return jax.default_backend()
    return "gpu" if device.platform in ("cuda", "rocm") else device.platform


def batch_ways() -> int:
    """Over how many parts the mesh in use divides a batch; 1 without one."""
    mesh = jax.sharding.get_abstract_mesh()
    return 1 if mesh.empty else mesh.shape["data"] * mesh.shape["fsdp"]


def constrain(x: Array, *axes: str | None) -> Array:
    """Places an activation by its logical axes; does nothing without a mesh of several devices."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return x
    return jax.lax.with_sharding_constraint(x, spec_of(axes))


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def placed(x: Array, spec: PartitionSpec, back: PartitionSpec) -> Array:
    """An array of any shape, placed by one spec on the mesh in use; its gradient by another."""
    return jax.lax.with_sharding_constraint(x, spec)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def gradient_placed(x: Array, spec: PartitionSpec) -> Array:
    """The array itself, of any shape, whose gradient is placed by a spec."""
    return x


placed.defvjp(
    lambda x, spec, back: (jax.lax.with_sharding_constraint(x, spec), None),
    lambda spec, back, _, gradient: (jax.lax.with_sharding_constraint(gradient, back),),
)
# the array must come out as it went in: of what scans over layers, only that is not saved twice
gradient_placed.defvjp(
    lambda x, spec: (x, None),
    lambda spec, _, gradient: (jax.lax.with_sharding_constraint(gradient, spec),),
)
