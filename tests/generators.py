"""One tiny generator per combination of plan, context and head; the law tables run over them."""

import dataclasses
import functools

import jax
import jax.numpy as jnp

from configs import common
from nexttok import generator
from nexttok.contexts.contract import Lesson
from nexttok.tokens import Tokens, TokenSpec

# at these sizes compiling costs more than running
SMALL = dict(width=16, depth=2, head_dim=8, mlp_hidden=24, dropout=0.0)
SECTION = common.section


def _parts(plan, context, head, backbone):
    return SECTION(plan=plan, context=context, head=head, backbone=backbone, class_dropout=0.1)


def _var():
    options = dict(
        qk_norm="l2", condition=("start", "adaln"), null_class=True, final_norm="adaln",
        norm_affine=False, adaln_gain=(1e-3, 0.5), init="third", embed_init="third", bias=True,
        key_bias=False, mlp_bias=True,
    )  # fmt: skip
    return common.backbone(**SMALL, **options)


def _bert():
    options = dict(
        post_norm=True, embed_norm="layer", condition=("prefix",), prefix=1, final_norm="none",
        start_vector=False, bias=True, mlp_bias=True,
    )  # fmt: skip
    return common.backbone(**SMALL, **options)


def _two_stacks(**options):
    return common.backbone(
        "encoder_decoder", **SMALL, decoder_depth=2, null_class=True, start_vector=False, **options
    )


GRID, LINE = TokenSpec((2, 3), 5, 2), TokenSpec((6,), 5, 2, True)
VALUES = TokenSpec((3, 3), 0, 2)


def _xar(plan):
    backbone = _two_stacks(
        condition=("adaln",), embed_norm="rms", norm="rms", final_norm="rms", norm_affine=False,
        positions=("learned", "rope"), adaln_gain=(1.0, 1.0),
    )  # fmt: skip
    return _parts(
        plan, SECTION(name="noise"), SECTION(name="flow", steps=5, solver="sde"), backbone
    )


def _givt(plan, context, **options):
    backbone = common.backbone(
        **SMALL, norm_bias=False, mlp_bias=True, start_vector=False, null_class=True, **options
    )
    return _parts(plan, context, SECTION(name="gmm", mixtures=3, halved=True), backbone)


MAKERS = {
    "flextok": lambda: (
        _parts(common.plan(), SECTION(name="shift"), common.categorical(),
               common.backbone(**SMALL)), LINE),
    "qk_norm_rms": lambda: (
        _parts(common.plan(), SECTION(name="shift"), common.categorical(),
               common.backbone(**SMALL, qk_norm="rms", norm="rms", unroll=2, remat=True)), LINE),
    "llamagen": lambda: (
        _parts(common.plan(), SECTION(name="shift"), common.categorical(),
               common.llama(**SMALL)), GRID),
    "nbp": lambda: (
        _parts(common.plan("blocks", block=2), SECTION(name="block"), common.categorical(),
               common.backbone(**SMALL)), GRID),
    "nbp_hybrid": lambda: (
        _parts(common.plan("rows", lead=True), SECTION(name="block"), common.categorical(),
               common.backbone(**SMALL, condition=("prefix",), prefix=1)), GRID),
    "nbp_pure": lambda: (
        _parts(common.plan("frames", given=1), SECTION(name="block"), common.categorical(),
               common.backbone(**SMALL, condition=("prefix",), prefix=2, prefix_words=True,
                               start_vector=False)), TokenSpec((3, 1, 2), 5, 2)),
    "var": lambda: (
        _parts(common.plan("scales"), SECTION(name="upsample"), common.categorical(), _var()),
        TokenSpec((14,), 5, 2, True, (1, 2, 3))),
    "randar": lambda: (
        _parts(common.plan("random"), SECTION(name="query", layout="interleaved"),
               common.categorical(), common.llama(**SMALL, rotate_query=True)), GRID),
    "arpg": lambda: (
        _parts(common.plan("random", steps=3, schedule="arccos"),
               SECTION(name="query", layout="separate"), common.categorical(),
               common.llama("cross_decoder", **SMALL, decoder_depth=2)), GRID),
    "maskgit": lambda: (
        _parts(common.plan("confidence", steps=4, schedule="cosine"), common.mask(per_example=True),
               common.categorical(tied=True), _bert()), GRID),
    "mar": lambda: (
        _parts(common.plan("random", steps=4, schedule="cosine"),
               common.mask(schedule="truncated_normal", floor=0.7),
               SECTION(name="diffusion", width=16, depth=2, repeats=2, steps=5, clip=0.0),
               _two_stacks(condition=("prefix",), prefix=3, embed_norm="layer",
                           output_positions=True, bias=True, mlp_bias=True)), VALUES),
    "givt": lambda: (_givt(common.plan(), SECTION(name="shift")), VALUES),
    "givt_masked": lambda: (
        _givt(common.plan("confidence", steps=4, schedule="cosine"), common.mask(floor=0.3),
              condition=("prefix",), prefix=1, concat_mask=True), VALUES),
    "xar": lambda: (_xar(common.plan("cells", block=2)), TokenSpec((4, 4), 0, 2)),
    "xar_subsamples": lambda: (_xar(common.plan("subsamples", block=2)), TokenSpec((4, 4), 0, 2)),
    "xar_whole": lambda: (_xar(common.plan("whole")), VALUES),
    "xar_scales": lambda: (_xar(common.plan("scales")), TokenSpec((21,), 0, 2, True, (1, 2, 4))),
}  # fmt: skip


@functools.cache
def make(name: str, classes: int = 3, vocab: int = 5, **backbone) -> generator.Generator:
    """A tiny generator of the table, with changes of its backbone."""
    section, spec = MAKERS[name]()
    section.backbone.update(backbone)
    spec = dataclasses.replace(spec, vocab=vocab) if spec.vocab else spec
    return generator.make(section, spec, classes)


@functools.cache
def params_of(name: str, seed: int = 0) -> dict:
    """Its parameters; see `redrawn`."""
    return redrawn(make(name), seed)


def redrawn(gen: generator.Generator, seed: int = 0) -> dict:
    """Parameters all redrawn, so that zero-initialized layers take part."""
    shapes = jax.eval_shape(gen.init, jax.random.key(0))
    leaves, tree = jax.tree.flatten(shapes)
    keys = jax.random.split(jax.random.key(seed), len(leaves))
    drawn = [0.3 * jax.random.normal(k, x.shape) for k, x in zip(keys, leaves, strict=True)]
    return jax.tree.unflatten(tree, drawn)


@functools.cache
def _predictor(name: str):
    def run(outputs, params, slots, label):
        lesson = Lesson(slots, outputs, slots.content)
        return make(name).predicted(params, lesson, label)

    return jax.jit(run, static_argnums=0)


def predicted(name: str, lesson: Lesson, label: jax.Array) -> jax.Array:
    """Hidden states that predict a lesson's target, compiled once per shape."""
    return _predictor(name)(lesson.outputs, params_of(name), lesson.slots, label)


def tokens_of(name: str, batch: int = 2, seed: int = 7) -> Tokens:
    """Random tokens of its spec."""
    return random_tokens(make(name).spec, batch, seed)


def random_tokens(spec: TokenSpec, batch: int = 2, seed: int = 7) -> Tokens:
    """Random tokens of a spec."""
    key = jax.random.key(seed)
    values = jax.random.normal(key, (batch, spec.length, spec.channels))
    ids = jax.random.randint(key, (batch, spec.length), 0, max(spec.vocab, 1), jnp.int32)
    return Tokens(ids=ids if spec.vocab else None, values=values)
