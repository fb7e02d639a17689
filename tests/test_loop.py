import logging
import time
from itertools import islice

import pytest
import torch
from controlled_diffusion.training import files
from controlled_diffusion.training.loop import Diverged, Loop, progress, save_atomically, saving
from controlled_diffusion.training.optimizers import OPTIMIZERS, SCHEDULES, rate_factor
from safetensors import safe_open
from safetensors.torch import save_file
from torch.testing import assert_close

from checks import draw, refused
from demo.muon import MuonLoop, matrix_view


def network():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Conv2d(2, 4, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(4 * 36, 3))


def plain(net, steps=8, **knobs):
    kind = MuonLoop if "matrices" in knobs else Loop
    return kind(dict(net.named_parameters()), **dict(steps=steps, learning_rate=0.02, warmup=2, average=0.0) | knobs)


def loop_of(net, steps=12):
    return plain(net, steps, average=0.9, matrices=["0.weight", "3.weight"])


def loss_of(net):
    def loss(index):
        x = draw(8, 2, 8, 8, seed=index)
        return (net(x) - x.mean((2, 3), keepdim=False)[:, :1]).square().mean()

    return loss


def same(one, other):
    return all(torch.equal(p, q) for p, q in zip(one.parameters(), other.parameters()))


def test_it_learns_and_counts_its_steps():
    net = network()
    steps = list(loop_of(net, 60).run(loss_of(net)))
    assert [s.index for s in steps] == list(range(1, 61)) and steps[-1].total == 60
    assert steps[-1].loss < 0.3 * steps[0].loss


def test_inside_averaged_the_weights_are_their_average():
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


def test_the_state_is_saved_while_the_loop_runs_and_at_its_end(tmp_path):
    net, path = network(), tmp_path / "state.safetensors"
    loop = loop_of(net)
    seen = [path.exists() for _ in saving(loop, loop.run(loss_of(net)), path, every=1e9)]
    assert not any(seen[:-1]) and path.exists()


def test_the_first_state_is_saved_early(tmp_path, monkeypatch):
    """After 10 s, then after 20 and 40 more: a run that is killed loses no more than it took."""
    net, path, clock, saved = network(), tmp_path / "state.safetensors", iter(range(1000)), []
    loop = loop_of(net, steps=100)
    monkeypatch.setattr(Loop, "save", lambda self, path: saved.append(self.done))
    monkeypatch.setattr(time, "monotonic", lambda: float(next(clock)))
    for _ in islice(saving(loop, loop.run(loss_of(net)), path, every=40), 99):
        pass
    assert saved[0] <= 11 and 18 <= saved[1] - saved[0] <= 21 and 37 <= saved[2] - saved[1] <= 41


def test_a_full_disk_does_not_stop_the_training(tmp_path, caplog):
    net = network()
    loop = loop_of(net)
    (tmp_path / "file").touch()
    with caplog.at_level(logging.WARNING):
        steps = list(saving(loop, loop.run(loss_of(net)), tmp_path / "file" / "state.safetensors", every=0))
    assert len(steps) == 12 and "after 12 steps is not saved" in caplog.text and "could not be written" in caplog.text


def state_of(tmp_path, **knobs):
    """(path of a state, its tensors, its metadata)."""
    path, net = tmp_path / "state.safetensors", network()
    loop = plain(net, **knobs)
    list(islice(loop.run(loss_of(net)), 3))
    loop.save(path)
    with safe_open(path, "pt") as file:
        return path, {k: file.get_tensor(k) for k in file.keys()}, file.metadata()


DAMAGES = {
    "cut": lambda path, t, m: path.write_bytes(path.read_bytes()[:-100]),
    "empty": lambda path, t, m: path.write_bytes(b""),
    "no safetensors": lambda path, t, m: path.write_text("a text"),
    "no metadata": lambda path, t, m: save_file(t, path),
    "done": lambda path, t, m: save_file(t, path, m | {"done": "many"}),
    "negative": lambda path, t, m: save_file(t, path, m | {"done": "-3"}),
    "loss scale": lambda path, t, m: save_file(t, path, m | {"loss_scale": "nan"}),
    "losses before": lambda path, t, m: save_file(t, path, m | {"before": "[NaN]"}),
    "about": lambda path, t, m: save_file(t, path, m | {"about": "{"}),
    "list": lambda path, t, m: save_file(t, path, m | {"about": "[]"}),
    "a weight less": lambda path, t, m: save_file({k: v for k, v in t.items() if k != "weight/0.bias"}, path, m),
    "a shape": lambda path, t, m: save_file(t | {"weight/0.bias": torch.zeros(5)}, path, m),
    "an average": lambda path, t, m: save_file(t | {"average/0.bias": torch.zeros(5)}, path, m),
    "a moment": lambda path, t, m: save_file(t | {"exp_avg/0.bias": torch.zeros(5)}, path, m),
    "a moment less": lambda path, t, m: save_file({k: v for k, v in t.items() if k != "exp_avg/0.bias"}, path, m),
    "a moment of nothing": lambda path, t, m: save_file(t | {"exp_avg/other": torch.zeros(5)}, path, m),
    "no kind": lambda path, t, m: save_file(t | {"other": torch.zeros(5)}, path, m),
    "a curve": lambda path, t, m: save_file(t | {"curve/losses": torch.zeros(5)}, path, m),
    "NaN": lambda path, t, m: save_file(t | {"weight/0.bias": torch.full_like(t["weight/0.bias"], torch.nan)}, path, m),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_state_is_refused_before_it_is_used(damage, tmp_path):
    path, tensors, metadata = state_of(tmp_path, average=0.9)
    DAMAGES[damage](path, tensors, metadata)
    net = network()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    refused(r"state\.safetensors is damaged, or no state of a training: .* Remove it", plain(net, average=0.9).restore, path)
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())


def test_a_file_is_there_whole_or_not_at_all(tmp_path):
    path = tmp_path / "weights.safetensors"
    with pytest.raises(AttributeError):
        save_atomically({"a": "no tensor"}, path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nan_is_never_written(value, tmp_path):
    path = tmp_path / "weights.safetensors"
    refused(r"weights.safetensors is not written: 'b' holds NaN or infinity", save_atomically, {"b": torch.tensor([1.0, value])}, path)
    assert not list(tmp_path.iterdir())


def test_what_the_disk_refuses_names_the_file_and_the_next_step(tmp_path, monkeypatch):
    """Nothing half written is left, as safetensors 0.4.5 leaves it, and a file that is there stays."""
    path = tmp_path / "weights.safetensors"
    path.write_text("mine")

    def full(tensors, path, metadata):
        path.write_text("half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files, "save_file", full)
    refused(r"weights.safetensors could not be written: .*No space left.* Free space", save_atomically, {"a": torch.ones(2)}, path)
    assert path.read_text() == "mine" and len(list(tmp_path.iterdir())) == 1


def test_a_link_at_the_temporary_name_is_not_followed(tmp_path):
    (tmp_path / "other").write_text("not mine")
    (tmp_path / ".a.partial").symlink_to(tmp_path / "other")
    with files.whole_file(tmp_path / "a") as temporary:
        temporary.write_text("new")
    assert (tmp_path / "a").read_text() == "new" and (tmp_path / "other").read_text() == "not mine"


@pytest.mark.parametrize("optimizer", [*OPTIMIZERS, "muon"])
@pytest.mark.parametrize("accumulate", [1, 3])
def test_a_resumed_run_repeats_the_losses_bit_by_bit(optimizer, accumulate, tmp_path):
    own = dict(matrices=["0.weight", "3.weight"], average=0.9) if optimizer == "muon" else dict(optimizer=optimizer)
    knobs = dict(accumulate=accumulate, loss_scale=4.0) | own
    whole = network()
    losses = [s.loss for s in plain(whole, **knobs).run(loss_of(whole))]
    net = network()
    first = plain(net, **knobs)
    assert not first.restore(tmp_path / "none.safetensors")
    begun = [s.loss for s in islice(first.run(loss_of(net)), 5)]
    first.save(tmp_path / "state.safetensors")
    assert progress(tmp_path / "state.safetensors") == (5, 8, False)
    net = network()
    second = plain(net, **knobs)
    assert second.restore(tmp_path / "state.safetensors") and second.done == 5
    assert begun + [s.loss for s in second.run(loss_of(net))] == losses
    assert same(net, whole)
    assert [s.loss for s in second.history] == losses and [s.index for s in second.history] == list(range(1, 9))
    second.save(tmp_path / "state.safetensors")
    assert progress(tmp_path / "state.safetensors") == (8, 8, True)


@pytest.mark.parametrize("optimizer", list(OPTIMIZERS))
def test_every_optimizer_learns(optimizer):
    net = network()
    rate = 0.2 if optimizer == "sgd" else 0.02
    steps = list(plain(net, 60, optimizer=optimizer, learning_rate=rate).run(loss_of(net)))
    assert steps[-1].loss < 0.5 * steps[0].loss


def test_accumulated_parts_are_one_large_batch():
    split, together, images, seen = network(), network(), draw(6, 2, 8, 8), []
    one = list(plain(split, 4, optimizer="sgd", accumulate=3).run(lambda i: seen.append(i) or split(images[i % 3 :: 3]).square().mean()))
    two = list(plain(together, 4, optimizer="sgd").run(lambda index: together(images).square().mean()))
    assert seen == list(range(12))
    assert_close([s.loss for s in one], [s.loss for s in two], rtol=1e-5, atol=1e-6)
    for ours, theirs in zip(split.parameters(), together.parameters()):
        assert_close(ours, theirs, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_divergence_stops_with_the_last_good_state(what):
    net = network()
    good = loss_of(net)

    def loss(index):
        if index < 3:
            return good(index)
        first = next(net.parameters())
        return good(index) * float("nan") if what == "loss" else (first - first.detach()).square().sum().sqrt()

    loop, seen = plain(net), []
    with pytest.raises(Diverged, match=f"diverged: the {what} became .* at step 4 of 8.* Lower the learning rate"):
        for step in loop.run(loss):
            seen.append(step)
            kept = [p.detach().clone() for p in net.parameters()]
    assert len(seen) == loop.done == len(loop.history) == 3
    assert all(torch.equal(p, q) and torch.isfinite(p).all() for p, q in zip(net.parameters(), kept))
    assert all(p.grad is None for p in net.parameters())


def test_a_stop_in_the_middle_of_a_step_loses_that_step_alone():
    net, other = network(), network()
    good, loop = loss_of(net), plain(net)

    def stopped(index):
        if index == 4:
            raise KeyboardInterrupt
        return good(index)

    with pytest.raises(KeyboardInterrupt):
        list(loop.run(stopped))
    assert loop.done == 4 and all(p.grad is None for p in net.parameters())
    list(loop.run(good))
    list(plain(other).run(loss_of(other)))
    assert same(net, other)


class Narrow(torch.autograd.Function):
    """Itself, with a gradient that overflows as in half precision."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        return torch.where(grad.abs() > 2000, torch.inf, grad)


def test_a_loss_scale_that_overflows_is_halved(tmp_path):
    net, other = network(), network()
    good, loop = loss_of(net), plain(net, loss_scale=2.0**14)
    scaled = [s.loss for s in loop.run(lambda index: Narrow.apply(good(index)))]
    assert loop.loss_scale == 2.0**10
    loop.save(tmp_path / "state.safetensors")
    again = plain(network(), loss_scale=2.0**14)
    assert again.restore(tmp_path / "state.safetensors") and again.loss_scale == 2.0**10
    assert scaled == [s.loss for s in plain(other).run(loss_of(other))]


def test_parameters_are_moved_after_every_step():
    net = network()

    def project():
        with torch.no_grad():
            next(net.parameters()).clamp_(-0.01, 0.01)

    for _ in plain(net, after_step=project).run(loss_of(net)):
        assert next(net.parameters()).abs().max() <= 0.01


def test_without_an_average_the_average_is_the_weights(tmp_path):
    net, state = network(), tmp_path / "state.safetensors"
    loop = plain(net)
    list(loop.run(loss_of(net)))
    own = {k: p.detach().clone() for k, p in net.named_parameters()}
    with loop.averaged():
        assert not loop.averages and all(torch.equal(own[k], p) for k, p in net.named_parameters())
    loop.save(state)
    averaging = plain(network(), average=0.9)  # begins where the state without one stopped
    averaging.restore(state)
    assert all(torch.equal(averaging.averages[k], p) for k, p in net.named_parameters())


def test_adafactor_moves_what_starts_at_zero_as_adamw_does():
    """The second matrix of a LoRA starts at zero, and a share of zero is nothing."""

    def moved(optimizer):
        x = torch.nn.Parameter(torch.zeros(8, 4))
        loop = Loop({"x": x}, steps=40, learning_rate=1e-3, warmup=0, average=0.0, optimizer=optimizer, schedule="constant")
        list(loop.run(lambda i: (x - 1.0).square().sum()))
        return float(x.detach().mean())

    assert 0.5 < moved("adafactor") / moved("adamw") < 1.5


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_what_a_step_will_take_is_known_before_it(optimizer):
    net = network()
    loop = plain(net, optimizer=optimizer)
    gradients, told = 4 * sum(p.numel() for p in net.parameters()), loop.to_come()
    list(loop.run(loss_of(net)))
    kept = sum(4 * m.numel() for s in loop.algorithm.state.values() for m in s.values() if m.numel() > 1)
    assert told == gradients + kept and loop.to_come() == gradients


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_every_schedule_rises_and_then_goes_its_way(schedule):
    rates = [rate_factor(schedule, i, 100, 10) for i in range(100)]
    assert_close(rates[:10], [0.1 * (i + 1) for i in range(10)])
    assert rates[9] == rates[10] == 1.0
    assert_close(rates[55], {"cosine": 0.5, "linear": 0.5, "constant": 1.0}[schedule])
    assert all(a >= b for a, b in zip(rates[10:], rates[11:]))
    assert rates[-1] < {"cosine": 1e-3, "linear": 0.02, "constant": 1.1}[schedule] and (rates[-1] == 1) == (schedule == "constant")


def test_another_runs_state_and_unknown_names_are_refused(tmp_path):
    path = tmp_path / "state.safetensors"
    plain(network(), about={"seed": "1", "images": "8"}).save(path)
    other = plain(network(), about={"seed": "2", "images": "8"})
    refused(r"another training: seed was 1, now 2\. Set these back", other.restore, path)
    refused("'lion'; choose one of adamw, sgd, adafactor", plain, network(), optimizer="lion")
    refused("'step'; choose one of cosine, linear, constant", rate_factor, "step", 0, 1, 0)
