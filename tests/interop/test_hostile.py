"""Files that mean harm: one error that names the field, no code run, no memory beyond their size.

FUZZ=5000 in the environment tries as many examples of each kind.
"""

import io
import json
import os
import pickle
import struct
import tracemalloc
import zipfile

import flax.serialization
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save

from nexttok import importing
from nexttok.config import ConfigError
from nexttok.interop import export
from nexttok.interop.checkpoints import Converter, pick, read
from tests.interop.test_checkpoints import FIXTURES, Call, tensor_pickle, zipped

FUZZ = int(os.environ.get("FUZZ", "25"))
FEW = settings(derandomize=FUZZ == 25, max_examples=FUZZ, deadline=None, database=None)
MEMORY = 2**22  # bytes that refusing a file of a few kilobytes may take
STATE = {"a.weight": np.arange(6, dtype=np.float32).reshape(2, 3), "n": np.int64([3])}


def npz(**arrays):
    made = io.BytesIO()
    np.savez(made, **arrays)
    return made.getvalue()


def npy(header: str, data=b""):
    text = header.encode().ljust(118) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + data


def archive(entries, kind=zipfile.ZIP_STORED):
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", kind) as file:
        for name, data in entries.items():
            file.writestr(name, data)
    return made.getvalue()


def legacy(payload=b"", keys=(), tail=b""):
    header = [pickle.dumps(x, protocol=2) for x in (0x1950A86A20F9469CFC6C, 1001, {})]
    return b"".join([*header, payload, pickle.dumps(list(keys), protocol=2), tail])


def claiming(entries, data=b""):
    head = entries if isinstance(entries, bytes) else json.dumps(entries).encode()
    return struct.pack("<Q", len(head)) + head + data


def entry(shape, start, end, dtype="F32"):
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


def storage_of(count):
    """A legacy file whose one storage claims so many floats."""
    body = tensor_pickle((2, 2), (2, 1))
    plain = lambda value: pickle.dumps(value, protocol=2)[2:-1]
    return legacy(body.replace(plain("cpu") + plain(4), plain("cpu") + plain(count)), ["0"])


GOOD = {
    "a.safetensors": save(STATE),
    "a.npz": npz(**STATE),
    "a.msgpack": flax.serialization.msgpack_serialize({"a": {"weight": STATE["a.weight"]}}),
    "zipped.pth": (FIXTURES / "zipped.pth").read_bytes(),
    "legacy.pth": (FIXTURES / "legacy.pth").read_bytes(),
}
ZEROS = bytes(2**27)
BAD = {
    "header.safetensors": struct.pack("<Q", 10 * 2**30) + b"{}",
    "array.safetensors": claiming({"a": entry([10 * 2**30 // 4], 0, 10 * 2**30)}),
    "short.safetensors": b"\0\0",
    "overlap.safetensors": claiming({"a": entry([1], 0, 4), "b": entry([1], 0, 4)}, b"1234"),
    "negative.safetensors": claiming({"a": entry([-1, -1], 0, 4)}, b"1234"),
    "dtype.safetensors": claiming({"a": entry([1], 0, 4, "F4")}, b"1234"),
    "deep.safetensors": claiming(b"[" * 100_000),
    "list.safetensors": claiming([1, 2]),
    "claim.npz": archive({"a.npy": npy("{'descr': '<f8', 'fortran_order': False, "
                                       "'shape': (1342177280,), }")}),
    "record.npz": archive({"a.npy": npy("{'descr': '|V9999999999', 'fortran_order': False, "
                                        "'shape': (), }")}),
    "less.npz": archive({"a.npy": npy("{'descr': '<f4', 'fortran_order': False, "
                                      "'shape': (-2, -2), }", bytes(16))}),
    "code.npz": archive({"a.npy": npy("{'descr': __import__('os'), 'shape': ()}")}),
    "text.npz": archive({"readme.txt": b"no array"}),
    "bomb.npz": archive({"a.npy": ZEROS}, zipfile.ZIP_DEFLATED),
    "lzma.npz": archive({"a.npy": b"1"}, zipfile.ZIP_LZMA),
    "bomb.pth": archive({"archive/data.pkl": ZEROS}, zipfile.ZIP_DEFLATED),
    "memo.pth": archive({"archive/data.pkl": b"\x80\x02]r\xff\xff\xff\xff."}),
    "put.pth": archive({"archive/data.pkl": b"]p4000000000\n."}),
    "long.pth": archive({"archive/data.pkl": b"\x80\x04\x8e" + struct.pack("<Q", 2**33) + b"."}),
    "frame.pth": archive({"archive/data.pkl": b"\x80\x04\x95" + struct.pack("<Q", 2**33) + b"N."}),
    "nothing.pth": archive({"archive/readme": b"no pickle"}),
    "storage.pth": storage_of(2**33),
    "below.pth": storage_of(-5),
    "empty.pt": b"",
    "scalar.msgpack": flax.serialization.msgpack_serialize(3),
    "list.msgpack": b"\xdd\xff\xff\xff\xff",
    "object.msgpack": flax.serialization.msgpack_serialize({"a": [None, "text"]}),
    "deep.msgpack": b"\x81\xa1a" * 900 + b"\xc0",
}  # fmt: skip


def refused(tmp_path, name, data, load=lambda path: importing.state_of(path)):
    """The error of a file, which is one line, and took little memory."""
    path = tmp_path / name
    path.write_bytes(data)
    tracemalloc.start()
    with pytest.raises(ConfigError) as error:
        load(str(path))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < MEMORY + 4 * len(data), f"{peak:,} bytes"
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 1000
    return str(error.value)


@pytest.mark.parametrize("name", BAD)
def test_files_that_claim_what_they_have_not_are_refused(tmp_path, name):
    refused(tmp_path, name, BAD[name])


def mutated(draw, data):
    """A file cut, with some of its bytes changed."""
    data = bytearray(data[: draw(st.integers(len(data) // 4, len(data)))])
    for _ in range(draw(st.integers(0, 4))):
        data[draw(st.integers(0, len(data) - 1))] = draw(st.integers(0, 255))
    return bytes(data)


def harmless(path):
    """Reads a file, which gives arrays or a ConfigError."""
    try:
        state = importing.state_of(str(path))
    except ConfigError:
        return
    assert all(isinstance(value, np.ndarray) for value in state.values())


@pytest.mark.parametrize("name", GOOD)
def test_damaged_files_are_read_or_refused(tmp_path, name):
    path = tmp_path / name

    @FEW
    @given(st.data())
    def check(data):
        path.write_bytes(mutated(data.draw, GOOD[name]))
        harmless(path)

    path.write_bytes(GOOD[name])
    assert read(str(path))
    check()


@pytest.mark.parametrize("name", ["a.safetensors", "a.npz", "a.msgpack", "a.pth", "a"])
def test_noise_is_refused(tmp_path, name):
    path = tmp_path / name

    @FEW
    @given(st.binary(max_size=200))
    def check(data):
        path.write_bytes(data)
        harmless(path)

    check()


OPCODES = st.sampled_from(
    [b"(", b")", b"]", b"}", b"0", b"1", b"2", b"N", b"K\x03", b"a", b"b", b"R", b"t", b"s", b"u",
     b"e", b"q\x00", b"h\x00", b"Q", b"\x85", b"\x86", b"\x81", b"X\x01\x00\x00\x00a",
     b"ctorch\nFloatStorage\n", b"ctorch._utils\n_rebuild_tensor_v2\n", b"ctorch\nSize\n",
     b"ccollections\nOrderedDict\n", b"cargparse\nNamespace\n", b"cos\nsystem\n"]
)  # fmt: skip


def test_no_sequence_of_opcodes_does_more_than_it_may(tmp_path):
    path, before = tmp_path / "a.pth", np.dtype(np.float32)

    @settings(FEW, max_examples=4 * FUZZ)
    @given(st.lists(OPCODES, max_size=30))
    def check(codes):
        path.write_bytes(archive({"archive/data.pkl": b"\x80\x02" + b"".join(codes) + b"."}))
        harmless(path)

    check()
    assert before == np.dtype("<f4")


def test_opcodes_cannot_change_a_dtype_that_all_share(tmp_path):
    """BUILD calls __setstate__, with which NumPy would swap the bytes of its own float32."""
    state = pickle.dumps((3, ">", None, None, None, -1, -1, 0), protocol=2)[2:-1]
    payload = b"\x80\x02ctorch\nfloat32\n" + state + b"b."
    refused(tmp_path, "a.pth", archive({"archive/data.pkl": payload}))
    assert np.dtype(np.float32).isnative


def test_values_that_no_one_could_print_make_short_errors(tmp_path):
    """A tuple that holds itself twice, thirty times over, as a storage's name."""
    laughs = b"(X\x01\x00\x00\x00at" + b"2\x86" * 30
    name = tensor_pickle((2, 2), (2, 1)).replace(pickle.dumps("0", protocol=2)[2:-1], laughs)
    refused(tmp_path, "a.pth", archive({"archive/data.pkl": name}))


@pytest.mark.parametrize("suffix", [".pth", ".npz", ".msgpack", ".safetensors"])
def test_no_file_runs_code(tmp_path, suffix):
    mark = tmp_path / "ran"
    payload = pickle.dumps({"model": Call(os.system, f"touch {mark}")}, protocol=2)
    zipped(tmp_path / f"a{suffix}", payload)
    with pytest.raises(ConfigError):
        read(str(tmp_path / f"a{suffix}"))
    refused(tmp_path, f"b{suffix}", payload)
    assert not mark.exists()


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (np.float32([1, np.nan]), "x holds values that are not finite"),
        (np.float64([1, 1e300]), "x holds values that are not finite"),
        (np.float16([-np.inf, 0]), "x holds values that are not finite"),
        (np.asarray(["a", "b"]), "x holds <U1 instead of numbers"),
        (np.complex64([1, 2]), "x holds complex64 instead of numbers"),
        (np.zeros(2, "f4,i4"), "instead of numbers"),
        (np.zeros((2, 1), np.float32), r"x is \(2, 1\) instead of \(2,\)"),
    ],
)
def test_weights_that_are_no_numbers_are_refused_by_name(value, said):
    reader = Converter({"x": value}, "toy")
    reader.take("x", (2,))
    with pytest.raises(ConfigError, match=said):
        reader.finish({})


def test_a_huge_view_of_few_numbers_costs_nothing(tmp_path):
    """Strides of 0 make 10^12 numbers of one; its shape is refused before it is copied."""
    payload = tensor_pickle((10**6, 10**6), (0, 0))
    path = zipped(tmp_path / "a.pt", payload, **{"0": bytes(16)})
    reader = Converter(pick(read(path)), "toy")
    reader.take("w", (3,))
    with pytest.raises(ConfigError, match="w is"):
        reader.finish({})


def test_errors_about_many_entries_stay_short():
    state = {f"{'x' * 500}{i}": np.zeros(1) for i in range(1000)}
    with pytest.raises(ConfigError, match="960 more") as error:
        Converter(state, "toy").finish({})
    assert len(str(error.value)) < 10_000


HOSTILE_EXPORTS = {
    "released.safetensors": save(STATE),
    "config.safetensors": save(STATE, {export.KEY: "[" * 100_000}),
    "array.safetensors": save(STATE, {export.KEY: "[]"}),
    "cut.safetensors": save(STATE, {export.KEY: "{}"})[:-1],
}


@pytest.mark.parametrize("name", HOSTILE_EXPORTS)
def test_what_export_did_not_write_is_refused(tmp_path, name):
    load = lambda path: export.header(tmp_path / name, "params")
    said = refused(tmp_path, name, HOSTILE_EXPORTS[name], load)
    assert said.startswith("config.params = ")
