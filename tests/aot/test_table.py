"""The table of what was compiled for which slice."""

import json

from nexttok.aot.table import TABLE

FITS = {
    "program": "generator step", "parameters": 2.1e9, "batch": 1024, "mesh": {"fsdp": 256},
    "bytes": 8 * 2**30, "capacity": 16 * 2**30, "fits": True, "seconds": 0.5,
    "collective_seconds": 0.1, "mfu_bound": 0.61, "compile_seconds": 61.4,
}  # fmt: skip
NOT = {k: FITS[k] for k in ("program", "parameters", "batch", "mesh", "capacity")}


def test_rows_tell_what_fits_and_what_does_not(tmp_path, capsys):
    (tmp_path / "var_d30").mkdir()
    rows = [FITS, NOT | {"mesh": {}, "bytes": 20 * 2**30, "fits": False}]
    (tmp_path / "var_d30" / "compile.json").write_text(json.dumps({"v5e:16x16": rows}))
    assert TABLE.main([str(tmp_path / "var_d30")]) == 0
    first, second = capsys.readouterr().out.splitlines()[2:]
    assert first == (
        "| var_d30 | v5e:16x16 | generator step | 2,100 M | 1,024 | fsdp 256 | 8.0 of 16 | "
        "500.0 ms | 20% | 0.61 | 61 s |"
    )
    assert "| 1 | 20.0 of 16 | does not fit |" in second


def test_a_workdir_without_results_is_refused(tmp_path, capsys):
    assert TABLE.main([str(tmp_path)]) == 2
    assert "--mode=compile" in capsys.readouterr().err
