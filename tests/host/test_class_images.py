"""Which class images may be taken from disk: only those of the same models, prompts and patches."""

import comfy.model_management
import comfy.sd
import folder_paths
import pytest
import torch
from comfy.weight_adapter.lora import LoRAAdapter
from comfy_extras.nodes_model_advanced import RescaleCFG
from controlled_diffusion.nodes.host.training import class_images
from controlled_diffusion.nodes.host.training.patch_key import UnknownPatch, content
from controlled_diffusion.training.settings import Validation
from safetensors.torch import save_file

from host import sampling, tiny

pytestmark = pytest.mark.usefixtures("inference_mode")
PROMPT = "a embedding:mood"


@pytest.fixture
def clip(tmp_path):
    return tiny.clip(torch.float32, embedding_directory=[str(tmp_path)])


@pytest.fixture
def output(tmp_path):
    before = folder_paths.get_output_directory()
    folder_paths.set_output_directory(str(tmp_path / "output"))
    yield tmp_path / "output"
    folder_paths.set_output_directory(before)


def order(count=1):
    return class_images.Order((PROMPT,), count, 1, Validation(PROMPT, steps=1))


def place(model, clip, vae):
    return class_images.folder(model, clip, vae, order(), (4, 8, 8))


def bypassing(model):
    return comfy.sd.load_bypass_lora_for_models(model, None, tiny.lora(model), 1.0, 0.0)[0]


def wrapped(model):
    made = model.clone()
    made.add_wrapper_with_key("apply_model", "other pack", lambda executor, *given, **more: executor(*given, **more))
    return made


def replaced(model):
    made = model.clone()
    made.add_object_patch("diffusion_model", model.model.diffusion_model)
    return made


def rescaled(model):
    return RescaleCFG().patch(model, 0.5)[0]


@pytest.mark.parametrize("patched, name", [(rescaled, "sampler_cfg_function"), (wrapped, "other pack"), (replaced, "diffusion_model")])
def test_unknown_patches_are_named_and_nothing_is_kept(patched, name, eps_model, clip, vae, output, caplog):
    with pytest.raises(UnknownPatch, match=f"'{name}' .* cannot be compared"):
        place(patched(eps_model), clip, vae)
    with caplog.at_level("WARNING"):
        images = class_images.made(patched(eps_model), clip, vae, order(2), (4, 8, 8))
    assert len(images) == 2 and not output.exists() and f"sampled again in each run: '{name}'" in caplog.text
    assert all(torch.equal(a, b) for a, b in zip(images, class_images.made(patched(eps_model), clip, vae, order(2), (4, 8, 8))))


def test_bypass_loras_are_unknown(eps_model, clip, vae):
    with pytest.raises(UnknownPatch, match="bypass_lora"):
        place(bypassing(eps_model), clip, vae)


def test_a_model_is_known_again_after_sampling_and_unloading(eps_model, clip, vae, output):
    patched = comfy.sd.load_lora_for_models(eps_model, None, tiny.lora(eps_model), 1.0, 0.0)[0]
    before = place(patched, clip, vae)
    sampling.ksampler(patched, tiny.conditioning(1), tiny.conditioning(0), 3.0)
    assert place(patched, clip, vae) == before != place(eps_model, clip, vae)
    comfy.model_management.unload_all_models()
    assert place(patched, clip, vae) == before


def test_an_embedding_in_the_prompt_counts(eps_model, clip, vae, tmp_path):
    found = [place(eps_model, clip, vae)]
    for value in (0.3, 0.4):
        save_file({"clip_l": torch.full((1, tiny.CONTEXT), value)}, tmp_path / "mood.safetensors")
        found.append(place(eps_model, clip, vae))
    assert len(set(found)) == 3 and place(eps_model, clip, vae) == found[2]


def test_hooks_on_the_conditionings_count(eps_model, clip, vae):
    hooked = clip.clone()
    hooked.apply_hooks_to_conds = True
    assert place(eps_model, clip, vae) != place(eps_model, hooked, vae)


def test_patches_are_compared_by_their_values():
    def lora(value):
        return [(1.0, LoRAAdapter(set(), (torch.full((4, 2), value), torch.ones(2, 4), 2.0, None, None, None)), 1.0, None, None)]

    one, again, other = (content({"w": lora(v)}, "") for v in (1.0, 1.0, 2.0))
    assert one == again != other
    with pytest.raises(UnknownPatch, match=r"'w' \(function\)"):
        content({"w": [(1.0, ("diff", (torch.ones(1),)), 1.0, None, lambda weight: weight)]}, "")
