"""`config.sampler`: what it refuses, and samplers of a whole experiment against the executor."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import flextok, llamagen, mar, maskgit, nbp, randar, var
from nexttok import sampling
from nexttok.config import ConfigError
from nexttok.experiment import resolve
from nexttok.samplers.drafts import ngram
from nexttok.tokens import Tokens
from tests.generators import redrawn

LABEL, KEY = jnp.arange(4, dtype=jnp.int32), jax.random.key(0)


@functools.cache
def experiment(temperature, guidance, depth, contrast=0.0, **sampler):
    """LlamaGen's tiny variant."""
    config = llamagen.get_config("tiny")
    config.sampler.update(sampler)
    config.sample.update(temperature=temperature, guidance=guidance, contrast=contrast)
    config.generator.backbone.update(width=16, head_dim=8, mlp_hidden=24, depth=depth)
    return resolve(config)


@functools.cache
def parameters(depth):
    """Its parameters, redrawn."""
    quantizer = {"embedding": jax.random.normal(KEY, (256, 8))}
    generator = redrawn(experiment(1.0, 1.0, depth).generator, 1)
    return {"tokenizer": {"quantizer": quantizer}, "generator": generator}


@functools.cache
def drawn(temperature=1.0, guidance=2.0, depth=1, label=(0, 1, 2, 3), **sampler):
    """Tokens and stats of it."""
    exp, params = experiment(temperature, guidance, depth, **sampler), parameters(depth)
    if exp.draft is not None:
        params = params | {"drafter": redrawn(exp.draft.generator, 2)}
    params = params | sampling.tables(exp, params["tokenizer"])
    if exp.sampler.name == "ngram":  # counted in what the model would draw
        strings = drawn(0.0, depth=depth)[0][:, exp.plan.order]
        params = params | {"ngrams": ngram.count(strings, 256, 2)}
    label, blank = jnp.asarray(label, jnp.int32), sampling.blank(exp, len(label))
    tokens, stats = sampling.sampler(exp)(params, label, KEY, blank)
    return np.asarray(tokens), {k: np.asarray(v) for k, v in stats.items()}


@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_zipar_of_a_whole_row_is_raster(guidance):
    tokens, stats = drawn(guidance=guidance, name="zipar", lag=4.0)
    np.testing.assert_array_equal(tokens, drawn(guidance=guidance)[0])
    assert stats["network_calls"] == 16


def test_zipar_takes_a_call_for_every_front():
    tokens, stats = drawn(name="zipar")
    assert stats["network_calls"] == 9
    assert tokens.shape == (4, 16)
    assert (tokens != drawn()[0]).any()


@pytest.mark.parametrize(
    ("init", "guidance"), [("random", 1.0), ("repeat_left", 2.0), ("sample_above", 2.0)]
)
def test_greedy_jacobi_is_greedy_raster(init, guidance):
    tokens, stats = drawn(0.0, guidance, name="jacobi", window=5, init=init)
    np.testing.assert_array_equal(tokens, drawn(0.0, guidance)[0])
    assert stats["rounds"].max() == stats["network_calls"] <= 16


def test_contrast_is_the_same_to_every_sampler():
    tokens, _ = drawn(0.0, 1.0, contrast=0.05, name="jacobi", window=5)
    np.testing.assert_array_equal(tokens, drawn(0.0, 1.0, contrast=0.05)[0])
    assert (tokens != drawn(0.0, 1.0)[0]).any()


SELF = "self_speculative"
BAD = {
    "unknown": (llamagen, dict(name="magic"), "plan | jacobi | self_speculative | draft | ngram"),
    "unread": (llamagen, dict(init="random"), "sampler.init = 'random': expected '', as sampl"),
    "window": (llamagen, dict(name="jacobi", window=-1), "at least 0"),
    "wide": (llamagen, dict(name="zipar", lag=5.0), "sampler.lag = 5.0: expected 1 .. 4 columns"),
    "init": (llamagen, dict(name="jacobi", init="left"), "repeat_left | repeat_above"),
    "line": (flextok, dict(name="zipar"), "another, as these tokens have no rows"),
    "above": (flextok, dict(name="jacobi", init="repeat_above"), "as these tokens have no rows"),
    "solver": (llamagen, dict(name="disa"), "another, as the head draws in a single step"),
    "shape": (mar, dict(name="disa", anneal="sudden"), "linear | cosine | two_stage"),
    "numbers": (mar, dict(name="disa", solver_steps=(50,)), "two numbers of 2 .. 1000"),
    "layers": (llamagen, dict(name=SELF, layers=(1, 9)), "rising numbers of 0 .. 0"),
    "order": (mar, dict(name="lpd"), None),
    "free": (maskgit, dict(name="lpd"), "another, as the plan's order is not random"),
    "lost": (llamagen, dict(name=SELF, relative=True), "sampler.relax = 0.0: expected above 0"),
    "codes": (flextok, dict(name=SELF, relax=0.1), "0, as these tokens are not codes of a"),
    "many": (llamagen, dict(name=SELF, relax=0.1, neighbours=256), "0 .. 255"),
    "nobody": (llamagen, dict(name="draft"), "sampler.draft = '': expected the workdir of a run"),
    "nowhere": (llamagen, dict(name="draft", draft="no"), "the workdir of a finished run"),
    "untrained": (llamagen, dict(name="eesd"), "another, as config.drafter.name is ''"),
    "chain": (llamagen, dict(name=SELF, branches=(2,), control="fixed"), "'' with a tree"),
    "deep": (llamagen, dict(name=SELF, branches=(2,), window=3), "0 with sampler.branches"),
    "children": (llamagen, dict(name="ngram", branches=(2, 0)), "numbers of 1 .. 256, or ()"),
    "paths": (llamagen, dict(name=SELF, beams=257), "sampler.beams = 257: expected 0 .. 256"),
    "control": (llamagen, dict(name=SELF, control="all"), "'' | fixed | threshold | thompson"),
    "context": (llamagen, dict(name="recap"), "another, as the context is not mask"),
    "steps": (mar, dict(name="recap", whole=9), "sampler.whole = 9: expected 0 .. 8 steps"),
    "mask": (maskgit, dict(name="jacobi"), "another, as context mask does not draw one"),
    "block": (nbp, dict(name="zipar"), "another, as context block does not draw one token after"),
    "scales": (llamagen, dict(name="tts_var"), "another, as the context is not upsample"),
    "particles": (var, dict(name="tts_var", particles=(4, 2)), "4 numbers that do not rise, one"),
    "early": (var, dict(name="tts_var", early=5), "sampler.early = 5: expected 0 .. 4 scales"),
    "none": (var, dict(name="tts_var", potential="none", strength=1.0), "0.0, as potential none"),
    "features": (var, dict(name="tts_var", features="dino"), "pca | pooled | class | none"),
    "beam": (maskgit, dict(name="beam"), "another, as context mask does not draw one token"),
    "groups": (llamagen, dict(name="diverse_beam", groups=3), "a divisor of 4 beams"),
    "alpha": (llamagen, dict(name="contrastive_search", alpha=1.5), "sampler.alpha = 1.5: expe"),
    "few": (llamagen, dict(name="contrastive_search", candidates=257), "0 .. 256"),
}  # fmt: skip


@pytest.mark.parametrize("control", ["", "threshold", "thompson"])
def test_greedy_drafts_of_some_layers_are_greedy_raster(control):
    options = dict(name="self_speculative", window=3, layers=(0,), control=control)
    tokens, stats = drawn(0.0, depth=2, **options)
    np.testing.assert_array_equal(tokens, drawn(0.0, depth=2)[0])
    assert stats["draft_calls"] == 4 * stats["network_calls"]
    assert stats["network_calls"] <= 16


def test_drafts_of_all_layers_are_all_accepted():
    _, stats = drawn(depth=2, name="self_speculative", window=3, layers=(0, 1))
    assert stats["network_calls"] == 4


@pytest.mark.parametrize("tree", [dict(branches=(2, 3)), dict(beams=3, window=2)])
def test_greedy_trees_are_greedy_raster(tree):
    tokens, stats = drawn(0.0, depth=2, name="self_speculative", layers=(0,), **tree)
    np.testing.assert_array_equal(tokens, drawn(0.0, depth=2)[0])
    assert stats["draft_calls"] == 3 * stats["network_calls"]
    assert stats["network_calls"] <= 16


def test_trees_of_all_layers_are_accepted_to_a_leaf():
    _, stats = drawn(depth=2, name="self_speculative", layers=(0, 1), branches=(3, 1))
    assert stats["network_calls"] == 6


def test_counted_pairs_guess_what_follows_them():
    tokens, stats = drawn(0.0, name="ngram", branches=(2, 1, 1))
    np.testing.assert_array_equal(tokens, drawn(0.0)[0])
    assert stats["draft_calls"] == 0
    assert stats["network_calls"] <= 10  # 6 where every pair has one or two successors


def run_of(folder, paper=llamagen, **changes):
    """A workdir as far as its config goes."""
    config = paper.get_config("tiny")
    config.update_from_flattened_dict(changes)
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(json.loads(config.to_json())))
    return str(folder)


def test_greedy_drafts_of_another_run_are_greedy_raster(tmp_path):
    narrow = {"generator.backbone.width": 16, "generator.backbone.head_dim": 4}
    draft = run_of(tmp_path / "small", **narrow)
    tokens, stats = drawn(0.0, name="draft", draft=draft, window=3, control="threshold")
    np.testing.assert_array_equal(tokens, drawn(0.0)[0])
    assert stats["draft_calls"] == 4 * stats["network_calls"]


@pytest.mark.parametrize(
    ("paper", "changes", "words"),
    [
        (llamagen, {"tokenizer.bottleneck.size": 128}, "a run of 256 ids, not 128"),
        (llamagen, {"data.resolution": 32}, "a run of 16 tokens, not 64"),
        (llamagen, {"data.num_classes": 9}, "a run of 10 classes, not 9"),
        (llamagen, {"generator.class_dropout": 0.0}, "a run with class dropout, as sample.guid"),
        (llamagen, {"stages": ("tokenizer",)}, "a run with a generator"),
        (llamagen, {"generator.head.init": "odd"}, "config.generator.head.init = 'odd'"),
        (maskgit, {}, "another run, as context mask does not draw"),
    ],
)
def test_refuses_drafts_of_a_run_that_does_not_fit(tmp_path, paper, changes, words):
    config = llamagen.get_config("tiny")
    config.sampler.update(name="draft", draft=run_of(tmp_path / "run", paper, **changes))
    with pytest.raises(ConfigError) as error:
        resolve(config)
    assert "config.sampler.draft = " in str(error.value)
    assert words in str(error.value)


def test_similar_codes_count_for_a_guess():
    options = dict(depth=2, name="self_speculative", window=3, layers=(0,))
    _, exact = drawn(**options)
    _, stats = drawn(**options, relax=0.5, neighbours=200)
    assert stats["accepted"].sum() > exact["accepted"].sum()


@pytest.mark.parametrize(
    "search", [dict(name="beam", beams=1), dict(name="contrastive_search", candidates=1)]
)
def test_searches_without_a_choice_are_greedy_raster(search):
    tokens, stats = drawn(**search)
    np.testing.assert_array_equal(tokens, drawn(0.0)[0])
    assert stats["network_calls"] == 16 + (search["name"] == "contrastive_search")


@pytest.mark.parametrize(
    "name", ["beam", pytest.param("diverse_beam", marks=pytest.mark.slow), "stochastic_beam"]
)
def test_rows_of_a_class_are_strings_of_one_search(name):
    label = (2, 0, 2, 2, 0)
    tokens, stats = drawn(1.0, 1.0, label=label, name=name, beams=2)
    exp, params = experiment(1.0, 1.0, 1), parameters(1)["generator"]
    nats = exp.generator.loss(params, Tokens(ids=jnp.asarray(tokens)), jnp.asarray(label), None)[0]
    nats = np.asarray(nats.sum(1))
    assert (tokens[0] != tokens[2]).any()
    assert (tokens[1] != tokens[4]).any()
    if name == "stochastic_beam":
        assert (tokens[0] != tokens[3]).any()  # the first of a search of its own
    else:
        np.testing.assert_array_equal(tokens[0], tokens[3])
        assert nats[0] <= nats[2]
        assert nats[1] <= nats[4]
    assert stats["rows"] == 16 * 10 / 5  # of five searches of two strings, for five rows


def test_local_orders_draw_all_tokens_in_the_steps_of_the_plan():
    config = randar.get_config("tiny")
    config.sampler.name = "lpd"
    config.generator.plan.steps = 4
    exp = resolve(config)
    params = {"tokenizer": {}, "generator": redrawn(exp.generator, 1)}
    blank = sampling.blank(exp, 4)
    tokens, stats = sampling.sampler(exp)(params, LABEL, KEY, blank)
    assert tokens.shape == blank.shape
    assert stats["network_calls"] == 4


@pytest.mark.parametrize("name", BAD)
def test_refuses_what_does_not_fit(name):
    paper, sampler, words = BAD[name]
    config = paper.get_config("tiny")
    config.sampler.update(sampler)
    if words is None:
        resolve(config)
        return
    with pytest.raises(ConfigError) as error:
        resolve(config)
    assert words in str(error.value)


def test_editing_follows_the_plan():
    config = llamagen.get_config("tiny")
    config.sampler.name = "jacobi"
    with pytest.raises(ConfigError, match="plan to edit an image"):
        sampling.sampler(resolve(config), np.zeros(16, bool))
