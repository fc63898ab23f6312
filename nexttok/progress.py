"""Progress of a training stage: throughput, loss and time left."""

import sys
import time

from tqdm import tqdm


class Progress:
    """A tqdm bar on a terminal; a plain line every few seconds elsewhere.

    Attributes:
      rate: examples per second since the last update.
    """

    def __init__(self, total: int, start: int, name: str, batch: int, every: float = 15.0):
        """Starts at `start` of `total` steps of `batch` examples; lines are `every` s apart."""
        self.total, self.step, self.name, self.batch, self.every = total, start, name, batch, every
        self.rate, self._then = 0.0, time.monotonic()
        self._told = self._begun = self._then
        self._first = start
        plain = not sys.stderr.isatty()
        self._bar = tqdm(total=total, initial=start, desc=name, unit="step", disable=plain)
        self._plain = plain

    def update(self, step: int, metrics: dict[str, float]) -> None:
        """Moves to `step` and shows `metrics["loss"]`."""
        now = time.monotonic()
        self.rate = (step - self.step) * self.batch / max(now - self._then, 1e-9)
        self._bar.update(step - self.step)
        self._bar.set_postfix(loss=f"{metrics['loss']:.4f}", examples_s=f"{self.rate:.0f}")
        self.step, self._then = step, now
        if self._plain and (now - self._told >= self.every or step == self.total):
            self._told = now
            left = (now - self._begun) / max(1, step - self._first) * (self.total - step)
            print(
                f"{self.name} {step}/{self.total}  loss {metrics['loss']:.4f}  "
                f"{self.rate:.0f} examples/s  {int(left) // 60}:{int(left) % 60:02d} left",
                file=sys.stderr, flush=True,
            )  # fmt: skip

    def close(self) -> None:
        """Ends the bar."""
        self._bar.close()
