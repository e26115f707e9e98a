"""Adapters and directions to the Hugging Face Hub, with a card that describes them.

Knows folders and the Hub's interface; loads no model. A token is read from where huggingface_hub
keeps it and shown nowhere.
"""

import json
import os
import urllib.error
import urllib.request
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import yaml

from rahf.artifacts import METRICS_FILE, RECIPE_FILE, alone
from rahf.directions.vectors import FILE_NAME, Directions
from rahf.export.checks import (
    ADAPTER_FILES,
    check_adapter,
    check_directions,
    nothing_there,
    read_mapping,
)
from rahf.recipe.as_run import method_as_run
from rahf.recipe.methods import METHODS
from rahf.report.card import FROM_PYTHON, directions_card, is_own_card, model_card

if TYPE_CHECKING:
    from huggingface_hub import HfApi

CARD_FILE = "README.md"

DIRECTION_FILES = (FILE_NAME, "control_vector.gguf", "evidence.json", "evidence.md", "evidence.png")


class Upload(NamedTuple):
    """What goes to the Hub: text as it is made here, files as they are on the disk."""

    files: dict[str, Path | bytes]
    unchecked: str | None = None  # what could not be checked

    def sizes(self) -> dict[str, int]:
        return {
            name: len(content) if isinstance(content, bytes) else content.stat().st_size
            for name, content in sorted(self.files.items())
        }

    def card(self) -> str:
        """Return the text of the card."""
        card = self.files[CARD_FILE]
        return card.decode() if isinstance(card, bytes) else card.read_text(encoding="utf-8")


def not_being_made(folder: Path) -> AbstractContextManager[None]:
    """Keep others from making `folder` while it is read and sent.

    Raises:
        ValueError: another process makes it, or sends it.
    """
    # No process writes where nothing can be written.
    return alone(folder, wait=False) if os.access(folder, os.W_OK) else nullcontext()


def collect(folder: Path, repo_id: str, base: str | None = None) -> Upload:
    """Return the files of an adapter's or of directions' folder, with their card.

    Args:
        base: the base's name on the Hub, where the folder names a folder of this machine.

    Raises:
        ValueError: the folder holds neither, or what is not intact; a wrong `repo_id`; the base
            has no name that others can use.
    """
    check_repo_id(repo_id)
    if (folder / "adapter_config.json").is_file():
        check_adapter(folder)
        return _adapter(folder, repo_id, base)
    if (folder / FILE_NAME).is_file():
        return _directions(folder, repo_id, base)
    raise ValueError(nothing_there(folder))


def check_repo_id(repo_id: str) -> None:
    """Refuse what cannot be the name of a repository.

    Raises:
        ValueError: not USER/NAME, in the characters that the Hub allows.
    """
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise ValueError(f"{repo_id!r} is not the name of a repository: {error}") from None
    if repo_id.count("/") != 1 or repo_id != repo_id.strip():  # a line break passes some releases
        raise ValueError(f"{repo_id!r} is not the name of a repository: give USER/NAME.")


def _adapter(folder: Path, repo_id: str, base: str | None) -> Upload:
    config = read_mapping(folder / "adapter_config.json")
    base = shared_name(base or config.get("base_model_name_or_path"))
    config["base_model_name_or_path"] = base
    files: dict[str, Path | bytes] = {
        name: folder / name for name in ADAPTER_FILES if (folder / name).is_file()
    }
    files["adapter_config.json"] = json.dumps(config, indent=2).encode()
    metrics = read_mapping(folder / METRICS_FILE) if METRICS_FILE in files else {}
    recipe = _recipe_of(folder, metrics) | {"model_name_or_path": base}
    how: dict[str, Any] = {"where": repo_id}
    how["tokenizer"] = repo_id if "tokenizer_config.json" in files else base
    if RECIPE_FILE in files:
        text = yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True)
        files[RECIPE_FILE] = text.encode()
    else:
        files[METRICS_FILE] = json.dumps(metrics | {"settings": recipe}, indent=2).encode()
        how["files"] = FROM_PYTHON
    card = folder / CARD_FILE
    if RECIPE_FILE not in files and card.is_file() and not is_own_card(card):
        return Upload({**files, CARD_FILE: card})  # RAHFTrainer keeps a card that a user wrote
    text = model_card(recipe, metrics, **method_as_run(recipe)._asdict(), **how)
    return Upload({**files, CARD_FILE: text.encode()})


def _recipe_of(folder: Path, metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Return the recipe of a run, or the settings that RAHFTrainer keeps with its figures.

    Raises:
        ValueError: neither is there, or its method is unknown.
    """
    path, settings = folder / RECIPE_FILE, metrics.get("settings")
    if not path.is_file() and not isinstance(settings, dict):
        raise ValueError(
            f"{folder} holds an adapter but no {RECIPE_FILE}, nor settings of RAHFTrainer in "
            f"{METRICS_FILE}, from which its card is filled in; give the output_dir of a run, or "
            "write the folder again by RAHFTrainer.save_model."
        )
    source = path if path.is_file() else folder / METRICS_FILE
    recipe = read_mapping(path) if path.is_file() else dict(settings or {})
    if recipe.get("method") not in METHODS:
        raise ValueError(
            f"{source}: method: {recipe.get('method')!r} is not one of {', '.join(METHODS)}."
        )
    return recipe


def _directions(folder: Path, repo_id: str, base: str | None) -> Upload:
    files: dict[str, Path | bytes] = {
        name: folder / name for name in DIRECTION_FILES if (folder / name).is_file()
    }
    directions = Directions.load(folder)
    known = directions.metadata
    if base and not Path(known.get("model") or "", "config.json").is_file():
        known = known | {"model": base}
    unchecked = check_directions(folder, directions.layers, directions.vectors, known)
    base = shared_name(base or directions.metadata.get("model"))
    evidence = read_mapping(folder / "evidence.json") if "evidence.json" in files else None
    card = directions_card(
        directions.metadata | {"model": base}, directions.layers, evidence, repo_id
    )
    return Upload({**files, CARD_FILE: card.encode()}, unchecked)


def shared_name(base: str | None) -> str:
    """Return the base's name, if others can load it from the Hub."""
    if not base or Path(base).exists() or base.startswith((".", "/", "~")) or base.count("/") != 1:
        raise ValueError(
            f"the base is {base!r}, which is not a name on the Hub: others could not load it. Give "
            "--base with the name of the repository it came from."
        )
    check_repo_id(base)
    return base


def push(upload: Upload, repo_id: str, *, private: bool = True, endpoint: str | None = None) -> str:
    """Create the repository if there is none and send all files in one commit; return its address.

    Raises:
        ValueError: no token; the Hub cannot be reached, or refuses; the repository is public and
            `private` is true.
    """
    from huggingface_hub import HfApi, constants, get_token
    from huggingface_hub.errors import HfHubHTTPError

    endpoint, token = endpoint or constants.ENDPOINT, get_token()
    if not token:
        raise ValueError(
            "no token of the Hub was found: run `hf auth login`, or set the environment variable "
            "HF_TOKEN to a token that may write."
        )
    check_reachable(endpoint)
    try:
        return _send(HfApi(endpoint=endpoint, token=token), upload, repo_id, private)
    except HfHubHTTPError as error:
        raise ValueError(push_refusal(error.response.status_code, repo_id, endpoint)) from None
    except RuntimeError as error:  # a large file did not arrive
        raise ValueError(f"{error} The same command resumes the upload.") from None


def _send(api: "HfApi", upload: Upload, repo_id: str, private: bool) -> str:
    """Create the repository if there is none and commit the files; return the commit's address."""
    from huggingface_hub import CommitOperationAdd

    operations = [
        CommitOperationAdd(path_in_repo=name, path_or_fileobj=content)
        for name, content in sorted(upload.files.items())
    ]
    api.create_repo(repo_id, private=private, exist_ok=True)
    if private and not api.model_info(repo_id).private:
        raise ValueError(
            f"{repo_id} exists and is public; nothing was sent. Give --public to publish "
            "there, or another name."
        )
    return str(
        api.create_commit(repo_id, operations, commit_message="Upload by rahf push").commit_url
    )


def check_reachable(endpoint: str) -> None:
    """Raise ValueError where no answer comes at all; any answer will do."""
    try:
        urllib.request.urlopen(urllib.request.Request(endpoint, method="HEAD"), timeout=20).close()
    except urllib.error.HTTPError:
        return
    except OSError as error:
        raise ValueError(
            f"{endpoint} cannot be reached ({getattr(error, 'reason', error)}). Nothing was sent; "
            "look at the network, or show the files with --dry_run."
        ) from None


def push_refusal(status: int, repo_id: str, endpoint: str) -> str:
    """Return what a status of the Hub means. The answer itself may hold what it was sent."""
    reasons: Mapping[int, Any] = {
        401: "the token is not valid",
        403: "the token may not write there",
        404: "there is no such user, organisation or repository",
        409: "the repository exists already and is of another kind",
        413: "a file is too large",
        429: "too many requests; wait a while",
    }
    reason = reasons.get(status, "the Hub has refused")
    return f"{endpoint} answered {status} for {repo_id}: {reason}."
