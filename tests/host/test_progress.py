"""What a long task writes on its node: when, and which numbers."""

from types import SimpleNamespace

import pytest
from controlled_diffusion.nodes.host import progress
from controlled_diffusion.nodes.host.progress import INTERVAL, Progress, duration


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still until its `now` is set."""
    held = SimpleNamespace(now=0.0)
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: held.now))
    return held


def test_texts_say_phase_numbers_and_what_is_left(clock):
    spent, texts = 0, []
    told = Progress({"Inverting": 3, "Optimizing": 20}, lambda: spent)
    for i in range(23):
        clock.now += 2.0 if i < 3 else 10.0
        spent += 1 if i < 3 else 5
        assert told.advance(facts=lambda: "loss 0.5")
        texts.append(told.text)
    assert texts[:3] == [
        "Inverting: 1 of 3\nloss 0.5",
        "Inverting: 2 of 3\nloss 0.5, 1 evaluation and 2 s left",
        "Inverting: 3 of 3\nloss 0.5",
    ]
    assert texts[3:5] == ["Optimizing: 1 of 20\nloss 0.5", "Optimizing: 2 of 20\nloss 0.5, 90 evaluations and 3:00 min left"]
    assert texts[-1] == "Optimizing: 20 of 20\nloss 0.5, 103 evaluations and 3:26 min taken"


def test_at_most_two_texts_a_second(clock):
    """The numbers are not even asked for otherwise: on a GPU, that would wait for it."""
    asked, told = [], Progress({"Training": 1000})
    for i in range(1000):
        clock.now = i / 100
        told.advance(facts=lambda: asked.append(clock.now) or "")
    assert len(asked) <= 2 + 10 / INTERVAL and asked[-1] == clock.now


def test_a_continued_task_knows_its_own_pace(clock):
    told = Progress({"Training": 100}, done=90)
    for clock.now in (1.0, 2.0):
        told.advance()
    assert told.text == "Training: 92 of 100\n8 s left"


@pytest.mark.parametrize(("seconds", "text"), [(0.4, "0 s"), (59.4, "59 s"), (59.6, "1:00 min"), (3599, "59:59 min"), (7260, "2:01 h")])
def test_durations(seconds, text):
    assert duration(seconds) == text
