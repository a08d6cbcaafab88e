"""Models from a hub that speaks the Hugging Face protocol: which files a repository needs, and fetching them.

Layout in the cache: ``hub/<owner>--<name>/<commit>/`` holds files of one commit, each of them whole;
``hub/<owner>--<name>/refs/<revision>`` holds the commit that a branch or tag pointed to when it was last asked.
``$HF_ENDPOINT`` chooses another hub, ``$HF_TOKEN`` (or a login) gives access to gated models, and ``$HF_HUB_OFFLINE``
keeps off the network.
"""

from __future__ import annotations

import fnmatch
import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from polyformer.checkpoints.disk import cache_folder, only_one_process, require_room, write_whole
from polyformer.checkpoints.transfer import Expected, ProgressCallback, UnreachableError, fetch
from polyformer.errors import DownloadError

DEFAULT_REVISION = "main"
QUESTION_SECONDS = 20.0

# Files that are fetched beside the weights, where the repository has them.
COMPANION_FILES = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "vocab.txt",
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
    "chat_template.jinja",
    "chat_template.json",
)

_HUB_ID = re.compile(r"(?P<repository>[\w.-]+/[\w.-]+)(?:@(?P<revision>[^:\s]+))?(?::(?P<file>[^:\s]+))?")
_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class HubId:
    """``owner/name``, optionally ``@revision`` and ``:file.gguf`` (a name or a pattern such as ``:*Q4_K_M.gguf``)."""

    repository: str
    revision: str | None = None
    file: str | None = None


@dataclass(frozen=True)
class RemoteFile:
    """A file of a repository, with what the hub states about it."""

    path: str
    expected: Expected


@dataclass(frozen=True)
class RemoteModel:
    """A repository at one commit."""

    repository: str
    commit: str
    files: tuple[RemoteFile, ...]


def parse_hub_id(text: str) -> HubId | None:
    """Reads a hub id; None if the text has not the form of one."""
    match = _HUB_ID.fullmatch(text)
    return HubId(match["repository"], match["revision"], match["file"]) if match else None


def endpoint() -> str:
    """The address of the hub: ``$HF_ENDPOINT``, or the public one."""
    from huggingface_hub import constants

    return (os.environ.get("HF_ENDPOINT") or constants.ENDPOINT).rstrip("/")


def _refuse_offline() -> None:
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        raise UnreachableError("HF_HUB_OFFLINE is set, so the hub is not asked: unset it to download")


def model_info(repository: str, revision: str | None = None) -> RemoteModel:
    """Asks the hub for a repository: the commit of the revision, and every file with its size and digest.

    Raises:
        UnreachableError: the hub did not answer, or answered with an error of its own.
        DownloadError: there is no such repository or revision, or access needs a login.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    _refuse_offline()
    where = endpoint()
    try:
        info = HfApi(endpoint=where).model_info(
            repository, revision=revision or DEFAULT_REVISION, files_metadata=True, timeout=QUESTION_SECONDS
        )
    except GatedRepoError as error:
        raise DownloadError(
            f"{repository} is gated: accept its terms at {where}/{repository} and log in (set HF_TOKEN, or run "
            "`hf auth login`)"
        ) from error
    except RevisionNotFoundError as error:
        raise DownloadError(f"{repository} has no revision {revision!r}: check the branch, tag or commit") from error
    except RepositoryNotFoundError as error:
        raise DownloadError(
            f"{where} has no model {repository}, or it is private: check the name, or log in (set HF_TOKEN)"
        ) from error
    except HFValidationError as error:
        raise DownloadError(f"{repository!r} is not a name a hub can have: {str(error).splitlines()[0]}") from error
    except HfHubHTTPError as error:
        raise UnreachableError(f"{where} answered with an error for {repository}: {_first_line(error)}") from error
    except Exception as error:  # the transport's own errors, which share no base over the library's versions
        raise UnreachableError(f"{where} cannot be reached: {_first_line(error)}") from error
    return RemoteModel(repository, str(info.sha), tuple(_remote_file(sibling) for sibling in info.siblings or ()))


def _remote_file(sibling: Any) -> RemoteFile:
    sha256 = sibling.lfs.sha256 if sibling.lfs else None
    # Without large storage the hub states the git name of the contents.
    git_sha1 = sibling.blob_id if sibling.blob_id and not sibling.lfs else None
    return RemoteFile(sibling.rfilename, Expected(sibling.size, sha256, git_sha1))


def choose_files(model: RemoteModel, pattern: str | None = None) -> list[RemoteFile]:
    """The files of a repository that loading it takes: config, tokenizer and one set of weights.

    Weights are safetensors if there are any, else weights-only pickles, else the only GGUF file. With a pattern, just
    the one file that fits it.

    Raises:
        DownloadError: nothing or too much fits; the message lists the choices.
    """
    files = {file.path: file for file in model.files if "/" not in file.path or pattern}
    if pattern is not None:
        return [_only_match(model, files, pattern)]
    companions = [files[name] for name in COMPANION_FILES if name in files]
    for stem, suffix in (("model", "safetensors"), ("pytorch_model", "bin")):
        if f"{stem}.{suffix}" in files:
            return [*companions, files[f"{stem}.{suffix}"]]
        if index := files.get(f"{stem}.{suffix}.index.json"):
            shards = [files[name] for name in sorted(files) if fnmatch.fnmatch(name, f"{stem}-*-of-*.{suffix}")]
            return [*companions, index, *shards]
    gguf_files = [name for name in sorted(files) if name.endswith(".gguf")]
    if len(gguf_files) == 1:
        return [files[gguf_files[0]]]
    if gguf_files:
        raise DownloadError(
            f"{model.repository} holds several GGUF files: choose one, as {model.repository}:{gguf_files[0]}; "
            "there are " + ", ".join(gguf_files)
        )
    raise DownloadError(
        f"{model.repository} holds no weights that are read here (safetensors, pytorch_model.bin, GGUF)"
    )


def _only_match(model: RemoteModel, files: dict[str, RemoteFile], pattern: str) -> RemoteFile:
    matches = [name for name in files if fnmatch.fnmatchcase(name, pattern)]
    if len(matches) == 1:
        return files[matches[0]]
    weights = [name for name in sorted(files) if name.endswith((".gguf", ".safetensors"))]
    choices = ", ".join(matches or weights) or "none"
    problem = "several files fit" if matches else "no file fits"
    raise DownloadError(f"{model.repository}: {problem} {pattern!r}; choose one of: {choices}")


def fetch_file(
    repository: str,
    revision: str,
    path: str,
    target: Path,
    expected: Expected,
    *,
    progress: ProgressCallback | None = None,
) -> None:
    """Fetches one file of a repository, resuming where an earlier attempt broke off. Raises as ``transfer.fetch``."""
    from huggingface_hub import hf_hub_url
    from huggingface_hub.utils import build_hf_headers

    _refuse_offline()
    url = hf_hub_url(repository, path, revision=revision, endpoint=endpoint())
    target.parent.mkdir(parents=True, exist_ok=True)
    fetch(url, target, expected, headers=build_hf_headers(library_name="polyformer"), progress=progress)


def pull_repository(
    repository: str,
    *,
    revision: str | None = None,
    file: str | None = None,
    cache: str | Path | None = None,
    progress: ProgressCallback | None = None,
) -> Path:
    """Fetches what is needed of a repository into the cache, unless it is there.

    Args:
        repository: ``owner/name``.
        revision: a branch, tag or commit; the default branch if None.
        file: only the file that fits this name or pattern (for GGUF repositories).
        cache: the cache folder; see ``cache_folder``.
        progress: called as bytes arrive.

    Returns:
        The folder of the commit, or the one ``.gguf`` file.

    Raises:
        DownloadError: the hub cannot be reached and nothing is in the cache, or it refused; or a file was corrupted.
        DiskFullError: the files do not fit on the disk.
    """
    home = cache_folder(cache) / "hub" / repository.replace("/", "--")
    try:
        model = model_info(repository, revision)
    except UnreachableError:
        cached = find_cached(repository, revision=revision, file=file, cache=cache)
        if cached is None:
            raise
        return cached
    chosen = choose_files(model, file)
    folder = home / model.commit
    with only_one_process(home / ".lock"):
        absent = [item for item in chosen if not _is_whole(folder / item.path, item.expected)]
        require_room(folder, sum(item.expected.nbytes or 0 for item in absent), repository)
        for item in absent:
            fetch_file(repository, model.commit, item.path, folder / item.path, item.expected, progress=progress)
        write_whole(_selection_file(folder, file), json.dumps([item.path for item in chosen], indent=1))
        if not _COMMIT.fullmatch(revision or DEFAULT_REVISION):
            reference = home / "refs" / (revision or DEFAULT_REVISION)
            reference.parent.mkdir(parents=True, exist_ok=True)
            write_whole(reference, model.commit)
    return _result(folder, [item.path for item in chosen], file)


def find_cached(
    repository: str,
    *,
    revision: str | None = None,
    file: str | None = None,
    cache: str | Path | None = None,
) -> Path | None:
    """What an earlier ``pull_repository`` with the same arguments fetched completely; None if there is nothing."""
    home = cache_folder(cache) / "hub" / repository.replace("/", "--")
    commit = revision or DEFAULT_REVISION
    if not _COMMIT.fullmatch(commit):
        reference = home / "refs" / commit
        if not reference.is_file():
            return None
        commit = reference.read_text(encoding="utf-8").strip()
    selection = _selection_file(home / commit, file)
    if not selection.is_file():
        return None
    names = json.loads(selection.read_text(encoding="utf-8"))
    if not all((home / commit / name).is_file() for name in names):
        return None
    return _result(home / commit, names, file)


def _selection_file(folder: Path, pattern: str | None) -> Path:
    """Records which files of the commit one request needed, once all of them are there."""
    suffix = "" if pattern is None else "-" + re.sub(r"[^\w.-]", "_", pattern)
    return folder / f".complete{suffix}.json"


def _is_whole(path: Path, expected: Expected) -> bool:
    return path.is_file() and (expected.nbytes is None or path.stat().st_size == expected.nbytes)


def _result(folder: Path, names: list[str], pattern: str | None) -> Path:
    return folder / names[0] if pattern is not None or names[0].endswith(".gguf") else folder


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
