"""The other side of a comparison: a process that runs one thing whenever it is asked to.

    python -m benchmarks.official.<system> --official=DIR --what=train|generate --size=JSON

It writes one JSON line when it is warm, then reads lines and answers each with the seconds of the
second of two runs. What the official code prints goes to stderr.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Callable

from benchmarks import sizes


def serve(makers: dict[str, Callable[[sizes.Size], tuple[Callable[[], object], str]]]) -> None:
    """Serves {what: maker}; a maker takes the size and returns (one run, what it is in words)."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--official", default="")
    parser.add_argument("--what", choices=sorted(makers), required=True)
    parser.add_argument("--size", type=sizes.load, required=True)
    args = parser.parse_args()
    if args.official:
        sys.path.insert(0, os.path.abspath(args.official))
    channel = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def say(**answer):
        print(json.dumps(answer), file=channel, flush=True)

    run, words = makers[args.what](args.size)
    run()
    say(words=words)
    for _ in sys.stdin:
        run()
        start = time.perf_counter()
        run()
        say(seconds=time.perf_counter() - start)
