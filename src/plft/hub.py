"""Files of a model repository: downloaded once, kept in the hub's usual cache, found there without network."""

from __future__ import annotations

import re
from pathlib import Path

from huggingface_hub import constants, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from plft.errors import PlftError

COMMIT = re.compile(r"[0-9a-f]{40}")

_SETTINGS = ["*.json", "*.txt", "*.model"]
_WEIGHTS = ["model.safetensors", "model-*-of-*.safetensors"]
_CODE = ["*.py"]
_SUBFOLDERS = ["*/*"]  # conversions for other frameworks


def fetch(repository: str, revision: str | None, *, weights: bool, code: bool) -> Path:
    """Return the local folder with a repository's files; its name is the commit they belong to.

    revision: branch, tag, `refs/pr/N` or commit; the default branch without it.  weights, code: whether to fetch
    safetensors and Python files as well. Pickles are never fetched.
    Raises PlftError: no such repository or revision, no access, no network.
    """
    patterns = _SETTINGS + _WEIGHTS * weights + _CODE * code
    try:
        folder = snapshot_download(repository, revision=revision, allow_patterns=patterns, ignore_patterns=_SUBFOLDERS)
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError) as error:
        raise PlftError(_explain(error, repository, revision)) from error
    except OSError as error:
        raise PlftError(f"The files of '{repository}' could not be fetched or stored ({error}). Try again.") from error
    return Path(folder)


def _explain(error: Exception, repository: str, revision: str | None) -> str:
    """Say in one line why a repository could not be had. The order matters: the errors inherit from one another."""
    if isinstance(error, HFValidationError):
        return f"'{repository}' is neither a folder nor a hub id (owner/name). See `plft models` for known names."
    if isinstance(error, RevisionNotFoundError):
        return f"'{repository}' has no revision '{revision}' on {constants.ENDPOINT}. Leave it out for the newest one."
    if isinstance(error, GatedRepoError):
        return (
            f"'{repository}' is open only to those who accepted its terms. Do so at its page, then run: hf auth login"
        )
    if isinstance(error, RepositoryNotFoundError) or _status(error) == 401:
        return f"There is no model '{repository}' on {constants.ENDPOINT}, or it is private (then run: hf auth login)."
    if isinstance(error, LocalEntryNotFoundError) and constants.HF_HUB_OFFLINE:
        return f"'{repository}' is not in the local cache and HF_HUB_OFFLINE is set. Unset it, or give a local folder."
    if isinstance(error, LocalEntryNotFoundError):
        return f"'{repository}' is not in the local cache and {constants.ENDPOINT} cannot be reached. {_OFFLINE_HINT}"
    return f"{constants.ENDPOINT} answered {_status(error)} for '{repository}'. Try again later."


_OFFLINE_HINT = "Check the network, give a local folder, or use builtin:protein, which needs none."


def _status(error: Exception) -> int | None:
    return getattr(getattr(error, "response", None), "status_code", None)
