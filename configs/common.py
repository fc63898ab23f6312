"""Defaults shared by every config. A paper's file shows only what makes that paper itself."""

import itertools

from ml_collections import ConfigDict


def base() -> ConfigDict:
    """The sections every config has. 0 or '' means "off" wherever a feature is optional."""
    return ConfigDict(
        dict(
            seed=0,
            dtype="float32",  # of computation: float32 | bfloat16; parameters stay float32
            stages=(
                "tokenizer",
                "generator",
            ),  # trained in this order, each on the frozen earlier ones
            params="",  # finished stages for all modes but train: workdirs or exports, a,b
            tokenizer_checkpoint="",  # a finished workdir, or an export, whose tokenizer is used
            cached_passes=0,  # generator: passes tokenized once; 0 for on the fly
            token_dataset="",  # folder of --mode=tokenize that the generator trains from
            latent=dict(name=""),  # an autoencoder under the tokenizer; "" tokenizes pixels
            features=dict(name="", preset="", checkpoint=""),  # alignment: dinov2, its file
            mesh=dict(data=-1, fsdp=1, tensor=1, sequence=1, expert=1),  # -1: all devices left over
            data=dict(
                source="digits",  # digits | photos | shapes | tfds:<name> | folder:<path>
                root="",  # data_dir of a prepared TFDS data set
                resolution=16,
                channels=1,
                num_classes=10,
                frames=0,  # videos: frames per clip (shapes, folder); 0 for images
                augment="affine",  # none | affine | crop_flip
                workers=0,  # Grain worker processes; 0 loads in this process
                prefetch=2,  # batches prepared ahead
            ),
            train=dict(latent=stage(), tokenizer=stage(), generator=stage(), drafter=stage()),
            drafter=dict(
                name="",  # what --mode=draft adds to a generator: pass | eesd | eagle | tcts
                layers=0,  # eesd: first ones that draft, 0 for a quarter; tcts: 0 for half as many
                guesses=0,  # pass: tokens guessed behind the next one; 0 for 4
            ),
            sample=dict(
                per_class=8,
                tokens=0,  # tokens generated per image; 0 for all
                temperature=1.0,
                top_k=0,
                top_p=0.0,
                typical=0.0,  # mass of typical tokens that are kept; 0 for all
                entropy_top_k=(),  # kept tokens at no and at much entropy: 1,2000; () for all
                guidance=2.0,  # u + s(c - u); 1 is none
                guidance_start=1.0,  # s of the first step, where s is not constant
                guidance_shape="constant",  # constant | linear | cosine | power
                guidance_power=1.0,  # exponent of the last two
                guidance_clock="step",  # s follows: step | before | after | masked (see schedules)
                # instead of guidance (1): log p - log p without the class, of tokens that are at
                # least so many times as likely as the k-th (0 for the first); 0 for guidance
                contrast=0.0,
                contrast_k=0,
                certainty="",  # by which they choose: "" drawn token's | top | margin | entropy
                confidence=0.0,  # Gumbel noise of plans by confidence, annealed to 0
                steps=0,  # steps of a scheduled plan; 0 for the trained plan's own
                given=0,  # steps that held-out data gives, of a plan that has such; 0 for its own
                source="",  # --mode=sample: a picture to edit ...
                mask="",  # ... and where: white is drawn anew, black stays
                classes=(),  # --mode=sample: ids of the classes drawn; () for all
            ),
            sampler=dict(
                # plan | jacobi | self_speculative | draft | ngram | pass | eesd | eagle | zipar |
                # lpd | disa | recap | parallel | revocable | tcts | tts_var | beam |
                # diverse_beam | stochastic_beam | contrastive_search
                name="plan",
                draft="",  # draft: workdir of the run whose generator guesses
                window=0,  # guesses of a call; 0 for its own
                lag=0.0,  # zipar: columns by which a row is behind the one above; 0 for its own
                init="",  # jacobi: what a guess starts as, "" for random
                layers=(),  # self_speculative: layers that guess, () for every other one
                # guesses of a model: their number, "" for fixed | threshold | thompson; mass of
                # similar codes that counts for a guess (0 is exact), whether it is relative to the
                # guess's own, codes looked at (0: 1,000)
                control="",
                relax=0.0,
                relative=False,
                neighbours=0,
                branches=(),  # draft, self_speculative: guesses of a guess, a tree; ngram: 3, 2, 1
                adaptive=False,  # zipar: a row waits until its first token no longer changes
                orders=0,  # lpd: orders in the pool, 0 for 64
                solver_steps=(),  # disa: of the first and the last step; () for its own
                anneal="",  # disa: how they fall, "" for linear
                whole=0,  # recap: steps in front that stay alone
                local=0,  # recap: steps after each later one that compute less, 0 for 1
                threshold=0.0,  # parallel: probability from which tokens are revealed, 0 for 0.9
                factor=0.0,  # parallel: instead, the n surest while (n + 1) (1 - p) is below it
                persistent=False,  # revocable, tcts: tokens of low frequency stay once drawn
                # tts_var: particles at each scale, () for the paper's; scales in front after which
                # those differ that go on, 0 for half; by "" pca | pooled | class | none; reward
                # "" class | certainty; "" value | diff | max | sum | none of it, times 0: 10
                particles=(),
                early=0,
                features="",
                reward="",
                potential="",
                strength=0.0,
                beams=0,  # searches: strings, 0 for 4
                groups=0,  # diverse_beam: 0 for one a beam
                penalty=0.0,  # diverse_beam: of a token that an earlier group has taken, 0 for 0.5
                candidates=0,  # contrastive_search: likeliest tokens, 0 for 5
                alpha=0.0,  # contrastive_search: weight of unlikeness, 0 for 0.6
            ),
            profile=dict(steps=""),  # a:b traces steps a + 1 .. b of every stage; "" none
            eval=dict(
                batch_size=100,
                images=400,  # held-out images measured, at most
                samples=500,  # generated images measured
                classifier_steps=200,  # of the classifier whose features and labels judge samples
                clusters=64,  # --mode=cluster: coarse labels of a tokenizer's codes (CTF)
            ),
        ),
        convert_dict=True,
    )


def stage(**changes) -> dict:
    """One training stage. `learning_rate` follows warm-up then `schedule`."""
    return (
        dict(
            steps=1000,
            batch_size=64,
            accumulate=1,  # micro-batches per step
            optimizer="adamw",
            learning_rate=1e-3,
            final_learning_rate=0.0,  # where a schedule that falls ends
            schedule="cosine",  # cosine | linear (held for a twentieth, then falling) | constant
            warmup=100,
            rates=(),  # of parts, times the learning rate: ("discriminator:0.3",)
            weight_decay=0.05,
            b1=0.9,
            b2=0.99,
            clip=1.0,  # global gradient norm; 0 for none
            ema=0.999,  # decay of the weight average used at evaluation; 0 for none
            log_every=50,
            save_every=250,
            keep=2,  # checkpoints kept
        )
        | changes
    )


def product(values: dict) -> list[dict]:
    """A sweep: every choice of one value for each key, {"a.b": (1, 2)} -> [{"a.b": 1}, ...]."""
    return [
        dict(zip(values, chosen, strict=True)) for chosen in itertools.product(*values.values())
    ]


def section(**keys) -> ConfigDict:
    """A section with these keys."""
    return ConfigDict(keys)


def plan(name="raster", **changes) -> ConfigDict:
    """Which tokens are predicted together, and in which order (nexttok/plans.py)."""
    return section(
        **(dict(name=name, block=0, steps=0, schedule="", lead=False, given=0) | changes)
    )


def mask(**changes) -> ConfigDict:
    """Hidden positions see the given ones (nexttok/contexts/mask.py)."""
    return section(**(dict(name="mask", schedule="cosine", floor=0.0, per_example=False) | changes))


def categorical(**changes) -> ConfigDict:
    """A softmax over the vocabulary."""
    return section(
        **(
            dict(
                name="categorical", bias=False, init="zeros", tied=False, smoothing=0.0, reserved=0
            )
            | changes
        )
    )


def backbone(name="decoder", **changes) -> ConfigDict:
    """A pre-norm GPT with learned positions; the class is added to the start vector."""
    keys = dict(
        name=name,
        width=128,
        depth=4,
        decoder_depth=0,  # second stack of encoder_decoder and cross_decoder
        head_dim=32,
        mlp_hidden=512,
        activation="gelu_tanh",  # gelu | gelu_tanh | silu
        gated=False,
        norm="layer",  # layer | rms
        norm_eps=1e-5,
        norm_affine=True,
        norm_bias=True,
        post_norm=False,
        qk_norm="none",  # none | layer | rms | l2
        bias=False,
        key_bias=True,
        mlp_bias=False,
        init="normal02",  # xavier | normal02 | third
        depth_scaled=False,
        adaln_gain=(0.0, 0.0),
        adaln_shared=False,
        positions=("learned",),  # learned and/or rope
        condition=("start",),  # start, prefix, adaln
        prefix=0,
        prefix_words=False,  # a class has a vector for each prefix slot
        start_vector=True,
        null_class=False,
        rotate_query=False,
        concat_mask=False,
        embed_norm="none",
        final_norm="layer",  # none | layer | rms | adaln
        output_positions=False,
        embed_init="uniform01",  # normal02 | normal1 | third | uniform01
        dropout=0.1,
        dropout_on=("embedding", "attention", "mlp"),  # also: weights (of attention), hidden
        drop_path=0.0,
        remat=False,
        unroll=1,
        zero=3,  # 2: parameters of all layers are gathered over fsdp at once
    )
    return section(**(keys | changes))


def llama(name="decoder", **changes) -> ConfigDict:
    """LlamaGen's block: RMS norms, SwiGLU, 2D rotary positions, the class as the start slot."""
    keys = dict(
        norm="rms", final_norm="rms", activation="silu", gated=True, mlp_hidden=344,
        positions=("rope",), start_vector=False, null_class=True, embed_init="normal02",
    )  # fmt: skip
    return backbone(name, **(keys | changes))


def digits(config: ConfigDict) -> None:
    """How the small generators are trained on the digits: on tokens cached once."""
    config.cached_passes = 30
    config.train.tokenizer.update(steps=1000, learning_rate=2e-3, ema=0.995)
    config.train.generator.update(steps=1500, batch_size=128, learning_rate=1e-3, ema=0.995)
    config.train.drafter.update(steps=500, batch_size=128, learning_rate=2e-3, ema=0.99)


def tiny(config: ConfigDict) -> None:
    """Seconds per stage: the numbers mean little, the path is whole."""
    if "encoder" in config.tokenizer and "multipliers" in config.tokenizer.encoder:
        for part in ("encoder", "decoder"):
            config.tokenizer[part].update(width=16, multipliers=(1, 1, 2))
    config.generator.backbone.update(width=32, depth=1, head_dim=16, mlp_hidden=64)
    if config.generator.backbone.decoder_depth:
        config.generator.backbone.decoder_depth = 1
    short = dict(steps=60, batch_size=32, warmup=10, log_every=10, save_every=20)
    config.train.tokenizer.update(short)
    config.train.generator.update(short)
    config.train.drafter.update(short)
    config.eval.update(batch_size=50, images=50, samples=100, classifier_steps=60)
    config.sample.per_class = 4
    config.cached_passes = 2


def imagenet(config: ConfigDict, resolution: int = 256) -> None:
    """ImageNet prepared through TFDS, bfloat16, and the scale of its papers."""
    config.dtype = "bfloat16"
    config.cached_passes = 0
    config.data.update(
        source="tfds:imagenet2012", resolution=resolution, channels=3, num_classes=1000,
        augment="crop_flip", workers=16, prefetch=4,
    )  # fmt: skip
    big = dict(warmup=5000, log_every=100, save_every=5000)
    config.train.tokenizer.update(
        big, steps=400_000, batch_size=128, learning_rate=1e-4, b2=0.95, ema=0.9999
    )
    config.train.generator.update(big, steps=375_000, batch_size=1024, b2=0.95, clip=1.0)
    config.eval.update(batch_size=250, images=50_000, samples=50_000, classifier_steps=20_000)
