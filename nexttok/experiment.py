"""A config made into checked objects: the one place where the parts of an experiment meet."""

import dataclasses
import pathlib
from collections.abc import Callable
from typing import Any

from ml_collections import ConfigDict

from nexttok import drafters, generator, plans, tokenizers, views
from nexttok.bottlenecks.vq import VQ
from nexttok.config import (
    ConfigError,
    build,
    check,
    check_keys,
    check_unread,
    part,
    read_json,
    tuples,
)
from nexttok.data.loader import DataConfig
from nexttok.heads.categorical import CERTAINTIES
from nexttok.heads.draw import Draw
from nexttok.mesh import MeshConfig
from nexttok.nn import features as providers
from nexttok.optim import StageConfig, make_optimizer
from nexttok.profiling import ProfileConfig
from nexttok.samplers.control import contrastive
from nexttok.samplers.logits import warper
from nexttok.samplers.options import OFF, Asked, SamplerConfig
from nexttok.samplers.schedules import Guidance
from nexttok.tokenizers import autoencoder

SECTIONS = (
    "name", "seed", "dtype", "stages", "params", "tokenizer_checkpoint", "cached_passes",
    "token_dataset", "mesh", "data", "train", "features", "latent", "tokenizer", "generator",
    "drafter", "sample", "sampler", "eval", "profile",
)  # fmt: skip
STAGES = ("latent", "tokenizer", "generator")
DRAFTER = "drafter"  # trained on a finished run by a mode of its own
# Parameters that only training reads: no stage is sampled or frozen with them.
TRAINING_ONLY = ("discriminator", "lecam", "projector")
# options of `config.sample` that only some plans and heads read, and what turns them off
SAMPLE_OFF = {
    "steps": 0, "confidence": 0.0, "temperature": 1.0, "top_k": 0, "top_p": 0.0, "typical": 0.0,
    "entropy_top_k": (), "certainty": "", "contrast": 0.0, "contrast_k": 0,
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class SampleConfig:
    """`config.sample`: see configs/common.py."""

    per_class: int
    tokens: int
    temperature: float
    top_k: int
    top_p: float
    typical: float
    entropy_top_k: tuple[int, ...]
    certainty: str
    guidance: float
    guidance_start: float
    guidance_shape: str
    guidance_power: float
    guidance_clock: str
    contrast: float
    contrast_k: int
    confidence: float
    steps: int
    given: int
    source: str
    mask: str
    classes: tuple[int, ...]

    @property
    def strength(self) -> Guidance:
        """How strongly each step is guided."""
        return Guidance(
            self.guidance, self.guidance_start, self.guidance_shape, self.guidance_power,
            self.guidance_clock, self.contrast,
        )  # fmt: skip

    @property
    def mix(self) -> Callable | None:
        """Logits with and without the class -> logits, in place of guidance."""
        if not self.contrast:
            return None
        return lambda cond, other: contrastive(cond, other, self.contrast, self.contrast_k or 1)

    @property
    def draw(self) -> Draw:
        """How a head draws."""
        return Draw(self.warp, self.temperature, certainty=self.certainty, mix=self.mix)

    @property
    def warp(self) -> Callable:
        """logits -> logits, of discrete tokens."""
        return warper(self.temperature, self.top_k, self.top_p, self.typical, self.entropy_top_k)

    def __post_init__(self):
        check(self.confidence >= 0, "sample.confidence", self.confidence, "at least 0")
        for name in ("steps", "given"):
            value = getattr(self, name)
            check(value >= 0, f"sample.{name}", value, "at least 0 (0 for the plan's own)")
        both = bool(self.source) == bool(self.mask)
        check(both, "sample.mask", self.mask, "a picture beside sample.source, or '' without one")
        _ = self.strength
        read = self.contrast_k == 0 or (self.contrast_k > 0 and self.contrast > 0)
        check(read, "sample.contrast_k", self.contrast_k, "at least 1 with sample.contrast, else 0")
        check(self.per_class >= 1, "sample.per_class", self.per_class, "at least 1")
        check(self.tokens >= 0, "sample.tokens", self.tokens, "at least 0 (0 for all)")
        _ = self.warp
        kinds = "'' | " + " | ".join(CERTAINTIES[1:])
        check(self.certainty in CERTAINTIES, "sample.certainty", self.certainty, kinds)


@dataclasses.dataclass(frozen=True)
class EvalConfig:
    """`config.eval`: see configs/common.py."""

    batch_size: int
    images: int
    samples: int
    classifier_steps: int
    clusters: int

    def __post_init__(self):
        for field in dataclasses.fields(self):
            least = 2 if field.name in ("images", "samples", "clusters") else 1
            value = getattr(self, field.name)
            check(value >= least, f"eval.{field.name}", value, f"at least {least}")


@dataclasses.dataclass(frozen=True)
class Experiment:
    """Everything a run needs, checked against each other before anything is written.

    Attributes:
      config: the ConfigDict it was made from.
      data, mesh, sample, sampler, eval, profile: their sections.
      train: stage name -> its training section, in the order of training.
      latent: autoencoder under the tokenizer, or None; features: alignment provider, or None.
      tokenizer: the tokenizer; generator: the generator of its tokens, or None without that stage.
      plan: of sampling, where there is a generator.
      draft: the run whose generator guesses (`config.sampler.draft`), or None.
      drafter: what is trained for a sampler (`config.drafter`), or None; drafting: how.
    """

    config: ConfigDict
    data: DataConfig
    mesh: MeshConfig
    train: dict[str, StageConfig]
    latent: Any
    features: Any
    tokenizer: Any
    generator: generator.Generator | None
    plan: plans.Plan | None
    sample: SampleConfig
    sampler: SamplerConfig
    eval: EvalConfig
    profile: ProfileConfig
    draft: "Experiment | None"
    drafter: drafters.Drafting | drafters.Selector | None
    drafting: StageConfig

    @property
    def image_shape(self) -> tuple[int, ...]:
        """(H, W, C) of the data's pictures, (T, H, W, C) of its videos."""
        return image_shape(self.data)

    @property
    def drafting_only(self) -> "Experiment":
        """The experiment with the drafter for its only stage."""
        return dataclasses.replace(self, train={DRAFTER: self.drafting})

    @property
    def sampled_classes(self) -> tuple[int, ...]:
        """The classes that `--mode=sample` draws."""
        return self.sample.classes or tuple(range(self.data.num_classes))


def resolve(config: ConfigDict) -> Experiment:
    """Builds and checks every part of a config.

    Raises:
      ConfigError: naming the field, its value and what is allowed.
    """
    check_keys(config, SECTIONS, "")
    dtypes = ("float32", "bfloat16")
    check(config.dtype in dtypes, "dtype", config.dtype, " | ".join(dtypes))
    check(isinstance(config.seed, int) and config.seed >= 0, "seed", config.seed, "an int >= 0")
    passes = config.cached_passes
    check(isinstance(passes, int) and passes >= 0, "cached_passes", passes, "an int >= 0")
    for key in ("token_dataset", "tokenizer_checkpoint", "params"):
        check(isinstance(config[key], str), key, config[key], "a path, '' for none")
    stages = tuple(config.stages)
    data = build(DataConfig, config.data, "data")
    shape = image_shape(data)
    check("name" in config.latent, "latent.name", None, "the name of a component, '' for none")
    has_latent = bool(config.latent.name)
    expected = tuple(s for s in STAGES if s != "latent" or has_latent)
    allowed = [expected[:n] for n in range(1, len(expected) + 1)]
    check(stages in allowed, "stages", stages, " | ".join(map(str, allowed)))
    check_keys(config.train, (*STAGES, DRAFTER), "train")
    drafting = stage_config(config, DRAFTER)
    train = {s: stage_config(config, s) for s in stages}
    latent = None
    if has_latent:
        check(config.latent.name == "autoencoder", "latent.name", config.latent.name, "autoencoder")
        latent = autoencoder.make(config.latent, shape, config.dtype, where="latent")
    check_keys(config.features, ("name", "preset", "checkpoint"), "features")
    features = providers.make(config.features.name, config.features.preset, shape)
    module = part(tokenizers, config.tokenizer, "tokenizer")
    tokenizer = module.make(config.tokenizer, shape, config.dtype, latent, features)
    sample = build(SampleConfig, config.sample, "sample")
    fits = set(sample.classes) <= set(range(data.num_classes))
    fits = fits and len(set(sample.classes)) == len(sample.classes)
    allowed = f"different classes among 0 .. {data.num_classes - 1}, () for all"
    check(fits, "sample.classes", sample.classes, allowed)
    sampler = build(SamplerConfig, config.sampler, "sampler")
    gen, plan, draft = None, None, None
    if "generator" in stages:
        gen = generator.make(config.generator, tokenizer.spec, data.num_classes, config.dtype)
        check_sampling(sample, gen, config.generator.plan.name, config.generator.head.name)
        plan = sampled_plan(sample, gen)
    drafter = drafters.make(config.drafter, gen)
    if gen is not None:
        sampler.check_fits(
            Asked(
                gen.spec.grid, gen.spec.vocab, views.causal_refusal(gen),
                hasattr(gen.head, "steps"), config.generator.context.name == "mask", plan.sizes,
                plan.kind, gen.backbone.depth,
                isinstance(getattr(tokenizer, "bottleneck", None), VQ),
                config.generator.context.name == "upsample", config.drafter.name,
                getattr(drafter, "ahead", 0),
            )
        )  # fmt: skip
        draft = draft_run(config, gen, sample) if sampler.draft else None
    return Experiment(
        config=config,
        data=data,
        mesh=build(MeshConfig, config.mesh, "mesh"),
        train=train,
        latent=latent,
        features=features,
        tokenizer=tokenizer,
        generator=gen,
        plan=plan,
        sample=sample,
        sampler=sampler,
        eval=build(EvalConfig, config.eval, "eval"),
        profile=build(ProfileConfig, config.profile, "profile"),
        draft=draft,
        drafter=drafter,
        drafting=drafting,
    )


# what a run whose generator guesses brings along; all else is as in the run that it guesses for
BROUGHT = ("dtype", "data", "stages", "train", "features", "latent", "tokenizer", "generator",
           "tokenizer_checkpoint")  # fmt: skip


def draft_run(config: ConfigDict, gen: generator.Generator, sample: SampleConfig) -> "Experiment":
    """The run of `config.sampler.draft`, whose generator guesses for another, `gen`.

    Raises:
      ConfigError: no such run, or one whose generator draws other tokens, in another order, or of
        other classes.
    """
    workdir = config.sampler.draft
    path, other = pathlib.Path(workdir) / "config.json", config.copy_and_resolve_references()

    def need(fits, allowed):
        check(fits, "sampler.draft", workdir, allowed)

    saved = tuples(read_json(path, "sampler.draft", "the workdir of a finished run"))
    need(set(BROUGHT) <= set(saved), f"the workdir of a run with {', '.join(BROUGHT)}")
    with other.unlocked():
        for name in BROUGHT:
            found = saved[name]
            other[name] = ConfigDict(found) if isinstance(found, dict) else found
        other.train.drafter, other.params = config.train.drafter, ""
        other.drafter.update(drafters.OFF, name="")
        other.sampler.update(OFF, name="plan")
        other.sample.update(guidance=1.0, contrast=0.0, contrast_k=0)
    try:
        found = resolve(other)
    except ConfigError as error:
        raise ConfigError(f"config.sampler.draft = {workdir!r}: {error}") from error
    need(found.generator is not None, "a run with a generator")
    theirs, spec = found.generator, gen.spec
    refusal = views.causal_refusal(theirs)
    need(not refusal, f"another run, as {refusal}")
    need(theirs.spec.vocab == spec.vocab, f"a run of {spec.vocab} ids, not {theirs.spec.vocab}")
    size = spec.length, theirs.spec.length
    need(size[0] == size[1], f"a run of {size[0]} tokens, not {size[1]}")
    same = list(theirs.plan.order) == list(gen.plan.order)
    need(same, "a run that draws the tokens in the same order")
    classes = gen.num_classes, theirs.num_classes
    need(classes[0] == classes[1], f"a run of {classes[0]} classes, not {classes[1]}")
    guided = sample.strength.off or theirs.class_dropout > 0
    need(guided, "a run with class dropout, as sample.guidance is not 1")
    return found


def without_remat(config: ConfigDict) -> ConfigDict:
    """The config with every `remat` off: of what a rematerialized model computes twice, once."""
    found = config.copy_and_resolve_references()

    def clear(section):
        for name, value in section.items():
            if isinstance(value, ConfigDict):
                clear(value)
            elif name == "remat":
                section[name] = False

    clear(found)
    return found


def check_sampling(sample: SampleConfig, gen: generator.Generator, plan: str, head: str) -> None:
    """Raises ConfigError for an option of `config.sample` that the generator cannot follow."""
    read, by = plans.reads(plan) + gen.head.reads, f"plan {plan} with head {head}"
    check_unread(sample, SAMPLE_OFF, read, "sample", by)
    spec, n = gen.spec, gen.spec.length
    free = spec.nested and not (spec.scales or spec.levels)
    lengths = range(0, n + 1, spec.group) if free else (0, *spec.prefixes)
    allowed = f"0 .. {n}" if free and spec.group == 1 else " | ".join(map(str, lengths))
    check(sample.tokens in lengths, "sample.tokens", sample.tokens,
          f"{allowed}, as only such prefixes of these tokens decode (0 for all)")  # fmt: skip
    check(
        sample.steps <= n, "sample.steps", sample.steps, f"0 .. {n} tokens (0 for the plan's own)"
    )
    chosen = not sample.certainty or gen.plan.kind == "confidence"
    check(chosen, "sample.certainty", sample.certainty, f"'', as plan {plan} does not read it")
    unguided = sample.strength.off or gen.class_dropout > 0
    field, off = ("contrast", 0) if sample.contrast else ("guidance", 1)
    allowed = f"{off}, as nothing is trained without a class (generator.class_dropout = 0)"
    check(unguided, f"sample.{field}", getattr(sample, field), allowed)
    check(sample.contrast_k <= max(spec.vocab, 1), "sample.contrast_k", sample.contrast_k,
          f"0 .. {spec.vocab}")  # fmt: skip


def sampled_plan(sample: SampleConfig, gen: generator.Generator) -> plans.Plan:
    """The plan of `config.sample`: in `steps` steps, `given` of them, of the first `tokens`."""
    plan = gen.plan
    if sample.steps:
        plan = plans.make(dataclasses.replace(plan.config, steps=sample.steps), gen.spec)
    return plan.giving(sample.given).prefix(sample.tokens or gen.spec.length)


def image_shape(data: DataConfig) -> tuple[int, ...]:
    """(H, W, C) of pictures, (T, H, W, C) of videos."""
    time = (data.frames,) if data.frames else ()
    return (*time, data.resolution, data.resolution, data.channels)


def stage_config(config: ConfigDict, stage: str) -> StageConfig:
    """`config.train.<stage>`, checked."""
    where = f"train.{stage}"
    cfg = build(StageConfig, config.train[stage], where)
    for name in ("steps", "batch_size", "accumulate", "log_every", "save_every", "keep"):
        check(getattr(cfg, name) >= 1, f"{where}.{name}", getattr(cfg, name), "at least 1")
    check(cfg.batch_size % cfg.accumulate == 0, f"{where}.accumulate", cfg.accumulate,
          f"a divisor of {where}.batch_size = {cfg.batch_size}")  # fmt: skip
    check(cfg.save_every % cfg.log_every == 0, f"{where}.save_every", cfg.save_every,
          f"a multiple of {where}.log_every = {cfg.log_every}")  # fmt: skip
    check(0 <= cfg.ema < 1, f"{where}.ema", cfg.ema, "at least 0 and below 1")
    make_optimizer(cfg, where)
    return cfg
