"""Progress of a stage: loss, throughput, where a step's time goes, and time left."""

import contextlib
import sys
import time
from collections.abc import Iterator

from tqdm import tqdm

# What `Progress.rates` may hold: of a run's metrics, these alone differ from run to run.
RATES = ("examples_per_second", "tokens_per_second", "step_seconds", "data_seconds", "mfu")


class Progress:
    """A tqdm bar on a terminal; a plain line every few seconds elsewhere.

    Attributes:
      ideal: seconds that one step would take at the devices' peak; 0 where that is not known.
      rates: since the update before: examples_per_second, tokens_per_second where there are tokens,
        step_seconds, data_seconds (of these, waiting for the next batch), and with `ideal` mfu,
        the model FLOPs utilization.
    """

    def __init__(
        self, total: int, start: int, name: str, batch: int, tokens: int = 0, shown: bool = True,
        every: float = 15.0,
    ):  # fmt: skip
        """Starts at `start` of `total` steps of `batch` examples of `tokens` tokens; lines are
        `every` s apart, and there are none unless `shown`."""
        self.total, self.step, self.name, self.every = total, start, name, every
        self.batch, self.tokens = batch, tokens
        self.ideal, self.rates, self._waited = 0.0, {}, 0.0
        self._told = self._begun = self._then = time.monotonic()
        self._first = start
        bar = shown and sys.stderr.isatty()
        self._plain = shown and not bar
        self._bar = tqdm(total=total, initial=start, desc=name, unit="step", disable=not bar)

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Around what waits for data."""
        start = time.monotonic()
        yield
        self._waited += time.monotonic() - start

    def update(self, step: int, metrics: dict[str, float]) -> None:
        """Moves to `step` and shows `metrics["loss"]`, where there is one."""
        now, steps = time.monotonic(), step - self.step
        seconds = max(now - self._then, 1e-9) / steps
        self.rates = {
            "examples_per_second": self.batch / seconds,
            "step_seconds": seconds,
            "data_seconds": self._waited / steps,
        }
        if self.tokens:
            self.rates["tokens_per_second"] = self.batch * self.tokens / seconds
        if self.ideal:
            self.rates["mfu"] = self.ideal / seconds
        self.step, self._then, self._waited = step, now, 0.0
        shown = [f"loss {metrics['loss']:.4f}"] if "loss" in metrics else []
        shown += self._shown()
        self._bar.update(steps)
        self._bar.set_postfix_str(", ".join(shown))
        if self._plain and (now - self._told >= self.every or step == self.total):
            self._told = now
            left = (now - self._begun) / (step - self._first) * (self.total - step)
            shown.append(f"{int(left) // 60}:{int(left) % 60:02d} left")
            print(f"{self.name} {step}/{self.total}", *shown, sep="  ", file=sys.stderr, flush=True)

    def _shown(self) -> list[str]:
        rates = self.rates
        found = [f"{rates['examples_per_second']:.0f} examples/s"]
        if self.tokens:
            found.append(f"{rates['tokens_per_second']:,.0f} tokens/s")
        step, data = 1e3 * rates["step_seconds"], 1e3 * rates["data_seconds"]
        found.append(f"{step:.0f} ms/step, data {data:.0f}")
        if self.ideal:
            found.append(f"MFU {rates['mfu']:.2f}")
        return found

    def close(self) -> None:
        """Ends the bar."""
        self._bar.close()
