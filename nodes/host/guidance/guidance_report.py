"""The images of Guidance Report: weights and what guidance did."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ....guidance.multi_cfg import Channel, Rules
from ....guidance.record import Record
from ..images import as_image, line_chart, stacked
from ..noise_levels import noise_scale


def weights_image(model, channels: Sequence[Channel], sigmas: torch.Tensor | None, rules: Rules = Rules()) -> torch.Tensor:
    """The weight of every channel under the rules at each step of `sigmas`, or over all percents; an IMAGE."""
    scale = noise_scale(model)
    if sigmas is None or len(sigmas) < 2:
        marks = [(i / 200, scale.sigma(i / 200)) for i in range(201)]
    else:
        marks = [(i, float(s)) for i, s in enumerate(sigmas[:-1])]

    def strength(channel: Channel, sigma: float) -> float:
        return 0.0 if scale.range_percent(sigma) < rules.zero_init_percent else rules.strength(channel, sigma, scale)

    lines = {f"{i} {c.name}": [(x, strength(c, s)) for x, s in marks] for i, c in enumerate(channels, 1)}
    return as_image(line_chart(lines, "guidance weight", "percent of the sampling" if sigmas is None else "step"))


def report_image(record: Record) -> torch.Tensor:
    """Weights, strengths and pairwise cosines of every term of a run; an IMAGE."""
    names, step, size = record.names, "prediction", (768, 300)
    pairs = [(a, b) for i, a in enumerate(names) for b in names[i + 1 :]]
    charts = [
        (f"weight of each channel; {record.evaluations} evaluations of the network in {len(record.entries)} predictions", record.weight),
        ("strength: RMS of what each channel adds, in latent units", record.norm),
    ]
    drawn = [line_chart({n: line for n in names if (line := read(n))}, title, step, size) for title, read in charts if names]
    cosines = {f"{a} / {b}": line for a, b in pairs if (line := record.cosine(a, b))}
    if cosines:
        drawn.append(line_chart(cosines, "cosine of two channels: below 0 they work against each other", step, size))
    return as_image(stacked(drawn or [line_chart({"nothing": [(0, 0.0)]}, "no channel acted in this run", step, size)]))
