"""Says which model something was made with."""

from __future__ import annotations

from dataclasses import dataclass, field

import comfy.supported_models
import comfy.utils

from .demo import DemoModel
from .fingerprint import Weights

_CONFIGS = {  # family: ComfyUI's configuration of it, from which those of its variants inherit
    "demo": DemoModel,
    "sd15": comfy.supported_models.SD15,
    "sd2": comfy.supported_models.SD20,
    "sdxl": comfy.supported_models.SDXL,
    "sd3": comfy.supported_models.SD3,
    "flux": comfy.supported_models.Flux,
    "qwen": comfy.supported_models.QwenImage,
    "wan": comfy.supported_models.WAN21_T2V,
}
_CROSS = tuple(getattr(comfy.supported_models, name, ()) for name in ("LTXV", "Kandinsky5"))


@dataclass(frozen=True)
class ModelTag:
    """Which model an inversion belongs to. `patched` weights carried a LoRA when it was made; a later one may carry others."""

    family: str
    latent_format: str
    prediction: str
    weights: Weights = field(repr=False)
    patched: int = field(default=0, compare=False)

    @classmethod
    def of(cls, model) -> ModelTag:
        sampling = model.get_model_object("model_sampling")
        kinds = {"flow": comfy.model_sampling.CONST, "v": comfy.model_sampling.V_PREDICTION, "eps": comfy.model_sampling.EPS}
        prediction = next((name for name, kind in kinds.items() if isinstance(sampling, kind)), "another prediction")
        kind = type(model.model).__name__, type(model.model.latent_format).__name__, prediction
        return cls(*kind, Weights.of(model), len(model.patches))

    @property
    def kind(self) -> str:
        return f"{self.family} ({self.latent_format}, {self.prediction})"

    def check(self, model) -> None:
        """Refuses a model with other weights, or that predicts something else with them; another precision and LoRA are accepted."""
        own, advice = ModelTag.of(model), "Connect the model of the inversion, or invert again with this one."
        if self.prediction == own.prediction and self.weights.same(own.weights):
            return
        if own.kind != self.kind:
            raise ValueError(f"The inversion was made with {self.kind}, but the model is {own.kind}. {advice}")
        raise ValueError(f"The inversion was made with another {self.kind}: the weights of this model are not the same. {advice}")


def check_flow(model, what: str, instead: str) -> None:
    """Refuses models that are no flow models."""
    tag = ModelTag.of(model)
    if tag.prediction != "flow":
        convertible = ", or make it one with Model Sampling as Flow" if tag.prediction in ("eps", "v") else ""
        raise ValueError(f"{what} needs a flow model (SD3, Flux, ...), but the model is {tag.kind}. Use {instead} with it{convertible}.")


def family(model) -> str:
    """The family of a MODEL, a name of `nodes.inputs.families.FAMILIES`; of a model that is none of them by its prediction."""
    config = getattr(model.model, "model_config", None)
    named = next((name for name, kind in _CONFIGS.items() if isinstance(config, kind)), None)
    flow = isinstance(model.get_model_object("model_sampling"), comfy.model_sampling.CONST)
    return named or ("eps" if not flow else "cross" if isinstance(config, _CROSS) else "flow")
