"""The table of finished runs."""

import json

import pytest

from nexttok.config import ConfigError
from nexttok.evals.table import TABLE

TOKENIZER = {"encoder": "conv", "bottleneck": "vq"}


def run(root, name, **samples):
    """A workdir with what the table reads."""
    root.mkdir()
    parts = {p: {"name": p} for p in ("plan", "context", "head")}
    tokenizer = {p: {"name": n} for p, n in TOKENIZER.items()} | {"name": "autoencoder"}
    config = {"tokenizer": tokenizer, "generator": parts, "stages": ["tokenizer", "generator"]}
    config |= {"sampler": {"name": "plan"}}
    prefixes = [{"tokens": 16, "class_agreement": 0.9, "frechet_distance": 0.25}]
    results = {"name": name, "samples": {"network_calls": 8, "prefixes": prefixes} | samples}
    (root / "config.json").write_text(json.dumps(config))
    (root / "results.json").write_text(json.dumps(results))
    (root / "speed.json").write_text(json.dumps({"images_per_second": 123.4}))
    return str(root)


def test_rows_come_from_the_files_and_the_readme_is_rewritten_in_place(tmp_path, capsys):
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{TABLE.start}\nold\n{TABLE.end}\nafter\n")
    assert TABLE.main([run(tmp_path / "a", "var"), f"--write={readme}"]) == 0
    cells = "| var | conv, vq | plan | context | head | 16 | 8 | 0.900 | 0.25 | 123 |"
    assert cells in capsys.readouterr().out
    text = readme.read_text()
    assert cells in text
    assert "old" not in text
    assert text.startswith("before")
    assert text.endswith("after\n")


def test_what_is_no_finished_run_is_refused(tmp_path, capsys):
    assert TABLE.main([str(tmp_path)]) == 2
    assert "finished run" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="with <!-- systems"):
        TABLE.write(str(tmp_path / "none.md"), "")
