"""Every system that generates: entries under released names, converted, sampled, pictures drawn."""

import dataclasses

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

from nexttok import experiment, importing
from nexttok.config_files import load_config
from nexttok.interop.__main__ import main as interop
from nexttok.interop.checkpoints import Converter
from nexttok.main import main as cli
from nexttok.nn.flextok import patch_positions
from tests.parity import official

POOLED = """
    for part in (config.tokenizer.encoder, config.tokenizer.decoder):
        part.update(width=8, multipliers=(1, 1, 2), groups=4, blocks=1)
    config.tokenizer.losses.update(discriminator_layers=1, discriminator_width=8)
"""
MASKGIT = f"""
    config.tokenizer = tokenizers.maskgit_f16(){POOLED}
    config.tokenizer.bottleneck.update(size=64, channels=8)
"""
GIVT = f"""
    config.tokenizer = tokenizers.givt_f16(1e-2){POOLED}
    config.tokenizer.bottleneck.update(channels=4)
"""
NBP = """
    config.data.frames = 5
    config.tokenizer = tokenizers.magvit2()
    for part in (config.tokenizer.encoder, config.tokenizer.decoder):
        part.update(width=8, blocks=1, groups=4)
    config.tokenizer.bottleneck.levels = (4, 4, 4)
    config.generator.head.reserved = 4 + 6
"""
NONE = """
    # as on a machine without the data set
    config.data.update(source="tfds:imagenet2012", root="none")
"""
CONFIG = """
from configs import {paper}, tokenizers

VARIANTS = ("small",)


def get_config(variant="small"):
    config = {paper}.get_config("{variant}")
{changes}
    return config
"""


@dataclasses.dataclass(frozen=True)
class Case:
    """A generator's tokenizer, what a tiny config of theirs must say, and a name that the released
    tokenizer has (which tells the converter its layout)."""

    tokenizer: str
    changes: str = NONE
    variant: str = "tiny"
    hint: str = ""


CASES = {
    "llamagen": Case("llamagen_vq", hint="a.conv_blocks.0"),
    "var": Case("var_vqvae", hint="a.qkv.weight"),
    "nbp": Case("nbp_tokenizer", NBP, "tiny_video"),
    "randar": Case("llamagen_vq", hint="a.conv_blocks.0"),
    "arpg": Case("llamagen_vq", hint="a.conv_blocks.0"),
    "maskgit": Case("maskgit_vq", MASKGIT + NONE),
    "mar": Case("mar_kl"),
    "xar": Case("mar_kl"),
    "givt": Case("givt_vae", GIVT + NONE),
    "flextok_ar": Case("flextok"),
}
GENERATORS = [name for name, system in importing.SYSTEMS.items() if system.stage == "generator"]
QUICK = "givt"


def entries(monkeypatch, system, exp, hint=""):
    """Random weights under every name that the converter takes."""
    shapes = {}

    def take(reader, name, shape):
        shapes[name] = shape
        return np.broadcast_to(np.float32(0), shape)

    with monkeypatch.context() as patch:
        patch.setattr(Converter, "take", take)
        patch.setattr(Converter, "finish", lambda reader, params: params)
        importing.SYSTEMS[system].convert({hint: np.zeros(())}, exp)
    state = {n: official.seeded(n, s, "flax" if "/" in n else "torch") for n, s in shapes.items()}
    for name in shapes:
        if name.endswith(("patches_posemb_module.posembs", "enc_posemb_module.posembs")):
            _, width, *grid = shapes[name]  # fixed, and compared
            table = patch_positions(tuple(grid), width, exp.config.tokenizer.positions)
            state[name] = np.ascontiguousarray(np.transpose(table).reshape(shapes[name]))
    return state


@pytest.mark.parametrize(
    "system",
    [pytest.param(g, marks=() if g == QUICK else pytest.mark.slow) for g in GENERATORS],
)
def test_released_names_become_pictures(system, tmp_path, monkeypatch):
    case, paper = CASES[system], importing.SYSTEMS[system].config
    path = tmp_path / "configs" / f"{paper}_small.py"
    path.parent.mkdir()
    path.write_text(CONFIG.format(paper=paper, variant=case.variant, changes=case.changes))
    exp, files = experiment.resolve(load_config(str(path))), {}
    for name, hint in ((system, ""), (case.tokenizer, case.hint)):
        files[name] = f"{tmp_path}/{name}.safetensors"
        save_file(entries(monkeypatch, name, exp, hint), files[name])
    if system == QUICK:  # each to a folder of its own
        for name, file in files.items():
            words = [f"--system={name}", f"--checkpoint={file}", f"--out={tmp_path}/{name}"]
            assert interop([*words, f"--config={path}"]) == 0
        out = ",".join(f"{tmp_path}/{name}" for name in reversed(files))
    else:
        out = f"{tmp_path}/run"
        words = [f"--system={','.join(files)}", f"--checkpoint={','.join(files.values())}"]
        assert interop([*words, f"--config={path}", f"--out={out}"]) == 0
    cli(["--mode=sample", f"--config.params={out}", "--config.sample.classes=3,1",
         "--config.sample.per_class=2", f"--workdir={tmp_path}/drawn"])  # fmt: skip
    with np.load(tmp_path / "drawn" / "samples.npz") as saved:
        np.testing.assert_array_equal(saved["labels"], [3, 1, 3, 1])
        assert np.isfinite(saved["images"]).all()
        assert saved["images"].std(0).max() > 1e-3
    assert np.asarray(Image.open(tmp_path / "drawn" / "pictures" / "samples.png")).std() > 1
