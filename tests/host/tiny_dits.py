"""Tiny random DiTs of ComfyUI's families, whose latents, texts and blocks are as small as their networks allow."""

from dataclasses import dataclass, field
from types import SimpleNamespace

import comfy.model_base
import comfy.supported_models
import torch

from host import tiny_editors
from host.tiny_editors import CONTEXT, EDITORS, of_config

_DEEP = dict(depth=2, depth_single_blocks=2)
SD3 = dict(input_size=None, patch_size=2, in_channels=16, out_channels=16, depth=2, adm_in_channels=16,
           context_embedder_config={"target": "torch.nn.Linear", "params": {"in_features": CONTEXT, "out_features": 128}}, num_patches=64,
           pos_embed_max_size=8, qk_norm="rms", x_block_self_attn_layers=[0])  # fmt: skip
WAN = dict(image_model="wan2.1", model_type="t2v", in_dim=16, out_dim=16, dim=48, ffn_dim=64, freq_dim=32, text_dim=CONTEXT, num_heads=2,
           num_layers=2)  # fmt: skip
WAN_I2V = WAN | dict(model_type="i2v", in_dim=36)
NEXT = dict(image_model="lumina2", patch_size=2, in_channels=16, n_layers=2, n_refiner_layers=1, n_heads=2, n_kv_heads=2, qk_norm=True,
            cap_feat_dim=CONTEXT)  # fmt: skip
LUMINA = NEXT | dict(dim=48, axes_dims=[8, 8, 8], axes_lens=[64, 64, 64])
Z_IMAGE = NEXT | dict(dim=256, axes_dims=[32, 48, 48], axes_lens=[64, 64, 64], z_image_modulation=True, time_scale=1000.0,
                      pad_tokens_multiple=32, rope_theta=256.0, ffn_dim_multiplier=8 / 3)  # fmt: skip
AURA = dict(in_channels=4, out_channels=4, patch_size=2, dim=32, n_layers=3, n_double_layers=1, n_heads=2, global_conddim=32,
            cond_seq_dim=CONTEXT, max_seq=64)  # fmt: skip
HUNYUAN = tiny_editors.FLUX | dict(axes_dim=[4, 6, 6], theta=256, qkv_bias=True, byt5=False, meanflow=False,
                                   use_cond_type_embedding=False, vision_in_dim=None, meanflow_sum=False)  # fmt: skip
HUNYUAN_VIDEO = HUNYUAN | dict(image_model="hunyuan_video", in_channels=16, out_channels=16, vec_in_dim=16, patch_size=[1, 2, 2])
HUNYUAN_IMAGE = HUNYUAN | dict(image_model="hunyuan_video", in_channels=64, out_channels=64, vec_in_dim=None, patch_size=[1, 1],
                               axes_dim=[8, 8])  # fmt: skip
HIDREAM = dict(image_model="hidream", patch_size=2, in_channels=16, out_channels=16, num_layers=1, num_single_layers=1,
               attention_head_dim=16, num_attention_heads=2, caption_channels=[CONTEXT, CONTEXT], text_emb_dim=16,
               axes_dims_rope=(4, 6, 6), max_resolution=(16, 16), llama_layers=[0, 1])  # fmt: skip
COSMOS = dict(image_model="cosmos_predict2", max_img_h=32, max_img_w=32, max_frames=8, in_channels=16, out_channels=16, patch_spatial=2,
              patch_temporal=1, concat_padding_mask=True, model_channels=48, num_blocks=2, num_heads=2, crossattn_emb_channels=CONTEXT,
              pos_emb_cls="rope3d", use_adaln_lora=True, adaln_lora_dim=8)  # fmt: skip
LTXV = dict(image_model="ltxv", in_channels=128, cross_attention_dim=32, attention_head_dim=16, num_attention_heads=2,
            caption_channels=CONTEXT, num_layers=2)  # fmt: skip
KANDINSKY = dict(image_model="kandinsky5", in_visual_dim=16, out_visual_dim=16, in_text_dim=CONTEXT, in_text_dim2=16, time_dim=16,
                 model_dim=48, ff_dim=64, visual_embed_dim=64, num_text_blocks=1, num_visual_blocks=2, axes_dims=(8, 8, 8))  # fmt: skip
KREA = dict(image_model="krea2", features=64, tdim=16, txtdim=16, heads=4, kvheads=2, multiplier=2, layers=2, patch=2, channels=16,
            txtlayers=2, txtheads=2, txtkvheads=2)  # fmt: skip
BOOGU = dict(tiny_editors.OMNIGEN2, image_model="boogu", num_double_stream_layers=1, instruction_feat_dim=CONTEXT)
del BOOGU["text_feat_dim"]
_HEADS = dict(num_layers=2, attention_head_dim=16, num_attention_heads=2)
LENS = _HEADS | dict(image_model="lens", patch_size=1, in_channels=128, out_channels=128, enc_hidden_dim=CONTEXT,
                     axes_dims_rope=(4, 6, 6), multi_layer_encoder_feature=False)  # fmt: skip
JOY = dict(image_model="joyimage", in_channels=16, hidden_size=32, num_attention_heads=2, text_dim=CONTEXT, num_layers=2,
           rope_dim_list=[4, 6, 6])  # fmt: skip
IDEOGRAM = dict(image_model="ideogram4", in_channels=128, num_layers=2, num_attention_heads=2, attention_head_dim=32,
                intermediate_size=64, adaln_dim=16, llm_features_dim=CONTEXT, mrope_section=(4, 6, 6))  # fmt: skip
MAGE = _HEADS | dict(image_model="mage_flow", in_channels=128, out_channels=128, joint_attention_dim=CONTEXT, axes_dims_rope=(4, 6, 6))
COG = _HEADS | dict(image_model="cogvideox", in_channels=16, out_channels=16, time_embed_dim=16, text_embed_dim=CONTEXT, sample_width=8,
                    sample_height=8, sample_frames=9, max_text_seq_length=7, use_rotary_positional_embeddings=True)  # fmt: skip
PIXEL = dict(image_model="pixeldit_t2i", patch_size=2, num_groups=2, hidden_size=32, pixel_hidden_size=4, pixel_attn_hidden_size=32,
             pixel_num_groups=2, patch_depth=2, pixel_depth=1, txt_embed_dim=CONTEXT)  # fmt: skip
PIXART = dict(image_model="pixart_sigma", input_size=32, patch_size=2, in_channels=4, hidden_size=36, depth=1, num_heads=2,
              caption_channels=CONTEXT, micro_condition=False, pe_interpolation=2.0, pe_precision=0)  # fmt: skip
HUNYUAN_DIT = dict(image_model="hydit1", input_size=8, patch_size=2, in_channels=4, hidden_size=32, depth=2, num_heads=2,
                   text_states_dim=CONTEXT, text_states_dim_t5=CONTEXT, text_len=7, text_len_t5=16, qk_norm=True)  # fmt: skip
ERNIE = dict(image_model="ernie", hidden_size=48, num_attention_heads=2, num_layers=2, ffn_hidden_size=64, in_channels=128,
             out_channels=128, patch_size=1, text_in_dim=CONTEXT, rope_axes_dim=(8, 8, 8))  # fmt: skip
LTXAV = LTXV | dict(image_model="ltxav", audio_cross_attention_dim=16, audio_attention_head_dim=8, audio_num_attention_heads=2,
                    connector_attention_head_dim=8, connector_num_attention_heads=2, connector_num_layers=1)  # fmt: skip
HIDREAM_O1 = dict(image_model="hidream_o1",
                  text_config_overrides=dict(vocab_size=16, hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
                                             num_key_value_heads=1, head_dim=16),
                  vision_config_overrides=dict(hidden_size=32, num_heads=2, intermediate_size=32, depth=1, num_position_embeddings=16))  # fmt: skip
LLAMA = torch.linspace(-1, 1, 2 * 5 * CONTEXT).reshape(1, 2, 5, CONTEXT)
VISION = SimpleNamespace(penultimate_hidden_states=torch.ones(1, 257, 1280))


@dataclass(frozen=True)
class Family:
    """Names of ComfyUI's config and model classes, the network's config, and the shape of a latent. `extras`: more of a conditioning."""

    config: str
    model: str
    network: dict
    latent: tuple[int, ...]
    extras: dict = field(default_factory=dict)


DITS = {
    "flux": Family("Flux", "Flux", tiny_editors.FLUX | tiny_editors.FLUX1 | _DEEP, EDITORS["flux"][3]),
    "flux2": Family("Flux2", "Flux2", tiny_editors.FLUX | tiny_editors.FLUX2 | _DEEP, EDITORS["flux2"][3]),
    "chroma": Family("Chroma", "Chroma", tiny_editors.CHROMA | _DEEP | dict(in_channels=64, out_channels=64), (16, 8, 8)),
    "sd3": Family("SD3", "SD3", SD3, (16, 8, 8)),
    "qwen": Family("QwenImage", "QwenImage", tiny_editors.QWEN | dict(num_layers=2), EDITORS["qwen"][3]),
    "lumina2": Family("Lumina2", "Lumina2", LUMINA, (16, 8, 8)),
    "zimage": Family("ZImage", "Lumina2", Z_IMAGE, (16, 8, 8)),
    "omnigen2": Family("Omnigen2", "Omnigen2", tiny_editors.OMNIGEN2, EDITORS["omnigen2"][3]),
    "aura": Family("AuraFlow", "AuraFlow", AURA, (4, 8, 8)),
    "hunyuan_video": Family("HunyuanVideo", "HunyuanVideo", HUNYUAN_VIDEO, (16, 2, 8, 8)),
    "hunyuan_image": Family("HunyuanImage21", "HunyuanImage21", HUNYUAN_IMAGE, (64, 4, 4)),
    "hidream": Family("HiDream", "HiDream", HIDREAM, (16, 8, 8), {"conditioning_llama3": LLAMA}),
    "wan": Family("WAN21_T2V", "WAN21", WAN, (16, 2, 8, 8)),
    "wan_i2v": Family("WAN21_I2V", "WAN21", WAN_I2V, (16, 2, 8, 8), {"clip_vision_output": VISION}),
    "cosmos2": Family("CosmosT2IPredict2", "CosmosPredict2", COSMOS, (16, 1, 8, 8)),
    "ltxv": Family("LTXV", "LTXV", LTXV, (128, 2, 4, 4)),
    "kandinsky5": Family("Kandinsky5Image", "Kandinsky5Image", KANDINSKY, (16, 1, 8, 8)),
    "krea2": Family("Krea2", "Krea2", KREA, (16, 1, 8, 8)),
    "boogu": Family("Boogu", "Boogu", BOOGU, (16, 8, 8)),
    "lens": Family("Lens", "Lens", LENS, (128, 4, 4)),
    "joyimage": Family("JoyImage", "JoyImage", JOY, (16, 1, 8, 8)),
    "ideogram4": Family("Ideogram4", "Ideogram4", IDEOGRAM, (128, 4, 4)),
    "mage": Family("MageFlow", "MageFlow", MAGE, (128, 4, 4)),
    "cogvideo": Family("CogVideoX_T2V", "CogVideoX", COG, (16, 2, 8, 8)),
    "pixeldit": Family("PixelDiTT2I", "PixelDiTT2I", PIXEL, (3, 8, 8)),
}
CLOSED = {  # their attentions do not see ComfyUI's override, or not as is known here
    "pixart": Family("PixArtSigma", "PixArt", PIXART, (4, 8, 8)),
    "hunyuan_dit": Family("HunyuanDiT1", "HunyuanDiT", HUNYUAN_DIT, (4, 8, 8)),
    "ernie": Family("ErnieImage", "ErnieImage", ERNIE, (128, 4, 4)),
    "ltxav": Family("LTXAV", "LTXAV", LTXAV, (128, 2, 4, 4)),
    "hidream_o1": Family("HiDreamO1", "HiDreamO1", HIDREAM_O1, (3, 64, 64)),
}
VACE = WAN | dict(model_type="vace", num_layers=4, vace_layers=2, vace_in_dim=96)
BRANCHED = {"wan_vace": Family("WAN21_Vace", "WAN21_Vace", VACE, (16, 2, 8, 8))}  # with blocks beside their own
ALL = DITS | CLOSED | BRANCHED
MASKED = ("omnigen2", "boogu", "ltxv")  # whose networks ask for the mask of the text


def there(families: dict[str, Family]) -> list[str]:
    """Names of the families that this version of ComfyUI has."""
    return [n for n, f in families.items() if hasattr(comfy.supported_models, f.config) and hasattr(comfy.model_base, f.model)]


def dit(name: str, seed: int = 0):
    """A MODEL of a family."""
    family = ALL[name]
    config = type(family.config, (getattr(comfy.supported_models, family.config),), {"unet_extra_config": {}})
    made = of_config(config, family.network, getattr(comfy.model_base, family.model), seed)
    for buffer_name, buffer in made.model.diffusion_model.named_buffers():
        if "pos_embed" in buffer_name:
            buffer.zero_()  # made without a value
    return made


def text(name: str, seed: int, tokens: int = 7) -> list:
    """A random CONDITIONING that fits the family."""
    draw = torch.Generator().manual_seed(seed)
    features, pooled = torch.randn(1, tokens, CONTEXT, generator=draw), torch.randn(1, 16, generator=draw)
    given = {"pooled_output": pooled, "attention_mask": torch.ones(1, tokens, dtype=torch.long), **ALL[name].extras}
    return [[features, {k: v for k, v in given.items() if k != "attention_mask" or name in MASKED}]]


def empty(name: str, batch: int = 1) -> torch.Tensor:
    return torch.zeros(batch, *ALL[name].latent)


class Clip:
    """The tiny CLIP of Flux, whose T5 gives texts of as many tokens as they have, with what a family's conditioning has besides."""

    def __init__(self, clip, name: str):
        self.clip, self.name = clip, name
        clip.tokenizer.t5xxl.min_length = 1

    def tokenize(self, *args, **kwargs):
        return self.clip.tokenize(*args, **kwargs)

    def encode_from_tokens_scheduled(self, tokens):
        (features, extras), *_ = self.clip.encode_from_tokens_scheduled(tokens)
        mask = {"attention_mask": torch.ones(1, features.shape[1], dtype=torch.long)} if self.name in MASKED else {}
        return [[features, {**extras, **mask, **ALL[self.name].extras}]]
