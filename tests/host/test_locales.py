"""Translations of the nodes are complete and say what the English texts say."""

import json

import folder_paths
import pytest
from app.custom_node_manager import CustomNodeManager

import locales
from harness.environment import ROOT

LANGUAGES = locales.languages()
each_language = pytest.mark.parametrize("language", LANGUAGES)


def test_languages_are_translated():
    assert {"ja", "zh"} <= {*LANGUAGES}


@each_language
def test_a_translation_is_complete_and_true_to_the_numbers(language):
    assert not locales.problems(locales.english(), locales.translated(language))


@each_language
def test_nodes_are_in_alphabetical_order_in_utf_8(language):
    text = (locales.FOLDER / language / "nodeDefs.json").read_text(encoding="utf-8")
    given = json.loads(text)
    assert list(given) == sorted(given)
    assert text == json.dumps(given, ensure_ascii=False, indent=2) + "\n"


def test_comfyui_serves_the_translations(tmp_path, monkeypatch):
    (tmp_path / "pack").symlink_to(ROOT, target_is_directory=True)
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "custom_nodes", ([str(tmp_path)], set()))
    served = CustomNodeManager().build_translations()
    assert {language: locales.flat(served[language]["nodeDefs"]) for language in LANGUAGES} == {
        language: locales.translated(language) for language in LANGUAGES
    }


@pytest.mark.parametrize(
    ("place", "translation", "fault"),
    [
        ("N.inputs.a.tooltip", "常用：3–20。见 blend_words，'auto'。", "numbers"),
        ("N.inputs.a.tooltip", "常用：-3–10。见 blend_words，'auto'。", "numbers"),
        ("N.inputs.a.tooltip", "常用：3–10。见 混合词，'auto'。", "ids and placeholders"),
        ("N.inputs.a.tooltip", "常用：3–10。见 blend_words，'自动'。", "quoted values"),
        ("N.inputs.a.tooltip", "Typical: 3–10. See blend_words, 'auto'.", "not translated"),
        ("N.inputs.a.tooltip", "常用：3–10。See the blend_words of every node, 'auto'.", "not translated"),
        ("N.description", "常用：3–10。见 blend_words，'auto' | 。", "markup"),
        ("N.inputs.a.tooltip", "", "missing"),
        ("N.inputs.b.tooltip", "多余", "left over"),
    ],
    ids=["numbers", "sign", "ids", "quotes", "english", "half english", "markup", "missing", "left over"],
)
def test_what_a_translation_gets_wrong_is_found(place, translation, fault):
    true = {"N.inputs.a.tooltip": "常用：3–10。见 blend_words，'auto'。", "N.description": "常用：3–10。见 blend_words，'auto'。"}
    ours = dict.fromkeys(true, "Typical: 3–10. See blend_words, 'auto'.")
    assert not locales.problems(ours, true)
    assert any(fault in line for line in locales.problems(ours, true | {place: translation}))
