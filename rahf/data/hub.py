"""What a name means: a path on this machine, or a repository of the Hub, requested once.

Loaders of other libraries try every file of a name they do not find for half a minute. Here one
short request shows whether the repository is there. Loads nothing.
"""

import re
import sys
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Literal, NamedTuple

from rahf.artifacts import expanded

TIMEOUT = 10.0
"""Seconds that the Hub may take to answer."""

LONGEST_ID = 96
"""Characters of a name on the Hub, at most."""

_HUB_ID = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")

Kind = Literal["model", "dataset"]


class Finding(NamedTuple):
    """What the Hub answered about a name."""

    there: bool | None  # None: the Hub gave no answer
    reason: str = ""  # why it is not there, or why the Hub gave no answer


def exists(name: str | Path) -> bool:
    """Return whether a file or folder has this name; False for an impossible name."""
    try:
        return expanded(name).exists()
    except (OSError, ValueError):  # too long, a zero byte
        return False


def may_be_on_hub(name: str) -> bool:
    """Return whether a repository of the Hub may have this name."""
    return len(name) <= LONGEST_ID and _HUB_ID.fullmatch(name) is not None


@cache
def ask_hub(name: str, kind: Kind = "model", revision: str | None = None) -> Finding:
    """Return whether the Hub has a repository that this process may read, by one request."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import (
        HfHubHTTPError,
        HFValidationError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    # The client's own class of errors: httpx's in some releases, httpx2's in others.
    no_connection = HfHubHTTPError.__bases__[0]
    try:
        HfApi().repo_info(name, repo_type=kind, revision=revision, timeout=TIMEOUT)
    except OfflineModeIsEnabled:
        return Finding(None, "HF_HUB_OFFLINE is set")
    except RevisionNotFoundError:
        return Finding(False, f"the Hub's {kind} {name} has no revision {revision!r}")
    except (RepositoryNotFoundError, HFValidationError):
        what = "model" if kind == "model" else "data set"
        return Finding(False, f"the Hub has no {what} of this name that your token may read")
    except HfHubHTTPError:
        return Finding(True)  # an answer; what it refuses is reported where a file is fetched
    except (no_connection, OSError) as error:
        return Finding(None, f"{error}" or type(error).__name__)
    return Finding(True)


def refuse_missing(
    name: str | Path, revision: str | None = None, what: str = "", cure: str = "correct the name"
) -> None:
    """Refuse a model's name that is neither a path here nor a repository that can be had.

    Where the Hub cannot be reached, what was fetched earlier is used, and this process sends it
    no more requests.

    Args:
        what: names in the error the owner of the name.
        cure: what to do.

    Raises:
        ValueError: what was looked for, where, and what to do.
    """
    name = str(name)
    if exists(name):
        return
    here = (
        f"{what or f'{name:.200}'}: there is no folder of this name "
        f"(working directory: {Path.cwd()})"
    )
    if not may_be_on_hub(name):
        raise ValueError(f"{here}{near_name(name)}; {cure}.")
    found = ask_hub(name, revision=revision)
    if found.there:
        return
    if found.there is None:
        if _fetched(name):
            reason = f"since the Hub cannot be reached ({found.reason})"
            ask_no_more(f"note: {name} is read from the cache, {reason}")
            return
        raise ValueError(
            f"{here}{near_name(name)}, and the Hub cannot be reached ({found.reason}); "
            f"{cure}, or fetch it where there is a network."
        )
    raise ValueError(f"{here}{near_name(name)}, and {found.reason}; {cure}.")


def near_name(name: str | Path) -> str:
    """Return a question with the name beside it that is most like `name`; "" where no name is."""
    path = Path(name)
    try:
        names = [entry.name for entry in expanded(path).parent.iterdir()]
    except (OSError, ValueError):  # no folder, an unreadable one, a zero byte
        return ""
    near = get_close_matches(path.name, names, n=1, cutoff=0.75)
    return f" (did you mean {path.parent / near[0]}?)" if near else ""


def _fetched(name: str) -> bool:
    """Return whether the cache of the Hub holds files of a model."""
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    folder = Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=name, repo_type="model")
    return any(folder.glob("snapshots/*/*"))


def ask_no_more(note: str = "") -> None:
    """Let the Hub's client read its cache only: it would retry for every file that is not there.

    The note is printed where the client was not offline before.
    """
    from huggingface_hub import constants

    if note and not constants.HF_HUB_OFFLINE:
        print(note, file=sys.stderr)
    constants.HF_HUB_OFFLINE = True
