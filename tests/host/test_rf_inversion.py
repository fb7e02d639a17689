"""RF-Inversion inside the real host."""

import logging

import pytest
import torch
from controlled_diffusion.nodes.ddim import DDIMInverter
from controlled_diffusion.nodes.host import noise_levels
from controlled_diffusion.nodes.inversion import InversionSampler
from controlled_diffusion.nodes.rf_inversion import RFInverter

from compare import assert_close
from host import tiny
from host.sampling import Count
from node_schema import defaults

pytestmark = pytest.mark.usefixtures("inference_mode")
SOURCE, TARGET, EMPTY = (tiny.conditioning(i) for i in (1, 2, 3))
STEPS = 8


@pytest.fixture
def model():
    return tiny.unet("flow", output_scale=0.2)


def image(batch: int = 1) -> dict:
    return {"samples": 5 * torch.randn(batch, 4, 8, 8, generator=torch.Generator().manual_seed(0))}


def invert(model, given=None, source=SOURCE, **knobs):
    settings = defaults(RFInverter) | dict(steps=STEPS, scheduler="normal") | knobs
    return RFInverter.execute(model, source, image() if given is None else given, **settings).args[0]


def sample(model, inversion, cfg=1.0, branches="edit", **inputs):
    return InversionSampler.execute(model, inversion, cfg, branches, **inputs).args[0]["samples"]


def apart(a, b) -> float:
    return float((a - b).norm() / b.norm())


def edited(model, given=None, cfg=5.0, **knobs):
    return sample(model, invert(model, given, **knobs), cfg, positive=TARGET, negative=EMPTY)


def test_gamma_one_ends_at_the_noise_of_the_seed(model):
    noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(4))
    assert_close(invert(model, gamma=1.0, seed=4).trajectory.states[0][0], noise, atol=1e-5, rtol=1e-5)


def test_gamma_and_eta_zero_are_ddim_inversion_and_plain_sampling(model):
    ddim = DDIMInverter.execute(model, SOURCE, image(), STEPS, "normal", 0.0).args[0]
    own = invert(model, gamma=0.0, eta=0.0)
    assert_close(own.trajectory.states[0][0], ddim.trajectory.states[0][0], atol=1e-5, rtol=1e-5)
    options = dict(positive=TARGET, negative=EMPTY)
    assert_close(sample(model, own, 5.0, **options), sample(model, ddim, 5.0, **options), atol=1e-4, rtol=1e-4)


def test_eta_one_at_all_steps_gives_the_image_back_under_any_prompt(model):
    assert apart(edited(model, eta=1.0, eta_end_percent=1.0), image()["samples"]) < 1e-5


def test_longer_stronger_and_undecayed_pulls_keep_more_of_the_image(model):
    def change(**knobs):
        return apart(edited(model, **knobs), image()["samples"])

    assert change(eta_end_percent=0.8) < change(eta_end_percent=0.4) < change(eta=0.0)
    assert change(eta=0.9) < change(eta=0.4)
    assert change(eta_end_percent=0.8) < change(eta_end_percent=0.8, decay=2.0)
    assert change(eta_start_percent=0.4, eta_end_percent=0.8) > change(eta_end_percent=0.8)


def test_the_percents_are_those_of_the_sampling(model):
    inversion = invert(model, eta_start_percent=0.2, eta_end_percent=0.6)
    scale = noise_levels.noise_scale(model)
    on = [inversion.method.pull(i, inversion.trajectory) > 0 for i in range(STEPS)]
    assert on == [0.2 - 1e-6 <= scale.percent(s) <= 0.6 + 1e-6 for s in inversion.trajectory.sigmas[:-1]]
    assert 0 < sum(on) < STEPS


def test_a_batch_is_its_images_one_by_one(model):
    given = image(2)
    alone = [edited(model, {"samples": x[None]}) for x in given["samples"]]
    assert_close(edited(model, given), torch.cat(alone), atol=1e-3, rtol=1e-3)


def test_with_two_branches_each_is_pulled_to_its_image(model):
    given = image(2)
    inversion = invert(model, given)
    both = sample(model, inversion, 5.0, "source and edit", positive=TARGET, negative=EMPTY)
    assert_close(both[:2], sample(model, inversion, 5.0, negative=EMPTY), atol=1e-3, rtol=1e-3)
    assert_close(both[2:], sample(model, inversion, 5.0, positive=TARGET, negative=EMPTY), atol=1e-3, rtol=1e-3)


def test_one_evaluation_a_step(model):
    count = Count(model)
    inversion = invert(count.model)
    assert count.rows == inversion.evaluations == STEPS
    sample(count.model, inversion, 5.0, positive=TARGET, negative=EMPTY)
    assert count.rows == 3 * STEPS


def test_an_inversion_below_full_noise_is_pulled_along_the_straight_line(model):
    inversion = invert(model, gamma=1.0, end_percent=0.5, seed=4)
    sigma = inversion.trajectory.sigmas[0]
    noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(4))
    clean = inversion.trajectory.states[-1][0]
    assert_close(inversion.trajectory.states[0][0], (1 - sigma) * clean + sigma * noise, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("family", ["eps", "v"])
def test_models_without_a_flow_are_refused_by_name_with_what_to_use(family):
    message = rf"RF-Inversion needs a flow model .* is BaseModel \(SD15, {family}\)\. Use DDIM Inverter or Edit-Friendly Inverter with it, or make it one with Model"
    with pytest.raises(ValueError, match=message):
        invert(tiny.unet(family))


def test_a_model_that_cannot_become_a_flow_model_is_not_sent_there():
    model = tiny.unet("eps")
    model.add_object_patch("model_sampling", type("Another", (torch.nn.Module,), {})())
    with pytest.raises(ValueError, match=r"SD15, another prediction\)\. Use DDIM Inverter or Edit-Friendly Inverter with it\.$"):
        invert(model)


def test_an_eta_that_never_acts_is_told(model, caplog):
    with caplog.at_level(logging.WARNING):
        invert(model, eta_end_percent=0.4)
        assert not caplog.records
        invert(model, eta_end_percent=0.4, end_percent=0.5)
    assert "eta 0.9 never acts: no step begins between eta_start_percent 0 and eta_end_percent 0.4" in caplog.text


@pytest.mark.parametrize(
    "knobs, message",
    [
        (dict(gamma=1.5), r"gamma is 1\.5; give 0"),
        (dict(eta=2.0), "eta is 2; give 0"),
        (
            dict(eta_start_percent=0.6, eta_end_percent=0.2),
            r"eta_start_percent is 0\.6 and eta_end_percent 0\.2; give the start the smaller",
        ),
        (dict(source=[]), "source is an empty conditioning"),
    ],
)
def test_bad_input_is_refused_with_what_to_do(model, knobs, message):
    with pytest.raises(ValueError, match=message):
        invert(model, **knobs)
