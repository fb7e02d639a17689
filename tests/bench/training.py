"""What a training step costs: `python . run tests/bench/training.py [--model tiny|sd15]`.

Textual inversion and DreamBooth-LoRA beside the same step written with the building blocks of `diffusers`, on the same random weights,
in turn; and ComfyUI's TrainLoraNode on the same layers. `encoded each step` is what the example scripts of `diffusers` do by default:
the VAE and the text encoder run in every step; `latents kept` and `all kept` do what can be done once, once. Time is CPU time where there
is no GPU, so that other work on the machine does not count; memory is what a training of a few steps needs beside the frozen weights, or
with them on a GPU, where each way begins with nothing there. `thin` has the layers of SD1.5 and next to no width, so that its time is that of
Python; operations are what a step asks of torch, forward and backward, each a launch on a GPU.
"""

import argparse
import copy
import gc
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import comfy.model_management
import comfy.sd
import comfy.supported_models
import comfy.utils
import folder_paths
import torch
from comfy_extras.nodes_train import TrainLoraNode
from controlled_diffusion.nodes.dreambooth import DreamBoothTrainer
from controlled_diffusion.nodes.host import gradients
from controlled_diffusion.nodes.host.training.dreambooth import NO_CLASS
from controlled_diffusion.nodes.textual_inversion import TIEmbeddingTrainer
from controlled_diffusion.nodes.training_options import ClassImages
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel

from bench.shapes import SD15, clock, fused, model_of, shortest
from harness.memory import peak
from harness.operations import Operations
from host import tiny
from host.training import option, with_options
from measures.script import head, options_of, row, say
from node_schema import with_settings

RANK, PROJECTIONS = 8, ("to_q", "to_k", "to_v", "to_out.0")
SUBJECT, CLASS, LEARNING_RATE = "a photo of a zz cat", "a photo of a cat", 1e-4
WORDS = 49408
Read = Callable[[], float]  # what is counted up to now: seconds, or operations


@dataclass(frozen=True)
class Shape:
    """How large a model is, in the words of both packages."""

    side: int  # of the latent, in cells
    text: dict
    widths: tuple[int, ...]
    heads: int
    vae_widths: tuple[int, ...]
    vae_depth: int


CLIP_L = dict(hidden_size=768, intermediate_size=3072, num_attention_heads=12, num_hidden_layers=12, projection_dim=768)
SHAPES = {
    "thin": Shape(8, tiny.CLIP_CONFIG, (32, 64, 64, 64), 4, (32, 32, 32, 32), 1),
    "tiny": Shape(16, tiny.CLIP_CONFIG, (64, 128, 128, 128), 4, (32, 32, 32, 32), 1),
    "sd15": Shape(32, CLIP_L, (320, 640, 1280, 1280), 8, (128, 256, 512, 512), 2),
}


@dataclass
class Pair:
    """ComfyUI's MODEL, CLIP and VAE, and functions that make what `diffusers` and `transformers` have of the same weights."""

    model: object
    clip: object
    vae: object
    shape: Shape
    encoder: AutoencoderKL  # stays on the CPU
    schedule: DDPMScheduler

    def unet(self) -> UNet2DConditionModel:
        ours, config = self.model.model.diffusion_model.state_dict(), self.model.model.model_config.unet_config
        names, width = comfy.utils.unet_to_diffusers(config), self.shape.text["hidden_size"]
        shape = dict(cross_attention_dim=width, block_out_channels=self.shape.widths, attention_head_dim=self.shape.heads)
        with torch.device("meta"):
            made = UNet2DConditionModel(**shape)
        made.requires_grad_(False).load_state_dict(
            {k: gradients.clone_inference_tensors(ours[names[k]]) for k in made.state_dict()}, assign=True
        )
        return made.to(self.device)

    def text(self) -> CLIPTextModel:
        made = CLIPTextModel(CLIPTextConfig(**self.shape.text, hidden_act="quick_gelu", eos_token_id=2))
        ours = self.clip.cond_stage_model.clip_l.transformer.text_model.state_dict()
        made.requires_grad_(False).load_state_dict(gradients.clone_inference_tensors(dict(ours)), assign=True)
        return made.to(self.device)

    @property
    def device(self) -> torch.device:
        return self.model.load_device

    def ids(self, text: str) -> torch.Tensor:
        (tokens,) = self.clip.tokenize(text)["l"]
        return torch.tensor([[token for token, *_ in tokens]], device=self.device)

    def images(self, seed: int = 0) -> torch.Tensor:
        """An IMAGE."""
        return torch.rand(1, 8 * self.shape.side, 8 * self.shape.side, 3, generator=torch.Generator().manual_seed(seed))

    def eye(self) -> AutoencoderKL:
        """The VAE where a training needs it."""
        return self.encoder if self.device.type == "cpu" else copy.deepcopy(self.encoder).to(self.device)

    def latent(self, eye: AutoencoderKL, image: torch.Tensor) -> torch.Tensor:
        """As the example scripts encode an image: a sample of what the VAE says."""
        return eye.encode(image.movedim(-1, 1).to(self.device) * 2 - 1).latent_dist.sample() * eye.config.scaling_factor


def text_of(shape: Shape, name: str):
    """A CLIP with random weights."""
    folder = folder_paths.get_folder_paths("embeddings")
    if name != "sd15":
        return tiny.clip(torch.float32, embedding_directory=folder)
    target = comfy.supported_models.SD15.clip_target(None)
    made = comfy.sd.CLIP(target, embedding_directory=folder, model_options={"dtype": torch.float32})
    tiny.fill(made.cond_stage_model, 1)
    return made


def pair_of(name: str, side: int | None = None) -> Pair:
    shape = replace(SHAPES[name], side=side or SHAPES[name].side)
    kinds = dict(down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4)
    encoder = AutoencoderKL(block_out_channels=shape.vae_widths, layers_per_block=shape.vae_depth, latent_channels=4, **kinds)
    tiny.fill(encoder, 2).requires_grad_(False)
    config = {"params": {"ddconfig": tiny.VAE_CONFIG, "embed_dim": 4}} if name != "sd15" else None
    vae = comfy.sd.VAE(sd=dict(encoder.state_dict()), config=config, dtype=torch.float32)
    model = denoiser_of(name)
    schedule = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    return Pair(model, text_of(shape, name), vae, shape, encoder, schedule)


def denoiser_of(name: str, disable_dynamic: bool = False):
    """A MODEL with random weights."""
    if name != "sd15":
        width = SHAPES[name].widths[0]
        made = tiny.unet("eps", **SD15 | dict(model_channels=width, channel_mult=[1, 2, 2, 2], context_dim=tiny.CONTEXT))
    else:
        made = model_of("sd15", torch.float32)
        made.model.to(made.offload_device)
        tiny.fill(made.model, 0)
    made.model_options["transformer_options"]["optimized_attention_override"] = fused
    made.cached_patcher_init = (denoiser_of, (name,))  # by which ComfyUI's trainer gets a copy of its own
    return made


@torch.inference_mode()
def check(pair: Pair) -> None:
    """Raises ValueError where the two packages do not compute the same."""
    features = pair.clip.encode_from_tokens(pair.clip.tokenize(SUBJECT)).to(pair.device)
    alike("text encoders", pair.text()(pair.ids(SUBJECT))[0], features)
    image = pair.images()
    alike("VAEs", pair.encoder.encode(image.movedim(-1, 1) * 2 - 1).latent_dist.mode(), pair.vae.encode(image))
    sigma = pair.model.get_model_object("model_sampling").sigmas[600].to(pair.device)
    x = torch.randn(1, 4, pair.shape.side, pair.shape.side, device=pair.device)
    comfy.model_management.load_models_gpu([pair.model])
    denoised = pair.model.model.apply_model(x, sigma[None], c_crossattn=features, transformer_options={})
    alike("denoisers", pair.unet()(x / (1 + sigma**2) ** 0.5, 600, features).sample, (x - denoised) / sigma)
    comfy.model_management.unload_all_models()


def alike(what: str, theirs: torch.Tensor, ours: torch.Tensor) -> None:
    apart = float((theirs.cpu() - ours.cpu()).abs().max() / ours.abs().max())
    if apart > (1e-2 if torch.cuda.is_available() else 1e-4):  # a GPU multiplies in fewer bits
        raise ValueError(f"The two {what} give results {apart:.1e} apart; they must be the same to be compared.")


def timed(step: Callable[[], None], steps: int, read: Read) -> list[float]:
    """What each step takes, without a first and a last one."""
    times = []
    for _ in range(steps + 2):
        step()
        times.append(read())
    return [b - a for a, b in zip(times, times[1:])][:-1]


def errors(pair: Pair, unet: torch.nn.Module, latents: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
    """Squared errors of the predicted noise."""
    noise = torch.randn_like(latents)
    levels = torch.randint(0, 1000, (len(latents),), device=latents.device)
    predicted = unet(pair.schedule.add_noise(latents, noise, levels), levels, features).sample
    return torch.nn.functional.mse_loss(predicted.float(), noise.float(), reduction="none")


def their_word(pair: Pair, keep: bool, steps: int, read: Read = clock) -> list[float]:
    """Textual inversion: the whole table of tokens is learned, and all rows but the new one are put back after each step."""
    text, unet, eye = pair.text(), pair.unet(), pair.eye()
    text.resize_token_embeddings(WORDS + 1, mean_resizing=False)
    table = text.get_input_embeddings().weight.requires_grad_(True)
    before = table.detach().clone()
    optimizer = torch.optim.AdamW([table], lr=LEARNING_RATE)
    ids, image = pair.ids(SUBJECT), pair.images()
    ids[0, 5] = WORDS
    kept = pair.latent(eye, image) if keep else None

    def step() -> None:
        latents = pair.latent(eye, image) if kept is None else kept
        errors(pair, unet, latents, text(ids)[0]).mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        with torch.no_grad():
            table[:WORDS] = before[:WORDS]

    return timed(step, steps, read)


class LowRank(torch.nn.Module):
    """A linear layer with a LoRA beside it, as `peft` has it."""

    def __init__(self, base: torch.nn.Linear, rank: int):
        super().__init__()
        self.base, device = base, base.weight.device
        self.down = torch.nn.Linear(base.in_features, rank, bias=False, device=device)
        self.up = torch.nn.Linear(rank, base.out_features, bias=False, device=device)
        torch.nn.init.zeros_(self.up.weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.base(x) + self.up(self.down(x)) * 1.0


def with_lora(unet: UNet2DConditionModel) -> list[torch.nn.Parameter]:
    """Puts a LoRA on every projection of the attention; gives what is to be learned."""
    for name in [name for name, _ in unet.named_modules() if name.endswith(PROJECTIONS)]:
        parent, _, child = name.rpartition(".")
        unet.get_submodule(parent)._modules[child] = LowRank(unet.get_submodule(name), RANK)
    return [p for p in unet.parameters() if p.requires_grad]


def their_subject(pair: Pair, keep: bool, steps: int, read: Read = clock) -> list[float]:
    """DreamBooth-LoRA: one image of the subject and one of its class."""
    text, unet, eye = pair.text(), pair.unet(), pair.eye()
    learned = with_lora(unet)
    optimizer = torch.optim.AdamW(learned, lr=LEARNING_RATE)
    ids, images = torch.cat([pair.ids(SUBJECT), pair.ids(CLASS)]), torch.cat([pair.images(0), pair.images(1)])
    kept = (pair.latent(eye, images), text(ids)[0]) if keep else None

    def step() -> None:
        latents, features = kept or (pair.latent(eye, images), text(ids)[0])
        own, prior = errors(pair, unet, latents, features).chunk(2)
        (own.mean() + prior.mean()).backward()
        torch.nn.utils.clip_grad_norm_(learned, 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return timed(step, steps, read)


def node_steps(node, steps: int, read: Read, **given) -> list[float]:
    """What each step of a trainer node takes, from one movement of its progress bar to the next; two more are taken, and left out."""
    times: list[float] = []

    def moved(done: int, total: int, *_, **__) -> None:
        if total == steps + 2:  # and not that of the images being encoded
            times.append(read())

    comfy.utils.set_progress_bar_global_hook(moved)
    try:
        with torch.inference_mode():
            node.execute(**{k: v if isinstance(v, list) else [v] for k, v in with_settings(node, **given, steps=steps + 2).items()})
    finally:
        comfy.utils.set_progress_bar_global_hook(None)
        comfy.model_management.unload_all_models()  # ComfyUI's trainer leaves its copy of the model there
        gc.collect()
    return [b - a for a, b in zip(times, times[1:])][:-1]


def ours(pair: Pair, node, steps: int, read: Read, **given) -> list[float]:
    common = dict(model=pair.model, clip=pair.clip, vae=pair.vae, images=pair.images(), batch_size=1, if_exists="replace")
    return node_steps(node, steps, read, **with_options(node, **common | dict(learning_rate=LEARNING_RATE, validation_count=0) | given))


def our_word(pair: Pair, steps: int, read: Read = clock) -> list[float]:
    return ours(pair, TIEmbeddingTrainer, steps, read, name="bench", initial_words="cat")


def our_subject(pair: Pair, steps: int, read: Read = clock, **given) -> list[float]:
    classes = option(ClassImages, images=pair.images(1), class_prompt=CLASS)
    return ours(pair, DreamBoothTrainer, steps, read, name="bench", rank=RANK, instance_prompt=SUBJECT, **dict(class_images=classes) | given)


@torch.inference_mode()
def host_lora(pair: Pair, steps: int, read: Read = clock, **given) -> list[float]:
    latent = {"samples": pair.vae.encode(pair.images())}
    positive = pair.clip.encode_from_tokens_scheduled(pair.clip.tokenize(SUBJECT))
    asked = dict(training_dtype="fp32", lora_dtype="fp32", gradient_checkpointing=False, existing_lora="[None]", rank=RANK)
    return node_steps(TrainLoraNode, steps, read, model=pair.model, latents=latent, positive=[positive], **asked | given)


def ways(pair: Pair) -> dict[str, dict[str, Callable[..., list[float]]]]:
    """What is compared, by kind; the first of each is what the others are compared with."""
    plain = dict(class_images=NO_CLASS, layers="-out.2")
    return {
        "textual inversion": {
            "diffusers, encoded each step": partial(their_word, pair, False),
            "diffusers, latents kept": partial(their_word, pair, True),
            "Train Embedding": partial(our_word, pair),
        },
        "DreamBooth-LoRA, attention": {
            "diffusers, encoded each step": partial(their_subject, pair, False),
            "diffusers, all kept": partial(their_subject, pair, True),
            "Train LoRA (DreamBooth)": partial(our_subject, pair),
        },
        "LoRA, all layers": {
            "ComfyUI's TrainLoraNode": partial(host_lora, pair),
            "the same, bypass_mode": partial(host_lora, pair, bypass_mode=True),
            "Train LoRA (DreamBooth), no class images": partial(our_subject, pair, **plain),
        },
    }


def operations(run: Callable[..., list[float]]) -> float:
    """How many a step takes."""
    with Operations() as found:
        return run(1, lambda: found.launched)[0]


def measured(runs: dict[str, Callable[..., list[float]]], steps: int, repeats: int) -> dict[str, tuple[float, float, float]]:
    """Of every way the seconds of a step, the best of all, its operations, and its peak memory in MB."""
    found = {case: (operations(run), peak(lambda run=run: run(1))) for case, run in runs.items()}
    best = shortest({case: lambda run=run: min(run(steps)) for case, run in runs.items()}, repeats)
    return {case: (best[case], *found[case]) for case in runs}


def main(arguments: list[str] | None = None) -> None:
    options = options_of(
        __doc__, arguments, model=dict(choices=list(SHAPES), nargs="*", default=list(SHAPES)), side=dict(type=int, help="of the latents, in cells"),
        steps=(2, "timed in one run"), repeats=(3, "each time is the best step of so many runs, taken in turn"),
        only=dict(help="the kinds whose name holds this"),
    )  # fmt: skip
    comfy.utils.PROGRESS_BAR_ENABLED = False  # ComfyUI's printed ones
    with tempfile.TemporaryDirectory() as folder:
        for kind in ("embeddings", "loras"):
            (Path(folder) / kind).mkdir()
            folder_paths.folder_names_and_paths[kind] = ([str(Path(folder) / kind)], {".safetensors"})
        for name in options.model:
            report(name, options)


def report(name: str, options: argparse.Namespace) -> None:
    pair = pair_of(name, options.side)
    check(pair)
    say(head(f"{name}, latent {pair.shape.side} x {pair.shape.side}", "", "seconds a step", "ratio", "operations", "ratio", "peak memory, MB", "ratio"))
    for kind, runs in ways(pair).items():
        if options.only and options.only not in kind:
            continue
        found = measured(runs, options.steps, options.repeats)
        first = next(iter(found.values()))
        for case, own in found.items():
            cells = ((f"{value:.{digits}f}", f"{value / other:.2f}") for value, other, digits in zip(own, first, (3, 0, 0)))
            say(row(kind, case, *(cell for pair in cells for cell in pair)))


if __name__ == "__main__":
    main()
