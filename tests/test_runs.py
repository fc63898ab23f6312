"""Every config's tiny variant: a few training steps to pictures and numbers, then sampling."""

import json

import jax
import numpy as np
import pytest
from PIL import Image
from skimage.io import imread

from nexttok import run
from nexttok.checkpoint import Checkpoints
from nexttok.evals import samplers
from nexttok.experiment import resolve
from nexttok.main import load_config, main, override
from tests.test_configs import FILES, ROOT

SMALL = [
    "--config.train.tokenizer.steps=2", "--config.train.generator.steps=2",
    "--config.train.tokenizer.warmup=1", "--config.train.generator.warmup=1",
    "--config.train.tokenizer.log_every=1", "--config.train.generator.log_every=1",
    "--config.train.tokenizer.save_every=2", "--config.train.generator.save_every=2",
    "--config.train.tokenizer.batch_size=8", "--config.train.generator.batch_size=8",
    "--config.eval.images=20", "--config.eval.samples=20", "--config.eval.batch_size=20",
    "--config.eval.classifier_steps=2", "--config.cached_passes=1",
]  # fmt: skip
EDITORS = ("var", "maskgit", "mar", "randar", "arpg")


def edit(args, workdir, code=0):
    """Asks for the lower half of a digit, as two classes."""
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 255, (16, 16), np.uint8)).save(workdir / "source.png")
    mask = np.zeros((16, 16), np.uint8)
    mask[8:] = 255
    Image.fromarray(mask).save(workdir / "mask.png")
    extra = [f"--config.sample.{n}={workdir}/{n}.png" for n in ("source", "mask")]
    extra.append("--config.sample.classes=7,2")
    if code:
        with pytest.raises(SystemExit):
            main([*args, *extra])
        return None
    main([*args, *extra])
    assert imread(workdir / "pictures" / "editing.png").std() > 1
    with np.load(workdir / "edited.npz") as saved:
        return dict(saved)


QUICK = ("maskgit", "vqvae")  # a generator, and moving averages; others take up to two minutes
ALONE = [p for p in FILES if "generator" not in load_config(f"{p}:tiny").stages]


def cases(paths):
    return [
        pytest.param(p, id=p.stem, marks=() if p.stem in QUICK else pytest.mark.slow) for p in paths
    ]


@pytest.mark.slow
@pytest.mark.parametrize(("variant", "calls"), [("tiny_video", 11), ("tiny_prediction", 1)])
def test_videos_train_to_moving_pictures(tmp_path, variant, calls):
    args = [f"--config={ROOT}/configs/nbp.py:{variant}", f"--workdir={tmp_path}", *SMALL[:-1]]
    main(args)
    found = json.loads((tmp_path / "results.json").read_text())
    assert found["samples"]["network_calls"] == calls
    assert imread(tmp_path / "pictures" / "samples.png").std() > 1
    with Image.open(tmp_path / "pictures" / "samples.gif") as clip:
        assert clip.n_frames == 8
    assert "image/gif" in (tmp_path / "report.html").read_text()
    main([*args, "--mode=sample", "--config.sample.per_class=1"])
    with np.load(tmp_path / "samples.npz") as saved:
        assert saved["images"].shape == (6, 8, 32, 32, 3)


@pytest.mark.slow
@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_a_run_that_dies_in_every_stage_ends_as_an_undisturbed_one(path, tmp_path, monkeypatch):
    config = load_config(f"{path}:tiny")
    for word in [*SMALL, *(f"--config.train.{s}.save_every=1" for s in ("tokenizer", "generator"))]:
        override(config, word.removeprefix("--config."))
    exp = resolve(config)
    monkeypatch.setattr(run, "measure", lambda exp, done, workdir: done)
    whole = run.run_train(exp, str(tmp_path / "whole"))
    save = Checkpoints.save

    class Killed(Exception):
        pass

    def dying(self, step, *args, **options):
        save(self, step, *args, **options)
        if step == 1:
            raise Killed

    for stage in exp.train:
        monkeypatch.setattr(Checkpoints, "save", dying)
        with pytest.raises(Killed):
            run.run_train(exp, str(tmp_path / "parts"))
        monkeypatch.setattr(Checkpoints, "save", save)
        assert (tmp_path / "parts" / "checkpoints" / stage / "1").is_dir()
    parts = run.run_train(exp, str(tmp_path / "parts"))
    jax.tree.map(np.testing.assert_array_equal, parts, whole)


@pytest.mark.parametrize("path", cases(p for p in FILES if p not in ALONE))
def test_the_tiny_variant_runs_to_pictures_and_samples(path, tmp_path):
    args = [f"--config={path}:tiny", f"--workdir={tmp_path}", *SMALL]
    main(args)
    found = json.loads((tmp_path / "results.json").read_text())
    assert found["reconstruction"]["images"] == 20
    assert found["samples"]["network_calls"] >= 3
    for name in ("reconstructions", "samples"):
        assert imread(tmp_path / "pictures" / f"{name}.png").std() > 1
    main([*args, "--mode=sample", "--config.sample.per_class=1"])
    with np.load(tmp_path / "samples.npz") as saved:
        assert saved["images"].shape == (10, 16, 16, 1)
        assert np.isfinite(saved["images"]).all()
    args = [*args, "--mode=sample", "--config.sample.per_class=2"]
    if path.stem not in EDITORS:
        edit(args, tmp_path, code=2)
        return
    edited = edit(args, tmp_path)
    np.testing.assert_array_equal(edited["labels"], [7, 7, 2, 2])
    known, tokens = edited["known"], edited["tokens"]
    assert 0 < known.sum() < len(known)
    kept = tokens[:, known].reshape(len(tokens), -1)
    assert (kept == kept[:1]).all()  # what was not masked is the same in every sample
    assert len(np.unique(tokens[:, ~known].reshape(len(tokens), -1), axis=0)) > 1


@pytest.mark.parametrize("path", cases(ALONE))
def test_a_tokenizer_alone_runs_to_pictures_and_numbers(path, tmp_path):
    main([f"--config={path}:tiny", f"--workdir={tmp_path}", *SMALL])
    found = json.loads((tmp_path / "results.json").read_text())
    assert found["reconstruction"]["images"] == 20
    row = found["reconstruction"]["prefixes"][-1]
    assert row["psnr"] > 0
    assert ("bits" in row) == (path.stem != "slate")  # whose tokens are continuous
    assert "samples" not in found
    assert imread(tmp_path / "pictures" / "reconstructions.png").std() > 1


def test_a_generator_trains_from_the_tokens_that_another_run_wrote(tmp_path, capsys):
    config = f"--config={ROOT}/configs/vqvae.py:tiny"
    first, second = tmp_path / "tokenizer", tmp_path / "generator"
    main([config, f"--workdir={first}", *SMALL])
    both = [config, *SMALL, "--config.stages=tokenizer,generator",
            f"--config.tokenizer_checkpoint={first}"]  # fmt: skip
    folder = f"--config.token_dataset={tmp_path}/tokens"
    main([*both, f"--workdir={second}", folder, "--mode=tokenize"])
    assert len(list((tmp_path / "tokens").glob("*.array_record"))) == 1
    main([*both, f"--workdir={second}", folder])
    found = json.loads((second / "results.json").read_text())
    assert found["samples"]["network_calls"] == 16
    assert not list(second.glob("tokens-*"))
    with pytest.raises(SystemExit):
        main([*both, f"--workdir={tmp_path}/third", folder, "--config.seed=1"])
    assert "seed is 0, not 1" in capsys.readouterr().err
    assert not (tmp_path / "third").exists()
    compare([*both, f"--workdir={second}"], second, capsys)


def compare(args, workdir, capsys):
    """Measures samplers of a run of 16 tokens in raster order."""
    with pytest.raises(SystemExit):
        main([*args, "--mode=samplers", "--samplers=zipar,init=random"])
    assert "config.sampler = 'init=random': expected lag" in capsys.readouterr().err
    assert not (workdir / "samplers.json").exists()
    main([*args, "--mode=samplers", "--samplers=zipar;jacobi,window=3;ngram"])
    found = json.loads((workdir / "samplers.json").read_text())
    base, zipar, jacobi, counted = found["rows"]
    assert [r["sampler"] for r in found["rows"]] == ["plan", "zipar", "jacobi,window=3", "ngram"]
    assert (base["network_calls"], zipar["network_calls"], base["speedup"]) == (16, 9, 1.0)
    assert 4 <= jacobi["rounds"] <= jacobi["network_calls"] <= 16
    assert 4 <= counted["rounds"] <= counted["network_calls"] <= 16
    assert all(row["images_per_second"] > 0 for row in found["rows"])
    assert "zipar" in capsys.readouterr().out
    for cells, row in zip(samplers.rows(str(workdir)), found["rows"], strict=True):
        assert cells[1:3] == [row["sampler"], f"{round(row['network_calls'], 1):g}"]
