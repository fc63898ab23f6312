"""Inception and CLIP against official code.

Fixture inception.npz: torch-fidelity 0.4.0's InceptionV3 whose parameters were overwritten by
inputs.entry: all features of the first two images of a set; sparse pixels of images that
torch-fidelity, PyTorch and clean-fid 0.1.35 resized; and, of two sets of 8 images, FID, KID and IS
of torch-fidelity, FID of pytorch-fid 0.3.0, and its distance of spatial features. Fixture
clip_images.npz: transformers 5.24.0's CLIPVisionModelWithProjection of width 32, official.seeded.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nexttok.interop import clip as clip_weights
from nexttok.interop import inception as inception_weights
from nexttok.interop.checkpoints import Misfit
from nexttok.nn.clip import ClipConfig, ClipImages
from nexttok.nn.inception import SIDE, Inception
from nexttok.score import networks
from tests.parity import official
from tests.score.inputs import blocky, entry


@functools.cache
def state() -> dict[str, np.ndarray]:
    """Entries of the official Inception file."""
    found = {"fc.bias": entry("fc.bias", (1008,))}
    for name, leaves in inception_weights.shapes(Inception()).items():
        if name == "fc":
            found["fc.weight"] = entry("fc.weight", leaves.shape[::-1])
            continue
        rows, columns, inputs, outputs = leaves["kernel"].shape
        kernel = f"{name}.conv.weight"
        found[kernel] = entry(kernel, (outputs, inputs, rows, columns))
        for part in ("weight", "bias", "running_mean", "running_var"):
            found[f"{name}.bn.{part}"] = entry(f"{name}.bn.{part}", (outputs,))
    return found


@pytest.mark.parametrize("resize", networks.RESIZES)
@pytest.mark.parametrize("size", [(45, 60), (340, 310)], ids=["enlarged", "shrunk"])
def test_images_are_resized_as_published_numbers_are(resize, size):
    image = blocky(1, 1, *size)
    prepared = jnp.asarray(networks.prepared(image, resize))
    got = np.asarray(networks.resized(prepared, resize))
    assert got.shape == (1, SIDE, SIDE, 3)
    theirs = official.load("inception")[f"{resize}{size[0]}"]
    np.testing.assert_allclose(got[0, ::23, ::17], theirs, atol=2e-3)


def test_clip_embeddings():
    found = official.load("clip_images")
    config = ClipConfig(32, 3, 8, 4, 12, 16)
    params = clip_weights.convert(official.state_dict(found), config)
    x = jnp.asarray(found["image"], jnp.float32) / 255
    got = jax.jit(ClipImages(config).apply)({"params": params}, x)
    official.close(got, found["embeddings"])
    shapes = jax.eval_shape(ClipImages(config).init, jax.random.key(0), x)["params"]
    assert jax.tree.map(np.shape, params) == jax.tree.map(lambda s: s.shape, shapes)


def test_clip_images_are_centre_squares():
    image = np.zeros((40, 100, 3), np.uint8)
    image[:, 30:70] = 200
    assert (networks.clip_image(image, 56) == 200).all()
    assert networks.clip_image(image.transpose(1, 0, 2), 56).shape == (56, 56, 3)


def test_every_wrong_entry_of_inception_is_named():
    net = Inception(narrow=16)
    with pytest.raises(Misfit) as error:
        inception_weights.convert({"fc.weight": np.zeros((1008, 3)), "odd": np.zeros(1)}, net)
    for words in ("missing Mixed_7c.branch3x3_2a.bn.running_var", "unknown odd"):
        assert words in error.value.problems
    assert any("fc.weight is (1008, 3)" in problem for problem in error.value.problems)
