"""How long tests and workflows take: measured by ``--measure``, kept in durations.json, read where work is chosen and shared out."""

import collections
import itertools
import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

FILE = Path(__file__).with_name("durations.json")
QUICK = 310.0  # seconds that the quick tests take together: on two cores four and a half minutes, with collection and the start of ComfyUI
TOTAL = "all"  # of a file, beside its slow tests


@dataclass
class Record:
    """Seconds of workflows by name; of test files by path: the whole, and each slow test (over `bound`) by its name in the file."""

    bound: float = 1.0
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

    def replace_tests(self, seconds: dict[str, float], whole: bool) -> None:
        """Take over a measurement by node id. That of the whole suite chooses the bound; other files keep what they had."""
        if whole:
            self.bound, self.tests = bound_for(seconds.values()), {}
        files = collections.defaultdict(dict)
        for nodeid, value in seconds.items():
            file, _, name = nodeid.partition("::")
            files[file][name] = value
        self.tests |= {file: self._entry(values) for file, values in files.items()}

    def _entry(self, seconds: dict[str, float]) -> dict[str, float]:
        """Of a file. The shortest of its tests is never slow, so that the quick tier leaves no file out."""
        slow = {name: round(value, 1) for name, value in seconds.items() if value > self.bound and value > min(seconds.values())}
        return {TOTAL: round(sum(seconds.values()), 1), **slow}


def bound_for(seconds: Iterable[float]) -> float:
    """The most that one test may take, so that all that take no more fit into `QUICK`."""
    in_order = sorted(seconds)
    fitting = sum(total <= QUICK for total in itertools.accumulate(in_order))
    return round(in_order[fitting - 1], 2) if fitting else 0.0
