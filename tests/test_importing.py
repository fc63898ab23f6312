"""Released files become workdirs; what does not fit is refused by name."""

import json

import jax
import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

from nexttok import experiment, importing, stages
from nexttok.checkpoint import restore_params
from nexttok.config import ConfigError
from nexttok.config_files import load_config, variants_of
from nexttok.interop.__main__ import main
from nexttok.interop.checkpoints import pick
from nexttok.main import main as cli
from tests.parity import official, released


def llamagen():
    """The tiny LlamaGen at the size of the fixture."""
    config = load_config("configs/llamagen.py:tiny")
    config.generator.backbone.update(width=64, depth=2, head_dim=16, mlp_hidden=256)
    config.tokenizer.bottleneck.size = 64
    config.data.num_classes = 5
    return experiment.resolve(config)


@pytest.fixture(name="state", scope="module")
def _state():
    return official.state_dict(official.load("llamagen"))


def test_an_imported_generator_is_read_back_as_a_stage(tmp_path, state):
    file, exp = tmp_path / "released.safetensors", llamagen()
    save_file(state, file)
    out = tmp_path / "run"
    made = importing.import_checkpoints({"llamagen": str(file)}, {"small": exp}, str(out))
    assert made.parameters == sum(v.size for v in state.values())
    abstract = stages.abstract_params(exp, "generator")
    params = restore_params(made.directories[0], abstract, "ema")
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
        importing.import_checkpoints(
            {"llamagen": str(file)}, {"": llamagen()}, str(tmp_path / "run")
        )
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
        importing.import_checkpoints({"llamagen": str(file)}, {"": llamagen()}, str(tmp_path))


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


SMALL = """
from configs import {paper}

VARIANTS = ("small",)


def get_config(variant="small"):
    config = {paper}.get_config("tiny")
    for part in (config.tokenizer.encoder, config.tokenizer.decoder):
        part.groups = {groups}
        part.update({network})
    config.tokenizer.bottleneck.update(size=64, channels=8)
    config.tokenizer.losses.update(
        adversarial_weight=0.5, discriminator_layers=1, discriminator_width=8
    )
    config.generator.backbone.update({backbone})
    # as on a machine without the data set
    config.data.update(source="tfds:imagenet2012", root="none", num_classes=5, channels=3)
    return config
"""


def small(folder, paper, network, backbone, groups=8):
    """A config file of a tiny adversarial tokenizer and a generator."""
    path = folder / "configs" / f"{paper}_small.py"
    path.parent.mkdir()
    texts = dict(paper=paper, network=f"dict({network})", backbone=backbone, groups=groups)
    path.write_text(SMALL.format(**texts))
    return f"--config={path}"


def imported(folder, config, system, state, out):
    """Imports entries through the command line."""
    file = folder / f"{system}.safetensors"
    save_file({k: np.ascontiguousarray(v) for k, v in state.items()}, file)
    arguments = [f"--system={system}", f"--checkpoint={file}", config, f"--out={folder}/{out}"]
    assert main(arguments) == 0


def test_an_imported_tokenizer_without_its_discriminator_serves_another_run(tmp_path, state):
    net = released.Autoencoder("llamagen", 16, (1, 1, 2), 1, z=8, latent=8, attention="")
    sizes = "width=64, depth=2, head_dim=16, mlp_hidden=256"
    config = small(tmp_path, "llamagen", "width=16", sizes)
    tokenizer = {k: official.seeded(k, s) for k, s in released.llamagen_vq(net, 64).items()}
    imported(tmp_path, config, "llamagen_vq", tokenizer, "tokenizer")
    imported(tmp_path, config, "llamagen", state, "run")
    words = [config, f"--workdir={tmp_path}/run", "--mode=sample", "--config.sample.classes=3,1"]
    words += [f"--config.tokenizer_checkpoint={tmp_path}/tokenizer", "--config.sample.per_class=2"]
    cli([*words])
    with np.load(tmp_path / "run" / "samples.npz") as saved:
        np.testing.assert_array_equal(saved["labels"], [3, 1, 3, 1])
        assert saved["images"].shape == (4, 16, 16, 3)
        assert np.isfinite(saved["images"]).all()
        assert len(np.unique(saved["tokens"])) > 8
    with pytest.raises(SystemExit):
        cli([*words, "--config.sample.classes=5"])


def test_imported_stages_of_one_workdir_sample(tmp_path):
    config = small(
        tmp_path, "var",
        "width=32, multipliers=(1, 2, 2), attention=(2,)",
        "width=48, depth=3, head_dim=16, mlp_hidden=192", groups=32,
    )  # fmt: skip
    tokenizer = official.state_dict(official.load("var_vqvae4"))
    imported(tmp_path, config, "var_vqvae", tokenizer, "run")
    imported(tmp_path, config, "var", official.state_dict(official.load("var")), "run")
    words = [config, f"--workdir={tmp_path}/run", "--mode=sample", "--config.sample.guidance=1.0"]
    cli(
        [
            *words,
            "--config.sample.classes=4",
            "--config.sample.per_class=3",
            "--config.sample.tokens=5",
        ]
    )
    with np.load(tmp_path / "run" / "samples.npz") as saved:
        np.testing.assert_array_equal(saved["labels"], [4, 4, 4])
        assert saved["images"].shape == (3, 16, 16, 3)
    assert np.asarray(Image.open(tmp_path / "run" / "pictures" / "samples.png")).std() > 1


def test_training_checkpoints_keep_the_weights_deeper(tmp_path):
    trainer = {"config": {"lr": 1.0}, "var_wo_ddp": {"head.weight": np.ones(2, np.float32)}}
    assert list(pick({"epoch": 3, "trainer": trainer}, *importing.ROOTS)) == ["head.weight"]
    with pytest.raises(ConfigError, match="expected arrays"):
        pick({"epoch": 3, "trainer": {"other": {}}}, *importing.ROOTS)


@pytest.fixture(name="variants", scope="module")
def _variants():
    """Three sizes of the same model; the last two differ in what holds no weights."""
    found = {"other": llamagen(), "right": llamagen(), "longer": llamagen()}
    for name, changes in (("other", dict(depth=3)), ("longer", dict(dropout=0.2))):
        config = found[name].config.copy_and_resolve_references()
        config.generator.backbone.update(changes)
        found[name] = experiment.resolve(config)
    return found


def test_without_a_config_the_first_that_fits_is_taken(tmp_path, state, variants):
    file = tmp_path / "released.safetensors"
    save_file(state, file)
    made = importing.import_checkpoints({"llamagen": str(file)}, variants, str(tmp_path / "run"))
    assert (made.config, made.others) == ("right", ("longer",))


def test_without_a_config_that_fits_all_that_were_tried_are_named(tmp_path, state, variants):
    file = tmp_path / "bad.safetensors"
    save_file(dict(state) | {"extra.weight": np.zeros(3, np.float32)}, file)
    with pytest.raises(ConfigError) as error:
        importing.import_checkpoints({"llamagen": str(file)}, variants, str(tmp_path / "run"))
    said = str(error.value)
    assert "fits none of other, right, longer; the closest is right" in said
    assert said.count("unknown") == 1
    assert "missing" not in said
    assert not (tmp_path / "run").exists()


def test_the_variants_tried_are_those_of_released_sizes(tmp_path):
    tried = importing.variants(["arpg"], "", str(tmp_path), load_config, variants_of)
    assert list(tried) == [f"configs/arpg.py:imagenet256_{size}" for size in ("l", "xl", "xxl")]
    spec = "configs/arpg.py:imagenet256_xl"
    (tmp_path / "config.json").write_text(tried[spec].config.to_json())
    same = importing.variants(["arpg"], "", str(tmp_path), load_config, variants_of)
    assert list(same) == [spec]
    assert list(
        importing.variants(["arpg"], "configs/arpg.py:tiny", "", load_config, variants_of)
    ) == ["configs/arpg.py:tiny"]
