"""Images of the demo model through ComfyUI's own sampling, many at a time, for measurements."""

from pathlib import Path

import comfy.sample
import comfy.samplers
import numpy as np
import torch

STEPS, CFG, SAMPLER, SCHEDULER = 20, 4.0, "euler", "normal"


class Studio:
    """The demo model of shapes, or that of a file, with short ways to prompt, sample and decode; `side` is that of its latents."""

    def __init__(self, path: Path | None = None, side: int = 16):
        from controlled_diffusion.nodes.host import demo
        from controlled_diffusion.training.demo.files import FILES

        self.side = side
        with torch.inference_mode():
            self.model, self.clip, self.vae = demo.load(path or FILES["shapes"].model)

    @torch.inference_mode()
    def prompt(self, *texts: str) -> list:
        """A CONDITIONING of one text, or of a batch of texts, one for each image."""
        encoded = [self.clip.encode_from_tokens_scheduled(self.clip.tokenize(text))[0] for text in texts]
        return [[torch.cat([features for features, _ in encoded]), {}]]

    def noise(self, count: int, seed: int) -> torch.Tensor:
        """Noise of seeds seed, seed + 1, ..., so that an image does not depend on its batch."""
        empty = torch.zeros(1, 4, self.side, self.side)
        return torch.cat([comfy.sample.prepare_noise(empty, seed + i) for i in range(count)])

    @torch.inference_mode()
    def images(self, latents: torch.Tensor) -> np.ndarray:
        """uint8 (B, H, W, 3)."""
        return (self.vae.decode(latents) * 255 + 0.5).clamp(0, 255).byte().numpy()

    @torch.inference_mode()
    def draw(self, texts: list[str], seed: int = 0, model=None, cfg: float = CFG) -> np.ndarray:
        """What KSampler makes of the prompts: one image each."""
        noise = self.noise(len(texts), seed)
        latents = comfy.sample.sample(
            model or self.model,
            noise,
            STEPS,
            cfg,
            SAMPLER,
            SCHEDULER,
            self.prompt(*texts),
            self.prompt(""),
            torch.zeros_like(noise),
            disable_pbar=True,
            seed=seed,
        )
        return self.images(latents)

    @torch.inference_mode()
    def sampled(self, guider, latent: dict, seed: int = 0) -> torch.Tensor:
        """What SamplerCustomAdvanced makes with a guider from a LATENT."""
        start = latent["samples"]
        sigmas = comfy.samplers.calculate_sigmas(guider.model_patcher.get_model_object("model_sampling"), SCHEDULER, STEPS)
        given = (self.noise(len(start), seed), start, comfy.samplers.sampler_object(SAMPLER), sigmas, latent.get("noise_mask"))
        return guider.sample(*given, disable_pbar=True, seed=seed)

    def draw_with(self, guider, count: int, seed: int = 0) -> np.ndarray:
        """The same from noise: uint8 (B, H, W, 3)."""
        return self.images(self.sampled(guider, {"samples": torch.zeros(count, 4, self.side, self.side)}, seed))
