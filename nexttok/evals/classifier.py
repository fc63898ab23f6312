"""A small classifier of the real data, whose labels and features judge samples.

Convolutions are strided patches, so that they are matrix products (fast on CPUs). What is found
anywhere in a picture is found (its last grid is pooled by maximum); of a video every frame is seen,
and what changes between frames. Data without
labels trains it to tell which quarter turn was applied (Gidaris et al., 2018): the features are
then self-supervised and there is no class agreement.
"""

import dataclasses
import functools
from collections.abc import Iterator
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from nexttok.nn.linear import Linear
from nexttok.nn.norms import layer_norm
from nexttok.optim import muon, permissive
from nexttok.rng import stream

FEATURES, BATCH = 64, 128


class ConvNet(nn.Module):
    """Overlapping 3 x 3 patches, 2 x 2 patches until the grid is at most 4 wide, then an MLP."""

    classes: int

    @nn.compact
    def __call__(
        self, x: Float[Array, "B *T H W C"], train: bool = False
    ) -> tuple[Float[Array, "B K"], Float[Array, "B F"]]:
        """Returns logits and features: of a video, their means and mean changes over frames."""
        features = self._features(x.reshape(-1, *x.shape[-3:]), train)
        if x.ndim == 5:
            features = features.reshape(*x.shape[:2], -1)
            change = jnp.abs(features[:, 1:] - features[:, :-1])
            features = jnp.concatenate([features.mean(1), change.mean(1)], -1)
        kept = nn.Dropout(0.3, deterministic=not train)(features)
        return Linear(self.classes, name="classes")(kept), features

    def _features(self, x, train):
        """[M, H, W, C] -> [M, F]."""
        width = 32
        x = self._neighbours(x)
        x = jax.nn.gelu(layer_norm(Linear(width, name="stem")(x)))
        i = 0
        while x.shape[1] > 4:
            b, h, w, c = x.shape
            x = x[:, : h // 2 * 2, : w // 2 * 2]
            x = x.reshape(b, h // 2, 2, w // 2, 2, c).transpose(0, 1, 3, 2, 4, 5)
            x = x.reshape(b, h // 2, w // 2, 4 * c)
            width = min(2 * width, 256)
            x = jax.nn.gelu(layer_norm(Linear(width, name=f"down{i}")(x)))
            x = x + jax.nn.gelu(layer_norm(Linear(width, name=f"mix{i}")(self._neighbours(x))))
            i += 1
        x = nn.Dropout(0.3, deterministic=not train)(x.max((1, 2)))
        return jax.nn.gelu(layer_norm(Linear(FEATURES, name="features")(x)))

    @staticmethod
    def _neighbours(x):
        """Stacks the 3 x 3 neighbourhood into channels: a convolution becomes a product."""
        h, w = x.shape[1:3]
        padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
        parts = [padded[:, i : i + h, j : j + w] for i in range(3) for j in range(3)]
        return jnp.concatenate(parts, -1)


@dataclasses.dataclass(frozen=True)
class Classifier:
    """A trained ConvNet.

    Attributes:
      net, params: the network.
      accuracy: on the held-out images it was given.
    """

    net: ConvNet
    params: Any
    accuracy: float = 0.0

    @functools.cached_property
    def _apply(self):
        return jax.jit(lambda params, x: self.net.apply({"params": params}, x))

    def _run(self, images: Float[np.ndarray, "M *T H W C"], which: int) -> np.ndarray:
        outs = []
        for at in range(0, len(images), BATCH):
            part = images[at : at + BATCH]
            padded = np.concatenate([part, np.repeat(part[-1:], BATCH - len(part), 0)])
            outs.append(np.asarray(self._apply(self.params, padded)[which])[: len(part)])
        return np.concatenate(outs)

    def features(self, images: Float[np.ndarray, "M *T H W C"]) -> Float[np.ndarray, "M F"]:
        """Features before the last layer."""
        return self._run(images, 1)

    def predict(self, images: Float[np.ndarray, "M *T H W C"]) -> Int[np.ndarray, "M"]:
        """Likeliest class."""
        return self._run(images, 0).argmax(-1)


def network(num_classes: int) -> ConvNet:
    """The network of data of so many classes; 1 for unlabelled data, whose quarter turns it tells:
    class 0 is upright."""
    return ConvNet(4 if num_classes == 1 else num_classes)


def shapes(image_shape: tuple[int, ...], num_classes: int) -> Any:
    """Shapes of its parameters."""
    image = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    return jax.eval_shape(network(num_classes).init, jax.random.key(0), image)["params"]


def quarter_turns(images: np.ndarray, turns: np.ndarray) -> np.ndarray:
    """Rotates each square image, or all frames of a video, by turns * 90 degrees."""
    return np.stack([np.rot90(x, t, (-3, -2)) for x, t in zip(images, turns, strict=True)])


def train_classifier(
    batches: Iterator[dict],
    test_images: Float[np.ndarray, "M *T H W C"],
    test_labels: Int[np.ndarray, "M"],
    num_classes: int,
    steps: int,
    seed: int,
) -> Classifier:
    """Trains on augmented batches and measures itself on held-out images.

    Args:
      batches: dicts with image [B, H, W, C], or video [B, T, H, W, C], and label [B].
      test_images, test_labels: held out.
      num_classes: 1 for unlabelled data (then the task is telling quarter turns).
      steps: training steps.
      seed: of initialization and dropout.
    """
    turning = num_classes == 1
    net = network(num_classes)
    key = stream(jax.random.key(seed), "classifier")
    params = jax.jit(net.init)(key, jnp.zeros((1, *test_images.shape[1:])))["params"]
    optimizer = permissive(muon(optax.cosine_decay_schedule(3e-3, steps), 0.9, 0.95, 0.02))
    state = optimizer.init(params)

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(params, state, image, label, i):
        def loss(params):
            rngs = {"dropout": stream(key, i)}
            logits, _ = net.apply({"params": params}, image, True, rngs=rngs)
            return optax.softmax_cross_entropy_with_integer_labels(logits, label).mean()

        updates, state = optimizer.update(jax.grad(loss)(params), state, params)
        return optax.apply_updates(params, updates), state

    def task(images, labels, number):
        if not turning:
            return images, labels
        turns = np.random.default_rng((seed, number)).integers(0, 4, len(images)).astype(np.int32)
        return quarter_turns(images, turns), turns

    for i in range(steps):
        batch = next(batches)
        image, label = task(batch["image"], batch["label"], i)
        params, state = step(params, state, image, label, np.uint32(i))
    images, labels = task(test_images, test_labels, steps)
    trained = Classifier(net, params)
    accuracy = float((trained.predict(images) == labels).mean())
    return dataclasses.replace(trained, accuracy=accuracy)
