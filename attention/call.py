"""One attention of one call of the network, whose rows may use the queries and keys of other rows, be edited, and be asked for maps of words.

Attention maps never exist: both edits and maps are what the same attention gives for other values, so that ComfyUI's own kernel makes them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import groupby

import torch

from .maps import Columns, WordValues
from .prompt_to_prompt import UNEDITED, ActiveEdit


def select_rows(t: torch.Tensor, rows: Sequence[int]) -> torch.Tensor:
    """Rows of a tensor. Indexing would copy the indices to the GPU first, which waits for everything queued there."""
    rows = list(rows)
    if rows == list(range(rows[0], rows[0] + len(rows))):
        return t[rows[0] : rows[0] + len(rows)]
    return torch.cat([t[row : row + 1] for row in rows])


def _joined(parts: Sequence[torch.Tensor]) -> torch.Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)


class QKSharing:
    """`base(q, k, v)` is the attention underneath: ComfyUI's where `plain`, else another node's. Rows are rows of the network's batch.

    Queries, keys and values are (B, N, heads * `width`) or, `heads_first`, (B, heads, N, `width`).
    """

    latent: tuple[int, ...] = ()  # ([frames,] H, W) of what the network is called for
    heads_first = False
    width: int

    def __init__(self, qkv: tuple[torch.Tensor, ...], base: Callable, plain: bool):
        (self.q, self.k, self.v), self.base, self.plain = qkv, base, plain
        self.source_row = list(range(len(self.q)))  # for each row, the row whose queries and keys it uses
        self.edits: dict[int, tuple[int, ActiveEdit]] = {}  # of rows: the source's row and how they are made from both
        self.changed: dict[int, torch.Tensor] = {}
        self.used, self.out, self._own = (self.q, self.k), None, None

    def kernel(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, rows: Sequence[int]) -> torch.Tensor:
        """ComfyUI's attention of some rows, without what other nodes make of it."""
        raise NotImplementedError

    def keys(self, tokens: int) -> int:
        """How many of the keys count in rows whose text has so many tokens."""
        return self.k.shape[-2]

    def columns(self, words: Columns, tokens: int) -> Columns:
        """The keys of some of the text's tokens."""
        return words

    def shared(self, t: torch.Tensor) -> torch.Tensor:
        """Queries or keys, each row's those of its source row."""
        return select_rows(t, self.source_row)

    def run(self) -> None:
        """Evaluates the base with the shared queries and keys, and the edits."""
        if self.source_row != list(range(len(self.source_row))):
            self.used = self.shared(self.q), self.shared(self.k)
        self.out = self.base(*self.used, self.v)
        for edit, rows in self._alike(self.edits):
            v = select_rows(self.v, rows)[..., : edit.length, :]
            edited = self.gather(rows, v)
            if not self.plain:
                edited = select_rows(self.out, rows) + (edited - self._attend(rows, v))
            self.set_output(rows, edited)

    def _alike(self, rows: Iterable[int]) -> list[tuple[ActiveEdit, list[int]]]:
        """Neighbors among rows that have the same edit."""
        return [(edit, list(same)) for edit, same in groupby(rows, lambda row: self.edits.get(row, (row, UNEDITED))[1])]

    def _attend(self, rows: Sequence[int], v: torch.Tensor) -> torch.Tensor:
        q, k = (select_rows(t, rows) for t in self.used)
        return self.kernel(q, k[..., : v.shape[-2], :], v, rows)

    def gather(self, rows: Sequence[int], v: torch.Tensor) -> torch.Tensor:
        """What the attention of rows, after edits, gathers from values: one of each for a row, in one call of the kernel."""
        parts, terms = self._alike(rows), []
        for (edit, same), values in zip(parts, v.split([len(same) for _, same in parts])):
            sources = [self.edits.get(row, (row, edit))[0] for row in same]
            terms.append(edit.terms(sources, same, values))
        asked = [term for of_edit in terms for term in of_edit]
        out = self._attend([row for rows, _ in asked for row in rows], _joined([values for _, values in asked]))
        found = iter(out.split([len(rows) for rows, _ in asked]))
        return _joined([edit.combined([next(found) for _ in of_edit]) for (edit, _), of_edit in zip(parts, terms)])

    def word_maps(self, asked: Sequence[tuple[Sequence[int], Sequence[Columns]]], tokens: int, values: WordValues) -> list[torch.Tensor]:
        """How much of the attention of rows, after edits, falls on groups of the text's tokens: (rows, groups, N), float32, of each (rows, groups).

        The mean of the heads. `tokens` of the rows' text were counted before ComfyUI may have repeated it.
        """
        heads = self.k.shape[1] if self.heads_first else self.k.shape[-1] // self.width
        groups = [tuple(tuple(self.columns(group, tokens)) for group in wanted) for _, wanted in asked]
        marks = [values.of(wanted, self.keys(tokens), self.width, self.v).repeat_interleave(len(rows), 0) for (rows, _), wanted in zip(asked, groups)]
        v = _joined(marks)
        v = v[:, None].expand(-1, heads, -1, -1) if self.heads_first else v.repeat(1, 1, heads)
        parts = [list(rows) * (len(own) // len(rows)) for (rows, _), own in zip(asked, marks)]
        out = self.gather([row for part in parts for row in part], v)
        mean = out.mean(1, dtype=torch.float32) if out.ndim == 4 else out.unflatten(-1, (-1, self.width)).mean(2, dtype=torch.float32)
        found = mean.split([len(own) for own in marks])
        return [
            maps.unflatten(0, (-1, len(rows))).permute(1, 0, 3, 2).flatten(1, 2)[:, : len(wanted)] for maps, (rows, wanted) in zip(found, asked)
        ]

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
