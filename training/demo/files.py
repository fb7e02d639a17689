"""Which files hold the weights of a world's models, in the pack or in another folder of the same layout."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Files:
    """The weights of a world's models: `name` in the folder of each kind."""

    name: str
    folder: Path = Path(__file__).parents[2] / "nodes" / "weights"

    def _in(self, folder: str, ending: str = "") -> Path:
        return self.folder / folder / f"{self.name}{ending}.safetensors"

    @property
    def model(self) -> Path:
        return self._in("")

    @property
    def controlnet(self) -> Path:
        return self._in("controlnet", "_silhouette")

    @property
    def classifier(self) -> Path:
        return self._in("noisy_classifiers")

    @property
    def encoder(self) -> Path:
        return self._in("clip_vision")

    @property
    def adapter(self) -> Path:
        return self._in("ipadapter")

    @property
    def instruct(self) -> Path:
        return self._in("diffusion_models", "_instruct")

    @property
    def reader(self) -> Path:
        """What reads images of a world that cannot be read without a network."""
        return self._in("readers")

    @property
    def inversion(self) -> Path:
        return self._in("inversions")


FILES = {"illustrated": Files("demo_model"), "shapes": Files("shapes_model")}  # the first whose files are there is the default
