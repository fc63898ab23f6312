"""The command line, whole: train, resume, evaluate, sample, compile; and its error messages."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

from nexttok import main as cli
from nexttok import run
from nexttok.config import ConfigError
from nexttok.experiment import resolve

ROOT = pathlib.Path(__file__).parent.parent
CONFIG = f"--config={ROOT}/configs/flextok.py:tiny"
SMALL = [
    "--config.train.tokenizer.steps=20", "--config.train.generator.steps=20",
    "--config.eval.classifier_steps=20", "--config.eval.samples=50",
]  # fmt: skip


def command(*words):
    return [sys.executable, "-m", "nexttok.main", *words]


def environment(**changes):
    """One device; the rest as in the tests of this process."""
    quick = "--xla_backend_optimization_level=0"
    return os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": quick} | changes


def call(*words, code=0):
    done = subprocess.run(
        command(*words), cwd=ROOT, env=environment(), capture_output=True, text=True, check=False
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.fixture(scope="module", name="workdir")
def _workdir(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("run")
    call(CONFIG, f"--workdir={workdir}", *SMALL)
    return workdir


def test_training_ends_in_numbers_pictures_and_a_report(workdir):
    results = json.loads((workdir / "results.json").read_text())
    prefixes = results["reconstruction"]["prefixes"]
    assert [row["tokens"] for row in prefixes] == [1, 2, 4, 8]
    assert 0 < results["samples"]["classifier_accuracy"] <= 1
    assert results["samples"]["network_calls"] == 8
    assert results["likelihood"]["bits_per_token"] > 0
    for name in ("reconstructions", "samples", "growing"):
        picture = np.asarray(Image.open(workdir / "pictures" / f"{name}.png"))
        assert picture.std() > 20
        assert len(np.unique(picture)) > 20
    lines = [json.loads(x) for x in (workdir / "metrics.jsonl").read_text().splitlines()]
    steps = [(r["stage"], r["step"]) for r in lines]
    assert steps == [(s, n) for s in ("tokenizer", "generator") for n in (10, 20)]
    assert {p.parent.name for p in (workdir / "tensorboard").rglob("events*")} == {
        "tokenizer",
        "generator",
    }
    assert (workdir / "report.html").stat().st_size > 50_000


def test_eval_again_gives_the_same_results(workdir):
    before = (workdir / "results.json").read_text()
    call(CONFIG, f"--workdir={workdir}", "--mode=eval", *SMALL)
    assert (workdir / "results.json").read_text() == before


def test_sample_draws_as_many_tokens_as_asked(workdir):
    call(CONFIG, f"--workdir={workdir}", "--mode=sample", "--config.sample.tokens=3",
         "--config.sample.per_class=2", "--config.sample.guidance=3.0", *SMALL)  # fmt: skip
    with np.load(workdir / "samples.npz") as saved:
        assert saved["tokens"].shape == (20, 3)
        assert saved["images"].shape == (20, 16, 16, 1)
        assert np.isfinite(saved["images"]).all()


def test_another_config_cannot_take_over_a_workdir(workdir):
    said = call(CONFIG, f"--workdir={workdir}", *SMALL, "--config.tokenizer.flow_steps=9", code=2)
    assert "config.tokenizer.flow_steps = 9: expected 4" in said


def test_a_trained_tokenizer_serves_another_run_with_cached_tokens(workdir, tmp_path):
    call(CONFIG, f"--workdir={tmp_path}", *SMALL, f"--config.tokenizer_checkpoint={workdir}",
         "--config.cached_passes=1")  # fmt: skip
    a, b = (json.loads((d / "results.json").read_text()) for d in (workdir, tmp_path))
    assert a["reconstruction"] == b["reconstruction"]
    assert not (tmp_path / "checkpoints" / "tokenizer").exists()
    manifest = json.loads(next(tmp_path.glob("tokens-*/manifest.json")).read_text())
    assert manifest["fields"]["ids"]["shape"] == [8]
    assert manifest["examples"] >= 1300
    said = call(CONFIG, f"--workdir={tmp_path}", *SMALL, "--mode=eval", code=2)
    assert f"config.tokenizer_checkpoint = '': expected '{workdir}', as" in said


def test_sigkill_at_a_random_moment_changes_nothing(workdir, tmp_path):
    words = command(CONFIG, f"--workdir={tmp_path}", *SMALL)
    process = subprocess.Popen(
        words, cwd=ROOT, env=environment(JAX_COMPILATION_CACHE_DIR=""),  # killed, it would harm it
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    metrics = tmp_path / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while not (metrics.exists() and metrics.stat().st_size) and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(np.random.default_rng().uniform(0, 3))
    process.send_signal(signal.SIGKILL)
    process.wait()
    call(CONFIG, f"--workdir={tmp_path}", *SMALL)
    assert (tmp_path / "results.json").read_text() == (workdir / "results.json").read_text()

    def losses(path):
        rows = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
        return [(r["stage"], r["step"], r["loss"]) for r in rows]

    assert losses(tmp_path) == losses(workdir)


def test_compile_prints_and_writes_what_programs_cost(tmp_path):
    said = call(CONFIG, "--mode=compile", f"--workdir={tmp_path}/new")
    rows = json.loads((tmp_path / "new" / "compile.json").read_text())["here"]
    assert [r["program"] for r in rows] == ["tokenizer step", "generator step", "sampler"]
    for row in rows:
        assert row["program"] in said
        assert row["bytes"] > 1e5
        assert row["unknown_loops"] == 0
        # the step also has an optimizer, and leaves out what XLA sees is not needed
        assert 0.5 < row["flops"] * row["devices"] / row["model_flops_of_all"] < 1.5
    assert os.listdir(tmp_path / "new") == ["compile.json"]


def test_help_lists_modes_and_keys():
    said = call("--help", CONFIG)
    for word in ("train", "compile", "--workdir", "--config.tokenizer.registers=8", "config.seed"):
        assert word in said


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["--config.tokenizer.widht=3"],
            "config.tokenizer.widht = '3': unknown key; config.tokenizer has",
        ),
        (["--config.seed=abc"], "config.seed = 'abc': expected a value of type int, like 0"),
        (
            ["--config.tokenizer.remat=maybe"],
            "config.tokenizer.remat = 'maybe': expected true or false",
        ),
        (["--config.tokenizer.patch=5"], "config.tokenizer.patch = 5: expected a divisor"),
        (["--config.data.source=tfds:none"], "config.data.source = 'tfds:none'"),
        (["--config.mesh.tensor=3"], "config.mesh ="),
        (["--mode=eval"], "expected the workdir of a trained run"),
        (
            ["--mode=compile", "--topology=v9:2x2"],
            "--topology = 'v9:2x2': expected a TPU topology such as v5p:2x2x1",
        ),
        (
            ["--config.train.generator.optimizer=lamb"],
            "config.train.generator.optimizer = 'lamb': expected adamw",
        ),
        (["--config.train.generator.warmup=61"], "config.train.generator.warmup = 61: expected 0"),
        (["--config.tokenizer_checkpoint=nowhere"], "config.tokenizer_checkpoint = 'nowhere'"),
        (
            [
                "--config.features.name=dinov2",
                "--config.features.preset=small",
                "--config.features.checkpoint=none.pth",
                "--config.tokenizer.align_weight=1.0",
                "--config.tokenizer.align_layer=0",
            ],
            "config.features.checkpoint = 'none.pth': expected files that exist",
        ),
        (
            ["--config.mesh.data=1", "--config.mesh.tensor=8"],
            "config.mesh.tensor = 8: expected a divisor of 85",
        ),
        (["--workdir=gs://bucket/run"], "--workdir = 'gs://bucket/run': expected a local folder"),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(words, message, tmp_path, capsys):
    workdir = tmp_path / "out"
    with pytest.raises(SystemExit) as stopped:
        cli.main([CONFIG, f"--workdir={workdir}", *words])
    assert stopped.value.code == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert said.startswith("error: ")
    assert message in said
    assert not workdir.exists()


def test_a_data_set_without_held_out_images_is_refused_before_training(tmp_path, capsys):
    for label in ("a", "b"):
        (tmp_path / "images" / label).mkdir(parents=True)
        image = Image.fromarray(np.zeros((8, 8), np.uint8))
        image.save(tmp_path / "images" / label / "0.png")
    words = [CONFIG, f"--workdir={tmp_path}/out", f"--config.data.source=folder:{tmp_path}/images",
             "--config.data.num_classes=2"]  # fmt: skip
    with pytest.raises(SystemExit):
        cli.main(words)
    assert "readable images for the test split" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_samples_of_every_class_are_drawn_when_their_numbers_differ(tmp_path):
    exp = resolve(cli.load_config(f"{ROOT}/configs/flextok.py:tiny"))
    images = np.random.default_rng(0).uniform(-1, 1, (15, 16, 16, 1)).astype(np.float32)
    labels = np.arange(15, dtype=np.int32) % 10
    shown = run.draw_samples(exp, {"labels": labels, "images": {8: images}}, str(tmp_path))
    assert [np.asarray(Image.open(path)).std() > 20 for path in shown] == [True]


def test_sigterm_ends_the_command_with_its_status(tmp_path):
    process = subprocess.Popen(
        command(CONFIG, f"--workdir={tmp_path}", "--config.train.tokenizer.steps=100000"),
        cwd=ROOT, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    metrics = tmp_path / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while not (metrics.exists() and metrics.stat().st_size) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    said = process.communicate()[1]
    assert process.returncode == 143, said
    assert "SIGTERM: stage tokenizer saved at step" in said
    assert "Traceback" not in said


def test_config_files_and_variants_are_checked():
    with pytest.raises(ConfigError, match=r"--config = 'nothing\.py'"):
        cli.load_config("nothing.py")
    with pytest.raises(ConfigError, match=r"variant 'huge': expected digits \| tiny"):
        cli.load_config(f"{ROOT}/configs/flextok.py:huge")


def test_overrides_are_typed_like_what_they_replace():
    config = cli.load_config(f"{ROOT}/configs/flextok.py")
    for text in ("seed=3", "tokenizer.levels=5,5,5", "tokenizer.remat=True", "stages=tokenizer",
                 "train.tokenizer.learning_rate=1e-3", "data.source=photos"):  # fmt: skip
        cli.override(config, text)
    assert config.seed == 3
    assert config.tokenizer.levels == (5, 5, 5)
    assert config.tokenizer.remat is True
    assert config.stages == ("tokenizer",)
    assert config.train.tokenizer.learning_rate == 1e-3
    assert config.data.source == "photos"


def test_the_process_starts_again_with_a_tuned_malloc_once(monkeypatch):
    started = []
    monkeypatch.setattr(os, "execve", lambda *call: started.append(call))
    monkeypatch.setattr(cli.platform, "libc_ver", lambda: ("glibc", "2.36"))
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    cli.tune_malloc()
    ((program, arguments, environment),) = started
    assert (program, arguments) == (sys.executable, sys.orig_argv)
    assert "glibc.malloc.hugetlb=1:glibc.malloc.mmap_threshold=" in environment["GLIBC_TUNABLES"]
    monkeypatch.setenv("GLIBC_TUNABLES", environment["GLIBC_TUNABLES"])
    cli.tune_malloc()
    monkeypatch.delenv("GLIBC_TUNABLES")
    monkeypatch.setattr(cli.platform, "libc_ver", lambda: ("", ""))
    cli.tune_malloc()
    assert len(started) == 1


def test_a_workdir_is_named_after_the_config(monkeypatch):
    seen = []
    monkeypatch.setattr(run, "run_train", lambda exp, workdir: seen.append(workdir))
    cli.main(["--config=configs/flextok.py:tiny"])
    cli.main(["--config=configs/flextok.py"])
    assert seen == ["runs/flextok_tiny", "runs/flextok_default"]
