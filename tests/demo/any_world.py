"""What a world offers to the recipes of the demo models' adapters: scenes, words, facts, looks and edits, sizes and files.

A recipe (tests/demo/control.py, ip_adapter.py, instruct.py and the scripts beside them) knows no world by name: all that differs between
worlds is a method or a field here. tests/demo/worlds.py has the worlds that there are.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from controlled_diffusion.training.demo.files import Files

ROOT = Path(__file__).parents[2]
Rng = np.random.Generator


@dataclass(frozen=True)
class Plan:
    """How long a recipe trains, how fast, on how many samples a step; `settings` are the recipe's own."""

    steps: int
    rate: float
    batch: int
    settings: Mapping[str, float] = field(default_factory=dict)


PLANS = {"control": Plan(700, 1.5e-3, 24), "classifier": Plan(3000, 4e-3, 64), "encoder": Plan(2600, 1e-3, 32)}  # alike in all worlds


@dataclass(frozen=True)
class Edit:
    """An instruction that turns the scene `before` into `after`; `which` thing of `before` it is about."""

    kind: str
    text: str
    before: object
    after: object
    which: int


def other(rng: Rng, options: Sequence, *taken):
    """A random one of the options that is not taken."""
    left = [o for o in options if o not in taken]
    return left[int(rng.integers(len(left)))]


def changed(scene, which: int, thing=None):
    """The scene with another thing instead of one, or without it."""
    things = list(scene.things)
    things[which : which + 1] = [] if thing is None else [thing]
    return replace(scene, things=tuple(things))


@dataclass(frozen=True)
class World(ABC):
    """A world. Scenes are values of the world's own kind with a tuple `things`; captions have a `text`.

    `weights` are those of the model on which adapters are trained; `files` are written. The ControlNet and the classifier learn from the
    first `scenes`, the image encoder from `singles`, the IP-Adapter to draw `targets` of these, the instruction model from `families` of
    `variants` scenes each.
    """

    name: str
    size: int  # pixels, the side of an image
    unet_config: dict
    vision_config: dict
    plans: dict[str, Plan]
    files: Files
    weights: Path
    state: Path  # folder of the resumable states
    labels: dict[str, tuple[str, ...]]  # of the noisy classifier, by fact
    facts: dict[str, tuple[str, ...]]  # what the image encoder learns to tell
    on_thing: tuple[str, ...]  # those of `facts` that a patch of a thing shows
    on_ground: tuple[str, ...]  # and those that any other patch shows
    slots: tuple[int, ...]  # how many tokens of each part of `spoken` the adapter begins with
    kinds: tuple[str, ...]  # of edits
    variants: int
    no_caption: object  # one that says nothing
    guided: tuple[str, ...]  # facts whose labels guide alone, without a prompt
    goal: tuple[str, ...]  # facts that an image must bring about together
    scenes: int
    singles: int
    targets: int
    families: int

    @property
    def latent(self) -> int:
        """The side of a latent."""
        return self.size // 8

    @property
    def all_labels(self) -> tuple[str, ...]:
        return tuple(label for several in self.labels.values() for label in several)

    def network(self, unet: torch.nn.Module) -> torch.nn.Module:
        """The denoiser made ready to train."""
        return unet

    # --- scenes -------------------------------------------------------------------------------------------------

    @abstractmethod
    def scene(self, index: int, seed: int | None = None):
        """Scene number `index` of the training set; other seeds give held-out sets."""

    @abstractmethod
    def single(self, index: int, seed: int):
        """A scene of one thing."""

    @abstractmethod
    def image(self, scene) -> np.ndarray:
        """uint8 (size, size, 3)."""

    @abstractmethod
    def masks(self, scene) -> Sequence[np.ndarray]:
        """Where each thing is, bool (size, size)."""

    @abstractmethod
    def spots(self, scene) -> list[tuple[float, float, float]]:
        """About where each thing is: x and y of its middle and its radius, in pixels."""

    @abstractmethod
    def caption(self, scene, rng: Rng):
        """A caption in one of many wordings."""

    # --- what classifier, image encoder and IP-Adapter learn ----------------------------------------------------

    @abstractmethod
    def present(self, scene) -> set[str]:
        """Labels that a scene shows, and other words."""

    @abstractmethod
    def facts_of(self, scene) -> tuple[str, ...]:
        """What is true of a scene of one thing, for each of `facts`."""

    @abstractmethod
    def looks(self, scene) -> tuple[tuple, ...]:
        """What an image of the scene can carry: as little as possible, then more."""

    @abstractmethod
    def carried(self, scene, caption) -> tuple:
        """What the image has to carry beside a caption, one of `looks`."""

    @abstractmethod
    def neutral_caption(self, scene, rng: Rng):
        """A true caption that says nothing of the thing's look."""

    @abstractmethod
    def spoken(self, scene) -> tuple[str, ...]:
        """The look as captions say it, in parts with a meaning each."""

    # --- what the instruction model learns ----------------------------------------------------------------------

    @abstractmethod
    def family(self, index: int, seed: int) -> tuple[int, tuple]:
        """The thing that changes, and `variants` scenes of which any two in `pairs` differ in one edit."""

    @abstractmethod
    def pairs(self, scenes: tuple) -> Sequence[tuple[int, int, str]]:
        """(before, after, kind) of the edits within a family, by the places of its scenes."""

    @abstractmethod
    def instruction(self, rng: Rng, before, after, which: int, kind: str) -> str:
        """What to say so that `before` becomes `after`."""

    # --- how images are read, for measures ----------------------------------------------------------------------

    @abstractmethod
    def read(self, images: Sequence[np.ndarray]) -> list:
        """What images show, uint8 (size, size, 3) each: values of the world's own kind with `things` that have a `mask`."""

    @abstractmethod
    def described(self, reading, alone: bool = False) -> dict[str, str]:
        """All facts that are read in an image; those of a thing are of its largest, or with `alone` missing where there is more than one."""

    @abstractmethod
    def shows(self, reading, label: str) -> bool:
        """Whether an image shows what a label of the classifier says."""

    def wanted(self, edit: Edit):
        """The scene after an edit, without what its instruction leaves open."""
        return edit.after

    @abstractmethod
    def matches(self, reading, scene) -> bool:
        """Whether an image shows just this scene, as far as edits go."""

    # --- what measures ask for ----------------------------------------------------------------------------------

    @abstractmethod
    def is_plain(self, scene) -> bool:
        """Whether the silhouette of a scene says all of its shape: one thing, without what no caption names."""

    @abstractmethod
    def wish(self, scene, rng: Rng) -> tuple[str, str | None]:
        """(prompt, color) for the silhouette of a plain scene; None where its thing has no color to choose."""

    @abstractmethod
    def opposite(self, scene) -> str | None:
        """A prompt that wants the thing of a plain scene on the other side; None where it is on none."""

    @abstractmethod
    def beside_an_image(self, scene, rng: Rng) -> tuple[str, dict[str, str], set[str]]:
        """For an image of a scene of one thing: a prompt that says nothing of its look, the facts that image and prompt ask for together,
        and which of them the prompt says. `goal` are the facts that must hold together."""


def in_one(masks: Sequence[np.ndarray], size: int) -> np.ndarray:
    """Where any of the masks is, bool (size, size)."""
    return np.logical_or.reduce(masks) if len(masks) else np.zeros((size, size), bool)
