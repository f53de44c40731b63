"""Writes the table of bad inputs into docs/troubleshooting.md, between its two marks.

python tests/armour/manual.py
"""

from __future__ import annotations

import re
from pathlib import Path

from bad_inputs import table

MANUAL = Path(__file__).resolve().parents[2] / "docs/troubleshooting.md"
MARKS = ("<!-- bad inputs: begin -->", "<!-- bad inputs: end -->")


def main() -> None:
    text = MANUAL.read_text(encoding="utf-8")
    begin, end = map(re.escape, MARKS)
    inside = f"{MARKS[0]}\n\n{table().strip()}\n\n{MARKS[1]}"
    MANUAL.write_text(
        re.sub(f"{begin}.*{end}", lambda _: inside, text, flags=re.DOTALL), encoding="utf-8"
    )


if __name__ == "__main__":
    main()
