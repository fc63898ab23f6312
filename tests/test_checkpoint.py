"""Checkpoints: atomic, verified, restorable onto another mesh."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nexttok.checkpoint import (
    Checkpoints,
    good_steps,
    manifest_path,
    restore_params,
    write_manifest,
)
from nexttok.config import ConfigError
from nexttok.mesh import MeshConfig, make_mesh, param_shardings


def items(value=1.0):
    return {
        "params": {"attn": {"wq": {"kernel": jnp.full((8, 8), value)}}},
        "ema": {},
        "opt": {"state": (jnp.zeros((2,)), {"count": jnp.asarray(3)}), "step": jnp.asarray(7)},
        "rng": {"key": jax.random.key(5)},
    }


def abstract(tree):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree)


def equal(a, b):
    data = lambda x: (
        jax.random.key_data(x) if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key) else x
    )
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(data(x), data(y)), a, b)


def test_round_trip_and_keep(tmp_path):
    with Checkpoints(tmp_path, keep=2) as store:
        assert store.restore_latest(abstract(items())) is None
        for step in (1, 2, 3):
            store.save(step, items(step), {"next_index": step}, {"note": "x"})
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "2",
        "3",
        "manifest-2.json",
        "manifest-3.json",
    ]
    with Checkpoints(tmp_path, keep=2) as store:
        found, data, meta, step = store.restore_latest(abstract(items()))
    equal(found, items(3))
    assert (data, meta, step) == ({"next_index": 3}, {"note": "x"}, 3)


def test_weights_only_and_a_warning_where_a_stage_is_not_finished(tmp_path, caplog):
    with Checkpoints(tmp_path, keep=1) as store:
        store.save(1, items(4.0), {}, {})
    shapes = abstract(items())["params"]
    equal(restore_params(tmp_path, shapes, "params", steps_expected=1), items(4.0)["params"])
    assert "is at step" not in caplog.text
    restore_params(tmp_path, shapes, "params", steps_expected=5)
    assert "is at step 1 of 5" in caplog.text


@pytest.mark.parametrize("item", ["params", "opt", "meta"])
@pytest.mark.parametrize("harm", ["truncate", "flip", "delete"])
def test_damage_is_named_and_the_previous_step_used(tmp_path, caplog, item, harm):
    with Checkpoints(tmp_path, keep=3) as store:
        store.save(1, items(1.0), {}, {})
        store.save(2, items(2.0), {}, {})
    files = [p for p in (tmp_path / "2" / item).rglob("*") if p.is_file() and p.stat().st_size]
    victim = max(files, key=lambda p: p.stat().st_size)
    content = victim.read_bytes()
    if harm == "truncate":
        victim.write_bytes(content[:-1])
    elif harm == "flip":
        victim.write_bytes(bytes([content[0] ^ 1]) + content[1:])
    else:
        victim.unlink()
    with Checkpoints(tmp_path, keep=3) as store:
        found, _, _, step = store.restore_latest(abstract(items()))
        assert step == 1
        store.save(2, items(5.0), {}, {})
    assert str(victim) in caplog.text
    assert (tmp_path / "2.refused" / "params").is_dir()
    equal(found, items(1.0))
    with Checkpoints(tmp_path, keep=3) as store:
        equal(store.restore_latest(abstract(items()))[0], items(5.0))


def test_a_finished_background_save_is_trusted_before_the_next_one(tmp_path):
    with Checkpoints(tmp_path, keep=1) as store:
        store.save(1, items(), {}, {})
        store.manager.wait_until_finished()
        assert not manifest_path(tmp_path, 1).exists()
        store.poll()
        assert good_steps(tmp_path) == [1]


def test_a_step_without_manifest_is_not_trusted(tmp_path, caplog):
    with Checkpoints(tmp_path, keep=3) as store:
        store.save(1, items(1.0), {}, {})
        store.save(2, items(2.0), {}, {})
    manifest_path(tmp_path, 2).unlink()
    with Checkpoints(tmp_path, keep=3) as store:
        assert store.restore_latest(abstract(items()))[3] == 1
    assert "no manifest" in caplog.text


def test_restore_onto_another_mesh(tmp_path):
    tree = items()["params"]
    wide = jax.tree.map(
        jax.device_put, tree, param_shardings(make_mesh(MeshConfig(2, 2, 2, 1, 1)), tree)
    )
    with Checkpoints(tmp_path, keep=1) as store:
        store.save(1, items() | {"params": wide}, {}, {})
    single = make_mesh(MeshConfig(1, 1, 1, 1, 1), jax.devices()[:1])
    target = jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
        tree, param_shardings(single, tree),
    )  # fmt: skip
    found = restore_params(tmp_path, target, "params")
    equal(found, tree)
    assert found["attn"]["wq"]["kernel"].sharding.device_set == {jax.devices()[0]}


def test_another_config_is_refused_by_leaf(tmp_path):
    with Checkpoints(tmp_path, keep=1) as store:
        store.save(1, items(), {}, {})
    other = {"attn": {"wq": {"kernel": jnp.zeros((8, 4))}, "wk": {"kernel": jnp.zeros((8, 8))}}}
    with pytest.raises(ConfigError, match=r"missing attn/wk/kernel; attn/wq/kernel is \(8, 8\)"):
        restore_params(tmp_path, abstract(other), "params")
    with pytest.raises(ConfigError, match="has no ema"):
        restore_params(tmp_path, abstract(other), "ema")
    with pytest.raises(ConfigError, match="expected a finished checkpoint"):
        restore_params(tmp_path / "none", abstract(other))


@pytest.mark.parametrize("text", ["", "[", "[1]", '{"a": 3}', "[" * 100_000])
def test_a_manifest_that_is_none_is_not_trusted(tmp_path, caplog, text):
    (tmp_path / "1").mkdir()
    manifest_path(tmp_path, 1).write_text(text)
    assert good_steps(tmp_path) == []
    assert "is no manifest" in caplog.text


def test_a_folder_that_is_no_checkpoint_is_refused_in_one_line(tmp_path):
    (tmp_path / "1" / "params").mkdir(parents=True)
    (tmp_path / "1" / "params" / "_METADATA").write_text("{")
    write_manifest(tmp_path, 1)
    with pytest.raises(ConfigError, match=r"1 cannot be read|has no params|another config") as told:
        restore_params(tmp_path, abstract(items()["params"]), "params")
    assert "\n" not in str(told.value)
