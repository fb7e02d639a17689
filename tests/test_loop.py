import pytest
import torch
from controlled_diffusion.training.loop import Loop, matrix_view, save_atomically, saving, warm_cosine
from torch.testing import assert_close


def network():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Conv2d(2, 4, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(4 * 36, 3))


def loop_of(net, steps=12):
    parameters = dict(net.named_parameters())
    return Loop(
        parameters, steps=steps, learning_rate=0.02, warmup=2, average=0.9, matrices=[k for k, p in parameters.items() if p.ndim > 1]
    )


def loss_of(net):
    def loss(index):
        x = torch.randn(8, 2, 8, 8, generator=torch.Generator().manual_seed(index))
        return (net(x) - x.mean((2, 3), keepdim=False)[:, :1]).square().mean()

    return loss


def test_it_learns_and_counts_its_steps():
    net = network()
    steps = list(loop_of(net, 60).run(loss_of(net)))
    assert [s.index for s in steps] == list(range(1, 61)) and steps[-1].total == 60
    assert steps[-1].loss < 0.3 * steps[0].loss


def test_an_interrupted_run_ends_like_one_in_one_go(tmp_path):
    whole, halves = network(), network()
    list(loop_of(whole).run(loss_of(whole)))
    first = loop_of(halves)
    for step in first.run(loss_of(halves)):
        if step.index == 5:
            break
    first.save(tmp_path / "state.safetensors")
    resumed = network()
    second = loop_of(resumed)
    assert second.restore(tmp_path / "state.safetensors") and second.done == 5
    list(second.run(loss_of(resumed)))
    for ours, theirs in zip(resumed.parameters(), whole.parameters()):
        assert_close(ours, theirs, atol=1e-6, rtol=1e-5)


def test_without_a_state_file_it_starts_anew(tmp_path):
    assert not loop_of(network()).restore(tmp_path / "none.safetensors")


def test_inside_averaged_the_weights_are_their_average_and_afterwards_their_own():
    net = network()
    loop = loop_of(net)
    list(loop.run(loss_of(net)))
    own = [p.detach().clone() for p in net.parameters()]
    with loop.averaged():
        assert all(torch.equal(p, loop.averages[k]) for k, p in net.named_parameters())
        assert not torch.equal(next(net.parameters()), own[0])
    assert all(torch.equal(p, q) for p, q in zip(net.parameters(), own))


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_a_matrix_view_shares_the_memory_of_its_weight(memory_format):
    weight = torch.nn.Parameter(torch.randn(4, 3, 5, 5).to(memory_format=memory_format))
    view = matrix_view(weight)
    assert view.shape == (4, 75)
    with torch.no_grad():
        view.zero_()
    assert weight.abs().sum() == 0


def test_the_rate_rises_over_the_warmup_and_falls_to_zero():
    rates = [warm_cosine(i, 100, 10) for i in range(100)]
    assert rates[0] == 0.1 and rates[9] == 1.0 and max(rates) == 1.0 and rates[-1] < 1e-3


def test_the_state_is_saved_while_the_loop_runs_and_at_its_end(tmp_path):
    net, path = network(), tmp_path / "state.safetensors"
    loop = loop_of(net)
    seen = [path.exists() for _ in saving(loop, loop.run(loss_of(net)), path, every_seconds=1e9)]
    assert not any(seen[:-1]) and path.exists()


def test_a_file_is_there_whole_or_not_at_all(tmp_path):
    path = tmp_path / "weights.safetensors"
    with pytest.raises(AttributeError):
        save_atomically({"a": "no tensor"}, path)
    assert not list(tmp_path.iterdir())
