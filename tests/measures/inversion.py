"""Inversions compared on the demo model: `python . run tests/measures/inversion.py [--count 100] [--only METHOD ...]`.

Rendered scenes that the model was never trained on, inverted under their true captions in 50 steps and replayed twice: under the same
caption, which should give the image back, and under one in which one color or shape is another, which should change that thing alone;
where the source is drawn beside the edit, once more with Prompt-to-Prompt. All PSNR are against the VAE's own round trip. What is measured is kept in .host/measures, so that a run that was stopped goes on, and
the table shows every method that has been measured.
"""

import hashlib
import importlib
import json
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace

import numpy as np
import torch
from controlled_diffusion.inversion import quality
from controlled_diffusion.inversion.method import Trajectory
from controlled_diffusion.nodes.inversion import InversionSampler
from controlled_diffusion.training.demo.files import FILES

from harness import memory
from harness.demo_images import SCHEDULER, Studio
from harness.host import PRIVATE
from host import editing
from host.sampling import Count
from measures.diffedit import Change, change, images, prompts, succeeded
from measures.prompt_to_prompt import FREE, LAYOUT
from measures.script import head, options_of, percent, row, say
from node_schema import with_settings

STEPS, CFG = 50, 7.5
FOLDER = PRIVATE / "measures" / "inversion"
SKIPS = (0.1, 0.2, 0.36, 0.5, 0.7)  # of the edit-friendly inversion
EXACT_CFG = 3.0  # of the exact methods, up and down: that of EDICT's paper
DELAYED = {"steps": 15, "end_percent": 0.4}  # of Uni-Edit's public code
ROOM = 4  # pixels around the changed thing that do not count as off the target: half a cell of the latent


@dataclass(frozen=True)
class Way:
    """A row of the table: an inverter with settings, the cfg of the replay and of the edit, and whether Prompt-to-Prompt edits too."""

    module: str
    node: str
    settings: dict = field(default_factory=dict)
    replay: float = CFG
    edit: float = CFG
    branches: str = "edit"
    attention: bool = True
    align: bool = False

    def invert(self, studio: Studio, source: list, latents: torch.Tensor):
        inverter = getattr(importlib.import_module(f"controlled_diffusion.nodes.{self.module}"), self.node)
        names = {i.id for i in inverter.GET_SCHEMA().inputs}
        knobs = with_settings(inverter, **{"steps": STEPS, "scheduler": SCHEDULER} | self.settings)
        given = {"negative": studio.prompt("")} if "negative" in names else {}
        return inverter.execute(model=studio.model, source=source, image={"samples": latents}, **given, **knobs).args[0]


def exact(module: str, node: str) -> Way:
    """At EDICT's cfg, and with the scheduler that the help pages advise."""
    return Way(module, node, {"cfg": EXACT_CFG, "scheduler": "karras"}, EXACT_CFG, EXACT_CFG, attention=False)


def null_text(**settings) -> Way:
    return Way("null_text", "NullTextInverter", {"cfg": CFG} | settings)


def edit_friendly(**settings) -> Way:
    return Way("edit_friendly", "EditFriendlyInverter", {"cfg": 3.5} | settings, 3.5, attention=False)


WAYS = {
    "ddim": Way("ddim", "DDIMInverter"),
    "ddim, fixed point": Way("ddim", "DDIMInverter", {"fixed_point_iterations": 5}, attention=False),
    "negative-prompt": Way("negative_prompt", "NegativePromptInverter"),
    "negative-prompt, extrapolate": Way("negative_prompt", "NegativePromptInverter", {"extrapolate": True}),
    "negative-prompt, fixed point": Way("negative_prompt", "NegativePromptInverter", {"fixed_point_iterations": 3}),
    "negative-prompt, from 40 %": Way("negative_prompt", "NegativePromptInverter", DELAYED, attention=False),
    "Uni-Edit": Way("negative_prompt", "NegativePromptInverter", DELAYED | {"guidance": "Uni-Edit"}, 5.0, 5.0, attention=False),
    "null-text, empty start": null_text(start="empty", inner_steps=10, early_stop=0.2),
    "null-text, source start": null_text(),
    "null-text, early_stop 0.2": null_text(early_stop=0.2),
    "null-text, extrapolate": null_text(early_stop=0.2, extrapolate=True),
    "direct": Way("ddim", "DDIMInverter", branches="direct"),
    "direct, aligned": Way("ddim", "DDIMInverter", branches="direct", align=True),
    "edict": exact("edict", "EDICTInverter"),
    "bdia": exact("bdia", "BDIAInverter"),
    "o-belm": exact("belm", "BELMInverter"),
    "edit-friendly": edit_friendly(),
} | {f"edit-friendly, {steps} steps, skip {skip:g}": edit_friendly(steps=steps, skip=skip) for steps in (20, 100) for skip in SKIPS}


class Work:
    """Seconds of work inside of a `with`, for one image of `count`: of the processor, whatever else it has to do, or of a GPU."""

    def __init__(self, count: int):
        self.count, self.clock = count, time.perf_counter if torch.cuda.is_available() else time.process_time

    def __enter__(self):
        self.began = self.clock()
        return self

    def __exit__(self, *error):
        self.seconds = (self.clock() - self.began) / self.count


def edits(count: int) -> list[Change]:
    """Changes of one word: a color or a shape, of the only thing or of one of two."""
    found = (change(i) for i in range(4 * count))
    return [c for c in found if c.kind != "texture"][:count]


def off_target(made: torch.Tensor, floor: torch.Tensor, wish: Change) -> float:
    """PSNR over all pixels that lie off the changed thing, in both scenes."""
    near = torch.nn.functional.max_pool2d(torch.from_numpy(wish.truth)[None, None].float(), 2 * ROOM + 1, 1, ROOM)[0, 0] > 0
    return -10 * float((made - floor)[~near].square().mean().clamp(min=1e-12).log10())


def psnr(made: torch.Tensor, floor: torch.Tensor) -> list[float]:
    return quality.psnr(made, floor).clamp(max=120).tolist()


def attention_settings(wish: Change) -> dict:
    """Those of Prompt-to-Prompt for an edit."""
    reshaped = wish.before.things[wish.thing].shape != wish.after.things[wish.thing].shape
    return FREE if reshaped else LAYOUT


class Replays:
    """Walks an inversion back, and counts what that takes."""

    def __init__(self, studio: Studio, inversion, align: bool):
        self.studio, self.inversion, self.align, self.count = studio, inversion, align, Count(studio.model)

    def latents(self, model, inversion, cfg: float, branches: str, target: list | None, **more) -> torch.Tensor:
        negative = self.studio.prompt("") if inversion.null is None else None
        given = dict(positive=target, negative=negative, align=self.align, **more)
        return InversionSampler.execute(model, inversion, cfg, branches, **given).args[0]["samples"]

    def images(self, cfg: float, branches: str = "edit", target: list | None = None) -> torch.Tensor:
        return self.studio.vae.decode(self.latents(self.count.model, self.inversion, cfg, branches, target))

    def with_attention(
        self, cfg: float, branches: str, changes: list[Change], settings: Callable[[Change], dict] = attention_settings
    ) -> torch.Tensor:
        """The edits by Prompt-to-Prompt, image by image, beside a source that is held on its path or not."""
        edits = []
        for i, wish in enumerate(changes):
            texts, one = dict(zip(("source", "targets"), wish.texts)), alone(self.inversion, i)
            model, target, *_ = editing.patch(self.studio.model, self.studio.clip, latent=one, **texts, **settings(wish))
            beside = "direct" if branches == "direct" else "source and edit"
            edits.append(self.latents(model, one, cfg, beside, target)[1:])
        return self.studio.vae.decode(torch.cat(edits))


def alone(inversion, i: int):
    """The inversion of image i of a batch."""

    def row(conditioning):
        return conditioning and [[features[i : i + 1], about] for features, about in conditioning]

    trajectory = inversion.trajectory
    states = tuple(tuple(t[i : i + 1] for t in carry) for carry in trajectory.states)
    own = Trajectory(trajectory.sigmas, states, {k: t[:, i : i + 1] for k, t in trajectory.extras.items()})
    return replace(inversion, trajectory=own, source=row(inversion.source), null=row(inversion.null))


def judged(made: torch.Tensor, floor: torch.Tensor, changes: list[Change]) -> list[tuple[bool, float]]:
    """Of every edit whether it succeeded, and how near the rest of the image is."""
    shown = (made * 255 + 0.5).clamp(0, 255).byte().numpy()
    return [(succeeded(p, c), off_target(m, f, c)) for p, m, f, c in zip(shown, made, floor, changes)]


@torch.inference_mode()
def measured(studio: Studio, way: Way, changes: list[Change]) -> list[dict]:
    """The numbers of every image of a batch."""
    source, target = prompts(studio, changes)
    latents = studio.vae.encode(images(changes))
    floor, count, direct = studio.vae.decode(latents), len(changes), way.branches != "edit"
    with Work(count) as inverting:
        inversion = way.invert(studio, source, latents)
    replays = Replays(studio, inversion, way.align)
    own = replays.images(inversion.cfg)
    again = own if way.replay == inversion.cfg else replays.images(way.replay)
    replays.count.rows = 0
    with Work(count) as editing:
        made = replays.images(way.edit, way.branches, target)
    if direct:
        again, made = made[:count], made[count:]
    cost = {"seconds": inverting.seconds, "evaluations": inversion.evaluations}
    cost |= {"edit_seconds": editing.seconds, "edit_evaluations": replays.count.rows / count}
    cost["memory"] = memory.peak(lambda: way.invert(studio, [[source[0][0][:1], {}]], latents[:1]))
    rows = zip(psnr(own, floor), psnr(again, floor), judged(made, floor, changes))
    found = [{"own": a, "replay": b, "edit": success, "off": off, **cost} for a, b, (success, off) in rows]
    if way.attention:
        for one, (success, off) in zip(found, judged(replays.with_attention(way.edit, way.branches, changes), floor, changes)):
            one |= {"attention_edit": success, "attention_off": off}
    return found


class Kept:
    """What was measured of a way so far, in a file; begun anew when the model or the settings are others."""

    def __init__(self, name: str):
        self.path = FOLDER / f"{name.replace(', ', '-').replace(' ', '-')}.json"
        weights = hashlib.sha256(FILES["shapes"].model.read_bytes()).hexdigest()
        self.about = {"way": asdict(WAYS[name]), "steps": STEPS, "scheduler": SCHEDULER, "weights": weights}
        held = json.loads(self.path.read_text()) if self.path.exists() else {}
        self.images: list[dict] = held["images"] if held.get("about") == self.about else []

    def add(self, found: list[dict]) -> None:
        self.images += found
        self.path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self.path.with_suffix(".partial")
        temporary.write_text(json.dumps({"about": self.about, "images": self.images}))
        os.replace(temporary, self.path)


def line(name: str, way: Way, found: list[dict]) -> str:
    mean = {c: float(np.mean([p[c] for p in found])) for c in found[0]}
    cfgs = f"{way.settings.get('cfg', 1.0):g} / {way.replay:g} / {way.edit:g}"
    alike = [f"{mean[k]:.1f} dB" for k in ("own", "replay")]
    plain = percent(mean["edit"]), f"{mean['off']:.1f} dB"
    with_attention = (percent(mean["attention_edit"]), f"{mean['attention_off']:.1f} dB") if way.attention else ("", "")
    costs = [f"{mean[k]:.{digits}f}" for k, digits in (("seconds", 1), ("evaluations", 0), ("edit_seconds", 1), ("edit_evaluations", 0))]
    return row(name, cfgs, *alike, *plain, *with_attention, *costs, f"{mean['memory']:.1f} MB")


def table(count: int) -> str:
    """A line for each way that has been measured on as many images."""
    edit, cost = ("edit success", "PSNR off the target"), ("seconds", "evaluations")
    titles = ["method", "cfg: inverted / replayed / edited", "PSNR at the inversion's cfg", "PSNR replayed", *edit]
    titles += [f"with P2P: {edit[0]}", edit[1], f"inversion: {cost[0]}", cost[1], f"edit: {cost[0]}", cost[1], "memory"]
    kept = {name: Kept(name).images[:count] for name in WAYS}
    lines = [line(name, WAYS[name], found) for name, found in kept.items() if len(found) == count]
    about = f"{count} images, {STEPS} steps; means, costs for one image; seconds of one core. PSNR of 120 dB and more count as 120."
    return "\n".join([head(*titles), *lines, "", about])


def main() -> None:
    only = dict(nargs="*", choices=list(WAYS), metavar="METHOD", help=f"some of: {'; '.join(WAYS)}")
    shown = dict(action="store_true", help="print what has been measured, and measure nothing")
    options = options_of(__doc__, count=(100, "images"), batch=(20, "images at a time"), only=only, table=shown)
    if not options.table:
        studio, changes = Studio(), edits(options.count)
        for name in WAYS if options.only is None else options.only:
            kept = Kept(name)
            while len(kept.images) < options.count:
                done = len(kept.images)
                kept.add(measured(studio, WAYS[name], changes[done : min(done + options.batch, options.count)]))
                say(f"{name}: {len(kept.images)} of {options.count}")
    say(table(options.count))


if __name__ == "__main__":
    main()
