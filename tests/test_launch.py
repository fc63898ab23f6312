"""Launch scripts: what they would run, and what they refuse. No cloud is asked."""

import os
import pathlib
import shutil
import subprocess

import pytest

ROOT = pathlib.Path(__file__).parent.parent
SCRIPTS = sorted(p.name for p in (ROOT / "launch").glob("*.sh"))
SLICE = dict(TPU="mine", ZONE="us-east5-b", TYPE="v5litepod-64", REPOSITORY="https://host/it")
CLUSTER = dict(CLUSTER="mine", ZONE="us-east5-b", PROJECT="ours", TYPE="v5litepod-64")


def call(script, *words, code=0, **environment):
    paths = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    done = subprocess.run(
        [ROOT / "launch" / script, *words], capture_output=True, text=True, timeout=60,
        env=paths | environment, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert done.returncode == code, done.stderr
    return done.stdout if code == 0 else done.stderr


@pytest.mark.parametrize("script", SCRIPTS)
def test_scripts_are_well_formed(script):
    subprocess.run(["bash", "-n", ROOT / "launch" / script], check=True)
    if shutil.which("shellcheck"):
        subprocess.run(["shellcheck", "-x", f"launch/{script}"], check=True, cwd=ROOT)


def test_a_dry_run_prints_the_commands_of_a_machine_of_ones_own():
    said = call("local.sh", "--dry-run", "configs/var.py:tiny", "--config.seed=1")
    assert said.split() == [
        ".venv/bin/python", "-m", "nexttok.main", "--config=configs/var.py:tiny",
        "--workdir=runs/var_tiny", "--config.seed=1",
    ]  # fmt: skip
    lines = call("local.sh", "--dry-run", "configs/var.py", PROCESSES="2").splitlines()
    assert [line.split()[-1] for line in lines] == ["--process=0", "--process=1"]
    assert all("--workdir=runs/var_default" in x and "--processes=2" in x for x in lines)


def test_a_dry_run_prints_the_commands_of_a_slice():
    made = call("tpu_vm.sh", "--dry-run", "create", SPOT="1", SLICES="2", **SLICE)
    assert made.startswith("gcloud compute tpus queued-resources create mine ")
    for word in (
        "--accelerator-type=v5litepod-64",
        "--spot",
        "--node-count=2",
        "--zone=us-east5-b",
    ):
        assert word in made
    ran = call("tpu_vm.sh", "--dry-run", "run", "configs/var.py:tiny", "--config.seed=1", **SLICE)
    for word in ("--worker=all", "nexttok.main", "configs/var.py:tiny", "--config.seed=1"):
        assert word in ran
    watched = call("tpu_vm.sh", "--dry-run", "watch", "configs/var.py:tiny", **SLICE)
    assert [x for x in watched.splitlines() if x[0] == "#"] == ["# NONE", "# ACTIVE", "# SUSPENDED"]


def test_a_dry_run_prints_the_job_of_a_queue_and_of_a_cluster():
    said = call("slurm.sh", "--dry-run", "configs/var.py:imagenet256_d16", NODES="4", PARTITION="a")
    for word in ("--nodes=4", "--partition=a", "--requeue", "srun", "var.py:imagenet256_d16"):
        assert word in said
    said = call("gke.sh", "--dry-run", "create", "configs/var.py:imagenet256_d16", **CLUSTER)
    assert said.startswith("xpk workload create --cluster=mine ")
    assert "--workload=var-imagenet256-d16" in said


def test_a_sweep_runs_here_or_is_shared_out_over_slices():
    said = call("sweep.sh", "--dry-run", "configs/vqvae.py:tiny", "--sweep", "seed=0;1")
    assert said.split() == [
        ".venv/bin/python", "-m", "nexttok.main", "--config=configs/vqvae.py:tiny",
        "--workdir=runs/vqvae_tiny_sweep", "--sweep", "seed=0\\;1", "--mode=sweep",
    ]  # fmt: skip
    slices = SLICE | dict(TPUS="a b", WORKDIR="/gcs/runs/it")
    said = call("sweep.sh", "--dry-run", "configs/vqvae.py", **slices)
    for i, name in enumerate("ab"):
        assert f"tpu-vm ssh {name} " in said
        assert f"--share={i}/2" in said
    assert said.count("--mode=sweep") == said.count("/gcs/runs/it") // 2 == 2


@pytest.mark.parametrize(
    ("script", "words", "environment", "message"),
    [
        ("tpu_vm.sh", ["delete"], SLICE, "needs --yes where nobody can answer"),
        ("tpu_vm.sh", ["watch", "configs/var.py"], SLICE, "needs --yes where nobody can answer"),
        ("gke.sh", ["delete"], CLUSTER | dict(NAME="it"), "needs --yes where nobody can answer"),
        ("tpu_vm.sh", ["watch", "c.py"], SLICE | dict(SPOT="1"), "WORKDIR: expected a shared"),
        ("tpu_vm.sh", ["create"], SLICE | dict(TYPE=""), "TYPE: expected an accelerator type"),
        ("tpu_vm.sh", ["erase"], SLICE, "erase: expected create | setup"),
        ("local.sh", [], {}, "expected a config"),
        ("sweep.sh", [], {}, "expected a config"),
        ("sweep.sh", ["c.py"], dict(TPUS="a"), "WORKDIR: expected a folder that the hosts"),
    ],
)
def test_nothing_is_deleted_unasked_and_mistakes_are_named(script, words, environment, message):
    assert message in call(script, *words, code=2, **environment)
