"""One attention of one call of the network, whose rows may use the queries and keys of other rows and whose results may be changed."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch


def select_rows(t: torch.Tensor, rows: Sequence[int]) -> torch.Tensor:
    """Rows of a tensor. Indexing would copy the indices to the GPU first, which waits for everything queued there."""
    rows = list(rows)
    if rows == list(range(rows[0], rows[0] + len(rows))):
        return t[rows[0] : rows[0] + len(rows)]
    return torch.cat([t[row : row + 1] for row in rows])


class QKSharing:
    """`base(q, k, v)` is the attention underneath: ComfyUI's where `plain`, else another node's. Rows are rows of the network's batch."""

    latent: tuple[int, ...] = ()  # ([frames,] H, W) of what the network is called for

    def __init__(self, qkv: tuple[torch.Tensor, ...], base: Callable, plain: bool):
        (self.q, self.k, self.v), self.base, self.plain = qkv, base, plain
        self.source_row = list(range(len(self.q)))  # for each row, the row whose queries and keys it uses
        self.changed: dict[int, torch.Tensor] = {}
        self.used, self.out, self._own = (self.q, self.k), None, None

    def shared(self, t: torch.Tensor) -> torch.Tensor:
        """Queries or keys, each row's those of its source row."""
        return select_rows(t, self.source_row)

    def run(self) -> None:
        """Evaluates the base with the shared queries and keys."""
        if self.source_row != list(range(len(self.source_row))):
            self.used = self.shared(self.q), self.shared(self.k)
        self.out = self.base(*self.used, self.v)

    def own_output(self, rows: list[int]) -> torch.Tensor:
        """What rows would give with their own queries and keys."""
        if self._own is None:
            self._own = self.out if self.used[0] is self.q else self.base(self.q, self.k, self.v)
        return select_rows(self._own, rows)

    def set_output(self, rows: list[int], out: torch.Tensor) -> None:
        self.changed |= dict(zip(rows, out.to(self.out.dtype).split(1)))

    def covers(self, latent: tuple[int, ...]) -> bool:
        """Whether it is an attention of the whole latent ([frames,] H, W), and not of an area of it or of some frames."""
        return self.latent[-len(latent) :] == latent

    @property
    def result(self) -> torch.Tensor:
        if not self.changed:
            return self.out
        return torch.cat([self.changed.get(row, self.out[row : row + 1]) for row in range(len(self.out))])


def run_controls(call: QKSharing, active: list) -> torch.Tensor:
    """The attention's result after each of `active`, (run, first row, text tokens), shared queries and keys, edited and read it."""
    for run, first, tokens in active:
        run.share_qk(call, first, tokens)
    call.run()
    for run, first, tokens in active:
        run.edit(call, first, tokens)
    for run, first, tokens in active:
        run.on_attention(call, first, tokens)
    return call.result
