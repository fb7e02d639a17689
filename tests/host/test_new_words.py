"""New words in prompts: what they start as, what the text encoders make of them, and the files that ComfyUI reads."""

from functools import cache
from types import SimpleNamespace

import comfy.sd1_clip
import pytest
import torch
from controlled_diffusion.nodes.host.training import new_words
from controlled_diffusion.nodes.host.training.embeddings import EMBEDDINGS
from controlled_diffusion.training.textual_inversion import Concept, Vocabulary, Word
from safetensors.torch import load_file, save_file

from compare import assert_close
from host import tiny, tiny_text

pytestmark = pytest.mark.usefixtures("inference_mode", "folders")


@pytest.fixture
def clip(reading_clip):
    return reading_clip


@pytest.fixture(scope="module")
def several(trained):
    """A CLIP of a kind in `tiny_text.KINDS`."""
    return cache(lambda kind: tiny_text.clip(kind, [str(trained / "embeddings")]))


def start_of(clip, words):
    """A word <z> that starts as others."""
    with torch.inference_mode(False), torch.no_grad():
        return new_words.start(clip, [Word("<z>", words)], 4)


def test_a_word_that_starts_as_one_word_is_that_word(clip):
    word = start_of(clip, "cat")
    for prompt in ("a photo of {}", "{}", "(a {}:1.3) here"):
        new, known = word.conditioning(prompt.format("<z>")), clip.encode_from_tokens_scheduled(clip.tokenize(prompt.format("cat")))
        assert_close(new[0][0], known[0][0])
        assert_close(new[0][1]["pooled_output"], known[0][1]["pooled_output"])


def test_with_no_initial_words_it_starts_as_the_mean_of_all(clip):
    table = new_words.encoders(clip)[0].sample
    assert_close(start_of(clip, "").concepts["<z>"].rows("clip_l").detach(), table.mean(0, keepdim=True), atol=1e-6, rtol=1e-4)


def word_for(clip, vectors=2):
    """A new word <z> with random vectors."""
    found, draw = new_words.encoders(clip), torch.Generator().manual_seed(9)
    with torch.inference_mode(False):
        starts = {e.key: torch.randn(vectors, e.table.shape[1], generator=draw) for e in found}
        return new_words.NewWord(clip, {"<z>": Concept(starts, {e.key: Vocabulary(1.0, 1.0) for e in found}, "free")}, vectors)


@pytest.mark.parametrize("kind", ["sd1", *tiny_text.KINDS])
@pytest.mark.parametrize("vectors", [1, 3, 9])
def test_comfyui_reads_the_trained_word_from_its_file(kind, vectors, folders, request, several):
    clip = request.getfixturevalue("clip") if kind == "sd1" else several(kind)
    widths = {"clip_l": tiny.CONTEXT} if kind == "sd1" else tiny_text.KINDS[kind][2]
    word = word_for(clip, vectors)
    EMBEDDINGS.save("toys/my-word", word.concepts["<z>"].tensors(), {})
    saved = load_file(folders / "embeddings" / "toys" / "my-word.safetensors")
    assert {k: v.shape for k, v in saved.items()} == {k: (vectors, w) for k, w in widths.items()}
    for prompt in ("{}", "a photo of {}, red (and {}:1.2) " + "with many other words " * 25):
        trained = word.conditioning(prompt.replace("{}", "<z>"))
        used = clip.encode_from_tokens_scheduled(clip.tokenize(prompt.replace("{}", "embedding:toys/my-word")))
        assert len(trained) == len(used) == 1
        assert torch.equal(trained[0][0], used[0][0])
        assert torch.equal(trained[0][1]["pooled_output"], used[0][1]["pooled_output"])


@torch.inference_mode(False)
@torch.no_grad()
def test_training_encodes_prompts_as_comfyui_does(clip):
    word = word_for(clip)
    (features, extras), (others, other_extras) = word.encode("a <z> there"), word.conditioning("a <z> there")[0]
    assert torch.equal(features, others) and torch.equal(extras["pooled_output"], other_extras["pooled_output"])


@torch.inference_mode(False)
@torch.no_grad()
def test_clip_skip_is_kept_in_training(clip):
    earlier = clip.clone()
    earlier.clip_layer(-2)
    word, other = word_for(earlier), word_for(clip)
    assert torch.equal(word.encode("a <z>")[0], word.conditioning("a <z>")[0][0])
    assert not torch.equal(word.encode("a <z>")[0], other.encode("a <z>")[0])


@torch.inference_mode(False)
@torch.no_grad()
def test_captions_may_hold_other_embeddings(folders, clip):
    save_file({"clip_l": torch.full((1, tiny.CONTEXT), 0.3)}, folders / "embeddings" / "other.safetensors")
    word = word_for(clip)
    tokens = [t for t, _ in word.trained_tokens("embedding:other and <z>")["l"][0] if torch.is_tensor(t)]
    assert torch.equal(tokens[0], torch.full((tiny.CONTEXT,), 0.3))
    assert_close(torch.stack(tokens[1:]), word.concepts["<z>"].rows("clip_l"))


@torch.inference_mode(False)
@torch.no_grad()
def test_the_users_tokenizer_is_not_touched(folders, clip):
    before = dict(vars(clip.tokenizer.clip_l))
    word_for(clip).conditioning("a <z>")
    assert vars(clip.tokenizer.clip_l) == before and clip.tokenizer.clip_l.embedding_directory == [str(folders / "embeddings")]


@pytest.mark.parametrize(("part", "there", "folder"), [("qwen25_7b", True, None), ("t5xxl", False, "somewhere")])
def test_an_encoder_that_cannot_use_the_word_is_refused(part, there, folder):
    """Kandinsky 5's Qwen reads no embedding files; Anima's denoiser takes T5's tokens themselves."""
    parts = {"clip_l": "somewhere", part: folder}
    tokenizer = SimpleNamespace(**{k: comfy.sd1_clip.SDTokenizer(embedding_directory=v) for k, v in parts.items()})
    stage = SimpleNamespace(**{k: torch.nn.Identity() for k in parts if k != part or there})
    with pytest.raises(ValueError, match=f"reads no embedding files for its text encoder {part}, so a new word"):
        new_words.encoders(SimpleNamespace(tokenizer=tokenizer, cond_stage_model=stage))
