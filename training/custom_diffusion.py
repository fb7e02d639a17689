"""Custom Diffusion (arXiv 2212.04488): keys and values of cross-attention trained for a concept, and several concepts merged in closed form."""

from __future__ import annotations

from collections.abc import Sequence

import torch

_NOUNS = """
    cat dog horse bird fish man woman child face crowd house tower bridge street garden tree flower forest river beach mountain
    desert island sky cloud storm car bus train boat plane bicycle chair table lamp bed window door cup bottle plate cake apple
    bread book clock phone guitar shoe hat bag toy ball statue painting mirror circle square triangle star cross
"""
NOUNS = tuple(_NOUNS.split())
SENTENCES = (
    "a photo of a {}", "two {}s on a table", "a red {} at night", "the {} in the middle of a white room", "an old drawing of a small {}",
)  # fmt: skip
REGULAR = tuple(sentence.format(noun) for noun in NOUNS for sentence in SENTENCES)


def without_start(projected: torch.Tensor) -> torch.Tensor:
    """Keys or values (B, tokens, width) as they are, with no gradient through those of the first token, which begins every prompt."""
    return torch.cat([projected[:, :1].detach(), projected[:, 1:]], 1)


def own_rows(features: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """The rows of text features (n, width) of each concept that no other concept has too, each once.

    Sentences that begin alike have the same features there, for which two concepts would ask for different values.
    """
    distinct = []
    for i, rows in enumerate(features):
        others = torch.cat([f for j, f in enumerate(features) if j != i] or [rows[:0]])
        own: list[torch.Tensor] = []
        for row in rows:
            near = [*others, *own]
            if not near or bool((torch.stack(near) - row).norm(dim=1).min() > 1e-4 * row.norm()):
                own.append(row)
        if not own:
            raise ValueError("A concept's prompt says nothing that the others do not say too. Use its new word in it.")
        distinct.append(torch.stack(own))
    return distinct


def directions(concepts: torch.Tensor, regular: torch.Tensor) -> torch.Tensor:
    """d = C (C_reg^T C_reg)^-1, (n, width), of the features C (n, width) of all concepts and C_reg (m, width) of ordinary sentences.

    Where there are too few sentences for the inverse, its matrix is raised a little; what `merged` promises holds all the same.
    """
    spread = regular.T @ regular
    spread += torch.eye(len(spread), dtype=spread.dtype, device=spread.device) * spread.diagonal().mean() * 1e-6
    return torch.linalg.solve(spread, concepts.T).T


def merged(weight: torch.Tensor, concepts: torch.Tensor, values: torch.Tensor, along: torch.Tensor) -> torch.Tensor:
    """The weight (out, width) nearest to `weight` for ordinary sentences that gives concepts their own values; appendix B.

    W^ = W + (V^T - W C^T)(d C^T)^-1 d, so W^ C^T = V^T, with C (n, width), V (n, out) and `along` = d (n, width), all float64.
    """
    missing = values.T - weight @ concepts.T
    return weight + missing @ torch.linalg.pinv(along @ concepts.T, rtol=1e-9) @ along
