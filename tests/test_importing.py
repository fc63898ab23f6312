"""Released files become workdirs; what does not fit is refused by name."""

import json

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

from nexttok import experiment, importing, stages
from nexttok.checkpoint import restore_params
from nexttok.config import ConfigError
from nexttok.interop.__main__ import main
from nexttok.main import load_config
from tests.parity import official


def llamagen():
    """The tiny LlamaGen at the size of the fixture."""
    config = load_config("configs/llamagen.py:tiny")
    config.generator.backbone.update(width=64, depth=2, head_dim=16, mlp_hidden=256)
    config.tokenizer.codebook_size = 64
    config.data.num_classes = 5
    return experiment.resolve(config)


@pytest.fixture(name="state", scope="module")
def _state():
    return official.state_dict(official.load("llamagen"))


def test_an_imported_generator_is_read_back_as_a_stage(tmp_path, state):
    file, exp = tmp_path / "released.safetensors", llamagen()
    save_file(state, file)
    out = tmp_path / "run"
    directory, count = importing.import_checkpoint("llamagen", str(file), exp, str(out))
    assert count == sum(v.size for v in state.values())
    abstract = stages.abstract_params(exp, "generator")
    params = restore_params(directory, abstract, "ema")
    table = params["backbone"]["embed"]["embedding"]
    np.testing.assert_array_equal(table, state["tok_embeddings.weight"])
    assert json.loads((out / "config.json").read_text()) == json.loads(exp.config.to_json())
    assert jax.tree.structure(params) == jax.tree.structure(abstract)


def test_unknown_missing_and_misshapen_entries_are_listed_and_nothing_is_written(tmp_path, state):
    bad = dict(state) | {"extra.weight": np.zeros(3, np.float32)}
    bad["norm.weight"] = np.zeros(65, np.float32)
    del bad["layers.1.attention.wo.weight"]
    file = tmp_path / "bad.safetensors"
    save_file(bad, file)
    with pytest.raises(ConfigError) as error:
        importing.import_checkpoint("llamagen", str(file), llamagen(), str(tmp_path / "run"))
    for said in (
        "unknown extra.weight",
        "missing layers.1.attention.wo.weight",
        "norm.weight is (65,)",
    ):
        assert said in str(error.value)
    assert not (tmp_path / "run").exists()


def test_a_workdir_of_another_config_is_refused(tmp_path, state):
    file = tmp_path / "released.safetensors"
    save_file(state, file)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ConfigError, match="holds another config"):
        importing.import_checkpoint("llamagen", str(file), llamagen(), str(tmp_path))


def test_the_command_line_ends_in_one_line(tmp_path, capsys):
    arguments = [f"--checkpoint={tmp_path}/none.pth", f"--out={tmp_path}/run"]
    assert main(["--system=dalle", *arguments]) == 2
    assert "expected llamagen | llamagen_vq | var" in capsys.readouterr().err
    assert main(["--system=var", *arguments]) == 2
    assert "none.pth" in capsys.readouterr().err


def test_flax_trees_are_flattened(tmp_path):
    import flax.serialization

    file = tmp_path / "tree.msgpack"
    tree = {"target": {"a": {"kernel": np.ones((2, 2), np.float32)}}}
    file.write_bytes(flax.serialization.msgpack_serialize(tree))
    assert list(importing.state_of(str(file))) == ["a/kernel"]
    file.write_bytes(b"not msgpack")
    with pytest.raises(ConfigError, match=r"tree\.msgpack"):
        importing.state_of(str(file))
