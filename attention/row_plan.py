"""Which rows of a batch an attention and its edits need, found once for all layers and steps that share and edit the same rows."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

import torch

from .prompt_to_prompt import UNEDITED, ActiveEdit


class RowSelection:
    """Rows of a batch in any order. Indexing by a list would copy it to the GPU first, which waits for everything queued there."""

    def __init__(self, rows: Iterable[int]):
        self.rows = list(rows)
        starts = [i for i, row in enumerate(self.rows) if i == 0 or row != self.rows[i - 1] + 1]
        self.spans = [slice(self.rows[start], self.rows[end - 1] + 1) for start, end in zip(starts, [*starts[1:], len(self.rows)])]

    def of(self, t: torch.Tensor) -> torch.Tensor:
        """These rows of a tensor; a view where they follow one another."""
        if len(self.spans) == 1:
            return t[self.spans[0]]
        return torch.cat([t[span] for span in self.spans])

    def put(self, t: torch.Tensor, values: torch.Tensor) -> None:
        """Writes values over these rows of a tensor."""
        for span, own in zip(self.spans, values.split([span.stop - span.start for span in self.spans])):
            t[span] = own


@dataclass(frozen=True, eq=False)
class EditedRows:
    """Rows with one edit. Where the edit has `begun`, the attention underneath gives the first term; `terms` are left: rows and what makes values."""

    edit: ActiveEdit
    source: RowSelection
    target: RowSelection
    begun: bool
    terms: Sequence[Callable]
    asked: RowSelection | None  # of all terms that are left, one after another

    @classmethod
    def of(cls, edit: ActiveEdit, source: list[int], target: list[int], plain: bool) -> EditedRows:
        """`plain`: the attention underneath is ComfyUI's. On another's the edit is what it changes."""
        begun = plain or edit.copies
        terms = [(source if term.from_source else target, term.of) for term in edit.terms[begun:]]
        terms += [] if begun else [(target, lambda v: v)]
        asked = RowSelection(row for rows, _ in terms for row in rows) if terms else None
        return cls(edit, RowSelection(source), RowSelection(target), begun, [of for _, of in terms], asked)


def alike(edits: Mapping[int, tuple[int, ActiveEdit]], rows: Iterable[int]) -> list[tuple[ActiveEdit, list[int], list[int]]]:
    """(edit, rows of the source, rows) of neighbors among rows that have the same edit."""
    found = [(*edits.get(row, (row, UNEDITED)), row) for row in rows]
    parts = [list(same) for _, same in groupby(found, lambda one: one[1])]
    return [(same[0][1], [source for source, _, _ in same], [row for _, _, row in same]) for same in parts]


@dataclass(frozen=True, eq=False)
class RowPlan:
    """Rows whose queries and keys, and whose `values`, others use, rows that the attention underneath gets (None: the same), and the edited."""

    shared: RowSelection | None
    values: RowSelection | None
    first: RowSelection | None
    unfinished: Sequence[EditedRows]  # which have terms left
    scaled: Sequence[EditedRows]  # whose first term is of their own values, each times a factor
    mapped: Sequence[EditedRows]  # whose first term is of other values

    @classmethod
    def of(cls, source_row: list[int], value_row: list[int], edits: Mapping[int, tuple[int, ActiveEdit]], plain: bool) -> RowPlan:
        edited = [EditedRows.of(*same, plain) for same in alike(edits, edits)]
        first, changed = list(source_row), [rows for rows in edited if rows.begun]
        for rows in changed:
            asked = rows.source if rows.edit.terms[0].from_source else rows.target
            for row, of in zip(rows.target.rows, asked.rows):
                first[row] = of
        own = list(range(len(source_row)))
        shared, values = (None if rows == own else RowSelection(rows) for rows in (source_row, value_row))
        scaled = [rows for rows in changed if rows.edit.own is not None]
        mapped = [rows for rows in changed if rows.edit.own is None and not rows.edit.copies]
        return cls(shared, values, None if first == source_row else RowSelection(first), [rows for rows in edited if rows.terms], scaled, mapped)
