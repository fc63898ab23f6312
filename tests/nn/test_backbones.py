"""Backbones: which slots' embeddings dropout acts on."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nexttok.nn.slots import CLASS, QUERY, START, TOKEN
from tests.generators import make, params_of, tokens_of


@pytest.mark.parametrize(
    ("name", "places", "kinds"),
    [
        ("randar", ("embedding",), {TOKEN}),
        ("arpg", ("embedding",), {START, TOKEN}),
        ("maskgit", ("embedding",), {CLASS, QUERY, TOKEN}),
        ("mar", ("weights", "attention", "hidden", "mlp"), set()),
    ],
)
def test_dropout_of_embeddings(name, places, kinds):
    gen = make(name)
    config = dataclasses.replace(gen.backbone, dropout=0.5, dropout_on=places)
    network = gen.kind.make(config, gen.inputs, "float32")
    slots = gen.lesson(tokens_of(name), jax.random.key(0)).slots

    @jax.jit
    def run(params, key):
        _, state = network.apply(
            {"params": params}, slots, jnp.asarray([0, 2], jnp.int32), train=key is not None,
            rngs={} if key is None else {"dropout": key}, mutable=["intermediates"],
            capture_intermediates=lambda module, _: module.name == "embed",
        )  # fmt: skip
        return state["intermediates"]["embed"]["__call__"][0][0]

    params = params_of(name)["backbone"]
    moved = np.asarray(run(params, jax.random.key(1)) != run(params, None)).any(-1)
    found = np.broadcast_to(np.asarray(slots.kind), moved.shape)
    assert set(found[moved].tolist()) == kinds
    assert moved[np.isin(found, list(kinds))].all()
