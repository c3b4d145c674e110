"""Exports on the Hugging Face hub. Needs the extra `hub`; nothing is sent unless asked for."""

import re

from etils import epath

from rin_jax import ConfigError
from rin_jax.runtime import files

HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


def find(source: str) -> epath.Path:
    """The folder of an export; what the hub has is fetched. ConfigError if there is none."""
    if source.startswith(("http://", "https://")):
        raise ConfigError(
            f"{source} is a web address; download the folder and name that, or name the model's "
            "owner/name on the hub."
        )
    files.check_address("the export", source)
    path = epath.Path(source)
    return path if path.exists() else epath.Path(pull(source))


def pull(repo: str) -> str:
    """The local folder of the newest export of a hub repository, fetched as far as it is not here.

    An interrupted download goes on where it stopped; with HF_HUB_OFFLINE=1 nothing is fetched.

    Raises:
      ConfigError: not a hub id, the hub has no such repository or cannot be reached, or
        huggingface_hub is not installed.
    """
    if not HUB_ID.fullmatch(repo):
        raise ConfigError(f"there is no folder {repo}, and it is not a hub id (owner/name) either.")
    hub = _library(f"{repo} is no folder here; fetching it from the hub")
    try:
        return hub.snapshot_download(repo)
    except Exception as error:  # the transport below has its own classes of errors
        raise ConfigError(f"there is no folder {repo}, and from the hub: {error}") from error


def push(folder: str, repo: str) -> str:
    """Uploads a folder as one commit of a hub repository; returns the commit's address.

    A new repository is private. After an interruption the same call sends what is still missing.

    Raises:
      ConfigError: the hub cannot be reached or refuses, or huggingface_hub is not installed.
    """
    check_push(repo)
    api = _library("--push").HfApi()
    try:
        api.create_repo(repo, private=True, exist_ok=True)
        return str(api.upload_folder(repo_id=repo, folder_path=folder, commit_message="Export"))
    except Exception as error:  # as in `pull`
        raise ConfigError(f"--push={repo}: {error}") from error


def check_push(repo: str) -> None:
    """Raises ConfigError at what would stop `push` after the export is made."""
    if not HUB_ID.fullmatch(repo):
        raise ConfigError(f"--push is {repo!r}; a hub repository is named owner/name.")
    _library("--push")


def _library(doing: str):
    try:
        import huggingface_hub
    except ImportError as error:
        raise ConfigError(
            f'{doing} needs huggingface_hub: pip install "rin-jax[hub]" (or put the export into a '
            "folder and name that)"
        ) from error
    return huggingface_hub
