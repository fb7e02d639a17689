"""Settings by model family: inputs on auto get the values of the loaded model's family, and the help pages print the same."""

from unittest.mock import patch

import comfy.supported_models
import pytest
from comfy_api.latest import io, ui
from controlled_diffusion.nodes import MODULES
from controlled_diffusion.nodes.host import model_tag, progress
from controlled_diffusion.nodes.inputs import auto, families, widgets
from controlled_diffusion.nodes.inputs.checks import with_checks

import help_tables
from checks import refused
from harness.good_inputs import Sockets, good, run
from host import tiny, tiny_dits

NODES = {node.GET_SCHEMA().node_id: node for module in MODULES for node in module.NODES}
FAMILIES = {"sd3": "sd3", "flux": "flux", "flux2": "flux", "qwen": "qwen", "wan": "wan", "lumina2": "flow", "hidream": "flow", "ltxv": "cross", "kandinsky5": "cross"}


def inputs_of(node_id: str) -> set[str]:
    return {i.id for i in auto.auto_inputs(NODES[node_id].GET_SCHEMA().inputs)}


@pytest.mark.parametrize("node_id", NODES)
def test_auto_inputs_are_those_of_the_table(node_id):
    assert inputs_of(node_id) == {name.partition(" | ")[0] for name in families.TABLE.get(node_id, {})}


def test_the_table_names_nodes_that_exist():
    assert families.TABLE.keys() <= NODES.keys()


@pytest.mark.parametrize("node_id", families.TABLE)
@pytest.mark.parametrize("family", families.FAMILIES)
def test_each_family_has_a_value_with_a_source_that_fits(node_id, family):
    for name in families.TABLE[node_id]:
        own, _, condition = name.partition(" | ")
        given = dict([condition.split(" = ")]) if condition else {}
        found = families.setting(node_id, own, family, given)
        assert found.source
        each = next((i for i in auto.auto_inputs(NODES[node_id].GET_SCHEMA().inputs) if i.id == own), None)
        if isinstance(each, widgets.AutoCombo):
            assert found.value in each.options[1:]
        elif each is not None:
            assert each.least <= found.value <= each.max and isinstance(found.value, int) >= (each.get_io_type() == "INT")


@pytest.mark.parametrize("node_id", NODES)
def test_help_pages_print_the_table(node_id):
    """Otherwise: python . run tests/help_tables.py"""
    page = (help_tables.DOCS / f"{node_id}.md").read_text(encoding="utf-8")
    assert help_tables.rewritten(page, node_id) == page


@pytest.mark.parametrize("kind", ["SD15", "SD20", "SDXL", "SSD1B", "SD15_instructpix2pix", "SDXL_instructpix2pix"])
def test_unets_are_known_by_comfyuis_configuration(kind, eps_model):
    expected = {"SD15": "sd15", "SD20": "sd2", "SSD1B": "sdxl"}.get(kind.partition("_")[0], "sdxl")
    eps_model.model.model_config = object.__new__(getattr(comfy.supported_models, kind))
    assert model_tag.family(eps_model) == expected


@pytest.mark.parametrize("name", tiny_dits.there({n: tiny_dits.DITS[n] for n in FAMILIES}))
def test_dits_are_known_by_comfyuis_configuration(name):
    assert model_tag.family(tiny_dits.dit(name)) == FAMILIES[name]


@pytest.mark.parametrize(("prediction", "expected"), [("eps", "eps"), ("v", "eps"), ("flow", "flow")])
def test_unknown_models_are_known_by_their_prediction(prediction, expected):
    model = tiny.unet(prediction)
    model.model.model_config = None
    assert model_tag.family(model) == expected


@pytest.fixture(scope="module")
def sockets():
    return Sockets()


def test_the_demo_model_is_its_own_family(sockets):
    assert model_tag.family(sockets("MODEL")) == model_tag.family(sockets("EDITOR")) == "demo"
    assert model_tag.family(sockets("FLOW")) == "demo"


OWN_TEXT = io.NodeOutput(None, ui=ui.PreviewText("its own text"))


class Listening(io.ComfyNode):
    """A node that gives what it gets."""

    @classmethod
    def define_schema(cls):
        mode = io.DynamicCombo.Option("all weights", [widgets.auto_number("learning_rate", 0.0, 1.0, "Rate.")])
        other = io.DynamicCombo.Option("a LoRA", [widgets.auto_number("learning_rate", 0.0, 1.0, "Rate."), widgets.auto_whole("rank", 1, 64, "Rank.")])
        return io.Schema("DreamBoothTrainer", inputs=[
            io.Model.Input("model"),
            io.DynamicCombo.Input("train", options=[mode, other]),
            widgets.auto_cfg("cfg.", "validation_cfg"),
        ], outputs=[io.AnyType.Output(display_name="given")])  # fmt: skip

    @classmethod
    def execute(cls, **given):
        return io.NodeOutput(given, ui=ui.PreviewText("its own text"))


def listen(model, **given):
    rows = families.TABLE["DreamBoothTrainer"] | {"validation_cfg": families.TABLE["ValidationOptions"]["cfg"]}
    with patch.dict(families.TABLE, DreamBoothTrainer=rows):
        return with_checks(Listening).execute(model=model, **given)


def test_values_are_put_in_and_said_above_the_nodes_own_text():
    made = listen(tiny_dits.dit("sd3"), train={"train": "a LoRA", "learning_rate": -1.0, "rank": -1}, validation_cfg=-1.0)
    assert made[0]["train"] == {"train": "a LoRA", "learning_rate": 0.0004, "rank": 16} and made[0]["validation_cfg"] == 7.0
    line, own = made.ui["text"][0].split("\n")
    assert line == "auto for SD3: learning_rate 0.0004, rank 16, validation_cfg 7" and own == "its own text"


def test_the_choice_stays_above_the_progress_and_the_nodes_own_text(eps_model, monkeypatch):
    """ComfyUI keeps one text for a node, and shows that of its progress on all nodes, the text of an output on few."""
    written = []
    monkeypatch.setattr(progress.NodeText, "show", lambda text: written.append("\n".join((*text.lines, text.progress))))
    monkeypatch.setattr(Listening, "execute", classmethod(lambda cls, **given: progress.say("1 of 2") or progress.say("2 of 2") or OWN_TEXT))
    listen(eps_model, train={"train": "a LoRA", "learning_rate": 0.5, "rank": 3})
    line = "auto for SD1.5: validation_cfg 7.5"
    assert written == [f"{line}\n", f"{line}\n1 of 2", f"{line}\n2 of 2", f"{line}\nits own text\n2 of 2"]


def test_typed_values_stay_and_are_not_spoken_of(eps_model):
    given = dict(train={"train": "a LoRA", "learning_rate": 0.5, "rank": 3}, validation_cfg=2.0)
    made = listen(eps_model, **given)
    assert made[0] == {"model": eps_model, **given} and made.ui.value == "its own text"


def test_an_input_that_is_left_out_is_on_auto(eps_model):
    made = listen(eps_model, train={"train": "a LoRA", "learning_rate": 0.5, "rank": 3})
    assert made[0]["validation_cfg"] == 7.5


def test_a_value_can_depend_on_another_input(eps_model):
    made = listen(eps_model, train={"train": "all weights", "learning_rate": -1.0}, validation_cfg=1.0)
    assert made[0]["train"]["learning_rate"] == 0.000005


def test_values_between_auto_and_the_minimum_are_refused(eps_model):
    refused("^validation_cfg is -0.5; give a finite number from 0 to 100, or -1 for auto.$", listen, eps_model, train={
        "train": "all weights", "learning_rate": 0.1}, validation_cfg=-0.5)  # fmt: skip
    refused("^rank is 0; give a whole number from 1 to 64, or -1 for auto.$", listen, eps_model, train={
        "train": "a LoRA", "learning_rate": 0.1, "rank": 0})  # fmt: skip


def test_options_of_another_node_are_filled_by_its_name(eps_model):
    with progress.node_text() as text:
        values = auto.chosen(eps_model, "SDEditSampler", {"cfg": -1, "scheduler": "auto", "strength": -1})
    assert values == {"cfg": 7.5, "scheduler": "normal", "strength": -1} and text.lines == ["auto for SD1.5: cfg 7.5, scheduler normal"]


@pytest.mark.parametrize("kind", ["MODEL", "FLOW"])
@pytest.mark.parametrize("node_id", sorted(n for n in families.TABLE if any(i.id == "model" for i in NODES[n].GET_SCHEMA().inputs)))
def test_a_fresh_node_runs_with_its_values_on_auto(node_id, kind, sockets):
    if node_id == "RFInverter" and kind == "MODEL":
        pytest.skip("it refuses eps models")
    schema, given = NODES[node_id].GET_SCHEMA(), good(node_id, sockets)
    autos = {i.id: i.default for i in auto.auto_inputs(schema.inputs)}
    trainer = schema.is_input_list
    if trainer:
        del autos["steps"]  # hundreds
    given |= {k: [v] if trainer else v for k, v in autos.items() if k in given}
    for combo in (i.id for i in schema.inputs if isinstance(i, io.DynamicCombo.Input) and auto.auto_inputs([i])):
        given[combo] = {k: [autos.get(k, v[0])] if trainer else autos.get(k, v) for k, v in given[combo].items()}
    if node_id not in ("InstructPix2PixGuider", "InstructPix2PixPatch", "InstructionChannels", "P2PLocalBlend"):  # these need another model
        given["model"] = [sockets(kind)] if trainer else sockets(kind)
    assert run(node_id, **given)


@pytest.mark.parametrize("name", tiny_dits.there({n: tiny_dits.DITS[n] for n in FAMILIES}))
def test_an_inverter_takes_the_scheduler_of_each_family(name, sockets):
    given = dict(model=tiny_dits.dit(name), source=tiny_dits.text(name, 1), image={"samples": tiny_dits.empty(name)}, vae=None, negative=None)
    auto_run, typed = (run("BDIAInverter", **good("BDIAInverter", sockets) | given | {"scheduler": s})[3] for s in ("auto", "simple"))
    assert auto_run.tolist() == typed.tolist()
