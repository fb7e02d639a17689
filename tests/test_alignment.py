"""Aligning prompts on words and tokens: every operation, and what public code gets wrong."""

from unicodedata import normalize

import pytest
import torch
from controlled_diffusion.attention.alignment import DEGREE_SHARE, align, stretched
from controlled_diffusion.attention.prompt import joined, read, unknown_word
from controlled_diffusion.attention.word_lists import weights_from, windows_from, words_from
from torch.testing import assert_close

from checks import refused
from pieces import END, PIECES, Pieces


def prompt(text, tokenizer=PIECES):
    return read(text, tokenizer)


def aligned(source, target, operation="auto", tokenizer=PIECES):
    return align(prompt(source, tokenizer), prompt(target, tokenizer), operation)


def kinds(alignment) -> list[str]:
    """The steps in words: 'replace red -> blue'."""

    def told(step):
        sides = (" ".join(p.words[i].text for i in own) for p, own in ((alignment.source, step.source), (alignment.target, step.target)))
        return f"{step.kind} {' -> '.join(filter(None, sides))}"

    return [told(s) for s in alignment.steps if s.kind != "keep"]


@pytest.mark.parametrize("text, words", [
    ("A siamese Cat, asleep", {"A": (1,), "siamese": (2, 3), "Cat": (4,), ",": (5,), "asleep": (6, 7)}),
    ("wait... here", {"wait": (1,), "...": (2,), "here": (3,)}),
    ("a (red:1.5) cat", {"a": (1,), "red": (2,), "cat": (3,)}),
    ("東京 cat's", {"東": (1,), "京": (2,), "cat's": (3, 4)}),
])  # fmt: skip
def test_words_have_the_columns_of_all_their_tokens(text, words):
    found = prompt(text)
    assert [(w.text, w.columns) for w in found.words] == list(words.items())
    assert found.length == 24 and found.heads == ((0,),) and found.tails == (tuple(range(1 + sum(map(len, words.values())), 24)),)


@pytest.mark.parametrize("phrase, found", [
    ("cat", [(1,), (5,)]), ("CAT", [(1,), (5,)]), ("cat#2", [(5,)]), ("red cat", [(4, 5)]), ("cat,", [(1, 2)]),
    *((missing, []) for missing in ("dog", "ca", "", "cat#3", "cat#0", "and cat")),
])  # fmt: skip
def test_words_and_phrases_are_found(phrase, found):
    assert prompt("A cat, and red cat").find(phrase) == found


def test_an_unknown_word_is_an_error_with_the_words():
    told = "'dog' is in none of the prompts; the words of 'a cat' are: a, cat; the words of 'a hat' are: a, hat"
    with pytest.raises(ValueError, match=told):
        raise unknown_word("dog", [prompt("a cat"), prompt("a hat"), prompt("a cat")])


def test_tokens_that_do_not_fit_the_words_are_an_error():
    class Odd(Pieces):
        def tokens(self, part):
            return super().tokens(part)[:-1]

        def chunks(self, text):
            return [[("a", True), ("cat", True), (END, False)]]

    refused(r"'a cat' cannot be split into words.* 2 tokens \(a, cat\)", prompt, "a cat", Odd())


@pytest.mark.parametrize("source, target, steps", [
    ("a red circle", "a red circle", []),
    ("a red circle", "a blue circle", ["replace red -> blue"]),
    ("a red circle", "a red striped circle", ["insert striped"]),
    ("a red striped circle", "a red circle", ["delete striped"]),
    ("a red circle", "a striped blue circle", ["insert striped", "replace red -> blue"]),
    ("a siamese cat on a mat", "a dog on a mat", ["delete siamese", "replace cat -> dog"]),
    ("a red circle", "a very red circle", ["degree red -> very red"]),
    ("a red circle", "a very blue circle", ["degree red -> very blue", "replace red -> blue"]),
    ("a circle", "a very big circle", ["insert very", "insert big"]),
    ("a red circle and a blue square", "a blue square and a red circle", ["move a -> a", "move blue -> blue", "move square -> square",
     "move and -> and"]),
    ("a red circle and a blue square", "a blue circle and a red square", ["replace red -> blue", "replace blue -> red"]),
    ("red and blue cats", "blue and red cats", ["move blue -> blue", "move and -> and"]),
    ("A Cat, sitting.", "a cat sitting", ["delete ,", "delete ."]),
    ("a circle", "a circle and a circle", ["insert and", "insert a", "insert circle"]),
    ("", "a circle", ["insert a", "insert circle"]),
])  # fmt: skip
def test_operations_are_derived_from_the_prompts(source, target, steps):
    assert sorted(kinds(aligned(source, target))) == sorted(steps)


def test_a_swap_takes_over_whole_phrases_and_a_refinement_none():
    source, target = "a siamese cat on a mat", "a dog on a mat"
    assert kinds(aligned(source, target, "replace")) == ["replace siamese cat -> dog"]
    assert sorted(kinds(aligned(source, target, "refine"))) == ["delete cat", "delete siamese", "insert dog"]
    assert kinds(aligned("a b", "a b", "reweight only")) == ["insert a", "insert b"]
    refused("operation is 'swap'; choose one of auto, replace, refine, reweight only", aligned, source, target, "swap")


@pytest.mark.parametrize("text, words", [
    ("लाल बिल्ली, हिन्दी", ["लाल", "बिल्ली", ",", "हिन्दी"]),  # vowel signs, virama
    ("แมวสีแดง นอนอยู่", ["แมวสีแดง", "นอนอยู่"]),
    ("قِطَّةٌ حَمْراء", ["قِطَّةٌ", "حَمْراء"]),
    ("می\u200cخواهم گربه", ["می\u200cخواهم", "گربه"]),  # a word with a non-joiner
    (normalize("NFD", "mèo đỏ, ngủ"), [normalize("NFD", w) for w in ("mèo", "đỏ", ",", "ngủ")]),
    ("が東 が", ["が", "東", "が"]),  # decomposed, then composed
    ("a 👍🏽 👨‍👩‍👧❤️ 🇩🇪🇫🇷 1️⃣ 🏴\U000e0067\U000e007f!", ["a", "👍🏽", "👨‍👩‍👧", "❤️", "🇩🇪", "🇫🇷", "1️⃣", "🏴\U000e0067\U000e007f", "!"]),
])  # fmt: skip
def test_marks_belong_to_their_words(text, words):
    assert [w.text for w in prompt(text, Pieces(200)).words] == words


def test_words_with_marks_align_whole():
    assert kinds(aligned("लाल बिल्ली", "लाल कुत्ता")) == ["replace बिल्ली -> कुत्ता"]
    one, other = (normalize(form, "con mèo đỏ") for form in ("NFC", "NFD"))
    assert kinds(aligned(one, other)) == [] and prompt(other).find(normalize("NFC", "mèo")) == [(1,)]


@pytest.mark.parametrize("text", ["embedding:missing red cat", "red embedding:missing cat", "red cat embedding:missing"])
def test_a_word_without_tokens_is_none(text):
    class Missing(Pieces):
        def tokens(self, part):
            return super().tokens(part.replace("embedding:missing", ""))

    assert [(w.text, w.columns) for w in prompt(text, Missing()).words] == [("red", (1,)), ("cat", (2,))]


def test_of_equal_words_the_neighbors_match():
    found = aligned("a red star and a blue circle", "a blue circle")
    assert [s.source for s in found.steps if s.kind == "keep"] == [(4,), (5,), (6,)]


PAIRS = [
    ("a red circle", "a red circle"),
    ("a siamese cat on the mat", "a dog on the mat"),
    ("a dog on the mat", "a siamese cat on the mat"),
    ("a red circle on white", "a very red circle on white"),
    ("a red circle and a blue square", "a blue square and a red circle"),
    ("one", "several completely different words"),
]


@pytest.mark.parametrize("source, target", PAIRS)
def test_the_attention_of_kept_tokens_is_mapped_whole(source, target):
    alignment = aligned(source, target)
    gone = {c for s in alignment.steps if s.kind == "delete" for c in alignment.source.columns(s.source)}
    rows = alignment.mapper().sum(1)
    assert_close(rows, torch.tensor([0.0 if c in gone else 1.0 for c in range(24)]))
    assert torch.equal(alignment.own() > 0, alignment.mapper().sum(0) == 0)


def test_only_equal_prompts_map_by_the_identity():
    assert torch.equal(aligned("A red circle", "a red circle").mapper(), torch.eye(24))
    assert not torch.equal(aligned("a red circle", "a blue red circle").mapper(), torch.eye(24))
    only = aligned("a red circle", "a red circle", "reweight only")
    assert not only.mapper().any() and only.own().all()


@pytest.mark.parametrize("source, target", PAIRS[1:3])
@pytest.mark.parametrize("operation", ["auto", "replace", "refine"])
def test_the_tail_behind_a_word_of_another_length_stays(source, target, operation):
    """A public implementation shifts everything behind the last replaced word by the difference of the token counts."""
    found = aligned(source, target, operation)
    mapper, one, other = found.mapper(), found.source, found.target
    for word in ("on", "the", "mat"):
        (i,), (j,) = one.words[one.find(word)[0][0]].columns, other.words[other.find(word)[0][0]].columns
        assert mapper[i, j] == 1 and mapper[i].sum() == 1 and mapper[:, j].sum() == 1


@pytest.mark.parametrize("source, target", PAIRS[1:3])
def test_padding_goes_to_padding_and_end_to_end(source, target):
    """A public implementation maps the padding of a shorter target onto real words of the source."""
    found = aligned(source, target)
    mapper, (one,), (other,) = found.mapper(), found.source.tails, found.target.tails
    assert mapper[0, 0] == 1 and mapper[one[0], other[0]] == 1
    words = [c for c in range(24) if c not in (*one, 0)]
    assert mapper[words][:, list(other)].sum() == 0 and mapper[list(one)][:, [c for c in range(24) if c not in other]].sum() == 0
    assert_close(mapper[list(one)].sum(1), torch.ones(len(one)))
    assert (mapper[:, list(other)].sum(0) > 0).all()


def test_a_word_of_more_tokens_shares_evenly():
    assert_close(aligned("a cat", "a completely").mapper()[2, 2:5], torch.full([3], 1 / 3))  # 1 token for 3
    assert_close(aligned("a completely", "a cat").mapper()[2:5, 2], torch.ones(3))
    assert torch.equal(aligned("a siamese cat", "a spotted cat").mapper(), torch.eye(24))  # 2 for 2


def test_a_degree_word_shares_and_scales():
    found = aligned("a red circle", "a very red circle")
    assert_close(found.mapper()[2, 2:4], torch.tensor([DEGREE_SHARE, 1 - DEGREE_SHARE]))
    assert_close(found.factors()[1:5], torch.tensor([1.0, 1.5, 1.5, 1.0]))
    assert not found.own().any()
    several = aligned("a siamese cat", "a extremely siamese cat").mapper()  # 3 tokens before 2
    assert_close(several[2, 2:7], torch.tensor([DEGREE_SHARE / 3] * 3 + [1 - DEGREE_SHARE, 0]))
    assert_close(several[3, 2:7], torch.tensor([DEGREE_SHARE / 3] * 3 + [0, 1 - DEGREE_SHARE]))


def test_a_moved_word_brings_its_map():
    moved = aligned("a cat under the red sky", "under the red sky a cat")
    one, other = moved.source, moved.target
    for word in one.words:
        (j,) = other.find(word.text)[0]
        assert moved.mapper()[word.columns[0], other.words[j].columns[0]] == 1, word.text


def test_prompts_of_several_chunks_are_aligned_chunk_by_chunk():
    small = Pieces(size=6)  # four tokens a chunk
    found = aligned("a b c d e f", "a b x d e f", tokenizer=small)
    assert found.source.length == 12 and torch.equal(found.mapper(), torch.eye(12))
    longer = aligned("a b c d", "a b c d e", tokenizer=small)
    assert longer.mapper().shape == (6, 12)
    assert torch.equal(longer.mapper()[:, :6], torch.eye(6)) and longer.own().tolist() == [0] * 6 + [1] * 6
    inserted = aligned("a b c d e", "a b x c d e", tokenizer=small)  # 'd' goes over into the second chunk
    d = inserted.source.words[3].columns[0], inserted.target.words[4].columns[0]
    assert d == (4, 7) and inserted.mapper()[d] == 1


def test_maps_of_repeated_conditionings_are_split():
    found = aligned("a red circle", "a blue circle").mapper()
    maps = torch.rand(5, 24).softmax(-1)
    assert_close((maps / 2).repeat(1, 2) @ stretched(found, 2, 3), (maps @ found / 3).repeat(1, 3))


def test_counterparts_and_origins_follow_the_steps():
    found = aligned("a red circle on white", "a blue striped circle on white")
    assert found.counterparts(found.source.find("circle")[0]) == (3,)
    assert found.origins(found.target.find("circle")[0]) == (2,)
    assert found.origins(found.target.find("blue")[0]) == () and found.origins(found.target.find("striped")[0]) == (1,)
    weighed = aligned("a red circle and a star", "a blue circle and a star", "reweight only")
    assert weighed.changed() == ((1,), (1,)) and weighed.counterparts((1, 2)) == (1, 2) == weighed.origins((1, 2))
    assert aligned("a red circle", "a red circle", "reweight only").changed() == ((), ())


def test_the_text_shows_every_step():
    found = aligned("a siamese cat on black", "a very siamese dog and a hat")
    text = found.text()
    assert text.splitlines()[0] == "a siamese cat on black  ->  a very siamese dog and a hat"
    assert "  = a" in text and "very siamese (2 tokens): a share of the map of siamese (2 tokens), times 1.5" in text
    assert len(text.splitlines()) == 1 + len(found.steps)


def test_words_of_several_encoders_have_the_columns_of_all():
    both = joined([prompt("a cat"), prompt("a cat", Pieces(8, start=False))])
    assert both.length == 32 and [w.columns for w in both.words] == [(1, 24), (2, 25)]
    refused("encoders see other words", joined, [prompt("a cat"), prompt("a hat")])


def test_weights_windows_and_words_are_read_line_by_line():
    read_weights = weights_from("blue: 1.5, (red circle:0.5)\n\n square:-2;a : .5")
    assert read_weights == [[("blue", 1.5), ("red circle", 0.5)], [("square", -2.0), ("a", 0.5)]] and weights_from(" \n") == []
    assert windows_from("blue: 0-0.4, circle: .2-1\nhat: 0-0") == [("blue", (0, 0.4)), ("circle", (0.2, 1)), ("hat", (0, 0))]
    assert words_from("red circle, star\nsky") == ["red circle", "star", "sky"]


@pytest.mark.parametrize("read_from, text, message", [
    (weights_from, "blue", "'blue' names no value"),
    (weights_from, "blue: much", "weight of 'blue' is 'much'"),
    (weights_from, ": 2", "': 2' names no"),
    *((windows_from, f"blue: {span}", "The window of 'blue' is .*give start-end") for span in ("0.4", "0.5-0.2", "0-2", "a-b")),
])  # fmt: skip
def test_what_cannot_be_read_is_refused(read_from, text, message):
    refused(message, read_from, text)
