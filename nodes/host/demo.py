"""The demo models as MODEL, CLIP and VAE, built from ComfyUI's classes and one weights file each."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import comfy.latent_formats
import comfy.model_base
import comfy.model_detection
import comfy.model_management
import comfy.model_patcher
import comfy.sd
import comfy.sd1_clip
import comfy.supported_models
import comfy.supported_models_base
import comfy.utils
import folder_paths
import numpy as np
import torch

from ...guidance.errors import listed, quoted
from ...training.demo import checker, config, illustrated_reader, images, packing
from ...training.demo.files import FILES
from .model_folder import SHIPPED, load_tensors

VOCABULARY, LATENT_SCALE = 49408, 0.18215


def worlds(*parts: str) -> list[str]:
    """The worlds whose files of these parts, names in `Files`, are all there, the default first; all worlds where none has them."""
    return [world for world, files in FILES.items() if all(getattr(files, part).is_file() for part in parts)] or list(FILES)


def file_of(world: str, part: str) -> Path:
    """The weights of a part of a world's model. Raises ValueError where there are none."""
    path = getattr(FILES[world], part)
    if not path.is_file():
        others = [name for name in worlds(part) if getattr(FILES[name], part).is_file()]
        advice = f"Choose another world ({listed(others)}), or install" if others else "Install"
        raise ValueError(f"A file of the demo world {quoted(world)} is missing: {path}. {advice} the pack again.")
    return path


def offer_controlnet() -> None:
    """Lists the demo models' own ControlNets in ComfyUI's Load ControlNet Model."""
    folder_paths.add_model_folder_path("controlnet", str(SHIPPED / "controlnet"))


class DemoClip(comfy.sd1_clip.SD1ClipModel):
    """SD1's text tower at the demo model's width."""

    def __init__(self, device="cpu", dtype=None, model_options={}):
        super().__init__(device=device, dtype=dtype, model_options={**model_options, "clip_l_model_config": config.CLIP_CONFIG})


class DemoLatent(comfy.latent_formats.SD15):
    """SD1.5's latent format; the colors of previews come with the weights."""

    def __init__(self):
        super().__init__()
        self.taesd_decoder_name = None


class DemoModel(comfy.supported_models.SD15):
    """SD1.5 in all but size."""

    unet_config = {
        "context_dim": config.CONTEXT,
        "model_channels": config.UNET_CONFIG["model_channels"],
        "use_linear_in_transformer": False,
        "adm_in_channels": None,
        "use_temporal_attention": False,
    }
    latent_format = DemoLatent
    unet_extra_config = {"num_heads": -1, "num_head_channels": config.HEAD_CHANNELS}

    def clip_target(self, state_dict={}):
        return comfy.supported_models_base.ClipTarget(comfy.sd1_clip.SD1Tokenizer, DemoClip)


class DemoInstruct(DemoModel):
    """The demo model with the image to edit beside the noisy latent, as ComfyUI has SD1.5's InstructPix2Pix."""

    def get_model(self, state_dict, prefix="", device=None):
        return comfy.model_base.SD15_instructpix2pix(self, device=device)


def _weights_of(stored: dict[str, torch.Tensor]) -> tuple[dict, dict, dict]:
    """State dicts of denoiser, text tower and autoencoder of a stored model; the first also holds "preview_colors"."""
    weights = packing.restored(stored)
    unet, clip, vae = (
        comfy.utils.state_dict_prefix_replace(dict(weights), {prefix: ""}, filter_keys=True)
        for prefix in (packing.DENOISER, "cond_stage_model.", "first_stage_model.")
    )
    rows, ids = clip.pop("token_rows"), clip.pop("token_ids")
    table = config.start_tokens(VOCABULARY, rows.shape[1])  # (49408, width): rows that training never saw keep their seeded start values
    table[ids.long()] = rows.to(table.dtype)
    clip["clip_l.transformer.text_model.embeddings.token_embedding.weight"] = table.half()
    clip["clip_l.transformer.text_projection.weight"] = torch.eye(table.shape[1]).half()  # SD1's pooled output, which no UNet of it sees
    return unet | {"preview_colors": weights["preview_colors"]}, clip, vae


def _patcher(weights: dict, kind: type[DemoModel], disable_dynamic: bool) -> comfy.model_patcher.ModelPatcher:
    config = kind(comfy.model_detection.detect_unet_config(weights, ""))
    load_device, offload_device = comfy.model_management.get_torch_device(), comfy.model_management.unet_offload_device()
    *factors, bias = weights.pop("preview_colors").float().tolist()
    config.latent_format.latent_rgb_factors, config.latent_format.latent_rgb_factors_bias = factors, bias
    supported, count = config.supported_inference_dtypes, comfy.utils.calculate_parameters(weights)
    dtype = comfy.model_management.unet_dtype(model_params=count, supported_dtypes=supported)
    config.set_inference_dtype(dtype, comfy.model_management.unet_manual_cast(dtype, load_device, supported))
    model = config.get_model({}, "", device=offload_device)
    model.diffusion_model.load_state_dict(weights)
    patcher = comfy.model_patcher.ModelPatcher if disable_dynamic else comfy.model_patcher.CoreModelPatcher
    return patcher(model, load_device=load_device, offload_device=offload_device)


def load_instruct(path: Path | str, base_path: Path | str, disable_dynamic: bool = False) -> comfy.model_patcher.ModelPatcher:
    """The instruction model's denoiser; its text tower and autoencoder are the demo model's, whose weights are at `base_path`."""
    (differences, about), (stored, _) = load_tensors(Path(path)), load_tensors(Path(base_path))
    packing.check_base(about, stored, Path(path).name, Path(base_path).name)
    base = _weights_of(stored)[0]
    weights = packing.unpacked(differences, base)
    weights = {k: v.half() for k, v in weights.items()} | {"preview_colors": base["preview_colors"]}
    patcher = _patcher(weights, DemoInstruct, disable_dynamic)
    patcher.cached_patcher_init = (load_instruct, (str(path), str(base_path)))  # how ComfyUI loads it once more when a node asks for a deep copy
    return patcher


def load(path: Path | str, disable_dynamic: bool = False) -> tuple:
    """MODEL, CLIP, VAE of a demo model; ComfyUI knows how to load each of them once more."""
    unet, text, autoencoder = _weights_of(load_tensors(Path(path))[0])
    folders, how = folder_paths.get_folder_paths("embeddings"), {"disable_dynamic": True} if disable_dynamic else {}
    model, vae = _patcher(unet, DemoModel, disable_dynamic), comfy.sd.VAE(sd=autoencoder)
    clip = comfy.sd.CLIP(model.model.model_config.clip_target(), embedding_directory=folders, state_dict=text, **how)
    for i, patcher in enumerate((model, clip.patcher, vae.patcher)):
        patcher.cached_patcher_init = (_part, (str(path), i))
    return model, clip, vae


def _part(path: str, number: int, disable_dynamic: bool = False) -> comfy.model_patcher.ModelPatcher:
    """A part as ComfyUI loads it once more; it takes the autoencoder's network out of its patcher where it wants another kind."""
    found = load(path, disable_dynamic)[number]
    return getattr(found, "patcher", found)


def images_of(kind: str, count: int, seed: int) -> tuple[torch.Tensor, str, torch.Tensor]:
    """(IMAGE (N, H, W, 3), captions, one a line, MASK (N, H, W)) of `training.demo.images`."""
    pixels, captions, masks = zip(*images.images_of(kind, count, seed))
    return torch.from_numpy(np.stack(pixels)).float() / 255, "\n".join(captions), torch.from_numpy(np.stack(masks)).float()


Scores = Callable[..., list[float]]  # of images before and after an edit, uint8 (H, W, 3) each, and the two sentences told of them
CHECKERS: dict[str, tuple[str, Callable[[Path], Scores]]] = {  # what part of a world's files says how its images are read
    "illustrated": ("reader", lambda path: partial(illustrated_reader.pair_scores, illustrated_reader.load(path))),
    "shapes": ("model", lambda path: checker.pair_scores),
}


@dataclass(frozen=True)
class PairChecker:
    """A PAIR_CHECKER: how good each pair of IMAGE batches (N, H, W, 3) is, 0 where an image is not what its prompt says."""

    scores: Scores
    settings_key: str

    def __call__(self, before: torch.Tensor, after: torch.Tensor, pair) -> list[float]:
        sides = ((side[..., :3].clamp(0, 1) * 255).round().byte().cpu().numpy() for side in (before, after))
        return self.scores(*sides, pair.before, pair.after)


def checked_worlds() -> list[str]:
    """The worlds whose images can be read, the default first."""
    return [world for world, (part, _) in CHECKERS.items() if getattr(FILES[world], part).is_file()] or list(CHECKERS)


def load_checker(world: str) -> PairChecker:
    part, load_scores = CHECKERS[world]
    return PairChecker(load_scores(file_of(world, part)), f"demo world: {world}")


def new_demo_encoder(vision_config: dict = config.VISION_CONFIG) -> comfy.clip_vision.ClipVisionModel:
    """ComfyUI's CLIP Vision class at the demo model's size, without weights; older versions take its config from a file alone."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "config.json"
        file.write_text(json.dumps(vision_config), encoding="utf-8")
        return comfy.clip_vision.ClipVisionModel(str(file))


def demo_encoder(path: Path) -> comfy.clip_vision.ClipVisionModel:
    """A demo model's image encoder, which ComfyUI's own loader would not know by its size."""
    weights = packing.restored(comfy.utils.load_torch_file(str(path), safe_load=True))
    encoder = new_demo_encoder(config.vision_config(weights))
    encoder.load_sd(weights)
    return encoder
