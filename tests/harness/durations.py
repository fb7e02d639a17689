"""How long tests and workflows take: measured by ``--measure``, kept in durations.json, read where work is chosen and shared out.

Seconds are those of the processor, in the process itself and in its server and browser: the same on a quiet and on a busy machine.
"""

import collections
import contextlib
import json
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest

FILE = Path(__file__).with_name("durations.json")
SLOW = 2.0  # seconds; a test that takes longer is slow
TOTAL = "all"  # of a file, beside its slow tests


@dataclass
class Record:
    """Seconds of workflows by name; of test files by path: the whole, and each slow test by its name in the file."""

    workflows: dict[str, float] = field(default_factory=dict)
    tests: dict[str, dict[str, float]] = field(default_factory=dict)

    @classmethod
    def read(cls) -> "Record":
        return cls(**json.loads(FILE.read_text(encoding="utf-8")))

    def write(self) -> None:
        FILE.write_text(json.dumps(vars(self), indent=1, sort_keys=True) + "\n", encoding="utf-8")

    def is_slow(self, nodeid: str) -> bool:
        file, _, name = nodeid.partition("::")
        return name in self.tests.get(file, {})

    def work(self, file: str, with_slow: bool) -> float:
        """Seconds of a file, with or without its slow tests."""
        seconds = self.tests.get(file, {})
        return seconds.get(TOTAL, 0.0) - (0.0 if with_slow else sum(s for name, s in seconds.items() if name != TOTAL))

    def slow_tests(self) -> list[str]:
        return [f"{file}::{name}" for file, seconds in self.tests.items() for name in seconds if name != TOTAL]

    def replace_tests(self, seconds: dict[str, float]) -> None:
        """Take over a measurement by node id; files that it does not have keep what they had, if they are still there."""
        files = collections.defaultdict(dict)
        for nodeid, value in seconds.items():
            file, _, name = nodeid.partition("::")
            files[file][TOTAL] = round(files[file].get(TOTAL, 0.0) + value, 1)
            if value > SLOW:
                files[file][name] = round(value, 1)
        root = FILE.parents[2]
        self.tests = {file: kept for file, kept in {**self.tests, **files}.items() if (root / file).is_file()}


class Stopwatch:
    """A pytest plugin that measures each test. What a fixture of a whole file takes is shared by the tests that use it."""

    def __init__(self):
        self.own: dict[str, float] = {}
        self.shared: dict[str, float] = {}
        self.users: dict[str, list[str]] = collections.defaultdict(list)
        self._elsewhere = 0.0  # seconds of the running test that went into shared fixtures

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item):
        start, self._elsewhere = processor_seconds(), 0.0
        try:
            return (yield)
        finally:
            self.own[item.nodeid] = processor_seconds() - start - self._elsewhere
            for name in item.fixturenames:
                self.users[shared_key(item, name)].append(item.nodeid)

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(self, fixturedef, request):
        if fixturedef.scope == "function":
            return (yield)
        start, inner = processor_seconds(), self._elsewhere
        try:
            return (yield)
        finally:
            whole = processor_seconds() - start
            if fixturedef.scope != "session":  # those are everybody's
                key = shared_key(request, fixturedef.argname)
                self.shared[key] = self.shared.get(key, 0.0) + whole - (self._elsewhere - inner)
            self._elsewhere = inner + whole

    def seconds(self) -> dict[str, float]:
        """By node id: its own, and its share of the fixtures that it uses."""
        total = dict(self.own)
        for key, value in self.shared.items():
            for nodeid in self.users[key]:
                total[nodeid] += value / len(self.users[key])
        return total


def shared_key(request, fixture: str) -> str:
    return f"{request.nodeid.partition('::')[0] if isinstance(request, pytest.Item) else request.node.nodeid}::{fixture}"


def processor_seconds() -> float:
    """Of this process and all that it started, ended ones included."""
    me = psutil.Process()
    times = me.cpu_times()
    total = times.user + times.system + getattr(times, "children_user", 0.0) + getattr(times, "children_system", 0.0)
    for child in me.children(recursive=True):
        with contextlib.suppress(psutil.Error):
            total += sum(child.cpu_times()[:2])
    return total
