"""The mesh and its two tables."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from nexttok.config import ConfigError
from nexttok.mesh import (
    MeshConfig,
    axes_of,
    constrain,
    make_mesh,
    param_shardings,
    spec_of,
    use_mesh,
)


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
