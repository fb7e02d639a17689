import pytest
import torch
from controlled_diffusion.training import textual_inversion as ti
from controlled_diffusion.training.textual_inversion import TEMPLATES, Prompts, captions_for, own_templates, start_rows
from torch.testing import assert_close

from checks import draw, refused


def generator():
    return torch.Generator().manual_seed(0)


def sentences(prompts, count=200, seed=3):
    return [prompts.sentence(i % 4, i, seed) for i in range(count)]


@pytest.mark.parametrize("kind", TEMPLATES)
def test_every_template_is_used_and_holds_the_word_once(kind):
    made = sentences(Prompts(TEMPLATES[kind], "<z>"))
    assert {s.replace("<z>", "{}") for s in made} == set(TEMPLATES[kind])
    assert all(s.count("<z>") == 1 for s in made)


def test_a_sentence_depends_on_seed_and_number_alone():
    prompts = Prompts(TEMPLATES["object"], "<z>")
    assert sentences(prompts) == sentences(prompts) != sentences(prompts, seed=4)
    assert prompts.sentence(0, 17, 3) == sentences(prompts)[17]


def test_a_caption_follows_the_template_or_stands_where_it_says():
    captions = ("red", "green", "blue", "gray")
    assert set(sentences(Prompts(("a {}",), "<z>", captions))) == {f"a <z>, {c}" for c in captions}
    assert set(sentences(Prompts(("{caption} with {}",), "<z>", captions))) == {f"{c} with <z>" for c in captions}
    prompts = Prompts(("a {}",), "<z>", ("my <z> here", "plain", "", "<z>y"))
    assert [prompts.sentence(i, 0, 0) for i in range(4)] == ["my <z> here", "a <z>, plain", "a <z>", "a <z>, <z>y"]


def test_a_caption_of_several_sentences_is_one_of_them_each_time():
    prompts = Prompts(("a photo of {}",), "<z>", ("a red <z> | on grass|", "a <z>"))
    found = [prompts.sentence(0, i, 1) for i in range(200)]
    assert {*found} == {"a red <z>", "a photo of <z>, on grass"} and 60 < found.count("a red <z>") < 140
    assert prompts.sentence(1, 0, 1) == "a <z>" and ti.wordings("") == ti.wordings(" | ") == ("",)


def test_captions_are_left_out_at_their_rate_and_the_word_never():
    prompts = Prompts(("{caption} {}",), "<z>", ("red",))
    made = [prompts.sentence(0, i, 3, rate=0.25) for i in range(2000)]
    share = made.count("<z>") / len(made)
    assert 0.22 < share < 0.28 and set(made) == {"<z>", "red <z>"}
    assert {prompts.sentence(0, i, 3, rate=1.0) for i in range(50)} == {"<z>"} and {prompts.sentence(0, i, 3) for i in range(50)} == {
        "red <z>"
    }


def test_own_templates_are_lines_with_the_place_of_the_word():
    assert own_templates("a {}\n\n  the <z> \n", "<z>") == ("a {}", "the {}")
    refused(r"'a thing' lacks \{\}", own_templates, "a {}\na thing", "<z>")
    refused("'own' but none is given", own_templates, " \n", "<z>")
    refused("asks for a caption but there are none", Prompts, ("{caption} {}",), "<z>")
    assert "own" in ti.KINDS


def test_captions_are_a_list_or_lines():
    assert captions_for(["a", "b"], 2) == ("a", "b") == captions_for(["a\nb\n"], 2)
    assert captions_for([], 3) == () == captions_for([" "], 3)
    assert captions_for(["one, two"], 1) == ("one, two",)
    assert captions_for(["\na\n"], 3) == ("", "a", "")
    assert captions_for(["\r\na"], 2) == ("", "a") and captions_for(["\na\nb\n"], 2) == ("a", "b")
    refused("2 captions for 3 images", captions_for, ["a\nb"], 3)
    refused("3 captions for 1 images", captions_for, ["a", "b", "c"], 1)


@pytest.mark.parametrize("placeholder, message", [
    ("", "is empty"), ("my cat", "'my cat' is several words"), ("cat", "'cat' is a word that the model knows"),
    ("<a:b>", "mean something in prompts"), ("(z)", "mean something in prompts"),
])  # fmt: skip
def test_bad_placeholders_are_refused_and_good_ones_taken(placeholder, message):
    refused(message, ti.check_placeholder, placeholder, lambda word: word == "cat")
    for good in ("<moon>", "zz*", "[v]", "my-thing"):
        ti.check_placeholder(good, lambda word: word == "cat")


def test_the_word_is_found_as_a_word_alone():
    assert ti.names("a sk, red", "sk") and not ti.names("a skier", "sk") and not ti.names("a-sk", "sk")
    assert ti.with_name("a sk, skier (sk:1.2)", "sk", "N") == "a  N , skier ( N :1.2)"
    assert ti.names("एक लाल", "लाल") and not ti.names("एक लाली", "लाल")
    assert ti.with_name("<z><z>", "<z>", r"\1") == r" \1  \1 "


def test_vectors_start_as_the_words():
    words = torch.randn(3, 8)
    assert torch.equal(start_rows(words, 3, generator()), words)
    assert_close(start_rows(words, 1, generator()), words.mean(0, keepdim=True))
    assert_close(start_rows(words, 2, generator()), torch.stack([words[:2].mean(0), words[2]]))


def test_further_vectors_differ_a_little_from_the_words():
    words = torch.randn(2, 64) * torch.tensor([[1.0], [20.0]])
    rows = start_rows(words, 5, generator())
    assert torch.equal(rows[:2], words)
    apart = (rows[2:] - words[[0, 1, 0]]).norm(dim=1) / words[[0, 1, 0]].norm(dim=1)
    assert ((apart > 0.03) & (apart < 0.07)).all() and not torch.equal(rows[2], rows[4])
    refused("has 0 vectors; give 1 or more", start_rows, words, 0, generator())


def concept(norm="limit", limit=1.5):
    tables = {"small": 0.01 * draw(100, 16), "large": 5 * draw(100, 32)}
    vocabularies = {k: ti.Vocabulary.from_table(t) for k, t in tables.items()}
    return ti.Concept({k: t[:2] for k, t in tables.items()}, vocabularies, norm, limit), vocabularies, tables


def test_parameters_have_one_size_for_all_encoders():
    made, vocabularies, tables = concept()
    for key, table in tables.items():
        assert_close(made.rows(key), table[:2])
        assert 0.3 < made.parameters[key].square().mean().sqrt() < 3
        assert_close(vocabularies[key].norm, float(table.norm(dim=1).median()))
    assert set(made.tensors()) == set(tables) and made.tensors()["large"].shape == (2, 32)
    assert made.rows("small").requires_grad and not made.tensors()["small"].requires_grad


def lengths(made, key):
    return made.rows(key).detach().norm(dim=1)


@pytest.mark.parametrize("key", ["small", "large"])
def test_the_norm_is_limited_kept_or_free(key):
    for norm in ("limit", "keep", "free"):
        made, vocabularies, _ = concept(norm)
        begun = lengths(made, key)
        with torch.no_grad():
            made.parameters[key][0].mul_(9)
            made.parameters[key][1].mul_(0.5)
        grown = lengths(made, key)
        made.control()
        expected = {"limit": torch.stack([torch.tensor(1.5 * vocabularies[key].norm), grown[1]]), "keep": begun, "free": grown}[norm]
        assert_close(lengths(made, key), expected, rtol=1e-5, atol=1e-7)


def test_a_word_may_stay_as_long_as_it_starts():
    made, _, tables = concept("limit", limit=0.1)
    made.control()
    assert_close(lengths(made, "small"), tables["small"][:2].norm(dim=1))
    refused("'none'; choose one of limit, keep, free", concept, "none")
