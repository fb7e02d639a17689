"""What the pack asks of conditionings: whether they are equal, active, made for this model, or marked by a control."""

from __future__ import annotations

import comfy.samplers
import torch

KEY = "controlled_diffusion.attention"
RANGE = {"timestep_start", "timestep_end"}
COSTLY = {"area", "mask", "gligen", "model_conds"}  # what ComfyUI prepares of a part, whose range does not depend on it


def marked(conditioning: list, token: str, branches: int = 1) -> list:
    """The conditioning with the mark of a control. `branches`: its rows are so many variants of each image, as those of Prompt-to-Prompt."""
    return [[features, {**values, KEY: (*values.get(KEY, ()), (token, branches))}] for features, values in conditioning]


def branches_of(conditioning: list) -> int:
    """How many branches the rows of a CONDITIONING are, by its marks: 1, or of Prompt-to-Prompt the source and every target."""
    return max((branches for _, values in conditioning for _, branches in values.get(KEY, ())), default=1)


def has_mark(given: dict, listed: list[dict], token: str) -> bool:
    """Whether a conditioning of a run's list bears the mark by itself."""
    return token in dict(origin(given, listed).get(KEY, ()))


def is_positive(name: str, given: dict) -> bool:
    """Whether a conditioning of a run's list of this name is a positive one."""
    return not ("negative" in name or given.get("prompt_type") == "negative")


def features_of(given: dict):
    return given.get("model_conds", {}).get("c_crossattn")


def origin(given: dict, listed: list[dict]) -> dict:
    """The conditioning of a run's list whose marks count for one of the same list.

    Where one list has areas, ComfyUI gives the other copies of its entries, with marks and uuid of the foreign, but with features of the
    other's own: then it is the first entry with these features.
    """
    features = features_of(given)
    return next((c for c in listed if features is not None and features_of(c) is features), given)


def same_value(a, b) -> bool:
    if a is b:
        return True
    if torch.is_tensor(a) and torch.is_tensor(b):
        return a.shape == b.shape and a.dtype == b.dtype and torch.equal(a, b)
    if type(a) in (tuple, list):
        return type(a) is type(b) and len(a) == len(b) and all(map(same_value, a, b))
    return type(a) is type(b) and isinstance(a, (str, int, float, bool)) and a == b


def same_conditioning(a: list[dict], b: list[dict]) -> bool:
    """Whether two converted conditionings ask the network for the same prediction."""
    own = {"uuid", "model_conds", "prompt_type"}
    pairs = list(zip(a, b))
    return len(a) == len(b) and all(
        x.keys() - own == y.keys() - own and all(same_value(x[k], y[k]) for k in x.keys() - own) for x, y in pairs
    )


def check_conditionings(model, named: dict[str, list]) -> None:
    """Refuses conditionings that were encoded for a model of another width."""
    config = model.model.model_config.unet_config
    wanted = next((config[k] for k in ("context_dim", "context_in_dim") if isinstance(config.get(k), int)), None)
    for name, conditioning in named.items():
        for features, _ in conditioning:
            if wanted and torch.is_tensor(features) and features.shape[-1] != wanted:
                raise ValueError(
                    f"{name} has text features of width {features.shape[-1]}, but {type(model.model).__name__} takes {wanted}: "
                    "it was encoded for another model. Encode it with the CLIP that belongs to this model."
                )


def is_active(conditioning: list[dict] | None, x: torch.Tensor, timestep: torch.Tensor) -> bool:
    """Whether ComfyUI would evaluate any part of a conditioning at this sigma; it makes a zero image of none."""
    return any("default" in c or _in_range(c, x, timestep) for c in conditioning or ())


def _in_range(given: dict, x: torch.Tensor, timestep: torch.Tensor) -> bool:
    """Whether the timestep range of a part, if it has one, includes this sigma; ComfyUI decides."""
    if not RANGE & given.keys():
        return True
    alone = {k: v for k, v in given.items() if k not in COSTLY}
    return comfy.samplers.get_area_and_mult({**alone, "model_conds": {}}, x, timestep) is not None


def active_parts(conditioning: list[dict], x: torch.Tensor, sigma: torch.Tensor) -> int:
    """How many parts of a conditioning ComfyUI evaluates at this sigma."""
    return sum(is_active([part], x, sigma) for part in conditioning)
