"""Encoders and decoders of tokenizers, a file per family.

A file's `make(section, dtype, where)` gives the sizes of a pair, of which a tokenizer takes the
encoder, the decoder or both:

    sizes.grid(image_shape) -> latents per axis; ConfigError for pictures that it cannot take
    sizes.encoder(image_shape, channels) -> module: pictures [B, ..., C] -> [B, *grid, channels]
    sizes.decoder(image_shape) -> module: latents [B, *grid, c] -> pictures, both float32
    sizes.stride -> pixels (or frames) per latent, of networks of convolutions alone that may join
        the levels of bottlenecks/hierarchy.py
    sizes.blocks_to_align -> blocks of a decoder that __call__(z, tap=i) also gives the features of,
        [B, h, w, D] (criteria.alignment); 0, or nothing, for none
    sizes.last -> path of the kernel of a decoder's last layer, at which losses are balanced
"""

from nexttok.config import check


def divided(image_shape: tuple[int, ...], stride: tuple[int, ...], where: str) -> tuple[int, ...]:
    """image_shape / stride, axis by axis.

    Args:
      image_shape: (H, W, C) where there are two strides, (T, H, W, C) where there are three.
      stride: pixels (or frames) per latent.
      where: config section that errors name.

    Raises:
      ConfigError: videos instead of pictures or the other way round, sides that do not divide.
    """
    frames = image_shape[0] if len(image_shape) == 4 else 0
    kind, count = ("pictures", "0") if len(stride) == 2 else ("videos", "at least 1")
    fits = len(image_shape) == len(stride) + 1
    check(fits, "data.frames", frames, f"{count}: config.{where} takes {kind}")
    names = ("data.frames", "data.resolution", "data.resolution")[-len(stride) :]
    for name, size, step in zip(names, image_shape, stride, strict=False):
        allowed = f"a multiple of {step}, the stride of config.{where}"
        check(size % step == 0, name, size, allowed)
    return tuple(size // step for size, step in zip(image_shape, stride, strict=False))


def causal_divided(
    image_shape: tuple[int, ...], stride: tuple[int, int, int], where: str
) -> tuple[int, ...]:
    """As `divided`, where the first frame stands alone: 1 + k stride[0] frames give 1 + k.

    Raises:
      ConfigError: as `divided`, or another number of frames.
    """
    time = stride[0]
    frames, *sides = divided(image_shape, (1, *stride[1:]), where)
    check(frames % time == 1 % time, "data.frames", frames, f"1 and a multiple of {time}")
    return (-(-frames // time), *sides)
