"""The emulated hosts of ``collective chaos`` for any command: python tests/launch/emulated.py 4:1 1gbit COMMAND..."""

import sys

from collective.chaos.emulated import Hosts, hosts, main, obstacle

__all__ = ["Hosts", "hosts", "main", "obstacle"]

if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
