"""Encoding with a large codebook against vector-quantize-pytorch, in one run.

    python -m benchmarks.codebook --python=<environment with torch, vector-quantize-pytorch>
        [--size=65536] [--channels=8] [--batch=64] [--tokens=256] [--repeats=3]

Both find the nearest code of the same latents in float32 on as many threads as there are cores, in
turns; medians and their ratio are printed, and how many codes agree.
"""

import argparse
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

import jax
import jax.numpy as jnp
import numpy as np

from nexttok.bottlenecks.search import nearest

PEER = """
import sys, time
import numpy as np, torch
from vector_quantize_pytorch import VectorQuantize
saved = np.load(sys.argv[1])
torch.set_num_threads(int(sys.argv[2]))
z, codes = torch.from_numpy(saved["z"]), torch.from_numpy(saved["codes"])
model = VectorQuantize(dim=z.shape[-1], codebook_size=len(codes)).eval()
model._codebook.embed.data.copy_(codes[None])
model._codebook.initted.data.fill_(True)
with torch.no_grad():
    model(z)
    start = time.perf_counter()
    ids = model(z)[1]
    print(time.perf_counter() - start)
np.save(sys.argv[3], ids.numpy())
"""


def ours(z: np.ndarray, codes: np.ndarray) -> tuple[float, np.ndarray]:
    """Seconds of one call, compiled and run before; ids [B, N]."""
    find = jax.jit(lambda z, codes: nearest(z.reshape(-1, z.shape[-1]), codes))
    args = jnp.asarray(z), jnp.asarray(codes)
    jax.block_until_ready(find(*args))
    start = time.perf_counter()
    ids = jax.block_until_ready(find(*args))
    return time.perf_counter() - start, np.asarray(ids).reshape(z.shape[:2])


def peer(python: str, folder: pathlib.Path) -> tuple[float, np.ndarray]:
    """The same of vector-quantize-pytorch."""
    words = [python, "-c", PEER, folder / "in.npz", str(os.cpu_count()), folder / "ids.npy"]
    said = subprocess.run(words, check=True, capture_output=True, text=True).stdout
    return float(said.split()[-1]), np.load(folder / "ids.npy")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.codebook", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--python", required=True)
    for name, value in dict(size=65536, channels=8, batch=64, tokens=256, repeats=3).items():
        parser.add_argument(f"--{name}", type=int, default=value)
    args = parser.parse_args()
    rng = np.random.default_rng(0)
    z = rng.normal(size=(args.batch, args.tokens, args.channels)).astype(np.float32)
    codes = rng.normal(size=(args.size, args.channels)).astype(np.float32)
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        np.savez(folder / "in.npz", z=z, codes=codes)
        turns = [(peer(args.python, folder), ours(z, codes)) for _ in range(args.repeats)]
    theirs, mine = (statistics.median(t[i][0] for t in turns) for i in (0, 1))
    agree = (turns[0][0][1] == turns[0][1][1]).mean()
    tokens = args.batch * args.tokens
    print(f"{tokens} latents of {args.channels} channels, {args.size} codes; {agree:.2%} of the "
          f"codes agree\nvector-quantize-pytorch {theirs:.2f} s, nexttok {mine:.2f} s "
          f"({tokens / mine:.0f} tokens/s): {theirs / mine:.2f} times as fast")  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
