"""Save Inversion and Load Inversion in the real ComfyUI: invert once, edit many times."""

import asyncio
import os
import shutil
from dataclasses import fields, replace
from pathlib import Path

import execution
import folder_paths
import nodes
import pytest
import torch
from comfy.controlnet import ControlBase
from comfy.hooks import HookGroup
from comfy_execution.graph_utils import ExecutionBlocker
from controlled_diffusion.inversion.belm import OBELM
from controlled_diffusion.inversion.ddim import DDIM
from controlled_diffusion.inversion.edict import EDICT
from controlled_diffusion.inversion.edit_friendly import EditFriendly
from controlled_diffusion.inversion.method import Method, Trajectory, method_named
from controlled_diffusion.inversion.quality import psnr
from controlled_diffusion.nodes.demo import DemoModelLoader
from controlled_diffusion.nodes.host import noise_levels
from controlled_diffusion.nodes.host.inversion import inversion_files
from controlled_diffusion.nodes.host.inversion import invert as inverting
from controlled_diffusion.nodes.host.inversion.invert import Inversion
from controlled_diffusion.nodes.host.latents import Padding
from controlled_diffusion.nodes.inversion import InversionSampler
from controlled_diffusion.nodes.inversion_files import LoadInversion, SaveInversion

from compare import assert_close
from demo import make_inversion, worlds
from demo.illustrated_world import ILLUSTRATED
from host import tiny
from host.inversions import EMPTY, SOURCE, TARGET, image
from host.inversions import sample as reconstruct
from node_schema import defaults

pytestmark = pytest.mark.usefixtures("inference_mode")


@pytest.fixture(autouse=True)
def output(folders):
    """The folder of inversions in ComfyUI's output folder, empty for each test."""
    return folders / "output" / "inversions"


@pytest.fixture(scope="module")
def model():
    return tiny.unet("eps", output_scale=0.05)


def inverted(model, source=SOURCE, batch: int = 1):
    return inverting.invert(model, None, image(batch), source, DDIM(), noise_levels.levels(model, "normal", 5, 0.0))


def save(inversion, prefix: str = "inversion") -> str:
    return SaveInversion.execute(inversion, prefix).args[1]


def sample(model, inversion, **inputs):
    return reconstruct(model, inversion, 3.0, negative=EMPTY, **inputs)


def same(a, b) -> bool:
    """Whether two values are the same, tensors bit for bit."""
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, (list, tuple)):
        return type(a) is type(b) and len(a) == len(b) and all(same(x, y) for x, y in zip(a, b))
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(v, b[k]) for k, v in a.items())
    if isinstance(a, (Inversion, Trajectory)):
        return all(same(getattr(a, f.name), getattr(b, f.name)) for f in fields(a))
    return a == b


def test_every_bit_of_an_inversion_is_kept(model):
    found = inverted(model, batch=2)
    dressed = {"area": (4, 4, 0, 0), "strength": 0.5, "mask": torch.ones(1, 64, 64), "tags": ["a", True, None]}
    doubled = tuple(tuple(t.double() / 3 for t in (*state, *state)) for state in found.trajectory.states)
    extras = {"maps": torch.randn(5, 2, 4, 8, 8).bfloat16()}
    null = [[e, {"start_percent": i / 5, "end_percent": (i + 1) / 5}] for i, e in enumerate(torch.randn(5, 1, 77, 64))]
    made = dict(trajectory=replace(found.trajectory, states=doubled, extras=extras), source=[[SOURCE[0][0], {**SOURCE[0][1], **dressed}]])
    costs = dict(cfg=7.5, model=replace(found.model, patched=3), evaluations=123, seconds=4.5, text="a cat", padding=Padding((60, 64), (64, 64)))
    whole = replace(found, null=null, **made, **costs)
    assert all(getattr(whole, f.name) != f.default for f in fields(Inversion)), "a field that is at its default shows nothing"
    back = inversion_files.load(save(whole))
    assert same(back, whole) and back.model.patched == 3


def test_sampling_from_a_file_is_as_from_the_value(model):
    found = inverted(model)
    loaded = LoadInversion.execute(model, save(found)).args[0]
    for given in (dict(positive=TARGET), {}):
        assert torch.equal(sample(model, loaded, **given), sample(model, found, **given))


@pytest.mark.parametrize("method", [DDIM(), EditFriendly()], ids=lambda m: m.name)
def test_other_memory_layouts_come_back_bit_for_bit(model, method):
    latent = {"samples": image()["samples"].to(memory_format=torch.channels_last)}
    source = [[SOURCE[0][0].transpose(1, 2).contiguous().transpose(1, 2), SOURCE[0][1]]]
    found = inverting.invert(model, None, latent, source, method, noise_levels.levels(model, "normal", 5, 0.0))
    loaded = inversion_files.load(save(found))
    assert all(a.stride() == b.stride() for one, other in zip(found.trajectory.states, loaded.trajectory.states) for a, b in zip(one, other))
    assert torch.equal(sample(model, loaded), sample(model, found))


@pytest.mark.parametrize("method", [EDICT(), OBELM()], ids=lambda m: m.name)
def test_exact_methods_stay_exact_through_a_file_in_float64(model, method):
    latent = image()
    sigmas = noise_levels.levels(model, "normal", 10, 0.0)
    found = inverting.invert(model, None, latent, SOURCE, method, sigmas, precision=torch.float64)
    loaded = inversion_files.load(save(found))
    assert {t.dtype for state in loaded.trajectory.states for t in state} == {torch.float64}
    back = reconstruct(model, loaded)
    assert torch.equal(back, reconstruct(model, found))
    assert_close(back, latent["samples"], atol=1e-5, rtol=1e-6)


def test_the_loader_gives_what_the_inverter_gave_and_the_image(model):
    latent = image()
    given = inverting.outputs(model, inverted(model))
    inversion, noisy, noise, sigmas, source, negative, loaded = LoadInversion.execute(model, save(given[0])).args
    assert same(inversion, given[0]) and same(noisy, given[1]) and same(sigmas, given[3]) and same(source, SOURCE)
    assert torch.equal(noise.generate_noise(latent), given[2].generate_noise(latent))
    assert isinstance(negative, ExecutionBlocker) and "brings no negative" in negative.message
    assert_close(loaded["samples"], latent["samples"])
    name = save(replace(given[0], null=EMPTY, cfg=7.5))
    assert same(LoadInversion.execute(model, name).args[5], EMPTY)


@pytest.mark.parametrize("method", sorted(Method.__subclasses__(), key=lambda m: m.name), ids=lambda m: m.name)
def test_every_method_of_the_pack_comes_back_with_its_settings(model, method):
    held = replace(inverted(model), method=method())
    assert inversion_files.load(save(held)).method == held.method == method_named(method.name)()


def test_a_counter_keeps_older_files(model, output):
    """It goes on behind the last of them."""
    found = inverted(model)
    first, second = SaveInversion.execute(found, "cats/black"), SaveInversion.execute(replace(found, cfg=2.0), "cats/black")
    names = [f"black_0000{i}_.safetensors" for i in (1, 2)]
    assert first.args[0] is found and first.ui.as_dict() == {"text": (first.args[1],)}
    assert [made.args[1] for made in (first, second)] == [f"inversions/cats/{name} [output]" for name in names]
    assert sorted(p.name for p in (output / "cats").iterdir()) == names
    assert [inversion_files.load(made.args[1]).cfg for made in (first, second)] == [1.0, 2.0] and SaveInversion.GET_SCHEMA().is_output_node
    older = [output / f"x_0000{i}_.safetensors" for i in (1, 3)]
    for path in older:
        path.write_text("mine")
    assert save(found, "x") == "inversions/x_00004_.safetensors [output]"
    assert [path.read_text() for path in older] == ["mine", "mine"]


@pytest.mark.parametrize("prefix", ["../x", "a/../../x", "/tmp/x", "", "  ", "folder/", "."])
def test_a_name_outside_the_folder_is_refused_when_saving(model, prefix, output):
    with pytest.raises(ValueError, match="which is no name inside output/inversions"):
        save(inverted(model), prefix)
    assert not output.parent.exists() or not [p for p in output.parent.rglob("*") if p.is_file()]


OUTSIDE = "../x.safetensors", "../x.safetensors [output]", "inversions/../../x.safetensors [output]", "/etc/passwd", "nowhere", ""


@pytest.mark.parametrize("name", OUTSIDE)
def test_only_listed_files_are_loaded(model, name, trained):
    shutil.copy(inversion_files.INVERSIONS.find(save(inverted(model))), trained / "x.safetensors")
    with pytest.raises(ValueError, match="There is no inversion '"):
        inversion_files.load(name)
    assert "There is no inversion '" in LoadInversion.validate_inputs(name)


def test_a_link_out_of_the_output_folder_is_not_followed(model, output, tmp_path):
    shutil.move(inversion_files.INVERSIONS.find(save(inverted(model))), tmp_path / "x.safetensors")
    os.symlink(tmp_path / "x.safetensors", output / "link.safetensors")
    assert "inversions/link.safetensors [output]" not in inversion_files.INVERSIONS.names()


def test_files_of_the_models_folder_are_listed_too(model):
    folder = Path(folder_paths.models_dir) / "inversions" / "mine"
    folder.mkdir(parents=True)
    shutil.move(inversion_files.INVERSIONS.find(save(inverted(model))), folder / "a.safetensors")
    assert "mine/a.safetensors" in inversion_files.INVERSIONS.names()
    assert LoadInversion.execute(model, "mine/a.safetensors").args[0].method == DDIM()


def checked(monkeypatch, name: str):
    """What ComfyUI says to a prompt with Load Inversion before it runs: (is it valid, errors of the node)."""
    for node in (LoadInversion, DemoModelLoader, InversionSampler, nodes.SaveLatent):
        monkeypatch.setitem(nodes.NODE_CLASS_MAPPINGS, node.__name__, node)
    replayed = defaults(InversionSampler) | {"model": ["1", 0], "inversion": ["2", 0], "cfg": 1.0, "branches": "edit"}
    prompt = {
        "1": {"class_type": "DemoModelLoader", "inputs": {"world": "shapes"}},
        "2": {"class_type": "LoadInversion", "inputs": {"model": ["1", 0], "name": name}},
        "3": {"class_type": "InversionSampler", "inputs": replayed},
        "4": {"class_type": "SaveLatent", "inputs": {"samples": ["3", 0], "filename_prefix": "x"}},
    }
    valid, _, _, errors = asyncio.run(execution.validate_prompt("a", prompt, None))
    return valid, errors


def test_comfyui_accepts_new_files_and_names_them_in_errors(model, monkeypatch):
    name = save(inverted(model))
    assert checked(monkeypatch, name) == (True, {})
    valid, errors = checked(monkeypatch, "inversions/../secret.safetensors [output]")
    message = "There is no inversion 'inversions/../secret.safetensors [output]'. Found in output/inversions and models/inversions: "
    assert not valid and f"{message}{name}" in str(errors)


def test_new_and_replaced_files_are_noticed(model):
    def listed():
        return next(i for i in LoadInversion.INPUT_TYPES()["required"].values() if "options" in i[1])[1]["options"]

    assert not [n for n in listed() if n.endswith("[output]")]
    name = save(inverted(model))
    assert name in listed() and LoadInversion.validate_inputs(name) is LoadInversion.validate_inputs(None) is True
    assert LoadInversion.fingerprint_inputs(None) != LoadInversion.fingerprint_inputs(None), "a linked name is not cached"
    before = LoadInversion.fingerprint_inputs(name)
    assert before == LoadInversion.fingerprint_inputs(name)
    other = inversion_files.INVERSIONS.find(save(replace(inverted(model), cfg=2.0), "other"))
    os.replace(other, inversion_files.INVERSIONS.find(name))
    assert LoadInversion.fingerprint_inputs(name) != before
    assert inversion_files.load(name).cfg == 2.0


def test_another_model_is_refused_when_loading_and_when_sampling(model):
    name, other = save(inverted(model)), tiny.unet("eps", output_scale=0.05, seed=5)
    for load in (lambda: LoadInversion.execute(other, name), lambda: sample(other, inversion_files.load(name))):
        with pytest.raises(ValueError, match=r"another BaseModel .* the weights of this model are not the same"):
            load()
    with pytest.raises(ValueError, match=r"made with BaseModel .*eps\), but the model is BaseModel .*flow\)"):
        LoadInversion.execute(tiny.unet("flow"), name)
    half = tiny.unet("eps", output_scale=0.05)  # in another precision it is taken
    half.model.diffusion_model.half()
    assert same(LoadInversion.execute(half, name).args[0].trajectory, inversion_files.load(name).trajectory)


@pytest.mark.parametrize("what, made", [("control", ControlBase), ("hooks", HookGroup)])
def test_a_conditioning_with_objects_is_refused_by_name(model, output, what, made):
    message = rf"'source conditioning\.0\.1\.{what}' is a {made.__name__}, which a file cannot keep.* Invert without it, or use"
    with pytest.raises(ValueError, match=message):
        save(replace(inverted(model), source=[[SOURCE[0][0], {what: made()}]]))
    assert not list(output.rglob("*.safetensors"))


@pytest.mark.parametrize(
    "change, message",
    [
        ({"settings": {"warp": 9}}, r"new\.safetensors.* was written by another version of the pack .*warp.* Update"),
        ({"method": "warp"}, "'warp' is no inversion method of this version"),
    ],
    ids=["settings", "method"],
)
def test_files_of_another_version_are_refused(model, output, change, message):
    held = inversion_files.files.load(inversion_files.INVERSIONS.find(save(inverted(model))))
    inversion_files.files.save(held | change, output / "new.safetensors")
    with pytest.raises(ValueError, match=message):
        inversion_files.load("inversions/new.safetensors [output]")


def test_the_packs_own_inversion_fits_the_demo_model():
    """If this fails after the demo model was trained anew: `python . run tests/demo/make_inversion.py`."""
    studio, (drawn, caption) = worlds.studio(ILLUSTRATED), make_inversion.scene()
    inversion, *_, source, _, latent = LoadInversion.execute(studio.model, ILLUSTRATED.files.inversion.name).args
    assert len(source) == 1  # its features were made on another processor
    assert_close(source[0][0], studio.prompt(caption)[0][0], atol=1e-3, rtol=1e-3)
    given = studio.vae.encode(torch.from_numpy(drawn)[None].float() / 255)
    assert_close(latent["samples"], given, atol=1e-3, rtol=1e-3)
    back = reconstruct(studio.model, inversion)
    assert float(psnr(studio.vae.decode(back), studio.vae.decode(latent["samples"]))) > 25
