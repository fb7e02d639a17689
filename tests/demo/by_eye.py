"""Checks the illustrated reader against images named by eye: `python . run tests/demo/by_eye.py sheet [--weights FILE]`, then `compare`.

`sheet` draws held-out prompts, shows them by number without their captions, and writes a file of empty answers. Someone who has not
seen the captions fills it in: a line for each image, as in "7: blue car, cat; beach; watercolor". `compare` lets the reader read the
same sheet, and says how often both see the same.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from controlled_diffusion.guidance.errors import listed, quoted
from controlled_diffusion.training.demo.illustrated_drawings import COLORABLE, COLORS, THINGS
from controlled_diffusion.training.demo.illustrated_grounds import GROUNDS, SIZE
from controlled_diffusion.training.demo.illustrated_scenes import STYLES
from PIL import Image, ImageDraw, ImageFont

from demo import illustrated_studio as studio
from demo.illustrated_world import ILLUSTRATED, UNCOLORED

FOLDER = Path(__file__).parent / "illustrated"
SHEET, ANSWERS = FOLDER / "by_eye.webp", FOLDER / "by_eye.txt"
COUNT, COLUMNS, LABEL = 60, 10, 16
UNKNOWN = "unknown"
FIRST = 1000  # number of the first held-out prompt: the model's own measure uses those before
ABOUT = f"""# What the images of {SHEET.name} show, named by eye without their captions. A line for each image:
#   number: color thing, color thing; ground; style
# The color only of these: {", ".join(COLORABLE)}. Nothing to be seen: leave the things out. No thing of the world: {UNKNOWN}.
# Colors: {", ".join(COLORS)}
# Things: {", ".join(THINGS)}
# Grounds: {", ".join(GROUNDS)}
# Styles: {", ".join(STYLES)}
"""


@dataclass(frozen=True)
class Named:
    """What is seen in an image by eye: things with their colors, ground and style."""

    things: tuple[tuple[str | None, str], ...]
    ground: str
    style: str


def _thing(text: str, line: str) -> tuple[str | None, str]:
    color, _, rest = text.partition(" ")
    color, name = (color, rest) if color in COLORS else (None, text)
    if name not in (*THINGS, UNKNOWN):
        raise ValueError(f"{quoted(line)} names the thing {quoted(name)}. Things: {listed((*THINGS, UNKNOWN))}. Colors: {listed(COLORS)}.")
    return color, name


def parsed(line: str) -> tuple[int, Named]:
    """(number, what is seen) of a line of the answers."""
    number, _, rest = line.partition(":")
    parts = [part.strip() for part in rest.split(";")]
    if not number.strip().isdigit() or len(parts) != 3:
        raise ValueError(f"{quoted(line)} is no answer. Write it as in '7: blue car, cat; beach; watercolor'.")
    names, ground, style = parts
    for value, options in ((ground, GROUNDS), (style, STYLES)):
        if value not in options:
            raise ValueError(f"{quoted(line)} holds {quoted(value)}. Choose one of {listed(options)}.")
    things = tuple(_thing(name.strip(), line) for name in names.split(",") if name.strip())
    return int(number), Named(things, ground, style)


def answers(text: str) -> dict[int, Named]:
    """What is seen in each image, by its number."""
    lines = [line.strip() for line in text.splitlines()]
    return dict(parsed(line) for line in lines if line and not line.startswith("#"))


def compared(named: Named, reading) -> dict[str, list[bool]]:
    """For each fact, whether eye and reader agree: "seen" of each thing that the eye names, whether it is read; "read" of each that the
    reader names, whether the eye saw it; colors of things that both name; ground and style."""
    by_eye, by_reader = Counter(name for _, name in named.things), Counter(seen.name for seen in reading.things)
    both = by_eye & by_reader
    colors = {seen.name: seen.color for seen in reversed(reading.things)}
    found = {
        fact: [i < both[name] for name, count in names.items() for i in range(count) if name != UNKNOWN]
        for fact, names in (("seen", by_eye), ("read", by_reader))
    }
    told = [(color, name) for color, name in named.things if color and name in COLORABLE and both[name]]
    found["color"] = [colors[name] == color for color, name in told if named.style != UNCOLORED]
    return found | {"ground": [reading.ground == named.ground], "style": [reading.style == named.style]}


TITLES = {
    "seen": "things named by eye that are read",
    "read": "things read that are named by eye",
    "color": "colors",
    "ground": "grounds",
    "style": "styles",
}


def report(named: dict[int, Named], readings: Sequence) -> str:
    """How often eye and reader agree, and the numbers of the images where they do not; `readings` are those of the images from 1 on."""
    missing = sorted(set(range(1, len(readings) + 1)) - set(named))
    if missing:
        raise ValueError(f"There is no answer for the images {', '.join(map(str, missing))}. Fill in {ANSWERS.name}.")
    verdicts = {i: compared(named[i], reading) for i, reading in enumerate(readings, 1)}
    lines = ["| fact | agree | of | not in images |", "|---|---|---|---|"]
    for fact, title in TITLES.items():
        held = [holds for verdict in verdicts.values() for holds in verdict[fact]]
        apart = ", ".join(str(i) for i, verdict in verdicts.items() if not all(verdict[fact]))
        lines.append(f"| {title} | {sum(held)} | {len(held)} | {apart} |")
    return "\n".join(lines)


def sheet_of(images: Sequence[np.ndarray]) -> Image.Image:
    """Numbered images, from 1 on."""
    cell = SIZE + LABEL
    paper = Image.new("RGB", (COLUMNS * SIZE, -(-len(images) // COLUMNS) * cell), "white")
    draw, font = ImageDraw.Draw(paper), ImageFont.load_default(12)
    for i, image in enumerate(images):
        x, y = i % COLUMNS * SIZE, i // COLUMNS * cell
        paper.paste(Image.fromarray(image), (x, y))
        draw.text((x + SIZE / 2, y + SIZE + LABEL / 2), str(i + 1), fill="black", font=font, anchor="mm")
    return paper


def images_of(paper: Image.Image, count: int) -> list[np.ndarray]:
    """The first images of a sheet, uint8 (192, 192, 3) each."""
    corners = [(i % COLUMNS * SIZE, i // COLUMNS * (SIZE + LABEL)) for i in range(count)]
    return [np.asarray(paper.convert("RGB").crop((x, y, x + SIZE, y + SIZE))) for x, y in corners]


def draw(options: argparse.Namespace) -> None:
    from demo import worlds

    if options.answers.exists():
        raise ValueError(f"{options.answers} exists already. Remove it to name new images.")
    world, texts = worlds.placed(ILLUSTRATED, options), [c.text for c in studio.held_out(FIRST + options.count)[FIRST:]]
    images = worlds.studio(world).draw(texts, seed=studio.NOISE_SEED + FIRST)
    sheet_of(list(images)).save(options.sheet, quality=95)
    options.answers.write_text(ABOUT + "".join(f"{i}: ; ; \n" for i in range(1, options.count + 1)), encoding="utf-8")
    print(f"wrote {options.sheet} and {options.answers}")


def compare(options: argparse.Namespace) -> None:
    named = answers(options.answers.read_text(encoding="utf-8"))
    print(report(named, ILLUSTRATED.read(images_of(Image.open(options.sheet), len(named)))))


def main() -> None:
    from demo import worlds

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["sheet", "compare"])
    worlds.add_places(parser)
    parser.add_argument("--count", type=int, default=COUNT, help="images to draw")
    parser.add_argument("--sheet", type=Path, default=SHEET, help="image of the sheet")
    parser.add_argument("--answers", type=Path, default=ANSWERS, help="file of the answers")
    options = parser.parse_args()
    {"sheet": draw, "compare": compare}[options.what](options)


if __name__ == "__main__":
    main()
