"""The tiers of ``python . test`` hold what they promise: what is slow, who leaves it out, and that every file has quick tests."""

import json
import os
import re
import subprocess
import sys
import types

import pytest

from harness import durations, tiers
from harness.durations import TOTAL, Record
from harness.environment import ROOT

RECORD = Record(tests={"tests/test_a.py": {TOTAL: 12.0, "test_x[1]": 9.0}, "tests/test_b.py": {TOTAL: 1.5}})


def test_record_knows_slow_tests_and_the_work_of_files():
    assert RECORD.slow_tests() == ["tests/test_a.py::test_x[1]"]
    assert [RECORD.is_slow(f"tests/test_a.py::{name}") for name in ("test_x[1]", "test_x[2]", "")] == [True, False, False]
    assert [RECORD.work("tests/test_a.py", slow) for slow in (True, False)] == [12.0, 3.0]


def test_quick_tests_are_as_many_as_fit(monkeypatch):
    monkeypatch.setattr(durations, "QUICK", 4.0)
    assert [durations.bound_for(seconds) for seconds in ([3.0, 1.0, 2.0], [1.0], [9.0])] == [2.0, 1.0, 0.0]


def test_each_file_keeps_its_shortest_test_in_the_quick_tier():
    record = Record(bound=1.0)
    record.replace_tests({"a.py::x": 5.0, "a.py::y": 3.0, "b.py::x": 0.5, "b.py::y": 2.0}, whole=False)
    assert record.tests == {"a.py": {TOTAL: 8.0, "x": 5.0}, "b.py": {TOTAL: 2.5, "y": 2.0}}


def test_every_file_has_a_quick_test(request):
    """Of all files when a tier runs; those marked slow as a whole measure the trained demo model."""
    option, items = request.config.option, request.session.items
    named = option.file_or_dir or option.keyword or option.markexpr
    every = {path.relative_to(ROOT).as_posix() for folder in ("tests", "tests/host") for path in (ROOT / folder).glob("test_*.py")}
    files = {tiers.file_of(item) for item in items} & every if named else every
    quick = {tiers.file_of(item) for item in items if not item.get_closest_marker("slow")}
    slow = re.compile(r"^pytestmark = .*pytest\.mark\.slow", re.M)
    assert {file for file in files - quick if not slow.search((ROOT / file).read_text(encoding="utf-8"))} == set()


def test_recorded_slow_tests_exist():
    """After a rename: rename it in durations.json too, or measure again with 'python . test --all --measure'."""
    for nodeid in Record.read().slow_tests():
        file, _, name = nodeid.partition("::")
        assert f"def {name.partition('[')[0]}(" in (ROOT / file).read_text(encoding="utf-8"), nodeid


@pytest.mark.parametrize(
    ("given", "options"),
    [
        ({}, ["--quick", "-n"]),
        ({"all": True}, ["-n"]),
        ({"file_or_dir": ["tests/test_a.py"]}, []),
        ({"keyword": "a"}, []),
        ({"file_or_dir": ["tests/test_a.py"], "all": True}, ["-n"]),
        ({"numprocesses": 0}, ["--quick"]),
        ({"usepdb": True}, ["--quick"]),
    ],
)
def test_only_whole_tiers_are_shared_among_cores(monkeypatch, given, options):
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    nothing = dict(file_or_dir=[], keyword="", markexpr="", lf=False, all=False, quick=False, measure=False, usepdb=False, numprocesses=None)
    assert tiers.usual_options(types.SimpleNamespace(**{**nothing, **given}))[: len(options) or 1] == options


def test_measured_slow_tests_are_left_out_of_the_quick_tier(tmp_path):
    (tmp_path / "tests" / "harness").mkdir(parents=True)
    (tmp_path / "tests" / "conftest.py").write_text(
        "from pathlib import Path\nfrom harness import durations\n"
        "durations.FILE, durations.QUICK = Path(__file__).parent / 'harness' / 'durations.json', 0.75\n"
    )
    (tmp_path / "tests" / "harness" / "durations.json").write_text("{}")
    (tmp_path / "tests" / "test_a.py").write_text(
        "import time, pytest\n"
        "def work():\n    end = time.process_time() + 0.5\n    while time.process_time() < end: pass\n"
        "@pytest.fixture(scope='module')\ndef shared(): work()\n"
        "def test_first(shared): pass\ndef test_second(shared): pass\ndef test_long(): work()\n"
    )

    def run(*options):
        command = [sys.executable, "-m", "pytest", "-p", "harness.tiers", "--rootdir", str(tmp_path), "-v", *options]
        environment = {**{k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")}, "PYTHONPATH": str(ROOT / "tests")}
        return subprocess.run(command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False).stdout

    whole = run("--all", "--measure", "-n", "2", "--dist", "loadfile")
    assert "3 passed" in whole and "all tests: 0 min" in whole
    recorded = json.loads((tmp_path / "tests" / "harness" / "durations.json").read_text())["tests"]["tests/test_a.py"]
    assert recorded.keys() == {TOTAL, "test_long"} and recorded[TOTAL] > 0.9
    quick = run("-n", "2")  # the workers leave them out
    assert "whole files" in run("-k", "long", "--measure")
    assert "2 passed in" in quick and "test_long" not in quick and "1 slow tests were left out, 'python . test --all' runs them too" in quick
