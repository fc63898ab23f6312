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
from nexttok.experiment import Experiment
from nexttok.interop import (
    flextok,
    givt,
    llama,
    magvit2,
    masked_autoencoder,
    maskgit,
    nbp,
    var,
    var_vqvae,
    vqgan,
)
from nexttok.interop.checkpoints import pick, read
from nexttok.stages import abstract_params

ROOTS = ("model_ema", "ema", "model", "state_dict", "model_state_dict", "module", "trainer")


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
    "mar": System("mar", "generator", _generator(masked_autoencoder.mar)),
    "mar_kl": System("mar", "tokenizer", _tokenizer(vqgan.convert)),
    "xar": System("xar", "generator", _generator(masked_autoencoder.xar)),
    "givt": System("givt", "generator", _generator(givt.convert)),
    "flextok": System("flextok", "tokenizer", lambda s, exp: flextok.convert(s, exp.tokenizer)),
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


def import_checkpoint(system: str, checkpoint: str, exp: Experiment, out: str) -> tuple[str, int]:
    """Converts one released file into <out>/checkpoints/<stage>, and writes <out>/config.json.

    Args:
      system: a name of SYSTEMS.
      checkpoint: the released file.
      exp: the config of its size.
      out: workdir; stages that it holds already stay.

    Returns:
      The checkpoint's directory and its number of parameters.

    Raises:
      ConfigError: an unknown system, a file that cannot be read, entries that do not fit, or a
        workdir of another config. Nothing is written then.
    """
    check(system in SYSTEMS, "system", system, " | ".join(SYSTEMS))
    known = SYSTEMS[system]
    path = pathlib.Path(out) / "config.json"
    mine = json.loads(exp.config.to_json())
    if path.is_file() and json.loads(path.read_text()) != mine:
        raise ConfigError(f"--out = {out!r}: it holds another config; choose another directory")
    params = jax.tree.map(jnp.asarray, known.convert(state_of(checkpoint), exp))
    _agree(params, abstract_params(exp, known.stage), system)
    which = "ema" if exp.train[known.stage].ema else "params"
    directory = os.path.join(out, "checkpoints", known.stage)
    pathlib.Path(out).mkdir(parents=True, exist_ok=True)
    with Checkpoints(directory, keep=1) as saved:
        facts = {"system": system, "file": pathlib.Path(checkpoint).name}
        saved.save(0, {which: params}, data={}, meta=facts, wait=True)
    write_text(path, json.dumps(mine, indent=2, sort_keys=True) + "\n")
    return directory, sum(math.prod(x.shape) for x in jax.tree.leaves(params))


def _agree(params, abstract, system):
    """Raises ConfigError unless converted parameters are those of the config.

    A discriminator, which no release needs to sample, is left out.
    """
    abstract = {k: v for k, v in abstract.items() if k in params or k != "discriminator"}
    have, want = (
        {"/".join(k): tuple(v.shape) for k, v in flatten_dict(tree).items()}
        for tree in (params, abstract)
    )
    if have != want:
        wrong = sorted(n for n in have.keys() | want.keys() if have.get(n) != want.get(n))
        raise ConfigError(f"{system}: parameters do not fit the config: {', '.join(wrong[:8])}")


def resolved(system: str, spec: str, load_config: Callable) -> Experiment:
    """The experiment of `spec`, or of the system's own config file when it is ''."""
    check(system in SYSTEMS, "system", system, " | ".join(SYSTEMS))
    return experiment.resolve(load_config(spec or f"configs/{SYSTEMS[system].config}.py"))
