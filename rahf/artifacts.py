"""Files of a run, written atomically; their locks, and the identity of their content.

Knows folders and JSON; knows no model and no method.
"""

import hashlib
import json
import logging
import os
import socket
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock, Timeout

MOST_NODES = 100_000
"""Most values of a YAML text, aliases expanded: a few lines of aliases can expand to billions."""

MADE_BY = "made_by"
"""Key of the command, as `rahf shift`, in a JSON file of its result."""

STAGE_FILE = "stage.json"
METRICS_FILE = "metrics.json"
RECIPE_FILE = "recipe.yaml"
LOG_FILE = "log.jsonl"
CHOICE_FILE = "choice.json"
ANSWERS_FILE, TEXTS_FILE = "answers.jsonl", "texts.jsonl"  # of an evaluation
MANIFEST = "manifest.json"  # of a checkpoint: its files, and their checksums

SHOWN = 5  # numbers of damaged lines that a warning names

logger = logging.getLogger(__name__)


def expanded(name: str | Path) -> Path:
    """Return the path of a name whose `~` is a home; a `~x` that names no user stays as it is."""
    # os.path, since Path.expanduser fails at such a name.
    return Path(os.path.expanduser(name))  # noqa: PTH111


def staging_of(path: Path) -> Path:
    """Return a name beside a file for what is renamed to it, where nothing is.

    What a killed process has left there is removed: a link would be written through.
    """
    staging = path.with_name(f".{path.name}.partial")
    path.parent.mkdir(parents=True, exist_ok=True)
    staging.unlink(missing_ok=True)
    return staging


def write_text(path: Path, text: str) -> None:
    """Write a temporary file and rename it, so that a full disk leaves the old file unchanged."""
    staging = staging_of(path)
    try:
        staging.write_text(text, encoding="utf-8")
        staging.replace(path)
    finally:
        staging.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def write_lines(path: Path, records: Iterable[Mapping[str, Any]]) -> None:
    """Write one JSON object a line."""
    write_text(path, "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records))


def read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def read_object(
    path: Path, remedy: str = "Delete it to make it again.", **fields: type
) -> dict[str, Any]:
    """Return the JSON object in a file of a result; a file without one, or these, is refused."""
    found = _record(path.read_bytes())
    if isinstance(found, dict) and all(isinstance(found.get(k), t) for k, t in fields.items()):
        return found
    raise ValueError(f"{path} is damaged. {remedy}")


def read_lines(path: Path) -> list[dict[str, Any]]:
    # Not splitlines(): a text may hold U+2028 and the like, which JSON leaves as they are.
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def append_lines(path: Path, records: Iterable[Mapping[str, Any]]) -> None:
    """Add one JSON object a line by a single write, so that lines of two processes do not mix."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
    with path.open("ab") as file:
        file.write(text.encode())


def kept_lines(
    path: Path, is_intact: Callable[[Any], bool], kind: str | None = None
) -> list[dict[str, Any]]:
    """Return the records of a file that a run resumes from, after which the file holds no others.

    Damaged lines, such as the last one of a killed run, are named; the caller makes them again.

    Args:
        kind: what the file holds, where a user may have named it; a file without any is refused.
    """
    content, kept, damaged = path.read_bytes(), [], []
    for number, line in enumerate(content.split(b"\n"), 1):
        record = _record(line)
        if record is not None and is_intact(record):
            kept.append(record)
        elif line.strip():
            damaged.append(number)
    if kind is not None and damaged and not kept:
        raise ValueError(f"{path} is not a file of {kind}; give another name, or delete the file.")
    if damaged:
        named = ", ".join(map(str, damaged[:SHOWN])) + (", ..." if damaged[SHOWN:] else "")
        logger.warning(f"{path}: {len(damaged)} damaged and made again: line {named}")
    if damaged or not content.endswith(b"\n"):
        write_lines(path, kept)
    return kept


def _record(line: bytes) -> Any:
    """Return what a line of JSON holds; None where it is not JSON."""
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None


@contextmanager
def alone(path: Path, *, wait: bool = True) -> Iterator[None]:
    """Keep other processes from making the same file or folder, by `.NAME.lock` beside it.

    The lock of a process that is killed goes with it. `.NAME.holder` names the process. Where
    nothing can be written beside a folder, as beside a mounted one, both are in it.

    Raises:
        ValueError: another process holds the lock, and `wait` is false.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    whole = path.resolve()
    place = whole.parent if os.access(whole.parent, os.W_OK) or not whole.is_dir() else whole
    lock, holder = FileLock(place / f".{whole.name}.lock"), place / f".{whole.name}.holder"
    try:
        lock.acquire(blocking=False)
    except Timeout:
        who = holder.read_text(encoding="utf-8") if holder.exists() else "another process"
        if not wait:
            raise ValueError(
                f"{path} is being made by {who}. Wait until it has ended, or give another output."
            ) from None
        print(f"waiting for another process, which is making {path} ({who})", flush=True)
        lock.acquire()
    try:
        since = datetime.now().astimezone().isoformat(sep=" ", timespec="seconds")
        write_text(holder, f"process {os.getpid()} on {socket.gethostname()} since {since}")
        yield
    finally:
        holder.unlink(missing_ok=True)
        lock.release()


HASHED = 64 * 2**20  # bytes up to which a file is identified by its content

WEIGHTS = (
    *("*.safetensors", "pytorch_model*.bin", "adapter_model.bin", "*.gguf", "*.index.json"),
    *("config.json", "adapter_config.json"),
)
"""Files that only a folder of a model or an adapter holds."""

PARTS_OF_MODEL = (
    *WEIGHTS,
    *("generation_config.json", "tokenizer*", "vocab*"),
    *("merges.txt", "chat_template*", "special_tokens_map.json", "added_tokens.json", "*.model"),
)
"""Files of a folder that decide what a model or an adapter is."""


def identity_of(*paths: str | Path) -> str | None:
    """Return the identity of the content of files and folders; None where nothing is there.

    It holds names and sizes, and of each file a hash, or the time of its last change where the file
    is large. Of a model's folder the model's own files count, of any other folder all files.
    """
    parts = sorted(
        f"{file.relative_to(path if path.is_dir() else path.parent)} {content_of(file)}"
        for path in (expanded(given) for given in paths)
        for file in _files_of(path)
    )
    if not parts:
        return None
    digest = hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]
    return f"{len(parts)} {'file' if len(parts) == 1 else 'files'}, {digest}"


def _files_of(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    found = {file for name in PARTS_OF_MODEL for file in path.glob(name)}
    if not {"config.json", "adapter_config.json"} & {file.name for file in found}:
        found = {file for file in path.rglob("*") if not file.name.startswith(".")}
    return [file for file in found if file.is_file()]


def content_of(path: Path, *, dated: bool = True) -> str:
    """Return size and hash, or size and time of a large file; without the time unless `dated`."""
    stat = path.stat()
    if stat.st_size <= HASHED:
        return f"{stat.st_size} {hashlib.sha256(path.read_bytes()).hexdigest()[:16]}"
    return f"{stat.st_size} {stat.st_mtime_ns}" if dated else f"{stat.st_size}"


def other_content(record: Mapping[str, Any], now: Mapping[str, str | None]) -> str:
    """Return a line for each thing whose content is not what a result was made from."""
    before = record.get("made_from", {})
    return "".join(
        f"  content of {name}: {before[name]} there, {now[name]} now\n"
        for name in sorted(before.keys() & now.keys())
        if now[name] not in (None, before[name])
    )


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    return "".join(f"  {line}\n" for line in _changed(before, now))


def _changed(before: Mapping[str, Any], now: Mapping[str, Any], prefix: str = "") -> list[str]:
    lines = []
    for key in sorted({*before, *now}):
        old, new = before.get(key), now.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            lines += _changed(old, new, f"{prefix}{key}.")
        elif old != new and (key, new) != ("weights", None):  # of an earlier version: file times
            lines.append(f"{prefix}{key}: {old!r} there, {new!r} now")
    return lines


def load_yaml(text: str, loader: Callable[[str], yaml.SafeLoader] = yaml.SafeLoader) -> Any:
    """Return the value of a YAML text.

    Raises:
        yaml.YAMLError: the text is not YAML, is nested too deeply, or is too large with its
            aliases written out.
    """
    try:
        reading = loader(text)  # refuses control characters
        node = reading.get_single_node()
        if node is None:
            return None
        if _nodes(node, {}) > MOST_NODES:
            raise yaml.YAMLError(f"more than {MOST_NODES:,} values with its aliases written out")
        return reading.construct_document(node)
    except RecursionError:
        raise yaml.YAMLError("nested too deeply, or an alias inside its own value") from None
    except yaml.YAMLError:
        raise
    except ValueError as error:  # a date such as 2024-99-99
        raise yaml.YAMLError(f"{error}") from None


def _nodes(node: yaml.Node, known: dict[int, int]) -> int:
    """Return the number of values in a node, every alias expanded."""
    if id(node) not in known:
        parts = [] if isinstance(node, yaml.ScalarNode) else node.value
        if isinstance(node, yaml.MappingNode):
            parts = [part for pair in parts for part in pair]
        known[id(node)] = 1 + sum(_nodes(part, known) for part in parts)
    return known[id(node)]
