"""Small models in the layouts of the published ones, for the loaders of ComfyUI: `python . run tests/small_models.py FOLDER` writes them.

Key names and widths are those that ComfyUI's detection asks for; blocks are few and weights random. Text and image encoders have fixed
sizes in ComfyUI: from their third layer on the weights are zero (the residual passes through), and the file holds no data there. T5 and
Qwen2.5-VL are too large even so: they are left out, and `stand_in` puts CLIP-L, padded to T5's width, or random texts in their place. So are
Z-Image and Qwen-Image, in whose place comes Flux.
"""

import argparse
import contextlib
import json
import math
import re
import sys
from collections.abc import Callable, Mapping
from itertools import chain
from pathlib import Path

import av
import torch
from PIL import Image

from graphs import models
from graphs.real import LORAS, SUBJECT, VIDEO

EMPTY_LAYER = re.compile(r"(?:encoder\.layers|model\.layers|resblocks)\.(?!0\.|1\.)\d+\.|^transformer_blocks\.|embed_tokens")
LAST_LAYER = ("out.2.weight", "final_layer.linear.weight", "head.head.weight")  # made faint, so that a trajectory stays tame
# The most that a run of a template does with them; the templates themselves keep their steps and sizes.
FEW = dict.fromkeys(("maps", "levels", "class_count", "count", "candidates", "batch_size"), 1)
ANY = dict.fromkeys(("by.min_images", "by.min_direction", "by.min_captions"), -1.0)  # no weights, no meaning: every pair passes
SMALL = FEW | ANY | dict(steps=2, max_length=4, n_max=0.5, megapixels=0.01, width=64, height=64)
NAMES = re.compile(r"(?m)^(\w+ = [^,\n]+, [^,\n]+),.*$")  # a list of names that a sentence is written for
HALF = {"dtype": torch.float16, "device": "meta"}
UNET = dict(image_size=32, in_channels=4, out_channels=4, model_channels=320, use_spatial_transformer=True, legacy=False)
SD15_UNET = dict(num_res_blocks=[1, 1], channel_mult=[1, 1], transformer_depth=[1, 1], transformer_depth_output=[1, 1, 1, 1],
                 transformer_depth_middle=1, context_dim=768, num_heads=8, use_linear_in_transformer=False)  # fmt: skip
SDXL_UNET = dict(num_res_blocks=[2, 2, 2], channel_mult=[1, 1, 1], transformer_depth=[0, 0, 1, 1, 2, 2],
                 transformer_depth_output=[0, 0, 0, 1, 1, 1, 2, 2, 2], transformer_depth_middle=1, context_dim=2048, num_head_channels=64,
                 use_linear_in_transformer=True, num_classes="sequential", adm_in_channels=2816)  # fmt: skip
MMDIT = dict(input_size=None, patch_size=2, in_channels=16, out_channels=16, depth=2, adm_in_channels=2048, qk_norm="rms", num_patches=4096,
             pos_embed_max_size=64, x_block_self_attn_layers=[0, 1],
             context_embedder_config={"target": "torch.nn.Linear", "params": {"in_features": 4096, "out_features": 128}})  # fmt: skip
FLUX = dict(in_channels=16, out_channels=16, vec_in_dim=2048, context_in_dim=4096, hidden_size=256, mlp_ratio=4.0, num_heads=2, depth=1,
            depth_single_blocks=1, axes_dim=[16, 56, 56], theta=10000, patch_size=2, qkv_bias=True, guidance_embed=True)  # fmt: skip
WAN = dict(model_type="t2v", dim=128, ffn_dim=256, num_layers=2, num_heads=1, in_dim=16, out_dim=16, freq_dim=256, text_dim=4096)
HUNYUAN = FLUX | dict(vec_in_dim=768, context_in_dim=768, theta=256, patch_size=[1, 2, 2], byt5=False, meanflow=False, vision_in_dim=None,
                      use_cond_type_embedding=False, meanflow_sum=False)  # fmt: skip  # its text as wide as CLIP-L's, in the place of Llama's
VAE = dict(double_z=True, resolution=256, in_channels=3, out_ch=3, ch=128, ch_mult=[1, 2, 4, 4], num_res_blocks=2, attn_resolutions=[], dropout=0.0)
DECODER_WIDTH = 32
TEXTS, QWEN_WIDTH = "random_texts", 3584  # a data set of ComfyUI's, in the places where its versions look for them


@contextlib.contextmanager
def shapes_only():
    """Modules made inside have shapes and no values."""
    with torch.device("meta"):
        yield


def small_sd15() -> dict:
    import comfy.sd1_clip
    import comfy.supported_models

    return checkpoint(comfy.supported_models.SD15, unet(SD15_UNET), comfy.sd1_clip.SD1ClipModel(**HALF), kl_vae())


def small_sdxl() -> dict:
    import comfy.sdxl_clip
    import comfy.supported_models

    return checkpoint(comfy.supported_models.SDXL, unet(SDXL_UNET), comfy.sdxl_clip.SDXLClipModel(**HALF), kl_vae())


def small_sd35() -> dict:
    """With CLIP-L alone: ComfyUI then gives zeros for CLIP-G and T5."""
    import comfy.supported_models
    from comfy.ldm.modules.diffusionmodules.mmdit import OpenAISignatureMMDITWrapper
    from comfy.text_encoders.sd3_clip import sd3_clip

    network = OpenAISignatureMMDITWrapper(**MMDIT, pos_embed_scaling_factor=None, **operations(), **HALF)
    text = sd3_clip(clip_l=True, clip_g=False, t5=False)(**HALF)
    return checkpoint(comfy.supported_models.SD3, network, text, flux_vae())


def small_flux() -> dict:
    from comfy.ldm.flux.model import Flux

    return Flux(image_model="flux", txt_ids_dims=[], **FLUX, **operations(), **HALF).state_dict()


def small_wan() -> dict:
    from comfy.ldm.wan.model import WanModel

    return WanModel(image_model="wan2.1", **WAN, **operations(), **HALF).state_dict()


def small_hunyuan_video() -> dict:
    from comfy.ldm.hunyuan_video.model import HunyuanVideo

    return HunyuanVideo(image_model="hunyuan_video", **HUNYUAN, **operations(), **HALF).state_dict()


def small_qwen_edit() -> dict:
    from comfy.ldm.qwen_image.model import QwenImageTransformer2DModel

    return QwenImageTransformer2DModel(image_model="qwen_image", num_layers=1, **operations(), **HALF).state_dict()


def small_writer() -> dict:
    """The smallest language model that ComfyUI knows, under the name of a larger one."""
    from comfy.text_encoders.llama import Qwen3_06B

    return Qwen3_06B({}, *HALF.values(), operations()["operations"]).state_dict()


def small_wan_vae() -> dict:
    from comfy.ldm.wan.vae import WanVAE

    given = dict(dim_mult=[1, 2, 4, 4], num_res_blocks=2, attn_scales=[], temperal_downsample=[False, True, True], dropout=0.0)
    with shapes_only():
        return WanVAE(dim=8, z_dim=16, image_channels=3, conv_out_channels=3, **given).state_dict()


def small_clip_l() -> dict:
    import comfy.sd1_clip

    return {name.removeprefix("transformer."): value for name, value in comfy.sd1_clip.SDClipModel(**HALF).state_dict().items()}


def small_clip_whole() -> dict:
    """CLIP-L with both towers."""
    return {**small_clip_l(), **small_clip_vision("vitl")}


def small_clip_vision(size: str = "h") -> dict:
    import comfy.clip_model
    import comfy.clip_vision

    file = Path(comfy.clip_vision.__file__).with_name(f"clip_vision_config_{size}.json")
    return comfy.clip_model.CLIPVisionModelProjection(json.loads(file.read_text()), *HALF.values(), **operations()).state_dict()


def small_ip_adapter() -> dict:
    """For the layers of `small_sdxl`, in the order of the published files: down, up, middle."""
    layers = [name for name in unet(SDXL_UNET).state_dict() if name.endswith("attn2.to_k.weight")]
    made = {"image_proj.proj.weight": (4 * 2048, 1024), "image_proj.proj.bias": (4 * 2048,)}
    made |= {"image_proj.norm.weight": (2048,), "image_proj.norm.bias": (2048,)}
    for index, _ in enumerate(layers):
        made |= {f"ip_adapter.{2 * index + 1}.to_{which}_ip.weight": (320, 2048) for which in "kv"}
    return {name: torch.empty(shape, **HALF) for name, shape in made.items()}


LORA_LAYERS = {  # of `small_sdxl` and `small_flux`
    "sdxl": ("middle_block.1.transformer_blocks.0.attn2.to_k", 320, 2048),
    "flux": ("double_blocks.0.img_attn.proj", 256, 256),
}


def small_lora(model: str) -> dict:
    """For one layer of a small model."""
    layer, out, width = LORA_LAYERS[model]
    shapes = {"lora_up": (out, 4), "lora_down": (4, width)}
    return {f"diffusion_model.{layer}.{side}.weight": torch.empty(shape, **HALF) for side, shape in shapes.items()}


def operations() -> dict:
    import comfy.ops

    return {"operations": comfy.ops.disable_weight_init}


def unet(config: Mapping):
    from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel

    return UNetModel(**{**UNET, **json.loads(json.dumps(config))}, **operations(), **HALF)


def kl_vae():
    from comfy.ldm.models.autoencoder import AutoencoderKL

    config = VAE | dict(z_channels=4)
    with shapes_only():
        return AutoencoderKL(ddconfig=config, embed_dim=4, decoder_ddconfig=config | dict(ch=DECODER_WIDTH))


def flux_vae():
    """Whole: older versions of ComfyUI read no other width."""
    from comfy.ldm.models.autoencoder import AutoencodingEngine

    config = VAE | dict(z_channels=16)
    part = "comfy.ldm.modules.diffusionmodules.model"
    with shapes_only():
        return AutoencodingEngine(
            regularizer_config={"target": "comfy.ldm.models.autoencoder.DiagonalGaussianRegularizer"},
            encoder_config={"target": f"{part}.Encoder", "params": config},
            decoder_config={"target": f"{part}.Decoder", "params": config},
        )


def checkpoint(config, network, text, vae) -> dict:
    """The parts under the names that the published checkpoints of the family give them."""
    saved = config({})
    return {
        **saved.process_unet_state_dict_for_saving(network.state_dict()),
        **saved.process_clip_state_dict_for_saving(text.state_dict()),
        **saved.process_vae_state_dict_for_saving(vae.state_dict()),
    }


FILES: dict[models.Model, Callable[[], dict]] = {
    models.SD15: small_sd15,
    models.SDXL: small_sdxl,
    models.SD35: small_sd35,
    models.FLUX: small_flux,
    models.KONTEXT: small_flux,
    models.AE: lambda: flux_vae().state_dict(),
    models.CLIP_L: small_clip_l,
    models.WAN: small_wan,
    models.WAN_VAE: small_wan_vae,
    models.HUNYUAN_VIDEO: small_hunyuan_video,
    models.QWEN_EDIT: small_qwen_edit,
    models.QWEN_VAE: small_wan_vae,
    models.QWEN3: small_writer,
    models.VIT_H: small_clip_vision,
    models.VIT_L: small_clip_whole,
    models.CLIP_L_WHOLE: small_clip_whole,
    models.IP_ADAPTER: small_ip_adapter,
}


def offer(base: Path) -> None:
    """The names of all models and LoRAs in ComfyUI's loaders, and in its folder of inputs what templates load: four images and a short video."""
    models.offer(base / "models")
    for name in chain(*LORAS.values()):
        (base / "models" / "loras").mkdir(exist_ok=True)
        (base / "models" / "loras" / name).touch()
    folder = base / "input" / SUBJECT
    folder.mkdir(parents=True, exist_ok=True)
    frames = [Image.new("RGB", (64, 64), (60 * number, 90, 200)) for number in range(4)]
    for number, image in enumerate(frames):
        image.save(folder / f"{number}.png")
    with av.open(base / "input" / VIDEO, "w") as video:
        stream = video.add_stream("libx264", rate=8, width=64, height=64, pix_fmt="yuv420p")
        for image in [*frames, frames[0]]:
            video.mux(stream.encode(av.VideoFrame.from_image(image)))
        video.mux(stream.encode())
    for place in ("datasets", "output"):
        write_texts(base / place / TEXTS)


def write_texts(folder: Path) -> None:
    """One text of seven tokens as Qwen2.5-VL encodes it, for ComfyUI's loader of training data."""
    folder.mkdir(parents=True, exist_ok=True)
    text = torch.randn(1, 7, QWEN_WIDTH, generator=torch.Generator().manual_seed(0))
    torch.save({"latents": [{"samples": torch.zeros(1, 16, 1, 8, 8)}], "conditioning": [[[text, {}]]]}, folder / "shard_0000.pkl")
    (folder / "metadata.json").write_text("{}")


def write_small_models(folder: Path, seed: int = 0) -> None:
    """Every file of the templates in ComfyUI's folders of models; of an encoder that is left out only the name."""
    models.offer(folder)
    for model, shapes in FILES.items():
        write(folder / model.directory / model.name, shapes(), seed)
    for model, names in LORAS.items():
        for name in names:
            write(folder / "loras" / name, small_lora(model), seed)


def write(path: Path, shapes: Mapping[str, torch.Tensor], seed: int) -> None:
    """A safetensors file of random weights in half precision; zeros are holes in the file."""
    header, place = {}, 0
    for name, value in shapes.items():
        end = place + 2 * math.prod(value.shape)
        header[name] = {"dtype": "F16", "shape": list(value.shape), "data_offsets": [place, end]}
        place = end
    text = json.dumps(header).encode()
    draw = torch.Generator().manual_seed(seed)
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        start = file.tell()
        file.truncate(start + place)
        for name, entry in header.items():
            if not EMPTY_LAYER.search(name):
                file.seek(start + entry["data_offsets"][0])
                file.write(weights(name, entry["shape"], draw).half().numpy().tobytes())


def weights(name: str, shape: list[int], draw: torch.Generator) -> torch.Tensor:
    """Gains are one, biases zero, and the rest keeps the size of what goes through it."""
    if "position_ids" in name:
        return torch.arange(math.prod(shape)).reshape(shape)
    if name.endswith(("bias", "_bias")):
        return torch.zeros(shape)
    if len(shape) < 2 or name.endswith("gamma"):
        return torch.ones(shape)
    spread = 0.02 if "embedding" in name or "pos_embed" in name else math.prod(shape[1:]) ** -0.5
    return torch.randn(shape, generator=draw) * spread * (0.1 if name.endswith(LAST_LAYER) else 1.0)


def small(prompt: dict) -> dict:
    """The queued prompt with a few steps on a small image, and two of each list of names in its texts."""
    for node in prompt.values():
        given = node["inputs"]
        given.update({name: min(value, SMALL[name]) for name, value in given.items() if name in SMALL and type(value) in (int, float)})
        given.update({name: few_names(value) for name, value in given.items() if isinstance(value, str)})
    return stand_in(prompt)


def few_names(text: str) -> str:
    """A text with two names of each list."""
    return NAMES.sub(r"\1", text)


def stand_in(prompt: dict) -> dict:
    """The prompt without the text encoders that are left out: with CLIP-L, as SD3 pads it, or for Qwen-Image-Edit with random texts; and with Flux for other networks."""
    used = {str(value) for node in prompt.values() for value in node["inputs"].values()}
    as_flux = dict(unet_name=models.FLUX.name, vae_name=models.AE.name) if used & {models.Z_IMAGE.name, models.QWEN.name} else {}
    for number, node in prompt.items():
        node["inputs"].update({name: value for name, value in as_flux.items() if node["inputs"].get(name)})
        found = set(map(str, node["inputs"].values())) & {model.name for model in (*models.LEFT_OUT, *(as_flux and [models.QWEN3]))}
        if models.QWEN_VL.name in found and not as_flux:
            for reader, each in prompt.items():
                if each["inputs"].get("clip") == [number, 0]:
                    load_text(prompt, reader)
        if found:
            node.update(class_type="CLIPLoader", inputs=dict(clip_name=models.CLIP_L.name, type="sd3", device="default"))
    return prompt


def load_text(prompt: dict, number: str) -> None:
    """Instead of what a node encodes, its followers get the text of `write_texts`."""
    prompt[number].update(class_type="LoadTrainingDataset", inputs={"folder_name": TEXTS})
    for node in prompt.values():
        node["inputs"].update({name: [number, 1] for name, value in node["inputs"].items() if value == [number, 0]})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="the folder of models, for example ComfyUI/models")
    folder = parser.parse_args().folder
    write_small_models(folder)
    sys.stdout.write(f"{sum(file.stat().st_blocks for file in folder.rglob('*.safetensors')) // 2048} MB in {folder}\n")


if __name__ == "__main__":
    main()
