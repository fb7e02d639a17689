"""Folders of image pairs: what is damaged, taken out or linked elsewhere in them."""

import json
import math
import threading
import time
from dataclasses import replace

import comfy.model_management
import folder_paths
import pytest
import torch
from controlled_diffusion.nodes.host.training.pair_folder import PairFolder
from controlled_diffusion.nodes.instruct_pairs import InstructPix2PixPairs
from controlled_diffusion.training.instruct_pix2pix import PromptPair, Shard

PAIR = PromptPair("a red cat", "a blue cat sitting there", "make it blue")


@pytest.fixture(autouse=True)
def output(tmp_path):
    before = folder_paths.get_output_directory()
    folder_paths.set_output_directory(str(tmp_path / "output"))
    yield
    folder_paths.set_output_directory(before)
    comfy.model_management.interrupt_current_processing(False)


TEXTS = ("original_image", "edited_image", "original_prompt", "edited_prompt", "edit_prompt")
LINES = {  # damaged lines of metadata.jsonl
    **{"no JSON": "{", "a list": "[1]", "a number": "3", "null": "null", "deep": "[" * 100_000},
    "a key less": '{"original_image": "before/00001.png"}',
    **{name: json.dumps(dict.fromkeys(TEXTS, v)) for name, v in (("number as name", 7), ("NUL in a name", "a\0b"), ("long name", "a" * 9999))},
}


@pytest.mark.parametrize("damage", LINES)
def test_a_damaged_line_is_named(damage):
    folder = PairFolder("things")
    folder.add(torch.zeros(2, 8, 8, 3), PAIR, {"seed": 1})
    with open(folder.path / "metadata.jsonl", "a") as file:
        file.write(LINES[damage])
    message = r"^Line 2 of .*metadata.jsonl (is no JSON|lacks ').* Remove or repair it\.$|metadata.jsonl names an image that cannot be"
    with pytest.raises(ValueError, match=message):
        folder.read()


@pytest.mark.parametrize("line", ["3", "{}", '{"pair": 3, "settings": {}}', '{"pair": {"before": "a"}, "settings": {}}',
                                  '{"pair": {"before": "a", "after": "b", "instruction": "c"}}'])  # fmt: skip
def test_a_damaged_line_of_the_progress_is_named(line):
    folder = PairFolder("things")
    folder.path.mkdir(parents=True)
    (folder.path / "progress.jsonl").write_text(line)
    with pytest.raises(ValueError, match=r"^Line 1 of .*progress.jsonl lacks '.* Remove or repair it\.$"):
        folder.done()


def test_a_list_that_is_no_text_is_named():
    folder = PairFolder("things")
    folder.path.mkdir(parents=True)
    (folder.path / "metadata.jsonl").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match=r"metadata.jsonl cannot be read: .* Repair it"):
        folder.read()


@pytest.mark.parametrize("link", ["before", "after/00001.png", "after/00001.txt"])
def test_links_out_of_the_folder_are_not_written_through(link, tmp_path):
    folder, outside = PairFolder("things"), tmp_path / "outside"
    outside.mkdir()
    (folder.path / link).parent.mkdir(parents=True)
    (folder.path / link).symlink_to(outside if link == "before" else outside / "x")
    if link != "before":  # a name that is taken
        folder.add(torch.zeros(2, 8, 8, 3), PAIR, {"seed": 1})
    else:
        with pytest.raises(ValueError, match=r"of the folder 'things' is outside of it, by its name or by a link"):
            folder.add(torch.zeros(2, 8, 8, 3), PAIR, {"seed": 1})
    assert not list(outside.iterdir())


def test_a_pair_that_the_user_takes_out_is_noticed():
    """And one that a run adds is not, so that what follows is not made anew."""
    folder = PairFolder("things")
    seen = []
    for number in range(3):
        seen.append(InstructPix2PixPairs.fingerprint_inputs("things"))
        folder.add(torch.zeros(2, 8, 8, 3), PAIR, {"seed": number})
    assert seen == [""] * 3 and InstructPix2PixPairs.fingerprint_inputs("things") == ""
    for name in ("before/00002.png", "after/00003.png"):
        (folder.path / name).unlink()
        seen.append(InstructPix2PixPairs.fingerprint_inputs("things"))
    assert len(set(seen)) == 3 and math.isnan(InstructPix2PixPairs.fingerprint_inputs(None))


def test_cancel_stops_the_reading_of_a_long_list():
    folder = PairFolder("things")
    folder.add(torch.zeros(2, 8, 8, 3), PAIR, {"seed": 1})
    line = (folder.path / "metadata.jsonl").read_text()
    (folder.path / "metadata.jsonl").write_text(line + line.replace("00001", "00002") * 300_000)
    comfy.model_management.interrupt_current_processing()
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        folder.read()
    threading.Timer(0.5, comfy.model_management.interrupt_current_processing).start()
    started = time.monotonic()
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        for _ in range(1000):
            folder.read()
    assert time.monotonic() - started < 1.5


def test_shards_share_out_all_prompt_pairs():
    """By the pair itself, so that lists that differ do not draw one twice."""
    pairs = [PromptPair(f"a {i}", f"b {i}", "-") for i in range(60)]
    owners = [[n for n in (1, 2, 3) if pair in Shard(n, 3)] for pair in pairs]
    assert all(len(found) == 1 for found in owners) and {n for found in owners for n in found} == {1, 2, 3}
    with pytest.raises(ValueError, match="shard is 4 of 3; give a number from 1 to shards"):
        Shard(4, 3)


def test_shards_write_their_own_files_and_read_all():
    one, two, whole = PairFolder("things", Shard(1, 2)), PairFolder("things", Shard(2, 2)), PairFolder("things")
    for number in range(2):
        for folder in (one, two, whole):
            folder.add(torch.full((2, 8, 8, 3), 0.1 * number), replace(PAIR, instruction=f"{folder.shard.suffix} {number}"), {"seed": number})
    two.finish(PAIR, 1, 1, {})
    assert sorted(p.name for p in one.path.glob("after/*.png")) == sorted(f"0000{n}{s}.png" for n in (1, 2) for s in ("", "-1of2", "-2of2"))
    told = sorted(f"{suffix} {n}" for suffix in ("", "-1of2", "-2of2") for n in range(2))
    assert all(sorted(folder.read()[2]) == told and folder.done() == {PAIR: {}} for folder in (one, two, whole))
    before = one.fingerprint()
    two.add(torch.zeros(2, 8, 8, 3), PAIR, {"seed": 3})
    assert one.fingerprint() != before and whole.removed() == ""
    (one.path / "after" / "00001-2of2.png").unlink()
    assert len(one.read()[2]) == 6 and whole.removed()


def test_shards_need_a_folder_that_is_continued():
    for way in ("number it", "refuse"):
        with pytest.raises(ValueError, match=f"2 shards share one folder, but if_exists is '{way}'. Set it to 'continue'"):
            PairFolder.choose("things", way, Shard(1, 2))
