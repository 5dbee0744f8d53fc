"""Sends an exported directory to a repository of the hub, or shows what would be sent.

The token is taken from the hub library's own places (HF_TOKEN, `hf auth login`), never from a config.
A repository that is not there yet is made private: its owner reads the card, then opens it.
"""

from pathlib import Path
from typing import Any

from empathy_jax.models import peft
from empathy_jax.models.hf import read_json
from empathy_jax.training import lineage

FIELD = "config.export.upload"
# Weights of an earlier upload that this one does not replace: a loader might prefer them.
OLD_WEIGHTS = ("*.safetensors", "*.safetensors.index.json")


def run(directory: Path, repository: str, dry_run: bool) -> None:
    """Send the files of a directory to the root of `owner/name`.

    Args:
      directory: of the export.
      repository: `owner/name`; made, private, where there is none.
      dry_run: print files, sizes and the card, and send nothing.

    Raises:
      ValueError: for a directory that nobody could load from there, without a token, and for what the
        hub refuses; says why in one line.
    """
    _check_directory(directory)
    from huggingface_hub import HfApi, get_token

    api = HfApi()
    if dry_run:
        print("\n".join(describe(directory, repository, api.endpoint)), flush=True)
        return
    if not get_token():
        raise ValueError(
            f"{FIELD} is {repository!r}, but the hub's library finds no token; run `hf auth login` "
            "or set HF_TOKEN to one that may write"
        )
    print(f"[upload] {directory} to {api.endpoint}/{repository}", flush=True)
    sent = _send(api, directory, repository)
    print(f"[upload] done: {sent.commit_url}", flush=True)


def describe(directory: Path, repository: str, endpoint: str) -> list[str]:
    """What an upload would send: files with sizes in bytes, their sum, and the card."""
    sizes = {path: path.stat().st_size for path in sorted(directory.rglob("*")) if path.is_file()}
    card = directory / "README.md"
    return [
        f"[upload] dry run, nothing is sent; to {endpoint}/{repository} (private where it is new):",
        *(f"  {size:>15,}  {path.relative_to(directory)}" for path, size in sizes.items()),
        f"  {sum(sizes.values()):>15,}  in {len(sizes)} files",
        f"[upload] the card, {card.name}:",
        *(f"  {line}".rstrip() for line in card.read_text(encoding="utf-8").splitlines()),
    ]


def check_name(repository: str) -> None:
    """Refuses what is no `owner/name`.

    Raises:
      ValueError: with an example.
    """
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repository)
        valid = repository.count("/") == 1
    except HFValidationError:
        valid = False
    if not valid:
        raise ValueError(
            f"{FIELD} is {repository!r}; it must be a repository of the hub, owner/name"
        )


def _check_directory(directory: Path) -> None:
    if not (directory / "README.md").is_file():
        raise ValueError(
            f"{directory} does not exist; config.export.upload_part names a part that this export "
            "lacks: choose one that it has, or export anew in another --workdir"
        )
    settings = directory / peft.CONFIG_FILE
    base = read_json(settings)["base_model_name_or_path"] if settings.exists() else ""
    if base and not lineage.is_hub_id(base):
        raise ValueError(
            f"the adapters in {directory} stand on weights of this machine ({base}), which nobody "
            "else could load; upload the merged weights with config.export.upload_part=hf"
        )


def _send(api: Any, directory: Path, repository: str) -> Any:
    from huggingface_hub.errors import HTTPError  # of the client that it uses

    try:
        api.create_repo(repository, private=True, exist_ok=True)
        return api.upload_folder(
            repo_id=repository,
            folder_path=directory,
            commit_message="Export of empathy_jax",
            delete_patterns=list(OLD_WEIGHTS),
        )
    except (HTTPError, OSError, RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(
            f"{FIELD} is {repository!r}; the hub refused or was not reached: {reason}"
        ) from error
