"""The metrics that papers publish.

    python -m nexttok.score REAL FAKE --metrics=fid,sfid,is,pr --inception=FILE [--out=JSON]
    python -m nexttok.score ORIGINALS RECONSTRUCTIONS --metrics=psnr,ssim
    python -m nexttok.score REAL --statistics=reference.npz --inception=FILE
    python -m nexttok.score runs/var runs/var --metrics=fid,rfid,psnr --inception=FILE

REAL and FAKE are folders of images, .npy files of uint8 [N, H, W, C], .npz files with arr_0, or
workdirs after `nexttok.main --mode=images`. REAL may be a reference of ADM's evaluator (mu, sigma,
mu_s, sigma_s[, arr_0]). Features are kept in --cache: a command that was stopped goes on where it
was, and further metrics of the same sets cost nothing.

metrics: fid, sfid, is, pr (precision and recall), kid, of Inception; cmmd, of CLIP; of pairs in
order, rfid, lpips, psnr, ssim.
"""

import argparse
import logging
import sys

from nexttok.config import ConfigError, check


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The flags."""
    parser = argparse.ArgumentParser(
        prog="python -m nexttok.score", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False,
    )  # fmt: skip
    parser.add_argument("real", metavar="REAL", help="reference images, or their statistics")
    parser.add_argument("fake", metavar="FAKE", nargs="?", default="", help="what is scored")
    parser.add_argument("--metrics", default="", help="names joined by commas")
    files = parser.add_argument_group("weight files, .pth or .safetensors; no code in them is run")
    files.add_argument(
        "--inception", default="", metavar="FILE",
        help="pt_inception-2015-12-05-6726825d.pth of mseitzer/pytorch-fid's releases",
    )  # fmt: skip
    files.add_argument(
        "--clip", default="", metavar="FILE", help="of openai/clip-vit-large-patch14-336"
    )
    files.add_argument(
        "--lpips", default="", metavar="FILE,FILE",
        help="torchvision's vgg16-397923af.pth and vgg.pth of PerceptualSimilarity, version 0.1",
    )  # fmt: skip
    parser.add_argument(
        "--resize", default="adm",
        help="to Inception's 299 pixels: adm (TensorFlow 1's bilinear, what ADM's evaluator and "
        "torch-fidelity do; the default), pytorch (pytorch-fid), clean (clean-fid)",
    )  # fmt: skip
    parser.add_argument(
        "--crop", type=int, default=0, metavar="SIDE",
        help="centre squares of the images of folders, as ADM prepares ImageNet",
    )  # fmt: skip
    parser.add_argument("--batch", type=int, default=64, help="images at once in every process")
    parser.add_argument("--cache", default="runs/features", metavar="DIR", help="of features")
    parser.add_argument("--out", default="", metavar="JSON", help="write the numbers here too")
    parser.add_argument(
        "--statistics", default="", metavar="NPZ", help="write mu, sigma, mu_s, sigma_s of REAL"
    )
    several = parser.add_argument_group(
        "several processes", "found out on Cloud TPU VMs and of SLURM tasks; elsewhere all three"
    )
    several.add_argument("--coordinator", default="", metavar="HOST:PORT", help="of process 0")
    several.add_argument("--processes", type=int, default=0, metavar="N", help="how many")
    several.add_argument("--process", type=int, default=-1, metavar="I", help="number of this one")
    return parser.parse_args(argv)


def run(args: argparse.Namespace) -> None:
    """Scores, prints and writes.

    Raises:
      ConfigError: bad input.
    """
    names = tuple(filter(None, args.metrics.split(",")))
    asked = bool(args.fake) and bool(names)
    wanted = "REAL FAKE --metrics=NAMES, or REAL --statistics=NPZ"
    check(asked or (bool(args.statistics) and not (args.fake or names)), "metrics",
          args.metrics, wanted)  # fmt: skip

    import jax  # here, so that --help stays instant

    from nexttok import distributed
    from nexttok.evals.results import write_results
    from nexttok.score import measures, reference

    distributed.start(args.coordinator, args.processes, args.process)
    keys = ("inception", "clip", "lpips", "resize", "crop", "batch", "cache")
    options = {key: getattr(args, key) for key in keys}
    first = jax.process_index() == 0
    if args.statistics:
        request = measures.Request(args.real, "", ("fid", "sfid"), **options)
        found = measures.statistics(request)
        if first:
            reference.write(args.statistics, found)
            print(f"wrote {args.statistics}")
    if asked:
        found = measures.score(measures.Request(args.real, args.fake, names, **options))
        if first:
            for name, value in found["metrics"].items():
                print(f"{name:10} {value:.6g}")
            if args.out:
                write_results(args.out, found)


def main(argv: list[str] | None = None) -> int:
    """The command line; returns the exit status."""
    args = parse(argv)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    try:
        run(args)
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
