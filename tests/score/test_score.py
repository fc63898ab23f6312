"""python -m nexttok.score: numbers of official code, from files to files, resumed at any point."""

import json
import os
import pathlib
import re
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file
from skimage.metrics import structural_similarity

from nexttok.config import ConfigError
from nexttok.score import features, measures, networks, reference
from nexttok.score.__main__ import main
from nexttok.score.features import Runner
from nexttok.score.images import open_images
from tests.parity import official
from tests.score.inputs import blocky
from tests.score.test_networks import state
from tests.test_distributed import free_port

ROOT = pathlib.Path(__file__).parent.parent.parent


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A folder with the official weights under their names, and two sets of images."""
    folder = tmp_path_factory.mktemp("files")
    save_file(state(), folder / "inception.safetensors")
    np.savez(folder / "a.npz", blocky(2, 8, 32, 32))
    np.savez(folder / "b.npz", blocky(3, 8, 32, 32) // 2 + 64)
    return folder


def words(files, metrics, *more):
    return [
        str(files / "a.npz"), str(files / "b.npz"), f"--metrics={metrics}", "--batch=8",
        f"--inception={files}/inception.safetensors", f"--cache={files}/cache", *more,
    ]  # fmt: skip


@pytest.fixture(scope="module")
def scored(files):
    """Numbers of the command, and what was computed for them."""
    out = files / "scores.json"
    assert main(words(files, "fid,sfid,is,kid,pr", f"--out={out}")) == 0
    return json.loads(out.read_text())


def test_features_are_those_of_the_official_network(files, scored):
    run = Runner(networks.inception(str(files / "inception.safetensors")), 8)
    images, theirs = open_images(files / "a.npz"), official.load("inception")
    (got,) = features.features(images, run, str(files / "cache"), "kept")
    for name in ("pool", "spatial", "logits"):
        official.close(got[name][:2], theirs[name])


def test_numbers_are_those_of_official_code(scored):
    theirs, ours = official.load("inception"), scored["metrics"]
    for name in ("fid", "sfid", "kid", "is"):
        assert ours[name] == pytest.approx(float(theirs[name]), rel=1e-4), name
    assert scored["images"] == {"real": 8, "samples": 8}
    assert set(scored["protocol"]) == {"inception_crc32", "resize"}


def test_what_is_known_is_not_computed_again(files, scored, monkeypatch, capsys):
    monkeypatch.setattr(Runner, "__call__", None)
    assert main(words(files, "pr,fid")) == 0
    said = dict(line.split() for line in capsys.readouterr().out.splitlines())
    for name, value in said.items():
        assert float(value) == pytest.approx(scored["metrics"][name], rel=1e-5)
    path = files / "reference.npz"
    assert main([str(files / "a.npz"), f"--statistics={path}", *words(files, "")[3:]]) == 0
    with np.load(path) as found:
        assert {k: v.shape for k, v in found.items()} == {
            "mu": (2048,), "sigma": (2048, 2048), "mu_s": (2023,), "sigma_s": (2023, 2023),
        }  # fmt: skip
        assert {v.dtype for v in found.values()} == {np.dtype(np.float64)}
    capsys.readouterr()
    assert main([str(path), *words(files, "fid,sfid")[1:]]) == 0
    said = dict(line.split() for line in capsys.readouterr().out.splitlines())
    for name, value in said.items():
        assert float(value) == pytest.approx(scored["metrics"][name], rel=1e-5)
    assert main([str(path), *words(files, "kid")[1:]]) == 2
    assert "config.real = 0: expected images, 2 or more, for kid" in capsys.readouterr().err


def colours(count=None):
    """A network of mean colours, which may only be called `count` times."""
    calls = []

    def prepare(images):
        calls.append(len(images))
        assert count is None or len(calls) <= count, "stopped"
        return networks.rgb(images)

    apply = lambda params, x: {"pool": x.astype(jnp.float32).mean((1, 2)) * params}
    return networks.Network("colours", prepare, apply, lambda: jnp.float32(2), {}), calls


def test_a_run_that_was_stopped_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr(features, "CHUNK", 4)
    np.save(tmp_path / "x.npy", blocky(0, 11, 6, 5))
    images, root = open_images(tmp_path / "x.npy"), str(tmp_path / "cache")

    def found(network):
        chunks = list(features.features(images, Runner(network, 3), root, "x"))
        assert [len(c["pool"]) for c in chunks] == [4, 4, 3]
        return np.concatenate([c["pool"] for c in chunks])

    with pytest.raises(AssertionError, match="stopped"):
        found(colours(3)[0])
    network, calls = colours()
    whole = found(network)
    assert calls == [3, 1, 3]  # of chunks 1 and 2
    np.testing.assert_allclose(whole, 2 * blocky(0, 11, 6, 5).mean((1, 2)), rtol=1e-5)
    folder = features.folder_of(root, images, network)
    (folder / "000001.npz").write_bytes((folder / "000001.npz").read_bytes()[:100])
    network, calls = colours()
    np.testing.assert_array_equal(found(network), whole)
    assert calls == [3, 1]
    assert sorted(p.name for p in folder.iterdir()) == [f"00000{i}.npz" for i in range(3)]


def test_pairs(tmp_path, monkeypatch):
    x, y = blocky(0, 6, 20, 24), blocky(1, 6, 20, 24)
    np.save(tmp_path / "x.npy", x)
    np.save(tmp_path / "y.npy", y)
    np.save(tmp_path / "short.npy", y[:5])
    pair = lambda params, z: {"lpips": z.astype(jnp.float32).mean((1, 2, 3))[:, None]}
    network = networks.Network("pair", lambda z: z, pair, lambda: jnp.float32(0), {})
    monkeypatch.setattr(networks, "lpips", lambda paths: network)
    monkeypatch.setattr(measures, "CHUNK", 4)
    request = measures.Request(
        str(tmp_path / "x.npy"), str(tmp_path / "y.npy"), ("psnr", "ssim", "lpips"), lpips="a,b",
        cache=str(tmp_path / "cache"),
    )  # fmt: skip
    found = measures.score(request)["metrics"]
    square = np.square(x.astype(float) - y).mean((1, 2, 3))
    assert found["psnr"] == pytest.approx((10 * np.log10(255**2 / square)).mean(), rel=1e-6)
    each = [structural_similarity(a, b, channel_axis=-1) for a, b in zip(x, y, strict=True)]
    assert found["ssim"] == pytest.approx(np.mean(each), rel=1e-5)
    assert found["lpips"] == pytest.approx((x.mean() + y.mean()) / 2, rel=1e-5)
    request = measures.Request(request.real, str(tmp_path / "short.npy"), ("psnr",))
    with pytest.raises(ConfigError, match="expected 6 images"):
        measures.score(request)


@pytest.mark.parametrize(
    ("metrics", "message"),
    [
        ("fid", r"pt_inception-2015-12-05-6726825d\.pth of .*pytorch-fid.*--mode=eval"),
        ("cmmd", r"openai/clip-vit-large-patch14-336 for cmmd; .*psnr and ssim"),
        ("lpips,psnr", r"vgg16-397923af\.pth"),
        ("fad", r"config\.metrics = 'fad': expected fid"),
        ("", r"REAL FAKE --metrics=NAMES"),
    ],
)
def test_missing_files_and_unknown_names_are_told(tmp_path, capsys, metrics, message):
    np.save(tmp_path / "x.npy", blocky(0, 6, 20, 24))
    both = [str(tmp_path / "x.npy")] * 2
    assert main([*both, f"--metrics={metrics}"]) == 2
    said = capsys.readouterr().err
    assert re.search(message, said), said
    assert said.count("\n") == 1
    assert [p.name for p in tmp_path.iterdir()] == ["x.npy"]


@pytest.mark.slow
def test_two_processes_find_the_numbers_of_one(files, scored):
    port, out = free_port(), files / "two.json"
    several = [f"--coordinator=localhost:{port}", "--processes=2"]
    flags = words(files, "fid,sfid,is,kid,pr", f"--out={out}", *several)
    flags[5] = f"--cache={files}/other"
    code = (
        "import sys; from nexttok.score import features, measures; features.CHUNK = 3; "
        "from nexttok.score.__main__ import main; sys.exit(main(sys.argv[1:]))"
    )
    both = [
        subprocess.Popen(
            [sys.executable, "-c", code, *flags, f"--process={i}"], cwd=ROOT,
            env=os.environ | {"XLA_FLAGS": ""},
        )
        for i in range(2)
    ]  # fmt: skip
    assert [p.wait(timeout=600) for p in both] == [0, 0]
    found = json.loads(out.read_text())
    for name, value in scored["metrics"].items():
        assert found["metrics"][name] == pytest.approx(value, rel=1e-4, abs=1e-9), name


@pytest.mark.slow
def test_pytorch_fid(files):
    request = measures.Request(
        str(files / "a.npz"), str(files / "b.npz"), ("fid",),
        inception=str(files / "inception.safetensors"), resize="pytorch",
        cache=str(files / "cache"), batch=8,
    )  # fmt: skip
    theirs = float(official.load("inception")["fid_pytorch"])
    assert measures.score(request)["metrics"]["fid"] == pytest.approx(theirs, rel=1e-4)


def test_a_reference_round_trips(tmp_path):
    pair = np.arange(3.0), np.eye(3)
    reference.write(tmp_path / "deep" / "r.npz", {"pool": pair})
    found, images = reference.read(tmp_path / "deep" / "r.npz")
    assert not images
    np.testing.assert_array_equal(found["pool"][1], np.eye(3))
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["r.npz"]
