"""What other nodes remember from step to step does not reach runs of the pack that evaluate in another order than a plain sampling."""

import comfy.hooks
import comfy.samplers
import pytest
import torch
from comfy.hooks import HookKeyframe, HookKeyframeGroup, TransformerOptionsHook
from comfy.patcher_extension import WrappersMP
from comfy_extras.nodes_easycache import EasyCacheNode, LazyCacheNode
from controlled_diffusion.guidance.directions import Shaping
from controlled_diffusion.guidance.multi_cfg import Channel, Rules
from controlled_diffusion.nodes.diffedit import DiffEditMask, DiffEditSampler
from controlled_diffusion.nodes.host.evaluation_order import FUNCTION, KINDS, AnyOrderSampler, Restarting
from controlled_diffusion.nodes.host.guidance.multi_cfg import MultiCFGWrapper
from controlled_diffusion.nodes.host.training.run import TrainSampler, run_sampler

from compare import assert_close
from host import inversions, tiny
from host.inversions import EDIT, EMPTY, INVERTERS, SOURCE, TARGET, apart, image
from host.sampling import cfg_guider, sigmas_of, watched
from node_schema import defaults, with_settings

pytestmark = pytest.mark.usefixtures("inference_mode")
SETTINGS = {"null-text": dict(cfg=4.0, inner_steps=2, early_stop=0.0), "ddim": dict(fixed_point_iterations=2)}
FAMILIES = {"rf-inversion": "flow", "o-belm": "flow", "bdia": "v"}
STEPS = 6


@pytest.fixture
def model():
    return tiny.unet("eps", output_scale=0.05)


def family_of(name: str):
    return tiny.unet(FAMILIES.get(name, "eps"), output_scale=0.05)


def invert(name: str, model, source=SOURCE, **more):
    given = SETTINGS.get(name, {}) | more
    if name in ("null-text", "negative-prompt"):
        given = dict(negative=EMPTY) | given
    return inversions.invert(name, model, source=source, steps=STEPS, **given)[0]


def states(inversion) -> list[torch.Tensor]:
    """All that an inversion has found."""
    null = [features for features, _ in inversion.null or ()]
    return [*(t for state in inversion.trajectory.states for t in state), *inversion.trajectory.extras.values(), *null]


def mask_of(model, source=SOURCE, target=TARGET, negative=EMPTY) -> torch.Tensor:
    settings = with_settings(DiffEditMask, method="DiffEdit", maps=2, levels=2, threshold=0.5)
    return DiffEditMask.execute(model, source, target, image(), **settings).args[1]


def masked_edit(model, source=SOURCE, target=TARGET, negative=EMPTY) -> torch.Tensor:
    settings = defaults(DiffEditSampler) | dict(steps=STEPS, scheduler="normal", encode_ratio=1.0)
    return DiffEditSampler.execute(model, target, negative, image(), source=source, **settings).args[0]["samples"]


def flow_edit(model, source=SOURCE, target=TARGET, negative=EMPTY) -> torch.Tensor:
    return inversions.flow_edit(model, source=source, positive=target, negative=negative, n_max=1.0)


EDITS = {"flow-edit": flow_edit, "diffedit-mask": mask_of, "diffedit": masked_edit}


# Hooks with keyframes


def keyframes(*strengths: tuple[float, float]) -> HookKeyframeGroup:
    group = HookKeyframeGroup()
    for strength, start in strengths:
        group.add(HookKeyframe(strength, start))
    return group


def hooked(model, *conditionings, frames=((1.0, 0.0), (0.0, 0.5))) -> list:
    """Conditionings under one LoRA with keyframes."""
    hooks = comfy.hooks.create_hook_lora(tiny.lora(model), 1.0, 0.0)
    hooks.set_keyframes_on_hooks(keyframes(*frames))
    return [comfy.hooks.set_hooks_for_conditioning(c, hooks) for c in conditionings]


def strengths(model, run) -> dict[float, set[float]]:
    """With what strengths of the LoRA the network was evaluated at each sigma by `run(model)`."""
    weight = model.model.diffusion_model.middle_block[1].transformer_blocks[0].attn2.to_v.weight
    base, seen = weight.clone(), {}

    def look(args):
        now = model.model.diffusion_model.middle_block[1].transformer_blocks[0].attn2.to_v.weight
        seen.setdefault(round(float(args["timestep"].max()), 4), set()).add(round(float((now - base).norm()), 4))

    run(watched(model, look))
    return seen


FRAMES = (1.0, 0.0), (0.5, 0.3), (2.0, 0.35), (0.0, 0.4), (0.7, 0.8)  # each is held for a step at least, so that some are late


def in_plain_sampling(model) -> dict[float, set[float]]:
    positive, negative = hooked(model, SOURCE, EMPTY, frames=FRAMES)
    latent = image()["samples"]

    def run(model):
        cfg_guider(model, positive, negative, 3.0).sample(
            latent, torch.zeros_like(latent), comfy.samplers.sampler_object("euler"), sigmas_of(model, STEPS), disable_pbar=True
        )

    return strengths(model, run)


@pytest.mark.parametrize("name", [*INVERTERS, "flow-edit", "diffedit"])
def test_keyframes_are_those_of_plain_sampling(name):
    """At every sigma of every method, on the way to noise and back, under source, positive and negative."""
    model = family_of(name)
    source, target, negative = hooked(model, SOURCE, TARGET, EMPTY, frames=FRAMES)

    def run(model):
        if name in EDITS:
            EDITS[name](model, source, target, negative)
        else:
            guided = {} if name == "rf-inversion" else dict(negative=negative)
            inversion = invert(name, model, source, **guided if name in ("null-text", "negative-prompt") else {})
            inversions.sample(model, inversion, 3.0, positive=target, negative=negative)

    plain, seen = in_plain_sampling(model), strengths(model, run)
    assert len(set().union(*plain.values())) == len(FRAMES) - (0 if len(plain) >= STEPS else 1), "the keyframes do nothing"
    assert {sigma: found for sigma, found in seen.items() if sigma in plain} == {s: plain[s] for s in seen if s in plain}
    assert all(len(found) == 1 for found in seen.values()) and len(plain.keys() & seen.keys()) >= STEPS - 1


def test_a_single_level_has_the_keyframe_of_its_percent(model):
    """DiffEdit Mask's levels are no steps of a pass."""
    source, target, negative = hooked(model, SOURCE, TARGET, EMPTY, frames=FRAMES)
    base = strengths(model, lambda model: mask_of(model, *hooked(model, SOURCE, TARGET, EMPTY, frames=((1.0, 0.0),))))
    (whole,) = set().union(*base.values())
    for found in (strengths(model, lambda model: mask_of(model, source, target, negative)) for _ in range(2)):
        assert [[round(v / whole, 2) for v in values] for _, values in sorted(found.items())] == [[0.0], [0.5]]


@pytest.mark.parametrize("name", ["edict", "bdia", "o-belm", "edit-friendly"])
def test_the_image_comes_back_under_keyframes(name):
    model = family_of(name)
    (source,) = hooked(model, SOURCE)
    inversion = invert(name, model, source)
    assert apart(inversions.sample(model, inversion, positive=source), image()["samples"]) < 1e-5
    assert apart(inversions.sample(model, inversion, positive=SOURCE), image()["samples"]) > 1e-3, "the LoRA does nothing"


def test_keyframes_are_left_as_they_were(model):
    (source,) = hooked(model, SOURCE)
    (hook,) = source[0][1]["hooks"].hooks
    own = hook.hook_keyframe
    invert("edict", model, source)
    assert hook.hook_keyframe is own and own.strength == 1.0


# Caches


def caches(model):
    """The model with each of ComfyUI's caches, at its defaults and as eager as can be."""
    nodes = (EasyCacheNode, LazyCacheNode)
    return [node.execute(model, *knobs, False).args[0] for node in nodes for knobs in ((0.2, 0.15, 0.95), (3.0, 0.0, 1.0))]


@pytest.mark.parametrize("name", INVERTERS)
def test_caches_do_not_reach_inversions(name):
    model = family_of(name)
    found = invert(name, model)
    there = inversions.sample(model, found, 3.0, **EDIT)
    for cached in caches(model):
        again = invert(name, cached)
        for one, other in zip(states(again), states(found), strict=True):
            assert_close(one, other, atol=2e-3, rtol=2e-3)
        assert_close(inversions.sample(cached, found, 3.0, **EDIT), there, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", EDITS)
def test_caches_do_not_reach_edits(name, model, caplog):
    plain = EDITS[name](model)
    with caplog.at_level("INFO"):
        for cached in caches(model):
            assert torch.equal(EDITS[name](cached), plain)
    for cache in ("EasyCache", "LazyCache"):
        assert f"{cache} would take earlier evaluations for steps of one sampling: switched off in this node." in caplog.text


def predictions(model) -> list[torch.Tensor]:
    """What a training is given at several levels, with gradients."""
    found = []

    def steps(denoiser):
        for sigma in (0.5, 4.0, 1.0, 0.9):
            x = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1)).requires_grad_(True)
            denoised = denoiser.denoised(x, torch.tensor([sigma]), SOURCE)
            found.extend([denoised.detach(), *torch.autograd.grad(denoised.square().sum(), x)])
            yield None

    run_sampler(model, SOURCE, (1, 4, 8, 8), TrainSampler(steps))
    return found


def test_caches_do_not_reach_trainings(model):
    plain = predictions(model)
    for cached in caches(model):
        assert all(torch.equal(one, other) for one, other in zip(predictions(cached), plain, strict=True))


def test_caches_in_a_hook_do_not_reach_edits(model):
    """A hook may bring what ComfyUI's nodes put on the model."""
    cached, hooks = EasyCacheNode.execute(model, 3.0, 0.0, 1.0, False).args[0], comfy.hooks.HookGroup()
    hooks.add(TransformerOptionsHook({"easycache": cached.model_options["transformer_options"]["easycache"], "wrappers": cached.wrappers}))
    conditionings = [comfy.hooks.set_hooks_for_conditioning(c, hooks) for c in (SOURCE, TARGET, EMPTY)]
    assert_close(flow_edit(model, *conditionings), flow_edit(model), atol=1e-5, rtol=1e-5)


def test_a_plain_sampler_keeps_its_cache(model):
    """As before the pack's run on the same model."""
    cached, calls = EasyCacheNode.execute(model, 3.0, 0.0, 1.0, False).args[0], []
    cached.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "spy", lambda executor, *a, **k: (calls.append(1), executor(*a, **k))[1])
    flow_edit(cached)
    calls.clear()
    latent = image()["samples"]
    sampler, sigmas = comfy.samplers.sampler_object("euler"), sigmas_of(model, STEPS)
    cfg_guider(cached, SOURCE, EMPTY, 1.0).sample(latent, latent, sampler, sigmas, disable_pbar=True)
    assert len(calls) < STEPS


# Wrappers that nobody knows


def with_wrapper(model, kind: str, wrapper):
    patched = model.clone()
    if kind == FUNCTION:
        patched.set_model_unet_function_wrapper(
            lambda apply_model, args: wrapper(lambda *_: apply_model(args["input"], args["timestep"], **args["c"]))
        )
    else:
        patched.add_wrapper_with_key(kind, "another pack", wrapper)
    return patched


@pytest.mark.parametrize("kind", [*KINDS, FUNCTION])
def test_an_unknown_cache_is_refused_by_its_key(model, kind):
    memory = []

    def remembered(executor, *args, **kwargs):
        if len(memory) == 2:
            return memory[-1]
        memory.append(executor(*args, **kwargs))
        return memory[-1]

    key = FUNCTION if kind == FUNCTION else f"another pack' of {kind}"
    with pytest.raises(ValueError, match=rf"wrapper '{key}.* gave a result from memory .* Connect the model from before the cache"):
        flow_edit(with_wrapper(model, kind, remembered))


@pytest.mark.parametrize("kind", [*KINDS, FUNCTION])
def test_harmless_wrappers_act_as_in_plain_sampling(model, kind):
    def doubled(executor, *args, **kwargs):
        made = executor(*args, **kwargs)
        return [1.1 * m for m in made] if isinstance(made, list) else 1.1 * made

    assert apart(flow_edit(with_wrapper(model, kind, doubled)), flow_edit(model)) > 1e-3


def test_a_wrapper_may_evaluate_by_itself(model):
    """Instead of calling what it wraps, as nodes with a guidance of their own do."""

    def own(executor, x, timestep, model_options, seed):
        guider = executor.class_obj
        conds = [guider.conds["positive"], guider.conds["negative"]]
        one, other = comfy.samplers.calc_cond_batch(guider.inner_model, conds, x, timestep, model_options)
        return other + guider.cfg * (one - other)

    assert_close(flow_edit(with_wrapper(model, WrappersMP.PREDICT_NOISE, own)), flow_edit(model), atol=1e-4, rtol=1e-4)


# The pack's own


def test_the_image_comes_back_under_momentum(model):
    """Momentum of channels is the memory of a falling pass, which no inversion can know."""
    patched = MultiCFGWrapper([Channel(TARGET, 2.0)], Rules(shaping=Shaping(apg_momentum=-0.5))).install(model)
    inversion = invert("edict", patched, cfg=2.0)
    assert apart(inversions.sample(patched, inversion, 2.0, positive=SOURCE, negative=EMPTY), image()["samples"]) < 1e-5


def test_every_sampler_of_the_pack_keeps_its_order_to_itself():
    """`Restarting` keeps the order, twice; test_word_regions.py looks at what is left of its first pass."""
    ours = [kind for kind in comfy.samplers.Sampler.__subclasses__() if kind.__module__.startswith("controlled_diffusion")]
    assert ours == [AnyOrderSampler, Restarting]
