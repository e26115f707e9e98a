"""A recipe on the tiny family: its words, its files."""

import json
from pathlib import Path

WORDS = [f"w{index}" for index in range(2, 40)]


def write_lines(path: Path, records: list[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
