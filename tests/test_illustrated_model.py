"""The recipe of the illustrated model: batches are repeatable, and an interrupted training continues exactly."""

import numpy as np
import pytest
import torch
from controlled_diffusion.training.demo.illustrated_captions import Caption, Claim, random_caption

from demo import illustrated_recipe as recipe
from demo import illustrated_studio as studio
from demo import model as demo_model
from demo.muon import MuonLoop

SCENES = 80
SMALL = recipe.Recipe(easy_scenes=60, easy_steps=2, denoiser_steps=4, batch=4)


class TinyUNet(torch.nn.Module):
    """Just enough of a UNet to be trained: a convolution and the mean of the text."""

    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Conv2d(4, 4, 3, padding=1)
        self.text = torch.nn.Linear(8, 4)

    def forward(self, x, timesteps, context):
        return self.conv(x) + self.text(context.mean(1))[..., None, None]


class TinyTower(torch.nn.Module):
    """An embedding with the attributes that `encode_text` reads."""

    def __init__(self):
        super().__init__()
        self.embeddings = torch.nn.Embedding(49408, 8)
        self.encoder = torch.nn.Module()
        self.encoder.layers = torch.nn.ModuleList()
        self.final_layer_norm = torch.nn.LayerNorm(8)


def tokens() -> demo_model.Tokens:
    return demo_model.Tokens(lambda word: [sum(map(ord, word)) % 1000])


def new_parts():
    unet, tower = demo_model.initialize(TinyUNet(), 1), demo_model.initialize(TinyTower(), 2)
    parameters = {f"{prefix}.{k}": p for prefix, part in (("unet", unet), ("text", tower)) for k, p in part.named_parameters()}
    return (
        unet,
        tower,
        MuonLoop(parameters, steps=SMALL.denoiser_steps, learning_rate=1e-2, warmup=1, average=0.5, matrices=["unet.conv.weight"]),
    )


def trained(stops: list[int], path) -> dict[str, torch.Tensor]:
    """Weights after four steps, saved and restored at each of `stops`."""
    latents = torch.randn(SCENES, 4, recipe.LATENT, recipe.LATENT, generator=torch.Generator().manual_seed(0))
    for stop in stops:
        unet, tower, loop = new_parts()
        loop.restore(path)
        for step in recipe.train_denoiser(unet, tower, tokens(), latents, loop, SMALL, "cpu"):
            if step.index == stop:
                break
        loop.save(path)
    return {k: p.detach().clone() for k, p in loop.parameters.items()}


def test_interrupted_training_continues_exactly(tmp_path):
    whole, parts = trained([4], tmp_path / "a.safetensors"), trained([1, 3, 4], tmp_path / "b.safetensors")
    assert all(torch.equal(value, parts[name]) for name, value in whole.items())


def test_first_steps_see_easy_scenes():
    picks = recipe.pick_scenes(SMALL, SCENES)
    for step in range(SMALL.easy_steps):
        assert all(recipe._is_easy(int(i)) for i in picks(step, np.random.default_rng(step)))
    later = np.concatenate([picks(SMALL.easy_steps, np.random.default_rng(i)) for i in range(20)])
    assert not all(recipe._is_easy(int(i)) for i in later)


def test_crops_repeat():
    one, other = recipe.crops(2, 5), recipe.crops(2, 5)
    assert one.shape == (4, recipe.CROP, recipe.CROP, 3) and np.array_equal(one, other)
    assert not np.array_equal(one, recipe.crops(2, 6))


def test_held_out_scenes_differ():
    assert recipe.scene(0) == recipe.scene(0) != recipe.scene(0, recipe.SEEDS["held out"])


def test_captions_are_new_each_step():
    picks = np.arange(8)
    one, other = (recipe.captions(step, picks, tokens()) for step in (0, 1))
    assert one.shape == (8, 77) and not torch.equal(one, other)
    assert torch.equal(one, recipe.captions(0, picks, tokens()))


@pytest.mark.parametrize("side", [24, 64])
def test_autoencoder_loss_is_zero_for_identity(side):
    """But for the noise on the latents and the moments of the images."""
    images = torch.rand(2, 3, side, side)
    loss = recipe.autoencoder_loss(torch.nn.Identity(), torch.nn.Identity(), images, 0, noise=0.0)
    assert loss <= 0.02 * demo_model._moments_loss(images) + 1e-3


def test_vocabulary_holds_every_caption():
    """Ids of words stand for ComfyUI's tokens here: one number a word."""
    numbers: dict[str, int] = {}
    vocabulary = recipe.Vocabulary(lambda word: [numbers.setdefault(word, len(numbers))])
    rng = np.random.default_rng(0)
    for i in range(1500):
        row = vocabulary.tokens(random_caption(recipe.scene(i), rng).text)
        assert row.shape == (77,) and int(row.max()) < len(vocabulary.ids)


def test_growth_ends_with_the_training():
    for planned in recipe.RECIPES.values():
        assert planned.growth[-1][1] == planned.denoiser_steps and list(planned.growth) == sorted(planned.growth)
        assert planned.growth[0][0] >= planned.easy_scenes


def test_things_alone_are_counted_worst_first():
    def one(*names):
        return Caption("", tuple(Claim(name) for name in names))

    captions = [one("cat"), one("dog"), one("cat"), one("cat", "dog"), Caption("")]
    verdicts = [{"thing": True}, {"thing": False}, {"thing": False}, {"both things": True}, {"ground": True}]
    assert studio.by_thing(captions, verdicts) == ["dog 0 of 1", "cat 1 of 2"]
