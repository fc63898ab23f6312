"""The mesh and its two tables."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from nexttok.aot import hlo
from nexttok.config import ConfigError
from nexttok.mesh import (
    MeshConfig,
    axes_of,
    batch_sharding,
    constrain,
    make_mesh,
    param_shardings,
    spec_of,
    use_mesh,
)
from tests import generators


def test_one_axis_takes_the_rest():
    mesh = make_mesh(MeshConfig(-1, 2, 2, 1, 1))
    assert dict(mesh.shape) == {"data": 2, "fsdp": 2, "tensor": 2, "sequence": 1, "expert": 1}


def test_a_mesh_that_does_not_fit_is_refused():
    with pytest.raises(ConfigError, match=r"config\.mesh = \(data=3.*the 8 devices"):
        make_mesh(MeshConfig(3, 1, 1, 1, 1))
    with pytest.raises(ConfigError, match=r"at most one axis of -1"):
        MeshConfig(-1, -1, 1, 1, 1)
    with pytest.raises(ConfigError, match=r"mesh\.tensor = 0"):
        MeshConfig(1, 1, 0, 1, 1)


@pytest.mark.parametrize(
    ("path", "shape", "spec"),
    [
        ("encoder/trunk/blocks/attn/wq/kernel", (2, 8, 8), P(None, "fsdp", "tensor")),
        ("0/mu/encoder/trunk/blocks/mlp/fc2/kernel", (2, 8, 8), P(None, "tensor", "fsdp")),
        ("backbone/embedding", (16, 8), P("tensor", "fsdp")),
        ("decoder/adaln/bias", (8,), P("tensor")),
        ("decoder/mask_token", (1, 8), P(None, None)),
        ("encoder/level0/res0/conv1/kernel", (3, 3, 4, 8), P(None, None, None, "fsdp")),
        ("count", (), P()),
    ],
)
def test_parameters_are_placed_by_the_tables(path, shape, spec):
    assert spec_of(axes_of(path, shape)) == spec


def test_unplaced_parameters_and_wrong_ranks_are_errors():
    with pytest.raises(ValueError, match="decoder/new_thing"):
        axes_of("decoder/new_thing", (3, 3))
    with pytest.raises(ValueError, match="describes"):
        axes_of("encoder/wq/kernel", (3, 3, 3))


def test_a_mesh_axis_is_used_once_per_array():
    with pytest.raises(ValueError, match="twice"):
        spec_of(("mlp", "heads"))


def test_dimensions_that_do_not_divide_are_named():
    mesh = make_mesh(MeshConfig(-1, 1, 4, 1, 1))
    tree = {"attn": {"wq": {"kernel": jnp.zeros((8, 6))}}}
    with pytest.raises(ConfigError, match=r"config\.mesh\.tensor = 4.*6.*attn/wq/kernel \(8, 6\)"):
        param_shardings(mesh, tree)


def test_constrain_is_nothing_without_a_mesh_and_places_with_one():
    x = jnp.arange(32.0).reshape(8, 4)
    assert constrain(x, "batch", "mlp") is x
    with use_mesh(make_mesh(MeshConfig(2, 2, 2, 1, 1))):
        y = jax.jit(lambda x: constrain(x * 1.0, "batch", "mlp"))(x)
        assert y.sharding.spec == P(("data", "fsdp"), "tensor")
    np.testing.assert_array_equal(x, y)


@functools.cache
def taught(name, sizes):
    """Loss and gradients of a generator of the law tables on a mesh of these sizes."""
    gen = generators.make(name, vocab=8)
    params, tokens = generators.redrawn(gen), generators.random_tokens(gen.spec, 8)
    label = jnp.arange(8, dtype=jnp.int32) % 3
    mesh = make_mesh(MeshConfig(*sizes), jax.devices()[: int(np.prod(sizes))])

    def loss(params, tokens, label):
        return gen.loss(params, tokens, label, None)[0].mean()

    with use_mesh(mesh):
        rows, places = batch_sharding(mesh), param_shardings(mesh, params)
        run = jax.jit(jax.value_and_grad(loss), in_shardings=(places, rows, rows))
        return jax.device_get(run(params, tokens, label))


@pytest.mark.parametrize("name", ["llamagen", "nbp", "var", "randar", "maskgit", "xar"])
@pytest.mark.parametrize(
    "sizes",
    [(2, 2, 2, 1, 1), (1, 2, 1, 2, 2), pytest.param((8, 1, 1, 1, 1), marks=pytest.mark.slow)],
    ids=str,
)
def test_every_context_trains_alike_on_every_mesh(name, sizes):
    (loss, grads), (single, expected) = taught(name, sizes), taught(name, (1, 1, 1, 1, 1))
    assert loss == pytest.approx(single, rel=1e-5)
    largest = max(np.abs(g).max() for g in jax.tree.leaves(expected))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5 * largest),
        grads, expected,
    )  # fmt: skip


def step_of(name, sizes=(2, 2, 2, 1, 1), **backbone):
    """Loss and gradients under dropout, compiled for 8 devices; the parameters of an example."""
    gen = generators.make(name, vocab=8, **backbone)
    params, tokens = generators.redrawn(gen), generators.random_tokens(gen.spec, 8)
    label = jnp.arange(8, dtype=jnp.int32) % 3

    def loss(params):
        return gen.loss(params, tokens, label, jax.random.key(3))[0].mean()

    mesh = make_mesh(MeshConfig(*sizes))
    with use_mesh(mesh):
        places = param_shardings(mesh, params)
        run = jax.jit(jax.value_and_grad(loss), out_shardings=(None, places))
        params = jax.device_put(params, places)
        return run.lower(params).compile(), params


@pytest.mark.parametrize(
    ("name", "options"),
    [("llamagen", {}), ("var", {}), ("arpg", {}), ("qk_norm_rms", {}),
     ("flextok", dict(sizes=(1, 8, 1, 1, 1), width=20, head_dim=4))],  # 8 does not divide 20
    ids=str,
)  # fmt: skip
def test_parameters_gathered_at_once_teach_the_same(name, options):
    (late, given), (early, _) = (step_of(name, zero=z, dropout=0.2, **options) for z in (3, 2))
    expected, got = jax.device_get((late(given), early(given)))
    largest = max(np.abs(g).max() for g in jax.tree.leaves(expected))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6 * largest),
        got, expected,
    )  # fmt: skip


def test_parameters_gathered_at_once_are_gathered_as_often_for_any_depth():
    def gathers(zero, depth):
        found = hlo.parse(step_of("llamagen", zero=zero, depth=depth)[0].as_text()).collectives
        return sum(c.count for c in found if c.kind == "all-gather")

    assert gathers(2, 4) == gathers(2, 2)
    assert gathers(3, 4) > gathers(3, 2)


def test_small_arrays_that_fsdp_does_not_divide_stay_whole_and_large_ones_are_refused():
    mesh = make_mesh(MeshConfig(1, -1, 1, 1, 1))
    conv = {"conv0": {"kernel": jax.ShapeDtypeStruct((3, 3, 4, 12), jnp.float32)}}
    assert param_shardings(mesh, conv)["conv0"]["kernel"].is_fully_replicated
    fc1 = {"fc1": {"kernel": jax.ShapeDtypeStruct((1028, 1024), jnp.float32)}}
    with pytest.raises(ConfigError, match=r"mesh\.fsdp = 8: expected a divisor of 1028"):
        param_shardings(mesh, fc1)


class Device:
    """What a mesh of several slices looks at."""

    platform = device_kind = "cpu"
    process_index = 0

    def __init__(self, number):
        self.id, self.slice_index = number, number // 8


def test_an_axis_may_be_a_part_of_one_of_the_torus():
    chips = [Device(0) for _ in range(64)]
    for i, chip in enumerate(chips):
        chip.id, chip.platform, chip.device_kind, chip.core_on_chip = i, "tpu", "TPU v5", 0
        chip.coords = (i % 4, i // 4 % 4, i // 16)
    mesh = make_mesh(MeshConfig(1, -1, 2, 1, 1), chips)
    assert mesh.devices.shape == (1, 32, 2, 1, 1)
    assert {chip.id for chip in mesh.devices.flat} == set(range(64))


def test_only_the_data_axis_crosses_slices():
    devices = [Device(i) for i in range(16)]
    mesh = make_mesh(MeshConfig(-1, 2, 2, 1, 1), devices)
    assert dict(mesh.shape) == {"data": 4, "fsdp": 2, "tensor": 2, "sequence": 1, "expert": 1}
    slices = np.vectorize(lambda d: d.slice_index)(mesh.devices)
    np.testing.assert_array_equal(slices[:, 0, 0, 0, 0], [0, 0, 1, 1])
    assert (slices == slices[:, :1, :1]).all()
    with pytest.raises(ConfigError, match=r"mesh\.data = 1: expected a multiple of the 2 slices"):
        make_mesh(MeshConfig(1, -1, 1, 1, 1), devices)
