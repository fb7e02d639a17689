"""A text encoder's tokenizer in small, for tests of alignments."""

import re

START, END = "<s>", "</s>"


class Pieces:
    """Lower case, pieces of four letters, '...' one token, chunks of `size` with start and end."""

    def __init__(self, size: int = 24, start: bool = True):
        self.size, self.start = size, start

    def parts(self, text):
        return [p for p in re.split(r"\(([^:)]*):[\d.]+\)", text) if p.strip()]

    def tokens(self, part):
        runs = re.findall(r"\.\.\.|[a-z']+|\S", part.lower())
        return [run[i : i + 4] for run in runs for i in range(0, len(run), 4)]

    def chunks(self, text):
        tokens, room = [t for p in self.parts(text) for t in self.tokens(p)], self.size - 1 - self.start
        cut = [tokens[i : i + room] for i in range(0, len(tokens), room)] or [[]]
        lead = [(START, False)] * self.start
        return [[*lead, *((t, True) for t in c), *[(END, False)] * (self.size - self.start - len(c))] for c in cut]


PIECES = Pieces()
