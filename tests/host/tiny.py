"""Tiny random models made of ComfyUI's own classes: about 1 M parameters each, built in well under a second."""

import comfy.cldm.cldm
import comfy.controlnet
import comfy.model_base
import comfy.model_management
import comfy.model_patcher
import comfy.sd
import comfy.sd1_clip
import comfy.supported_models
import comfy.supported_models_base
import torch
from comfy.ldm.models.autoencoder import AutoencoderKL
from comfy.model_base import ModelType
from comfy.patcher_extension import CallbacksMP

CONTEXT = 64
FAMILIES = {"eps": ModelType.EPS, "v": ModelType.V_PREDICTION, "flow": ModelType.FLOW}
CLIP_CONFIG = dict(hidden_size=CONTEXT, intermediate_size=128, num_attention_heads=2, num_hidden_layers=2, projection_dim=CONTEXT)
UNET_CONFIG = dict(
    image_size=32,
    in_channels=4,
    out_channels=4,
    model_channels=32,
    num_res_blocks=[1, 1],
    channel_mult=[1, 2],
    transformer_depth=[1, 1],
    transformer_depth_output=[1, 1, 1, 1],
    transformer_depth_middle=1,
    context_dim=CONTEXT,
    use_spatial_transformer=True,
    legacy=False,
    use_checkpoint=False,
    use_linear_in_transformer=False,
    adm_in_channels=None,
    use_temporal_attention=False,
    use_temporal_resblock=False,
)
ONE_LEVEL = dict(channel_mult=[1], num_res_blocks=[1], transformer_depth=[1], transformer_depth_output=[1, 1])
VAE_CONFIG = dict(
    double_z=True,
    z_channels=4,
    resolution=32,
    in_channels=3,
    out_ch=3,
    ch=32,
    ch_mult=[1, 1, 1, 1],
    num_res_blocks=1,
    attn_resolutions=[],
    dropout=0.0,
)


class TinyTextModel(comfy.sd1_clip.SD1ClipModel):
    def __init__(self, device="cpu", dtype=None, model_options=None):
        super().__init__(device=device, dtype=dtype, model_options={**(model_options or {}), "clip_l_model_config": CLIP_CONFIG})


class TinySD1(comfy.supported_models.SD15):
    unet_config = {
        "context_dim": CONTEXT,
        "model_channels": 32,
        "use_linear_in_transformer": False,
        "adm_in_channels": None,
        "use_temporal_attention": False,
    }
    unet_extra_config = {"num_heads": 4, "num_head_channels": -1}

    def clip_target(self, state_dict=None):
        return clip_target()


def clip_target():
    return comfy.supported_models_base.ClipTarget(comfy.sd1_clip.SD1Tokenizer, TinyTextModel)


def unet(family: str = "eps", seed: int = 0, output_scale: float = 1.0, weights: torch.dtype = torch.float32, **config):
    """A MODEL of the family 'eps', 'v' or 'flow', which works in float32 whatever its weights are kept in.

    A random network is wild: ``output_scale`` 0.05 makes it smooth enough for trajectories. ``config`` overrides
    `UNET_CONFIG`.
    """
    settings = TinySD1({**UNET_CONFIG, **config})
    settings.set_inference_dtype(weights, None if weights == torch.float32 else torch.float32)
    model = fill(comfy.model_base.BaseModel(settings, model_type=FAMILIES[family], device="cpu"), seed)
    last = model.diffusion_model.out[-1].weight
    last.data = (last.data.float() * output_scale).to(weights)
    devices = comfy.model_management.get_torch_device(), comfy.model_management.unet_offload_device()
    made = comfy.model_patcher.CoreModelPatcher(model, *devices)
    if devices[0].type != "cpu":  # its noise levels differ in the last digit between the devices, so they lie where they will be used
        comfy.model_management.load_models_gpu([made])
    return made


def clip(dtype: torch.dtype | None = None, seed: int = 1, embedding_directory: str | None = None):
    """A CLIP with ComfyUI's SD1 tokenizer and a two-layer text model."""
    options = {} if dtype is None else {"dtype": dtype}
    made = comfy.sd.CLIP(clip_target(), embedding_directory=embedding_directory, model_options=options)
    fill(made.cond_stage_model, seed)
    return made


def vae(seed: int = 2):
    """A VAE with 4 latent channels at an eighth of the image's size."""
    weights = fill(AutoencoderKL(ddconfig=VAE_CONFIG, embed_dim=4), seed).state_dict()
    return comfy.sd.VAE(sd=weights, config={"params": {"ddconfig": VAE_CONFIG, "embed_dim": 4}}, dtype=torch.float32)


def as_on_a_gpu(made):
    """A MODEL, CLIP or VAE whose weights were made in inference mode, as in a node, and get new data whenever the host loads it."""
    patcher = getattr(made, "patcher", made)
    renew(patcher.model)
    comfy.model_management.unload_all_models()
    patcher.add_callback(CallbacksMP.ON_LOAD, lambda patcher, *more: move(patcher.model))
    return made


class Dynamic(comfy.model_patcher.ModelPatcher):
    """Says of itself what patchers with dynamic weights say."""

    def is_dynamic(self):
        return True

    def get_non_dynamic_delegate(self):
        return self.clone(disable_dynamic=True)


def dynamic(patcher, again=None):
    """The patcher as one that loads dynamically; `again()` makes the one that the host can load once more."""
    made = Dynamic(patcher.model, patcher.load_device, patcher.offload_device)
    made.cached_patcher_init = again and (lambda disable_dynamic=False: again(), ())
    return made


def renew(module: torch.nn.Module) -> None:
    with torch.inference_mode():
        for part in module.modules():
            for name, p in part._parameters.items():
                part._parameters[name] = None if p is None else torch.nn.Parameter(p.detach().clone(), False)


def move(module: torch.nn.Module) -> None:
    """What `Module.to` does where the device changes."""
    for p in module.parameters():
        p.data = p.data.clone()


def conditioning(seed: int, tokens: int = 77):
    """A random CONDITIONING that fits `unet`."""
    draw = torch.Generator().manual_seed(seed)
    return [[torch.randn(1, tokens, CONTEXT, generator=draw), {"pooled_output": torch.randn(1, CONTEXT, generator=draw)}]]


def lora(model, seed: int = 4) -> dict:
    """A strong LoRA on one weight of `unet`."""
    key = "diffusion_model.middle_block.1.transformer_blocks.0.attn2.to_v"
    out, width = model.model.state_dict()[f"{key}.weight"].shape
    draw = torch.Generator().manual_seed(seed)
    return {f"{key}.lora_up.weight": torch.randn(out, 2, generator=draw), f"{key}.lora_down.weight": torch.randn(2, width, generator=draw)}


def controlnet(seed: int = 5):
    """A ControlNet for `unet`, with strong outputs; its hints have 3 channels and eight times the latent's size."""
    config = {k: v for k, v in UNET_CONFIG.items() if k not in ("out_channels", "transformer_depth_output")}
    network = fill(comfy.cldm.cldm.ControlNet(hint_channels=3, num_heads=4, device="cpu", **config), seed)
    return comfy.controlnet.ControlNet(network, load_device=comfy.model_management.get_torch_device())


def fill(module: torch.nn.Module, seed: int) -> torch.nn.Module:
    """Set every parameter: ComfyUI's layers are made with torch.empty."""
    draw = torch.Generator().manual_seed(seed)
    for name, parameter in module.named_parameters():
        parameter.data = initial(name, parameter.shape, draw).to(parameter.dtype)
    return module


def initial(name: str, shape: torch.Size, draw: torch.Generator) -> torch.Tensor:
    if name.endswith("bias"):
        return torch.zeros(shape)
    if len(shape) < 2:
        return torch.ones(shape)
    return torch.randn(shape, generator=draw) / shape[1:].numel() ** 0.5
