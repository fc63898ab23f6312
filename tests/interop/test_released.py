"""Every paper-scale tokenizer section takes the entries of its release, by name and shape."""

import functools
import json

import jax
import numpy as np
import pytest

from nexttok import experiment, importing
from nexttok.config_files import load_config, variants_of
from nexttok.experiment import TRAINING_ONLY
from nexttok.nn.flextok import patch_positions
from nexttok.nn.networks.vit import fixed_positions
from tests.parity import released
from tests.test_configs import ROOT

FILES = {
    "llamagen_vq": ("llamagen", "randar", "arpg"),
    "var_vqvae": ("var",),
    "mar_kl": ("mar", "xar"),
    "larp": ("larp",),
    "detailflow": ("detailflow",),
    "dar": ("dar",),
    "flextok": ("flextok",),
    "flextok_vae": ("flextok",),
}


@functools.cache
def paper_scale(name):
    """The resolved paper-scale variants of a config file."""
    path = f"{ROOT}/configs/{name}.py"
    names = [v for v in variants_of(path) if v.startswith(importing.PAPER_SCALE)]
    return {v: experiment.resolve(load_config(f"{path}:{v}")) for v in names}


def entries(system, variant, exp):
    """What the release holds."""
    if system == "larp":
        places = functools.partial(fixed_positions, "sincos_sum", width=768)
        grids = dict(encoder_patch_pe=(4, 16, 16), decoder_patch_query_embed=(4, 16, 16),
                     decoder_latent_pe=(1024,))  # fmt: skip
        tables = {name: places(grid=grid)[None] for name, grid in grids.items()}
        return released.blank(released.larp()) | tables
    if system == "detailflow":
        return released.blank(released.detailflow(exp.tokenizer.count))
    if not system.startswith("flextok"):
        shapes = {
            "llamagen_vq": released.llamagen_vq,
            "var_vqvae": released.var_vqvae,
            "mar_kl": released.KL16.shapes,
            "dar": released.dar,
        }[system]()
        return released.blank(shapes)
    encoder, decoder = (int(part[1:]) for part in variant.split("_")[1:])
    state, tables = released.blank(released.flextok(encoder, decoder)), {}
    for name, width in (
        ("encoder.module_dict.enc_posemb_module.posembs", 64 * encoder),
        ("decoder.module_dict.dec_patches_posemb_module.posembs", 64 * decoder),
    ):
        table = patch_positions((16, 16), width, exp.config.tokenizer.positions)
        tables[name] = np.asarray(table).T.reshape(1, width, 16, 16)
    return state | tables


@pytest.mark.parametrize("system", FILES)
def test_paper_scale_sections_take_the_released_entries(system):
    known, done = importing.SYSTEMS[system], set()
    for name in FILES[system]:
        for variant, exp in paper_scale(name).items():
            section = json.dumps(json.loads(exp.config.to_json())[known.stage])
            if section in done:
                continue
            done.add(section)
            params = known.convert(entries(system, variant, exp), exp)
            model = exp.latent if known.stage == "latent" else exp.tokenizer
            expected = jax.eval_shape(model.init, jax.random.key(0))
            found, wanted = (
                {k: jax.tree.map(np.shape, v) for k, v in tree.items() if k not in TRAINING_ONLY}
                for tree in (params, expected)
            )
            assert found == wanted, f"{name}:{variant}"
    assert done
