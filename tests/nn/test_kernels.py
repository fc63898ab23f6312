"""Kernels of attention against its dense form; Splash attention in interpret mode."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src.cudnn import fused_attention_stablehlo

from nexttok import flops
from nexttok.aot import hlo
from nexttok.mesh import MeshConfig, make_mesh, platform, use_mesh
from nexttok.nn import kernels
from nexttok.rng import stream
from tests import generators

VAR = tuple(s * s for s in (1, 2, 3, 4, 5, 6, 8, 10, 13, 16))  # 680 tokens at 256 x 256
RUNS = {
    "causal": (1,) * 40,
    "whole": (130,),
    "prefix": (7, *(1,) * 130),
    "scales": VAR[:8],
    "blocks": (64,) * 3,
}


def drawn(runs, batch=2, heads=2, wide=8):
    shape = (batch, sum(runs), heads, wide)
    keys = (stream(jax.random.key(0), name) for name in "qkv")
    return tuple(jax.random.normal(key, shape) for key in keys)


def seen(runs):
    return jnp.asarray(kernels.ends(runs)[:, None] > np.arange(sum(runs)))


def both(fn, qkv):
    """The output, and gradients of its sum of squares."""

    def run(qkv):
        y, back = jax.vjp(lambda x: fn(*x), qkv)
        return y, back(2 * y)

    return jax.jit(run)(qkv)


def same(got, expected):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-5), got, expected)


def reference(runs, scale=0.3):
    return lambda q, k, v: kernels.dense(q, k, v, seen(runs), scale)


@pytest.mark.parametrize("name", RUNS)
def test_splash_attention_equals_the_dense_form(name):
    runs = RUNS[name]
    splash = lambda q, k, v: kernels.splash(q, k, v, runs, 0.3, interpret=True)
    same(both(splash, drawn(runs)), both(reference(runs), drawn(runs)))


def test_splash_attention_on_a_mesh_equals_the_dense_form():
    runs = RUNS["scales"]
    expected = both(reference(runs), drawn(runs))
    with use_mesh(make_mesh(MeshConfig(1, 2, 2, 2, 1))):
        splash = lambda q, k, v: kernels.splash(q, k, v, runs, 0.3, interpret=True)
        same(both(splash, drawn(runs)), expected)


@pytest.mark.parametrize("name", RUNS)
def test_fused_attention_says_the_same_to_its_library(name):
    runs = RUNS[name]
    fused = lambda q, k, v: kernels.fused(q, k, v, runs, 0.3, implementation="xla")
    same(both(fused, drawn(runs)), both(reference(runs), drawn(runs)))


ON_GPU = pytest.mark.skipif(jax.default_backend() != "gpu", reason="run with JAX_PLATFORMS=cuda")


@ON_GPU
@pytest.mark.parametrize("name", RUNS)
def test_cudnn_attention_is_near_the_dense_form(name):
    runs = (*RUNS[name], *[1] * (-sum(RUNS[name]) % 8))
    half = tuple(x.astype(jnp.bfloat16) for x in drawn(runs))
    got = both(lambda q, k, v: kernels.fused(q, k, v, runs, 0.3), half)
    expected = both(reference(runs), tuple(x.astype(jnp.float32) for x in half))
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        error = jnp.linalg.norm(a.astype(jnp.float32) - b) / jnp.linalg.norm(b)
        assert error < 0.02, error


@pytest.mark.parametrize("name", RUNS)
def test_programs_for_gpus_call_cudnn_forward_and_backward(name, monkeypatch):
    """JAX asks cuDNN for its version before it lets a program be lowered for it."""
    monkeypatch.setattr(fused_attention_stablehlo, "check_cudnn_version", lambda: 91000)
    runs = (*RUNS[name], *[1] * (-sum(RUNS[name]) % 8))
    fused = lambda q, k, v: kernels.fused(q, k, v, runs, 0.3)
    half = tuple(x.astype(jnp.bfloat16) for x in drawn(runs))
    step = jax.jit(jax.grad(lambda qkv: fused(*qkv).astype(jnp.float32).sum()))
    text = step.trace(half).lower(lowering_platforms=("cuda",)).as_text()
    kind = "Softmax" if len(runs) == 1 or set(runs) == {1} else "ScaleBiasSoftmax"
    assert f"@__cudnn$fmha{kind}(" in text
    assert f"@__cudnn$fmha{kind}Backward(" in text


def visited(layout):
    """Blocks with a visible pair, one by one."""
    mask, side = kernels.StepMask(layout), kernels.BLOCK
    count = len(layout.ends) // side
    blocks = [(slice(i * side, (i + 1) * side), slice(j * side, (j + 1) * side))
              for i in range(count) for j in range(count)]  # fmt: skip
    return sum(bool(mask[block].any()) for block in blocks)


@pytest.mark.parametrize("runs", [VAR, (64,) * 16, (1,) * 512])
def test_blocks_that_nobody_sees_are_skipped(runs):
    layout = kernels.layout(runs)
    slots, front = sum(runs), layout.front
    mask = kernels.StepMask(layout)[slice(None), slice(None)]
    np.testing.assert_array_equal(
        mask[front : front + slots, front : front + slots], np.asarray(seen(runs))
    )
    assert not mask[:, :front].any()
    assert not mask[front : front + slots, front + slots :].any()
    assert layout.visited == visited(layout)


def test_padding_in_front_spares_blocks_of_scales():
    """VAR's last scales end at 424 and 680; with 88 slots in front, the first of these is 512."""
    layout = kernels.layout(VAR)
    assert (layout.front, len(layout.ends), layout.visited) == (88, 768, 25)
    behind = kernels.Layout(0, tuple(np.pad(kernels.ends(VAR), (0, 88), mode="edge").tolist()))
    assert behind.visited == 28
    # of all pairs 62 % are visible: no blocks of any size could spare 40 % of 680 x 680
    assert kernels.ends(VAR).sum() / 680**2 == pytest.approx(0.6194, abs=1e-4)


def test_the_kernel_follows_platform_and_promise(monkeypatch):
    asked = []
    for name in ("splash", "fused", "dense"):
        say = lambda q, *rest, name=name: asked.append((name, rest[5:])) or q
        monkeypatch.setattr(kernels, name, say)
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    whole, parts = ("dense", ((),)), ("dense", ((64, 128, 192),))
    long, half = (1,) * 256, lambda x: tuple(a.astype(jnp.bfloat16) for a in x)
    for where, qkv, drop, runs, expected in [
        ("tpu", drawn(long), None, long, ("splash", ())),
        ("tpu", drawn(long), None, (), whole),
        ("tpu", drawn(long), lambda x: x, long, whole),
        ("tpu", drawn((1,) * 255), None, (1,) * 255, whole),
        ("gpu", half(drawn(long)), None, long, ("fused", ())),
        ("gpu", drawn(long), None, long, parts),
        ("cpu", half(drawn(long)), None, long, parts),
    ]:
        monkeypatch.setattr(kernels, "platform", lambda where=where: where)
        kernels.attend(*qkv, None, 1.0, drop, runs)
        assert asked.pop() == expected, (where, expected)


def test_what_does_not_divide_over_the_mesh_is_left_to_the_dense_form():
    takes = lambda batch, heads: kernels._splash_takes(jnp.zeros((batch, 8, heads, 4)))
    assert not takes(8, 2)  # several devices, and nobody says how they share
    with use_mesh(make_mesh(MeshConfig(2, 2, 2, 1, 1))):
        assert takes(8, 2)
        assert not takes(6, 2)
        assert not takes(8, 3)


def test_the_platform_is_that_of_the_mesh():
    assert platform() == "cpu"
    with use_mesh(make_mesh(MeshConfig(-1, 1, 1, 1, 1))):
        assert platform() == "cpu"


SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("nbp_hybrid", "randar", "arpg")]


@pytest.mark.parametrize("name", ["flextok", "var", "maskgit", "xar", *SLOW])
def test_generators_teach_the_same_with_splash_attention(name, monkeypatch):
    gen, tokens = generators.make(name), generators.tokens_of(name)
    label = jnp.zeros((2,), jnp.int32)
    calls = []

    def loss(params):
        return gen.loss(params, tokens, label, None)[0].mean()

    expected = jax.jit(jax.value_and_grad(loss))(generators.params_of(name))
    monkeypatch.setattr(kernels, "LEAST", 1)
    monkeypatch.setattr(kernels, "platform", lambda: "tpu")
    monkeypatch.setattr(kernels, "_splash_takes", lambda q: True)
    splash = functools.partial(kernels.splash, interpret=True)
    monkeypatch.setattr(kernels, "splash", lambda *a: calls.append(1) or splash(*a))
    got = jax.jit(jax.value_and_grad(lambda p: loss(p)))(generators.params_of(name))
    assert bool(calls) == (name != "arpg")  # whose own steps are not those of all slots
    same(got, expected)


def test_flops_of_the_kernel_are_those_of_visible_pairs():
    runs = RUNS["scales"]
    pairs, (q, k, v) = int(kernels.ends(runs).sum()), drawn(runs)
    splash = lambda q, k, v: kernels.splash(q, k, v, runs, 0.3, interpret=True)
    assert flops.count(splash, q, k, v) == 2 * 2 * pairs * 2 * 2 * 8
    grad = jax.grad(lambda x: splash(*x).sum())
    # the sum of outputs times their gradients, which the backward pass also takes, is a product
    assert 0 <= flops.count(grad, (q, k, v)) - 2 * 9 * pairs * 2 * 2 * 8 < 1e5
    with use_mesh(make_mesh(MeshConfig(2, 1, 2, 2, 1))):
        assert flops.count(splash, q, k, v) == 2 * 2 * pairs * 2 * 2 * 8


LINE = """\
ENTRY %main (a: f32[2]) -> bf16[2,4,768,64] {
  %a = f32[2]{0} parameter(0)
  %k = (f32[2,128,128]{2,1,0}, f32[2,128,128]{2,1,0}, f32[2,128,64]{2,1,0}, \
bf16[2,4,768,64]{3,2,1,0}, f32[2,4,768,128]{3,2,1,0}) custom-call(%a), \
custom_call_target="tpu_custom_call", frontend_attributes={kernel_metadata={
"xprof_metadata":"{\\"block_q\\": 128}"
}}, metadata={op_name="jit(f)/jvp(attention[pairs=286434,area=409600])/splash_mha_fwd_residuals/x"}
  ROOT %o = bf16[2,4,768,64]{3,2,1,0} get-tuple-element(%k), index=3
}
"""


def test_flops_of_a_compiled_kernel_are_those_of_visited_blocks():
    assert hlo.parse(LINE).flops == 2 * 2 * 25 * 128**2 * 2 * 4 * 64
