"""SLATE: a picture as a set of slots, one per object (Singh et al., "Illiterate DALL-E Learns to
Compose", 2021).

An autoencoder of codes (the paper's: a discrete VAE) describes cells of pixels. Slot attention over
its codes makes K continuous vectors, the tokens, and a transformer that sees them predicts the
codes one by one: its gradient trains the slots and does not reach the autoencoder, which learns
from pixels beside it. Slots that describe objects can be exchanged between pictures.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from nexttok.config import build, check, check_keys
from nexttok.nn.slate import CodeEmbedding, Predictor, PredictorConfig, greedy
from nexttok.nn.slot_attention import SlotConfig, SlotEncoder
from nexttok.rng import stream
from nexttok.tokenizers import autoencoder
from nexttok.tokens import Tokens, TokenSpec

PARTS = ("dvae", "slots", "predictor")


@dataclasses.dataclass(frozen=True)
class SLATE:
    """Static configuration; parameters {embedding, slots, predictor} and those of the autoencoder
    (encoder, decoder, quantizer, ...) are passed to every method.

    Attributes:
      dvae: an autoencoder of one code per position of a grid.
      slot_sizes, predictor_sizes: see nn/slot_attention.py and nn/slate.py.
    """

    dvae: autoencoder.Autoencoder
    slot_sizes: SlotConfig
    predictor_sizes: PredictorConfig

    def __post_init__(self):
        spec = self.dvae.spec
        allowed = "a bottleneck of one code per position of a grid of pictures"
        fits = spec.vocab > 0 and spec.codes == 1 and len(spec.grid) == 2
        check(fits, "tokenizer.dvae.bottleneck", type(self.dvae.bottleneck).__name__, allowed)

    @property
    def image_shape(self) -> tuple[int, ...]:
        """(H, W, C) of the pictures, values in [-1, 1]."""
        return self.dvae.image_shape

    @property
    def checkpoints(self) -> dict[str, str]:
        """See the autoencoder."""
        return self.dvae.checkpoints

    @property
    def spec(self) -> TokenSpec:
        """K continuous slots, in no order."""
        return TokenSpec((self.slot_sizes.count,), 0, self.slot_sizes.width)

    @functools.cached_property
    def embedding(self) -> CodeEmbedding:
        """Codes -> vectors, which slot attention and predictor share."""
        sizes, spec = self.predictor_sizes, self.dvae.spec
        return CodeEmbedding(spec.vocab, 1 + spec.length, sizes.width, sizes.dropout)

    @functools.cached_property
    def slot_encoder(self) -> SlotEncoder:
        """Embedded codes, noise -> slots, attention."""
        return SlotEncoder(self.slot_sizes)

    @functools.cached_property
    def predictor(self) -> Predictor:
        """Embedded codes, slots -> logits of the codes that follow."""
        return Predictor(self.predictor_sizes, self.dvae.spec.vocab)

    def init(self, rng: Array) -> dict:
        """Parameters; see the class."""
        ids, steps = jnp.zeros((1, 1), jnp.int32), jnp.zeros(1, jnp.int32)
        x = jnp.zeros((1, 1, self.predictor_sizes.width))
        slots = self.noise(None, 1)
        return self.dvae.init(rng) | {
            "embedding": self.embedding.init(stream(rng, "embedding"), ids, steps)["params"],
            "slots": self.slot_encoder.init(stream(rng, "slots"), x, slots)["params"],
            "predictor": self.predictor.init(stream(rng, "predictor"), x, slots, steps)["params"],
        }

    def noise(self, rng: Array | None, batch: int) -> Float[Array, "B K D"]:
        """What slots start from: other draws for every picture, or without rng always the same."""
        shape = (self.slot_sizes.count, self.slot_sizes.width)
        if rng is None:
            same = jax.random.normal(stream(jax.random.key(0), "slots"), (1, *shape))
            return jnp.broadcast_to(same, (batch, *shape))
        return jax.random.normal(stream(rng, "slots"), (batch, *shape))

    def embed(
        self, params: dict, ids: Int[Array, "B N"], rng: Array | None = None
    ) -> Float[Array, "B N1 D"]:
        """[start, codes] with their positions; rng is that of dropout, None for none."""
        ids = jnp.pad(ids, ((0, 0), (1, 0)), constant_values=-1)
        places = jnp.arange(ids.shape[1], dtype=jnp.int32)
        dropout = None if rng is None else {"dropout": stream(rng, "embedding")}
        variables = {"params": params["embedding"]}
        return self.embedding.apply(variables, ids, places, rng is not None, rngs=dropout)

    def attend(
        self, params: dict, x: Float[Array, "B N1 D"], noise: Float[Array, "B K S"]
    ) -> tuple[Float[Array, "B K S"], Float[Array, "B N K"]]:
        """Slots of embedded codes, and the share of every code that each took."""
        return self.slot_encoder.apply({"params": params["slots"]}, x[:, 1:], noise)

    def surprise(
        self,
        params: dict,
        ids: Int[Array, "B N"],
        noise: Float[Array, "B K S"],
        rng: Array | None = None,
    ) -> Float[Array, "B N"]:
        """-log p of every code, nats, given the slots of all and the codes before it.

        Args:
          params: of embedding, slots and predictor.
          ids: the codes.
          noise: what slots start from.
          rng: key of dropout, None for none.
        """
        x = self.embed(params, ids, rng)
        slots, _ = self.attend(params, x, noise)
        logits = self.logits(params, x[:, :-1], slots, rng)
        chosen = jnp.take_along_axis(jax.nn.log_softmax(logits), ids[..., None], axis=-1)
        return -chosen[..., 0]

    def logits(self, params, x, slots, rng=None):
        """Of every code [B, N, V], from embedded codes before it and slots."""
        dropout = None if rng is None else {"dropout": stream(rng, "predictor")}
        steps = jnp.arange(x.shape[1], dtype=jnp.int32)
        return self.predictor.apply(
            {"params": params["predictor"]}, x, slots, steps, None, rng is not None, rngs=dropout
        )[0]

    def generate(self, params: dict, slots: Float[Array, "B K S"]) -> Int[Array, "B N"]:
        """The likeliest codes, one after the other, with a key-value cache."""
        batch, length = len(slots), self.dvae.spec.length

        def step(codes, place, cache):
            place = place[None]
            variables = {"params": params["embedding"]}
            x = self.embedding.apply(variables, codes[:, None], place)
            variables = {"params": params["predictor"]}
            logits, cache = self.predictor.apply(variables, x, slots, place, cache)
            return logits[:, 0], cache

        start = jnp.full((batch,), -1, jnp.int32)
        return greedy(step, start, self.predictor_sizes.cache(batch, length), length)

    def encode(self, params: dict, x: Float[Array, "B H W C"], rng: Array | None = None) -> Tokens:
        """Slots [B, K, D] of pictures; rng draws what they start from (see `noise`)."""
        embedded = self.embed(params, self.dvae.encode(params, x).ids)
        return Tokens(values=self.attend(params, embedded, self.noise(rng, len(x)))[0])

    def decode(
        self,
        params: dict,
        tokens: Tokens,
        rng: Array | None = None,
        keep: Int[Array, "B"] | None = None,
    ) -> Float[Array, "B H W C"]:
        """Pictures of slots, whose number and order are free; rng and keep are not used."""
        del rng, keep
        return self.dvae.decode(params, Tokens(ids=self.generate(params, tokens.values)))

    def masks(
        self, params: dict, x: Float[Array, "B H W C"], rng: Array | None = None
    ) -> Float[Array, "B K H W"]:
        """The share of every pixel's cell that each slot took; over slots they sum to 1."""
        embedded = self.embed(params, self.dvae.encode(params, x).ids)
        shares = self.attend(params, embedded, self.noise(rng, len(x)))[1]
        (h, w), (rows, columns) = self.dvae.spec.grid, self.image_shape[:2]
        cells = shares.swapaxes(1, 2).reshape(len(x), -1, h, w)
        return jnp.repeat(jnp.repeat(cells, rows // h, axis=2), columns // w, axis=3)

    def measures(self, params: dict, x: Float[Array, "B H W C"]) -> dict[str, Float[Array, "B"]]:
        """Of pictures: PSNR of the autoencoder alone, which bounds that of slots, and the mean
        surprise (nats) at a code."""
        ids = self.dvae.encode(params, x).ids
        error = jnp.clip(self.dvae.decode(params, Tokens(ids=ids)), -1.0, 1.0) - x
        mse = jnp.square(error).reshape(len(x), -1).mean(-1)
        nats = self.surprise(params, ids, self.noise(None, len(x))).mean(-1)
        return {"dvae_psnr": 10.0 * jnp.log10(4.0 / mse), "cross_entropy": nats}

    def loss(self, params: dict, batch: dict, rng: Array) -> tuple[Float[Array, "B"], dict]:
        """The autoencoder's loss plus the mean surprise at its codes, drawn in training.

        Each trains its own parameters, so no weight lies between them.

        Args:
          params: as of `init`, and what the autoencoder's loss reads beside.
          batch: see the autoencoder.
          rng: key of all noise.

        Returns:
          Loss [B]; the autoencoder's metrics and {cross_entropy}.
        """
        x = batch["image"]
        judged, metrics = self.dvae.loss(params, batch, stream(rng, "dvae"))
        latents = jax.lax.stop_gradient(self.dvae.latents(params, x))
        coded = self.dvae.bottleneck.quantize(
            params.get("quantizer", {}), latents, stream(rng, "codes")
        )
        ids = coded.ids.reshape(len(x), -1)
        nats = self.surprise(params, ids, self.noise(rng, len(x)), stream(rng, "dropout"))
        return judged + nats.mean(-1), metrics | {"cross_entropy": nats.mean()}


def make(section, image_shape, dtype="float32", latent=None, features=None) -> SLATE:
    """From `config.tokenizer`: {dvae, slots, predictor}.

    Raises:
      ConfigError: unknown or missing key, wrong type, parts that do not fit each other, or a
        latent or feature provider, which it does not take.
    """
    check_keys(section, (*PARTS, "name"), "tokenizer")
    name = section.dvae.name if "name" in section.dvae else None
    check(name == "autoencoder", "tokenizer.dvae.name", name, "autoencoder")
    return SLATE(
        autoencoder.make(section.dvae, image_shape, dtype, latent, features, "tokenizer.dvae"),
        build(SlotConfig, section.slots, "tokenizer.slots"),
        build(PredictorConfig, section.predictor, "tokenizer.predictor", dtype=dtype),
    )
