"""Pictures and the report."""

import html.parser
import json
import re

import numpy as np
from PIL import Image

from nexttok.evals.film import save_film
from nexttok.evals.gallery import labels, main
from nexttok.evals.pictures import image_grid, save_grid
from nexttok.evals.report import write_report
from nexttok.evals.results import write_results
from nexttok.tokens import TokenSpec


def test_grids_show_every_image_in_its_place(tmp_path):
    images = np.full((2, 3, 4, 4, 1), -1.0, np.float32)
    images[1, 2] = 1.0
    grid = image_grid(images, cell=16)
    assert grid.shape == (6 + 2 * 22 + 6, 12 + 3 * 22 + 6, 3)
    middle = [[grid[6 + r * 22 + 8, 12 + k * 22 + 8].mean() for k in range(3)] for r in range(2)]
    np.testing.assert_array_equal(middle, [[0, 0, 0], [0, 0, 255]])
    path = tmp_path / "deep" / "grid.png"
    save_grid(path, images, title="A title", row_labels=["zero", "one"], col_labels=["a", "b", "c"])
    labelled = np.asarray(Image.open(path))
    assert labelled.shape[0] > grid.shape[0]
    assert labelled.shape[1] > grid.shape[1]
    assert (labelled[:30] < 128).any()  # the title is drawn


def workdir(root, name, **samples):
    """A finished run's files, with pictures of two steps."""
    tokenizer = {"name": "autoencoder", "encoder": {"name": "conv"}, "bottleneck": {"name": "vq"}}
    parts = {p: {"name": p} for p in ("plan", "context", "head")}
    config = {"tokenizer": tokenizer, "generator": parts, "stages": ["tokenizer", "generator"]}
    config |= {"sampler": {"name": "plan"}, "data": {"source": "<digits>", "resolution": 16}}
    row = {"tokens": 4, "bits": 32.0, "psnr": 12.25, "ssim": 0.5, "frechet_distance": 0.2}
    results = {"name": name, "parameters": {"tokenizer/encoder": 1000}}
    results["reconstruction"] = {"prefixes": [row], "codebook": {"usage": 0.5, "perplexity": 9.0}}
    drawn = [{"tokens": 4, "class_agreement": 0.9, "frechet_distance": 0.3}]
    results["samples"] = {"network_calls": 4, "prefixes": drawn} | samples
    for file, content in (("config", config), ("results", results)):
        write_results(root / f"{file}.json", content)
    write_results(root / "speed.json", {"images_per_second": 20.0})
    rows = [{"stage": "tokenizer", "step": s, "loss": 1 / s, "learning_rate": 0.1} for s in (1, 2)]
    (root / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    save_grid(root / "pictures" / "samples.png", np.zeros((1, 1, 4, 4, 3), np.float32))
    steps = np.array([[0, 0, 1, 1]], np.int32)
    images = {4: np.zeros((1, 4, 4, 3), np.float32)}
    save_film(root / "pictures", images, steps, TokenSpec((2, 2), 16, 4))
    return str(root)


class Audit(html.parser.HTMLParser):
    """Checks that tags close, links lead somewhere, and nothing is asked of others."""

    VOID = ("meta", "img", "input", "path", "use", "rect", "br")

    def __init__(self, text):
        super().__init__()
        self.open, self.ids, self.links = [], [], []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        """Opens, and looks at addresses."""
        attrs = dict(attrs)
        assert tag not in ("script", "link", "iframe")
        assert tag != "img" or attrs["alt"]
        for name in ("src", "href", "xlink:href"):
            assert attrs.get(name, "#").startswith(("#", "data:"))
        self.links += [attrs["href"][1:]] if tag == "a" and "href" in attrs else []
        self.ids += [attrs["id"]] if "id" in attrs else []
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        """Closes."""
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def handle_startendtag(self, tag, attrs):
        """Of SVG."""


def test_report_is_one_self_contained_page(tmp_path):
    write_report(workdir(tmp_path, "run & co"))
    page = (tmp_path / "report.html").read_text()
    audit = Audit(page)
    assert set(audit.links) <= set(audit.ids)
    assert {"generation-step-by-step", "pictures", "numbers", "training-tokenizer"} <= {*audit.ids}
    assert page.count("data:image/png;base64,") == 2
    assert page.count("<svg") == 1
    assert page.count("type='radio'") == 2
    assert "Step 2 of 2 draws 2: 4 of 4 tokens are known." in page
    assert "12.25" in page
    assert "run &amp; co" in page
    assert "&lt;digits&gt;" in page
    assert not re.search(r"url\((?!data:)", page.replace("url(#", ""))
    assert "prefers-color-scheme: dark" in page


def test_a_gallery_shows_runs_side_by_side(tmp_path, capsys):
    first, second = (workdir(tmp_path / n, n) for n in ("one", "two"))
    out = tmp_path / "gallery.html"
    assert main([first, second, f"--out={out}"]) == 0
    page = out.read_text()
    audit = Audit(page)
    assert set(audit.links) <= set(audit.ids)
    assert len(set(re.findall(r"name='(film\d+)'", page))) == 2
    assert page.count("<div class='card'>") == 2 * 3  # generation, samples, curves
    assert page.count("<svg") == 2 + 2  # two charts, two runs' curves
    (rows,) = re.findall(r"<tbody>(.*?)</tbody>", page)
    assert rows.count("<td>conv, vq</td>") == 2
    other = f"{tmp_path}/a/one"
    assert labels([first, other]) == {first: first, other: other}
    assert main([str(tmp_path / "none"), f"--out={tmp_path}/no.html"]) == 2
    assert "expected the workdir of a finished run" in capsys.readouterr().err
    assert not (tmp_path / "no.html").exists()
