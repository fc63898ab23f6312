"""Batches through Grain, deterministic in (seed, step), sharded by process, resumable anywhere.

The order of the pipeline makes a global step's examples and their augmentation the same for any
number of processes and workers: augment before the process slice, batch before the workers. The
state of the iterator is then one number, the step.
"""

import importlib
from collections.abc import Iterator

import grain.python as pygrain
import numpy as np
from absl import flags

from nexttok.config import ConfigError, check
from nexttok.data.source import DataConfig, DataInfo, Source
from nexttok.data.transforms import AUGMENTS, augment, center_crop

EPOCHS = 10**9  # endless, yet of a length that fits an int64

SOURCES = ("digits", "photos", "shapes", "tfds", "folder")

__all__ = ["Batches", "DataConfig", "DataInfo", "load_source", "make_loader"]


def load_source(cfg: DataConfig, split: str, seed: int) -> Source:
    """Opens one split, "train" or "test", of `cfg.source` = "<name>" or "<name>:<argument>".

    Raises:
      ConfigError: unknown or missing data set, or a config that does not fit it.
    """
    name, _, argument = cfg.source.partition(":")
    allowed = "digits | photos | shapes | tfds:<name> | folder:<path>"
    check(name in SOURCES, "data.source", cfg.source, allowed)
    check(bool(argument) == (name in ("tfds", "folder")), "data.source", cfg.source, allowed)
    check(cfg.resolution >= 4, "data.resolution", cfg.resolution, "at least 4")
    check(cfg.channels in (1, 3), "data.channels", cfg.channels, "1 | 3")
    check(cfg.augment in AUGMENTS, "data.augment", cfg.augment, " | ".join(AUGMENTS))
    check(cfg.workers >= 0, "data.workers", cfg.workers, "at least 0")
    check(cfg.prefetch >= 1, "data.prefetch", cfg.prefetch, "at least 1")
    video = cfg.frames == 0 or (cfg.frames > 0 and name == "shapes")
    check(video, "data.frames", cfg.frames, "0, or the length of a clip of data.source = shapes")
    source = importlib.import_module(f"nexttok.data.{name}").make(cfg, argument, split, seed)
    classes = len(source.info.class_names)
    check(cfg.num_classes == classes, "data.num_classes", cfg.num_classes,
          f"{classes}, the classes of {cfg.source}")  # fmt: skip
    return source


def _example(source: Source, cfg: DataConfig, index: int, rng) -> dict[str, np.ndarray]:
    """One finished example; rng is None at test time."""
    example = dict(source[int(index)])
    image = example["image"]
    if image.ndim == 3:
        if rng is not None:
            image = augment(image, cfg.augment, cfg.resolution, rng)
        elif image.shape[:2] != (cfg.resolution,) * 2:
            image = center_crop(image, cfg.resolution)
    example["image"] = np.ascontiguousarray(image, np.float32)
    example["label"] = np.asarray(example["label"], np.int32)
    example["index"] = np.asarray(index, np.int32)
    return example


class _Augment(pygrain.RandomMapTransform):
    def __init__(self, source: Source, cfg: DataConfig):
        self.source, self.cfg = source, cfg

    def random_map(self, index, rng: np.random.Generator):
        return _example(self.source, self.cfg, index, rng)


class Batches:
    """An iterator of training batches whose state is the number of batches given out."""

    def __init__(self, dataset: pygrain.MapDataset, cfg: DataConfig, start: int):
        """Begins at batch `start`, in constant time."""
        self.dataset, self.cfg = dataset, cfg
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
        batch = next(self.iterator)
        self.next_index += 1
        return batch

    def get_state(self) -> dict[str, int]:
        """{"next_index": batches given out}."""
        return {"next_index": self.next_index}

    def set_state(self, state: dict[str, int]) -> None:
        """Jumps; any number of workers or processes may have produced the state."""
        self.next_index = state["next_index"]
        self.iterator = self._iterate(self.next_index)

    def close(self) -> None:
        """Stops background reading."""
        close = getattr(self.iterator, "close", None)
        if close is not None:
            close()


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
        padded; a bool `mask` [B] says which rows are real.
      batch_size: global; each process gets batch_size / process_count rows.
      seed: of order and augmentation.
      start_step: first batch.
      process_index, process_count: this process among all.

    Raises:
      ConfigError: see load_source; or a batch that does not divide over the processes.
    """
    source = load_source(cfg, split, seed)
    if split == "test":
        return _test_batches(source, cfg, batch_size)
    if batch_size % process_count:
        raise ConfigError(
            f"batch_size = {batch_size}: expected a multiple of the {process_count} processes"
        )
    data = pygrain.MapDataset.range(len(source)).seed(seed).shuffle().repeat(EPOCHS)
    data = data.random_map(_Augment(source, cfg))
    data = data[process_index::process_count].batch(batch_size // process_count)
    return Batches(data, cfg, start_step)


def _test_batches(source: Source, cfg: DataConfig, batch_size: int):
    for start in range(0, len(source), batch_size):
        rows = [
            _example(source, cfg, i, None)
            for i in range(start, min(start + batch_size, len(source)))
        ]
        mask = np.arange(batch_size) < len(rows)
        rows += [rows[-1]] * (batch_size - len(rows))
        batch = {k: np.stack([r[k] for r in rows]) for k in rows[0]}
        yield batch | {"mask": mask}
