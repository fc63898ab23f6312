"""Law table of configs: every variant resolves and has its paper's sizes; no key is dead."""

import ast
import math
import pathlib

import jax
import pytest
from ml_collections import ConfigDict

from nexttok import experiment, stages
from nexttok.config import ConfigError
from nexttok.main import load_config

ROOT = pathlib.Path(__file__).parent.parent
FILES = sorted(
    p for p in (ROOT / "configs").glob("*.py") if p.stem not in ("__init__", "common", "tokenizers")
)


def variants(path):
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Assign) and node.targets[0].id == "VARIANTS":
            return ast.literal_eval(node.value)
    raise AssertionError(f"{path} has no VARIANTS")


EVERY = [f"{p}:{v}" for p in FILES for v in variants(p)]

# Millions of parameters: encoder and decoder as released, and the frozen autoencoder's total.
FLEXTOK = {
    "imagenet256_d12_d12": (85, 170),
    "imagenet256_d18_d18": (287, 573),
    "imagenet256_d18_d28": (287, 2158),
}
# Millions of parameters of the released generators, as their papers or cards state them.
GENERATORS = {
    ("llamagen", "imagenet256_b"): 111,
    ("llamagen", "imagenet256_l"): 343,
    ("llamagen", "imagenet256_xl"): 775,
    ("llamagen", "imagenet256_xxl"): 1411,
    ("llamagen", "imagenet384_b"): 111,
    ("llamagen", "imagenet384_l"): 343,
    ("llamagen", "imagenet384_xl"): 775,
    ("llamagen", "imagenet384_xxl"): 1411,
    ("llamagen", "imagenet384_3b"): 3096,
    ("randar", "imagenet256_l"): 343,
    ("randar", "imagenet256_xl"): 775,
    ("randar", "imagenet256_xxl"): 1411,
    ("arpg", "imagenet256_l"): 320,
    ("arpg", "imagenet256_xl"): 719,
    ("arpg", "imagenet256_xxl"): 1300,
    ("var", "imagenet256_d16"): 310,
    ("var", "imagenet256_d20"): 600,
    ("var", "imagenet256_d24"): 1033,
    ("var", "imagenet256_d30"): 2010,
    ("var", "imagenet512_d36"): 2300,
    ("maskgit", "imagenet256"): 172.457,  # of the official code; the paper's 227 with the tokenizer
    ("maskgit", "imagenet512"): 173,
    ("givt", "imagenet256"): 304,
    ("givt", "imagenet256_masked"): 304,
    ("givt", "imagenet512_masked"): 304,
    ("givt", "imagenet256_large"): 1670,
    ("mar", "imagenet256_b"): 208,
    ("mar", "imagenet256_l"): 479,
    ("mar", "imagenet256_h"): 943,
    ("xar", "imagenet256_b"): 172,
    ("xar", "imagenet256_l"): 608,
    ("xar", "imagenet256_h"): 1150,  # stated as 1.1 B
}
# Millions of parameters of released tokenizers, as their papers state them, and the parts counted.
TOKENIZERS = {
    ("larp", "k600_l_long"): (173, ("encoder", "decoder")),  # without its prior
    ("gigatok", "imagenet256_ss"): (136, ("encoder", "decoder", "projector")),
    ("gigatok", "imagenet256_sb"): (232, ("encoder", "decoder", "projector")),
    ("gigatok", "imagenet256_bl"): (622, ("encoder", "decoder", "projector")),
    ("gigatok", "imagenet256_xl_xxl"): (2900, ("encoder", "decoder", "projector")),
}
# Millions of parameters of the networks of D-AR's tokenizer; stated are 300 in all.
DAR = {"encoder": 57.32, "conditioner": 56.92, "decoder": 185.13, "projector": 7.34}
# Millions of parameters of SLATE with the defaults of its code, the discrete VAE's included
SLATE = 3.616
# Millions of parameters of NBP's layers alone; the paper says 700 M, 1.2 B and 3 B.
NBP = {"base": 680, "xl": 1209, "3b": 3625}


@pytest.mark.parametrize("spec", EVERY)
def test_every_variant_resolves_at_full_size(spec):
    exp = experiment.resolve(load_config(spec))
    counts = stages.parameter_counts(exp)
    print({k: f"{v:,}" for k, v in counts.items()})
    assert all(count > 0 for count in counts.values())
    name, variant = spec.split("/")[-1].split(".py:")
    if (name, variant) in GENERATORS:
        total = counts["generator/backbone"] + counts["generator/head"]
        assert total / 1e6 == pytest.approx(GENERATORS[name, variant], rel=0.035)
    if (name, variant) in TOKENIZERS:
        stated, parts = TOKENIZERS[name, variant]
        total = sum(counts[f"tokenizer/{part}"] for part in parts)
        assert total / 1e6 == pytest.approx(stated, rel=0.02)
    if name == "nbp" and variant.split("_")[-1] in NBP:
        layers = stages.abstract_params(exp, "generator")["backbone"]["trunk"]
        total = sum(math.prod(x.shape) for x in jax.tree.leaves(layers))
        assert total / 1e6 == pytest.approx(NBP[variant.split("_")[-1]], rel=1e-3)
    if (name, variant) == ("dar", "imagenet256"):
        for part, millions in DAR.items():
            assert counts[f"tokenizer/{part}"] / 1e6 == pytest.approx(millions, rel=1e-3)
        assert sum(counts.values()) / 1e6 == pytest.approx(300, rel=0.03)
    if name == "slate" and variant == "shapes3d":
        assert sum(counts.values()) / 1e6 == pytest.approx(SLATE, rel=1e-3)
    if name == "flextok" and variant in FLEXTOK:
        encoder, decoder = FLEXTOK[variant]
        assert counts["tokenizer/encoder"] / 1e6 == pytest.approx(encoder, rel=0.01)
        assert counts["tokenizer/decoder"] / 1e6 == pytest.approx(decoder, rel=0.015)
        latent = counts["latent/encoder"] + counts["latent/decoder"]
        assert latent / 1e6 == pytest.approx(84, rel=0.01)
        assert exp.tokenizer.spec.vocab == 64000
        assert exp.tokenizer.spec.length == 256


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_docstring_cites_the_paper_and_its_command(path):
    doc = ast.get_docstring(ast.parse(path.read_text()))
    assert f"--config=configs/{path.name}" in doc
    assert "et al." in doc
    for variant in variants(path):
        assert variant in doc


def leaves(config, prefix=""):
    for key in config:
        value = config[key]
        if isinstance(value, ConfigDict):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}"


SOURCES = {p: ast.parse(p.read_text()) for p in sorted((ROOT / "nexttok").rglob("*.py"))}
READ = {
    node.attr
    for tree in SOURCES.values()
    for node in ast.walk(tree)
    if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load)
} | {
    node.value
    for tree in SOURCES.values()
    for node in ast.walk(tree)
    if isinstance(node, ast.Constant) and isinstance(node.value, str)
}


@pytest.mark.parametrize("spec", EVERY)
def test_no_key_is_unread(spec):
    unread = [key for key in leaves(load_config(spec)) if key.split(".")[-1] not in READ]
    assert not unread


@pytest.mark.parametrize("spec", [f"{p}:tiny" for p in FILES])
def test_no_key_that_is_read_is_undeclared(spec):
    """Dropping any key of any section is noticed before anything runs."""
    for key in leaves(load_config(spec)):
        config = load_config(spec)
        *parents, last = key.split(".")
        section = config
        for parent in parents:
            section = section[parent]
        stage = parents[1] if parents[:1] == ["train"] else (parents or [""])[0]
        if stage in experiment.STAGES and stage not in config.stages:
            continue  # a section of a stage that this variant does not train
        with config.unlocked():
            del section[last]
        with pytest.raises(ConfigError, match=last):
            experiment.resolve(config)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("dtype", "float16", r"config\.dtype = 'float16': expected float32 \| bfloat16"),
        ("stages", ("generator",), r"config\.stages = \('generator',\)"),
        ("seed", -1, r"config\.seed = -1"),
        (
            "tokenizer.name",
            "vqvae9",
            r"config\.tokenizer\.name = 'vqvae9': expected autoencoder \| dar \| detailflow \| ",
        ),
        ("sample.tokens", 9, r"config\.sample\.tokens = 9: expected 0 \.\. 8"),
        ("sample.classes", (1, 1), r"config\.sample\.classes = \(1, 1\): expected different"),
        (
            "sample.given",
            1,
            r"config\.sample\.given = 1: expected 0, as generator\.plan gives none",
        ),
        ("sample.top_p", 2.0, r"config\.sample\.top_p = 2\.0"),
        (
            "train.tokenizer.save_every",
            75,
            r"save_every = 75: expected a multiple of .*log_every = 50",
        ),
        ("train.generator.accumulate", 3, r"train\.generator\.accumulate = 3"),
        ("eval.samples", 0, r"config\.eval\.samples = 0"),
        ("features.name", "clip", r"config\.features\.name = 'clip'"),
        ("mesh.tensor", 0, r"config\.mesh\.tensor = 0"),
    ],
)
def test_impossible_values_are_refused(key, value, message):
    config = load_config(str(ROOT / "configs" / "flextok.py"))
    config.update_from_flattened_dict({key: value})
    with pytest.raises(ConfigError, match=message):
        experiment.resolve(config)


@pytest.mark.parametrize(
    ("spec", "changes", "message"),
    [
        ("llamagen", {"tokens": 4}, r"tokens = 4: expected 0 \| 16, as only such prefixes"),
        ("var", {"tokens": 3}, r"tokens = 3: expected 0 \| 1 \| 5 \| 14 \| 30, as"),
        ("llamagen", {"steps": 3}, r"steps = 3: expected 0, as plan raster with head categorical"),
        ("maskgit", {"steps": 99}, r"steps = 99: expected 0 \.\. 16 tokens"),
        ("randar", {"confidence": 4.5}, r"confidence = 4\.5: expected 0\.0, as plan random"),
        ("mar", {"top_k": 5}, r"top_k = 5: expected 0, as .* head diffusion does not read it"),
        ("givt", {"top_p": 0.5}, r"top_p = 0\.5: expected 0\.0, as .* head gmm"),
        ("xar", {"temperature": 0.9}, r"temperature = 0\.9: expected 1\.0, as .* head flow"),
        ("maskgit", {"guidance": 2.0}, r"guidance = 2\.0: expected 1, as .*class_dropout = 0"),
    ],
)
def test_sampling_that_the_generator_cannot_follow_is_refused(spec, changes, message):
    config = load_config(f"{ROOT}/configs/{spec}.py")
    config.sample.update(changes)
    with pytest.raises(ConfigError, match=rf"config\.sample\.{message}"):
        experiment.resolve(config)


@pytest.mark.parametrize(
    ("spec", "changes", "sizes"),
    [
        ("maskgit", {"steps": 3}, (3, 5, 8)),
        ("var", {"tokens": 5}, (1, 4)),
        ("flextok", {"tokens": 3}, (1, 1, 1)),
        ("llamagen", {"tokens": 16}, (1,) * 16),
    ],
)
def test_the_plan_of_sampling_is_known_before_training(spec, changes, sizes):
    config = load_config(f"{ROOT}/configs/{spec}.py")
    config.sample.update(changes)
    assert experiment.resolve(config).plan.sizes == sizes
