"""PaSS: vectors that stand for tokens that are not known yet, so that one call guesses several.

(Monea et al., "PaSS: Parallel Speculative Sampling", 2023.) The vectors are all that is trained, by
the data's tokens behind random cuts; as many cuts of an example as make its length in guesses.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from nexttok import views
from nexttok.drafters.contract import against, dropped
from nexttok.generator import Generator
from nexttok.nn.linear import INITS
from nexttok.nn.slots import FILL
from nexttok.rng import stream
from nexttok.samplers.drafts.lookahead import lookahead


@dataclasses.dataclass(frozen=True)
class Lookahead:
    """`config.drafter` of name pass (see contract.py).

    Attributes:
      gen: the generator.
      ahead: tokens behind the next one that are guessed.
    """

    gen: Generator
    ahead: int
    reads_halves = False

    @functools.cached_property
    def network(self):
        """The generator's backbone, which also embeds the vectors."""
        inputs = dataclasses.replace(self.gen.inputs, fillers=self.ahead)
        return self.gen.kind.make(self.gen.backbone, inputs, self.gen.dtype)

    def init(self, rng):
        """{fillers [ahead, D]}."""
        shape = (self.ahead, self.gen.backbone.width)
        return {"fillers": INITS["normal02"](stream(rng, "fillers"), shape)}

    def merged(self, params: dict, base: dict) -> dict:
        """Parameters of the generator with the vectors among its embeddings."""
        backbone = base["backbone"]
        embed = backbone["embed"] | {"fillers": params["fillers"]}
        return base | {"backbone": backbone | {"embed": embed}}

    def loss(self, params, base, tokens, label, rng):
        """Cross-entropy in nats of tokens behind the cuts, [B, cuts ahead]; beyond the end 0."""
        gen, label = self.gen, dropped(self.gen, label, rng)
        plan, ahead, cuts = gen.plan, self.ahead, max(gen.plan.length // self.ahead, 1)
        ids = gen.lesson(tokens, rng).target
        batch, n = ids.shape
        model = views.causal(gen, base, label, plan)
        held = jnp.pad(ids, ((0, 0), (1, 0)))[:, :-1]
        start = model.start(batch, cuts * ahead)
        truth, _, cache = model.score(held, None, jnp.zeros((batch,), jnp.int32), start)
        cut = jax.random.randint(stream(rng, "cuts"), (batch, cuts), 0, n - 1, jnp.int32)
        slots, at = self._behind(plan, cut)
        theirs = self.merged(params, base)
        hidden, _ = views.reader(gen, theirs, label, None, self.network)(slots, cache)
        guess = views.predicted(gen, theirs, hidden, at, n)
        there, inside = (at < n).astype(jnp.float32), jnp.minimum(at, n - 1)
        there = there / there.mean()
        picked = jax.nn.one_hot(jnp.take_along_axis(ids, inside, axis=1), gen.spec.vocab)
        law = jnp.take_along_axis(jax.nn.softmax(truth, axis=-1), inside[..., None], axis=1)
        kept = against(law, guess)[1]
        return against(picked, guess)[0] * there, {"kept": (kept * there).mean()}

    def _behind(self, plan, cut: Int[Array, "B C"]):
        """The slots of all vectors behind the cuts, and the tokens that they predict: each sees the
        tokens in front of its cut and, of the vectors, those of its cut up to itself."""
        (batch, cuts), ahead, n = cut.shape, self.ahead, plan.length
        size, prefix = cuts * ahead, self.gen.backbone.prefix
        number = jnp.tile(jnp.arange(ahead, dtype=jnp.int32), cuts)[None]
        behind = jnp.repeat(cut, ahead, axis=1)
        at = behind + 1 + number
        of = jnp.repeat(jnp.arange(cuts), ahead)
        among = (of[:, None] == of[None]) & (number[0][:, None] >= number[0][None])
        slots = self.gen.context.window(plan, jnp.zeros((batch, size), jnp.int32), at, prefix)
        written = prefix + n + jnp.arange(size, dtype=jnp.int32)[None]
        return slots.replace(
            kind=jnp.broadcast_to(FILL + number, (batch, size)),
            steps=behind,
            written=jnp.broadcast_to(written, (batch, size)),
            among=jnp.broadcast_to(among[None], (batch, size, size)),
        ), at

    def guesser(self, params, base, label, plan, scale, mix, warp, choice):
        """All guesses at once, of as many vectors as the sampler's window says."""
        gen, ahead, n = self.gen, choice.window or self.ahead, plan.length
        theirs = self.merged(params, base)
        read = views.reader(gen, theirs, label, scale, self.network)
        number = jnp.arange(ahead + 1, dtype=jnp.int32)[None]

        def look(
            last: Int[Array, "B"], length: Int[Array, "B"], cache
        ) -> tuple[Float[Array, "B S V"], object]:
            held = jnp.broadcast_to(last[:, None], (len(last), ahead + 1))
            slots, at = views.window(gen, plan, held, None, length)
            slots = slots.replace(kind=jnp.where(number > 0, FILL - 1 + number, slots.kind))
            hidden, cache = read(slots, cache)
            return views.predicted(gen, theirs, hidden, at, n, scale, mix), cache

        return lookahead(look, warp, ahead, gen.spec.vocab)
