"""One attention of one call of the network, whose rows may use the queries and keys of other rows, be edited, and be asked for maps of words.

Attention maps never exist: both edits and maps are what the same attention gives for other values, so that ComfyUI's own kernel makes them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch

from .maps import Columns, MapValues
from .prompt_to_prompt import ActiveEdit
from .row_plan import EditedRows, RowPlan, RowSelection, alike
from .run_cache import RunCache


class QKSharing:
    """`base(q, k, v)` is the attention underneath: ComfyUI's where `plain`, else another node's. Rows are rows of the network's batch.

    Queries, keys and values are (B, N, heads * `width`) or, `heads_first`, (B, heads, N, `width`).
    """

    latent: tuple[int, ...] = ()  # ([frames,] H, W) of what the network is called for
    heads_first = False
    image = slice(0, None)  # which queries are the image's
    width: int
    cache: RunCache  # of the run
    more: tuple[torch.Tensor, ...] = ()  # keys and values of a second text

    def __init__(self, qkv: tuple[torch.Tensor, ...], base: Callable, plain: bool):
        (self.q, self.k, self.v), self.base, self.plain = qkv, base, plain
        self.source_row = list(range(self.q.shape[0]))  # for each row, the row whose queries and keys it uses
        self.value_row = list(self.source_row)  # and the row whose values
        self.edits: dict[int, tuple[int, ActiveEdit]] = {}  # of rows: the source's row and how they are made from both
        self.used, self.out, self._own, self._changed = (self.q, self.k), None, None, False

    def kernel(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, rows: RowSelection) -> torch.Tensor:
        """ComfyUI's attention of some rows, without what other nodes make of it."""
        raise NotImplementedError

    def keys(self, tokens: int) -> int:
        """How many of the keys count in rows whose text has so many tokens."""
        return self.k.shape[-2]

    def columns(self, words: Columns, tokens: int) -> Columns:
        """The keys of some of the text's tokens."""
        return words

    def shared(self, t: torch.Tensor, rows: RowSelection) -> torch.Tensor:
        """Queries, keys or values, for each row those of another."""
        return rows.of(t)

    def run(self) -> None:
        """Evaluates the base with the shared queries and keys, and the edits. ComfyUI's own attention gives at once the first term of each."""
        key = "rows", tuple(self.source_row), tuple(self.value_row), tuple(self.edits.items()), self.plain
        plan = self.cache.get(key, lambda: RowPlan.of(self.source_row, self.value_row, self.edits, self.plain))
        if plan.values is not None:
            self.v = self.shared(self.v, plan.values)
        if plan.shared is not None:
            self.used = self.shared(self.q, plan.shared), self.shared(self.k, plan.shared)
        q, k = self.used if plan.first is None else (self.shared(self.q, plan.first), self.shared(self.k, plan.first))
        self.out = self.base(q, k, self._first_values(plan) if plan.scaled or plan.mapped else self.v)
        for rows in plan.unfinished:
            self._finish(rows)

    def _first_values(self, plan: RowPlan) -> torch.Tensor:
        """All values, those of edited rows as the first term of their edit has them: as often as ComfyUI repeats the text."""
        v = self.v
        if plan.scaled:
            v = v * self.cache.get(("factors", plan, v.shape[-2]), lambda: self._factors(plan.scaled))
        changed = {}
        for rows in plan.mapped:
            values = rows.edit.terms[0].of(self._values(rows))
            changed |= dict(zip(rows.target.rows, torch.cat([values] * (v.shape[-2] // values.shape[-2]), -2).split(1)))
        return torch.cat([changed.get(row, one) for row, one in enumerate(v.split(1))]) if changed else v

    def _factors(self, scaled: list[EditedRows]) -> torch.Tensor:
        """What all values are multiplied by: (B, [1,] keys, 1)."""
        keys = self.v.shape[-2]
        factors = self.v.new_ones(len(self.v), *[1] * (self.v.ndim - 3), keys, 1)
        for rows in scaled:
            factors[rows.target.rows] = rows.edit.own.repeat(keys // rows.edit.length, 1)
        return factors

    def _values(self, rows: EditedRows) -> torch.Tensor:
        return rows.target.of(self.v)[..., : rows.edit.length, :]

    def _finish(self, rows: EditedRows) -> None:
        """Sets the edited output, from the base's and the terms that are left."""
        out, v = rows.target.of(self.out), self._values(rows)
        made = torch.cat([of(v).expand_as(v) for of in rows.terms]) if len(rows.terms) > 1 else rows.terms[0](v).expand_as(v)
        answers = self._attend(rows.asked, made).split(v.shape[0])
        if rows.begun and self._in_place and len(rows.target.spans) == 1:
            rows.edit.combined([out, *answers], over=out)
        elif rows.begun:
            self.set_output(rows.target, rows.edit.combined([out, *answers]))
        else:
            self.set_output(rows.target, out + (rows.edit.combined(answers[:-1]) - answers[-1]))

    def _attend(self, rows: RowSelection, v: torch.Tensor) -> torch.Tensor:
        q, k = self.used
        return self.kernel(rows.of(q), rows.of(k)[..., : v.shape[-2], :], v, rows)

    def word_maps(self, asked: Sequence[tuple[Sequence[int], Sequence[Columns]]], tokens: int) -> torch.Tensor:
        """How much of the attention of rows, after edits, falls on groups of the text's tokens: (rows, groups, N), float32, of all (rows, groups).

        The mean of the heads. All ask for as many groups. `tokens` of the rows' text were counted before ComfyUI may have repeated it.
        """
        groups = tuple((tuple(rows), tuple(tuple(self.columns(group, tokens)) for group in wanted)) for rows, wanted in asked)
        k = self.k
        key = "maps", groups, tuple(self.edits.items()), self.keys(tokens), k.shape[1:], self.width, k.device, self.v.dtype
        rows, v, places, terms = self.cache.get(key, partial(self._map_values, groups, self.keys(tokens)))
        out = self._attend(rows, v.expand(-1, k.shape[1], -1, -1) if self.heads_first else v)
        found = places.read(out.transpose(1, 2) if out.ndim == 4 else out.unflatten(-1, (-1, self.width)))
        maps = [edit.combined([found[rows][..., columns] for rows, columns in parts]) for edit, parts in terms]
        return (torch.cat(maps) if len(maps) > 1 else maps[0]).mean(2, dtype=torch.float32).transpose(1, 2)

    def _map_values(self, asked: Sequence[tuple[Sequence[int], Sequence[Columns]]], keys: int) -> tuple:
        """(rows, their values, places of the columns in these, edits with the places of their terms) for maps."""
        places, terms = MapValues(self.width), []
        for rows, groups in asked:
            marks = self.v.new_zeros(keys, len(groups))
            for number, columns in enumerate(groups):
                marks[list(columns), number] = 1
            for edit, source, target in alike(self.edits, rows):
                terms.append((edit, [places.add(source if term.from_source else target, term.of(marks)) for term in edit.terms]))
        rows, v = places.values()
        heads = self.k.shape[-1] // self.width
        return RowSelection(rows), v[:, None] if self.heads_first else v.repeat(1, 1, heads), places, terms

    def own_output(self, rows: RowSelection) -> torch.Tensor:
        """What rows would give with their own queries and keys."""
        if self._own is None:
            self._own = self.base(self.q, self.k, self.v)
        return rows.of(self._own)

    def set_output(self, rows: RowSelection, out: torch.Tensor) -> None:
        """Changes what attention gives for rows: in place where that is ComfyUI's own and nothing else needs it."""
        if not (self._changed or self._in_place):
            self.out = self.out.clone()
        self._changed = True
        rows.put(self.out, out)

    @property
    def _in_place(self) -> bool:
        """Whether what attention gave may be changed in place: it is ComfyUI's own, and nothing else needs it."""
        return self.plain and not self.out.requires_grad

    def features(self, rows: RowSelection) -> torch.Tensor:
        """What attention gives for the image's tokens of rows, (rows, N, heads * width)."""
        out = rows.of(self.out)
        out = out.transpose(1, 2).flatten(2) if out.ndim == 4 else out
        return out[:, self.image]

    def second_output(self, rows: RowSelection) -> torch.Tensor:
        """What the queries of rows, shared as they are, give with the keys and values of the second text in the place of the first."""
        k, v = map(rows.of, self.more)
        return self.kernel(rows.of(self.used[0]), k, v, rows)

    def covers(self, latent: tuple[int, ...]) -> bool:
        """Whether it is an attention of the whole latent ([frames,] H, W), and not of an area of it or of some frames."""
        return self.latent[-len(latent) :] == latent


def run_controls(call: QKSharing, active: list) -> torch.Tensor:
    """The attention's result after each of `active`, (run, first row, text tokens), shared queries and keys, edited and read it."""
    call.cache = active[0][0].cache
    for run, first, tokens in active:
        run.share_qk(call, first, tokens)
    call.run()
    for run, first, tokens in active:
        run.edit(call, first, tokens)
    for run, first, tokens in active:
        run.guide(call, first, tokens)
    for run, first, tokens in active:
        run.on_attention(call, first, tokens)
    return call.out
