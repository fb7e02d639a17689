"""Instruction models made from others: a denoiser with room for the image, and the file in which it is kept."""

from __future__ import annotations

import logging
from pathlib import Path

import comfy.latent_formats
import comfy.lora
import comfy.model_base
import comfy.model_management
import comfy.model_patcher
import comfy.model_sampling
import comfy.utils
import torch
from comfy.patcher_extension import WrappersMP

from ....guidance.errors import quoted
from ....training.instruct_pix2pix import FIRST, widened
from ..evaluation_order import COMPILED
from ..gradients import differentiable_patcher, run_in_inference_mode
from ..model_folder import ModelFolder, load_tensors

MODELS = ModelFolder("diffusion_models", "model")
PREFIX = "diffusion_model."
log = logging.getLogger(__name__)
MARKS = ("v_pred", "ztsnr", "edm_vpred.sigma_max", "edm_vpred.sigma_min", "edm_mean", "edm_std")
KINDS = {comfy.model_base.BaseModel: comfy.model_base.SD15_instructpix2pix, comfy.model_base.SDXL: comfy.model_base.SDXL_instructpix2pix}


def kind_of(model):
    """The class of the instruction model that a MODEL becomes. Raises ValueError for models that are no plain UNets of latents."""
    network = model.model
    if isinstance(network, comfy.model_base.IP2P):
        return type(network)
    kind, first = KINDS.get(type(network)), getattr(network.diffusion_model, "input_blocks", None)
    channels = network.latent_format.latent_channels
    if kind is None or first is None or first[0][0].weight.shape[1] != channels:
        raise ValueError(
            f"{type(network).__name__} ({type(network.diffusion_model).__name__}) cannot be made an instruction model here, which needs a UNet "
            f"that takes the {channels} channels of its latent and nothing else: SD1.5, SD2, SDXL and models made from them. Models with "
            "reference latents (Flux Kontext, Qwen-Image-Edit) learn from the pairs that InstructPix2Pix Pairs writes by a LoRA."
        )
    return kind


def weights_of(model) -> dict[str, torch.Tensor]:
    """The denoiser's weights with the patches that the MODEL has, such as LoRAs, as copies."""

    def patched(key: str, held: torch.Tensor, convert, *patches) -> torch.Tensor:
        weight = convert(held.detach().clone(), inplace=True)
        return comfy.lora.calculate_weight(patches, weight.float(), key).to(weight.dtype) if patches else weight

    known = model.get_key_patches(PREFIX).items()
    return {key.removeprefix(PREFIX): run_in_inference_mode(patched, key, *held, *patches) for key, (held, *patches) in known}


def _config_with_room(model):
    """The MODEL's configuration for twice as many input channels. (ComfyUI's are not made for copying.)"""
    config, room = model.model.model_config, {"in_channels": 2 * model.model.latent_format.latent_channels}
    made = type(config)({**config.unet_config, **room})
    vars(made).update({k: v for k, v in vars(config).items() if k != "unet_config"})
    return made


def _type_of(model) -> comfy.model_base.ModelType:
    """What the MODEL predicts; continuous EDM with v as ComfyUI's loader names it for a file, by which SDXL reads the image."""
    sampling = model.get_model_object("model_sampling")
    continuous = isinstance(sampling, comfy.model_sampling.ModelSamplingContinuousEDM) and not isinstance(
        sampling, comfy.model_sampling.EDM
    )
    if continuous and isinstance(sampling, comfy.model_sampling.V_PREDICTION):
        return comfy.model_base.ModelType.V_PREDICTION_EDM
    return model.model.model_type


def built(model, weights: dict[str, torch.Tensor], again: tuple):
    """A MODEL like another, with its options, whose denoiser has room for the image and these weights of its own.

    `again` is (function, arguments) by which ComfyUI can load it once more.
    """
    source = model.model
    network = kind_of(model)(_config_with_room(model), _type_of(model), device=model.offload_device)
    network.latent_format = source.latent_format
    network.diffusion_model.load_state_dict(weights)
    made = comfy.model_patcher.ModelPatcher(network, model.load_device, model.offload_device)
    _hand_on(model, made)
    if made.get_wrappers(WrappersMP.APPLY_MODEL, COMPILED):
        made.remove_wrappers_with_key(WrappersMP.APPLY_MODEL, COMPILED)  # which would run the network that was compiled, not this one
        log.warning("The model is compiled, the instruction model made from it is not: put Torch Compile Model behind it.")
    made.cached_patcher_init = again
    return made


def _hand_on(model, made) -> None:
    """Gives a MODEL of another network the options, objects, wrappers, callbacks and models of a MODEL."""
    made.model_options = comfy.model_patcher.create_model_options_clone(model.model_options)
    for name, value in model.object_patches.items():
        made.add_object_patch(name, value)
    for add, held in ((made.add_wrapper_with_key, model.wrappers), (made.add_callback_with_key, model.callbacks)):
        for kind, key, function in ((kind, k, f) for kind, keyed in held.items() for k, functions in keyed.items() for f in functions):
            add(kind, key, function)
    for key, value in model.attachments.items():
        made.set_attachments(key, value)
    for key, models in model.additional_models.items():
        made.set_additional_models(key, models)


def check_injections(model) -> None:
    """Refuses what changes a MODEL's layers without being in its weights."""
    if model.injections:
        raise ValueError(
            f"The model brings {quoted(next(iter(model.injections)))}, which acts beside its weights and cannot become part of a new model. Load "
            "the LoRA by Load LoRA, not in bypass mode."
        )


def with_room(model, disable_dynamic: bool = False):
    """An instruction model that gives what a MODEL gives, whatever image it is shown: the image's weights are zero.

    Its weights are its own, so that it can be trained; options, patches and wrappers of the MODEL are handed on. One that changes what its layers
    give, beside their weights, raises ValueError.
    """
    kind_of(model)
    check_injections(model)
    with torch.inference_mode(False), torch.no_grad():
        weights = weights_of(differentiable_patcher(model, "model"))
        weights[FIRST] = widened(weights[FIRST], 2 * model.model.latent_format.latent_channels)
        return built(model, weights, (with_room, (model,)))


def marks(model) -> dict[str, torch.Tensor]:
    """Keys of an SDXL file, beside the weights, by which ComfyUI's loader knows that the model does not predict eps."""
    sampling = model.get_model_object("model_sampling")
    if isinstance(sampling, comfy.model_sampling.EDM):
        playground = isinstance(found := model.get_model_object("latent_format"), comfy.latent_formats.SDXL_Playground_2_5)
        return {"edm_mean": found.latents_mean, "edm_std": found.latents_std} if playground else {}
    if not isinstance(sampling, comfy.model_sampling.V_PREDICTION):
        return {}
    if isinstance(sampling, comfy.model_sampling.ModelSamplingContinuousEDM):
        return {f"edm_vpred.{k}": torch.tensor(float(getattr(sampling, k))) for k in ("sigma_max", "sigma_min")}
    return {k: torch.tensor([]) for k in ("v_pred", *(("ztsnr",) if getattr(sampling, "zsnr", False) else ()))}


def save(model, weights: dict[str, torch.Tensor], name: str, about: dict[str, str]) -> Path:
    """Writes a denoiser, weights made from a MODEL's, as ComfyUI's Load Diffusion Model reads it."""
    return MODELS.save(name, weights | marks(model), about)


def _named(held: dict[str, torch.Tensor], model) -> dict[str, torch.Tensor]:
    """A file's weights as ComfyUI's UNet names them: out of a whole checkpoint, or from diffusers' names."""
    for prefix in (f"model.{PREFIX}", PREFIX):
        inside = {k.removeprefix(prefix): w for k, w in held.items() if k.startswith(prefix)}
        if inside:
            return inside
    names = comfy.utils.unet_to_diffusers(model.model.model_config.unet_config)
    return {names.get(k, k): w for k, w in held.items()}


def load(model, path: str, disable_dynamic: bool = False):
    """The instruction model in a file, built like the MODEL that it was trained from."""
    kind_of(model)
    held, _ = load_tensors(Path(path))
    weights = {k: w for k, w in _named(held, model).items() if k not in MARKS}
    wanted = {k: tuple(w.shape) for k, w in model.model.diffusion_model.state_dict().items()}
    found = {k: tuple(w.shape) for k, w in weights.items()}
    inputs = 2 * model.model.latent_format.latent_channels
    wanted[FIRST] = (wanted[FIRST][0], inputs, *wanted[FIRST][2:])
    wrong = sorted(k for k in wanted.keys() | found.keys() if wanted.get(k) != found.get(k))
    if wrong:
        raise ValueError(
            f"{Path(path).name} is not an instruction model made from this {type(model.model).__name__}: {quoted(wrong[0])} is "
            f"{found.get(wrong[0], 'missing')}, not {wanted.get(wrong[0], 'wanted at all')} ({len(wrong)} weights differ). Connect the model that it "
            "was trained from, or choose another file."
        )
    return built(model, weights, (load, (model, path)))
