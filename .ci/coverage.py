"""Show how much of each file the tests reach, and fail if that is too little in all.

    coverage.py PERCENT REPORT

REPORT is in the LCOV format, which both coverage.py and forge write; PERCENT is what lines and
branches, each, must reach over all files.
"""

import sys
from collections import Counter
from pathlib import Path

KINDS = {"lines": ("LH", "LF"), "branches": ("BRH", "BRF")}
FIELDS = {field for fields in KINDS.values() for field in fields}


def main(least: float, report: Path) -> int:
    files: dict[str, Counter[str]] = {}
    for line in report.read_text().splitlines():
        field, _, value = line.partition(":")
        if field == "SF":
            counts = files[value] = Counter()
        elif field in FIELDS:
            counts[field] = int(value)

    total = sum(files.values(), Counter())
    width = max(len(name) for name in files)
    for name, counts in [*sorted(files.items()), ("in all", total)]:
        cells = [f"{_percent(counts, kind):6.1f}% {kind}" for kind in KINDS]
        print(f"{name:{width}}", *cells)
    missed = [kind for kind in KINDS if _percent(total, kind) < least]
    if missed:
        print(f"less than {least}% of the {' and '.join(missed)} are covered", file=sys.stderr)
    return 1 if missed else 0


def _percent(counts: Counter[str], kind: str) -> float:
    hit, found = KINDS[kind]
    return 100 * counts[hit] / counts[found] if counts[found] else 100.0


if __name__ == "__main__":
    sys.exit(main(float(sys.argv[1]), Path(sys.argv[2])))
