"""Released checkpoints in.

    python -m nexttok.interop --system=var --checkpoint=var_d16.pth --out=runs/var_d16
    python -m nexttok.interop --system=var_vqvae --checkpoint=vae_ch160v4096z32.pth \\
        --out=runs/var_d16
    python -m nexttok.main --config=configs/var.py:imagenet256_d16 --workdir=runs/var_d16 \\
        --mode=sample --config.sample.classes=207,360

Reads .safetensors, .npz, flax files (.msgpack, or no suffix as those of MaskGIT and GIVT), and
PyTorch files without running the code in them.
"""

import argparse
import sys

from nexttok.config import ConfigError


def main(argv: list[str] | None = None) -> int:
    """Converts one file; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m nexttok.interop", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument(
        "--system", required=True, help="what the file is; an unknown name lists all"
    )
    parser.add_argument("--checkpoint", required=True, help="the released file")
    parser.add_argument(
        "--config", default="", help="configs/<paper>.py:<variant>; by default the first of the "
        "system's released sizes that fits"
    )  # fmt: skip
    parser.add_argument("--out", required=True, help="workdir to write")
    args = parser.parse_args(argv)

    from nexttok import config_files, importing  # jax loads here: --help stays instant

    try:
        exps = importing.variants(
            args.system, args.config, args.out, config_files.load_config, config_files.variants_of
        )
        made = importing.import_checkpoint(args.system, args.checkpoint, exps, args.out)
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    also = f"; --config chooses another that fits: {', '.join(made.others)}" if made.others else ""
    print(f"wrote {made.directory}: {made.parameters:,} parameters of {made.config}{also}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
