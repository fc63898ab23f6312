"""Batches through Grain, deterministic in (seed, step), sharded by process, resumable anywhere.

The order of the pipeline makes a global step's examples, their order and their augmentation the
same for any number of processes and workers: augment, then batch a process's share, then slice by
process, then hand to workers. The state of the iterator is then one number, the step.
"""

import dataclasses
import functools
import importlib
import logging
import weakref
from collections.abc import Iterator

import grain.python as pygrain
import numpy as np
from absl import flags

from nexttok.config import ConfigError, check
from nexttok.data.source import DataConfig, DataInfo, MissingData, Source
from nexttok.data.transforms import AUGMENTS, augment, fit

log = logging.getLogger("nexttok")

EPOCHS = 10**9  # endless, yet of a length that fits an int64

SOURCES = ("digits", "photos", "shapes", "tfds", "folder")

__all__ = [
    "Batches", "DataConfig", "DataInfo", "Split", "class_names", "load_source", "make_loader",
]  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Split:
    """A source whose examples are finished: image at the config's resolution, label, index, extras.

    Attributes:
      source: where examples come from.
      cfg: the data section.
    """

    source: Source
    cfg: DataConfig

    @property
    def info(self) -> DataInfo:
        """Classes and unreadable files."""
        return self.source.info

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        """Example `index` as measured: centre crop, not augmented."""
        return self._finished(index, lambda image: fit(image, self.cfg.resolution))

    def augmented(self, index: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """Example `index` as trained on, augmented by `rng`."""
        name, side = self.cfg.augment, self.cfg.resolution
        return self._finished(index, lambda image: augment(image, name, side, rng))

    def _finished(self, index, transform):
        example = dict(self.source[int(index)])
        image = example["image"] if self.cfg.frames else transform(example["image"])
        example["image"] = np.ascontiguousarray(image, np.float32)
        example["label"] = np.asarray(example["label"], np.int32)
        example["index"] = np.asarray(index, np.int32)
        return example


def load_source(cfg: DataConfig, split: str, seed: int) -> Split:
    """Opens one split, "train" or "test", of `cfg.source` = "<name>" or "<name>:<argument>".

    A split is opened once per process: opening a folder reads every file in it. Only drawn scenes
    depend on the seed.

    Raises:
      ConfigError: unknown or missing data set, or a config that does not fit it.
    """
    return _opened(cfg, split, seed if cfg.source == "shapes" else 0)


@functools.lru_cache(maxsize=4)
def _opened(cfg, split, seed):
    if split not in ("train", "test"):
        raise ConfigError(f"split = {split!r}: expected train | test")
    name, _, argument = cfg.source.partition(":")
    allowed = "digits | photos | shapes | tfds:<name> | folder:<path>"
    check(name in SOURCES, "data.source", cfg.source, allowed)
    check(bool(argument) == (name in ("tfds", "folder")), "data.source", cfg.source, allowed)
    check(cfg.resolution >= 4, "data.resolution", cfg.resolution, "at least 4")
    check(cfg.channels in (1, 3), "data.channels", cfg.channels, "1 | 3")
    check(cfg.augment in AUGMENTS, "data.augment", cfg.augment, " | ".join(AUGMENTS))
    check(cfg.workers >= 0, "data.workers", cfg.workers, "at least 0")
    check(cfg.prefetch >= 1, "data.prefetch", cfg.prefetch, "at least 1")
    # Captions, attributes and maps of a scene would not follow an augmented image.
    fits = cfg.augment == "none" or (name != "shapes" and not cfg.frames)
    check(fits, "data.augment", cfg.augment, "none when data.source = shapes, and for videos")
    video = cfg.frames == 0 or (cfg.frames > 0 and name in ("shapes", "folder"))
    allowed = "0, or the length of a clip of data.source = shapes | folder:<path>"
    check(video, "data.frames", cfg.frames, allowed)
    source = importlib.import_module(f"nexttok.data.{name}").make(cfg, argument, split, seed)
    classes = len(source.info.class_names)
    check(cfg.num_classes == classes, "data.num_classes", cfg.num_classes,
          f"{classes}, the classes of {cfg.source}")  # fmt: skip
    return Split(source, cfg)


def class_names(cfg: DataConfig, seed: int) -> tuple[str, ...]:
    """Names of the classes; their numbers where the data set is not there, as weights may come
    without it."""
    try:
        return load_source(cfg, "train", seed).info.class_names
    except MissingData as error:
        log.info("classes are shown by number, as %s", error)
        return tuple(str(i) for i in range(cfg.num_classes))


class _Augment(pygrain.RandomMapTransform):
    def __init__(self, source: Split):
        self.source = source

    def random_map(self, index, rng: np.random.Generator):
        return self.source.augmented(index, rng)


class Batches:
    """An iterator of training batches whose state is the number of batches given out."""

    def __init__(self, dataset: pygrain.MapDataset, cfg: DataConfig, start: int):
        """Begins at batch `start`, in constant time."""
        self.dataset, self.cfg, self._open = dataset, cfg, []
        # Abandoned workers hang or complain when the interpreter ends before they do.
        weakref.finalize(self, _close, self._open)
        self.set_state({"next_index": start})

    def _iterate(self, start: int):
        options = pygrain.ReadOptions(num_threads=1, prefetch_buffer_size=self.cfg.prefetch)
        data = self.dataset[start:].to_iter_dataset(options)
        if self.cfg.workers:
            if not flags.FLAGS.is_parsed():
                flags.FLAGS.mark_as_parsed()  # Grain's workers read absl flags
            workers = pygrain.MultiprocessingOptions(
                num_workers=self.cfg.workers, per_worker_buffer_size=self.cfg.prefetch
            )
            data = data.mp_prefetch(workers)
        return iter(data)

    def __iter__(self) -> "Batches":
        return self

    def __next__(self) -> dict[str, np.ndarray]:
        if not self._open:
            raise ValueError("these batches were closed")
        batch = next(self._open[0])
        self.next_index += 1
        if self.cfg.workers:  # out of the workers' shared memory, which a kept batch would hold
            batch = {name: np.array(value) for name, value in batch.items()}
        return batch

    def get_state(self) -> dict[str, int]:
        """{"next_index": batches given out}."""
        return {"next_index": self.next_index}

    def set_state(self, state: dict[str, int]) -> None:
        """Jumps; any number of workers or processes may have produced the state."""
        self.close()
        self.next_index = state["next_index"]
        self._open.append(self._iterate(self.next_index))

    def close(self) -> None:
        """Stops background reading; also done when the program ends."""
        _close(self._open)


def _close(iterators: list) -> None:
    while iterators:
        iterators.pop().close()


def make_loader(
    cfg: DataConfig,
    split: str,
    batch_size: int,
    seed: int,
    start_step: int = 0,
    process_index: int = 0,
    process_count: int = 1,
) -> Batches | Iterator[dict[str, np.ndarray]]:
    """Batches of dicts: image float32 [B, H, W, C] in [-1, 1], label, index int32 [B], extras.

    Args:
      cfg: the data section.
      split: "train": endless, shuffled, augmented. "test": one ordered pass, whose last batch is
        padded; a bool `mask` [B] says which rows are real. Every process gets all of it.
      batch_size: global; in training each process gets batch_size / process_count rows.
      seed: of order and augmentation.
      start_step: first batch.
      process_index, process_count: this process among all.

    Raises:
      ConfigError: see load_source; or a batch that does not divide over the processes.
    """
    source = load_source(cfg, split, seed)
    if split == "test":
        return _test_batches(source, batch_size)
    if batch_size % process_count:
        raise ConfigError(
            f"batch_size = {batch_size}: expected a multiple of the {process_count} processes"
        )
    data = pygrain.MapDataset.range(len(source)).seed(seed).shuffle().repeat(EPOCHS)
    data = data.random_map(_Augment(source))
    data = data.batch(batch_size // process_count)[process_index::process_count]
    return Batches(data, cfg, start_step)


def _test_batches(source: Split, batch_size: int):
    for start in range(0, len(source), batch_size):
        rows = [source[i] for i in range(start, min(start + batch_size, len(source)))]
        mask = np.arange(batch_size) < len(rows)
        rows += [rows[-1]] * (batch_size - len(rows))
        batch = {k: np.stack([r[k] for r in rows]) for k in rows[0]}
        yield batch | {"mask": mask}
