"""The rate-distortion page."""

import json

from PIL import Image

from nexttok.evals import tokenizers


def run(root, name, prefixes, **codebook):
    root.mkdir()
    rows = [dict(tokens=n, bits=8.0 * n, psnr=p, ssim=0.5, frechet_distance=0.25)
            for n, p in prefixes]  # fmt: skip
    found = {"prefixes": rows, "codebook": {"usage": 0.5, "perplexity": 12.3} | codebook}
    counts = {"tokenizer/encoder": 1_500_000, "tokenizer/discriminator": 7, "generator/head": 9}
    results = {"name": name, "reconstruction": found, "parameters": counts}
    (root / "config.json").write_text(json.dumps({"data": {"source": "digits", "resolution": 16}}))
    (root / "results.json").write_text(json.dumps(results))
    return str(root)


def test_rows_and_curves(tmp_path, capsys):
    dirs = [run(tmp_path / "a", "flextok", [(1, 12.0), (2, 15.5)]),
            run(tmp_path / "b", "vqvae", [(16, 22.0)])]  # fmt: skip
    out = tmp_path / "page" / "rate"
    assert tokenizers.main(["--workdirs", *dirs, f"--out={out}"]) == 0
    text = capsys.readouterr().out
    assert "| flextok | digits 16 | 1 | 8 | 12.00 | 0.500 | 0.25 |  |  |  |" in text
    assert "| flextok | digits 16 | 2 | 16 | 15.50 | 0.500 | 0.25 | 50 % | 12 | 1.50 M |" in text
    assert "| vqvae | digits 16 | 16 | 128 | 22.00 | 0.500 | 0.25 | 50 % | 12 | 1.50 M |" in text
    assert (tmp_path / "page" / "rate.md").read_text() == text
    with Image.open(f"{out}.png") as picture:
        assert picture.width > 1500


def test_what_has_no_rate_or_results_is_refused(tmp_path, capsys):
    assert tokenizers.main(["--workdirs", str(tmp_path)]) == 2
    assert "finished runs" in capsys.readouterr().err
    path = run(tmp_path / "kl", "mar", [(16, 20.0)])
    results = json.loads((tmp_path / "kl" / "results.json").read_text())
    for row in results["reconstruction"]["prefixes"]:
        del row["bits"]
    (tmp_path / "kl" / "results.json").write_text(json.dumps(results))
    assert tokenizers.main(["--workdirs", path]) == 2
    assert "latents have no rate" in capsys.readouterr().err
