"""Measures what each test takes, in seconds of the processor: nearly the same on a quiet and on a busy machine."""

import collections
import contextlib

import psutil
import pytest


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
