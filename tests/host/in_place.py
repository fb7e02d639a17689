"""Networks and patches that write in place, each beside the same with new tensors, and gradients through them, again and again.

Addresses of tensors that are gone are used anew, so a fault shows in some of many graphs alone.
"""

from contextlib import nullcontext
from functools import partial

import comfy_extras.nodes_freelunch as freelunch
import torch
from controlled_diffusion.nodes.host import gradients
from controlled_diffusion.nodes.host.gradients import trainable
from controlled_diffusion.nodes.host.training import adapters, custom_diffusion, run

from host import inversions, sampling, test_instruct_training, test_textual_inversion, tiny, tiny_dits
from host.test_dreambooth import task_of
from host.test_image_guidance import channel, multi
from host.training import inside, stir

FREE = dict(b1=1.3, b2=1.4, s1=0.9, s2=0.2)  # of FreeU


def chain(x, weight, in_place):
    """A small network whose tensors are gone at once: what torch's `allow_mutation_on_saved_tensors` mixes up."""
    h = x @ weight
    for _ in range(20):
        t = torch.tanh(h)  # which saves its result
        t = t.mul_(1.1) if in_place else t * 1.1
        h = t + x
        del t
    return h.square().sum()


def wrong_gradients(around, count: int) -> int:
    """How many of so many gradients of the small network are wrong inside a context."""
    with torch.inference_mode(False), torch.enable_grad():
        weight, wrong = torch.nn.Parameter(torch.linspace(-1, 1, 64).view(8, 8)), 0
        for seed in range(count):
            x = torch.randn(64, 8, generator=torch.Generator().manual_seed(seed))
            with around():
                found = torch.autograd.grad(chain(x, weight, True), weight)[0]
            wrong += not torch.equal(found, torch.autograd.grad(chain(x, weight, False), weight)[0])
    return wrong


def scaled(model, in_place):
    """A patch of an output block that scales what it has made."""

    def patch(h, hsp, options):
        t = torch.tanh(h)
        return (t.mul_(1.1) if in_place else t * 1.1), hsp

    return with_patch(model, patch)


def free_u(model, in_place, before=lambda h: h):
    """ComfyUI's FreeU_V2, which scales half of the features in place, behind a patch; or the same with new tensors."""
    model = with_patch(model, lambda h, hsp, options: (before(h), hsp))
    if in_place:
        return freelunch.FreeU_V2.execute(model, **FREE).args[0]
    width = model.model.model_config.unet_config["model_channels"]
    scales = {4 * width: (FREE["b1"], FREE["s1"]), 2 * width: (FREE["b2"], FREE["s2"])}

    def patch(h, hsp, options):
        if h.shape[1] not in scales:
            return h, hsp
        (scale, skip), mean, half = scales[h.shape[1]], h.mean(1).unsqueeze(1), h.shape[1] // 2
        low, high = mean.amin((1, 2, 3), keepdim=True), mean.amax((1, 2, 3), keepdim=True)
        more = (scale - 1) * ((mean - low) / (high - low)) + 1
        return torch.cat([h[:, :half] * more, h[:, half:]], 1), freelunch.Fourier_filter(hsp, threshold=1, scale=skip)

    return with_patch(model, patch)


def with_patch(model, patch):
    clone = model.clone()
    clone.set_model_output_block_patch(patch)
    return clone


PATCHES = {"scaled": scaled, "FreeU": free_u, "FreeU behind a clone": partial(free_u, before=torch.clone)}
TASKS = {
    "LoRA": partial(task_of, batch_size=1, weight=0.0),
    "keys and values": partial(task_of, design=custom_diffusion.KeysAndValues(), word=True),
    "embedding": partial(test_textual_inversion.task_of, batch_size=4),
    "instructions": partial(test_instruct_training.task_of, what="attention"),
    "instructions, all weights": partial(test_instruct_training.task_of, what="all weights"),
}


def task_through(kind: str, patch: str, in_place: bool, clip, vae, **settings):
    """A training task on a tiny UNet with a patch."""
    return TASKS[kind](PATCHES[patch](tiny.unet("eps", output_scale=0.3), in_place), clip, vae, **settings)


def gradients_of(task, count: int, around=nullcontext) -> list[torch.Tensor]:
    """All gradients of so many steps, inside a context."""
    stir(task)
    parameters = list(task.parameters.values())

    def question(denoiser):
        found = []
        for i in range(count):
            with around():
                found.append(torch.cat([g.flatten() for g in torch.autograd.grad(task.loss(denoiser, i), parameters)]))
        return found

    return inside(task, question)


def apart(one, other) -> float:
    """The largest relative distance of two lists of tensors."""
    return max(float((a - b).norm() / b.norm()) for a, b in zip(one, other, strict=True))


def null_embeddings(patch: str, in_place: bool, vae=None) -> list[torch.Tensor]:
    """What null-text inversion learns."""
    model = PATCHES[patch](tiny.unet("eps", output_scale=0.3), in_place)
    settings = dict(cfg=5.0, steps=3, inner_steps=5, early_stop=0.0)
    return [e for e, _ in inversions.invert("null-text", model, inversions.image(), **settings)[0].null]


def guided(patch: str, in_place: bool, vae) -> list[torch.Tensor]:
    """What image guidance through the denoiser samples."""
    model = PATCHES[patch](tiny.unet("eps"), in_place)
    return [sampling.run(multi(model, *channel(model, vae, through=True)))]


def gradients_of_family(name: str, count: int, around=nullcontext, blocks=lambda denoiser: ()) -> list[torch.Tensor]:
    """Gradients of LoRAs on every layer and of the text, for so many predictions inside a context."""
    with torch.inference_mode(False), torch.no_grad():
        model, _ = trainable(tiny_dits.dit(name))
        learned, draw = adapters.Design(rank=1, layers="").adapters(model, 1), torch.Generator().manual_seed(1)
        for p in learned.parameters.values():
            p.add_(0.05 * torch.randn(p.shape, generator=draw))
        learned.put_on(model)
        (features, extras), *_ = gradients.clone_inference_tensors(tiny_dits.text(name, 1))
        empty, found = tiny_dits.empty(name), []

    def steps(denoiser):
        for i in range(count):
            text, x = features.clone().requires_grad_(True), torch.randn(empty.shape, generator=torch.Generator().manual_seed(2 + i))
            with around():
                loss = denoiser.denoised(x, torch.tensor([denoiser.scale.sigma(0.4)]), [[text, extras]]).square().mean()
                own = torch.autograd.grad(loss, [text, *learned.parameters.values()], allow_unused=True)
            found.append(torch.cat([g.flatten() for g in own if g is not None]))
        yield from ()

    with torch.inference_mode(False), torch.no_grad():
        run.run_sampler(model, [[features, extras]], empty.shape, run.TrainSampler(steps, blocks=blocks))
    return found


def copies_alone():
    """Every saved tensor copied by itself: slow, and right."""
    return torch.autograd.graph.saved_tensors_hooks(lambda t: t.detach().clone(), lambda t: t)


class Census:
    """Counts the saved tensors that a network changes before they are read."""

    def __init__(self):
        self.changed = 0

    def read(self, saved):
        tensor, version = saved
        self.changed += tensor._version != version
        return tensor

    def hooks(self):
        return torch.autograd.graph.saved_tensors_hooks(lambda t: (t, t._version), self.read)
