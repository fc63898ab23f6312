"""Released weights as a workdir: what `--mode=sample` and `tokenizer_checkpoint` read.

Systems are the models whose official names nexttok/interop knows; each fills one stage.
"""

import dataclasses
import json
import math
import os
import pathlib
from collections.abc import Callable

import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict

from nexttok import experiment
from nexttok.checkpoint import Checkpoints
from nexttok.config import ConfigError, check
from nexttok.evals.results import write_text
from nexttok.experiment import TRAINING_ONLY, Experiment
from nexttok.interop import (
    bigr,
    dar,
    detailflow,
    flextok,
    flextok_ar,
    gigatok,
    givt,
    larp,
    llama,
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
    """

    config: str
    stage: str
    convert: Callable[[dict, Experiment], dict]


def _generator(convert):
    return lambda state, exp: convert(state, exp.generator)


def _tokenizer(convert):
    return lambda state, exp: convert(state, exp.config.tokenizer, exp.image_shape)


SYSTEMS = {
    "llamagen": System("llamagen", "generator", _generator(llama.llamagen)),
    "llamagen_vq": System("llamagen", "tokenizer", _tokenizer(vqgan.convert)),
    "var": System("var", "generator", _generator(var.convert)),
    "var_vqvae": System("var", "tokenizer", _tokenizer(var_vqvae.convert)),
    "nbp": System("nbp", "generator", _generator(nbp.convert)),
    "nbp_tokenizer": System("nbp", "tokenizer", lambda s, exp: magvit2.convert(s, exp.tokenizer)),
    "randar": System("randar", "generator", _generator(llama.llamagen)),
    "arpg": System("arpg", "generator", _generator(llama.arpg)),
    "maskgit": System("maskgit", "generator", _generator(maskgit.convert)),
    "maskgit_vq": System("maskgit", "tokenizer", _tokenizer(pooled_conv.convert)),
    "mar": System("mar", "generator", _generator(masked_autoencoder.mar)),
    "mar_kl": System("mar", "tokenizer", _tokenizer(vqgan.convert)),
    "xar": System("xar", "generator", _generator(masked_autoencoder.xar)),
    "givt": System("givt", "generator", _generator(givt.convert)),
    "givt_vae": System("givt", "tokenizer", _tokenizer(pooled_conv.convert)),
    "titok": System("titok", "tokenizer", lambda s, exp: titok.convert(s, exp.tokenizer)),
    "gigatok": System("gigatok", "tokenizer", lambda s, exp: gigatok.convert(s, exp.tokenizer)),
    "larp": System("larp", "tokenizer", lambda s, exp: larp.convert(s, exp.tokenizer)),
    "bigr_bae": System("bigr", "tokenizer", lambda s, exp: bigr.convert(s, exp.tokenizer)),
    "dar": System("dar", "tokenizer", lambda s, exp: dar.convert(s, exp.tokenizer)),
    "detailflow": System(
        "detailflow", "tokenizer", lambda s, exp: detailflow.convert(s, exp.tokenizer)
    ),
    "slate": System("slate", "tokenizer", lambda s, exp: slate.convert(s, exp.tokenizer)),
    "flextok": System("flextok", "tokenizer", lambda s, exp: flextok.convert(s, exp.tokenizer)),
    "flextok_ar": System("flextok", "generator", _generator(flextok_ar.convert)),
    "flextok_vae": System("flextok", "latent", lambda s, exp: flextok.convert_vae(s, exp.latent)),
}


def state_of(path: str) -> dict[str, np.ndarray]:
    """Flat entries of a released file; of flax (msgpack or npz) trees, '/'-joined paths.

    Raises:
      ConfigError: a file that cannot be read.
    """
    file = pathlib.Path(path)
    if file.suffix in (".msgpack", "") and file.is_file():
        try:
            tree = flax.serialization.msgpack_restore(file.read_bytes())
        except Exception as error:  # a damaged file may fail anywhere in its reader
            raise ConfigError(f"--checkpoint = {path!r}: {error}") from error
        for root in ("target", "ema_params", "params"):
            tree = tree.get(root, tree)
        return {"/".join(k): np.asarray(v) for k, v in flatten_dict(tree).items()}
    state = pick(read(path), *ROOTS)
    return {name.removeprefix("params/"): value for name, value in state.items()}


def variants(
    system: str, spec: str, out: str, load: Callable, names: Callable
) -> dict[str, Experiment]:
    """The experiments a file of a system may be for, by their `--config`.

    Args:
      system: a name of SYSTEMS.
      spec: "configs/<paper>.py:<variant>", or "" for every paper-scale variant of the system's own
        config (for that of the config in `out`, where there is one).
      out: workdir that will be written.
      load, names: load_config and variants_of of nexttok/config_files.py.

    Raises:
      ConfigError: an unknown system or config.
    """
    check(system in SYSTEMS, "system", system, " | ".join(SYSTEMS))
    if spec:
        return {spec: experiment.resolve(load(spec))}
    path = f"configs/{SYSTEMS[system].config}.py"
    specs = [f"{path}:{v}" for v in names(path) if v.startswith(PAPER_SCALE)]
    found = {s: experiment.resolve(load(s)) for s in specs}
    file = pathlib.Path(out) / "config.json"
    saved = json.loads(file.read_text()) if file.is_file() else None
    same = {s: e for s, e in found.items() if json.loads(e.config.to_json()) == saved}
    return same or found


@dataclasses.dataclass(frozen=True)
class Imported:
    """What an import wrote.

    Attributes:
      directory: the checkpoint's; parameters: their number.
      config: the `--config` that it is for; others: those whose parameters are the same.
    """

    directory: str
    parameters: int
    config: str
    others: tuple[str, ...]


def import_checkpoint(
    system: str, checkpoint: str, exps: dict[str, Experiment], out: str
) -> Imported:
    """Converts one released file into <out>/checkpoints/<stage>, and writes <out>/config.json.

    Args:
      system: a name of SYSTEMS.
      checkpoint: the released file.
      exps: configs it may be for, by `--config`; the first that fits is taken.
      out: workdir; stages that it holds already stay.

    Raises:
      ConfigError: an unknown system, a file that cannot be read, entries that do not fit, or a
        workdir of another config. Nothing is written then.
    """
    check(system in SYSTEMS, "system", system, " | ".join(SYSTEMS))
    known = SYSTEMS[system]
    spec, params = _first_fit(known, state_of(checkpoint), exps)
    exp = exps[spec]
    path = pathlib.Path(out) / "config.json"
    mine = json.loads(exp.config.to_json())
    if path.is_file() and json.loads(path.read_text()) != mine:
        raise ConfigError(f"--out = {out!r}: it holds another config; choose another directory")
    params = jax.tree.map(jnp.asarray, params)
    which = "ema" if exp.train[known.stage].ema else "params"
    directory = os.path.join(out, "checkpoints", known.stage)
    pathlib.Path(out).mkdir(parents=True, exist_ok=True)
    with Checkpoints(directory, keep=1) as saved:
        facts = {"system": system, "file": pathlib.Path(checkpoint).name}
        saved.save(0, {which: params}, data={}, meta=facts, wait=True)
    write_text(path, json.dumps(mine, indent=2, sort_keys=True) + "\n")
    count = sum(math.prod(x.shape) for x in jax.tree.leaves(params))
    return Imported(directory, count, spec, _alike(known, params, exps, spec))


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
