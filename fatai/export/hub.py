"""Model folders on the Hugging Face Hub: uploaded with a model card, and downloaded into the cache of huggingface_hub.

A repository may be untrusted: the names and sizes of its files are checked before any is downloaded, only the files of
a model folder are, and the folder is then checked as every other. The server is that of `HF_ENDPOINT`, the cache that
of `HF_HUB_CACHE`, and with `HF_HUB_OFFLINE` nothing is downloaded.
"""

from __future__ import annotations

import os
import re
import shutil
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fatai.errors import CheckpointError, DataError, FataiError, MissingDependencyError, OptionError, StorageError
from fatai.export.files import FILES, check_size, find_code
from fatai.io.atomic import translate_os_errors

__all__ = [
    "CARD",
    "check_repo_id",
    "download_model_folder",
    "find_cache",
    "is_repo_id",
    "shown_name",
    "upload_model_folder",
]

CARD = "README.md"
_TIMEOUT_S = 10.0
_REPO_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)
_COMMIT = re.compile(r"[0-9a-f]{40}")


def is_repo_id(text: str) -> bool:
    """Return true if a text has the form of a repository on the Hub, owner/name.

    Examples
    --------
    >>> is_repo_id("birds/mn04-dawn"), is_repo_id("runs/birds/fold_0"), is_repo_id("./birds")
    (True, False, False)
    """
    return _REPO_ID.fullmatch(text) is not None


def check_repo_id(text: str) -> None:
    """Raise `OptionError` unless a text has the form owner/name."""
    if not is_repo_id(text):
        raise OptionError(f"the repository is {text!r}; expected owner/name, such as birds/mn04-dawn")


def find_cache(folder: Path) -> Path | None:
    """Return the cache of the Hub if a folder is a snapshot in it, whose files are links into it; otherwise None."""
    if not _is_snapshot(folder):
        return None
    try:
        from huggingface_hub import constants
    except ImportError:
        return None
    cache = Path(os.path.abspath(folder)).parents[2]
    return cache if os.path.realpath(cache) == os.path.realpath(constants.HF_HUB_CACHE) else None


def shown_name(folder: str | os.PathLike[str]) -> str:
    """Return the name of a folder; of a snapshot in the cache of the Hub that of the repository.

    Examples
    --------
    >>> shown_name("runs/birds"), shown_name(f"hub/models--birds--dawn/snapshots/{40 * '0'}")
    ('birds', 'birds/dawn')
    """
    path = Path(folder).resolve()
    return path.parents[1].name.removeprefix("models--").replace("--", "/") if _is_snapshot(path) else path.name


def _is_snapshot(folder: Path) -> bool:
    """Return true for CACHE/models--OWNER--NAME/snapshots/COMMIT."""
    folder = Path(os.path.abspath(folder))
    return (
        folder.parent.name == "snapshots" and folder.parent.parent.name.startswith("models--")
        and _COMMIT.fullmatch(folder.name) is not None
    )


def download_model_folder(
    repo_id: str, *, revision: str | None = None, token: str | bool | None = None
) -> Path:
    """Download the files of a model folder, except those that are in the cache.

    Without a network, files that were downloaded before are used, with a warning. With `revision` a whole commit,
    nothing is asked of the server once the files are in the cache.

    Parameters
    ----------
    repo_id
        Such as "owner/name".
    revision
        Branch, tag or commit; None is the branch main.
    token
        Of an account that may read the repository; None is that of `HF_TOKEN` or of `hf auth login`, False none.

    Returns
    -------
    A folder in the cache that has the name of the commit, and links to the files, see `find_cache`.

    Raises
    ------
    CheckpointError
        If the repository lacks a file of a model folder, holds one that could be code, or one that is too large.
    DataError
        If the server cannot be reached or refuses.
    StorageError
        If the files cannot be written, or are larger than the free space of the disk.
    MissingDependencyError
        If huggingface_hub is not installed.
    """
    hub = _import_hub()
    if revision is not None and _COMMIT.fullmatch(revision) and (found := _find_cached(hub, repo_id, revision)):
        return found
    with _translate_hub_errors(hub, repo_id, revision):
        try:
            info = hub.HfApi(token=token).model_info(
                repo_id, revision=revision, files_metadata=True, timeout=_TIMEOUT_S
            )
        except Exception as e:
            found = _find_cached(hub, repo_id, revision) if _is_unreachable(hub, e) else None
            if found is None:
                raise
            if not isinstance(e, hub.errors.OfflineModeIsEnabled):
                warnings.warn(
                    f"{hub.constants.ENDPOINT} cannot be reached; {repo_id} is loaded from the cache, as of commit "
                    f"{found.name[:10]}",
                    stacklevel=4,
                )
            return found
        sizes = {file.rfilename: file.size for file in info.siblings or []}
        _check_listing(repo_id, sizes)
        _check_room(hub, repo_id, info.sha, sizes)
        # By the name of the branch, which the cache then remembers for use without a network.
        paths = [hub.hf_hub_download(repo_id, name, revision=revision, token=token) for name in FILES]
    folder = Path(paths[0]).parent
    if any(Path(path).parent != folder for path in paths) or folder.name != info.sha:
        raise DataError(f"{repo_id} was changed while it was downloaded; load it again")
    return folder


def upload_model_folder(
    folder: Path, repo_id: str, card: str, *, private: bool | None = None, token: str | bool | None = None
) -> str:
    """Upload the files of a model folder and a card in one commit; create the repository if there is none.

    Other files of the repository stay.

    Parameters
    ----------
    folder
        A model folder.
    repo_id
        Such as "owner/name".
    card
        Text of the README.md.
    private
        Whether a new repository is visible to its owner only; None is the owner's default.
    token
        Of an account that may write the repository; None is that of `HF_TOKEN` or of `hf auth login`.

    Returns
    -------
    The commit, 40 hexadecimal digits, which `load_pretrained(repo_id, revision=...)` takes.

    Raises
    ------
    OptionError
        If `repo_id` is not of the form owner/name.
    CheckpointError
        If the repository holds a file that could be code, because of which nobody could load the model.
    DataError
        If the server cannot be reached or refuses.
    MissingDependencyError
        If huggingface_hub is not installed.
    """
    check_repo_id(repo_id)
    hub = _import_hub()
    api = hub.HfApi(token=token)
    with _translate_hub_errors(hub, repo_id):
        try:
            siblings = api.model_info(repo_id, timeout=_TIMEOUT_S).siblings or []
        except hub.errors.RepositoryNotFoundError:
            siblings = []
            api.create_repo(repo_id, private=private, exist_ok=True)
        code = find_code(file.rfilename for file in siblings)
        if code is not None:
            raise CheckpointError(
                f"{repo_id} holds {code}, which could be code, so load_pretrained would refuse it; delete that file, "
                "or choose another repository"
            )
        commit = api.create_commit(
            repo_id,
            operations=[
                *(hub.CommitOperationAdd(path_in_repo=name, path_or_fileobj=folder / name) for name in FILES),
                hub.CommitOperationAdd(path_in_repo=CARD, path_or_fileobj=card.encode()),
            ],
            commit_message="Upload a model of fatai",
        )
    return str(commit.oid)


def _import_hub() -> Any:
    try:
        import huggingface_hub
        import huggingface_hub.constants
        import huggingface_hub.errors
    except ImportError as e:
        raise MissingDependencyError(
            f"the Hugging Face Hub needs the package huggingface_hub ({e.name} is missing): pip install 'fatai[hub]'"
        ) from None
    return huggingface_hub


def _find_cached(hub: Any, repo_id: str, revision: str | None) -> Path | None:
    """Return the folder in the cache if it has all files, without a network."""
    paths = [hub.try_to_load_from_cache(repo_id, name, revision=revision) for name in FILES]
    if not all(isinstance(path, str) for path in paths) or len({Path(path).parent for path in paths}) > 1:
        return None
    return Path(paths[0]).parent


def _check_listing(repo_id: str, sizes: Mapping[str, int | None]) -> None:
    """Check the files of a repository, by name their sizes in bytes, before any is downloaded."""
    code = find_code(sizes)
    if code is not None:
        raise CheckpointError(
            f"{repo_id} holds {code}, which could be code; nothing was downloaded. A model folder needs only "
            f"{', '.join(FILES)}"
        )
    for name in FILES:
        if name not in sizes:
            raise CheckpointError(
                f"{repo_id} holds no model of fatai: it lacks {name}; expected {', '.join(FILES)}, as "
                "learn.push_to_hub uploads them"
            )
        n_bytes = sizes[name]
        if n_bytes is None:
            raise CheckpointError(f"{repo_id}: the server does not state the size of {name}, so it was not downloaded")
        check_size(name, n_bytes, f"{repo_id}/{name}")


def _check_room(hub: Any, repo_id: str, commit: str, sizes: Mapping[str, int | None]) -> None:
    """Raise `StorageError` if the files that are not in the cache are larger than the free space of its disk."""
    missing = [
        name for name in FILES if not isinstance(hub.try_to_load_from_cache(repo_id, name, revision=commit), str)
    ]
    n_bytes = sum(sizes[name] or 0 for name in missing)
    folder = Path(hub.constants.HF_HUB_CACHE)
    disk = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    free = shutil.disk_usage(disk).free
    if n_bytes > free:
        raise StorageError(
            f"{repo_id} needs {n_bytes:,} more bytes, and {folder} has {free:,} free; make room, or name another "
            "folder in HF_HUB_CACHE"
        )


def _is_unreachable(hub: Any, e: Exception) -> bool:
    """Return true for errors of the connection and of a server that is down."""
    if isinstance(e, hub.errors.HfHubHTTPError):
        return e.response is not None and e.response.status_code >= 500
    # HTTPError of httpx includes its errors of the connection.
    return isinstance(e, (ConnectionError, TimeoutError, hub.errors.LocalEntryNotFoundError, hub.errors.HTTPError))


@contextmanager
def _translate_hub_errors(hub: Any, repo_id: str, revision: str | None = None) -> Iterator[None]:
    """Re-raise errors of the Hub as one sentence with what to do."""
    with translate_os_errors(Path(hub.constants.HF_HUB_CACHE)):
        try:
            yield
        except FataiError:
            raise
        except Exception as e:
            message = _explain(hub, e, repo_id, revision)
            if message is None:
                raise
            raise DataError(message) from e


def _explain(hub: Any, e: Exception, repo_id: str, revision: str | None) -> str | None:
    """Return the sentence for an error of the Hub; None for one of the file system, or of unknown cause."""
    errors, endpoint = hub.errors, hub.constants.ENDPOINT
    login = "log in by hf auth login, or set HF_TOKEN"
    if isinstance(e, RuntimeError) and isinstance(e.__cause__, Exception):
        return _explain(hub, e.__cause__, repo_id, revision)  # of one file of an upload
    if isinstance(e, errors.GatedRepoError):
        return f"{repo_id} is gated; accept its conditions at {endpoint}/{repo_id}, then {login}"
    if isinstance(e, errors.RepositoryNotFoundError):
        return (
            f"{endpoint} has no repository {repo_id}, or it is private and no valid token for it was given; check the "
            f"name, or {login}"
        )
    if isinstance(e, errors.RevisionNotFoundError):
        return f"{repo_id} has no revision {revision}; expected a branch, a tag or a commit of it"
    if isinstance(e, errors.HfHubHTTPError) and e.response is not None:
        return _explain_status(e, repo_id, endpoint, login)
    if isinstance(e, errors.OfflineModeIsEnabled):
        return f"{repo_id} is not in the cache, and HF_HUB_OFFLINE forbids to download it; load it once with a network"
    if _is_unreachable(hub, e) or isinstance(e, errors.FileMetadataError):
        return (
            f"{endpoint} cannot be reached ({_first_line(e)}), and {repo_id} is not complete in the cache; check the "
            "connection and HF_ENDPOINT, then start again"
        )
    if isinstance(e, OSError) and "Consistency check failed" in str(e):
        return f"{repo_id}: the connection broke while a file was downloaded; start again"
    if isinstance(e, (ValueError, errors.LocalTokenNotFoundError)):
        return f"{repo_id}: {_first_line(e)}"
    return None


def _explain_status(e: Any, repo_id: str, endpoint: str, login: str) -> str:
    status, reason = e.response.status_code, e.response.headers.get("X-Error-Message") or e.response.reason_phrase
    remedy = {
        401: f"the token is not valid: {login} with a new one",
        403: "the account of the token may not do this: take a token with write access, and a repository of yours",
    }.get(status, "try again later")
    return f"{repo_id}: {endpoint} returned {status} ({str(reason)[:200]}); {remedy}"


def _first_line(e: Exception) -> str:
    return (str(e).strip().splitlines() or [type(e).__name__])[0][:200]
