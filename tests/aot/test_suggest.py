"""The search for a mesh, and which programs of which slices are compiled."""

import json

import jax
import pytest

from nexttok import aot, experiment, main
from nexttok.aot import programs, suggest
from nexttok.config import ConfigError
from nexttok.mesh import make_mesh, use_mesh

CONFIG = "configs/llamagen.py:tiny"


@pytest.fixture(scope="module")
def exp():
    return experiment.resolve(main.load_config(CONFIG))


def measured(fits, seconds=lambda flags, mesh: 1.0):
    """A stand-in for compilation; it is told flags by what the program was made from."""
    seen = []

    def measure(program, mesh):
        seen.append((program, dict(mesh.shape)))
        row = {"bytes": 1e9 + program.batch, "capacity": 1e9, "fits": fits(program, mesh)}
        return row | ({"seconds": seconds(program, mesh), "mfu_bound": 0.5,
                       "collective_share": 0.1} if row["fits"] else {})  # fmt: skip

    return measure, seen


def test_the_fastest_of_what_fits_comes_first(exp):
    measure, seen = measured(
        lambda program, mesh: mesh.shape["tensor"] == 1,
        lambda program, mesh: 1.0 / mesh.shape["fsdp"],
    )
    rows = suggest.search(exp, "generator", jax.devices(), measure)
    assert rows[0]["fits"]
    assert "--config.mesh.fsdp=-1" in rows[0]["flags"]
    assert "--config.mesh.tensor=1" in rows[0]["flags"]
    assert {flag for row in rows for flag in row["flags"] if "remat" in flag} == {
        "--config.generator.backbone.remat=False", "--config.generator.backbone.remat=True",
    }  # fmt: skip
    assert {row["flags"][-1] for row in rows} == {"--config.train.generator.accumulate=1"}
    assert [row["fits"] for row in rows] == sorted((row["fits"] for row in rows), reverse=True)
    # 16 ways of fsdp do not divide 8 devices: that candidate is left out, not an error
    # both stages of ZeRO where fsdp divides parameters: on two of the three others
    assert len(rows) == len(seen) == 2 * (1 + 2 + 2)
    assert sum("--config.generator.backbone.zero=2" in row["flags"] for row in rows) == 4


def test_micro_batches_are_tried_where_nothing_fits(exp, monkeypatch):
    monkeypatch.setattr(suggest, "MESHES", suggest.MESHES[:1])
    measure, _ = measured(lambda program, mesh: False)
    rows = suggest.search(exp, "generator", jax.devices(), measure)
    tried = {row["flags"][-1] for row in rows}
    assert len(tried) > 1  # as far as they divide the batch
    assert not any(row["fits"] for row in rows)


def test_flags_of_a_suggestion_are_those_of_the_command_line(exp):
    for flags, config in suggest.candidates(exp.config, "generator", 2):
        told = main.load_config(CONFIG)
        for flag in flags:
            main.override(told, flag.removeprefix("--config."))
        assert told.to_json() == config.to_json()


@pytest.mark.parametrize(
    ("flag", "wanted"),
    [("cached_passes=0", {"image", "label"}), ("cached_passes=2", {"ids", "label"}),
     ("token_dataset=tokens", {"ids", "label"})],
)  # fmt: skip
def test_a_step_is_compiled_for_what_the_run_feeds_it(flag, wanted):
    config = main.load_config(CONFIG)
    config.cached_passes = 0
    main.override(config, flag)
    exp = experiment.resolve(config)
    mesh = make_mesh(exp.mesh)
    with use_mesh(mesh):
        (args, _) = programs.training(exp, "generator", mesh).lower().args_info
    assert set(args[2]) == wanted


@pytest.mark.slow
def test_a_program_is_compiled_by_name_with_a_batch_per_device(exp, tmp_path):
    request = aot.Request(programs=("tokenizer",), per_device=2)
    (row,) = aot.run_compile(exp, request, str(tmp_path))
    assert (row["program"], row["batch"]) == ("tokenizer step", 2 * jax.device_count())
    saved = json.loads((tmp_path / "compile.json").read_text())
    assert [r["program"] for r in saved["here"]] == ["tokenizer step"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(programs=("decoder",)), r"compile\.programs = \('decoder',\).*sampler"),
        (dict(slices=0), r"compile\.slices = 0"),
        (dict(per_device=-1), r"compile\.per_device = -1"),
    ],
)
def test_unknown_programs_and_sizes_are_refused(exp, options, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        aot.run_compile(exp, aot.Request(**options), str(tmp_path))
