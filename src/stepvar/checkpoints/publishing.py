"""Publishing of a pipeline's folder on the Hugging Face hub, and what would be sent."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import ModelCard, create_repo, upload_folder
from huggingface_hub.utils import (
    EntryNotFoundError,
    HFValidationError,
    RepositoryNotFoundError,
    validate_repo_id,
)

from stepvar.checkpoints.model_card import CARD


@dataclass(frozen=True)
class Upload:
    """What a push sends.

    Attributes:
        repository: Name of the repository.
        files: Bytes of every file, by its path in the folder.
        card: Text of the model card.
    """

    repository: str
    files: dict[str, int]
    card: str

    @classmethod
    def of(cls, folder: Path, repository: str) -> Upload:
        """Of a finished folder."""
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        sizes = {path.relative_to(folder).as_posix(): path.stat().st_size for path in files}
        return cls(repository, sizes, (folder / CARD).read_text("utf-8"))

    def __str__(self) -> str:
        lines = [f"{size:>13,} {name}" for name, size in self.files.items()]
        total = sum(self.files.values()) / 1e6
        return "\n".join(
            [f"To {self.repository}: {len(lines)} files, {total:.1f} MB", *lines, "", CARD, self.card]
        )


def require_name(repository: str) -> None:
    """Raises ValueError for something that cannot be the name of a repository."""
    try:
        validate_repo_id(repository)
    except HFValidationError as error:
        raise ValueError(
            f"{repository!r} cannot be the name of a repository; give owner/name, or a name of your own."
        ) from error


def take_published_card(folder: Path, repository: str, token: str | None) -> None:
    """Copies the card that a repository has already, since its author knows more; without one, nothing."""
    try:
        card = ModelCard.load(repository, token=token)
    except (EntryNotFoundError, RepositoryNotFoundError):
        return
    card.save(folder / CARD)


def upload(
    folder: Path,
    repository: str,
    *,
    commit_message: str | None = None,
    private: bool | None = None,
    token: str | None = None,
    create_pr: bool = False,
    subfolder: str | None = None,
) -> str:
    """Sends a folder; the arguments are those of diffusers.

    Returns:
        Address of the commit.
    """
    name = create_repo(repository, private=private, token=token, exist_ok=True).repo_id
    commit = upload_folder(
        repo_id=name,
        folder_path=folder,
        path_in_repo=subfolder,
        commit_message=commit_message or "Upload a pipeline of stepvar",
        token=token,
        create_pr=create_pr,
    )
    return str(commit)
