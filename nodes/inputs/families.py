"""Settings by model family: what each input that stands on "auto" means for the loaded model, with the source of every value.

How to use it, in three steps:

1. Declare the input with `auto_number`, `auto_whole` or `auto_choice` of widgets.py in place of `number`, `whole` or `choice`. It starts at
   -1 or "auto", its tooltip ends by itself, and values between -1 and the real minimum are refused. Nothing changes in `execute`: the check
   at the door (checks.py) puts in the value for the node's "model" before it runs and shows "auto for SDXL: cfg 7, ..." on the node.
2. Add its row below: `TABLE[node id][input]` gives each family's value and its source. A family without a row takes that of its parent,
   up to "eps" or "flow", and both of these have one. Where the value depends on another input too (whole weights learn at another rate than a
   LoRA), add rows under `"input | other input = value"`; they come first. Inputs of a DynamicCombo's option are named without its prefix.
3. `python . run tests/help_tables.py` writes the table into the node's help page; tests/host/test_families.py checks all of it.

Where an option node has no "model" input, its auto values travel as they are; the node that reads them calls `auto.chosen(model, "its node
id", values)`. A value between -1 and 0 has to be no value of the input itself: a weight from -100 to 100 cannot be auto.
This file knows neither torch nor ComfyUI; `nodes.host.model_tag.family` says which family a MODEL is.
"""

from __future__ import annotations

from typing import NamedTuple

AUTO_NUMBER, AUTO_CHOICE = -1, "auto"
ENDING = "-1 = auto, by the model's family."


class Family(NamedTuple):
    label: str
    parent: str | None = None


class Value(NamedTuple):
    value: float | str
    source: str


FAMILIES = {
    "eps": Family("eps and v models"),
    "sd15": Family("SD1.5", "eps"),
    "sd2": Family("SD2", "eps"),
    "sdxl": Family("SDXL", "eps"),
    "demo": Family("the demo model", "eps"),
    "flow": Family("flow models"),
    "sd3": Family("SD3", "flow"),
    "flux": Family("Flux", "flow"),
    "qwen": Family("Qwen-Image", "flow"),
    "cross": Family("LTX-Video and Kandinsky 5", "flow"),
    "wan": Family("Wan", "cross"),
}

_OURS = "measured on the demo model of shapes"
_UNIFORM = {  # evenly spaced timesteps
    "eps": Value("normal", "DDIM's even timesteps, arXiv 2010.02502"),
    "flow": Value("simple", "even timesteps, then the model's shift, arXiv 2403.03206"),
}
_EXACT = {
    "eps": Value("karras", f"{_OURS}: more edits follow the prompt"),
    "flow": Value("simple", "even timesteps, then the model's shift, arXiv 2403.03206"),
}
_CFG = {  # of plain sampling
    "eps": Value(7.5, "diffusers' Stable Diffusion pipelines"),
    "sdxl": Value(5.0, "diffusers' SDXL pipelines"),
    "demo": Value(4.0, _OURS),
    "flow": Value(5.0, "diffusers' Chroma, HiDream and Z-Image pipelines"),
    "sd3": Value(7.0, "diffusers' SD3 pipelines"),
    "flux": Value(1.0, "guidance-distilled: its guidance is in the conditioning"),
    "qwen": Value(4.0, "diffusers' Qwen-Image pipelines"),
}
_EDIT_CFG = {  # of edits of real images
    "eps": Value(7.5, "reference code of null-text inversion"),
    "flow": Value(5.0, "diffusers' Chroma, HiDream and Z-Image pipelines"),
    "sd3": Value(7.0, "diffusers' SD3 pipelines"),
    "qwen": Value(4.0, "diffusers' Qwen-Image pipelines"),
}
_TEXT_SCALE = {
    "eps": Value(7.5, "reference code of InstructPix2Pix"),
    "sdxl": Value(5.0, "diffusers' SDXL InstructPix2Pix"),
    "demo": Value(3.0, _OURS),
    "flow": Value(4.0, "as Qwen-Image-Edit"),
    "flux": Value(1.0, "Kontext is guidance-distilled"),
    "qwen": Value(4.0, "diffusers' Qwen-Image-Edit pipeline"),
}
_IMAGE_SCALE = {
    "eps": Value(1.5, "reference code of InstructPix2Pix"),
    "flow": Value(1.6, "diffusers' OmniGen pipeline"),
    "flux": Value(1.0, "the model as it was made"),
    "qwen": Value(1.0, "the model as it was made"),
}
_WORD_RATE = {"eps": Value(0.005, "Textual Inversion's code"), "demo": Value(0.02, _OURS), "flow": Value(0.005, "as SD1.5: none is known")}

_SLIDER_STEPS = {
    "eps": Value(1000, "reference code of Concept Sliders"),
    "demo": Value(80, _OURS),
    "flow": Value(1000, "as eps models: none is known"),
}
_SLIDER_RATE = {
    "eps": Value(0.00005, "reference code: 0.0002 at alpha 1, rank 4"),
    "demo": Value(0.004, _OURS),
    "flow": Value(0.00005, "as eps models: none is known"),
}

_SD3_SHARE = "no published value: its share of SD3's, as plain cfg 5 or 4 has of 7"

TABLE: dict[str, dict[str, dict[str, Value]]] = {
    "DDIMInverter": {"scheduler": _UNIFORM},
    "NullTextInverter": {"scheduler": _UNIFORM, "cfg": _EDIT_CFG},
    "NegativePromptInverter": {"scheduler": _UNIFORM},
    "EDICTInverter": {"scheduler": _UNIFORM},
    "BDIAInverter": {"scheduler": _EXACT},
    "BELMInverter": {"scheduler": _EXACT},
    "EditFriendlyInverter": {"scheduler": _UNIFORM},
    "RFInverter": {"scheduler": _UNIFORM},
    "InstructPix2PixGuider": {"text_scale": _TEXT_SCALE, "image_scale": _IMAGE_SCALE},
    "InstructPix2PixPatch": {"image_scale": _IMAGE_SCALE},
    "InstructionChannels": {"text_scale": _TEXT_SCALE, "image_scale": _IMAGE_SCALE},
    "SDEditSampler": {"cfg": _CFG, "scheduler": _UNIFORM},
    "DiffEditSampler": {"cfg": _CFG, "scheduler": _UNIFORM},
    "FlowEditLatentSampler": {
        "scheduler": _UNIFORM,
        "steps": {
            "eps": Value(20, _OURS),
            "flow": Value(50, "no published value: as SD3"),
            "sd3": Value(50, "FlowEdit's SD3_exp.yaml"),
            "flux": Value(28, "FlowEdit's FLUX_exp.yaml"),
        },
        "steps | method = FlowAlign": {
            "eps": Value(20, _OURS),
            "flow": Value(33, "no published value: as SD3"),
            "sd3": Value(33, "FlowAlign's run_edit.py"),
        },
        "n_max": {
            "eps": Value(0.65, _OURS),
            "flow": Value(0.66, "no published value: as SD3"),
            "sd3": Value(0.66, "FlowEdit's SD3_exp.yaml: 33 of 50"),
            "flux": Value(0.86, "FlowEdit's FLUX_exp.yaml: 24 of 28"),
        },
        "n_max | method = FlowAlign": {
            "eps": Value(0.65, _OURS),
            "flow": Value(1.0, "no published value: as SD3"),
            "sd3": Value(1.0, "FlowAlign's run_edit.py"),
        },
        "source_cfg": {
            "eps": Value(1.5, _OURS),
            "flow": Value(2.5, _SD3_SHARE),
            "sd3": Value(3.5, "FlowEdit's SD3_exp.yaml"),
            "qwen": Value(2.0, _SD3_SHARE),
            "flux": Value(1.0, "FlowEdit: 1.5 in the conditioning"),
        },
        "cfg": {
            "eps": Value(7.5, _OURS),
            "flow": Value(9.5, _SD3_SHARE),
            "sd3": Value(13.5, "FlowEdit's SD3_exp.yaml"),
            "qwen": Value(7.5, _SD3_SHARE),
            "flux": Value(1.0, "FlowEdit: 5.5 in the conditioning"),
        },
        "cfg | method = FlowAlign": {
            "eps": Value(5.0, _OURS),
            "flow": Value(9.5, _SD3_SHARE),
            "sd3": Value(13.5, "FlowAlign's run_edit.py"),
            "qwen": Value(7.5, _SD3_SHARE),
            "flux": Value(5.0, "no published value: around FlowEdit's 5.5"),
        },
    },
    "P2PAttentionPatch": {
        "cross_end": {
            "eps": Value(0.8, "Prompt-to-Prompt's notebooks"),
            "flow": Value(0.8, "as the notebooks: none is known"),
        },
        "self_end": {
            "eps": Value(0.4, "Prompt-to-Prompt's notebooks"),
            "demo": Value(0.6, _OURS),
            "flow": Value(0.2, "joint attention, arXiv 2508.07519"),
            "cross": Value(0.4, "as the notebooks, whose text has cross-attention too"),
        },
    },
    "P2PLocalBlend": {
        "threshold": {
            "eps": Value(0.3, "Prompt-to-Prompt's notebooks"),
            "demo": Value(0.6, f"{_OURS}, whose maps are wider"),
            "flow": Value(0.3, "as the notebooks: none is known"),
        },
        "start_percent": {
            "eps": Value(0.2, "Prompt-to-Prompt's notebooks"),
            "demo": Value(0.1, _OURS),
            "flow": Value(0.2, "as the notebooks: none is known"),
        },
        "end_percent": {
            "eps": Value(1.0, "Prompt-to-Prompt's notebooks"),
            "flow": Value(0.5, "joint attention, arXiv 2508.07519"),
            "cross": Value(1.0, "as the notebooks, whose text has cross-attention too"),
        },
        "spread": {
            "eps": Value(1, "Prompt-to-Prompt's notebooks"),
            "flow": Value(0, "maps are smoothed instead, arXiv 2508.07519"),
        },
    },
    "WordRegions": {
        "anchors": {
            "eps": Value(0.1, "FreeFuse, arXiv 2510.23515"),
            "demo": Value(0.05, _OURS),
            "flow": Value(0.1, "FreeFuse, arXiv 2510.23515"),
        },
        "spread": {
            "eps": Value(0, "FreeFuse, arXiv 2510.23515"),
            "demo": Value(3, _OURS),
            "flow": Value(0, "FreeFuse, arXiv 2510.23515"),
        },
    },
    "PairOptions": {
        "min_cfg": {
            "eps": Value(7.5, "arXiv 2211.09800"),
            "sdxl": Value(5.0, "around diffusers' SDXL pipelines"),
            "demo": Value(3.0, _OURS),
            "flow": Value(3.0, "around the cfg of plain sampling"),
        },
        "max_cfg": {
            "eps": Value(15.0, "arXiv 2211.09800"),
            "sdxl": Value(9.0, "around diffusers' SDXL pipelines"),
            "demo": Value(6.0, _OURS),
            "flow": Value(7.0, "around the cfg of plain sampling"),
        },
    },
    "ValidationOptions": {"cfg": _CFG, "cfg | trainer = Train Instruction Model": _TEXT_SCALE, "image_scale": _IMAGE_SCALE},
    "ConceptSlider": {
        "guidance": {
            "eps": Value(4.0, "reference code of Concept Sliders"),
            "demo": Value(1.0, _OURS),
            "flow": Value(4.0, "as eps models: none is known"),
        },
        "resolution": {
            "eps": Value(512, "trained at 512 x 512"),
            "sd2": Value(768, "trained at 768 x 768"),
            "sdxl": Value(1024, "trained at 1024 x 1024"),
            "demo": Value(192, "trained at 192 x 192; shapes at 128 x 128"),
            "flow": Value(1024, "most image models are trained at 1024 x 1024"),
            "cross": Value(512, "around the size of video models"),
        },
    },
    "NewWord": {"word_rate": _WORD_RATE | {"demo": Value(0.01, _OURS)}},
    "TIEmbeddingTrainer": {
        "steps": {
            "eps": Value(3000, "diffusers' Textual Inversion guide, 4 images a step"),
            "sdxl": Value(500, "diffusers' SDXL Textual Inversion guide, 4 images a step"),
            "demo": Value(100, _OURS),
            "flow": Value(3000, "as SD1.5: none is known"),
        },
        "learning_rate": _WORD_RATE,
    },
    "DreamBoothTrainer": {
        "steps": {
            "eps": Value(500, "diffusers' DreamBooth LoRA guide"),
            "sdxl": Value(500, "diffusers' SDXL LoRA guide, 4 images a step"),
            "demo": Value(250, _OURS),
            "flow": Value(500, "diffusers' LoRA guides, 4 images a step"),
        },
        "steps | train = all weights": {
            "eps": Value(800, "diffusers' DreamBooth guide, with class images"),
            "flow": Value(500, "diffusers' guides of SD3 and Flux, 4 images a step"),
        },
        "steps | concept_slider = prompts": _SLIDER_STEPS,
        "steps | concept_slider = image pairs": _SLIDER_STEPS,
        "learning_rate": {
            "eps": Value(0.0001, "diffusers' DreamBooth LoRA guide"),
            "demo": Value(0.004, _OURS),
            "flow": Value(0.0001, "diffusers' Flux LoRA guide"),
            "sd3": Value(0.0004, "diffusers' SD3 LoRA guide"),
            "qwen": Value(0.0002, "diffusers' Qwen-Image LoRA guide"),
        },
        "learning_rate | train = all weights": {
            "eps": Value(0.000005, "diffusers' DreamBooth guide"),
            "flow": Value(0.000005, "as eps models: none is known"),
            "sd3": Value(0.0001, "diffusers' SD3 guide"),
        },
        "learning_rate | concept_slider = prompts": _SLIDER_RATE,
        "learning_rate | concept_slider = image pairs": _SLIDER_RATE,
        "rank": {
            "eps": Value(4, "diffusers' DreamBooth LoRA script"),
            "demo": Value(8, _OURS),
            "flow": Value(16, "diffusers' Flux LoRA guide"),
        },
    },
    "CustomDiffusionTrainer": {
        "steps": {
            "eps": Value(250, "reference code and diffusers' guide"),
            "demo": Value(200, _OURS),
            "flow": Value(250, "as eps models: none is known"),
        },
        "learning_rate": {
            "eps": Value(0.00008, "reference code: 0.00001 x batch 4 x 2 GPUs"),
            "demo": Value(0.001, _OURS),
            "flow": Value(0.00008, "as eps models: none is known"),
        },
    },
    "InstructPix2PixTrainer": {
        "steps": {
            "eps": Value(2000, "no published value for LoRAs"),
            "demo": Value(60, _OURS),
            "flow": Value(2000, "no published value"),
        },
        "steps | train = all weights": {
            "eps": Value(15000, "diffusers' InstructPix2Pix guide, 16 pairs a step"),
            "flow": Value(15000, "as eps models: none is known"),
        },
        "learning_rate": {
            "eps": Value(0.0001, "arXiv 2211.09800"),
            "demo": Value(0.003, _OURS),
            "flow": Value(0.0001, "as eps models: none is known"),
        },
    },
}


def setting(node_id: str, name: str, family: str, given: dict) -> Value:
    """The value of an input for a family; `given`: the node's other inputs."""
    rows = TABLE[node_id]
    special = next((rows[key] for key in rows if key.startswith(f"{name} | ") and _holds(key, given)), {})
    for row in (special, rows[name]):
        found = next((row[each] for each in _line(family) if each in row), None)
        if found is not None:
            return found
    raise KeyError(f"{node_id}.{name} has no value for {family}")


def _line(family: str) -> list[str]:
    """A family and those above it."""
    parent = FAMILIES[family].parent
    return [family, *(_line(parent) if parent else ())]


def _holds(key: str, given: dict) -> bool:
    """Whether the condition of a row's name holds."""
    name, wanted = key.split(" | ")[1].split(" = ")
    return str(given.get(name)) == wanted


def label(family: str) -> str:
    parent = FAMILIES[family].parent
    return FAMILIES[family].label if parent else f"other {FAMILIES[family].label}"


def shown(value: float | str) -> str:
    """A value for a reader: no exponent, and no digits without meaning."""
    return f"{value:.7f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)


def page_table(node_id: str) -> str:
    """The table of a node's help page, in Markdown: a line for each value."""
    lines = ["| auto | model | value | source |", "|---|---|---|---|"]
    for name, row in TABLE[node_id].items():
        lines += [f"| {_title(name)} | {_models(each, row)} | {shown(found.value)} | {found.source} |" for each, found in row.items()]
    return "\n".join(lines)


def _title(name: str) -> str:
    own, _, condition = name.partition(" | ")
    return f"{own}, {condition}" if condition else own


def _models(family: str, row: dict) -> str:
    """Who takes a value of a row: the family, and those that inherit it."""
    heirs = [
        f.label for name, f in FAMILIES.items() if name != family and next((each for each in _line(name) if each in row), None) == family
    ]
    return f"{FAMILIES[family].label}, so also {', '.join(heirs)}" if heirs else FAMILIES[family].label
