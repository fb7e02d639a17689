"""A working call of every node of the pack on the demo model, made from its schema: what damaged values are put into."""

import asyncio
from functools import cache
from types import SimpleNamespace

import comfy.sample
import torch

from .host import load_pack

SIDE = 64  # pixels of the images
SHORT = {  # instead of a widget's default, so that a call takes little time
    **dict(steps=2, inner_steps=1, n_max=0.5, maps=1, levels=1, fixed_point_iterations=1, skip=0, width=SIDE, height=SIDE, repeats=1),
    **dict(candidates=1, keep=1, class_count=1, class_batch=1, warmup=0, rank=1, batch_size=1, vectors=1),
    **dict(sampler_name="euler", scheduler="normal", precision="float32"),
}
OWN = {  # what single nodes need
    "ClassifierChannel": dict(labels="red"),
    "DiffEditSampler": dict(steps=4),
    "SDEditSampler": dict(strength=0.5),
    "P2PAttentionPatch": dict(source="a red circle", targets="a blue circle"),
    "WordWeights": dict(text="a red circle", word_weights="red: 2"),
    "P2PLocalBlend": dict(words="circle"),
    "AttentionMapCapture": dict(prompt="a red circle", words="circle"),
    "AttentionMapView": dict(words="", mask_word="circle"),
    "ClassImages": dict(class_prompt="a circle"),
    "NewWord": dict(initial_words="red"),
    "WordRegions": dict(prompt="a red circle", phrases="circle"),
    "ValidationOptions": dict(count=0),
    "NoisyClassifierTrainer": dict(labels=["red", "blue"], held_out=0.0),
    "DreamBoothTrainer": dict(instance_prompt="a <concept> circle"),
    "CustomDiffusionTrainer": dict(instance_prompt="a <concept> circle"),
    "TIEmbeddingTrainer": dict(initial_words="red"),
    "CustomDiffusionMerge": dict(regular_prompts="a circle\na star"),
    "InstructPix2PixPairs": dict(
        prompt_pairs="a red circle => a blue circle | make it blue", if_exists="number it", filter=lambda before, after, pair: [1.0],
    ),
    "PairFilter": dict(by={"by": "changed area", "min_changed": 0.0, "max_changed": 1.0}),
    "InstructPix2PixTrainer": dict(folder="", instructions=["make it blue", "make it blue"]),
}


def collected() -> list:
    """The nodes as ComfyUI gets them."""
    extension = asyncio.run(load_pack().comfy_entrypoint())
    return asyncio.run(extension.get_node_list())


@cache
def nodes() -> dict:
    return {node.GET_SCHEMA().node_id: node for node in collected()}


def run(node_id: str, **inputs) -> tuple:
    """What a node gives, called as ComfyUI calls it."""
    with torch.inference_mode():
        return nodes()[node_id].EXECUTE_NORMALIZED(**inputs).args


class Sockets:
    """Values of every socket type, each made once by the pack's own nodes."""

    def __init__(self):
        self.images = torch.rand(2, SIDE, SIDE, 3, generator=torch.Generator().manual_seed(0))
        self._made = {}

    def __call__(self, kind: str):
        if kind not in self._made:
            with torch.inference_mode():
                self._made[kind] = getattr(self, "_" + kind.lower())()
        return self._made[kind]

    @property
    def demo(self) -> tuple:
        return self("DEMO")

    def _demo(self):
        return run("DemoModelLoader", world="shapes")

    def _model(self):
        return self.demo[0]

    def _clip(self):
        return self.demo[1]

    def _vae(self):
        return self.demo[2]

    def _flow(self):
        return run("ModelSamplingAsFlow", model=self("MODEL"))[0]

    def _editor(self):
        return run("DemoInstructModelLoader", world="shapes")[0]

    def _image(self):
        return self.images[:1]

    def _mask(self):
        return self.images[:1, ..., 0].round()

    def _latent(self):
        return {"samples": self("VAE").encode(self("IMAGE"))}

    def _conditioning(self):
        clip = self("CLIP")
        return clip.encode_from_tokens_scheduled(clip.tokenize("a red circle"))

    def _sigmas(self):
        return torch.tensor([14.0, 5.0, 1.0, 0.0])

    def _curve(self):
        return SimpleNamespace(interp=lambda x: x)

    def _clip_vision(self):
        return run("DemoImageEncoderLoader", world="shapes")[0]

    def _clip_vision_output(self):
        return self("CLIP_VISION").encode_image(self("IMAGE"))

    def _ip_adapter(self):
        return run("IPAdapterLoader", adapter_name="shapes_model.safetensors")[0]

    def _noisy_classifier(self):
        return run("NoisyClassifierLoader", classifier_name="shapes_model.safetensors")[0]

    def _pair_checker(self):
        return lambda before, after, pair: [1.0] * len(before)

    def _p2p_options(self):
        return run("P2POptions", **good("P2POptions", self))[0]

    def _pair_filter(self):
        return run("PairFilter", **good("PairFilter", self))[0]

    def _pair_options(self):
        return run("PairOptions", **good("PairOptions", self))[0]

    def _guidance_schedule(self):
        return run("GuidanceSchedule", **good("GuidanceSchedule", self))[0]

    def _guidance_channel(self):
        return run("GuidanceChannel", conditioning=self("CONDITIONING"), role=dict(role="positive", weight=2.0), start_percent=0.0,
                   end_percent=1.0, priority=0, name="")[0]  # fmt: skip

    def _option(self, node_id: str, **asked):
        return run(node_id, **good(node_id, self) | asked)[0]

    def _training_options(self):
        return self._option("TrainingOptions")

    def _dataset_options(self):
        return self._option("DatasetOptions", masks=[])

    def _validation_options(self):
        return self._option("ValidationOptions")

    def _class_images(self):
        return self._option("ClassImages", images=[])

    def _new_word(self):
        return self._option("NewWord")

    def _concept_slider(self):
        return self._option("ConceptSlider", before=[], after=[])

    def _inversion(self):
        return run("DDIMInverter", **good("DDIMInverter", self))[0]

    def _guider(self):
        return run("MultiCFGGuider", **good("MultiCFGGuider", self))[0]

    def sampled(self, model, positive, negative) -> dict:
        """The latent of a short run."""
        empty = torch.zeros(len(positive[0][0]), 4, 16, 16)
        noise = comfy.sample.prepare_noise(empty, 0, [0] * len(empty))
        return {"samples": comfy.sample.sample(model, noise, 2, 3.0, "euler", "normal", positive, negative, empty, disable_pbar=True)}

    def _guided(self):
        """(model, latent) of a run of Multi CFG Patch."""
        model = run("MultiCFGPatch", **good("MultiCFGPatch", self))[0]
        return model, self.sampled(model, self("CONDITIONING"), self("CONDITIONING"))

    def _captured(self):
        model, positive = run("AttentionMapCapture", **good("AttentionMapCapture", self))
        return model, self.sampled(model, positive, self("CONDITIONING"))

    def _blended(self):
        _, positive, negative, *_ = self("EDITED")
        blended = run("P2PLocalBlend", **good("P2PLocalBlend", self))[0]
        return blended, self.sampled(blended, positive, negative)

    def _regional(self):
        model, positive = run("WordRegions", **good("WordRegions", self))
        return model, self.sampled(model, positive, self("CONDITIONING"))

    def _edited(self):
        return run("P2PAttentionPatch", **good("P2PAttentionPatch", self))

    def _attention_maps(self):
        return run("AttentionMapView", **good("AttentionMapView", self))[2]

    def _concepts(self):
        given = good("CustomDiffusionTrainer", self)
        names = [run("CustomDiffusionTrainer", **given | {"name": [f"concept-{n}"], "seed": [n]})[2] for n in (1, 2)]
        return "\n".join(f"{n} = a embedding:{n} circle" for n in (name.removesuffix(".safetensors") for name in names))

    def _instructed(self):
        """The name of a trained instruction model."""
        return run("InstructPix2PixTrainer", **good("InstructPix2PixTrainer", self) | {"name": ["editor"]})[1]

    def special(self, node_id: str) -> dict:
        """The sockets of nodes that need other values than those of their types."""
        if node_id in ("InstructPix2PixGuider", "InstructPix2PixPatch", "InstructionChannels"):
            return dict(model=self("EDITOR"))
        if node_id in ("RFInverter", "FlowEditLatentSampler"):
            return dict(model=self("FLOW"))
        runs = {"GuidanceReport": "GUIDED", "AttentionMapView": "CAPTURED", "P2PBlendMask": "BLENDED", "WordRegionsView": "REGIONAL"}
        if node_id in runs:
            return dict(zip(("source", "latent"), self(runs[node_id])))
        return {
            "InversionSampler": lambda: dict(cfg=2.0),
            "GuidanceSchedule": lambda: dict(shape=dict(shape="curve", height=1.0, axis="percent", curve=self("CURVE"))),
            "LoadInversion": lambda: dict(name="shapes_model.safetensors"),
            "CustomDiffusionMerge": lambda: dict(concepts=self("CONCEPTS")),
            "InstructPix2PixLoader": lambda: dict(name=self("INSTRUCTED")),
            "P2PLocalBlend": lambda: dict(model=self("EDITED")[0]),
            "AttentionMapCapture": lambda: dict(conditioning=None),
            "P2PAttentionPatch": lambda: dict(latent={"samples": torch.zeros(1, 4, 16, 16)}),
            "ImageGuidanceChannel": lambda: dict(text=None),
            "InversionReport": lambda: dict(inversion=None),
            "NoisyClassifierTrainer": lambda: dict(images=self.images),
            "DreamBoothTrainer": lambda: dict(concept_slider=None),
            "ConceptSlider": lambda: dict(before=None, after=None),
            "InstructPix2PixTrainer": lambda: dict(before=self.images, after=self.images),
        }.get(node_id, dict)()


def widget(given, of_node: dict):
    """A widget's value: short, or its default, or its first option."""
    options = getattr(given, "options", None)
    value = of_node.get(given.id, SHORT.get(given.id, given.default))
    return value if value is not None or not options else options[0]


def option_of(given, option, sockets: Sockets, of_node: dict) -> dict:
    """The value of a dynamic combo with one of its options."""
    return {given.id: option.key} | {own.id: value_of(own, sockets, of_node) for own in option.inputs}


def value_of(given, sockets: Sockets, of_node: dict):
    """A good value of an input of a schema."""
    if given.id in of_node:
        return of_node[given.id]
    kind = given.get_io_type()
    if kind == "COMFY_AUTOGROW_V3":
        return {f"{given.template.prefix}0": sockets(given.template.input.get_io_type().split(",")[0])}
    if kind == "COMFY_DYNAMICCOMBO_V3":
        return option_of(given, given.options[0], sockets, of_node)
    if hasattr(given, "default"):
        return widget(given, of_node)
    return sockets("LATENT" if "LATENT" in kind.split(",") else kind.split(",")[0])


def good(node_id: str, sockets: Sockets) -> dict:
    """Inputs with which a node works; of a node that takes lists, lists."""
    schema, of_node = nodes()[node_id].GET_SCHEMA(), OWN.get(node_id, {}) | sockets.special(node_id)
    found = {given.id: value_of(given, sockets, of_node) for given in schema.inputs}
    found = {k: v for k, v in found.items() if v is not None}
    if not schema.is_input_list:
        return found
    combos = {i.id for i in schema.inputs if i.get_io_type() == "COMFY_DYNAMICCOMBO_V3"}
    return {k: in_lists(v) if k in combos else v if isinstance(v, list) and k != "conditioning" else [v] for k, v in found.items()}


def in_lists(value):
    """The value of a dynamic combo as a node gets it that takes lists."""
    return {k: [v] for k, v in value.items()} if isinstance(value, dict) else [value]
