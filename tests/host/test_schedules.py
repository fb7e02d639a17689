import pytest
import torch
from comfy_extras import nodes_mahiro, nodes_pag, nodes_tcfg
from comfy_extras.nodes_model_advanced import RescaleCFG
from controlled_diffusion.attention.prompt_to_prompt import Window
from controlled_diffusion.guidance.multi_cfg import Channel
from controlled_diffusion.nodes import schedules
from controlled_diffusion.nodes.host.guidance.multi_cfg import MultiCFG
from controlled_diffusion.nodes.host.noise_levels import Level, noise_scale, scale_of
from controlled_diffusion.nodes.schedules import GuidanceSchedule

from compare import assert_close
from host import tiny
from host.sampling import cfg_guider, run, sigmas_of
from host.tiny import conditioning

pytestmark = pytest.mark.usefixtures("inference_mode")


def defaults(inputs) -> dict:
    return {i.id: i.default if i.default is not None else i.options[0] for i in inputs}


@pytest.mark.parametrize("shape", [s for s in schedules._SHAPES if s not in ("curve", "cfg++")])
def test_every_shape_is_made_from_its_own_widgets(any_model, shape):
    knobs = defaults(schedules._SHAPES[shape][1]())
    made = GuidanceSchedule.execute({"shape": shape, **knobs}, 0.0, 1.0).args[0]
    scale = noise_scale(any_model)
    assert all(0 <= made(scale.sigma(p / 10), scale) <= 10.001 for p in range(11))


@pytest.mark.parametrize("family, scheduler", [("eps", "sgm_uniform"), ("flow", "simple")])
def test_steps_on_the_edge_of_a_window_are_in_what_begins_there(family, scheduler):
    """And in no window that ends there, as ComfyUI's schedulers round their sigmas."""
    model = tiny.unet(family)
    scale, sigmas = noise_scale(model), sigmas_of(model, 20, scheduler)
    for number in range(1, 20):
        percent = Level(sigmas[number : number + 1], scale).percent
        assert percent in Window(number / 20, 1.0) and percent not in Window(0.0, number / 20)


def made_of(curve):
    """The schedule of a curve that reaches 2."""
    return GuidanceSchedule.execute({"shape": "curve", "height": 2.0, "axis": "percent", "curve": curve}, 0.0, 1.0).args[0]


def test_the_hosts_curve_is_read_along_the_sampling(any_model):
    import comfy_api.input  # not above: it can only be imported after comfy_api.latest

    if not hasattr(comfy_api.input, "CurveInput"):
        pytest.skip("this host has no curve editor (ComfyUI 0.27 and newer do)")
    curve = comfy_api.input.CurveInput.from_raw([(0.0, 0.0), (0.4, 1.0), (1.0, 0.2)])
    made = made_of(curve)
    scale = noise_scale(any_model)
    for percent in (0.1, 0.4, 0.8):
        assert made(scale.sigma(percent), scale) == pytest.approx(2.0 * curve.interp(percent), abs=1e-4)


def test_a_curve_drawn_on_the_node_is_read(any_model):
    """As the frontend saves it where no Curve Editor is connected."""
    import comfy_api.input

    if not hasattr(comfy_api.input, "CurveInput"):
        pytest.skip("this ComfyUI has no curves (0.27 and newer do)")
    points, scale = [[0.0, 0.0], [0.4, 1.0], [1.0, 0.2]], noise_scale(any_model)
    drawn, connected = (made_of(c) for c in ({"points": points}, comfy_api.input.CurveInput.from_raw(points)))
    assert all(drawn(scale.sigma(p / 10), scale) == connected(scale.sigma(p / 10), scale) for p in range(11))
    for damaged in ({}, {"points": 3}, {"points": [[0, float("nan")], [1, 1]]}, "a text"):
        with pytest.raises(ValueError, match=r"The curve cannot be read: .* Draw it again, or connect a Curve Editor"):
            made_of(damaged)


def test_a_missing_curve_is_refused():
    with pytest.raises(ValueError, match="connect a Curve Editor"):
        GuidanceSchedule.execute({"shape": "curve", "height": 1.0, "axis": "percent"}, 0.0, 1.0)


def test_percents_are_the_hosts_percents(any_model):
    sampling = any_model.get_model_object("model_sampling")
    scale = scale_of(sampling)
    for percent in (0.01, 0.123, 0.5, 0.9, 0.99):
        assert scale.sigma(percent) == pytest.approx(sampling.percent_to_sigma(percent), rel=2e-3)


NODES = {
    "PAG": lambda model: nodes_pag.PerturbedAttentionGuidance.execute(model, 2.0).args[0],
    "rescale": lambda model: RescaleCFG().patch(model, 0.7)[0] if hasattr(RescaleCFG, "patch") else RescaleCFG.execute(model, 0.7).args[0],
    "TCFG": lambda model: nodes_tcfg.TCFG.execute(model).args[0],
    "Mahiro": lambda model: nodes_mahiro.Mahiro.execute(model).args[0],
}


@pytest.mark.parametrize("node", NODES)
def test_the_hosts_own_guidance_nodes_act_as_with_plain_cfg(node):
    model, (empty, cat, dog) = NODES[node](tiny.unet("eps", output_scale=0.2)), map(conditioning, range(3))
    expected = run(cfg_guider(model, cat, empty, 3.0))
    assert_close(run(MultiCFG(model, empty, [Channel(cat, 3.0), Channel(dog, 1e-12)])), expected, atol=1e-3, rtol=1e-3)
    assert not torch.allclose(run(MultiCFG(model, empty, [Channel(cat, 3.0), Channel(dog, 1.0)])), expected, atol=1e-2)
