"""Each bottleneck's maths against its formula in NumPy, or against enumeration."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment

from nexttok.aot import hlo
from nexttok.bottlenecks import binary, residual, scalars, search, transport, upkeep, vq
from nexttok.mesh import MeshConfig, batch_sharding, make_mesh, use_mesh
from tests.bottlenecks.test_components import GRID, make


def normal(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape)


def test_blocks_find_the_nearest_of_all(monkeypatch):
    monkeypatch.setattr(search, "ROWS", 16)
    monkeypatch.setattr(search, "CODES", 32)
    z, codes = normal(0, 53, 3), normal(1, 101, 3)
    codes = codes.at[70].set(codes[5])  # a tie: the first wins
    z = z.at[0].set(codes[5])
    ids = search.nearest(z, codes)
    distances = np.square(np.asarray(z)[:, None] - np.asarray(codes)[None]).sum(-1)
    np.testing.assert_array_equal(ids, distances.argmin(1))
    assert int(ids[0]) == 5


@pytest.mark.parametrize(("formula", "kinds"), [("nearest", ()), ("entropy", ("all-reduce",))])
def test_blocks_on_a_mesh_hold_rows_of_every_device_and_move_none(formula, kinds, monkeypatch):
    for module, name, size in (
        (search, "ROWS", 4), (search, "CODES", 32), (vq, "ENTROPY_ROWS", 4)
    ):  # fmt: skip
        monkeypatch.setattr(module, name, size)
    fn, z, codes = getattr(vq, formula), normal(0, 96, 3), normal(1, 64, 3)
    alone = fn(z, codes)
    mesh = make_mesh(MeshConfig(2, 4, 1, 1, 1))
    with use_mesh(mesh):
        z = jax.device_put(z, batch_sharding(mesh))
        compiled = jax.jit(lambda z, codes: fn(z, codes)).lower(z, codes).compile()
        np.testing.assert_allclose(compiled(z, codes), alone, rtol=1e-5)
    assert {c.kind for c in hlo.parse(compiled.as_text()).collectives} == set(kinds)


def test_moving_averages_are_their_closed_form():
    """After k equal batches n = g^k + (1 - g^k) count, and so the sums."""
    z, codes, decay = normal(0, 40, 3), normal(1, 5, 3), 0.9
    ids = vq.nearest(z, codes)
    counts, sums = jnp.ones(5), codes
    for _ in range(4):
        counts, sums, book = upkeep.averaged(counts, sums, z, ids, decay)
    count = np.bincount(np.asarray(ids), minlength=5)
    total = np.stack([np.asarray(z)[np.asarray(ids) == k].sum(0) for k in range(5)])
    left = decay**4
    np.testing.assert_allclose(counts, left + (1 - left) * count, rtol=1e-5)
    np.testing.assert_allclose(sums, left * np.asarray(codes) + (1 - left) * total, rtol=1e-4)
    mass = counts.sum()
    smooth = (np.asarray(counts) + 1e-5) / (mass + 5e-5) * mass
    np.testing.assert_allclose(book, np.asarray(sums) / smooth[:, None], rtol=1e-5)


def test_codes_without_use_are_drawn_anew_and_others_stay():
    model = make("vq_ema", revive_below=0.9)
    params = model.init(jax.random.key(0))
    far = params["embedding"].at[:8].add(100.0)
    params |= {"embedding": far, "counts": jnp.ones(16)}
    z = 0.1 * normal(1, 2, *GRID, 4)
    moves = model.quantize(params, z, jax.random.key(2), True).moves
    new = jax.tree.map(jnp.add, params, moves)
    flat = np.asarray(z.reshape(-1, 4))
    gaps = np.abs(np.asarray(new["embedding"])[:8, None] - flat[None]).max(-1).min(1)
    assert gaps.max() < 0.1  # latents, a little moved as there are fewer than codes
    np.testing.assert_allclose(new["counts"][:8], 0.99, rtol=1e-6)


def test_used_codes_stay_and_unused_ones_go_to_their_anchors():
    codes, z = normal(0, 6, 3), normal(1, 200, 3)
    ids = vq.nearest(z, codes)
    shares = jnp.full(6, 1 / 6).at[2].set(0.0)
    ids = jnp.where(ids == 2, 3, ids)  # nothing uses code 2
    book, new = upkeep.anchored(codes, shares, z, ids, False)
    frequency = np.bincount(np.asarray(ids), minlength=6) / 200
    np.testing.assert_allclose(new, 0.99 * np.asarray(shares) + 0.01 * frequency, rtol=1e-5)
    anchor = np.square(np.asarray(z) - np.asarray(codes)[2]).sum(1).argmin()
    a = np.exp(-1e-3)
    np.testing.assert_allclose(book[2], (1 - a) * codes[2] + a * z[anchor], rtol=1e-4)
    kept = [k for k in range(6) if k != 2]
    np.testing.assert_allclose(book[jnp.asarray(kept)], codes[jnp.asarray(kept)], atol=1e-6)


def test_kmeans_finds_separate_clusters():
    centres = jnp.asarray([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0]])
    z = jnp.concatenate([c[None] + 0.1 * normal(i, 30, 2) for i, c in enumerate(centres)])
    best = min(
        (upkeep.kmeans(jax.random.key(k), z, 3) for k in range(8)),
        key=lambda found: float(jnp.square(z - found[0][found[1]]).sum()),
    )
    found, ids = best
    gaps = np.linalg.norm(np.asarray(found)[:, None] - np.asarray(centres)[None], axis=-1)
    assert sorted(gaps.argmin(1).tolist()) == [0, 1, 2]
    assert gaps.min(1).max() < 0.2
    assert all(len(set(np.asarray(ids)[i : i + 30])) == 1 for i in (0, 30, 60))


def test_the_first_batch_becomes_the_codebook_once():
    model = make("vq_kmeans", size=4)
    params = model.init(jax.random.key(0))
    z = normal(1, 8, *GRID, 4)
    first = model.quantize(params, z, jax.random.key(2), True)
    assert float(first.metrics["perplexity"]) > 3.0
    new = jax.tree.map(jnp.add, params, first.moves)
    assert float(new["seen"]) == 1.0
    other = normal(3, 8, *GRID, 4)
    again = model.quantize(new, other, jax.random.key(4), True)
    flat = other.reshape(-1, 4)
    np.testing.assert_array_equal(again.ids.ravel(), vq.nearest(flat, new["embedding"]))


def test_rotation_is_the_code_in_value_and_a_rotation_in_gradient():
    z, code = normal(0, 5, 3), normal(1, 5, 3)
    np.testing.assert_allclose(vq.rotated(z, code), code, rtol=1e-4, atol=1e-5)
    for row, target in zip(z, code, strict=True):
        jacobian = jax.jacobian(lambda v, t=target: vq.rotated(v[None], t[None])[0])(row)
        scale = np.linalg.norm(target) / np.linalg.norm(row)
        rotation = np.asarray(jacobian) / scale
        np.testing.assert_allclose(rotation @ rotation.T, np.eye(3), atol=1e-4)
        assert np.linalg.det(rotation) == pytest.approx(1.0, abs=1e-3)


def test_drawn_codes_follow_their_softmax_and_end_at_the_nearest():
    z, rows = vq.unit(normal(0, 1, 3)), vq.unit(normal(1, 6, 3))
    many = vq.drawn(jax.random.key(2), jnp.repeat(z, 20_000, 0), rows, 0.5)
    share = np.bincount(np.asarray(many), minlength=6) / 20_000
    p = np.asarray(jax.nn.softmax((z @ rows.T)[0] / 0.5))
    assert np.abs(share - p).sum() / 2 < 0.015
    z = vq.unit(normal(3, 50, 3))
    cold = vq.drawn(jax.random.key(4), z, rows, 1e-5)
    np.testing.assert_array_equal(cold, vq.nearest(z, rows))


def test_entropy_in_parts_is_the_whole(monkeypatch):
    z, rows = normal(0, 50, 3), normal(1, 9, 3)
    value = jax.value_and_grad(lambda r: vq.entropy(z, r, True))
    whole, gradient = value(rows)
    monkeypatch.setattr(vq, "ENTROPY_ROWS", 16)
    parts, other = value(rows)
    np.testing.assert_allclose(parts, whole, rtol=1e-5)
    np.testing.assert_allclose(other, gradient, rtol=1e-3, atol=1e-5)


def test_packing_puts_the_first_bit_highest():
    bits = jnp.asarray([[1, 0, 0], [0, 1, 1]])
    np.testing.assert_array_equal(binary.pack(bits), [4, 3])
    ids = jnp.arange(2**5, dtype=jnp.int32)
    np.testing.assert_array_equal(binary.pack(binary.unpack(ids, 5)), ids)
    top = jnp.asarray([2**30 - 1], jnp.int32)
    np.testing.assert_array_equal(binary.pack(binary.unpack(top, 30)), top)


def test_lfq_is_the_sign_and_zero_counts_as_minus():
    model = make("lfq")
    z = jnp.asarray([[[0.5, -2.0, 0.0, 1e-3, -1e-3, 3.0]]])
    coded = model.quantize({}, z, None, False)
    np.testing.assert_array_equal(coded.values[0, 0], [1, -1, -1, 1, -1, 1])
    assert int(coded.ids[0, 0]) == 0b100101


def test_soft_bits_have_the_entropy_of_all_codes():
    """The sum over bits is the entropy of softmax(-distance^2 x SHARPNESS) over all 2^d codes."""
    d, z = 4, 0.01 * normal(0, 7, 4)
    codes = np.asarray(list(itertools.product((-1.0, 1.0), repeat=d)))
    distances = np.square(np.asarray(z)[:, None] - codes[None]).sum(-1)
    log_p = jax.nn.log_softmax(-binary.SHARPNESS * jnp.asarray(distances))
    each = -(jnp.exp(log_p) * log_p).sum(-1).mean()
    np.testing.assert_allclose(binary.entropy(z, 1.0, 0.0), each, rtol=1e-3)


@pytest.mark.parametrize("count", [7, 1024, 3331])
def test_bits_that_are_always_set_have_no_entropy(count):
    z = jnp.broadcast_to(jnp.asarray([[3.0, -3.0, 0.8]]), (count, 3))
    value, grad = jax.value_and_grad(lambda z: binary.entropy(z, 0.35))(z)
    np.testing.assert_allclose(value, 0.0, atol=1e-5)
    assert bool(jnp.isfinite(grad).all())


def test_bsq_values_have_unit_length():
    model = make("bsq")
    coded = model.quantize({}, normal(0, 3, 6), None, False)
    np.testing.assert_allclose(jnp.linalg.norm(coded.values, axis=-1), 1.0, rtol=1e-5)


def test_bernoulli_draws_in_training_and_thresholds_otherwise():
    model = make("bernoulli")
    params = model.init(jax.random.key(0))
    z = jnp.repeat(jnp.linspace(-2, 2, 6)[None], 20_000, 0)
    drawn = binary.unpack(model.quantize(params, z, jax.random.key(1), True).ids, 6)
    np.testing.assert_allclose(drawn.mean(0), jax.nn.sigmoid(z[0]), atol=0.02)
    still = binary.unpack(model.quantize(params, z, None, False).ids, 6)
    np.testing.assert_array_equal(still[0], [0, 0, 0, 1, 1, 1])
    nothing = model.ids_to_values(params, jnp.zeros((1,), jnp.int32))
    np.testing.assert_array_equal(nothing, jnp.zeros((1, 9)))
    grad = jax.grad(lambda v: model.quantize(params, v, None, False).values.sum())(z[:1])
    p = jax.nn.sigmoid(z[0])
    expected = p * (1 - p) * params["project"]["kernel"].sum(1)
    np.testing.assert_allclose(grad[0], expected, rtol=1e-4)


def test_residual_error_falls_with_depth_when_codes_are_fitted():
    z = normal(0, 300, 4)
    left, books = z, []
    for k in range(4):
        rows, ids = upkeep.kmeans(jax.random.key(k), left, 8)
        books.append(rows)
        left = left - rows[ids]
    sums, ids = residual.residual(z, jnp.stack(books))
    errors = np.square(np.asarray(sums) - np.asarray(z)[None]).mean((1, 2))
    assert np.all(np.diff(errors) < 0)
    parts = sum(books[k][ids[:, k]] for k in range(4))
    np.testing.assert_allclose(parts, sums[-1], atol=1e-5)


def test_dropped_codes_leave_partial_sums():
    model = make("residual", dropout=1.0)
    params = {"embedding": normal(0, 48, 4)}
    z = normal(1, 64, *GRID, 4)
    coded = model.quantize(params, z, jax.random.key(2), True)
    sums, _ = residual.residual(z, model.codebooks(params))
    gaps = jnp.abs(coded.values[None] - sums).max((2, 3, 4))
    depth = np.asarray(gaps.argmin(0))
    assert float(gaps.min(0).max()) < 1e-5
    assert set(depth.tolist()) == {0, 1, 2}


def test_groups_of_channels_are_quantized_apart():
    model = make("product")
    params = {"embedding": normal(0, 32, 2)}
    z = normal(1, 5, 4)
    ids = model.quantize(params, z, None, False).ids
    for g in range(2):
        own = vq.nearest(z[:, 2 * g : 2 * g + 2], params["embedding"][16 * g : 16 * g + 16])
        np.testing.assert_array_equal(ids[:, g], own)


def test_scalar_codes_factorize():
    model = make("scalars")
    params = {"numbers": normal(0, 5, 7)}
    z = normal(1, 9, 5)
    ids = np.asarray(model.quantize(params, z, None, False).ids)
    for d in range(5):
        row = np.asarray(params["numbers"])[d]
        np.testing.assert_array_equal(ids[:, d], np.abs(np.asarray(z)[:, d, None] - row).argmin(1))
    moved = z.at[:, 2].add(5.0)  # one dimension's code is its own business
    other = np.asarray(model.quantize(params, moved, None, False).ids)
    np.testing.assert_array_equal(np.delete(other, 2, 1), np.delete(ids, 2, 1))
    order = np.argsort(np.asarray(params["numbers"]), axis=1)
    sorted_numbers = jnp.take_along_axis(params["numbers"], jnp.asarray(order), 1)
    values = model.ids_to_values(params, jnp.asarray(ids))
    again = scalars.nearest(z, sorted_numbers)
    same = model.ids_to_values({"numbers": sorted_numbers}, again)
    np.testing.assert_allclose(same, values)


def test_transport_plans_have_their_marginals_and_near_the_assignment():
    z, rows = normal(0, 8, 3), normal(1, 8, 3)
    cost = jnp.square(z[:, None] - rows[None]).sum(-1)
    even = jnp.full(8, 1 / 8)
    matched, _ = transport.plan(cost, even, 0.01, 400)
    np.testing.assert_allclose(matched.sum(0), even, rtol=1e-4)
    np.testing.assert_allclose(matched.sum(1), even, rtol=2e-2)
    at = linear_sum_assignment(np.asarray(cost))
    exact = np.asarray(cost)[at].mean()
    np.testing.assert_allclose(transport.distance(z, rows, even, 0.01, 400), exact, rtol=0.02)
    np.testing.assert_array_equal(np.asarray(matched).argmax(1), at[1])
    same = transport.distance(z, z[::-1], even, 0.01, 400)
    assert abs(float(same)) < 1e-3


def test_weights_of_codes_follow_the_duals():
    """The derivative by a weight is the change of the distance that it makes."""
    z, rows = normal(0, 12, 2), normal(1, 4, 2)
    weights = jnp.asarray([0.4, 0.3, 0.2, 0.1])
    run = lambda w: transport.distance(z, rows, w, 0.02, 500)
    slope = jax.grad(run)(weights)
    step = jnp.asarray([1e-3, 0.0, 0.0, -1e-3])
    change = float(run(weights + step) - run(weights - step)) / 2
    assert float((slope * step).sum()) == pytest.approx(change, rel=0.1)


def test_weights_of_latents_are_those_of_their_losses():
    model = make("vq_unit", entropy_weight=0.0)
    params = model.init(jax.random.key(0))
    z, weight = normal(1, 2, *GRID, 4), jnp.abs(normal(2, 2, *GRID))
    weight = weight / weight.mean()
    plain, even = (model.quantize(params, z, None, True, w) for w in (None, jnp.ones_like(weight)))
    assert float(plain.loss) == pytest.approx(float(even.loss), rel=1e-6)
    coded = model.quantize(params, z, None, True, weight)
    np.testing.assert_array_equal(coded.ids, plain.ids)
    error = np.square(np.asarray(vq.unit(z)) - np.asarray(plain.values)).mean(-1)
    expected = (np.asarray(weight) * error).mean()
    assert float(coded.metrics["codebook"]) == pytest.approx(expected, rel=1e-5)
    assert float(coded.metrics["commitment"]) == pytest.approx(0.25 * expected, rel=1e-5)
