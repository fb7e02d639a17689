"""Two real servers that draw pairs into one folder at once."""

import json
from concurrent.futures import ThreadPoolExecutor

import pytest

from harness.server import Server

pytestmark = pytest.mark.slow
LINES = [f"a {color} circle => a {color} star | make the {color} circle a star" for color in ("red", "blue", "green", "yellow", "purple", "orange")]


def pairs(shard: int) -> dict:
    """A prompt that draws the pairs of one of two shards."""
    own = dict(if_exists="continue", prompt_pairs="\n".join(LINES), negative="", folder="shared", width=64, height=64, candidates=1, keep=1)
    own |= dict(seed=1, shown=0, shard=shard, shards=2, options=["2", 0], filter=["3", 0])
    drawing = dict(steps=2, sampler_name="euler", scheduler="normal", min_cfg=3.0, max_cfg=4.0, min_share=0.1, max_share=0.9)
    return {
        "1": {"class_type": "DemoModelLoader", "inputs": {"world": "shapes"}},
        "2": {"class_type": "PairOptions", "inputs": drawing},
        "3": {"class_type": "PairFilter", "inputs": {"by": "changed area", "by.min_changed": 0.0, "by.max_changed": 1.0}},
        "4": {"class_type": "InstructPix2PixPairs", "inputs": dict(model=["1", 0], clip=["1", 1], vae=["1", 2], **own)},
    }


def test_two_servers_share_a_folder(tmp_path):
    bases = [tmp_path / name for name in ("one", "two")]
    (bases[0] / "output").mkdir(parents=True)
    bases[1].mkdir()
    (bases[1] / "output").symlink_to(bases[0] / "output", target_is_directory=True)
    with Server(bases[0]) as one, Server(bases[1]) as two, ThreadPoolExecutor(2) as both:
        list(both.map(lambda server, shard: server.run(pairs(shard)), (one, two), (1, 2)))
    folder = bases[0] / "output" / "controlled_diffusion" / "pairs" / "shared"
    lists = [[json.loads(line) for line in (folder / f"metadata-{n}of2.jsonl").read_text().splitlines()] for n in (1, 2)]
    assert all(lists) and sorted(line["edit_prompt"] for found in lists for line in found) == sorted(line.split("| ")[1] for line in LINES)
    names = [line["edited_image"] for found in lists for line in found]
    assert len(set(names)) == 6 and all((folder / name).is_file() for name in names)
    assert len({line["seed"] for found in lists for line in found}) == 6
