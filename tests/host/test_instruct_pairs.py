"""InstructPix2Pix pairs: drawn with shared self-attention, chosen, and kept in a folder that is continued."""

import json
import os
from dataclasses import replace

import comfy.clip_vision
import comfy.model_management
import comfy_extras.nodes_dataset as host_dataset
import folder_paths
import pytest
import torch
from comfy_extras.nodes_model_advanced import RescaleCFG
from controlled_diffusion.nodes.demo import DemoCheckerLoader
from controlled_diffusion.nodes.host import images as image_files
from controlled_diffusion.nodes.host.training import instruct_pairs as host
from controlled_diffusion.nodes.host.training.pair_filter import pair_filter
from controlled_diffusion.nodes.host.training.pair_folder import PairFolder
from controlled_diffusion.nodes.instruct_pairs import InstructPix2PixPairs, PairFilter, PairOptions
from controlled_diffusion.training.instruct_pix2pix import Draw, PromptPair, likeness
from PIL import Image

from compare import assert_close
from demo import world
from host import sampling, tiny, tiny_text
from host.training import full_disk, watching
from node_schema import defaults

pytestmark = pytest.mark.usefixtures("inference_mode", "output")
PAIR = PromptPair("a red cat", "a blue cat sitting there", "make it blue")
TEXT = "a red cat => a blue cat sitting there | make it blue\na dog => a cow | turn it into a cow"


@pytest.fixture
def output(tmp_path):
    before = folder_paths.get_output_directory()
    folder_paths.set_output_directory(str(tmp_path))
    yield tmp_path / "controlled_diffusion" / "pairs"
    folder_paths.set_output_directory(before)


@pytest.fixture
def vision(tmp_path):
    """A CLIP_VISION whose embeddings are as wide as the tiny CLIP's."""
    config = dict(hidden_size=32, image_size=32, intermediate_size=64, num_attention_heads=2, num_hidden_layers=2, patch_size=16)
    config |= dict(projection_dim=tiny.CONTEXT, num_channels=3, hidden_act="quick_gelu", layer_norm_eps=1e-5)
    (tmp_path / "vision.json").write_text(json.dumps(config | {"model_type": "clip_vision_model"}))
    tower = comfy.clip_vision.ClipVisionModel(str(tmp_path / "vision.json"))
    tiny.fill(tower.model, 5)
    return tower


def artist(model, clip, vae, **more):
    return host.PairSampler(model, clip, vae, "bad", host.Recipe(2, 2, 5, (64, 64), steps=3, **more))


def pairs(model, clip, vae, **knobs):
    """(before, after, instructions, folder) of the node; every pair is good enough where no filter is given."""
    usual = defaults(InstructPix2PixPairs) | dict(prompt_pairs=TEXT, folder="things", width=64, height=64, candidates=2, keep=1, seed=3)
    options = PairOptions.execute(**defaults(PairOptions) | dict(steps=2, min_cfg=2.0, max_cfg=3.0)).args[0]
    return InstructPix2PixPairs.execute(model, clip, vae, **usual | dict(options=options, filter=changed()) | knobs).args


def changed(least=0.0, most=1.0):
    return PairFilter.execute({"by": "changed area", "min_changed": least, "max_changed": most}).args[0]


def by_clip(vision, clip, images=-1.0, direction=-1.0, captions=-1.0):
    given = {"clip_vision": vision, "clip_text": clip, "min_images": images, "min_direction": direction, "min_captions": captions}
    return PairFilter.execute({"by": "CLIP", **given}).args[0]


def files(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def drawn_alone(model, clip, vae, text, how, sampler):
    """What KSampler makes of one prompt with the noise of a candidate."""
    positive, negative = (clip.encode_from_tokens_scheduled(clip.tokenize(t)) for t in (text, "bad"))
    empty = sampling.latent()
    noise = host.comfy.sample.prepare_noise(empty, how.seed)
    settings = (3, how.cfg, sampler, "normal", positive, negative, empty)
    return vae.decode(host.comfy.sample.sample(model, noise, *settings, disable_pbar=True, seed=how.seed))


@pytest.mark.parametrize("sampler", ["euler", "euler_ancestral"])
def test_without_sharing_both_images_are_their_prompts_own(sampler, eps_model, clip, vae):
    made = artist(eps_model, clip, vae, sampler_name=sampler).draw(PAIR, how := Draw(4, 0.0, 3.0))
    for image, text in zip(made, (PAIR.before, PAIR.after)):
        assert_close(image[None], drawn_alone(eps_model, clip, vae, text, how, sampler), atol=1e-4, rtol=1e-4)


def test_equal_prompts_give_equal_images(any_model, clip, vae):
    drawer = artist(any_model, clip, vae)
    same = drawer.draw(PromptPair("a cat", "a cat", "-"), Draw(4, 0.5, 3.0))
    assert torch.equal(*same)
    before = drawer.draw(PAIR, Draw(4, 0.0, 3.0))[0]
    after = [drawer.draw(PAIR, Draw(4, share, 3.0)) for share in (0.0, 0.4, 1.0)]
    assert all(torch.equal(before, made[0]) for made in after)
    assert not torch.equal(after[0][1], after[1][1]) and not torch.equal(after[1][1], after[2][1])


def test_self_attention_is_shared_with_the_prompt_and_without(eps_model, clip, vae):
    """All shared: in every self-attention of both halves the image after looks where the image before does."""
    shared = []

    def spy(attention, q, k, *others, **more):
        if q.shape[1] == k.shape[1]:
            shared.append(len(q) == 4 and all(torch.equal(t[i], t[i + 1]) for t in (q, k) for i in (0, 2)))
        return attention(q, k, *others, **more)

    model = eps_model.clone()
    model.model_options["transformer_options"]["optimized_attention_override"] = spy
    for share, all_of_it in ((1.0, True), (0.0, False)):
        shared.clear()
        artist(model, clip, vae).draw(PAIR, Draw(4, share, 3.0))
        assert shared and all(shared) == all_of_it


def test_prompts_are_encoded_once_however_often_they_are_drawn(eps_model, clip, vae, output, monkeypatch):
    said, encode = [], clip.encode_from_tokens_scheduled
    monkeypatch.setattr(clip, "encode_from_tokens_scheduled", lambda *given, **more: said.append(1) or encode(*given, **more))
    pairs(eps_model, clip, vae, candidates=3)
    assert len(said) == 5


def test_models_without_these_layers_are_refused(vae):
    with pytest.raises(ValueError, match="Flux"):
        pairs(tiny_text.denoiser("flux"), tiny_text.clip("flux"), vae)


def test_pairs_are_drawn_filtered_and_kept_in_a_folder(eps_model, clip, vae, output):
    before, after, instructions, folder = pairs(eps_model, clip, vae)
    assert before.shape == after.shape == (2, 64, 64, 3) and instructions == ["make it blue", "turn it into a cow"] and folder == "things"
    kept = output / "things"
    assert set(files(kept)) == {
        *(f"{side}/0000{i}.png" for side in ("before", "after") for i in (1, 2)),
        *("after/00001.txt", "after/00002.txt", "metadata.jsonl", "progress.jsonl"),
    }
    assert (kept / "after" / "00002.txt").read_text() == "turn it into a cow"
    first = json.loads((kept / "metadata.jsonl").read_text().splitlines()[0])
    assert first["original_image"] == "before/00001.png" and first["edit_prompt"] == "make it blue" and first["edited_prompt"] == PAIR.after
    assert 0.1 <= first["share"] <= 0.9 and 2 <= first["cfg"] <= 3 and 0 <= first["changed"] <= 1
    with Image.open(kept / "after" / "00001.png") as image:
        assert image.size == (64, 64)
    how = Draw(first["seed"], first["share"], first["cfg"])
    again = host.PairSampler(eps_model, clip, vae, "", host.Recipe(2, 1, 3, (64, 64), steps=2)).draw(PAIR, how)
    assert_close(again[0], before[0], atol=0.003, rtol=0)


def test_it_goes_on_where_it_stopped_and_writes_over_nothing(eps_model, clip, vae, output):
    pairs(eps_model, clip, vae, prompt_pairs=TEXT.splitlines()[0])
    first = files(output / "things")
    *_, folder = pairs(eps_model, clip, vae)
    second = files(output / "things")
    assert folder == "things" and all(second[k].startswith(v) for k, v in first.items()) and "before/00002.png" in second
    pairs(eps_model, clip, vae)
    assert files(output / "things") == second
    assert pairs(eps_model, clip, vae, if_exists="number it")[3] == "things_2"
    assert files(output / "things_2")["before/00002.png"] == second["before/00002.png"]
    with pytest.raises(ValueError, match=r"'things' exists.*'continue' or 'number it'"):
        pairs(eps_model, clip, vae, if_exists="refuse")


def test_prompt_pairs_that_were_drawn_otherwise_are_refused(eps_model, clip, vae, output):
    pairs(eps_model, clip, vae)
    others = dict(seed=4, width=32, height=32, negative="ugly", filter=changed(most=0.9))
    told = r"'things' holds 2 .* otherwise: seed was 3, now 4; size was \[64, 64\], now \[32, 32\]; negative was , now ugly; filter was .*'most': 0.9"
    with pytest.raises(ValueError, match=told):
        pairs(eps_model, clip, vae, **others)
    more = "a tree => a bush | make it small"
    assert len(pairs(eps_model, clip, vae, prompt_pairs=more, **others)[0]) == 1  # what is not done yet may be


def test_a_run_that_broke_off_between_two_writes_is_gone_on_with(eps_model, clip, vae, output, monkeypatch):
    one = dict(prompt_pairs=TEXT.splitlines()[0], candidates=3, keep=2)
    pairs(eps_model, clip, vae, folder="whole", **one)
    with monkeypatch.context() as patched, pytest.raises(OSError, match="no space"):
        patched.setattr(PairFolder, "finish", full_disk)
        pairs(eps_model, clip, vae, **one)
    assert len(pairs(eps_model, clip, vae, **one)[0]) == 2
    assert files(output / "things") == files(output / "whole")


def test_a_run_that_broke_off_leaves_nothing_twice(eps_model, clip, vae, output, monkeypatch):
    one = dict(prompt_pairs=TEXT.splitlines()[0], candidates=2, keep=2)
    with monkeypatch.context() as patched, pytest.raises(OSError, match="no space"):
        patched.setattr(image_files, "write", full_disk)
        pairs(eps_model, clip, vae, **one)
    before, _, instructions, _ = pairs(eps_model, clip, vae, **one)
    there = sorted((output / "things").glob("*/*.png"))
    assert len(before) == len(instructions) == 2 and len(there) == 4
    assert len({p.read_bytes() for p in there}) == len({p.read_bytes() for p in sorted((output / "things" / "before").glob("*"))}) * 2 == 4


def test_diverged_candidates_are_not_kept(eps_model, clip, vae, output):
    def lost(model, pair, how):
        return torch.full((2, 64, 64, 3), torch.nan if how.seed % 2 else 0.5)

    kept = PairFolder("things")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(host.PairSampler, "draw", lost)
        pairs(eps_model, clip, vae, filter=lambda before, after, pair: [1.0] * len(before), candidates=8, keep=8)
    assert 0 < len(kept.read()[0]) < 16 and all(bool(p.isfinite().all()) and p.max() < 0.6 for p in kept.read()[0])


def test_removed_pairs_are_gone_and_numbers_not_reused(output):
    folder = PairFolder("things")
    for number in range(3):
        folder.add(torch.full((2, 8, 8, 3), 0.2 * number), PromptPair("a", "b", f"edit {number}"), {"seed": number})
    for place in ("before/00003.png", "after/00003.png", "after/00003.txt", "after/00001.png"):
        (folder.path / place).unlink()
    folder.add(torch.ones(2, 8, 8, 3), PromptPair("a", "b", "edit 3"), {"seed": 3})
    _, after, instructions = folder.read()
    assert instructions == ["edit 1", "edit 3"] and [float(p.mean()) for p in after] == pytest.approx([0.2, 1.0], abs=0.01)
    assert folder.seeds(PromptPair("a", "b", "edit 0")) == set() and (folder.path / "after" / "00004.txt").read_text() == "edit 3"


def test_pairs_of_another_model_are_not_given_out_as_this_ones(eps_model, clip, vae, output):
    pairs(eps_model, clip, vae)
    other = tiny.unet("eps", seed=9), tiny.clip(torch.float32, seed=9), tiny.vae(9)
    for given in ((other[0], clip, vae), (eps_model, other[1], vae), (eps_model, clip, other[2])):
        with pytest.raises(ValueError, match=r"drawn otherwise: models was \w+, now \w+\. Set these back"):
            pairs(*given)


def test_a_list_is_written_whole_or_not_at_all(output, monkeypatch):
    folder = PairFolder("things")
    for number in range(2):
        folder.add(torch.zeros(2, 8, 8, 3), PAIR, {"seed": number, "note": "zwei\u2028Zeilen"})
    with monkeypatch.context() as patched, pytest.raises(OSError, match="no space"):
        patched.setattr(os, "replace", full_disk)
        folder.add(torch.zeros(2, 8, 8, 3), PAIR, {"seed": 2})
    assert folder.seeds(PAIR) == {0, 1} and len(folder.read()[0]) == 2


@pytest.mark.parametrize("kind", ["model", "checker"])
def test_settings_that_cannot_be_compared_are_not_continued(kind, eps_model, clip, vae, output):
    """RescaleCFG is a function on the model; a checker may say what it checks."""
    model, knobs, name = eps_model, dict(filter=lambda before, after, pair: [1.0] * len(before)), "the checker"
    if kind == "model":
        model, knobs, name = RescaleCFG().patch(eps_model, 0.5)[0], {}, "'sampler_cfg_function'"
    assert len(pairs(model, clip, vae, **knobs)[0]) == 2
    for given in ((model, clip, vae), (eps_model, clip, vae)):
        with pytest.raises(ValueError, match=rf"holds 2 of these prompt pairs, but {name}.* cannot be compared\. Name another folder"):
            pairs(*given, **knobs if given[0] is model else {})
    assert pairs(model, clip, vae, if_exists="number it", **knobs)[3] == "things_2"


def test_no_half_image_is_left(output, monkeypatch):
    save = Image.Image.save

    def breaking(image, path, *given):
        save(image, path, *given)
        if path.parent.name == "after":
            raise OSError("no space")

    monkeypatch.setattr(Image.Image, "save", breaking)
    with pytest.raises(OSError, match="no space"):
        PairFolder("things").add(torch.zeros(2, 8, 8, 3), PAIR, {})
    assert not list(output.rglob("*.png")) and PairFolder("things").read()[2] == []


def test_a_stop_keeps_the_prompt_pairs_that_are_done(eps_model, clip, vae, output):
    def stop(value, total, preview):
        if value == 3:
            comfy.model_management.interrupt_current_processing(True)

    with watching(stop), pytest.raises(comfy.model_management.InterruptProcessingException):  # or ComfyUI would keep this as the result
        pairs(eps_model, clip, vae)
    first = files(output / "things")
    assert "before/00001.png" in first and "before/00002.png" not in first
    assert len(pairs(eps_model, clip, vae)[0]) == 2
    assert files(output / "things")["before/00001.png"] == first["before/00001.png"]


def test_a_stop_before_anything_is_done_is_passed_on(eps_model, clip, vae, output):
    comfy.model_management.interrupt_current_processing(True)
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        pairs(eps_model, clip, vae)
    assert not output.exists()


def test_where_nothing_passes_the_filter_it_says_so(eps_model, clip, vae, output):
    with pytest.raises(ValueError, match="None of the candidates of 2 prompt pairs passed"):
        pairs(eps_model, clip, vae, filter=changed(0.99))
    assert not list(output.rglob("*.png"))


@pytest.mark.parametrize("name", ["../out", "/tmp/out", "a/../../b", ""])
def test_a_name_never_leaves_the_folder(name, eps_model, clip, vae, output):
    with pytest.raises(ValueError, match="cannot be a file's"):
        pairs(eps_model, clip, vae, folder=name)


def test_a_list_of_images_that_names_others_is_refused(output):
    folder = PairFolder("things")
    folder.add(torch.zeros(2, 8, 8, 3), PAIR, {})
    text = (folder.path / "metadata.jsonl").read_text()
    (folder.path / "metadata.jsonl").write_text(text.replace("before/00001.png", "../../secret.png"))
    with pytest.raises(ValueError, match="is outside of it, by its name"):
        folder.read()


class Eyes:
    """What a CLIP_VISION is to the filter: its embedding is the mean color, each channel a direction."""

    def __init__(self, *directions):
        self.directions = torch.stack(directions) if directions else torch.eye(3)

    def encode_image(self, images):
        return {"image_embeds": images.mean((1, 2)) @ self.directions}


def said(clip, text):
    """A text in CLIP's space, with the projection by hand."""
    pooled = clip.encode_from_tokens(clip.tokenize(text), return_pooled=True)[1]
    return pooled[0] @ clip.cond_stage_model.clip_l.transformer.text_projection.weight.T


def test_clip_chooses_what_changes_as_the_captions_do(clip):
    def plain(r, g, b):
        return torch.tensor([r, g, b]).expand(4, 4, 3)

    colors = (1.0, 0.0, 0.0), (0.8, 0.2, 0.4), (0.7, 0.2, 0.7)
    candidates = torch.stack([torch.stack([plain(1.0, 0.2, 0.0), plain(*after)]) for after in colors])
    eyes = Eyes(said(clip, "red"), torch.zeros(tiny.CONTEXT), said(clip, "blue"))
    chooser = by_clip(eyes, clip, 0.5, 0.2, 0.0)
    best = chooser.best(candidates, PromptPair("red", "blue", "-"), 4)
    assert [i for i, _ in best] == [2, 1] and best[0][1]["clip_direction"] > best[1][1]["clip_direction"] > 0.8
    assert chooser.best(candidates, PromptPair("blue", "red", "-"), 4) == []


def test_captions_are_compared_with_images_in_clips_own_space(vision, clip):
    """ComfyUI's towers, and the projection of the text by hand, which the host leaves out for CLIP-L."""
    images = torch.rand(2, 2, 64, 64, 3, generator=torch.Generator().manual_seed(1))
    chooser = by_clip(vision, clip)
    found = dict(chooser.best(images, PAIR, 2))
    seen = [vision.encode_image(p)["image_embeds"] for p in images.unbind(1)]
    expected = likeness(*seen, said(clip, PAIR.before), said(clip, PAIR.after))
    for kind, values in vars(expected).items():
        assert_close(torch.tensor([found[i][f"clip_{kind}"] for i in range(2)]), values, atol=1e-5, rtol=1e-4)
    assert not clip.cond_stage_model.clip_l.return_projected_pooled  # the CLIP is left as it was


@pytest.mark.parametrize("weight", [torch.zeros(tiny.CONTEXT, tiny.CONTEXT), torch.eye(tiny.CONTEXT), torch.full((tiny.CONTEXT,) * 2, torch.nan)])  # fmt: skip
def test_a_text_encoder_without_the_projection_is_refused(weight, vision):
    clip = tiny.clip(torch.float32)
    clip.cond_stage_model.clip_l.transformer.text_projection.weight.copy_(weight)
    chooser = by_clip(vision, clip)
    with pytest.raises(ValueError, match=r"lacks the projection .* SD1\.5 checkpoint"):
        chooser.best(torch.rand(1, 2, 32, 32, 3), PAIR, 1)


def test_the_towers_have_to_be_a_pair(clip):
    with pytest.raises(ValueError, match=f"width {tiny.CONTEXT}, clip_vision of width 3"):
        by_clip(Eyes(), clip).best(torch.rand(1, 2, 8, 8, 3), PAIR, 1)


def test_clip_chooses_on_the_node(eps_model, clip, vae, vision, output):
    every = dict(candidates=3, keep=2)
    assert len(pairs(eps_model, clip, vae, filter=by_clip(vision, clip), **every)[0]) == 4
    facts = [json.loads(line) for line in (output / "things" / "metadata.jsonl").read_text().splitlines()]
    assert all({"clip_images", "clip_direction", "clip_captions"} <= set(f) for f in facts)
    assert facts[0]["clip_direction"] >= facts[1]["clip_direction"]
    with pytest.raises(ValueError, match="None of the candidates"):
        pairs(eps_model, clip, vae, folder="none", filter=by_clip(vision, clip, captions=1.0), **every)


def test_a_checker_chooses_instead_of_a_filter(eps_model, clip, vae, output):
    asked = []

    def bright(before, after, pair):
        asked.append((before.shape, after.shape, pair))
        return after.mean((1, 2, 3)) - before.mean((1, 2, 3)).min()

    pairs(eps_model, clip, vae, candidates=4, keep=4, filter=bright)
    assert [(a, b) for a, b, _ in asked] == [((4, 64, 64, 3), (4, 64, 64, 3))] * 2 and asked[0][2] == PAIR
    facts = [json.loads(line) for line in (output / "things" / "metadata.jsonl").read_text().splitlines()]
    own = [f["checker"] for f in facts if f["edit_prompt"] == PAIR.instruction]
    assert own == sorted(own, reverse=True) and all(score > 0 for score in own)
    with pytest.raises(ValueError, match="None of the candidates of 2 prompt pairs passed"):
        pairs(eps_model, clip, vae, folder="none", filter=lambda before, after, pair: [0.0] * len(before))
    with pytest.raises(ValueError, match="gave 1 scores for 2 candidates"):
        pairs(eps_model, clip, vae, folder="short", filter=lambda before, after, pair: [1.0])


def test_the_demo_checker_keeps_pairs_that_are_what_they_say():
    """The least changed first; a wrong shape, a missing texture, another ground and a thing too many are refused."""

    def drawn(*things, ground="white"):
        return torch.from_numpy(world.render(world.Scene(ground, things, "center"))).float() / 255

    red, blue = (world.Thing("circle", color, radius=26) for color in ("red", "blue"))
    striped, square = replace(blue, texture="striped"), replace(blue, shape="square")
    other = replace(red, shape="star", x=24, y=24, radius=18)
    shown = [drawn(p) for p in (blue, striped, square, red)]
    after = torch.stack([*shown, drawn(blue, ground="pink"), drawn(blue, other), drawn(replace(blue, x=80))])
    before = drawn(red).expand_as(after)
    checker = DemoCheckerLoader.execute("shapes").args[0]
    assert pair_filter(checker).key  # so that a folder is continued
    scores = checker(before, after, PromptPair("a red circle on a white background", "a blue circle on a white background", "make it blue"))
    assert [s > 0 for s in scores] == [True, False, False, False, False, False, True] and scores[0] > scores[6]
    told = PromptPair("a red circle", "a striped blue circle on a white background", "make it striped and blue")
    assert [s > 0 for s in checker(before, after, told)] == [False, True, False, False, False, False, False]
    assert checker(before, after, PromptPair("a cat", "a dog", "-")) == [0.0] * 7


def test_comfyuis_dataset_nodes_read_the_folder(eps_model, clip, vae, output, monkeypatch):
    pairs(eps_model, clip, vae)
    monkeypatch.setattr(folder_paths, "get_input_directory", lambda: str(output / "things"))
    after, captions = host_dataset.LoadImageTextDataSetFromFolderNode.execute("after").args
    (before,) = host_dataset.LoadImageDataSetFromFolderNode.execute("before").args
    assert captions == ["make it blue", "turn it into a cow"]
    kept = PairFolder("things").read()
    for found, side in ((before, 0), (after, 1)):
        assert all(torch.equal(a, b) for a, b in zip(found, kept[side], strict=True))
