"""Says which model something was made with."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import comfy.model_sampling
import comfy.supported_models
import torch

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


_KINDS = {  # prediction: ComfyUI's class of it; subclasses first
    "flow": comfy.model_sampling.CONST,
    "x0": comfy.model_sampling.X0,
    "v": comfy.model_sampling.V_PREDICTION,
    "eps": comfy.model_sampling.EPS,
}


def _prediction(model) -> str:
    sampling = model.get_model_object("model_sampling")
    return next((name for name, kind in _KINDS.items() if isinstance(sampling, kind)), "another prediction")


def kind_of(model) -> str:
    """A MODEL's class, latent format and prediction, for people."""
    return _kind(*_names(model))


def _names(model) -> tuple[str, str, str]:
    return type(model.model).__name__, type(model.model.latent_format).__name__, _prediction(model)


def _kind(family: str, latent_format: str, prediction: str) -> str:
    return f"{family} ({latent_format}, {prediction})"


def _readings(sampling, sigmas: Sequence[float]) -> tuple[tuple[float, ...], ...]:
    """How a network is asked at each sigma and its answer is read: (sigma, timestep, scale of its input, shares of the answer and of x in the
    denoised latent). Two schedules for which these are alike are one there: a flow model's shift only chooses other sigmas."""
    at, sampling = torch.tensor(list(sigmas)), copy.deepcopy(sampling).cpu()  # the same wherever the model is, and no waiting for a GPU
    one, none = torch.ones(len(at), 1, 1, 1), torch.zeros(len(at), 1, 1, 1)
    parts = sampling.timestep(at), sampling.calculate_input(at, one), *(sampling.calculate_denoised(at, a, b) for a, b in ((one, none), (none, one)))
    return tuple(zip(map(float, sigmas), *(part.flatten().double().tolist() for part in parts)))


def _alike(own: tuple[float, ...], other: tuple[float, ...]) -> bool:
    """Up to rounding; between two counted timesteps it decides which of them is nearer."""
    slack = 1.0 if own[1].is_integer() and other[1].is_integer() else 0.0
    return abs(own[1] - other[1]) <= max(slack, 1e-4 * abs(own[1])) and all(math.isclose(a, b, rel_tol=1e-4, abs_tol=1e-6) for a, b in zip(own[2:], other[2:]))


@dataclass(frozen=True)
class ModelTag:
    """Which model an inversion belongs to. `patched` weights carried a LoRA when it was made; a later one may carry others. `readings` of its noise
    schedule at the inversion's sigmas, as of `_readings`."""

    family: str
    latent_format: str
    prediction: str
    weights: Weights = field(repr=False)
    patched: int = field(default=0, compare=False)
    readings: tuple[tuple[float, ...], ...] = ()

    @classmethod
    def of(cls, model, sigmas: Sequence[float]) -> ModelTag:
        """That of a MODEL which was evaluated at these sigmas."""
        readings = _readings(model.get_model_object("model_sampling"), [sigma for sigma in sigmas if sigma > 0])
        return cls(*_names(model), Weights.of(model), len(model.patches), readings)

    @property
    def kind(self) -> str:
        return _kind(self.family, self.latent_format, self.prediction)

    def check(self, model) -> None:
        """Refuses a model with other weights, that predicts something else with them, or that asks for other timesteps at the inversion's sigmas;
        another precision and LoRA are accepted."""
        own, advice = ModelTag.of(model, [sigma for sigma, *_ in self.readings]), "Connect the model of the inversion, or invert again with this one."
        if self.prediction == own.prediction and self.weights.same(own.weights):
            apart = next(((a, b) for a, b in zip(self.readings, own.readings) if not _alike(a, b)), None)
            if apart is None:
                return
            (sigma, timestep, scale, *_), (_, own_timestep, own_scale, *_) = apart
            raise ValueError(
                f"The inversion was made with {self.kind} under another noise schedule: at its sigma {sigma:.4g} the network got timestep {timestep:.6g} and "
                f"its input times {scale:.4g}, from this model it would get {own_timestep:.6g} and {own_scale:.4g}. Use the same ModelSampling nodes for "
                "both, or invert again with this model."
            )
        if own.kind != self.kind:
            raise ValueError(f"The inversion was made with {self.kind}, but the model is {own.kind}. {advice}")
        raise ValueError(f"The inversion was made with another {self.kind}: the weights of this model are not the same. {advice}")


def check_flow(model, what: str, instead: str) -> None:
    """Refuses models that are no flow models."""
    prediction = _prediction(model)
    if prediction != "flow":
        convertible = ", or make it one with Model Sampling as Flow" if prediction in ("eps", "v") else ""
        raise ValueError(f"{what} needs a flow model (SD3, Flux, ...), but the model is {kind_of(model)}. Use {instead} with it{convertible}.")


def family(model) -> str:
    """The family of a MODEL, a name of `nodes.inputs.families.FAMILIES`; of a model that is none of them by its prediction."""
    config = getattr(model.model, "model_config", None)
    named = next((name for name, kind in _CONFIGS.items() if isinstance(config, kind)), None)
    flow = isinstance(model.get_model_object("model_sampling"), comfy.model_sampling.CONST)
    return named or ("eps" if not flow else "cross" if isinstance(config, _CROSS) else "flow")
