"""Training arguments of transformers that do not go together with this loss.

Knows keys and values; docs/unsupported.md has the reasons in full.
"""

from collections.abc import Mapping
from typing import Any

UNSUPPORTED = {
    "use_liger_kernel": "Liger replaces modules of a model whose attention and blocks are replaced "
    "here already, and what it saves is the loss from labels, which no term here computes",
}
"""Why each is refused where it is on."""


def unsupported_problems(given: Mapping[str, Any]) -> list[str]:
    """Return a problem for each argument that is on and cannot be."""
    return [
        f"{name}: {str(given[name]).lower()} is not supported: {reason}; remove it "
        "(docs/unsupported.md)"
        for name, reason in UNSUPPORTED.items()
        if given.get(name)
    ]
