"""Names and shapes of the entries of released tokenizers, from the numbers of their official code.

No weights: a test fills them with zeros that cost no memory, or draws small ones.
"""

import dataclasses

import numpy as np

Shapes = dict[str, tuple[int, ...]]


def blank(shapes: Shapes) -> dict[str, np.ndarray]:
    """Zeros of these shapes."""
    return {name: np.broadcast_to(np.float32(0), shape) for name, shape in shapes.items()}


def _layer(name: str, *weight: int) -> Shapes:
    return {f"{name}.weight": weight, f"{name}.bias": weight[:1]}


@dataclasses.dataclass(frozen=True)
class Autoencoder:
    """A convolutional autoencoder under the names of llamagen, taming, var or diffusers.

    Attributes:
      z: channels between the networks and the quantization convolutions, of side `kernel`.
      latent: channels of the latent; doubled: the encoder gives a mean and a variance.
      attention: the deepest level of the encoder and (both) of the decoder has attention.
    """

    names: str
    width: int
    multipliers: tuple[int, ...]
    blocks: int
    z: int
    latent: int
    kernel: int = 1
    doubled: bool = False
    attention: str = "both"
    image: int = 3

    def shapes(self) -> Shapes:
        """Of every entry but the codebook's."""
        twice, deep = 1 + self.doubled, self.width * self.multipliers[-1]
        norm = "conv_norm_out" if self.names == "diffusers" else "norm_out"
        square = (self.kernel, self.kernel)
        found = (
            _layer("quant_conv", twice * self.latent, twice * self.z, *square)
            | _layer("post_quant_conv", self.z, self.latent, *square)
            | _layer("encoder.conv_in", self.width, self.image, 3, 3)
            | _layer("encoder.conv_out", twice * self.z, deep, 3, 3)
            | _layer(f"encoder.{norm}", deep)
            | _layer("decoder.conv_in", deep, self.z, 3, 3)
            | _layer("decoder.conv_out", self.image, self.width, 3, 3)
            | _layer(f"decoder.{norm}", self.width)
        )
        for net in ("encoder", "decoder"):
            found |= self._middle(net, deep)
        channels = [self.width * m for m in self.multipliers]
        inputs = self.width
        for i, outputs in enumerate(channels):
            found |= self._level("encoder", i, inputs, outputs, self.blocks)
            inputs = outputs
        for i, outputs in reversed(list(enumerate(channels))):
            found |= self._level("decoder", i, inputs, outputs, self.blocks + 1)
            inputs = outputs
        return found

    def _middle(self, net, channels):
        first, attention, second = {
            "llamagen": ("mid.0", "mid.1", "mid.2"),
            "diffusers": tuple(
                f"mid_block.{p}" for p in ("resnets.0", "attentions.0", "resnets.1")
            ),
        }.get(self.names, ("mid.block_1", "mid.attn_1", "mid.block_2"))
        return (
            self._res(f"{net}.{first}", channels, channels)
            | self._attention(f"{net}.{attention}", channels)
            | self._res(f"{net}.{second}", channels, channels)
        )

    def _res(self, name, inputs, outputs):
        found = (
            _layer(f"{name}.norm1", inputs)
            | _layer(f"{name}.conv1", outputs, inputs, 3, 3)
            | _layer(f"{name}.norm2", outputs)
            | _layer(f"{name}.conv2", outputs, outputs, 3, 3)
        )
        if inputs != outputs:
            shortcut = "conv_shortcut" if self.names == "diffusers" else "nin_shortcut"
            found |= _layer(f"{name}.{shortcut}", outputs, inputs, 1, 1)
        return found

    def _attention(self, name, c):
        if self.names == "diffusers":
            parts = ("to_q", "to_k", "to_v", "to_out.0")
            found = _layer(f"{name}.group_norm", c)
            for part in parts:
                found |= _layer(f"{name}.{part}", c, c)
            return found
        found = _layer(f"{name}.norm", c) | _layer(f"{name}.proj_out", c, c, 1, 1)
        if self.names == "var":
            return found | _layer(f"{name}.qkv", 3 * c, c, 1, 1)
        for part in "qkv":
            found |= _layer(f"{name}.{part}", c, c, 1, 1)
        return found

    def _level(self, net, i, inputs, outputs, blocks):
        last, up = len(self.multipliers) - 1, net == "decoder"
        way = "up" if up else "down"
        name, res, attention, resample = {
            "llamagen": (f"{net}.conv_blocks.{last - i if up else i}", "res", "attn", "sample"),
            "diffusers": (
                f"{net}.up_blocks.{last - i}" if up else f"{net}.down_blocks.{i}",
                "resnets", "attentions", "samplers.0",
            ),
        }.get(self.names, (f"{net}.{way}.{i}", "block", "attn", "sample"))  # fmt: skip
        found = {}
        for j in range(blocks):
            found |= self._res(f"{name}.{res}.{j}", outputs if j else inputs, outputs)
            if i == last and self.attention in (net, "both"):
                found |= self._attention(f"{name}.{attention}.{j}", outputs)
        if i != (0 if up else last):
            found |= _layer(f"{name}.{way}{resample}.conv", outputs, outputs, 3, 3)
        return found


LLAMAGEN = Autoencoder("llamagen", 128, (1, 1, 2, 2, 4), 2, z=256, latent=8)
KL16 = Autoencoder(
    "taming", 128, (1, 1, 2, 2, 4), 2, z=16, latent=16, doubled=True, attention="encoder"
)
VAR = Autoencoder("var", 160, (1, 1, 2, 2, 4), 2, z=32, latent=32, kernel=3)
FLEXTOK_VAE = Autoencoder(
    "diffusers", 128, (1, 2, 4, 4), 2, z=16, latent=16, doubled=True, attention=""
)


def llamagen_vq(net: Autoencoder = LLAMAGEN, codes: int = 16384) -> Shapes:
    """vq_ds16_c2i.pt."""
    counters = {"quantize.codebook_used": (65536,)}
    return net.shapes() | {"quantize.embedding.weight": (codes, net.latent)} | counters


def var_vqvae(net: Autoencoder = VAR, codes: int = 4096, scales: int = 10) -> Shapes:
    """vae_ch160v4096z32.pth."""
    found = net.shapes() | {"quantize.embedding.weight": (codes, net.latent)}
    for i in range(4):
        found |= _layer(f"quantize.quant_resi.qresi_ls.{i}", net.latent, net.latent, 3, 3)
    return found | {"quantize.ema_vocab_hit_SV": (scales, codes)}


def flextok(encoder: int, decoder: int) -> Shapes:
    """EPFL-VILAB/flextok_d<encoder>_d<decoder>_in1k, without its two fixed position tables."""
    enc, dec, patches = "encoder.module_dict.enc_", "decoder.module_dict.dec_", 4 * 16
    found = {
        f"{enc}register_module.registers": (256, 64 * encoder),
        f"{dec}registers_posemb_module.posembs": (1, 1, 64 * decoder, 256),
        f"{dec}nested_dropout.dropout_mask_token": (64 * decoder,),
        f"{dec}latent_dropout.nullcond": (64 * decoder,),
    }
    w = 64 * encoder
    found |= _layer(f"{enc}patch_emb.patch_proj", w, patches)
    found |= _layer(f"{enc}to_latents.proj", 6, w)
    found |= _blocks(f"{enc}transformer", w, encoder, adaln=False)
    w = 64 * decoder
    found |= _layer(f"{dec}from_latents.proj", w, 6)
    found |= _layer(f"{dec}noise_patch_emb.patch_proj", w, patches)
    found |= _layer(f"{dec}time_embedder.mlp.0", w, 256)
    found |= _layer(f"{dec}time_embedder.mlp.2", w, w)
    found |= _layer(f"{dec}to_patches.adaLN_modulation.1", 2 * w, w)
    found |= _layer(f"{dec}to_patches.proj", patches, w)
    found |= _blocks(f"{dec}transformer", w, decoder, adaln=True)
    return found | {f"vae.vae.{name}": shape for name, shape in FLEXTOK_VAE.shapes().items()}


def larp(
    w: int = 768, depth: int = 12, tokens: int = 1024, channels: int = 16, codes: int = 8192,
    prior: tuple[int, int] = (384, 12),
) -> Shapes:  # fmt: skip
    """hywang66/LARP-L-long-tokenizer, without its three fixed position tables."""
    found = {
        "encoder_latent_query_embed": (tokens, w),
        "decoder_patch_query_token_type_embed": (1, 1, w),
        "bottleneck.regularizer.embedding.weight": (codes, channels),
    }
    found |= _layer("x_embedder.proj", w, 3, 4, 8, 8) | _layer("bottleneck.in_linear", channels, w)
    found |= _layer("bottleneck.out_linear", w, channels) | _layer("final_layer.norm_final", w)
    found |= _layer("final_layer.linear", 3 * 4 * 8 * 8, w)
    for i in range(depth):
        for root in (f"encoder.blocks.{i}", f"decoder.blocks.{i}"):
            found |= _layer(f"{root}.norm1", w) | _layer(f"{root}.norm2", w)
            found |= {f"{root}.attn.qkv.weight": (3 * w, w)} | _layer(f"{root}.attn.proj", w, w)
            found |= _layer(f"{root}.mlp.fc1", 4 * w, w) | _layer(f"{root}.mlp.fc2", w, 4 * w)
    (w, depth), root = prior, "prior_model"
    found |= {f"{root}.pos_emb": (1, tokens, w)} | _layer(f"{root}.input_proj", w, channels)
    found |= _layer(f"{root}.ln_f", w) | _layer(f"{root}.head", channels, w)
    for i in range(depth):
        own = f"{root}.blocks.{i}"
        found |= _layer(f"{own}.ln1", w) | _layer(f"{own}.ln2", w)
        for part in ("key", "query", "value", "proj"):
            found |= _layer(f"{own}.attn.{part}", w, w)
        found |= _layer(f"{own}.mlp.0", 4 * w, w) | _layer(f"{own}.mlp.2", w, 4 * w)
    return found


def _blocks(root, w, depth, adaln):
    hidden, found = int(4 * w * 2 / 3), {}
    for i in range(depth):
        name = f"{root}.blocks.{i}"
        found |= {f"{name}.attn.{part}.weight": (w, w) for part in ("wq", "wk", "wv", "proj")}
        found |= {f"{name}.mlp.{part}.weight": (hidden, w) for part in ("fc1", "fc3")}
        found[f"{name}.mlp.fc2.weight"] = (w, hidden)
        if adaln:
            found |= _layer(f"{name}.adaLN_modulation.1", 12 * w, w)
    return found


def detailflow(tokens: int) -> Shapes:
    """ByteFlow-AI/DetailFlow-16 | -32 | -64, of 128, 256 or 512 tokens, without the frozen SigLIP 2
    of the alignment."""
    found = {
        "encoder.latent_tokens": (1, tokens, 1152),
        "encoder.refined_tokens": (1, tokens, 1152),
        "encoder.latent_pos_embed": (1, tokens, 1152),
        "decoder.latent_pos_embed": (1, tokens, 768),
        "decoder.mask_token": (1, 1, 768),
        "quantize.embedding.weight": (8192, 8),
        "quantize.codebook_used": (65536,),
    }
    found |= _layer("encoder.visual_model.embeddings.patch_embedding", 1152, 768)
    found |= _layer("decoder.to_pixel.model", 768, 768)
    found |= _layer("quant_conv", 8, 1152) | _layer("post_quant_conv", 768, 8)
    found |= _layer("refine_conv", 1152, 8) | _layer("global_token_proj.0", 1024, 8)
    for net, w, hidden in (("encoder", 1152, 4304), ("decoder", 768, 3072)):
        root = f"{net}.visual_model"
        found[f"{root}.embeddings.position_embedding.weight"] = (256, w)
        found |= _layer(f"{root}.post_layernorm", w)
        for i in range(12):
            name = f"{root}.encoder.layers.{i}"
            for part in ("q_proj", "k_proj", "v_proj", "out_proj"):
                found |= _layer(f"{name}.self_attn.{part}", w, w)
            found |= _layer(f"{name}.layer_norm1", w) | _layer(f"{name}.layer_norm2", w)
            found |= _layer(f"{name}.mlp.fc1", hidden, w) | _layer(f"{name}.mlp.fc2", w, hidden)
    return found


def dar(w: int = 768) -> Shapes:
    """D-AR-tokenizer_v1.pt."""
    net = "diff_decoder.net"
    found = {
        "query_embedding.weight": (1024, 8),
        "decoder_embedding.weight": (1024, w),
        "quantize.embedding.weight": (16384, 8),
        "quantize.codebook_used": (65536,),
        "quant_in_conv.weight": (8, w, 1, 1),
        "quant_out_conv.weight": (w, 8, 1, 1),
    }
    found |= _layer("patchify", w, 3, 16, 16) | _layer("query_linear", w, 8)
    found |= _layer(f"{net}.conv_in", w, 192, 1, 1) | _layer(f"{net}.conv_out", 192, w, 1, 1)
    found |= _layer(f"{net}.cond_mlp", w, w)
    for i, (inputs, outputs) in enumerate(((w, 2048), (2048, 2048), (2048, 768))):
        found |= _layer(f"{net}.repa_out.{2 * i}", outputs, inputs)
    for root in ("encoder_layers", "decoder_layers"):
        for i in range(8):
            name = f"{root}.{i}"
            found |= _normed_attention(f"{name}.attention", w)
            found |= _layer(f"{name}.norm1", w) | _layer(f"{name}.norm2", w)
            found |= _layer(f"{name}.mlp.fc1", 4 * w, w) | _layer(f"{name}.mlp.fc2", w, 4 * w)
            found |= {f"{name}.gate1": (w,), f"{name}.gate2": (w,)}
    for i in range(12):
        name = f"{net}.blocks.{i}"
        for part in ("attention", "cross_attn"):
            found |= _normed_attention(f"{name}.{part}", w)
        for part in ("time_embed.mlp", "cond_embed"):
            found |= _layer(f"{name}.{part}.0", w, w) | _layer(f"{name}.{part}.2", w, w)
        found |= _layer(f"{name}.mlp.fc1", 4 * w, w) | _layer(f"{name}.mlp.fc2", w, 4 * w)
        found |= _layer(f"{name}.adaLN_modulation.1", 6 * w, w)
    return found


def _normed_attention(name, w):
    found = {}
    for part in ("q", "k", "v", "proj"):
        found |= _layer(f"{name}.{part}", w, w)
    return found | _layer(f"{name}.q_norm", 64) | _layer(f"{name}.k_norm", 64)
