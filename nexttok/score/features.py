"""Features of sets of images: computed once, kept on disk, shared by all processes."""

import contextlib
import dataclasses
import functools
import hashlib
import math
import pathlib
from collections.abc import Iterator

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from nexttok.distributed import barrier, gather
from nexttok.evals.results import write_arrays
from nexttok.mesh import MeshConfig, make_mesh, replicated
from nexttok.progress import Progress
from nexttok.score.images import DAMAGED, Images
from nexttok.score.networks import Network

CHUNK = 512  # images of a file of features


@dataclasses.dataclass(frozen=True)
class Runner:
    """A network on this process's devices.

    Attributes:
      network: what is run; batch: images at once, as many on every device.
    """

    network: Network
    batch: int

    @functools.cached_property
    def mesh(self):
        """All devices of this process along one axis."""
        return make_mesh(MeshConfig(-1, 1, 1, 1, 1), jax.local_devices())

    @functools.cached_property
    def _params(self):
        return jax.device_put(self.network.load(), replicated(self.mesh))

    @functools.cached_property
    def _apply(self):
        return jax.jit(self.network.apply)

    def __call__(self, images: np.ndarray) -> dict[str, jax.Array]:
        """uint8 [n, H, W, C], n up to `batch` -> {name: float32 [size, F]}, without waiting.

        The last image fills what is missing of a batch, which compiles once. In full float32, as
        features in bfloat16 are not those of published numbers.
        """
        x = self.network.prepare(images)
        devices = jax.local_device_count()
        size = math.ceil(self.batch / devices) * devices
        x = np.concatenate([x, np.repeat(x[-1:], size - len(x), 0)])
        x = jax.device_put(x, NamedSharding(self.mesh, PartitionSpec("data")))
        with jax.default_matmul_precision("highest"):
            return self._apply(self._params, x)


def folder_of(root: str, images: Images, network: Network) -> pathlib.Path:
    """Where the features of these images are kept."""
    text = f"{images.key} {network.key} {CHUNK}"
    return pathlib.Path(root) / hashlib.sha256(text.encode()).hexdigest()[:16]


def _load(path: pathlib.Path, count: int) -> dict[str, np.ndarray] | None:
    """A chunk of `count` images from its file; None where that is missing or damaged."""
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            found = dict(arrays)
    except DAMAGED:
        return None
    return found if found and all(len(v) == count for v in found.values()) else None


def _compute(images: Images, run: Runner, part: range, progress: Progress) -> dict:
    """Features of some images; a batch is read while the one before is computed."""
    starts, begun, done = part[:: run.batch], [], []
    for at in [*starts, None]:
        if at is not None:
            with progress.waiting():
                batch = images[at : min(at + run.batch, part.stop)]
            begun.append((len(batch), run(batch)))
        if at is None or len(begun) > 1:
            count, found = begun.pop(0)
            done.append({name: np.asarray(rows)[:count] for name, rows in found.items()})
            progress.update(progress.step + 1, {})
    return {name: np.concatenate([d[name] for d in done]) for name in done[0]}


def features(images: Images, run: Runner, root: str, name: str) -> Iterator[dict[str, np.ndarray]]:
    """Chunk after chunk of the features of all images, in order, in every process.

    First every process computes each n-th chunk and keeps it under `root`, but for those that are
    there already; then all iterate to the end and pass the chunks around.

    Args:
      images: what to look at.
      run: the network.
      root: folder of features, of all processes or one each.
      name: shown beside the progress.
    """
    folder, total = folder_of(root, images, run.network), images.shape[0]
    chunks, processes = math.ceil(total / CHUNK), jax.process_count()
    numbers = range(jax.process_index(), math.ceil(chunks / processes) * processes, processes)
    mine = [min(number, chunks - 1) for number in numbers]
    part = lambda number: range(total)[number * CHUNK : (number + 1) * CHUNK]
    path = lambda number: folder / f"{number:06d}.npz"
    lacking = [n for n in dict.fromkeys(mine) if _load(path(n), len(part(n))) is None]
    steps = sum(math.ceil(len(part(n)) / run.batch) for n in lacking)
    shown = jax.process_index() == 0 and bool(lacking)
    with contextlib.closing(Progress(steps, 0, name, run.batch, shown=shown)) as progress:
        for number in lacking:
            write_arrays(path(number), _compute(images, run, part(number), progress))
    barrier(f"features of {name}")
    for first, number in zip(range(0, chunks, processes), mine, strict=True):
        found = _load(path(number), len(part(number)))
        for i, rows in enumerate(_shared(found)):
            if first + i < chunks:
                yield {key: v[: len(part(first + i))] for key, v in rows.items()}


def _shared(found: dict[str, np.ndarray]) -> list[dict[str, np.ndarray]]:
    """The chunks of all processes, filled up to CHUNK rows."""
    if jax.process_count() == 1:
        return [found]
    filled = {k: np.resize(v, (CHUNK, *v.shape[1:])) for k, v in found.items()}
    everyone = {k: gather(filled[k]) for k in sorted(filled)}
    return [{k: v[i] for k, v in everyone.items()} for i in range(jax.process_count())]
