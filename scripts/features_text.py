"""Prepare the texts of recipes/smollm2-135m/FEATURES.md from the labelled sets of `sae-probes`.

    pip install zstandard
    pip install --no-deps --target saeprobes sae-probes==0.4.2
    python scripts/features_text.py --package saeprobes --output texts

FOLDER gets `prose.jsonl`, to train dictionaries on, and a file for each set that is held out to
probe them. The licences of the sets differ: use the files, and do not pass them on.
"""

import argparse
import csv
import io
import json
import random
from collections.abc import Iterator
from pathlib import Path

import zstandard

PROSE = [
    "42_temp_sense",
    "45_context_ans",
    "48_cm_correct",
    "49_cm_isshort",
    "50_deon_isvalid",
    "51_just_is",
    "52_virtue_is",
    "56_wikidatasex_or_gender",
    "57_wikidatais_alive",
    "58_wikidatapolitical_party",
    "65_high-school",
    "66_living-room",
    "68_credit-card",
    "71_social-media",
    "73_control-group",
    "78_north-america",
    "79_human-rights",
    "82_federal-government",
    "85_mental-health",
    "86_social_iqa",
    "90_glue_qnli",
    "91_glue_qqp",
    "94_ai_gen",
    "97_news_class",
    "100_news_fake",
    "101_disease_class",
    "102_twt_emotion",
    "105_click_bait",
    "110_aimade_humangpt3",
    "111_yelp_data",
    "157_amazon_5star",
]
"""Sets of English prose. 41_truthqa_tf is left out: its questions are those of TruthfulQA."""

LABELLED = [
    "87_glue_cola",
    "92_glue_sst2",
    "95_toxic_is",
    "96_spam_is",
    "106_hate_hate",
    "107_hate_offensive",
    "113_movie_sent",
]
"""Sets that no dictionary is trained on."""


def rows_of(package: Path, name: str) -> list[tuple[str, str]]:
    """Return the (text, label) rows of a set, repeated texts once."""
    path = package / "sae_probes/data/cleaned_data" / f"{name}.csv.zst"
    with path.open("rb") as file:
        stream = zstandard.ZstdDecompressor().stream_reader(file)
        rows = csv.DictReader(io.TextIOWrapper(stream, encoding="utf-8", newline=""))
        return list({row["prompt"].strip(): row["target"] for row in rows}.items())


def of_characters(texts: list[str], characters: int) -> Iterator[str]:
    """Yield texts until they have so many characters."""
    for text in texts:
        if characters <= 0:
            return
        characters -= len(text)
        yield text


def write(path: Path, records: list[dict[str, str]]) -> None:
    lines = (json.dumps(record, ensure_ascii=False) + "\n" for record in records)
    path.write_text("".join(lines), encoding="utf-8")
    print(f"{path}: {len(records):,} texts")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--package", required=True, type=Path, help="where sae-probes is installed")
    parser.add_argument("--output", required=True, type=Path, help="folder of the files")
    parser.add_argument("--characters", type=int, default=300_000, help="of each set of prose")
    options = parser.parse_args()
    csv.field_size_limit(2**31 - 1)
    options.output.mkdir(parents=True, exist_ok=True)
    shuffle = random.Random(0).shuffle
    held_out = set()
    for name in LABELLED:
        rows = rows_of(options.package, name)
        shuffle(rows)
        held_out |= {text for text, _ in rows}
        records = [{"text": text, "label": label} for text, label in rows]
        write(options.output / f"{name}.jsonl", records)
    prose = []
    for name in PROSE:
        texts = [text for text, _ in rows_of(options.package, name) if text not in held_out]
        shuffle(texts)
        prose += of_characters(texts, options.characters)
    prose = list(dict.fromkeys(prose))
    shuffle(prose)
    write(options.output / "prose.jsonl", [{"text": text} for text in prose])


if __name__ == "__main__":
    main()
