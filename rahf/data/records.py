"""Files of records -> one record at a time: json, jsonl and csv, each also gzipped.

A line that cannot be read stops the reading with its file, its number and what is wrong with it, so
that no row is lost in silence. Files are read line by line; only a .json file that holds one long
list is read whole. Knows nothing of pairs.
"""

import csv
import gzip
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

Record = dict[str, Any]

RECORD_SUFFIXES = (".jsonl", ".json", ".csv", ".jsonl.gz", ".json.gz", ".csv.gz")


def read_records(path: Path) -> Iterator[tuple[str, Record]]:
    """(place, record) for every record of the file; `place` is what an error about the record
    should begin with."""
    suffix = path.name.removesuffix(".gz").rpartition(".")[2]
    if suffix == "csv":
        return _csv_records(path)
    if suffix == "json" and _begins_with_list(path):
        return _json_list_records(path)
    return _json_line_records(path)


def _open(path: Path) -> BinaryIO:
    return gzip.open(path, "rb") if path.name.endswith(".gz") else path.open("rb")


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    number = 0
    try:
        with _open(path) as file:
            for number, line in enumerate(file, start=1):
                yield number, line
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(
            f"{path}: the compressed data is damaged after line {number} ({error}). "
            "Fetch or write the file again."
        ) from error


def _json_line_records(path: Path) -> Iterator[tuple[str, Record]]:
    for number, line in _lines(path):
        if line.strip():
            place = f"{path}, line {number}"
            yield place, _as_record(_parse_json(line.rstrip(b"\r\n"), place), place)


def _begins_with_list(path: Path) -> bool:
    first = next((line for _, line in _lines(path) if line.strip()), b"")
    return first.removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"[")


def _json_list_records(path: Path) -> Iterator[tuple[str, Record]]:
    items = _parse_json(b"".join(line for _, line in _lines(path)), str(path))
    for number, item in enumerate(items):
        place = f"{path}, item {number}"
        yield place, _as_record(item, place)


def _parse_json(text: bytes, place: str) -> Any:
    try:
        value = json.loads(text)
        if b"\\ud" in text.lower():
            json.dumps(value, ensure_ascii=False).encode()
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{place}: not UTF-8 text ({error.reason} at byte {error.start})."
        ) from error
    except UnicodeEncodeError as error:
        raise ValueError(f"{place}: half of a surrogate pair, which is no character.") from error
    except json.JSONDecodeError as error:
        line = f"line {error.lineno}, " if error.lineno > 1 else ""
        raise ValueError(
            f"{place}: not JSON ({error.msg}, {line}column {error.colno}): "
            f"{text[:60].decode(errors='replace')!r}"
        ) from error
    return value


def _as_record(value: Any, place: str) -> Record:
    if not isinstance(value, dict):
        raise ValueError(
            f"{place}: a {type(value).__name__}, expected a JSON object with the columns as keys."
        )
    return value


def _csv_records(path: Path) -> Iterator[tuple[str, Record]]:
    # The standard library's own limit is 128 KiB a field, less than a long chat.
    csv.field_size_limit(2**31 - 1)
    reader = csv.reader(_text_lines(path), strict=True)
    header: list[str] | None = None
    while True:
        try:
            values = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise ValueError(f"{path}, line {reader.line_num}: not CSV ({error}).") from error
        place = f"{path}, line {reader.line_num}"
        if header is None:
            header = values
        elif values and len(values) != len(header):
            raise ValueError(f"{place}: {len(values)} fields, but the header has {len(header)}.")
        elif values:
            yield place, dict(zip(header, values, strict=True))


def _text_lines(path: Path) -> Iterator[str]:
    for number, line in _lines(path):
        try:
            yield line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            raise ValueError(f"{path}, line {number}: not UTF-8 text ({error.reason}).") from error
