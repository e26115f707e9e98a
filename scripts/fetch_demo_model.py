"""Put SmolLM2-135M-Instruct under models/, once, without the Hugging Face Hub."""

import argparse
from pathlib import Path

from rahf.foreign_warnings import ignore_foreign_warnings
from rahf.models.demo_model import DEMO_MODEL, fetch_demo_model

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=DEMO_MODEL)
    output = parser.parse_args().output
    ignore_foreign_warnings()
    print(f"wrote {output}" if fetch_demo_model(output) else f"{output} already exists")
