"""The networks whose features are compared, and how each wants its images prepared."""

import dataclasses
import pathlib
import zlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from PIL import Image

from nexttok.config import check
from nexttok.interop import clip as clip_weights
from nexttok.interop import inception as inception_weights
from nexttok.interop import lpips as lpips_weights
from nexttok.nn.clip import ClipConfig, ClipImages
from nexttok.nn.inception import SIDE, Inception
from nexttok.nn.lpips import LPIPS
from nexttok.nn.resize import bilinear, resample

RESIZES = {
    "adm": "bilinear as in TensorFlow 1, in the graph (ADM, torch-fidelity)",
    "pytorch": "bilinear at half-pixel centres (pytorch-fid)",
    "clean": "bicubic and antialiased (clean-fid)",
}
OFFLINE = (
    "without a file, psnr and ssim of pairs remain, and the Frechet distance in results.json of "
    "--mode=eval, which compares runs of this library alone"
)
FILES = {
    name: " or ".join(f"{r.file} of {r.source}" for r in releases)
    for name, releases in (
        ("inception", inception_weights.RELEASES), ("clip", clip_weights.RELEASES),
        ("lpips", lpips_weights.RELEASES),
    )
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Network:
    """A frozen network of images.

    Attributes:
      key: tells its features from those of other weights or preparations.
      prepare: uint8 [B, H, W, C] -> what `apply` takes, on the host.
      apply: (params, prepared) -> {name: [B, F]}.
      load: () -> params, read only where there is something to compute.
      protocol: what a result must say of it.
    """

    key: str
    prepare: Callable[[np.ndarray], np.ndarray]
    apply: Callable[[Any, jax.Array], dict[str, jax.Array]]
    load: Callable[[], Any]
    protocol: dict[str, str]


def checksum(paths: str) -> str:
    """CRC-32 of files joined by commas, as eight hexadecimal digits.

    Raises:
      ConfigError: no such file.
    """
    total = 0
    for path in paths.split(","):
        file = pathlib.Path(path.strip())
        check(file.is_file(), "weights", str(file), "a file that exists")
        with file.open("rb") as opened:
            while part := opened.read(1 << 24):
                total = zlib.crc32(part, total)
    return f"{total:08x}"


def require(name: str, path: str, metrics: list[str]) -> None:
    """Raises ConfigError, saying what to fetch, where metrics need a file that is not given."""
    wanted = f"{FILES[name]} for {', '.join(metrics)}; {OFFLINE}"
    check(not metrics or bool(path), name, path, wanted)


def rgb(images: np.ndarray) -> np.ndarray:
    """One channel three times; three as they are."""
    return np.broadcast_to(images, (*images.shape[:3], 3))


def _each(images: np.ndarray, resize: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    return np.stack([resize(image) for image in rgb(images)])


def clean(image: np.ndarray) -> np.ndarray:
    """[H, W, 3] -> float32 [299, 299, 3] as clean-fid resizes: not rounded, not clipped."""
    planes = [Image.fromarray(image[..., c].astype(np.float32)) for c in range(3)]
    resized = [p.resize((SIDE, SIDE), Image.Resampling.BICUBIC) for p in planes]
    return np.stack([np.asarray(p) for p in resized], -1)


def prepared(images: np.ndarray, resize: str) -> np.ndarray:
    """What of resizing happens on the host: uint8 [B, H, W, 3], or float32 [B, 299, 299, 3]."""
    return _each(images, clean) if resize == "clean" else rgb(images)


def resized(x: Array, resize: str) -> Float[Array, "B 299 299 3"]:
    """Prepared images at Inception's size, 0 .. 255."""
    x = x.astype(jnp.float32)
    if resize == "clean":
        return x
    return resample(x, *(bilinear(SIDE, n, corners=resize == "adm") for n in x.shape[1:3]))


def inception(path: str, resize: str = "adm") -> Network:
    """InceptionV3 with all features of nn.inception, about 20 kB of an image.

    Raises:
      ConfigError: no such file.
    """
    net = Inception()

    def apply(params, x):
        x = resized(x, resize)
        x = x / 127.5 - 1.0 if resize == "pytorch" else (x - 128.0) / 128.0
        return net.apply({"params": params}, x)

    digest = checksum(path)
    return Network(
        f"inception {digest} {resize}",
        lambda images: prepared(images, resize),
        apply,
        lambda: inception_weights.load(path),
        {"inception_crc32": digest, "resize": resize},
    )


def clip_image(image: np.ndarray, side: int) -> np.ndarray:
    """[H, W, 3] -> its centre square, bicubic and antialiased, uint8 [side, side, 3]."""
    h, w = image.shape[:2]
    short = min(h, w)
    top, left = (h - short) // 2, (w - short) // 2
    square = Image.fromarray(image[top : top + short, left : left + short])
    return np.asarray(square.resize((side, side), Image.Resampling.BICUBIC))


def clip(path: str) -> Network:
    """CLIP's ViT-L/14 at 336 pixels, prepared as CMMD's official code does.

    Raises:
      ConfigError: no such file.
    """
    config = ClipConfig()
    net = ClipImages(config)

    def apply(params, x):
        return {"clip": net.apply({"params": params}, x.astype(jnp.float32) / 255.0)}

    digest = checksum(path)
    return Network(
        f"clip {digest}",
        lambda images: _each(images, lambda image: clip_image(image, config.side)),
        apply,
        lambda: clip_weights.load(path),
        {"clip_crc32": digest},
    )


def lpips(paths: str) -> Network:
    """LPIPS (VGG16) of pairs side by side along the channels, [B, H, W, 2 C] -> {lpips: [B, 1]}.

    Raises:
      ConfigError: no such file.
    """
    net = LPIPS()

    def apply(params, x):
        pair = jnp.split(x.astype(jnp.float32) / 127.5 - 1.0, 2, axis=-1)
        return {"lpips": net.apply({"params": params}, *pair)[:, None]}

    digest = checksum(paths)
    return Network(
        f"lpips {digest}", lambda x: x, apply, lambda: lpips_weights.load(paths),
        {"lpips_crc32": digest},
    )  # fmt: skip
