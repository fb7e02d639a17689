"""The matrix of bad inputs: every input of every node with every kind of damage, and what came of it.

A case ends in an error of the pack's own words, or in a right result. The faults: a raw error, a silent success, NaN in a result, a file
with NaN in it or half written, and work that does not end at Cancel. `--thorough` adds the ends of all numbers, in as much memory as
`--memory` allows; `--without-checks` leaves out the check of inputs against the schema.
"""

import collections
import resource
import tempfile
from pathlib import Path

from controlled_diffusion.nodes import MODULES

from harness import bad_inputs, good_inputs
from measures.script import head, options_of, row, say

VERDICTS = ("named", "ok", "raw", "silent", "NaN", "file", "hang")


def main() -> None:
    switch = dict(action="store_true")
    options = options_of(__doc__, nodes=("", "only these, between commas"), thorough=switch, without_checks=switch, memory=(12, "GB"))
    resource.setrlimit(resource.RLIMIT_AS, (options.memory * 2**30,) * 2)
    if options.without_checks:
        good_inputs.nodes().update({node.__name__: node for module in MODULES for node in module.NODES})
    wanted = options.nodes.split(",") if options.nodes else list(good_inputs.nodes())
    with tempfile.TemporaryDirectory() as folder, bad_inputs.own_folders(Path(folder)) as place:
        report(wanted, good_inputs.Sockets(), place, options.thorough)


def report(wanted: list[str], sockets: good_inputs.Sockets, place: Path, thorough: bool) -> None:
    whole = collections.Counter()
    say(head("node", "cases", *VERDICTS))
    for node_id in wanted:
        found = list(bad_inputs.outcomes(node_id, sockets, place, thorough))
        count = collections.Counter(outcome.verdict for outcome in found)
        whole += count
        say(row(node_id, len(found), *(count[v] for v in VERDICTS)))
        for outcome in found:
            if outcome.is_fault:
                say(f"    {outcome}")
    say(row("all", whole.total(), *(whole[v] for v in VERDICTS)))


if __name__ == "__main__":
    main()
