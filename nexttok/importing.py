"""Released weights as a workdir: what `--mode=sample` and `tokenizer_checkpoint` read.

Systems are the models whose official names nexttok/interop knows; each fills one stage.
"""

import dataclasses
import json
import math
import os
import pathlib
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict

from nexttok import experiment
from nexttok.checkpoint import Checkpoints
from nexttok.config import ConfigError, check, read_json
from nexttok.evals.results import write_text
from nexttok.experiment import TRAINING_ONLY, Experiment
from nexttok.interop import (
    bigr,
    clip,
    dar,
    detailflow,
    dino,
    dinov2,
    flextok,
    flextok_ar,
    gigatok,
    givt,
    inception,
    larp,
    llama,
    lpips,
    magvit2,
    masked_autoencoder,
    maskgit,
    nbp,
    pooled_conv,
    slate,
    titok,
    var,
    var_vqvae,
    vqgan,
)
from nexttok.interop.checkpoints import Misfit, pick, read
from nexttok.interop.releases import Release
from nexttok.stages import abstract_params

ROOTS = (
    "model_ema", "ema", "model", "state_dict", "model_state_dict", "module", "trainer.var_wo_ddp",
)  # fmt: skip
PAPER_SCALE = (
    "imagenet",
    "ucf",
    "k600",
    "shapes3d",
    "clevr",
)  # how the variants of released sizes are named


@dataclasses.dataclass(frozen=True)
class System:
    """One released model.

    Attributes:
      config: config file of its paper; stage: what it fills.
      convert: (state dict, experiment) -> parameters.
      releases: what its authors publish.
    """

    config: str
    stage: str
    convert: Callable[[dict, Experiment], dict]
    releases: tuple[Release, ...]


def _generator(config, convert, releases):
    return System(config, "generator", lambda s, exp: convert(s, exp.generator), releases)


def _section(config, convert, releases):
    """A converter that reads the tokenizer's section."""
    read = lambda s, exp: convert(s, exp.config.tokenizer, exp.image_shape)
    return System(config, "tokenizer", read, releases)


def _tokenizer(config, convert, releases):
    return System(config, "tokenizer", lambda s, exp: convert(s, exp.tokenizer), releases)


SYSTEMS = {
    "llamagen": _generator("llamagen", llama.llamagen, llama.LLAMAGEN),
    "llamagen_vq": _section("llamagen", vqgan.convert, vqgan.LLAMAGEN),
    "var": _generator("var", var.convert, var.RELEASES),
    "var_vqvae": _section("var", var_vqvae.convert, var_vqvae.RELEASES),
    "nbp": _generator("nbp", nbp.convert, nbp.RELEASES),
    "nbp_tokenizer": _tokenizer("nbp", magvit2.convert, magvit2.RELEASES),
    "randar": _generator("randar", llama.llamagen, llama.RANDAR),
    "arpg": _generator("arpg", llama.arpg, llama.ARPG),
    "maskgit": _generator("maskgit", maskgit.convert, maskgit.RELEASES),
    "maskgit_vq": _section("maskgit", pooled_conv.convert, pooled_conv.MASKGIT),
    "mar": _generator("mar", masked_autoencoder.mar, masked_autoencoder.MAR),
    "mar_kl": _section("mar", vqgan.convert, vqgan.MAR),
    "xar": _generator("xar", masked_autoencoder.xar, masked_autoencoder.XAR),
    "givt": _generator("givt", givt.convert, givt.RELEASES),
    "givt_vae": _section("givt", pooled_conv.convert, pooled_conv.GIVT),
    "titok": _tokenizer("titok", titok.convert, titok.RELEASES),
    "gigatok": _tokenizer("gigatok", gigatok.convert, gigatok.RELEASES),
    "larp": _tokenizer("larp", larp.convert, larp.RELEASES),
    "bigr_bae": _tokenizer("bigr", bigr.convert, bigr.RELEASES),
    "dar": _tokenizer("dar", dar.convert, dar.RELEASES),
    "detailflow": _tokenizer("detailflow", detailflow.convert, detailflow.RELEASES),
    "slate": _tokenizer("slate", slate.convert, slate.RELEASES),
    "flextok": _tokenizer("flextok", flextok.convert, flextok.RELEASES),
    "flextok_ar": _generator("flextok", flextok_ar.convert, flextok_ar.RELEASES),
    "flextok_vae": System(
        "flextok", "latent", lambda s, exp: flextok.convert_vae(s, exp.latent),
        flextok.VAE_RELEASES,
    ),
}  # fmt: skip
# read as they are, where a key of a config names their file
NETWORKS = {
    "dinov2": dinov2.RELEASES, "dino": dino.RELEASES, "lpips": lpips.RELEASES,
    "inception": inception.RELEASES, "clip": clip.RELEASES,
}  # fmt: skip


def state_of(path: str) -> dict[str, np.ndarray]:
    """Flat entries of a released file; of flax (msgpack or npz) trees, '/'-joined paths.

    Raises:
      ConfigError: a file that cannot be read.
    """
    tree = read(path)
    if pathlib.Path(path).suffix in (".msgpack", ""):
        for root in ("target", "ema_params", "params"):
            tree = tree[root] if isinstance(tree.get(root), dict) else tree
        tree = {"/".join(map(str, k)): v for k, v in flatten_dict(tree).items()}
    state = pick(tree, *ROOTS)
    return {name.removeprefix("params/"): value for name, value in state.items()}


def variants(
    systems: list[str], spec: str, out: str, load: Callable, names: Callable
) -> dict[str, Experiment]:
    """The experiments that files of these systems may be for, by their `--config`.

    Args:
      systems: names of SYSTEMS.
      spec: "configs/<paper>.py:<variant>", or "" for every paper-scale variant of the first
        system's own config (for that of the config in `out`, where there is one).
      out: workdir that will be written.
      load, names: load_config and variants_of of nexttok/config_files.py.

    Raises:
      ConfigError: an unknown system or config.
    """
    for system in systems:
        check(system in SYSTEMS, "system", system, " | ".join(SYSTEMS))
    if spec:
        return {spec: experiment.resolve(load(spec))}
    path = f"configs/{SYSTEMS[systems[0]].config}.py"
    specs = [f"{path}:{v}" for v in names(path) if v.startswith(PAPER_SCALE)]
    found = {s: experiment.resolve(load(s)) for s in specs}
    file = pathlib.Path(out) / "config.json"
    saved = read_json(file, "out", "a workdir") if file.is_file() else None
    same = {s: e for s, e in found.items() if json.loads(e.config.to_json()) == saved}
    return same or found


@dataclasses.dataclass(frozen=True)
class Imported:
    """What an import wrote.

    Attributes:
      directories: the checkpoints'; parameters: their number.
      config: the `--config` that it is for; others: those whose parameters are the same.
    """

    directories: tuple[str, ...]
    parameters: int
    config: str
    others: tuple[str, ...]


def import_checkpoints(files: dict[str, str], exps: dict[str, Experiment], out: str) -> Imported:
    """Converts released files into <out>/checkpoints/<stage>, and writes <out>/config.json.

    Args:
      files: by the system of each, a name of SYSTEMS; they fill different stages.
      exps: configs they may be for, by `--config`; the first that fits all is taken.
      out: workdir; stages that it holds already stay.

    Raises:
      ConfigError: an unknown system, two of one stage, a file that cannot be read, entries that do
        not fit, or a workdir of another config. Nothing is written then.
    """
    for system in files:
        check(system in SYSTEMS, "system", system, " | ".join(SYSTEMS))
    stages = [SYSTEMS[system].stage for system in files]
    check(len(set(stages)) == len(stages), "system", ",".join(files), "one system for each stage")
    converted, left = {}, exps
    for system, path in files.items():
        known = SYSTEMS[system]
        spec, params = _first_fit(known, state_of(path), left)
        left = {s: left[s] for s in (spec, *_alike(known, params, left, spec))}
        converted[system] = params
    spec, *others = left
    _write(files, converted, exps[spec], out)
    directories = tuple(os.path.join(out, "checkpoints", stage) for stage in stages)
    count = sum(math.prod(x.shape) for x in jax.tree.leaves(converted))
    return Imported(directories, count, spec, tuple(others))


def _write(files: dict[str, str], converted: dict[str, dict], exp: Experiment, out: str) -> None:
    """Writes the stages and the config, unless the workdir holds another config."""
    path = pathlib.Path(out) / "config.json"
    mine = json.loads(exp.config.to_json())
    if path.is_file() and read_json(path, "out", "a workdir") != mine:
        raise ConfigError(f"--out = {out!r}: it holds another config; choose another directory")
    path.parent.mkdir(parents=True, exist_ok=True)
    for system, params in converted.items():
        stage = SYSTEMS[system].stage
        which = "ema" if exp.train[stage].ema else "params"
        facts = {"system": system, "file": pathlib.Path(files[system]).name}
        with Checkpoints(os.path.join(out, "checkpoints", stage), keep=1) as saved:
            items = {which: jax.tree.map(jnp.asarray, params)}
            saved.save(0, items, data={}, meta=facts, wait=True)
    write_text(path, json.dumps(mine, indent=2, sort_keys=True) + "\n")


def _first_fit(known: System, state: dict, exps: dict[str, Experiment]) -> tuple[str, dict]:
    """The first config that the state dict fits, and the parameters.

    Raises:
      ConfigError: it fits none; the misfits are those of the closest.
    """
    misfits = {}
    for spec, exp in exps.items():
        try:
            params = known.convert(state, exp)
        except Misfit as error:
            misfits[spec] = error
        else:
            _agree(params, abstract_params(exp, known.stage))
            return spec, params
    closest = min(misfits, key=lambda spec: len(misfits[spec].problems))
    if len(misfits) == 1:
        raise misfits[closest]
    raise ConfigError(
        f"--checkpoint: it fits none of {', '.join(misfits)}; the closest is {closest}, but: "
        f"{misfits[closest]}"
    )


def _shapes(params) -> dict[str, tuple[int, ...]]:
    """Shapes by path of what a frozen or sampled stage reads, which is what a release holds."""
    kept = {k: v for k, v in params.items() if k not in TRAINING_ONLY}
    return {"/".join(k): tuple(v.shape) for k, v in flatten_dict(kept).items()}


def _alike(known: System, params, exps: dict[str, Experiment], spec: str) -> tuple[str, ...]:
    """The other configs that take these parameters."""
    others = {s: _shapes(abstract_params(e, known.stage)) for s, e in exps.items() if s != spec}
    return tuple(s for s, shapes in others.items() if shapes == _shapes(params))


def _agree(params, abstract):
    """Raises ConfigError unless converted parameters are those of the config."""
    have, want = _shapes(params), _shapes(abstract)
    if have != want:
        wrong = sorted(n for n in have.keys() | want.keys() if have.get(n) != want.get(n))
        raise ConfigError(f"parameters do not fit the config: {', '.join(wrong[:8])}")
