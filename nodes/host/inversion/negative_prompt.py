"""The source prompt as a negative conditioning, and what lies between it and an empty prompt."""

from __future__ import annotations

from ....inversion.negative_prompt import slerp


def as_null(source: list) -> list:
    """The source as a negative for which ComfyUI makes the same prediction."""
    return [[features, {**extras, "prompt_type": "positive"}] for features, extras in source]


def between(source: list, negative: list | None, share: float) -> list:
    """The conditioning at `share` of the way from the source to the negative: spherical interpolation of embedding and pooled vector."""
    if share == 0.0:
        return source
    if negative is None:
        raise ValueError(f"interpolation is {share:g}, which needs the negative: connect an empty prompt, or set it to 0.")
    if len(source) != 1 or len(negative) != 1:
        raise ValueError(
            f"Source and negative have {len(source)} and {len(negative)} parts; interpolation needs one each. Set it to 0, or take "
            "combined conditionings apart."
        )
    ((a, extras), (b, other)) = source[0], negative[0]
    if a.shape[1:] != b.shape[1:]:
        raise ValueError(
            f"Source and negative have {a.shape[1]} and {b.shape[1]} tokens; interpolation needs equally many. Set it to 0, or shorten the "
            "longer prompt."
        )
    pooled = [e.get("pooled_output") for e in (extras, other)]
    more = {} if any(p is None for p in pooled) else {"pooled_output": slerp(*pooled, share)}
    return [[slerp(a, b, share), extras | more]]
