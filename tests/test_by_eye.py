"""Answers named by eye are read from their file and compared with the reader's, thing by thing."""

import numpy as np
import pytest
from controlled_diffusion.training.demo.illustrated_reader import Reading, Seen

from demo import by_eye

MASK = np.zeros((192, 192), bool)


def reading(*things: tuple[str, str], ground: str = "beach", style: str = "cartoon") -> Reading:
    return Reading(ground, style, tuple(Seen(name, color, "left", MASK, 0.9) for color, name in things))


def test_answers_are_read_from_the_file_that_is_written():
    text = by_eye.ABOUT + "1: blue car, palm tree; beach; pencil drawing\n2: ; sky; 3d\n\n3: unknown; brick wall; cartoon\n"
    assert by_eye.answers(text) == {
        1: by_eye.Named((("blue", "car"), (None, "palm tree")), "beach", "pencil drawing"),
        2: by_eye.Named((), "sky", "3d"),
        3: by_eye.Named(((None, "unknown"),), "brick wall", "cartoon"),
    }


@pytest.mark.parametrize(
    "line, said",
    [
        ("1: ; ; ", "Choose one of"),
        ("1: cat; beach", "Write it as in"),
        ("cat; beach; 3d", "Write it as in"),
        ("1: cat; moon; 3d", "'moon'"),
        ("1: cat; beach; oil", "'oil'"),
        ("1: whale; beach; 3d", "'whale'"),
    ],
)
def test_answers_that_cannot_be_read_are_refused(line, said):
    with pytest.raises(ValueError, match=said):
        by_eye.parsed(line)


@pytest.mark.parametrize(
    "answer, seen, wrong",
    [
        ("blue car, cat; beach; cartoon", reading(("blue", "car"), ("red", "cat")), {}),
        ("blue car; beach; cartoon", reading(("red", "car")), {"color": [False]}),
        ("car; beach; pencil drawing", reading(("red", "car"), style="pencil drawing"), {}),
        ("cat; beach; cartoon", reading(("red", "dog")), {"seen": [False], "read": [False]}),
        ("cat; beach; cartoon", reading(), {"seen": [False]}),
        ("; beach; cartoon", reading(("red", "dog")), {"read": [False]}),
        ("unknown; beach; cartoon", reading(("red", "unknown")), {}),
        ("unknown; beach; cartoon", reading(("red", "owl")), {"read": [False]}),
        ("cat, cat; beach; cartoon", reading(("red", "cat")), {"seen": [True, False]}),
        ("cat; snow; 3d", reading(("red", "cat")), {"ground": [False], "style": [False]}),
    ],
)
def test_eye_and_reader_are_compared(answer, seen, wrong):
    found = by_eye.compared(by_eye.parsed(f"1: {answer}")[1], seen)
    assert {fact: held for fact, held in found.items() if not all(held)} == wrong


def test_report_counts_and_says_where_they_differ():
    named = by_eye.answers("1: cat; beach; 3d\n2: cat; beach; cartoon\n3: owl; beach; cartoon")
    told = by_eye.report(named, [reading(("red", "cat"))] * 3).splitlines()
    assert told[2] == "| things named by eye that are read | 2 | 3 | 3 |" and told[-1] == "| styles | 2 | 3 | 1 |"
    with pytest.raises(ValueError, match="images 4"):
        by_eye.report(named, [reading()] * 4)


def test_images_come_back_from_the_sheet():
    images = [np.full((192, 192, 3), 3 * i, np.uint8) for i in range(13)]
    found = by_eye.images_of(by_eye.sheet_of(images), 13)
    assert all(map(np.array_equal, images, found))
