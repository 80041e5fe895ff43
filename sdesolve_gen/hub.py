"""The hub of models: what is fetched from it, at one commit and by the names of the files, and what is sent to it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")
_COMMIT = re.compile(r"[0-9a-f]{40}")


def is_hub_id(source: str) -> bool:
    """Whether it could be OWNER/NAME of the hub."""
    return _ID.fullmatch(source) is not None and ".." not in source


def fetch(source: str, revision: str | None, files: Sequence[str]) -> Path:
    """The folder with those of ``files`` that a hub id has at one commit, downloaded once and then there without a network.

    Raises:
        ValueError: no commit was given; one that is not there, or no network.
        ImportError: huggingface_hub is not there.
    """
    if revision is None or not _COMMIT.fullmatch(revision):
        raise ValueError(
            f"revision={revision!r}; expected the 40 hexadecimal digits of one commit, so that nobody can change the model behind it: "
            f"load({source!r}, revision='...') with one of the commits that the hub's page of {source} lists."
        )
    with _hub(f"{source!r} at {revision} could not be fetched", "a folder with its files does as well"):
        from huggingface_hub import snapshot_download

        folder = snapshot_download(source, revision=revision, allow_patterns=list(files))
    return Path(folder)


def upload(folder: Path, files: Sequence[str], to: str, private: bool) -> str:
    """Send ``files`` of a folder to the model OWNER/NAME of the hub, which is made where it is not there, as one commit; returns its 40 digits.

    Raises:
        ValueError: no network, nobody logged in, or one who may not write there.
        ImportError: huggingface_hub is not there.
    """
    with _hub(f"{folder} could not be sent to {to!r}", "its files are whole, and may be sent by hand; `hf auth login` tells the hub who you are"):
        from huggingface_hub import HfApi

        hub = HfApi()
        hub.create_repo(to, private=private, exist_ok=True)
        commit = hub.upload_folder(repo_id=to, folder_path=folder, allow_patterns=list(files), commit_message="Publish the model")
    return str(commit.oid)


@contextmanager
def _hub(failed: str, instead: str) -> Iterator[None]:
    """What goes wrong between here and the hub, in one line."""
    try:
        from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]  # of whatever it speaks to the network by
    except ImportError as error:
        raise ImportError('the hub needs another package: pip install "sdesolve[hub]"') from error
    try:
        yield
    except (HTTPError, OSError) as error:
        raise ValueError(f"{failed} ({str(error).splitlines()[0][:200]}); {instead}.") from error
