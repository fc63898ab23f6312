"""Pictures and the report."""

import json
import re

import numpy as np
from PIL import Image

from nexttok.evals.pictures import image_grid, save_grid
from nexttok.evals.report import write_report


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


def test_report_is_one_self_contained_page(tmp_path):
    picture = tmp_path / "p.png"
    save_grid(picture, np.zeros((1, 1, 4, 4, 3), np.float32))
    metrics = tmp_path / "metrics.jsonl"
    rows = [{"stage": "tokenizer", "step": s, "loss": 1 / s, "learning_rate": 0.1} for s in (1, 2)]
    metrics.write_text("".join(json.dumps(r) + "\n" for r in rows))
    results = {"reconstruction": {"prefixes": [{"tokens": 1, "psnr": 12.25}]}, "name": "<x>"}
    path = tmp_path / "report.html"
    write_report(path, "run & co", "a: <b>", results, [("Pictures", "all", str(picture))], metrics)
    page = path.read_text()
    assert page.count("data:image/png;base64,") == 1
    assert page.count("<svg") == 1
    assert "12.25" in page
    assert "run &amp; co" in page
    assert "a: &lt;b&gt;" in page
    assert "&lt;x&gt;" in page
    assert not re.search(r"""(src|href)=["']https?:""", page.replace("xlink:href", ""))
    assert not re.search(r"<script|<link", page)
