"""The size all systems are compared at; read by both sides, so it imports neither jax nor torch."""

import dataclasses
import json

SCALES = {4: (1, 2, 3, 4), 16: (1, 2, 3, 4, 5, 6, 8, 10, 13, 16)}  # VAR's, by side of the grid


@dataclasses.dataclass(frozen=True)
class Size:
    """What a model is resized to; everything else stays as in the released variant.

    Attributes:
      width, depth, head_dim: of the transformer; depth is shared out where it has two stacks.
      side: of the token grid.
      batch: images per step.
      classes: of the condition.
      vocab: ids of LlamaGen, RandAR, ARPG and NBP; var_vocab, maskgit_vocab: of those.
      mar_prefix: class slots of MAR; mar_steps, mar_denoise: its steps and denoising steps.
      mar_head, mar_layers: width and depth of its denoiser.
      maskgit_steps: of MaskGIT.
      dropout: on the outputs of attention and MLP (and on embeddings, where a release has it), of
        all but VAR, which has none. Released attention dropout is left out on both sides.
    """

    width: int = 384
    depth: int = 12
    head_dim: int = 64
    side: int = 16
    batch: int = 8
    classes: int = 1000
    vocab: int = 16384
    var_vocab: int = 4096
    maskgit_vocab: int = 1024
    mar_prefix: int = 64
    mar_steps: int = 16
    mar_denoise: int = 25
    mar_head: int = 512
    mar_layers: int = 6
    maskgit_steps: int = 8
    dropout: float = 0.1

    @property
    def heads(self) -> int:
        """Attention heads."""
        return self.width // self.head_dim

    @property
    def tokens(self) -> int:
        """Tokens of an image, of all systems but VAR."""
        return self.side**2

    @property
    def scales(self) -> tuple[int, ...]:
        """Sides of VAR's maps."""
        return SCALES[self.side]

    @property
    def gated_hidden(self) -> int:
        """Hidden width of SwiGLU: 8/3 of the width, rounded up to 256."""
        return -(-(8 * self.width // 3) // 256) * 256

    def dump(self) -> str:
        """As JSON, for another process."""
        return json.dumps(dataclasses.asdict(self))


def load(text: str) -> Size:
    """Inverse of Size.dump."""
    return Size(**json.loads(text))


FULL = Size()
TINY = Size(
    width=64, depth=2, head_dim=32, side=4, batch=2, classes=10, vocab=64, var_vocab=32,
    maskgit_vocab=32, mar_prefix=4, mar_steps=4, mar_denoise=3, mar_head=32, mar_layers=2,
    maskgit_steps=4,
)  # fmt: skip
