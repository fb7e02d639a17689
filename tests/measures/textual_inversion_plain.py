"""Textual inversion written anew: `python . run tests/measures/textual_inversion_plain.py [--extra hat] [--what features]`.

The paper's loop in plain torch: one batch of noise and timesteps drawn independently in each step, AdamW at a constant rate, vectors of any
length. It shares nothing with the pack's trainer but the demo model and the images, captions and prompts of `textual_inversion.py`; so where
both fail alike, it is the model that cannot. `--what features` trains rows behind the text encoder, in the place of a prompt's padding: more
than any word can do, since a word reaches the denoiser only through such rows.
"""

import argparse
import math

import comfy.sample
import numpy as np
import torch
from controlled_diffusion.nodes.host import demo
from controlled_diffusion.training.demo.files import FILES

from harness.demo_images import CFG, SAMPLER, SCHEDULER, STEPS, Studio
from measures import script
from measures.script import head, say
from measures.textual_inversion import EXTRAS, FACTS, lesson, measure, placed, shares

WORD, SD15_SCALE, TOKENS = "<new>", 0.4 / math.sqrt(768), 77


def tower(text, x: torch.Tensor) -> torch.Tensor:
    """CLIP's text tower on token vectors (B, 77, width): features (B, 77, width). ComfyUI's own writes in place, where no gradient passes."""
    x, mask = x + text.embeddings.position_embedding.weight, torch.full((TOKENS, TOKENS), -math.inf).triu(1)

    def attend(layer, y: torch.Tensor) -> torch.Tensor:
        q, k, v = (p(y).unflatten(2, (layer.heads, -1)).transpose(1, 2) for p in (layer.q_proj, layer.k_proj, layer.v_proj))
        shares = torch.softmax(q @ k.transpose(2, 3) / math.sqrt(q.shape[3]) + mask, dim=3)
        return layer.out_proj((shares @ v).transpose(1, 2).flatten(2))

    for layer in text.encoder.layers:
        x = x + attend(layer.self_attn, layer.layer_norm1(x))
        x = x + layer.mlp(layer.layer_norm2(x))
    return text.final_layer_norm(x)


class Plain:
    """The demo model's networks as they are, in float32, and what is trained: vectors (n, width) of a word, or rows of features."""

    def __init__(self, studio: Studio, o: argparse.Namespace):
        self.studio, self.features = studio, o.what == "features"
        model, clip, self.vae = demo.load(FILES["shapes"].model)  # once more, as tensors that autograd may use
        self.unet = model.model.diffusion_model.float().eval().requires_grad_(False)
        self.text = clip.cond_stage_model.clip_l.transformer.float().eval().requires_grad_(False)
        self.tokenizer = clip.tokenizer.clip_l.tokenizer
        self.table = self.text.get_input_embeddings().weight
        self.alphas = 1 / (1 + model.model.model_sampling.sigmas.square())
        mean, scale = (self.encoded(" ")[-1], 1.0) if self.features else (self.table.mean(0), float(self.table.square().mean().sqrt()))
        start = mean + 0.05 * scale * torch.randn(o.vectors, len(mean), generator=torch.Generator().manual_seed(0))
        self.trained, self.rate = torch.nn.Parameter(start), o.rate * scale / SD15_SCALE

    def ids(self, text: str) -> list[int]:
        return self.tokenizer(text)["input_ids"][1:-1]

    def encoded(self, text: str) -> torch.Tensor:
        """The features (77, width) of a prompt, in which the trained vectors stand for the word."""
        before, word, after = text.partition(WORD)
        rows = [self.table[[49406, *self.ids(before)]], *([self.trained] if word else []), self.table[self.ids(after)]]
        rows.append(self.table[[49407] * (TOKENS - sum(map(len, rows)))])
        return tower(self.text.text_model, torch.cat(rows)[None])[0]

    def context(self, text: str) -> torch.Tensor:
        if not self.features:
            return self.encoded(text)
        return torch.cat([self.encoded(text.replace(f"{WORD} ", ""))[: -len(self.trained)], self.trained])

    def train(self, images: torch.Tensor, captions: list[str], o: argparse.Namespace) -> list[float]:
        x0 = self.vae.encode(images).float().detach() * 0.18215
        draw = torch.Generator().manual_seed(1)
        optimizer, losses = torch.optim.AdamW([self.trained], self.rate), []
        for _ in range(o.steps):
            chosen = torch.randint(len(x0), (o.batch,), generator=draw)
            t, noise = torch.randint(1000, (o.batch,), generator=draw), torch.randn(o.batch, *x0.shape[1:], generator=draw)
            alpha = self.alphas[t][:, None, None, None]
            context = torch.stack([self.context(captions[i]) for i in chosen])
            found = self.unet(alpha.sqrt() * x0[chosen] + (1 - alpha).sqrt() * noise, t.float(), context)
            loss = (found - noise).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(float(loss.detach()))
        return losses

    @torch.inference_mode()
    def draw(self, texts: list[str], seed: int = 0) -> np.ndarray:
        """What ComfyUI's sampler makes of the prompts, as `Studio.draw`."""
        noise = self.studio.noise(len(texts), seed)
        positive = [[torch.stack([self.context(text) for text in texts]), {}]]
        latents = comfy.sample.sample(
            self.studio.model, noise, STEPS, CFG, SAMPLER, SCHEDULER, positive, self.studio.prompt(""), torch.zeros_like(noise),
            disable_pbar=True, seed=seed,
        )  # fmt: skip
        return self.studio.images(latents)


def check(plain: Plain, text: str) -> None:
    """The text tower is used as ComfyUI uses it."""
    torch.testing.assert_close(plain.encoded(text), plain.studio.prompt(text)[0][0][0].float(), atol=2e-3, rtol=0)


def options_of(arguments: list[str] | None = None) -> argparse.Namespace:
    return script.options_of(
        __doc__, arguments, extra=dict(choices=EXTRAS, default="hat"), what=dict(choices=("word", "features"), default="word"), count=64,
        vectors=1, steps=500, batch=4, rate=(0.02, "of a word as for SD1.5's vectors; of features, whose size is 1, about 0.0005"),
    )  # fmt: skip


def main() -> None:
    o, studio = options_of(), Studio()
    name = f"plain-{o.extra}-{o.what}-{o.vectors}-{o.steps}-{o.rate:g}".replace(".", "_")
    with torch.inference_mode(False), torch.enable_grad():
        plain = Plain(studio, o)
        check(plain, "a red circle on a white background")
        images, captions = lesson(o.extra)
        losses = plain.train(images, [placed(text, WORD) for text in captions], o)
    quarter = max(1, len(losses) // 4)
    say(f"{name}: mean loss {np.mean(losses[:quarter]):.4f} at first, {np.mean(losses[-quarter:]):.4f} at last")
    say(head("plain textual inversion", "images", o.extra, *FACTS))
    say(shares(name, measure(plain, name, lambda text: placed(text, WORD), o.count), o.extra))


if __name__ == "__main__":
    main()
