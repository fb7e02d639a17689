"""The pack's commands for people who work on it or try it out: ``python . demo`` and ``python . test``.

ComfyUI never runs this file. It stays readable for every Python 3, so that an old one gets a sentence and no traceback.
"""

import os
import sys

ROOT = os.path.dirname(os.path.abspath(__file__))


def main():
    if sys.version_info < (3, 10):
        sys.stderr.write(
            "This needs Python 3.10 or newer; this is Python %d.%d (%s).\n"
            "Run it again with a newer one, for example: python3.12 . demo\n" % (sys.version_info[0], sys.version_info[1], sys.executable)
        )
        return 1
    # The pack's root must not be importable: its folder `nodes` would hide ComfyUI's own nodes.py.
    sys.path[0] = os.path.join(ROOT, "tests")
    from harness import commands

    return commands.main(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
