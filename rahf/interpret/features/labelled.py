"""Texts of a file with one of two labels each, for probes.

Knows files of records; knows no model.
"""

from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Bool
from torch import Tensor

from rahf.data.records import read_records


class Labelled(NamedTuple):
    """Texts with one of two labels each."""

    texts: list[str]
    labels: Bool[Tensor, " texts"]
    positive: str  # label that is true, as the file has it
    whole: bool  # whether these are all texts of the file


def read_labelled(path: Path, text: str, label: str, limit: int | None = None) -> Labelled:
    """Return the texts of a file of records, and which have the second of its two labels.

    Raises:
        ValueError: a record without a text or label; not two labels.
    """
    texts, labels, whole = [], [], True
    for place, record in read_records(path):
        if len(texts) == limit:
            whole = False
            break
        if isinstance(record.get(label), dict | list):
            raise ValueError(
                f"{place}: the label in {label!r} is {str(record[label])[:60]!r}, a list or an "
                "object; give text, a number, true or false."
            )
        if not isinstance(record.get(text), str) or record.get(label) in (None, ""):
            raise ValueError(
                f"{place}: needs a text in the column {text!r} and a label in {label!r}; it has: "
                f"{', '.join(record)}. Give --text_column and --label_column."
            )
        texts.append(record[text])
        labels.append(str(record[label]))
    names = sorted(set(labels))
    if len(names) != 2:
        shown = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
        raise ValueError(f"{path} has {len(names)} labels ({shown}); a probe needs two.")
    return Labelled(texts, torch.tensor([name == names[1] for name in labels]), names[1], whole)
