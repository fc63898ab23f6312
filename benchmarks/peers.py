"""Speed against official code.

    python -m benchmarks.peers <system> --official=CHECKOUT --python=VENV/bin/python
        [--what=train|generate] [--repeats=5] [--threads=2] [--dropout=0.1]
        [--tiny]

Systems: llamagen, var, mar (PyTorch), maskgit (generation: its JAX release; training: stock
PyTorch), givt (JAX, generation only). CHECKOUT is the official repository, cloned anywhere; PYTHON
an environment that has what it needs (torch; timm for MAR), the running one for JAX. The official
side runs in its own process, and the two take turns, so that both meet the same machine; a turn is
an untimed run and a timed one, as memory given back while the other side runs is slow to get again.
Run it by hand on an idle machine. Size: benchmarks/sizes.py.

A training step is forward, backward, clipping and AdamW. A generation ends with the tokens. Prints
medians, their ratio, and the share of this machine's matrix product (2048^3, float32, measured
between the runs) that the matrix products of our side reach.
"""

import argparse
import dataclasses
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks import sizes
from nexttok.main import tune_malloc

WHAT = {
    "llamagen": ("train", "generate"),
    "var": ("train", "generate"),
    "mar": ("train", "generate"),
    "maskgit": ("train", "generate"),
    "givt": ("generate",),
}
# How much faster than the official side ours is meant to be.
TARGETS = {
    ("llamagen", "generate"): 3.0,
    ("var", "generate"): 1.2,
    ("mar", "generate"): 1.1,
    ("maskgit", "generate"): 2.0,
    ("givt", "generate"): 2.0,
}


class Peer:
    """The official side, waiting in its process (see official/serve.py)."""

    def __init__(self, python: str, system: str, official: str, what: str, size: sizes.Size):
        self.errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 (it outlives this call)
        self.process = subprocess.Popen(
            [python, "-m", f"benchmarks.official.{system}", f"--official={official}",
             f"--what={what}", f"--size={size.dump()}"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.errors, text=True,
            cwd=Path(__file__).resolve().parent.parent,
        )  # fmt: skip
        self.words = self._answer("words")

    def _answer(self, key):
        line = self.process.stdout.readline()
        if not line:
            self.errors.seek(0)
            raise SystemExit("the official side ended:\n" + self.errors.read()[-3000:])
        return json.loads(line)[key]

    def run(self) -> float:
        """Seconds of the second of two runs."""
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return self._answer("seconds")

    def close(self) -> None:
        """Ends the process."""
        self.process.stdin.close()
        self.process.wait()


def once(run: Callable[[], object]) -> float:
    """Seconds of one run, its arrays ready."""
    import jax

    start = time.perf_counter()
    jax.block_until_ready(run())
    return time.perf_counter() - start


def warm(run: Callable[[], object]) -> float:
    """Seconds of the second of two runs."""
    once(run)
    return once(run)


def matmul() -> tuple[Callable[[], object], int]:
    """A product of two 2048 x 2048 float32 matrices, and its FLOPs."""
    import jax

    a = jax.random.normal(jax.random.key(0), (2048, 2048))
    product = jax.jit(lambda x: x @ x)
    return lambda: product(a), 2 * 2048**3


def our_side(system: str, what: str, size: sizes.Size) -> tuple[Callable[[], object], int]:
    """One run of our side, and the FLOPs of its matrix products."""
    from benchmarks import ours

    exp = ours.experiment(system, size)
    if what == "generate":
        sample, args = ours.generation(exp, size)
        return lambda: sample(*args), ours.matmul_flops(sample, *args)
    step, state = ours.training(exp, size)
    flops, states = ours.matmul_flops(step, state), [state]

    def run():
        states[0], metrics = step(states[0])
        return metrics

    return run, flops


def compare(system: str, what: str, size: sizes.Size, args: argparse.Namespace) -> None:
    """Times both sides in turns and prints one paragraph."""
    own, flops = our_side(system, what, size)
    compiled = once(own)
    torch = system != "maskgit" or what == "train"
    torch = torch and system != "givt"
    peer = Peer(args.python if torch else sys.executable, system, args.official, what, size)
    product, product_flops = matmul()
    ours, theirs, products = [], [], []
    for _ in range(args.repeats):
        ours.append(warm(own))
        theirs.append(peer.run())
        products += [warm(product) for _ in range(3)]
    peer.close()
    mine, other = statistics.median(ours), statistics.median(theirs)
    peak = product_flops / statistics.median(products)
    target = TARGETS.get((system, what), 1.0)
    spread = "{:.3f} s ({:.3f} .. {:.3f})".format
    print(f"{system} {what}: {other / mine:.2f} times as fast (target {target})")
    print(f"  ours      {spread(mine, min(ours), max(ours))}, first call {compiled:.1f} s")
    print(f"  official  {spread(other, min(theirs), max(theirs))}; {peer.words}")
    print(f"  our matrix products: {flops / 1e9:.1f} GFLOP (counted in the jaxpr), "
          f"{flops / mine / 1e9:.0f} GFLOP/s = {flops / mine / peak:.0%} of {peak / 1e9:.0f}",
          flush=True)  # fmt: skip


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("system", choices=sorted(WHAT))
    parser.add_argument("--official", required=True, help="a checkout of the official repository")
    parser.add_argument("--python", default=sys.executable, help="an environment with torch")
    parser.add_argument("--what", choices=("train", "generate"), help="both, where there are both")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2, help="of both sides")
    parser.add_argument("--dropout", type=float, default=sizes.FULL.dropout, help="see sizes.py")
    parser.add_argument("--tiny", action="store_true", help="seconds: shows that it runs")
    args = parser.parse_args()
    if args.what and args.what not in WHAT[args.system]:
        parser.error(f"{args.system} has no {args.what}")
    # before jax starts its threads; the other process inherits both
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: args.threads])
    os.environ["OMP_NUM_THREADS"] = str(args.threads)
    os.environ["JAX_PLATFORMS"] = "cpu"
    size = dataclasses.replace(sizes.TINY if args.tiny else sizes.FULL, dropout=args.dropout)
    print(f"{size}\nload {os.getloadavg()[0]:.2f}")
    for what in (args.what,) if args.what else WHAT[args.system]:
        compare(args.system, what, size, args)


if __name__ == "__main__":
    tune_malloc()  # of both sides
    main()
