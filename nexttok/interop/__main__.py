"""Released checkpoints in, and models of this library out and in again.

    python -m nexttok.interop --list
    python -m nexttok.interop --system=var,var_vqvae \\
        --checkpoint=var_d16.pth,vae_ch160v4096z32.pth --out=runs/var_d16
    python -m nexttok.main --mode=sample --config.params=runs/var_d16 \\
        --config.sample.classes=207,360

    python -m nexttok.interop --export=runs/flextok --out=flextok.safetensors
    python -m nexttok.main --mode=sample --config.params=flextok.safetensors

Reads .safetensors, .npz, flax files (.msgpack, or no suffix as those of MaskGIT and GIVT), and
PyTorch files without running the code in them.
"""

import argparse
import sys

from nexttok.config import ConfigError


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The flags of one of three tasks: list, export, convert."""
    parser = argparse.ArgumentParser(
        prog="python -m nexttok.interop", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument(
        "--list", action="store_true",
        help="name every system, its files, where its authors publish them, and how they come in",
    )  # fmt: skip
    parser.add_argument("--export", default="", metavar="DIR", help="a finished run to write out")
    parser.add_argument(
        "--system", default="",
        help="what the file is, or several, joined by commas; an unknown name lists all",
    )  # fmt: skip
    parser.add_argument("--checkpoint", default="", help="the released file of each system")
    parser.add_argument(
        "--config", default="", help="configs/<paper>.py:<variant>; by default the first of the "
        "system's released sizes that fits"
    )  # fmt: skip
    parser.add_argument(
        "--out", default="", help="workdir to write; with --export a .safetensors file"
    )
    args = parser.parse_args(argv)
    needed = ("out",) if args.export else ("system", "checkpoint", "out")
    for name in () if args.list else needed:
        if not getattr(args, name):
            parser.error(f"--{name} is required")
    args.systems, args.checkpoints = args.system.split(","), args.checkpoint.split(",")
    if len(args.systems) != len(args.checkpoints):
        parser.error("--checkpoint: as many files as --system names systems")
    return args


def convert(args: argparse.Namespace) -> str:
    """Converts released files; returns what to say."""
    from nexttok import config_files, importing  # jax loads here: --help stays instant

    exps = importing.variants(
        args.systems, args.config, args.out, config_files.load_config, config_files.variants_of
    )
    files = dict(zip(args.systems, args.checkpoints, strict=True))
    made = importing.import_checkpoints(files, exps, args.out)
    also = f"; --config chooses another that fits: {', '.join(made.others)}" if made.others else ""
    where = ", ".join(made.directories)
    return f"wrote {where}: {made.parameters:,} parameters of {made.config}{also}"


def main(argv: list[str] | None = None) -> int:
    """Runs one task; returns the exit status."""
    args = parse(argv)
    from nexttok import importing, weights  # jax loads here: --help stays instant
    from nexttok.interop import releases

    try:
        if args.list:
            print(releases.listing(importing.SYSTEMS, importing.NETWORKS))
        elif args.export:
            count = weights.export_run(args.export, args.out)
            print(f"wrote {args.out}: {count:,} parameters")
        else:
            print(convert(args))
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
