"""Word weights inside the real ComfyUI, on tiny random models."""

import pytest
import torch
from controlled_diffusion.nodes.host.prompts import encoded
from controlled_diffusion.nodes.word_weights import WordWeights

from compare import assert_close
from host import editing, tiny, tiny_dits
from host.editing import differ, sample
from host.sampling import families

pytestmark = pytest.mark.usefixtures("inference_mode")
TEXT = "a red circle"
REWEIGHT = dict(operation="reweight only", cross_end=1.0, self_end=0.0)
FAMILIES = tiny_dits.there({name: tiny_dits.DITS[name] for name in ("flux", "sd3", "qwen", "zimage", "wan", "hidream")})
model = families(lambda family: tiny.unet(family, output_scale=0.2))


def weighed(model, clip, text=TEXT, word_weights="", start=0.0, end=1.0, layers="all"):
    return WordWeights.execute(model, clip, text, word_weights, start, end, layers).args


def drawn(model, positive, clip, cfg=1.0, negative="", **more):
    empty = tiny_dits.empty(clip.name) if isinstance(clip, tiny_dits.Clip) else torch.zeros(1, 4, 8, 8)
    negative = encoded(clip, negative) if isinstance(negative, str) else negative
    return sample(model, positive, negative, {"samples": empty}, cfg=cfg, **more)


def test_no_weight_changes_nothing(model, clip):
    same, positive, told = weighed(model, clip, "a (red:1) circle", "circle: 1")
    assert same is model and told.startswith("No word has a weight")
    assert torch.equal(positive[0][0], encoded(clip, TEXT)[0][0]) and positive[0][1].keys() == encoded(clip, TEXT)[0][1].keys()


def test_a_weight_in_the_prompt_is_one_of_the_list(clip):
    """Brackets that are text stay; the encoder gets no weights, which would count twice."""
    model = tiny.unet("eps")
    patched, positive, told = weighed(model, clip, "a (red:1.4) circle \\(big\\), ((fine))", "circle: 0.5, red: 2")
    assert torch.equal(positive[0][0], encoded(clip, "a red circle \\(big\\), fine")[0][0])
    weights = editing.control_of(patched).weights
    assert list(weights.values()) == pytest.approx([2.8, 0.5, 1.1**2]) and "x 2.8 red" in told and "x 0.5 circle" in told


@pytest.mark.parametrize("cfg", [1.0, 4.0])
def test_it_is_prompt_to_prompts_reweighting(model, clip, cfg):
    patched, positive, _ = weighed(model, clip, word_weights="red: 3, circle: -1")
    plain = drawn(model, encoded(clip, TEXT), clip, cfg)
    own = drawn(patched, positive, clip, cfg)
    both = sample(*editing.patch(model, clip, "", TEXT, **REWEIGHT, word_weights="red: 3, circle: -1"), cfg=cfg)
    assert_close(own, both[1:], atol=1e-4, rtol=1e-4)
    assert differ(own, plain) > 1e-3


@pytest.mark.parametrize("name", FAMILIES)
def test_it_acts_on_dits_as_prompt_to_prompt_does(name, text_model):
    model, clip = tiny_dits.dit(name), tiny_dits.Clip(text_model, name)
    own, plain = (drawn(*weighed(model, clip, TEXT, words)[:2], clip, steps=2) for words in ("red: 3", ""))
    both = sample(*editing.patch(model, clip, "", TEXT, **REWEIGHT, word_weights="red: 3"), cfg=1.0, steps=2)
    assert_close(own, both[1:], atol=1e-4, rtol=1e-4)
    assert differ(own, plain) > 1e-6


def test_weights_hold_where_comfyui_repeats_the_text(text_model):
    """Beside a negative of twice as many tokens, in one batch."""
    model, clip = tiny_dits.dit("cogvideo"), tiny_dits.Clip(text_model, "cogvideo")
    features, extras = encoded(clip, TEXT)[0]
    negative = [[features.repeat(1, 2, 1).flip(1), extras]]
    made, plain = (drawn(*weighed(model, clip, TEXT, w)[:2], clip, 1.5, negative, steps=1) for w in ("red: 5", ""))
    assert differ(made, plain) > 1e-6


def test_weights_act_inside_their_window_only(clip):
    model = tiny.unet("eps", output_scale=0.2)
    always, late, never = (drawn(*weighed(model, clip, TEXT, "red: 3", *window)[:2], clip) for window in ((0, 1), (0.5, 1), (0.5, 0.5)))
    assert differ(always, late) > 1e-4 and differ(late, never) > 1e-4
    assert torch.equal(never, drawn(model, encoded(clip, TEXT), clip))


def test_prompt_to_prompt_behind_it_says_what_is_missing(clip):
    """It encodes its own prompts, and has weights of its own for them."""
    both = editing.patch(weighed(tiny.unet("eps"), clip, TEXT, "red: 3")[0], clip, "", TEXT, **REWEIGHT)
    with pytest.raises(ValueError, match="The model comes from Word Weights, but none of the conditionings"):
        sample(*both, cfg=1.0, steps=1)


def test_weights_of_two_prompts_are_kept_apart(clip):
    """Two nodes on one model, such as for two channels: each prompt has its own weights."""
    model = tiny.unet("eps", output_scale=0.2)
    first, one, _ = weighed(model, clip, TEXT, "red: 3")
    second, other, _ = weighed(first, clip, "a blue star", "star: 0")
    together = drawn(second, other, clip, 2.0, one, steps=1)
    alone = drawn(*weighed(model, clip, "a blue star", "star: 0")[:2], clip, steps=1), drawn(first, one, clip, steps=1)
    assert_close(together, 2 * alone[0] - alone[1], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    "text, words, layers, message",
    [
        (TEXT, "hat: 2", "all", "'hat' is in none of the prompts"),
        (TEXT, "red", "all", "'red' names no value"),
        (TEXT, "red: 2", "99", "layers has '99', which names no block of this model"),
        ("a (red:-1) circle", "", "all", "A word has weight -1, but in the joint attention of Flux"),
    ],
)
def test_bad_input_is_refused(text_model, text, words, layers, message):
    with pytest.raises(ValueError, match=message):
        weighed(tiny_dits.dit("flux"), tiny_dits.Clip(text_model, "flux"), text, words, layers=layers)
