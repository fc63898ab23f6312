"""Traces of training steps for TensorBoard's profiler, and what a step could take at best."""

import dataclasses
import logging
import os
import re

import jax

from nexttok import chips
from nexttok.config import check

log = logging.getLogger("nexttok")


@dataclasses.dataclass(frozen=True)
class ProfileConfig:
    """`config.profile`.

    Attributes:
      steps: "a:b" traces steps a + 1 .. b of every stage that is trained; "" none.
    """

    steps: str

    def __post_init__(self):
        match = re.fullmatch(r"(\d+):(\d+)", self.steps)
        fits = not self.steps or (match is not None and int(match[1]) < int(match[2]))
        check(fits, "profile.steps", self.steps, "a:b with a < b, such as 10:15, or '' for none")

    @property
    def window(self) -> tuple[int, int]:
        """Finished steps at which the trace begins and ends; (-1, -1) for none."""
        if not self.steps:
            return -1, -1
        first, _, last = self.steps.partition(":")
        return int(first), int(last)


class Tracer:
    """Traces a window of steps into a folder; nothing without one."""

    def __init__(self, window: tuple[int, int], directory: str):
        """`window`: see ProfileConfig."""
        (self.first, self.last), self.directory, self.running = window, directory, False

    def reach(self, step: int, pending=None) -> None:
        """`step` steps are dispatched; `pending` are arrays of the last of them."""
        if step == self.first:
            jax.block_until_ready(pending)
            os.makedirs(self.directory, exist_ok=True)
            jax.profiler.start_trace(self.directory)
            self.running = True
        elif step == self.last and self.running:
            jax.block_until_ready(pending)
            self.close()

    def close(self) -> None:
        """Ends a trace that is still running."""
        if self.running:
            self.running = False
            jax.profiler.stop_trace()
            log.info("wrote a trace of steps %d .. %d to %s; see it with TensorBoard's profiler",
                     self.first + 1, self.last, self.directory)  # fmt: skip


def ideal_seconds(flops: float, mesh) -> float:
    """Seconds of so many FLOPs at the peak of all devices of a mesh; 0 where it is not known."""
    chip = chips.find(mesh.devices.flat[0].device_kind)
    return 0.0 if chip is None else flops / (chip.flops * mesh.size)
