"""The tiers of ``python . test``, a pytest plugin: the quick tests, or with ``--all`` every test, shared among the cores by recorded work."""

import importlib.util
import os
import time

import pytest

from harness.durations import Record
from harness.stopwatch import Stopwatch

MOST_WORKERS = 4  # each holds a ComfyUI and its own tiny models
START = time.monotonic()
WATCH = pytest.StashKey[Stopwatch]()


def pytest_addoption(parser):
    group = parser.getgroup("tiers")
    group.addoption("--all", action="store_true", help="every test, the slow ones too")
    group.addoption("--quick", action="store_true", help="leave out the slow tests (usual without arguments)")
    group.addoption("--measure", action="store_true", help="record how long the tests take: what is slow, and what each core gets")


def pytest_load_initial_conftests(early_config, args):
    if "PYTEST_XDIST_WORKER" not in os.environ:
        args[:0] = usual_options(early_config.known_args_namespace)


def usual_options(given) -> list[str]:
    """Whoever names tests gets these in one process; else the tests of a tier are shared among the cores."""
    named = bool(given.file_or_dir or given.keyword or given.markexpr or getattr(given, "lf", False))
    tier = [] if named or given.all or given.quick or given.measure else ["--quick"]
    cores = min(os.cpu_count() or 1, MOST_WORKERS)
    one_process = (named and not given.all) or given.usepdb or cores == 1 or importlib.util.find_spec("xdist") is None
    if one_process or given.numprocesses is not None:
        return tier
    return [*tier, "-n", str(cores), "--dist", "loadfile", "--no-loadscope-reorder"]


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node):
    """A worker gets the arguments of the command line, without what `usual_options` adds to them."""
    node.workerinput["quick"] = node.config.option.quick


def pytest_configure(config):
    config.addinivalue_line("markers", "slow: among the longest by durations.json; only --all runs it")
    if hasattr(config, "workerinput"):
        config.option.quick = config.workerinput["quick"]
    if config.option.measure:
        if config.option.keyword or config.option.markexpr or any("::" in name for name in config.args):
            raise pytest.UsageError("--measure takes whole files: leave out -k, -m and the names of single tests.")
        config.stash[WATCH] = Stopwatch()
        config.pluginmanager.register(config.stash[WATCH])


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config, items):
    record = Record.read()
    for item in items:
        if record.is_slow(item.nodeid):
            item.add_marker("slow")
    if config.option.quick:
        slow = [item for item in items if item.get_closest_marker("slow")]
        config.hook.pytest_deselected(items=slow)
        items[:] = [item for item in items if item not in slow]
    config.addinivalue_line("markers", "slow: among the longest by durations.json; only --all runs it")
    if hasattr(config, "workerinput"):  # the file with the most work begins, so that no core waits for another at the end
        items.sort(key=lambda item: -record.work(file_of(item), not config.option.quick))


def file_of(item) -> str:
    return item.nodeid.partition("::")[0]


def pytest_sessionfinish(session):
    config = session.config
    if config.option.measure and hasattr(config, "workeroutput"):
        config.workeroutput["seconds"] = config.stash[WATCH].seconds()
    elif config.option.measure:
        record = Record.read()
        record.replace_tests(config.stash[WATCH].seconds(), whole=not config.option.file_or_dir)
        record.write()


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node):
    """A worker hands over what it measured."""
    if node.config.option.measure:
        node.config.stash[WATCH].own.update(node.workeroutput.get("seconds", {}))


def pytest_terminal_summary(terminalreporter, config):
    """How long it took, and what the other tier is called."""
    minutes, seconds = divmod(round(time.monotonic() - START), 60)
    slow = len(Record.read().slow_tests())
    other = {
        "quick": f"; {slow} slow tests were left out, 'python . test --all' runs them too",
        "all": f"; 'python . test' leaves {slow} slow tests out",
    }
    tier = next((name for name in other if getattr(config.option, name)), "chosen")
    terminalreporter.write_line(f"{tier} tests: {minutes} min {seconds} s{other.get(tier, '')}")
