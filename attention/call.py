"""One attention of one call of the network, whose rows may use the queries and keys of other rows and whose results may be changed."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch


def taken(t: torch.Tensor, rows: Sequence[int]) -> torch.Tensor:
    """Rows of a tensor. An index would have to go to the GPU first, which then waits for all that it has been asked before."""
    rows = list(rows)
    if rows == list(range(rows[0], rows[0] + len(rows))):
        return t[rows[0] : rows[0] + len(rows)]
    return torch.cat([t[row : row + 1] for row in rows])


class Lending:
    """`base(q, k, v)` is the attention underneath: the host's where `plain`, else another node's. Rows are rows of the network's batch."""

    latent: tuple[int, ...] = ()  # ([frames,] H, W) of what the network is called for

    def __init__(self, qkv: tuple[torch.Tensor, ...], base: Callable, plain: bool):
        (self.q, self.k, self.v), self.base, self.plain = qkv, base, plain
        self.lender = list(range(len(self.q)))  # for each row, whose queries and keys it uses
        self.changed: dict[int, torch.Tensor] = {}
        self.used, self.out, self._own = (self.q, self.k), None, None

    def lent(self, t: torch.Tensor) -> torch.Tensor:
        """Queries or keys as lent to each row."""
        return taken(t, self.lender)

    def run(self) -> None:
        """Evaluates the base, with queries and keys lent as asked for."""
        if self.lender != list(range(len(self.lender))):
            self.used = self.lent(self.q), self.lent(self.k)
        self.out = self.base(*self.used, self.v)

    def own_output(self, rows: list[int]) -> torch.Tensor:
        """What rows would give with their own queries and keys."""
        if self._own is None:
            self._own = self.out if self.used[0] is self.q else self.base(self.q, self.k, self.v)
        return taken(self._own, rows)

    def put_output(self, rows: list[int], out: torch.Tensor) -> None:
        self.changed |= dict(zip(rows, out.to(self.out.dtype).split(1)))

    def covers(self, latent: tuple[int, ...]) -> bool:
        """Whether it is an attention of the whole latent ([frames,] H, W), and not of an area of it or of some frames."""
        return self.latent[-len(latent) :] == latent

    @property
    def result(self) -> torch.Tensor:
        if not self.changed:
            return self.out
        return torch.cat([self.changed.get(row, self.out[row : row + 1]) for row in range(len(self.out))])


def acted(call: Lending, active: list) -> torch.Tensor:
    """What an attention gives when each of `active`, (run, first row, text tokens), has lent, edited and looked."""
    for run, first, tokens in active:
        run.borrow(call, first, tokens)
    call.run()
    for run, first, tokens in active:
        run.edit(call, first, tokens)
    for run, first, tokens in active:
        run.see(call, first, tokens)
    return call.result
