"""Weights from elsewhere: converted folders, exports; sampled as the run itself, bit for bit."""

import contextlib
import json
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from nexttok import experiment, run, weights
from nexttok.checkpoint import Checkpoints
from nexttok.config import ConfigError
from nexttok.config_files import load_config, override
from nexttok.interop import export, tensors
from nexttok.interop.__main__ import main as interop
from nexttok.main import main
from nexttok.stages import abstract_params
from tests.interop.test_hostile import FEW, mutated
from tests.test_configs import FILES, ROOT

WORDS = ["--mode=sample", "--config.sample.per_class=1", "--config.sample.classes=3,1"]


def noise(shapes, dtype=None):
    """Values of these shapes, as different as weights are."""
    rng = np.random.default_rng(0)
    draw = lambda a: jnp.asarray(rng.normal(0, 0.3, a.shape), dtype or a.dtype)
    return jax.tree.map(draw, shapes)


@pytest.fixture(name="workdir", scope="module")
def _workdir(tmp_path_factory):
    """A run of MaskGIT that has come to its end, without having been trained."""
    path = tmp_path_factory.mktemp("weights") / "run"
    exp = experiment.resolve(load_config(f"{ROOT}/configs/maskgit.py:tiny"))
    run.open_workdir(exp, str(path))
    for stage, cfg in exp.train.items():
        params = noise(abstract_params(exp, stage))
        with Checkpoints(path / "checkpoints" / stage, keep=1) as saved:
            which = "ema" if cfg.ema else "params"
            saved.save(cfg.steps, {which: params}, data={}, meta={}, wait=True)
    return path


@pytest.fixture(name="file", scope="module")
def _file(workdir):
    path = workdir.parent / "run.safetensors"
    assert interop([f"--export={workdir}", f"--out={path}"]) == 0
    return path


def samples(*words):
    main([*WORDS, *words])
    folder = next(w.partition("=")[2] for w in words if w.startswith("--workdir"))
    with np.load(f"{folder}/samples.npz") as saved:
        return dict(saved)


def same(a, b):
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_array_equal(a[name], b[name])


def test_an_export_samples_as_the_run_bit_for_bit(workdir, file, tmp_path):
    config = f"--config={ROOT}/configs/maskgit.py:tiny"
    wanted = samples(config, f"--workdir={workdir}")
    assert len(np.unique(wanted["tokens"])) > 4
    assert (workdir / "pictures" / "samples.png").is_file()
    same(samples(f"--config.params={file}", f"--workdir={tmp_path}/a"), wanted)
    assert (tmp_path / "a" / "pictures" / "samples.png").is_file()
    assert sorted(p.name for p in file.parent.iterdir()) == ["run", "run.safetensors"]


def test_an_export_holds_every_bit(workdir, file, tmp_path):
    exp = experiment.resolve(weights.config_of(str(workdir)))
    mine = weights.named(weights.load_models(exp, str(workdir)))
    theirs = load_file(file)
    assert mine.keys() == theirs.keys()
    for name, array in mine.items():
        assert theirs[name].tobytes() == np.asarray(array).tobytes()
    again = tmp_path / "again.safetensors"
    assert interop([f"--export={file}", f"--out={again}"]) == 0
    assert again.read_bytes() == file.read_bytes()
    saved = json.loads((workdir / "config.json").read_text())
    assert export.header(file, "params")[0] == saved


@pytest.mark.parametrize("dtype", [d for d in tensors.DTYPES if d not in ("C64",)])
def test_every_dtype_comes_back(tmp_path, dtype):
    kind = np.dtype(tensors.DTYPES[dtype])
    arrays = {"s/m": np.arange(6).astype(kind).reshape(2, 3).T, "s/0": np.ones((), kind),
              "s/none": np.zeros((0, 3), kind)}  # fmt: skip
    export.write(tmp_path / "a.safetensors", arrays, "{}")
    found = export.arrays(tmp_path / "a.safetensors", "s", "params")
    for name, array in arrays.items():
        back = found[name.removeprefix("s/")]
        assert (back.dtype, back.shape) == (array.dtype, array.shape)
        assert back.tobytes() == array.tobytes()


def test_an_export_is_written_whole_or_not_at_all(workdir, tmp_path, monkeypatch, capsys):
    def full(arrays, path, metadata):
        path.write_bytes(b"half")
        raise OSError("No space left on device")

    out = tmp_path / "a.safetensors"
    out.write_bytes(b"before")
    with monkeypatch.context() as patch:
        patch.setattr(tensors, "save_file", full)
        assert interop([f"--export={workdir}", f"--out={out}"]) == 2
    assert "could not be written: No space left" in capsys.readouterr().err
    assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == [(out.name, b"before")]
    assert interop([f"--export={tmp_path}", f"--out={out}"]) == 2
    assert interop([f"--export={workdir}", f"--out={tmp_path}/a.npz"]) == 2
    assert "ending in .safetensors" in capsys.readouterr().err
    arrays = {"tokenizer/x": np.float32([1, np.nan])}
    with pytest.raises(ConfigError, match="tokenizer/x: values that are not finite"):
        export.write(tmp_path / "b.safetensors", arrays, "{}")
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize(
    "path", [pytest.param(p, id=p.stem, marks=pytest.mark.slow) for p in FILES]
)
def test_every_model_comes_back(path, tmp_path):
    exp, out = experiment.resolve(load_config(f"{path}:tiny")), tmp_path / "a.safetensors"
    trees = {s: noise(abstract_params(exp, s)) for s in exp.train}
    kept = {
        s: {k: v for k, v in tree.items() if k not in experiment.TRAINING_ONLY}
        for s, tree in trees.items()
    }
    arrays = {n: np.asarray(a) for n, a in weights.named(kept).items()}
    export.write(out, arrays, exp.config.to_json())
    again = resolved(str(out))
    assert json.loads(again.config.to_json()) == json.loads(exp.config.to_json()) | {
        "params": str(out)
    }
    found = weights.load_models(again, "nowhere")
    assert jax.tree.structure(found) == jax.tree.structure(kept)
    same(weights.named(found), arrays)


@pytest.fixture(name="parts", scope="module")
def _parts(file):
    """The stages in folders of their own: two exports of one stage each."""
    config, arrays = export.header(file, "params")[0], load_file(file)
    paths = []
    for stage in ("generator", "tokenizer"):
        path = file.parent.parent / f"{file.parent.name}-{stage}.safetensors"
        own = {n: a for n, a in arrays.items() if n.startswith(stage)}
        save_file(own, path, {export.KEY: json.dumps(config)})
        paths.append(str(path))
    return paths


def models(exp):
    return weights.named(weights.load_models(exp, "nowhere"))


def resolved(source, **changes):
    config = weights.config_of(source)
    for key, value in {"params": source, **changes}.items():
        override(config, f"{key.replace('__', '.')}={value}")
    return experiment.resolve(config)


def test_stages_come_from_several_places(file, parts, tmp_path):
    wanted = models(resolved(str(file)))
    generator, tokenizer = parts
    for exp in (
        resolved(f"{tokenizer}, {generator}"),
        resolved(generator, tokenizer_checkpoint=tokenizer),
    ):
        same(models(exp), wanted)
    joined = tmp_path / "joined.safetensors"
    assert interop([f"--export={generator},{tokenizer}", f"--out={joined}"]) == 0
    assert joined.read_bytes() == file.read_bytes()
    with pytest.raises(ConfigError, match=r"config\.params = .*weights of the tokenizer, too"):
        models(resolved(generator))


def test_weights_of_another_config_are_refused(file, parts):
    exp = resolved(str(file), generator__backbone__depth=3)
    with pytest.raises(ConfigError, match=r"config\.generator\.backbone\.depth = 3: expected"):
        models(exp)
    exp = resolved(str(file), params="runs/none")
    with pytest.raises(ConfigError, match=r"config\.params = 'runs/none': expected the workdir"):
        models(exp)


def changed(file, path, change):
    """The export, with some of its arrays changed."""
    arrays, config = load_file(file), export.header(file, "params")[0]
    change(arrays)
    save_file(arrays, path, {export.KEY: json.dumps(config)})
    return resolved(str(path))


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (lambda a: np.full_like(a, np.nan), "values that are not finite"),
        (lambda a: np.zeros((*a.shape, 1), a.dtype), r"instead of float32\("),
        (lambda a: a.astype(np.float16), r"is float16\(.* instead of float32\("),
        (lambda a: None, "missing "),
    ],
)
def test_an_export_that_does_not_fit_is_refused_by_name(file, tmp_path, value, said):
    name = next(n for n in load_file(file) if n.startswith("tokenizer"))

    def change(arrays):
        array = value(arrays.pop(name))
        arrays.update({} if array is None else {name: array})

    exp = changed(file, tmp_path / "a.safetensors", change)
    with pytest.raises(ConfigError, match=said) as error:
        models(exp)
    assert name.removeprefix("tokenizer/") in str(error.value)


def test_damaged_exports_are_refused(file, tmp_path):
    """Their header decides; what comes after has no structure."""
    path, whole = tmp_path / "a.safetensors", file.read_bytes()
    length = int.from_bytes(whole[:8], "little") + 8

    @FEW
    @given(st.data())
    def check(data):
        path.write_bytes(mutated(data.draw, whole[:length]) + whole[length:])
        with contextlib.suppress(ConfigError):
            export.header(path, "params")

    check()


HOSTILE = ["[]", "{", "[" * 100_000, "{}", '{"a.b": 1}', '{"data": 3}', '{"latent": null}']


@pytest.mark.parametrize("text", HOSTILE)
def test_configs_that_are_none_are_refused(tmp_path, text, capsys):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(SystemExit) as left:
        main([f"--config.params={tmp_path}", "--mode=sample"])
    assert left.value.code == 2
    assert capsys.readouterr().err.startswith("error: config.")


def test_every_key_of_a_saved_config_may_be_of_another_kind(workdir, tmp_path):
    """A config is data of whomever: whatever it says ends in an error of one line, or resolves."""
    saved = json.loads((workdir / "config.json").read_text())
    for section in saved:
        for value in (None, 3, -1, "x", [1], {"a": 1}):
            text = json.dumps(saved | {section: value})
            (tmp_path / "config.json").write_text(text)
            try:
                weights.config_of(str(tmp_path))
            except ConfigError:
                continue


def test_training_reads_no_params(workdir, capsys):
    with pytest.raises(SystemExit):
        main([f"--config.params={workdir}", f"--workdir={workdir.parent}/new"])
    assert "config.params" in capsys.readouterr().err
    assert not os.path.exists(f"{workdir.parent}/new")


def test_what_changes_speed_alone_may_differ_and_is_told(caplog):
    saved = {"backbone": {"zero": 3, "remat": True, "width": 8}}
    with caplog.at_level("WARNING"):
        weights.same(saved, {"backbone": {"zero": 2, "remat": False, "width": 8}}, "generator", "")
    assert "config.generator.backbone.zero = 2 from here on; it was 3" in caplog.text
    with pytest.raises(ConfigError, match=r"generator\.backbone\.width = 9: expected 8, as saved"):
        weights.same(saved, {"backbone": saved["backbone"] | {"width": 9}}, "generator", "as saved")
