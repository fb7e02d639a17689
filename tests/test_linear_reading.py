"""A linear reading of the illustrated reader's features tells what the reader was not trained for."""

from functools import partial

import torch

from demo import illustrated_reader
from demo.linear_reading import _fitted, fitted, pooled


def clouds(seed: int, count: int = 200) -> tuple[torch.Tensor, torch.Tensor]:
    """Features of very different sizes, two of which tell together whether it is shown."""
    draw = torch.Generator().manual_seed(seed)
    features = torch.randn(count, 6, generator=draw) * torch.tensor([1e-3, 1.0, 50.0, 1.0, 1.0, 0.0]) + 7
    return features, (features[:, 0] - 7) * 1e3 + (features[:, 2] - 7) / 50 > 0.5


def test_reading_tells_held_out_features():
    reading = fitted(*clouds(0))
    features, shown = clouds(1)
    assert (reading(features) == shown).float().mean() > 0.95 and 0.2 < shown.float().mean() < 0.6


def test_many_features_are_not_learned_by_heart():
    """Eight features tell, and many more than there are examples say nothing."""

    def noisy(seed):
        features = torch.randn(240, 300, generator=torch.Generator().manual_seed(seed))
        shown = torch.arange(240) % 2 == 0
        features[:, :8] += shown[:, None] * 0.9
        return features, shown

    features, shown = noisy(1)
    chosen, free = (float((fit(*noisy(0))(features) == shown).float().mean()) for fit in (fitted, partial(_fitted, decay=0.0)))
    assert chosen > free + 0.03 and chosen > 0.8


def test_reading_is_fitted_in_inference_mode():
    with torch.inference_mode():
        features, shown = clouds(0)
        assert (fitted(features, shown)(features) == shown).float().mean() > 0.95


def test_features_are_what_the_ground_is_read_from():
    network = illustrated_reader.new_reader()
    torch.nn.init.normal_(network.ground.weight)
    images = (torch.rand(3, 192, 192, 3, generator=torch.Generator().manual_seed(0)) * 255).byte().numpy()
    found = pooled(network, list(images))
    wanted = network(illustrated_reader.demo_model.as_images(list(images)))[2]
    torch.testing.assert_close(network.ground(found), wanted)
    assert not network.ground._forward_pre_hooks
