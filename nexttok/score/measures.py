"""Metrics by name: what they read of the two sets, and how they are computed."""

import dataclasses
import functools
import logging
from collections.abc import Callable, Iterator

import numpy as np

from nexttok.config import check
from nexttok.evals import distances, frechet, metrics
from nexttok.score import networks, reference
from nexttok.score.features import CHUNK, Runner, features
from nexttok.score.images import Images, open_images, within

log = logging.getLogger("nexttok")

# metric -> features of images: network and name in its results
READS = {
    "fid": ("inception", "pool"),
    "rfid": ("inception", "pool"),
    "sfid": ("inception", "spatial"),
    "is": ("inception", "logits"),
    "pr": ("inception", "pool"),
    "kid": ("inception", "pool"),
    "cmmd": ("clip", "clip"),
    "lpips": ("lpips", "lpips"),
    "psnr": ("", ""),
    "ssim": ("", ""),
}
GAUSSIAN = ("fid", "rfid", "sfid")
PAIRED = ("lpips", "psnr", "ssim")
RECONSTRUCTIONS = (*PAIRED, "rfid")
LEAST = {"pr": 4, "kid": 2, "fid": 2, "rfid": 2, "sfid": 2, "cmmd": 1, "is": 1}


@dataclasses.dataclass(frozen=True)
class Request:
    """One scoring.

    Attributes:
      real, fake: folders, files or workdirs; fake may be "" where only statistics are wanted.
      metrics: names of READS.
      inception, clip, lpips: weight files; lpips may be two, joined by a comma.
      resize: of networks.RESIZES; crop: side of the square that folders are cropped to, or 0.
      batch: images at once; cache: folder of features.
    """

    real: str
    fake: str
    metrics: tuple[str, ...]
    inception: str = ""
    clip: str = ""
    lpips: str = ""
    resize: str = "adm"
    crop: int = 0
    batch: int = 64
    cache: str = "runs/features"

    def __post_init__(self):
        for metric in self.metrics:
            check(metric in READS, "metrics", metric, " | ".join(READS))
        check(len(set(self.metrics)) == len(self.metrics), "metrics", self.metrics, "each once")
        for network in networks.FILES:
            networks.require(network, getattr(self, network), self._reading(network))
        check(self.resize in networks.RESIZES, "resize", self.resize,
              " | ".join(networks.RESIZES))  # fmt: skip
        check(self.batch >= 1, "batch", self.batch, "at least 1")
        check(self.crop >= 0, "crop", self.crop, "at least 0 (0 for none)")

    def _reading(self, network: str) -> list[str]:
        return [m for m in self.metrics if READS[m][0] == network]

    @functools.cached_property
    def runners(self) -> dict[str, Runner]:
        """The networks that the metrics need, loaded."""
        asked = {n: getattr(self, n) for n in networks.FILES if self._reading(n)}
        more = {"inception": (self.resize,)}
        made = {n: getattr(networks, n)(path, *more.get(n, ())) for n, path in asked.items()}
        return {name: Runner(network, self.batch) for name, network in made.items()}


@dataclasses.dataclass
class Side:
    """What is known of one of the two sets.

    Attributes:
      images: them, or None where only statistics are.
      gaussians: feature name -> mean and covariance; rows: feature name -> [N, F].
    """

    images: Images | None
    gaussians: dict[str, tuple[np.ndarray, np.ndarray]]
    rows: dict[str, np.ndarray]


def open_side(path: str, name: str, crop: int) -> Side:
    """A set of images, or the file of a reference with its statistics.

    Raises:
      ConfigError: there is nothing that can be read.
    """
    file = within(path, name)
    stored, images = reference.read(file) if file.suffix == ".npz" else ({}, True)
    return Side(open_images(file, crop) if images else None, stored, {})


def look(side: Side, request: Request, name: str, wanted: list[str]) -> None:
    """Fills in the features that the metrics `wanted` read and the side lacks.

    Raises:
      ConfigError: a metric needs images, or more of them, where there are none.
    """
    for network, runner in request.runners.items():
        asked = [m for m in wanted if READS[m][0] == network and m not in PAIRED]
        gaussian = {READS[m][1] for m in asked if m in GAUSSIAN} - set(side.gaussians)
        whole = {READS[m][1] for m in asked if m not in GAUSSIAN}
        if not gaussian | whole:
            continue
        for metric in asked:
            read = READS[metric][1]
            if read in gaussian | whole:
                count = side.images.shape[0] if side.images else 0
                allowed = f"images, {LEAST[metric]} or more, for {metric}"
                check(count >= LEAST[metric], name, count, allowed)
        _fill(side, features(side.images, runner, request.cache, f"{network} {name}"),
              gaussian, whole)  # fmt: skip


def _fill(
    side: Side, chunks: Iterator[dict[str, np.ndarray]], gaussian: set[str], whole: set[str]
) -> None:
    """Gathers chunks of features as moments and as rows."""
    moments: dict[str, frechet.Moments] = {}
    rows: dict[str, list] = {name: [] for name in whole}
    for chunk in chunks:
        for name in gaussian:
            if name not in moments:
                moments[name] = frechet.Moments(chunk[name].shape[1])
            moments[name].add(chunk[name])
        for name in whole:
            rows[name].append(chunk[name])
    side.gaussians |= {name: m.gaussian for name, m in moments.items()}
    side.rows |= {name: np.concatenate(parts) for name, parts in rows.items()}


def _distance(name: str) -> Callable[[Side, Side], float]:
    def distance(real: Side, fake: Side) -> float:
        a, b = real.gaussians[name], fake.gaussians[name]
        widths = len(a[0]), len(b[0])
        check(widths[0] == widths[1], "reference", widths[0], f"statistics of {widths[1]} features")
        return frechet.gaussian_distance(*a, *b)

    return distance


def unpaired(metric: str, real: Side, fake: Side) -> dict[str, float]:
    """The numbers of a metric of two sets."""
    read = READS[metric][1]
    if metric in GAUSSIAN:
        return {metric: _distance(read)(real, fake)}
    if metric == "is":
        return {"is": distances.inception_score(fake.rows[read])}
    pair = real.rows[read], fake.rows[read]
    if metric == "pr":
        return dict(zip(("precision", "recall"), distances.precision_recall(*pair), strict=True))
    if metric == "kid":
        return dict(zip(("kid", "kid_std"), distances.kernel_distance(*pair), strict=True))
    return {"cmmd": distances.clip_discrepancy(*pair)}


class Pairs:
    """Two sets of images of one shape, side by side along the channels."""

    def __init__(self, real: Images, fake: Images):
        """Raises ConfigError unless the shapes are equal, channels apart."""
        same = real.shape[:3] == fake.shape[:3]
        check(same, "fake", fake.shape, f"{real.shape[0]} images of {real.shape[1:3]} for pairs")
        channels = max(real.shape[3], fake.shape[3])
        self.real, self.fake, self.key = real, fake, f"{real.key} {fake.key}"
        self.shape = (*real.shape[:3], 2 * channels)

    def __getitem__(self, part: slice) -> np.ndarray:
        shape = (*self.shape[1:3], self.shape[3] // 2)
        both = (np.broadcast_to(x, (len(x), *shape)) for x in (self.real[part], self.fake[part]))
        return np.concatenate(list(both), axis=-1)


def paired(pairs: Pairs, request: Request) -> dict[str, float]:
    """Means of the metrics of image and reconstruction."""
    found: dict[str, list] = {m: [] for m in PAIRED if m in request.metrics}
    if "lpips" in found:
        chunks = features(pairs, request.runners["lpips"], request.cache, "lpips")
        found["lpips"] = [chunk["lpips"][:, 0] for chunk in chunks]
    of_pixels = [m for m in ("psnr", "ssim") if m in found]
    for at in range(0, pairs.shape[0] if of_pixels else 0, CHUNK):
        both = np.split(pairs[at : min(at + CHUNK, pairs.shape[0])], 2, axis=-1)
        real, fake = (x.astype(np.float32) for x in both)
        for metric in of_pixels:
            found[metric].append(getattr(metrics, metric)(real, fake, data_range=255.0))
    return {m: float(np.concatenate(parts).mean()) for m, parts in found.items()}


def score(request: Request) -> dict:
    """Every metric that was asked for, and the protocol that decides the numbers.

    Of workdirs, held-out originals are compared to samples, or to reconstructions by the metrics
    of reconstructions. All processes must call this; each gets the numbers.

    Raises:
      ConfigError: something cannot be read, or does not fit.
    """
    groups = {
        "samples": [m for m in request.metrics if m not in RECONSTRUCTIONS],
        "reconstructions": [m for m in request.metrics if m in RECONSTRUCTIONS],
    }
    real = open_side(request.real, "originals", request.crop)
    fakes = {n: open_side(request.fake, n, request.crop) for n, asked in groups.items() if asked}
    pairs = None
    if set(PAIRED) & set(request.metrics):
        both = real.images, fakes["reconstructions"].images
        check(None not in both, "metrics", request.metrics, "no pairs, where there are no images")
        pairs = Pairs(*both)
    look(real, request, "real", [m for m in request.metrics if m != "is"])
    found: dict = {}
    for name, fake in fakes.items():
        look(fake, request, "fake", groups[name])
        for metric in groups[name]:
            if metric not in PAIRED:
                found |= unpaired(metric, real, fake)
    if pairs is not None:
        found |= paired(pairs, request)
    warn_of_few(real, fakes, request)
    return {
        "metrics": found,
        "images": {n: s.images.shape[0] for n, s in {"real": real, **fakes}.items() if s.images},
        "protocol": protocol(request),
    }


def protocol(request: Request) -> dict[str, object]:
    """Weights, resizing and crop."""
    said = {k: v for r in request.runners.values() for k, v in r.network.protocol.items()}
    return said | ({"crop": request.crop} if request.crop else {})


def warn_of_few(real: Side, fakes: dict[str, Side], request: Request) -> None:
    """Says so where fewer images than features make a Frechet distance large."""
    asked = [m for m in request.metrics if m in GAUSSIAN]
    counts = [s.images.shape[0] for s in (real, *fakes.values()) if s.images]
    if asked and min(counts, default=CHUNK * CHUNK) < 2048:
        log.warning("%s of %d images: published numbers take 50,000 samples, and fewer than the "
                    "2,048 features leave it biased", ", ".join(asked), min(counts))  # fmt: skip


def statistics(request: Request) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Means and covariances of the pool and spatial features of the real images."""
    side = open_side(request.real, "originals", request.crop)
    look(side, request, "real", ["fid", "sfid"])
    return side.gaussians
