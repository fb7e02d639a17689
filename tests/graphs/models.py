"""The published models that templates load: their names, folders and public addresses."""

from dataclasses import dataclass
from pathlib import Path

HUB = "https://huggingface.co"


@dataclass(frozen=True)
class Model:
    """A file in one of ComfyUI's folders of models, and where it can be downloaded."""

    name: str
    directory: str
    place: str

    @property
    def entry(self) -> dict:
        """As ComfyUI's dialog of missing models reads it from a node's properties."""
        return {"name": self.name, "url": f"{HUB}/{self.place}", "directory": self.directory}


def file(directory: str, repository: str, path: str, name: str = "") -> Model:
    return Model(name or path.rpartition("/")[2], directory, f"{repository}/resolve/main/{path}")


SDXL = file("checkpoints", "stabilityai/stable-diffusion-xl-base-1.0", "sd_xl_base_1.0.safetensors")
SD15 = file("checkpoints", "Comfy-Org/stable-diffusion-v1-5-archive", "v1-5-pruned-emaonly-fp16.safetensors")
SD35 = file("checkpoints", "Comfy-Org/stable-diffusion-3.5-fp8", "sd3.5_medium_incl_clips_t5xxlfp8scaled.safetensors")
FLUX = file("diffusion_models", "Comfy-Org/flux1-dev", "flux1-dev.safetensors")
KONTEXT = file(
    "diffusion_models", "Comfy-Org/flux1-kontext-dev_ComfyUI", "split_files/diffusion_models/flux1-dev-kontext_fp8_scaled.safetensors"
)
CLIP_L = file("text_encoders", "comfyanonymous/flux_text_encoders", "clip_l.safetensors")
T5 = file("text_encoders", "comfyanonymous/flux_text_encoders", "t5xxl_fp8_e4m3fn_scaled.safetensors")
AE = file("vae", "Comfy-Org/Lumina_Image_2.0_Repackaged", "split_files/vae/ae.safetensors")
_WAN = "Comfy-Org/Wan_2.1_ComfyUI_repackaged"
WAN = file("diffusion_models", _WAN, "split_files/diffusion_models/wan2.1_t2v_1.3B_fp16.safetensors")
UMT5 = file("text_encoders", _WAN, "split_files/text_encoders/umt5_xxl_fp8_e4m3fn_scaled.safetensors")
WAN_VAE = file("vae", _WAN, "split_files/vae/wan_2.1_vae.safetensors")
HUNYUAN_VIDEO = file(
    "diffusion_models", "Comfy-Org/HunyuanVideo_repackaged", "split_files/diffusion_models/hunyuan_video_t2v_720p_bf16.safetensors"
)
QWEN_EDIT = file(
    "diffusion_models", "Comfy-Org/Qwen-Image-Edit_ComfyUI", "split_files/diffusion_models/qwen_image_edit_2509_fp8_e4m3fn.safetensors"
)
_QWEN = "Comfy-Org/Qwen-Image_ComfyUI"
QWEN_VL = file("text_encoders", _QWEN, "split_files/text_encoders/qwen_2.5_vl_7b_fp8_scaled.safetensors")
QWEN = file("diffusion_models", _QWEN, "split_files/diffusion_models/qwen_image_fp8_e4m3fn.safetensors")
QWEN_VAE = file("vae", _QWEN, "split_files/vae/qwen_image_vae.safetensors")
IP_ADAPTER = file("ipadapter", "h94/IP-Adapter", "sdxl_models/ip-adapter_sdxl_vit-h.safetensors")
VIT_H = file("clip_vision", "h94/IP-Adapter", "models/image_encoder/model.safetensors", "CLIP-ViT-H-14-laion2B-s32B-b79K.safetensors")
_CLIP = ("openai/clip-vit-large-patch14", "model.safetensors", "clip-vit-large-patch14.safetensors")
VIT_L, CLIP_L_WHOLE = file("clip_vision", *_CLIP), file("text_encoders", *_CLIP)
_Z_IMAGE = "Comfy-Org/z_image_turbo"
Z_IMAGE = file("diffusion_models", _Z_IMAGE, "split_files/diffusion_models/z_image_turbo_bf16.safetensors")
QWEN3 = file("text_encoders", _Z_IMAGE, "split_files/text_encoders/qwen_3_4b.safetensors")
LEFT_OUT = (T5, UMT5, QWEN_VL)  # text encoders too large for tests
ALL = [value for value in list(globals().values()) if isinstance(value, Model)]


def offer(folder: Path) -> None:
    """Empty files, so that the loaders offer the names."""
    for model in ALL:
        path = folder / model.directory / model.name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
