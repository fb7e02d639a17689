"""One attention of one call of the network, whose rows may use the queries and keys of other rows, be edited, and be asked for maps of words.

Attention maps never exist: both edits and maps are what the same attention gives for other values, so that ComfyUI's own kernel makes them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import groupby

import torch

from .maps import Columns, WordValues
from .prompt_to_prompt import UNEDITED, ActiveEdit, Term


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
    image = slice(0, None)  # which queries are the image's
    width: int
    more: tuple[torch.Tensor, ...] = ()  # keys and values of a second text

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

    def shared(self, t: torch.Tensor, rows: list[int]) -> torch.Tensor:
        """Queries or keys, for each row those of another."""
        return t if rows == list(range(len(t))) else select_rows(t, rows)

    def run(self) -> None:
        """Evaluates the base with the shared queries and keys, and the edits. ComfyUI's own attention gives at once the first term of each."""
        self.used = tuple(self.shared(t, self.source_row) for t in (self.q, self.k))
        asked, values, rest = list(self.source_row), {}, []
        for edit, rows in self._alike(self.edits):
            terms = self._terms(edit, rows, self._values(edit, rows))
            if self.plain or edit.copies:
                first, v = terms.pop(0)
                for row, of in zip(rows, first):
                    asked[row] = of
                values |= {} if edit.copies else dict(zip(rows, v.split(1)))
            rest.append((edit, rows, terms))
        qk = self.used if asked == self.source_row else [self.shared(t, asked) for t in (self.q, self.k)]
        self.out = self.base(*qk, self._with_values(values))
        for edit, rows, terms in rest:
            self._finish(edit, rows, terms)

    def _finish(self, edit: ActiveEdit, rows: list[int], terms: list[Term]) -> None:
        """Sets the edited output, from the base's and the terms that are left."""
        out = select_rows(self.out, rows)
        if not (self.plain or edit.copies):
            own = self._attend(rows, self._values(edit, rows))
            self.set_output(rows, out + (edit.combined(self._answers(terms)) - own))
        elif terms:
            self.set_output(rows, edit.combined([out, *self._answers(terms)]))

    def _values(self, edit: ActiveEdit, rows: list[int]) -> torch.Tensor:
        return select_rows(self.v, rows)[..., : edit.length, :]

    def _with_values(self, changed: dict[int, torch.Tensor]) -> torch.Tensor:
        """All values, those of some rows changed: as often as ComfyUI repeats the text."""
        if not changed:
            return self.v
        times = {row: self.v.shape[-2] // v.shape[-2] for row, v in changed.items()}
        return torch.cat([torch.cat([changed[row]] * times[row], -2) if row in changed else v for row, v in enumerate(self.v.split(1))])

    def _alike(self, rows: Iterable[int]) -> list[tuple[ActiveEdit, list[int]]]:
        """Neighbors among rows that have the same edit."""
        return [(edit, list(same)) for edit, same in groupby(rows, lambda row: self.edits.get(row, (row, UNEDITED))[1])]

    def _terms(self, edit: ActiveEdit, rows: list[int], v: torch.Tensor) -> list[Term]:
        return edit.terms([self.edits.get(row, (row, edit))[0] for row in rows], rows, v)

    def _attend(self, rows: Sequence[int], v: torch.Tensor) -> torch.Tensor:
        q, k = (select_rows(t, rows) for t in self.used)
        return self.kernel(q, k[..., : v.shape[-2], :], v, rows)

    def _answers(self, terms: Sequence[Term]) -> list[torch.Tensor]:
        """What attention gives for terms, all in one call of the kernel."""
        out = self._attend([row for rows, _ in terms for row in rows], _joined([v for _, v in terms]))
        return list(out.split([len(rows) for rows, _ in terms]))

    def gather(self, rows: Sequence[int], v: torch.Tensor) -> torch.Tensor:
        """What the attention of rows, after edits, gathers from values: one of each for a row."""
        parts = self._alike(rows)
        terms = [self._terms(edit, same, own) for (edit, same), own in zip(parts, v.split([len(same) for _, same in parts]))]
        answers = iter(self._answers([term for of_edit in terms for term in of_edit]))
        return _joined([edit.combined([next(answers) for _ in of_edit]) for (edit, _), of_edit in zip(parts, terms)])

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

    def output(self, rows: Sequence[int]) -> torch.Tensor:
        """What attention gives for rows so far."""
        if not self.changed:
            return select_rows(self.out, rows)
        return _joined([self.changed.get(row, self.out[row : row + 1]) for row in rows])

    def features(self, rows: Sequence[int]) -> torch.Tensor:
        """What attention gives for the image's tokens of rows, (rows, N, heads * width)."""
        out = self.output(rows)
        out = out.transpose(1, 2).flatten(2) if out.ndim == 4 else out
        return out[:, self.image]

    def second_output(self, rows: Sequence[int]) -> torch.Tensor:
        """What the queries of rows, shared as they are, give with the keys and values of the second text in the place of the first."""
        k, v = (select_rows(t, rows) for t in self.more)
        return self.kernel(select_rows(self.used[0], rows), k, v, rows)

    def covers(self, latent: tuple[int, ...]) -> bool:
        """Whether it is an attention of the whole latent ([frames,] H, W), and not of an area of it or of some frames."""
        return self.latent[-len(latent) :] == latent

    @property
    def result(self) -> torch.Tensor:
        if not self.changed:
            return self.out
        return self.output(range(len(self.out)))


def run_controls(call: QKSharing, active: list) -> torch.Tensor:
    """The attention's result after each of `active`, (run, first row, text tokens), shared queries and keys, edited and read it."""
    for run, first, tokens in active:
        run.share_qk(call, first, tokens)
    call.run()
    for run, first, tokens in active:
        run.edit(call, first, tokens)
    for run, first, tokens in active:
        run.guide(call, first, tokens)
    for run, first, tokens in active:
        run.on_attention(call, first, tokens)
    return call.result
