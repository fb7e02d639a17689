"""What the measuring scripts share: their options, the lines of their tables, and files of what was measured so far."""

import argparse
import json
from collections.abc import Callable

from harness.environment import PRIVATE


def options_of(
    about: str,
    arguments: list[str] | None = None,
    add_options: Callable[[argparse.ArgumentParser], None] = lambda parser: None,
    /,
    **offered,
) -> argparse.Namespace:
    """What the command line asks for. Each option is given as its default, as (default, help) or as keywords of argparse; `add_options` may
    add more."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser)
    for name, given in offered.items():
        default, told = given if isinstance(given, tuple) else (given, None)
        keywords = given if isinstance(given, dict) else dict(default=default, type=type(default), help=told)
        parser.add_argument(f"--{name.replace('_', '-')}", **keywords)
    return parser.parse_args(arguments)


def say(text: str) -> None:
    print(text, flush=True)


def row(*cells) -> str:
    """A line of a table."""
    return f"| {' | '.join(map(str, cells))} |"


def head(*titles) -> str:
    """The first two lines of a table."""
    return f"{row(*titles)}\n|{'---|' * len(titles)}"


def percent(share: float, digits: int = 0) -> str:
    return f"{100 * share:.{digits}f} %"


def kept(name: str, count: int, judged: Callable[[int, int], list[dict]], batch: int = 16) -> list[dict]:
    """`count` verdicts, kept in a file; `judged(first, number)` gives those of the next batch that are missing."""
    path = PRIVATE / "measures" / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    done = json.loads(path.read_text()) if path.exists() else []
    while len(done) < count:
        done += judged(len(done), min(batch, count - len(done)))
        path.write_text(json.dumps(done))
    return done[:count]
