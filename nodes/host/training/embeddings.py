"""Embedding files: what ComfyUI finds by the name in a prompt."""

from __future__ import annotations

from itertools import chain
from pathlib import Path

from ..model_folder import ENDINGS, ModelFolder


class EmbeddingFolder(ModelFolder):
    """Embeddings by the names that prompts use: `embedding:bear` also finds 'toys/bear', in any subfolder."""

    def existing(self, name: str) -> Path | None:
        """A file that `embedding:name` could mean already."""
        for base in self.folders():
            places = chain([base], (p for p in base.rglob("*") if p.is_dir()))
            found = next((f for p in places for ending in ("", *ENDINGS) if (f := p / f"{name}{ending}").is_file()), None)
            if found:
                return found
        return None

    def taken(self, name: str) -> Path | None:
        """A file that a prompt could mean by this name already, or that it would mean no longer."""
        return self.existing(name) or self.existing(name.rpartition("/")[2])


EMBEDDINGS = EmbeddingFolder("embeddings", "embedding")
