"""The only entry: python -m nexttok.main --config=configs/flextok.py[:variant] [--mode=...]."""

import argparse
import functools
import logging
import os
import pathlib
import platform
import sys

from ml_collections import ConfigDict

from nexttok import catalog
from nexttok.config import ConfigError
from nexttok.config_files import describe, load_config, load_module, override

MODES = {
    "train": "train every stage (resuming), then measure, draw pictures and write the report",
    "draft": "train what config.drafter adds to the generator of a finished run (resuming)",
    "eval": "measure a finished run again",
    "tokenize": "write the tokens of the training data to config.token_dataset, or to "
    "<workdir>/tokens",
    "cluster": "k-means of a tokenizer's codes into config.eval.clusters coarse labels",
    "sample": "draw images from a finished run (config.sample.*)",
    "images": "write held-out images, their reconstructions and samples, as nexttok.score reads "
    "them (config.eval.images, config.eval.samples)",
    "samplers": "measure the samplers that fit a finished run against each other (--samplers)",
    "sweep": "train every member of the config's own sweep, or of --sweep, that is not finished; "
    "then print the table of all",
    "compile": "compile the training steps and the sampler; print memory, FLOPs, collectives and "
    "the best possible time per device; nothing is run",
}


def parse_arguments(argv: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """The flags, and the config overrides among them."""
    parser = argparse.ArgumentParser(
        prog="python -m nexttok.main",
        description="Trains, measures and samples tokenizers and generators. A paper is a config; "
        "running the same command again resumes.",
        epilog="Any key of the config can be set: --config.seed=1 --config.data.source=photos "
        "--config.mesh.tensor=2. `--config=FILE --help` lists them all with their values.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        add_help=False,
        allow_abbrev=False,
    )
    modes = "; ".join(f"{k}: {v}" for k, v in MODES.items())
    parser.add_argument(
        "--config", metavar="FILE.py[:VARIANT]", help="for example configs/flextok.py:tiny; with "
        "--config.params=DIR by default that of DIR"
    )  # fmt: skip
    parser.add_argument(
        "--list", nargs="?", const="", metavar="WORD",
        help="the configs, one a line: parts, paper, variants; with a word, those that have it",
    )  # fmt: skip
    parser.add_argument(
        "--workdir", metavar="DIR",
        help="default: runs/<config>_<variant>; without --config that of --config.params",
    )  # fmt: skip
    parser.add_argument("--mode", choices=list(MODES), default="train", help=modes)
    parser.add_argument(
        "--samplers", default="", metavar="A;B,KEY=N",
        help="with --mode=samplers: some only, with their options, 'zipar;jacobi,window=7'",
    )  # fmt: skip
    many = parser.add_argument_group("sweep")
    many.add_argument(
        "--sweep", nargs="+", default=[], metavar="KEY=A;B",
        help="the products of these, in place of the config's own: 'seed=0;1'",
    )  # fmt: skip
    many.add_argument("--share", default="", metavar="I/N", help="every N-th member from I on")
    ahead = parser.add_argument_group("compile")
    ahead.add_argument("--topology", default="", help="TPU slices: v5p:2x2x1, or several, a,b,c")
    ahead.add_argument("--slices", type=int, default=1, help="such slices joined by the network")
    ahead.add_argument("--programs", default="", help="some only: tokenizer,generator,sampler")
    ahead.add_argument(
        "--per-device", type=int, default=0, metavar="N",
        help="examples of a device, in place of the config's batch: how a step scales",
    )  # fmt: skip
    ahead.add_argument(
        "--suggest", action="store_true",
        help="search meshes, ZeRO, rematerialization and micro-batches for the last stage",
    )  # fmt: skip
    several = parser.add_argument_group(
        "several processes", "found out on Cloud TPU VMs and of SLURM tasks; elsewhere all three"
    )
    several.add_argument("--coordinator", default="", metavar="HOST:PORT", help="of process 0")
    several.add_argument("--processes", type=int, default=0, metavar="N", help="how many")
    several.add_argument("--process", type=int, default=-1, metavar="I", help="number of this one")
    parser.add_argument(
        "-h", "--help", action="store_true", help="this text, and the config's keys"
    )
    overrides, rest = [], []
    for word in argv:
        (overrides if word.startswith("--config.") else rest).append(word)
    args = parser.parse_args(rest)
    if args.help:
        parser.print_help()
        if args.config:
            print(f"\n{args.config}: {load_module(args.config)[0].__doc__ or ''}")
            print(f"Its keys:\n{describe(load_config(args.config))}")
        raise SystemExit(0)
    if args.list is not None:
        print(catalog.listing(args.list))
        raise SystemExit(0)
    overrides = [word.removeprefix("--config.") for word in overrides]
    if not (args.config or params_of(overrides)):
        parser.error("--config is required, for example --config=configs/flextok.py")
    return args, overrides


def params_of(overrides: list[str]) -> str:
    """`config.params` as these set it."""
    given = [text for name, _, text in (o.partition("=") for o in overrides) if name == "params"]
    return given[-1] if given else ""


def main(argv: list[str] | None = None) -> None:
    """Parses the command line and runs one mode; bad input ends in one line and exit status 2."""
    args, overrides = parse_arguments(sys.argv[1:] if argv is None else argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    for noisy in ("absl", "orbax", "jax"):  # their warnings are about their own internals
        logging.getLogger(noisy).setLevel(logging.ERROR)
    try:
        config = load_config(args.config) if args.config else saved_config(overrides)
        for assignment in overrides:
            override(config, assignment)
        if args.mode == "sweep":
            run_sweep(args, overrides)
        else:
            dispatch(args, config)
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from error
    except RuntimeError as error:
        if type(error).__module__.partition(".")[0] != "nexttok":
            raise  # a defect, not what a run can meet
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(1) from error


def saved_config(overrides: list[str]) -> ConfigDict:
    """The config that lies with the weights of `config.params`.

    Raises:
      ConfigError: no weights, or none of a finished run.
    """
    from nexttok import weights  # jax loads here

    return weights.config_of(params_of(overrides))


def check_workdir(workdir: str) -> None:
    """Raises ConfigError for an address of a store, which would end up as a local folder."""
    if "://" in workdir:
        raise ConfigError(f"--workdir = {workdir!r}: expected a local folder, or a mounted one")


def workdir_of(args: argparse.Namespace, params: str) -> str:
    """--workdir, or runs/<config>_<variant>, of a sweep with its name behind; without a config that
    of the weights."""
    name, _, variant = args.config.partition(":") if args.config else ("", "", "")
    behind = "_sweep" if args.mode == "sweep" else ""
    named = f"runs/{pathlib.Path(name).stem}_{variant or 'default'}{behind}"
    weights = params.partition(",")[0].strip().removesuffix(".safetensors")
    workdir = args.workdir or (named if args.config else weights)
    check_workdir(workdir)
    return workdir


def run_sweep(args: argparse.Namespace, overrides: list[str]) -> None:
    """Runs the members; the devices are theirs, one after the other."""
    from nexttok import sweep

    flags = [f"--{n}={v}" for n in ("coordinator", "processes") if (v := getattr(args, n))]
    flags += [f"--process={args.process}"] if args.process >= 0 else []
    request = sweep.Request(
        args.config, tuple(overrides), tuple(args.sweep), args.share, tuple(flags)
    )
    sweep.run(request, workdir_of(args, params_of(overrides)))


def dispatch(args: argparse.Namespace, config: ConfigDict) -> None:
    """Runs the mode."""
    from nexttok import (
        aot,
        distributed,
        experiment,
        run,
    )  # jax loads here: --help and typing errors stay instant

    if args.mode != "compile":
        distributed.start(args.coordinator, args.processes, args.process)
    exp = experiment.resolve(config)
    workdir = workdir_of(args, exp.config.params)
    if args.mode == "compile":
        topologies, names = (
            tuple(filter(None, text.split(","))) for text in (args.topology, args.programs)
        )
        request = aot.Request(topologies, args.slices, names, args.per_device, args.suggest)
        aot.run_compile(exp, request, workdir)
    else:
        choices = [c.strip() for c in args.samplers.split(";") if c.strip()]
        modes = {
            "train": run.run_train,
            "draft": run.run_draft,
            "eval": run.run_eval,
            "sample": run.run_sample,
            "images": run.run_images,
            "tokenize": run.run_tokenize,
            "cluster": run.run_cluster,
            "samplers": functools.partial(run.run_samplers, choices=choices),
        }
        modes[args.mode](exp, workdir)


def tune_malloc() -> None:
    """Starts the process again with a glibc whose malloc uses huge pages and keeps what is freed,
    once, where nothing is set.

    On CPU the buffers of every step are allocated anew, and what was given back to the system has
    to be cleared page by page: that was a quarter of a training step. glibc reads its tunables only
    as a process starts.
    """
    if platform.libc_ver()[0] == "glibc" and "GLIBC_TUNABLES" not in os.environ:
        kept = {"hugetlb": 1, "mmap_threshold": 1 << 30, "trim_threshold": 4 << 30}
        tuned = ":".join(f"glibc.malloc.{name}={value}" for name, value in kept.items())
        os.execve(sys.executable, sys.orig_argv, os.environ | {"GLIBC_TUNABLES": tuned})


if __name__ == "__main__":
    tune_malloc()
    main()
