"""Every input of every node with one value of each kind of damage: an error in words or a right result, never a raw error or NaN."""

import contextlib
import itertools
import math
from dataclasses import replace

import comfy.model_management
import pytest
import torch
from controlled_diffusion.nodes import MODULES
from controlled_diffusion.nodes.host.noise_levels import noise_scale
from controlled_diffusion.nodes.inputs.checks import all_finite
from safetensors.torch import save_file

from checks import refused
from harness import bad_inputs
from harness.good_inputs import Sockets, good, nodes, run

NODES = [node.__name__ for module in MODULES for node in module.NODES]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder of models and outputs for these tests alone."""
    with bad_inputs.own_folders(tmp_path_factory.mktemp("bad_inputs")) as folder:
        yield folder


@pytest.fixture(scope="module")
def sockets(place):
    return Sockets()


@pytest.mark.parametrize("node_id", NODES)
def test_damage_ends_in_a_named_error_or_a_right_result(node_id, sockets, place):
    assert all_finite(run(node_id, **good(node_id, sockets))), "the call without damage must work"
    found = list(bad_inputs.outcomes(node_id, sockets, place))
    assert {o.input.partition(".")[0] for o in found} == {i.id for i in nodes()[node_id].GET_SCHEMA().inputs}
    assert not [str(o) for o in found if o.is_fault]


def test_faults_are_found(sockets, place, monkeypatch):
    """The matrix sees a raw error, a silent success, NaN in a result and in a file."""
    def judged(execute) -> str:
        monkeypatch.setitem(nodes(), "GuidanceChannel", type("Faulty", (), {"EXECUTE_NORMALIZED": execute}))
        return bad_inputs.outcome("GuidanceChannel", "priority", bad_inputs.Damage("text", "many"), {}, place).verdict

    def result(value):
        return staticmethod(lambda **given: type("Output", (), {"args": (value,)}))

    def writes(**given):
        save_file({"a": torch.tensor([math.nan])}, place / "spoilt.safetensors")
        raise ValueError

    assert judged(staticmethod(lambda **given: int("many"))) == "raw"
    assert judged(result(1)) == "silent" and judged(result(torch.tensor(math.nan))) == "NaN"
    assert judged(staticmethod(writes)) == "file"


@pytest.mark.parametrize(
    ("node_id", "changes", "message"),
    [
        ("DDIMInverter", dict(steps=5000), "^steps is 5000; give a whole number from 1 to 1000.$"),
        ("DDIMInverter", dict(scheduler="no"), "^scheduler is 'no'; choose one of auto, simple, .*"),
        ("EDICTInverter", dict(cfg=math.nan), "^cfg is nan; give a finite number from 0 to 100.$"),
        ("P2PAttentionPatch", dict(clip=None), "^'clip' is None: .* Load CLIP.$"),
        ("DDIMInverter", dict(image=torch.zeros(0, 64, 64, 3)), "^'image' is empty: its shape is 0 x 64 x 64 x 3"),
        ("DDIMInverter", dict(image=torch.zeros(64, 64, 3)), "^'image' has the shape 64 x 64 x 3, but IMAGE is .images, height"),
        ("DDIMInverter", dict(image=torch.full((1, 64, 64, 3), math.nan)), "^'image' holds NaN or infinity.* --fp32-vae.$"),
        ("DDIMInverter", dict(image=torch.zeros(1, 64, 64, 1)), "^'image' has 1 channels; give an IMAGE of 3"),
        ("DDIMInverter", dict(source=[]), "^source is an empty conditioning"),
        ("IPAdapterPatch", dict(mask=torch.full((1, 8, 8), 2.0)), "^'mask' has values from 2 to 2; give a mask of 0 .off. to 1 .on.[.]$"),
        ("MultiCFGGuider", dict(sigmas=torch.tensor([1.0, -1.0])), "^'sigmas' holds the noise level -1; give levels of 0 or more"),
    ],
)  # fmt: skip
def test_errors_name_the_value_and_what_is_allowed(node_id, changes, message, sockets):
    refused(message, run, node_id, **good(node_id, sockets) | changes)
    with pytest.raises(ValueError) as error:
        run(node_id, **good(node_id, sockets) | changes)
    assert len(str(error.value)) < 700


@pytest.mark.parametrize(
    ("node_id", "changes", "said"),
    [
        ("DDIMInverter", lambda s: dict(order=2, extrapolate=True, fixed_point_iterations=0, tolerance=0.1), "fixed_point_iterations is 0\nextrapolate is "),
        ("TrainingOptions", lambda s: dict(gamma=3.0), "gamma is not used where weighting is 'own'"),
        ("NewWord", lambda s: dict(norm="free", norm_limit=3.0), "norm_limit is not used where norm is 'free'"),
        ("InversionSampler", lambda s: dict(branches="edit", value_end=0.3), "value_end is not used where branches is 'edit'"),
        ("FlowEditLatentSampler", lambda s: dict(method={"method": "FlowAlign", "cfg": 5.0, "zeta": 0.01}, negative=s("CONDITIONING")), "negative is not used where "),
        ("ImageGuidanceChannel", lambda s: dict(text=s("CONDITIONING")), "text is not used where "),
        ("DDIMInverter", lambda s: dict(image={**s("LATENT"), "noise_mask": torch.ones(1, 8, 8)}), "the latent's noise mask is not used: "),
        ("InversionSampler", lambda s: dict(inversion=replace(s("INVERSION"), null=s("CONDITIONING")), negative=s("CONDITIONING")), "instead of the"),
        ("SDEditSampler", lambda s: dict(original=s("LATENT"), mask=None), "original is not used: there is no mask"),
    ],
)
def test_a_node_says_which_input_it_does_not_use(node_id, changes, said, sockets):
    given = {k: v for k, v in (good(node_id, sockets) | changes(sockets)).items() if v is not None}
    with torch.inference_mode():
        made = nodes()[node_id].EXECUTE_NORMALIZED(**given)
    assert said in made.ui["text"][0]


PAGES = ("a" * 5000, "a:b, " * 1000, "a <x> {y}\n" * 500, "red circle " * 450, "a" * 5000 + ":2, b", "a => " + "b" * 5000)


@pytest.mark.parametrize("node_id", NODES)
def test_no_error_holds_a_whole_text(node_id, sockets, place):
    """Texts of 5,000 characters: messages quote 100 of them, and list 400 characters of options."""
    schema, whole = nodes()[node_id].GET_SCHEMA(), good(node_id, sockets)
    texts = [i.id for i in schema.inputs if i.get_io_type() in ("STRING", "COMBO")]
    for name, text in itertools.product(texts, PAGES):
        given = whole | {name: [text] if schema.is_input_list else text}
        with contextlib.suppress(comfy.model_management.InterruptProcessingException), bad_inputs.cancelling(1.0):
            try:
                run(node_id, **given)
            except ValueError as error:
                assert len(str(error)) < 2000, f"{name}: {text[:20]}"


def test_a_result_without_numbers_is_refused(sockets):
    """A model whose weights are lost."""
    model = sockets("MODEL").clone()
    model.set_model_unet_function_wrapper(lambda apply, args: apply(args["input"], args["timestep"], **args["c"]) * math.nan)
    with pytest.raises(ValueError, match="holds NaN or infinity"):
        run("SDEditSampler", **good("SDEditSampler", sockets) | {"model": model})


class Stranger:
    """A VAE of another pack that can encode and decode, and nothing else."""

    def __init__(self, own):
        self.encode, self.decode = own.encode, own.decode


WITH_VAE = [n for n in NODES if any(i.get_io_type() == "VAE" for i in nodes()[n].GET_SCHEMA().inputs)]


@pytest.mark.parametrize("node_id", WITH_VAE)
def test_a_vae_that_encodes_and_decodes_is_enough(node_id, sockets):
    """Or what it lacks is named."""
    given, vae, image = good(node_id, sockets), Stranger(sockets("VAE")), sockets("IMAGE")
    wrap = (lambda v: [v]) if nodes()[node_id].GET_SCHEMA().is_input_list else (lambda v: v)
    given |= {"vae": wrap(vae)} | {k: image for k in ("image", "guide", "original") if k in given}
    given |= {"folder": "stranger"} if node_id == "InstructPix2PixPairs" else {}
    if node_id == "ImageGuidanceChannel":
        refused("This VAE .Stranger. has no patcher, first_stage_model, .* Load VAE", run, node_id, **given)
    else:
        run(node_id, **given)


def test_one_pixel_is_a_reference_of_one_color(sockets):
    """Its spread is none, and not NaN."""
    given = good("ImageGuidanceChannel", sockets) | {"image": torch.rand(1, 1, 1, 3), "kind": "color"}
    channel = run("ImageGuidanceChannel", **given)[0][-1]
    latent = sockets("LATENT")["samples"]
    scale = noise_scale(sockets("MODEL"))
    with torch.inference_mode():
        assert all_finite(channel.gradient(latent, 1.0, latent, scale))


def test_none_at_an_optional_socket_is_not_connected(sockets):
    given = good("GuidanceChannel", sockets)
    assert len(run("GuidanceChannel", **given | {"previous": None})[0]) == 1
