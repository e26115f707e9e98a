"""Warnings and log messages of other libraries that a user of `rahf` cannot act on.

Each entry names the library, the message and the release that ends it. An entry leaves the tables
with that release. The command line and the scripts install the filters; `import rahf` does not,
because a library must not change the filters of the program that imports it.

Imports no other library.
"""

import logging
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple


class ForeignWarning(NamedTuple):
    """A Python warning."""

    library: str
    """The library whose call raises it."""
    category: type[Warning]
    message: str
    """Regular expression that matches its beginning."""
    ends: str


class ForeignNote(NamedTuple):
    """A log record."""

    library: str
    logger: str
    """Full name of the logger: a filter does not get the records of loggers below it."""
    message: str
    """Regular expression that matches its beginning."""
    ends: str


WARNINGS = (
    ForeignWarning(
        "peft, trl",  # peft_model.py; models/utils.py
        FutureWarning,
        "`is_gradient_checkpointing` is deprecated",
        "transformers 6 removes the name; peft 0.21.2 and trl 1.16.0 still read it",
    ),
    ForeignWarning(
        "deepspeed",  # comm/torch.py, under ZeRO
        FutureWarning,
        r"`torch\.distributed\.(all_gather_into|reduce_scatter)_tensor` is deprecated",
        "torch names no release; deepspeed 0.19.8 still calls them",
    ),
)

NOTES = (
    ForeignNote(
        "deepspeed",  # imported by accelerate wherever it is installed, to unwrap a model
        "DeepSpeed",
        r"Setting (ds_)?accelerator to ",
        "deepspeed 0.19.8 names no release",
    ),
    ForeignNote(
        "bitsandbytes",  # imported by peft wherever it is installed
        "bitsandbytes.backends.cpu.ops",
        "Failed to load CPU gemm_4bit_forward",
        "bitsandbytes 0.50.2 names no release",
    ),
    ForeignNote(
        "bitsandbytes",  # once for each product of an 8-bit layer
        "bitsandbytes.autograd._functions",
        "MatMul8bitLt: inputs will be cast from ",
        "bitsandbytes 0.50.2 names no release",
    ),
    ForeignNote(
        "lm_eval",  # rahf passes a loaded model on purpose
        "lm_eval.models.huggingface",
        "`pretrained` model kwarg is not of type `str`",
        "lm_eval 0.4.13 names no release",
    ),
    ForeignNote(
        "lm_eval",
        "lm_eval.models.huggingface",
        "Passed an already-initialized model through `pretrained`",
        "lm_eval 0.4.13 names no release",
    ),
)


def ignore_foreign_warnings() -> None:
    """Install the filters of both tables in this process. A second call changes nothing."""
    for warning in WARNINGS:
        warnings.filterwarnings("ignore", warning.message, warning.category)
    for note in NOTES:
        logging.getLogger(note.logger).addFilter(_FILTERS[note])


class _Hidden(logging.Filter):
    """Filter that drops records whose message matches `pattern` at its start."""

    def __init__(self, pattern: str):
        super().__init__()
        self._pattern = re.compile(pattern)

    def filter(self, record: logging.LogRecord) -> bool:
        return not self._pattern.match(record.getMessage())


_FILTERS = {note: _Hidden(note.message) for note in NOTES}


@contextmanager
def loading_report_checked(name: str) -> Iterator[None]:
    """Load weights without transformers' report of missing and left-over tensors.

    For callers that check both themselves.

    Raises:
        ValueError: tensors have other shapes than the configuration gives, which the report lists.
    """
    reports: list[str] = []

    def no_report(record: logging.LogRecord) -> bool:
        text = _COLOUR.sub("", record.getMessage())
        reports.extend([text] if _REPORT in text else [])
        return _REPORT not in text

    try:
        with _filtered(no_report):
            yield
    except RuntimeError as error:
        sizes = _MISMATCHED.findall("\n".join(reports))
        if not sizes:
            raise
        key, given, wanted = min(sizes)
        raise ValueError(
            f"the weights in {name} have other shapes than its config.json gives, such as {key}: "
            f"[{given}] in the weights, [{wanted}] by the configuration. Give the complete folder "
            "as save_pretrained wrote it."
        ) from error


@contextmanager
def new_head_expected() -> Iterator[None]:
    """Load a classifier without transformers' report that its head is new.

    The report is dropped only if it lists nothing but the head that is added and the output
    embeddings that it takes the place of.
    """
    with _filtered(_only_new_head):
        yield


@contextmanager
def _filtered(shown: Callable[[logging.LogRecord], bool]) -> Iterator[None]:
    logger = logging.getLogger("transformers.modeling_utils")
    logger.addFilter(shown)
    try:
        yield
    finally:
        logger.removeFilter(shown)


_REPORT = "LOAD REPORT"
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_REPORTED = re.compile(r"^(\S+) +\| ([A-Z]+)\b", re.MULTILINE)
_MISMATCHED = re.compile(
    r"^(.+?) +\| .*ckpt: torch\.Size\(\[(.*?)\]\) vs model: ?torch\.Size\(\[(.*?)\]\)", re.MULTILINE
)
_NEW_HEAD = re.compile(r"(score|classifier)\..* MISSING|(lm_head|embed_out)\..* UNEXPECTED")


def _only_new_head(record: logging.LogRecord) -> bool:
    """Return whether a record is shown: False for a report of only a new head."""
    text = _COLOUR.sub("", record.getMessage())
    if _REPORT not in text:
        return True
    rows = [f"{name} {status}" for name, status in _REPORTED.findall(text)]
    return not rows or not all(_NEW_HEAD.fullmatch(row) for row in rows)
