"""Tokens on disk: whole, resumable, refused when they are another tokenizer's, and trained from."""

import functools
import itertools
import json

import jax
import numpy as np
import pytest
from array_record.python.array_record_module import ArrayRecordWriter

from nexttok import experiment, token_files
from nexttok.config import ConfigError
from nexttok.main import load_config
from tests.test_configs import ROOT


@functools.cache
def setting(name="llamagen", **changes):
    """A tiny experiment, one pass, and parameters of its tokenizer."""
    config = load_config(f"{ROOT}/configs/{name}.py:tiny")
    config.cached_passes = 1
    for key, value in changes.items():
        config[key] = value
    exp = experiment.resolve(config)
    params = jax.jit(exp.tokenizer.init)(jax.random.key(0))
    if params.get("quantizer"):
        rows = params["quantizer"]["embedding"]
        spread = {"embedding": jax.random.normal(jax.random.key(1), rows.shape)}
        params["quantizer"] = params["quantizer"] | spread
    return exp, params


@pytest.fixture(autouse=True)
def _small_shards(monkeypatch):
    monkeypatch.setattr(token_files, "SHARD", 500)


def written(folder):
    return {p.name: p.read_bytes() for p in folder.glob("*.array_record")}


def test_shards_hold_every_example_once_and_do_not_depend_on_who_wrote_them(tmp_path):
    exp, params = setting()
    token_files.tokenize(exp, params, tmp_path / "a")
    files = written(tmp_path / "a")
    assert len(files) == 3  # 1,400 digits
    gone = sorted(files)[1]
    (tmp_path / "a" / gone).unlink()
    (tmp_path / "a" / (gone + ".partial77")).write_bytes(b"half")
    stamp = (tmp_path / "a" / sorted(files)[0]).stat().st_mtime_ns
    token_files.tokenize(exp, params, tmp_path / "a")  # goes on with what lacks
    assert written(tmp_path / "a") == files
    assert (tmp_path / "a" / sorted(files)[0]).stat().st_mtime_ns == stamp
    wanted = token_files.manifest(exp, params)
    assert json.loads((tmp_path / "a" / "manifest.json").read_text()) == wanted
    assert wanted["fields"] == {"ids": {"shape": [16], "dtype": "int32"}}


def test_processes_write_their_own_shards(tmp_path, monkeypatch):
    exp, params = setting()
    token_files.tokenize(exp, params, tmp_path / "one")
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    for index, count in ((0, 2), (1, 3)):
        monkeypatch.setattr(jax, "process_index", lambda i=index: i)
        token_files.tokenize(exp, params, tmp_path / "two")
        assert len(written(tmp_path / "two")) == count
    assert written(tmp_path / "two") == written(tmp_path / "one")


@pytest.mark.parametrize(
    "name", ["mar", *(pytest.param(n, marks=pytest.mark.slow) for n in ("llamagen", "var"))]
)
def test_batches_are_the_tokens_of_the_data_and_resume(tmp_path, name):
    exp, params = setting(name)
    loader = token_files.cached_loader(exp, params, str(tmp_path))
    batches = loader(0)
    first, second = next(batches), next(batches)
    batches.close()
    again = loader(1)
    jax.tree.map(np.testing.assert_array_equal, next(again), second)
    again.close()
    wanted = {"llamagen": {"ids"}, "mar": {"values"}, "var": {"ids", "values"}}[name]
    assert set(first) == wanted | {"label"}
    assert len(first["label"]) == exp.train["generator"].batch_size
    folder = next(tmp_path.iterdir())
    every = list(token_files._examples(exp, range(0, token_files.BATCH)))
    images = np.stack([row["image"] for row in every])
    key = token_files.stream(jax.random.key(exp.config.seed), "posterior", 0)
    tokens = jax.jit(exp.tokenizer.encode)(params, images, key)
    source = token_files.pygrain.ArrayRecordDataSource(
        [str(p) for p in sorted(folder.glob("*.array_record"))]
    )
    fields = token_files.manifest(exp, params)["fields"]
    for i in (0, 3, 17):
        record = token_files._parse(source[i], fields)
        assert record["label"] == every[i]["label"]
        for field in fields:
            np.testing.assert_allclose(record[field], getattr(tokens, field)[i], atol=1e-5)


def test_tokens_of_another_tokenizer_or_config_are_refused(tmp_path):
    exp, params = setting()
    token_files.tokenize(exp, params, tmp_path)
    other = params | {"quantizer": {"embedding": params["quantizer"]["embedding"] + 1.0}}
    with pytest.raises(ConfigError, match=r"token_dataset = .*tokenizer\.sha256 is"):
        token_files.loader(exp, other, tmp_path)
    with pytest.raises(ConfigError, match=r"tokenizer\.sha256"):
        token_files.tokenize(exp, other, tmp_path)
    another, _ = setting(seed=3)
    with pytest.raises(ConfigError, match="seed is 0, not 3"):
        token_files.loader(another, params, tmp_path)
    sorted(tmp_path.glob("*.array_record"))[0].unlink()
    with pytest.raises(ConfigError, match=r"every shard; 1 lack"):
        token_files.loader(exp, params, tmp_path)
    with pytest.raises(ConfigError, match=r"a folder that --mode=tokenize wrote"):
        token_files.loader(exp, params, tmp_path / "nowhere")


def test_what_only_training_reads_has_no_part_in_the_hash():
    _, params = setting()
    assert token_files.digest(params) == token_files.digest(params | {"discriminator": {"a": 1.0}})


@pytest.mark.parametrize("place", [0.02, 0.5])
def test_a_damaged_shard_is_named(tmp_path, place):
    exp, params = setting()
    token_files.tokenize(exp, params, tmp_path)
    path = sorted(tmp_path.glob("*.array_record"))[1]
    data = bytearray(path.read_bytes())
    data[int(place * len(data))] ^= 0xFF
    path.write_bytes(data)

    def epoch():
        batches = token_files.loader(exp, params, tmp_path)(0)
        for _ in range(-(-1400 // exp.train["generator"].batch_size)):
            next(batches)

    with pytest.raises(token_files.DamagedShard, match=f"shard {path} is damaged; delete it"):
        epoch()
    path.unlink()
    token_files.tokenize(exp, params, tmp_path)
    next(token_files.loader(exp, params, tmp_path)(0))


def test_records_that_no_tokenizer_writes_are_refused(tmp_path):
    """Whole shards by their check sums, yet too short, or with ids beyond the codebook."""
    exp, params = setting()
    token_files.tokenize(exp, params, tmp_path)
    path = sorted(tmp_path.glob("*.array_record"))[1]
    good, vocab = np.zeros(17, np.int32), exp.tokenizer.spec.vocab
    for place, value, said in (
        (0, 10, r"label lie outside 0 \.\. 9"),
        (0, -1, "label lie outside"),
        (5, vocab, rf"ids lie outside 0 \.\. {vocab - 1}"),
        (5, -1, "ids lie outside"),
        (None, 0, "a record of 64 bytes among tokens of 68"),
    ):
        record = good[:16].copy() if place is None else good.copy()
        record[place or 0] = value
        writer = ArrayRecordWriter(str(path), "group_size:1")
        for _ in range(500):
            writer.write(record.tobytes())
        writer.close()
        batches = token_files.loader(exp, params, tmp_path)(0)
        epoch = itertools.islice(batches, -(-1400 // exp.train["generator"].batch_size))
        with pytest.raises(token_files.DamagedShard, match=said):
            list(epoch)


def test_values_that_are_not_finite_are_refused():
    exp, _ = setting("givt")
    tokens = {"label": np.asarray(3, np.int32), "values": np.float32([[0.0, np.nan]])}
    with pytest.raises(token_files.DamagedShard, match="not finite"):
        token_files._checked(tokens, exp)


@pytest.mark.parametrize("text", [b"[", b"[1]", b"[" * 100_000, b"\xff\xfe", b""])
def test_manifests_that_are_none_are_refused(tmp_path, text):
    (tmp_path / "manifest.json").write_bytes(text)
    with pytest.raises(ConfigError, match=r"token_dataset = .*a folder that --mode=tokenize wrote"):
        token_files.check_manifest(tmp_path, {"format": 1})
