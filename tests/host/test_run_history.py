"""The history of runs by the latents that they made, on stand-ins for samplings."""

from types import SimpleNamespace

import comfy.model_management
import comfy.nested_tensor
import comfy.utils
import pytest
import torch
from controlled_diffusion.nodes.host.run_history import KEPT, RunHistory, digest, run_of
from controlled_diffusion.nodes.host.sampling import CallbackSampler

MODEL = SimpleNamespace(model=SimpleNamespace(process_latent_out=lambda x: x / 2))
NOISE = torch.ones(1, 4, 8, 8)


def latent(value: float) -> dict:
    return {"samples": torch.full((1, 4, 8, 8), value)}


def sample(history, run, result, start=0.0, noise=NOISE, denoised=None, callback=None, sampler=None, mask=None, sigmas=(1.0, 0.0)):
    """A sampling that makes a latent of one value, and hands `denoised` to the callback."""

    def sampling(noise, latent_image, sampler, sigmas, denoise_mask, callback):
        if denoised is not None:
            callback(0, denoised, None, 1)
        return latent(result)["samples"]

    history.sample(run, MODEL, sampling, noise, latent(start)["samples"], sampler, torch.tensor(sigmas), mask, callback)


def test_runs_are_found_by_what_they_made():
    history = RunHistory()
    for run, value in (("a", 1.0), ("b", 2.0)):
        sample(history, run, value)
    assert [history.of(latent(v)) for v in (1.0, 2.0, 3.0)] == [("a",), ("b",), ()]
    sample(history, "c", 1.0)
    assert history.of(latent(1.0)) == ("c",)


def test_device_and_float_type_do_not_matter(monkeypatch):
    """ComfyUI stores latents in half precision with --fp16-intermediates, and packs nested ones."""
    parts = [torch.randn(2, 4, 8, 8), torch.randn(2, 8, 5)]
    assert digest(comfy.nested_tensor.NestedTensor(parts)) == digest(comfy.utils.pack_latents(parts)[0])
    half = torch.randn(1, 4, 8, 8).half()
    assert digest(half) == digest(half.float()) != digest(half.float() + 1e-3)
    monkeypatch.setattr(comfy.model_management, "intermediate_dtype", lambda: torch.float16, raising=False)
    history = RunHistory()
    sample(history, "a", 1 / 3)
    assert history.of({"samples": latent(1 / 3)["samples"].half()}) == history.of(latent(1 / 3)) == ("a",)


def test_denoised_outputs_and_loops_of_the_pack_belong_to_a_run():
    """Such a loop gives ComfyUI the latent back that it was given, and keeps what it made."""
    history, seen, sampler = RunHistory(), [], CallbackSampler(None, {})
    sample(history, "a", 1.0, denoised=latent(6.0)["samples"], callback=lambda *given: seen.append(given[1]))
    assert history.of(latent(3.0)) == history.of(latent(1.0)) == ("a",) and torch.equal(seen[0], latent(6.0)["samples"])
    sampler.result = latent(8.0)["samples"]
    sample(history, "b", 1.0, sampler=sampler)
    assert history.of(latent(4.0)) == ("b",)


def test_the_original_may_be_restored_off_the_mask():
    """Through the model's own space and back it is not the same to the last bit."""
    history, mask, restored = RunHistory(), torch.zeros(1, 1, 8, 8), latent(5.0)
    mask[..., 4:], restored["samples"][..., 4:] = 1, 1.0
    sample(history, "a", 1.0, start=5.0, mask=mask)
    assert history.of(restored) == history.of(latent(1.0)) == ("a",)


def test_without_noise_a_run_is_a_further_part():
    """Where it begins at the sigma at which the other ended; a finished latent that is edited without noise is a new sampling."""
    history = RunHistory()
    sample(history, "a", 1.0, sigmas=(1.0, 0.5))
    sample(history, "b", 2.0, start=1.0, noise=torch.zeros_like(NOISE), sigmas=(0.5, 0.0))
    sample(history, "c", 3.0, start=1.0, sigmas=(0.5, 0.0))
    sample(history, "d", 4.0, start=2.0, noise=torch.zeros_like(NOISE), sigmas=(0.5, 0.0))
    assert [history.of(latent(v)) for v in (1.0, 2.0, 3.0, 4.0)] == [("a",), ("a", "b"), ("c",), ("d",)]


def test_only_the_last_runs_are_kept():
    history = RunHistory()
    for i in range(KEPT + 3):
        sample(history, i, float(i), denoised=latent(100.0 + 2 * i)["samples"])
    assert [bool(history.of(latent(float(i)))) for i in range(KEPT + 3)] == [False] * 3 + [True] * KEPT
    with pytest.raises(ValueError, match="If an older result comes from ComfyUI's cache, change the seed and sample again"):
        run_of([history], latent(0.0), "")


def test_an_unknown_latent_is_refused_with_the_next_step():
    history = RunHistory()
    with pytest.raises(ValueError, match=r"nothing to show .* has not sampled yet\. Connect it\."):
        run_of([history], latent(1.0), "Connect it.")
    sample(history, "a", 1.0, denoised=latent(6.0)["samples"])
    with pytest.raises(ValueError, match=r"made other latents in its last 1 run\(s\), not this one\. Connect it\."):
        run_of([RunHistory(), history], latent(2.0), "Connect it.")
    assert run_of([RunHistory(), history], latent(1.0), "") == ("a",)
