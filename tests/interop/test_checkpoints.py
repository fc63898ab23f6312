"""Reading checkpoint files: every format, and nothing that could run."""

import os
import pathlib
import pickle
import zipfile

import numpy as np
import pytest
from safetensors.numpy import save_file

from nexttok.config import ConfigError
from nexttok.interop import lpips
from nexttok.interop.checkpoints import Converter, pick, read
from nexttok.nn.lpips import STAGES

FIXTURES = pathlib.Path(__file__).parent / "fixtures"


@pytest.mark.parametrize("name", ["zipped", "legacy"])
def test_files_written_by_pytorch(name):
    """Values as they were saved: views, half precisions, parameters, nested dicts, plain values."""
    state = read(str(FIXTURES / f"{name}.pth"))
    assert state["steps"] == 3
    assert state["size"] == (2, 3)
    np.testing.assert_array_equal(state["ema"]["nested"]["x"], [True, False])
    arrays = pick(state, "missing", "model")
    base = np.arange(24, dtype=np.float32)
    np.testing.assert_array_equal(arrays["view"], base.reshape(4, 6).T[1:4, ::2])
    np.testing.assert_array_equal(arrays["whole"], base.reshape(2, 12))
    np.testing.assert_array_equal(arrays["bf16"].astype(np.float32), [1.5, -2.0, 0.0078125])
    assert arrays["bf16"].dtype.name == "bfloat16"
    np.testing.assert_array_equal(arrays["fp16"], np.float16([[0.5], [65504.0]]))
    np.testing.assert_array_equal(arrays["param"], [1.0, 2.0])
    assert (arrays["count"].shape, int(arrays["count"])) == ((), 7)
    assert arrays["empty"].shape == (0, 3)


class Call:
    """Pickles as the call of a function."""

    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


def zipped(path, payload: bytes, **storages: bytes):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", payload)
        for key, data in storages.items():
            archive.writestr(f"archive/data/{key}", data)
    return str(path)


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize(
    "attack",
    [
        lambda mark: Call(os.system, f"touch {mark}"),
        lambda mark: Call(eval, f"open({mark!r}, 'w')"),
        lambda mark: Call(getattr, {}, "clear"),
        lambda mark: {"w": np.ones(2)},
    ],
    ids=["system", "eval", "getattr", "numpy"],
)
def test_files_that_would_run_code_are_refused(tmp_path, attack, legacy):
    mark, path = tmp_path / "ran", tmp_path / "bad.pth"
    payload = pickle.dumps({"model": attack(str(mark))}, protocol=2)
    if legacy:
        header = [pickle.dumps(x, protocol=2) for x in (0x1950A86A20F9469CFC6C, 1001, {})]
        path.write_bytes(b"".join([*header, payload, pickle.dumps([], protocol=2)]))
    else:
        zipped(path, payload)
    with pytest.raises(ConfigError, match=r"config\.checkpoint = .*no tensor or plain container"):
        read(str(path))
    assert not mark.exists()


def tensor_pickle(size, stride, offset=0):
    """{"w": a tensor over the 4 floats of storage "0"}, in opcodes."""

    def plain(value):
        return pickle.dumps(value, protocol=2)[2:-1]  # without header and stop

    storage = b"(" + plain("storage") + b"ctorch\nFloatStorage\n" + plain("0") + plain("cpu")
    storage += plain(4) + b"tQ"
    tensor = b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + plain(offset) + plain(size)
    tensor += plain(stride) + plain(False) + plain(None) + b"tR"
    return b"\x80\x02}" + plain("w") + tensor + b"s."


def test_tensors_stay_within_their_storage(tmp_path):
    data = np.arange(4, dtype=np.float32).tobytes()
    good = zipped(tmp_path / "good.pt", tensor_pickle((2, 2), (1, 2)), **{"0": data})
    np.testing.assert_array_equal(read(good)["w"], [[0, 2], [1, 3]])
    for i, bad in enumerate((((3, 2), (2, 1)), ((2,), (-1,)), ((2,), (1, 1)), ((1,), (1,), 4))):
        path = zipped(tmp_path / f"bad{i}.pt", tensor_pickle(*bad), **{"0": data})
        with pytest.raises(ConfigError, match="leaves its storage"):
            read(path)


def test_other_formats_and_bad_files(tmp_path):
    state = {"a.weight": np.arange(3, dtype=np.float32)}
    np.savez(tmp_path / "a.npz", **state)
    save_file(state, str(tmp_path / "a.safetensors"))
    for name in ("a.npz", "a.safetensors"):
        np.testing.assert_array_equal(read(str(tmp_path / name))["a.weight"], state["a.weight"])
    np.savez(tmp_path / "objects.npz", a=np.asarray([{}], dtype=object))
    (tmp_path / "noise.ckpt").write_bytes(b"no weights here")
    (tmp_path / "other.txt").write_bytes(b"")
    whole = (FIXTURES / "zipped.pth").read_bytes()
    (tmp_path / "cut.pth").write_bytes(whole[: len(whole) // 2])
    for name in ("objects.npz", "noise.ckpt", "other.txt", "cut.pth", "absent.pth"):
        with pytest.raises(ConfigError, match=rf"config\.tokenizer\.file = .*{name}"):
            read(str(tmp_path / name), "tokenizer.file")


def test_pick_chooses_the_root_and_strips_wrappers():
    w = np.zeros(1)
    assert set(pick({"model": {"module.a": w}, "ema": {"_orig_mod.b": w}}, "ema", "model")) == {"b"}
    assert set(pick({"model": {"module.a": w, "n": 3}}, "ema", "model")) == {"a"}
    assert set(pick({"module.module.a": w}, "ema")) == {"a"}
    assert set(pick({"module.a": w, "b": w})) == {"module.a", "b"}
    with pytest.raises(ConfigError, match=r"\['steps'\]: expected arrays, or one of \('ema',\)"):
        pick({"steps": 3}, "ema")


def test_converter_transposes_and_keeps_accounts():
    draw = np.random.default_rng(0).normal
    state = {
        "fc.weight": draw(size=(2, 3)),
        "fc.bias": draw(size=2),
        "point.weight": draw(size=(2, 3, 1, 1)),
        "conv.weight": draw(size=(4, 3, 5, 5)),
        "norm.weight": draw(size=2),
        "norm.bias": draw(size=2),
    }
    reader = Converter(state, "toy")
    fc, point = reader.linear("fc", 3, 2), reader.linear("point", 3, 2, bias=False, ones=2)
    conv, norm = reader.conv("conv", 3, 4, 5, bias=False), reader.norm("norm", 2)
    np.testing.assert_allclose(fc["kernel"], state["fc.weight"].T, rtol=1e-6)
    np.testing.assert_allclose(point["kernel"], state["point.weight"][:, :, 0, 0].T, rtol=1e-6)
    np.testing.assert_allclose(conv["kernel"][1, 2], state["conv.weight"][:, :, 1, 2].T, rtol=1e-6)
    np.testing.assert_allclose(norm["scale"], state["norm.weight"], rtol=1e-6)
    assert fc["kernel"].dtype == np.float32
    assert reader.finish({"fc": fc})["fc"] is fc
    reader = Converter(state | {"extra": np.zeros(1)}, "toy")
    reader.ignore(r"norm\.")
    reader.linear("fc", 3, 4)
    reader.take("absent", (1,))
    with pytest.raises(ConfigError) as error:
        reader.finish({})
    assert str(error.value) == (
        "toy: fc.weight is (2, 3) instead of (4, 3); fc.bias is (2,) instead of (4,); "
        "missing absent; unknown point.weight; unknown conv.weight; unknown extra"
    )


def test_lpips_weights_come_from_one_file_or_two(tmp_path):
    vgg, index, inputs = {"classifier.0.bias": np.zeros(3, np.float32)}, 0, 3
    for channels, convs in STAGES:
        for _ in range(convs):
            vgg[f"features.{index}.weight"] = np.zeros((channels, inputs, 3, 3), np.float32)
            vgg[f"features.{index}.bias"] = np.full(channels, index, np.float32)
            inputs, index = channels, index + 2
        index += 1
    lins = {
        f"lin{i}.model.1.weight": np.full((1, c, 1, 1), i + 1, np.float32)
        for i, (c, _) in enumerate(STAGES)
    }
    paths = [str(tmp_path / "vgg.npz"), str(tmp_path / "lins.npz")]
    for path, state in zip(paths, (vgg, lins), strict=True):
        np.savez(path, **state)
    params = lpips.load(", ".join(paths))
    assert float(params["vgg"]["conv4_2"]["bias"][0]) == 28.0
    np.testing.assert_array_equal(params["scale2"], np.full(256, 3.0))
    with pytest.raises(ConfigError, match=r"missing lin0\.model\.1\.weight"):
        lpips.load(paths[0])
    with pytest.raises(ConfigError, match=r"tokenizer\.perceptual_checkpoint = "):
        lpips.load(str(tmp_path / "none.pth"))
