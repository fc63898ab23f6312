"""Defaults shared by every config. A paper's file shows only what makes that paper itself."""

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
            tokenizer_checkpoint="",  # a finished workdir whose tokenizer is used
            cached_passes=0,  # generator: passes tokenized once; 0 for on the fly
            latent=dict(name=""),  # an autoencoder under the tokenizer; "" tokenizes pixels
            features=dict(name="", preset="", checkpoint=""),  # alignment: dinov2, its file
            mesh=dict(data=-1, fsdp=1, tensor=1, sequence=1, expert=1),  # -1: all devices left over
            data=dict(
                source="digits",  # digits | photos | shapes | tfds:<name> | folder:<path>
                root="",  # data_dir of a prepared TFDS data set
                resolution=16,
                channels=1,
                num_classes=10,
                frames=0,  # videos: frames per clip (shapes); 0 for images
                augment="affine",  # none | affine | crop_flip
                workers=0,  # Grain worker processes; 0 loads in this process
                prefetch=2,  # batches prepared ahead
            ),
            train=dict(latent=stage(), tokenizer=stage(), generator=stage()),
            sample=dict(
                per_class=8,
                tokens=0,  # tokens generated per image; 0 for all
                temperature=1.0,
                top_k=0,
                top_p=0.0,
                guidance=2.0,  # u + s(c - u); 1 is none
            ),
            eval=dict(
                batch_size=100,
                images=400,  # held-out images measured, at most
                samples=500,  # generated images measured
                classifier_steps=1000,  # of the classifier whose features and labels judge samples
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
            final_learning_rate=0.0,  # where the cosine ends
            schedule="cosine",  # cosine | constant
            warmup=100,
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


def section(**keys) -> ConfigDict:
    """A section with these keys."""
    return ConfigDict(keys)
