"""`--mode=images`: files of images that evaluators read."""

import jax
import numpy as np
import pytest

from nexttok import evaluate, experiment, image_files
from nexttok.config import ConfigError
from nexttok.main import load_config
from nexttok.score import measures
from tests.test_configs import ROOT


def models(name):
    """Of untrained parameters, drawn at random."""
    config = load_config(f"{ROOT}/configs/{name}.py:tiny")
    config.eval.images, config.eval.samples, config.eval.batch_size = 10, 12, 8
    exp = experiment.resolve(config)
    shapes = {"tokenizer": jax.eval_shape(exp.tokenizer.init, jax.random.key(0)),
              "generator": jax.eval_shape(exp.generator.init, jax.random.key(0))}  # fmt: skip
    draw = np.random.default_rng(0)
    made = lambda x: np.asarray(0.1 * draw.normal(size=x.shape), x.dtype)
    return evaluate.Models(exp, jax.tree.map(made, shapes))


def test_images_are_written_resumed_and_scored(tmp_path, monkeypatch):
    made = models("llamagen")
    (tmp_path / "config.json").write_text("{}")
    join, to_bytes = image_files.join, image_files.to_bytes

    def stopped(parts, out):
        assert out.stem != "samples", "stopped"
        join(parts, out)

    monkeypatch.setattr(image_files, "join", stopped)
    with pytest.raises(AssertionError, match="stopped"):
        image_files.write_images(made, str(tmp_path))
    monkeypatch.setattr(image_files, "join", join)
    monkeypatch.setattr(image_files, "to_bytes", None)  # nothing is made again
    paths = image_files.write_images(made, str(tmp_path))
    counts = {"originals": 10, "reconstructions": 10, "samples": 12}
    assert [p.stem for p in paths] == list(counts)
    images = {}
    for path in paths:
        with np.load(path) as found:
            images[path.stem] = found["arr_0"]
        assert images[path.stem].shape == (counts[path.stem], 16, 16, 1)
        assert images[path.stem].dtype == np.uint8
    assert sorted(p.name for p in (tmp_path / "images").iterdir()) == [f"{n}.npz" for n in counts]
    test = evaluate.held_out(made.experiment, 10)["image"]
    np.testing.assert_allclose(images["originals"] / 127.5 - 1, test, atol=0.5 / 127.5 + 1e-6)
    first = np.asarray(made.decode(
        evaluate.array_of(made.encode(test[:8])), made.lengths[-1], jax.random.key(0)
    ))  # fmt: skip
    np.testing.assert_array_equal(images["reconstructions"][:8], to_bytes(first))
    found = measures.score(measures.Request(str(tmp_path), str(tmp_path), ("psnr",)))
    assert found["images"] == {"real": 10, "reconstructions": 10}
    square = np.square(images["originals"] - images["reconstructions"].astype(float))
    expected = 10 * np.log10(255**2 / square.mean((1, 2, 3)))
    assert found["metrics"]["psnr"] == pytest.approx(expected.mean(), rel=1e-6)


def test_videos_are_refused(tmp_path):
    config = load_config(f"{ROOT}/configs/nbp.py:tiny_video")
    with pytest.raises(ConfigError, match=r"data\.frames = .*: expected 0"):
        image_files.write_images(evaluate.Models(experiment.resolve(config), {}), str(tmp_path))
    assert not list(tmp_path.iterdir())
