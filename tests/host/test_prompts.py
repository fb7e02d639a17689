"""Prompts as ComfyUI's text encoders see them: words, columns, and rows of several texts."""

from types import SimpleNamespace

import pytest
import torch
from comfy.sdxl_clip import SDXLTokenizer
from comfy.text_encoders.flux import FluxTokenizer
from comfy.text_encoders.qwen_image import QwenImageTokenizer
from comfy.text_encoders.sd3_clip import SD3Tokenizer
from controlled_diffusion.nodes.host.prompts import ClipTokenizer, as_filled_rows, as_rows, encoded, prompt_of
from safetensors.torch import save_file

from compare import assert_close
from host import tiny, tiny_dits, tiny_text
from host.editing import clip_with_word

pytestmark = pytest.mark.usefixtures("inference_mode")
SOURCE, LONG = "a red circle", "a red circle, " * 30


def tokens(tokenizer):
    """The part of a CLIP that turns text into tokens."""
    return SimpleNamespace(tokenizer=tokenizer, tokenize=tokenizer.tokenize_with_weights)


def words(tokenizer, text, length=None):
    return [(w.text, w.columns) for w in prompt_of(tokens(tokenizer), text, length).words]


def test_what_differs_between_prompts_and_has_no_rows_is_refused():
    """Such as the glyphs of text in quotation marks, which only some have."""
    plain, glyphs = [[torch.rand(1, 4, 2), {}]], [[torch.rand(1, 4, 2), {"conditioning_byt5small": torch.rand(1, 3, 2)}]]
    for pair in ([plain, glyphs], [glyphs, plain], [glyphs, [[glyphs[0][0], {"conditioning_byt5small": torch.rand(1, 5, 2)}]]]):
        with pytest.raises(ValueError, match="The prompts differ in 'conditioning_byt5small', which cannot be in one batch"):
            as_filled_rows(pair, 1, False)
    assert as_filled_rows([glyphs, glyphs], 2, False)[0][1]["conditioning_byt5small"].shape == (4, 3, 2)


def test_words_of_clip(clip):
    found = prompt_of(clip, "Don't stop... a (siamese:1.3) cat \\(x\\) ninetyninepercent")
    tokenizer = ClipTokenizer(clip, "l")
    flat = [entry for chunk in tokenizer.chunks(found.text) for entry in chunk]
    assert [w.text for w in found.words] == ["Don't", "stop", "...", "a", "siamese", "cat", "(", "x", ")", "ninetyninepercent"]
    assert [len(w.columns) for w in found.words] == [2, 1, 1, 1, 1, 1, 1, 1, 1, 4]
    assert [c for w in found.words for c in w.columns] == [i for i, (_, is_text) in enumerate(flat) if is_text]
    assert found.length == encoded(clip, found.text)[0][0].shape[1] == 77


def test_words_of_several_chunks(clip):
    found = prompt_of(clip, LONG)
    assert found.length == encoded(clip, LONG)[0][0].shape[1] == 154 and len(found.words) == 4 * 30
    assert found.words[-2].columns == (121,) and len(found.heads) == 2


@pytest.mark.parametrize("text", ["लाल बिल्ली", "แมวแดง นอนอยู่", "قِطَّةٌ حَمْراء", "me\u0300o đo\u0309", "a 👍🏽 👨‍👩‍👧 🇩🇪"])
def test_words_with_marks(clip, text):
    for tokenizer in (clip, tokens(FluxTokenizer())):
        assert [w.text for w in prompt_of(tokenizer, text).words] == text.split()


def test_a_missing_embedding_is_no_word(tmp_path):
    clip = clip_with_word(tmp_path)
    for text in ("embedding:none red cat", "red (embedding:none:1.2) cat", "red cat embedding:none"):
        assert [(w.text, w.columns) for w in prompt_of(clip, text).words] == [("red", (1,)), ("cat", (2,))]
    assert [w.text for w in prompt_of(clip, "embedding:none embedding:thing cat").words] == ["embedding:thing", "cat"]


def test_an_embedding_has_the_columns_of_its_vectors(tmp_path):
    found = prompt_of(clip_with_word(tmp_path), "a red embedding:thing, on white")
    assert [(w.text, len(w.columns)) for w in found.words][2:4] == [("embedding:thing", 3), (",", 1)]
    assert found.find("white")[0] == (5,) and found.words[5].columns == (8,)


@pytest.mark.parametrize("tensors, count", [
    ({"<cat>": torch.zeros(tiny.CONTEXT)}, 1), ({"<cat>": torch.zeros(3, tiny.CONTEXT)}, 3), ({"emb_params": torch.zeros(2, tiny.CONTEXT)}, 2),
    ({"clip_l": torch.zeros(2, tiny.CONTEXT), "clip_g": torch.zeros(2, 1280)}, 2),
    ({"bundle_emb.thing.string_to_param.*": torch.zeros(4, tiny.CONTEXT)}, 4),
])  # fmt: skip
def test_embeddings_of_other_tools_have_their_columns(tmp_path, tensors, count):
    clip = clip_with_word(tmp_path)
    save_file(tensors, tmp_path / "theirs.safetensors")
    assert [len(w.columns) for w in prompt_of(clip, "a embedding:theirs cat").words] == [1, count, 1]


def test_sdxl_encoders_see_the_same_words():
    found = prompt_of(tokens(SDXLTokenizer()), "a (siamese:1.2) cat")
    assert [w.text for w in found.words] == ["a", "siamese", "cat"] and found.length == 77
    assert found == prompt_of(tiny.clip(), "a (siamese:1.2) cat")


def test_embedding_lengths_that_differ_are_refused(tmp_path):
    clip = tiny_text.clip("sdxl", embedding_directory=str(tmp_path))
    clip.tokenizer.clip_l.embedding_size = clip.tokenizer.clip_g.embedding_size = 24
    save_file({"clip_l": torch.zeros(2, 24), "clip_g": torch.zeros(3, 24)}, tmp_path / "thing.safetensors")
    with pytest.raises(ValueError, match=r"different tokens of 'a embedding:thing'.*embedding:thing \(.\).*equally many vectors"):
        prompt_of(clip, "a embedding:thing")


def test_rows_have_their_pooled_texts(clip):
    one, two = encoded(clip, SOURCE), encoded(clip, LONG)
    (rows, values), times = as_rows([one, two], 2)[0][0], as_rows([one, two], 2)[1]
    assert rows.shape == (4, 154, tiny.CONTEXT) and times == [2, 1]
    assert torch.equal(rows[0], one[0][0][0].repeat(2, 1)) and torch.equal(rows[3], two[0][0][0])
    assert torch.equal(values["pooled_output"][[0, 2]], torch.cat([one[0][1]["pooled_output"], two[0][1]["pooled_output"]]))


def test_words_of_clip_and_t5():
    assert words(FluxTokenizer(), "a (red:1.3) dachshund, sat")[:3] == [("a", (0, 1)), ("red", (2,)), ("dachshund", (3, 4, 5, 6, 7))]
    assert words(SD3Tokenizer(), "a red cat") == [("a", (1, 77, 78)), ("red", (2, 79)), ("cat", (3, 80))]
    assert words(SD3Tokenizer(), "a red cat", 77) == [("a", (1,)), ("red", (2,)), ("cat", (3,))]


def test_chat_template_is_no_text():
    tokens = QwenImageTokenizer().tokenize_with_weights("a red dachshund")["qwen25_7b"][0]
    given = [t for t, _ in tokens]
    cut = len(given) - 1 - given[::-1].index(872) + 2  # behind 'user' and its line break, as the host cuts
    made = words(QwenImageTokenizer(), "a red dachshund", len(given) - cut)
    assert [w for w, _ in made] == ["a", "red", "dachshund"] and made[0][1] == (0,) and made[1][1] == (1,)
    assert [c for _, columns in made for c in columns] == list(range(len(given) - cut - 5))  # five of the template follow
    with pytest.raises(ValueError, match="has 2 columns for"):
        words(QwenImageTokenizer(), "a red dachshund", 2)


def test_unknown_encoders_are_refused():
    class Odd:
        def tokenize_with_weights(self, text, return_word_ids=False):
            return {"one": [[]], "other": [[]]}

    with pytest.raises(ValueError, match="gives tokens of one, other, whose places"):
        prompt_of(tokens(Odd()), "a")


def test_filled_rows_keep_mean_and_mask():
    flux, texts = tiny_text.clip("flux"), ("red circle", "a very shiny blue circle on white")
    one, other = (encoded(tiny_dits.Clip(flux, "flux"), text) for text in texts)
    ((rows, values),) = as_filled_rows([one, other], 2, False)
    short = one[0][0].shape[1]
    assert torch.equal(rows[0, :short], one[0][0][0]) and torch.equal(rows[2], other[0][0][0])
    assert_close(rows[0].mean(0), one[0][0][0].mean(0)) and values["pooled_output"].shape == (4, 16)
    assert not as_filled_rows([one, other], 1, True)[0][0][0, :-short].any()
    ((_, values),) = as_filled_rows([encoded(tiny_dits.Clip(flux, "ltxv"), text) for text in texts], 2, False)
    assert values["attention_mask"].shape == (1, rows.shape[1]) and values["attention_mask"].all()
