"""Where metrics go: metrics.jsonl and TensorBoard; process 0 only, off the hot path."""

import json
import os
import pathlib
import queue
import threading
from typing import Protocol, runtime_checkable

import jax
from tensorboardX import SummaryWriter


@runtime_checkable
class Writer(Protocol):
    """A sink of scalars. `step` counts within a stage."""

    def scalars(self, stage: str, step: int, values: dict[str, float]) -> None:
        """Records values of one step."""

    def resume(self, stage: str, step: int) -> None:
        """Forgets what was recorded of `stage` after `step`: it will be recorded again."""

    def close(self) -> None:
        """Writes out what is left."""


class JsonlWriter:
    """One JSON object per line: {"stage", "step", name: value, ...}."""

    def __init__(self, path: str):
        """Appends to `path`."""
        self.path = pathlib.Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)

    def scalars(self, stage: str, step: int, values: dict[str, float]) -> None:
        """Appends a line."""
        with self.path.open("a") as file:
            file.write(json.dumps({"stage": stage, "step": step, **values}) + "\n")

    def resume(self, stage: str, step: int) -> None:
        """Drops the stage's lines beyond `step`, and a last line cut short by a crash."""
        if not self.path.is_file():
            return
        kept = []
        for line in self.path.read_text().splitlines():
            try:
                row = json.loads(line)
            except json.JSONDecodeError:
                continue
            if row["stage"] != stage or row["step"] <= step:
                kept.append(line + "\n")
        partial = self.path.with_suffix(".partial")
        partial.write_text("".join(kept))
        os.replace(partial, self.path)

    def close(self) -> None:
        """Nothing is buffered."""


class TensorBoardWriter:
    """Scalars as <stage>/<name>, through tensorboardX; a folder of event files per stage."""

    def __init__(self, directory: str):
        """Event files go under `directory`, made at the first scalar of a stage."""
        self.root = pathlib.Path(directory)
        self.first: dict[str, int] = {}
        self.writers: dict[str, SummaryWriter] = {}

    def scalars(self, stage: str, step: int, values: dict[str, float]) -> None:
        """Adds one point to each curve."""
        if stage not in self.writers:
            first = self.first.get(stage, 0)
            self.writers[stage] = SummaryWriter(
                str(self.root / stage), purge_step=first, filename_suffix=f".{first}"
            )
        for name, value in values.items():
            self.writers[stage].add_scalar(f"{stage}/{name}", value, step)

    def resume(self, stage: str, step: int) -> None:
        """Has TensorBoard drop the stage's points after `step`."""
        self.first[stage] = step + 1

    def close(self) -> None:
        """Flushes the event files."""
        for writer in self.writers.values():
            writer.close()


class MultiWriter:
    """Feeds several writers from one background thread; silent on processes other than 0.

    An error of the thread is raised by the next call.
    """

    def __init__(self, writers: list[Writer]):
        """Starts the thread."""
        self.writers = writers if jax.process_index() == 0 else []
        self.error: BaseException | None = None
        self.queue: queue.Queue = queue.Queue()
        self.thread = threading.Thread(target=self._drain, daemon=True, name="metrics")
        self.thread.start()

    def _drain(self):
        while (item := self.queue.get()) is not None:
            method, args = item
            try:
                for writer in self.writers:
                    getattr(writer, method)(*args)
            except Exception as error:  # told to the caller, who would not see it here
                self.error = error

    def _put(self, *item):
        if self.error is not None:
            raise self.error
        self.queue.put(item)

    def scalars(self, stage: str, step: int, values: dict[str, float]) -> None:
        """Queues values of one step."""
        self._put("scalars", (stage, step, values))

    def resume(self, stage: str, step: int) -> None:
        """Queues `resume`."""
        self._put("resume", (stage, step))

    def close(self) -> None:
        """Writes what is queued, closes the writers, raises a pending error."""
        self._put("close", ())
        self.queue.put(None)
        self.thread.join()
        if self.error is not None:
            raise self.error
