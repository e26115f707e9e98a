"""Files of records -> one record at a time: json, jsonl and csv, each also gzipped.

A line that cannot be read stops the reading with its file, its number and what is wrong with it, so
that no row is lost in silence. Files are read line by line; only a .json file that is not JSON
Lines is read at once. Knows nothing of pairs.
"""

import codecs
import csv
import gzip
import io
import json
import zlib
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

Record = dict[str, Any]

RECORD_SUFFIXES = (".jsonl", ".json", ".csv", ".jsonl.gz", ".json.gz", ".csv.gz")

_UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


def read_records(path: Path, *, whole_characters: bool = True) -> Iterator[tuple[str, Record]]:
    """Yield (place, record) for every record of the file; an error about the record begins with
    `place`.

    Args:
        whole_characters: half of a surrogate pair is an error; otherwise it stays in the text.

    Raises:
        ValueError: the file or a line cannot be read.
    """
    suffix = path.name.removesuffix(".gz").rpartition(".")[2]
    if suffix == "csv":
        return _csv_records(path)
    if suffix == "json" and not _is_json_lines(path):
        return _json_file_records(path, whole_characters)
    return _json_line_records(path, whole_characters)


def _open(path: Path) -> BinaryIO:
    return gzip.open(path, "rb") if path.name.endswith(".gz") else path.open("rb")


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Yield the numbered lines as UTF-8."""
    number = 0
    try:
        with _open(path) as file:
            utf16 = file.read(2) in _UTF16
            file.seek(0)
            # Lines of the decoded text: an odd byte in UTF-16 may look like a line break.
            lines = io.TextIOWrapper(file, "utf-16", newline="\n") if utf16 else file
            for number, line in enumerate(lines, start=1):
                yield number, line.encode("utf-8", "surrogatepass") if utf16 else line
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path}: not UTF-16 text after line {number}, though it begins as such "
            f"({error.reason})."
        ) from error
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(
            f"{path}: the compressed data is damaged after line {number} ({error}). "
            "Fetch or write the file again."
        ) from error


def _json_line_records(path: Path, whole_characters: bool) -> Iterator[tuple[str, Record]]:
    for number, line in _lines(path):
        if line.strip():
            place = f"{path}, line {number}"
            value = _parse_json(line.rstrip(b"\r\n"), place, whole_characters)
            yield place, _as_record(value, place)


def _is_json_lines(path: Path) -> bool:
    """Return whether the first two lines are JSON objects, each on its own."""
    lines = list(islice((line for _, line in _lines(path) if line.strip()), 2))
    if len(lines) < 2 or not lines[0].removeprefix(codecs.BOM_UTF8).lstrip().startswith(b"{"):
        return False
    try:
        json.loads(lines[0])
    except (ValueError, RecursionError):
        return False
    return True


def _json_file_records(path: Path, whole_characters: bool) -> Iterator[tuple[str, Record]]:
    """Yield the records of a list, of the list in an object of one key, or one object."""
    text = b"".join(line for _, line in _lines(path))
    if not text.strip():
        return
    value = _parse_json(text, str(path), whole_characters)
    place = "item"
    if isinstance(value, dict):
        lists = [key for key, inner in value.items() if _holds_records(inner)]
        if len(value) == 1 and lists:
            place = f"{lists[0]}, item"
            value = value[lists[0]]
        elif {"data"} == set(lists):
            place, value = "data, item", value["data"]
        elif lists and not {"chosen", "rejected", "prompt", "messages", "text"} & set(value):
            raise ValueError(
                f"{path}: one object with lists of records under {', '.join(lists)}. Write each "
                "list into a file of its own."
            )
    items = value if isinstance(value, list) else [value]
    for number, item in enumerate(items):
        yield f"{path}, {place} {number}", _as_record(item, f"{path}, {place} {number}")


def _holds_records(value: Any) -> bool:
    """Return whether a value is a list of objects that are not messages."""
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(item, dict) and "role" not in item for item in value)
    )


def _parse_json(text: bytes, place: str, whole_characters: bool) -> Any:
    try:
        value = json.loads(text, object_pairs_hook=_object)
        if b"\\ud" in text.lower():
            json.dumps(value if whole_characters else _keys(value), ensure_ascii=False).encode()
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{place}: not UTF-8 text ({error.reason} at byte {error.start})."
        ) from error
    except UnicodeEncodeError as error:
        raise ValueError(f"{place}: half of a surrogate pair, which is not a character.") from error
    except RecursionError as error:
        raise ValueError(f"{place}: lists or objects are nested too deeply to be read.") from error
    except json.JSONDecodeError as error:
        line = f"line {error.lineno}, " if error.lineno > 1 else ""
        raise ValueError(
            f"{place}: not JSON ({error.msg}, {line}column {error.colno}): "
            f"{text[:60].decode(errors='replace')!r}{_json_hint(text)}"
        ) from error
    except _RepeatedKeyError as error:
        raise ValueError(
            f"{place}: the key {error.args[0]!r} is given twice in one object: remove one."
        ) from None
    except ValueError:
        raise ValueError(f"{place}: a number has too many digits to be read.") from None
    return value


class _RepeatedKeyError(Exception):
    """An object of a JSON text gives a key twice, of which Python keeps the last."""


def _object(pairs: list[tuple[str, Any]]) -> Record:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise _RepeatedKeyError(_repeated(key for key, _ in pairs))
    return found


def _repeated(names: Iterable[str]) -> str | None:
    """Return the first name that is not the first of its kind."""
    seen: set[str] = set()
    for name in names:
        if name in seen:
            return name
        seen.add(name)
    return None


def _keys(value: Any) -> Any:
    """Return a value with nothing in the place of its texts: its keys only."""
    if isinstance(value, dict):
        return {key: _keys(inner) for key, inner in value.items()}
    return [_keys(item) for item in value] if isinstance(value, list) else None


def _json_hint(text: bytes) -> str:
    if b"\0" in text:
        return ". It looks like UTF-16 without a byte order mark: write the file as UTF-8."
    if text.strip() in (b"{", b"["):
        return (
            ". A .jsonl file holds one record a line; a value over several lines goes into .json."
        )
    return ""


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
            header, twice = values, _repeated(name for name in values if name)
            if twice is not None:
                raise ValueError(f"{place}: the header names {twice!r} twice: rename one of them.")
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
