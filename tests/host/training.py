"""What the tests of trainers share: their images, their nodes with few steps, and questions asked while a training runs."""

import inspect
from contextlib import contextmanager

import comfy.model_management
import comfy.utils
import pytest
import torch
from comfy_api.latest import io
from controlled_diffusion.nodes import training_options
from controlled_diffusion.nodes.host.training import run
from controlled_diffusion.nodes.inputs.auto import auto_inputs

from node_schema import defaults, with_settings


def images(count=2, size=64, seed=0):
    return torch.rand(count, size, size, 3, generator=torch.Generator().manual_seed(seed))


OPTIONS = training_options.NODES


def ids(node):
    return [i.id for i in node.GET_SCHEMA().inputs]


def option(node, **given):
    """What an option node gives, with its defaults; what is on auto stays so."""
    given = defaults(node) | {i.id: i.default for i in auto_inputs(node.GET_SCHEMA().inputs)} | given
    return node.execute(**as_lists(given) if node.GET_SCHEMA().is_input_list else given).args[0]


def with_options(node, **given):
    """The inputs of a trainer's node: those that are an option node's go through it. Of Validation Options they begin with 'validation_'."""
    inner = [i.id for each in node.GET_SCHEMA().inputs if isinstance(each, io.DynamicCombo.Input) for o in each.options for i in o.inputs]
    found = {k: v for k, v in given.items() if k in (*ids(node), *inner)}
    for each in OPTIONS:
        (socket,) = (o.display_name for o in each.GET_SCHEMA().outputs)
        prefix = "validation_" if socket == "validation_options" else ""
        own = {k: given[prefix + k] for k in ids(each) if prefix + k in given and prefix + k not in found}
        if own and socket in ids(node):
            found[socket] = option(each, **own)
    return found


def as_lists(given):
    return {k: v if isinstance(v, list) else [v] for k, v in given.items()}


def output(node, **given):
    """The NodeOutput of a trainer's node, with its defaults; every input as the list that ComfyUI makes of it."""
    return node.execute(**as_lists(with_settings(node, **with_options(node, **given))))


def execute(node, **given):
    """What a trainer's node gives."""
    return output(node, **given).args


def check_deep_copy(model, weight):
    """A deep copy of a MODEL owns its weights; `weight(network)` is one of them."""
    if "force_deepcopy" not in inspect.signature(model.clone).parameters:
        pytest.skip("this ComfyUI has no deep copies of models (0.27 and newer do)")
    ours, theirs = (weight(m.model.diffusion_model) for m in (model, model.clone(force_deepcopy=True)))
    assert torch.equal(ours, theirs) and ours.data_ptr() != theirs.data_ptr()


@contextmanager
def watching(show):
    """Inside, `show(value, total, preview)` is called whenever ComfyUI's progress bars move; afterwards nothing is interrupted."""
    rarest = getattr(comfy.utils, "PROGRESS_THROTTLE_MIN_INTERVAL", 0.0)
    comfy.utils.PROGRESS_THROTTLE_MIN_INTERVAL = 0.0  # every move is shown, however fast
    comfy.utils.set_progress_bar_global_hook(lambda value, total, preview, node_id=None: show(value, total, preview))
    try:
        yield
    finally:
        comfy.utils.PROGRESS_THROTTLE_MIN_INTERVAL = rarest
        comfy.utils.set_progress_bar_global_hook(None)
        comfy.model_management.interrupt_current_processing(False)


def full_disk(*given, **more):
    """Stands for a function that writes."""
    raise OSError(28, "no space")


def stopping_at(value, total):
    """Inside, the user stops when a progress bar stands at `value` of `total`."""
    return watching(lambda *now: comfy.model_management.interrupt_current_processing(now[:2] == (value, total)))


def inside(task, question, around=None):
    """What `question(denoiser)` gives while ComfyUI's sampling runs, with gradients; `around` replaces the task's own."""
    found = []

    def steps(denoiser):
        found.append(question(denoiser))
        yield from ()

    with torch.inference_mode(False), torch.no_grad():
        sampler = run.TrainSampler(steps, task.modules, around=around or task.around)
        run.run_sampler(task.model, task.conditioning("a"), task.shape, sampler)
    return found[0]


def stir(task, size=0.05):
    """Gives all parameters values that matter."""
    draw = torch.Generator().manual_seed(11)
    with torch.inference_mode(False), torch.no_grad():
        for p in task.parameters.values():
            p.add_(size * torch.randn(p.shape, generator=draw).to(p))


def derivatives(task, step=0.01):
    """(derivative by autograd, by differences) of the loss along a random direction of all parameters."""
    stir(task)
    parameters, draw = list(task.parameters.values()), torch.Generator().manual_seed(3)
    with torch.inference_mode(False):
        along = [torch.randn(p.shape, generator=draw).to(p) * p.detach().std().clamp(min=0.01) for p in parameters]

    def question(denoiser):
        gradients = torch.autograd.grad(task.loss(denoiser, 0), parameters)
        assert all(float(g.abs().sum()) > 0 for g in gradients)
        values = []
        with torch.no_grad():
            for sign in (1, -1):
                torch._foreach_add_(parameters, along, alpha=sign * step)
                values.append(float(task.loss(denoiser, 0)))
                torch._foreach_sub_(parameters, along, alpha=sign * step)
        return sum(float((g * a).sum()) for g, a in zip(gradients, along)), (values[0] - values[1]) / (2 * step)

    return inside(task, question)
