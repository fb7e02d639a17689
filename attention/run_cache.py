"""What the layers and steps of a run have alike, so that a step makes it once and a layer not at all."""

from __future__ import annotations

from collections.abc import Callable, Hashable

import torch


class RunCache:
    """What layers and steps of a run have alike, made once."""

    def __init__(self):
        self.known: dict[Hashable, object] = {}

    def get(self, key: Hashable, make: Callable[[], object]):
        """What `make` gave for a key. Its tensors are not those of inference mode, so that they serve gradients too."""
        if key not in self.known:
            with torch.inference_mode(False), torch.no_grad():
                self.known[key] = make()
        return self.known[key]
