"""One of many promoters at once: python -m tests.promoters VERSION | back, a promotion or a rollback."""

import sys

from blastwatch import promotion
from blastwatch.errors import AliasNotSet, UsageError
from blastwatch.registry import Registry
from blastwatch.settings import load

if __name__ == "__main__":
    registry, wanted = Registry(load()), sys.argv[1]
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    sys.stdin.readline()
    try:
        if wanted == "back":
            promotion.rollback(registry, reason="at once")
        else:
            promotion.promote(registry, wanted, reason="at once", cells=None).check()
    except (UsageError, AliasNotSet) as error:  # somebody else was there first, or nothing is left to go back to
        sys.stdout.write(f"{error}\n")
