"""Upload a folder to the Hugging Face hub. Tokens are those that huggingface_hub finds; none are read here."""

from __future__ import annotations

import re
from pathlib import Path

from jumpahead.errors import StudyError


def check_repo(repo: str) -> None:
    """Raise StudyError if the name of a repository is not `user/repo`."""
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", repo):
        raise StudyError(f"'{repo}' is no name of a repository: write user/repo.")


def upload(folder: Path, repo: str, *, is_private: bool, endpoint: str | None = None) -> str:
    """Create a repository of models if it is not there, and add the files of a folder in one commit; return its URL.

    endpoint: of the hub; by default huggingface_hub's, which HF_ENDPOINT changes.

    Raises StudyError, with the reason, if the hub refuses or cannot be reached.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    hub = HfApi(endpoint=endpoint)
    try:
        created = hub.create_repo(repo, private=is_private or None, exist_ok=True, repo_type="model")
        hub.upload_folder(repo_id=repo, folder_path=folder, repo_type="model", commit_message="SAEs from jumpahead")
    except (HfHubHTTPError, HFValidationError, OSError, ValueError) as exc:
        reason = next((line.strip() for line in str(exc).splitlines() if line.strip()), type(exc).__name__)
        raise StudyError(
            f"{repo} could not be written: {reason.rstrip('.')}. `hf auth login` stores a token that may write."
        ) from exc
    return str(created)
