"""The judge of samples."""

import numpy as np
import pytest

from nexttok.data.loader import DataConfig, make_loader
from nexttok.evals.classifier import quarter_turns, train_classifier

CFG = DataConfig("digits", "", 16, 1, 10, 0, "affine", 0, 2)


@pytest.mark.slow
def test_it_reads_digits_well():
    test = next(iter(make_loader(CFG, "test", 397, 0)))
    loader = make_loader(CFG, "train", 128, 0)
    judge = train_classifier(loader, test["image"], test["label"], 10, 80, 0)
    assert judge.accuracy >= 0.95
    assert (judge.predict(test["image"]) == test["label"]).mean() == judge.accuracy
    features = judge.features(test["image"][:130])
    assert features.shape == (130, 64)
    np.testing.assert_allclose(
        features[:5], judge.features(test["image"][:5]), rtol=1e-3, atol=1e-4
    )


def test_unlabelled_data_trains_it_to_tell_quarter_turns():
    images = np.random.default_rng(0).uniform(-1, 1, (40, 8, 8, 3)).astype(np.float32)
    images[:, :4] = -1.0  # a dark top: the turn can be told

    def batches():
        while True:
            yield {"image": images, "label": np.zeros(40, np.int32)}

    judge = train_classifier(batches(), images, np.zeros(40, np.int32), 1, 60, 0)
    assert judge.accuracy > 0.9
    turned = quarter_turns(images[:2], np.asarray([1, 2]))
    np.testing.assert_array_equal(turned[0], np.rot90(images[0]))
