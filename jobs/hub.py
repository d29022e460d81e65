"""What the hub says of what could not be had, in one line that says what instead.

transformers and datasets wrap what its client raises in ways of their own, so after a failure the hub itself is asked.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from huggingface_hub import HfApi, errors, snapshot_download
from huggingface_hub.constants import is_offline_mode
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

TransportError: type[Exception] = errors.HTTPError  # type: ignore[attr-defined]  # of whichever HTTP library it uses


def hub_reason(error: BaseException, kind: str, hub_id: str, revision: str | None, local: str) -> str:
    """Why it could not be had: not there, not for you, no such revision, no network; else what `error` says.

    kind: model or dataset; local: what to give instead, e.g. 'a local file as path'
    """
    name = f"{'data set' if kind == 'dataset' else kind} {hub_id}"
    if is_offline_mode():
        return f"{name} is not in the cache and HF_HUB_OFFLINE is set; fetch it once without, or give {local}"
    if any(isinstance(cause, ConnectionError | LocalEntryNotFoundError) for cause in _causes(error)):
        return f"{name} is not in the cache and the hub does not answer; check the network, or give {local}"
    try:
        HfApi().repo_info(hub_id, repo_type=kind, revision=revision)
        HfApi().auth_check(hub_id, repo_type=kind)
    except (OSError, ValueError, TransportError) as refused:  # or it does not answer any more
        for answer, reason in _ANSWERS.items():  # the first that fits: a gated repository is one not found, too
            if isinstance(refused, answer):
                return reason.format(name=name, id=hub_id, revision=revision, local=local)
        error = refused
    text = next(iter(str(error).strip().splitlines()), type(error).__name__)
    return f"cannot get {name} from the hub ({text}); check the id and the network, or give {local}"


_ANSWERS = {
    GatedRepoError: "{name} is gated: accept its terms on the hub, and set HF_TOKEN to a token of the account that did",
    RepositoryNotFoundError: "the hub has no {name}, or not for you; check the id, or set HF_TOKEN to a token that may "
    "read it",
    RevisionNotFoundError: "{name} has no revision '{revision}'; name a commit, tag or branch of it, or leave revision "
    "out for main",
    HFValidationError: "{id} is no id of the hub; write ORGANISATION/NAME, or give {local}",
}


def _causes(error: BaseException) -> Iterator[BaseException]:
    following: BaseException | None = error
    while following is not None:
        yield following
        following = following.__cause__ or following.__context__


def files_of_model(hub_id: str, revision: str | None) -> list[str] | None:
    """Names in a model's repository; None where only the cache could tell."""
    try:
        return list(HfApi().list_repo_files(hub_id, revision=revision))
    except (OSError, HfHubHTTPError):
        return None


def commit_of_model(hub_id: str, revision: str | None) -> str | None:
    """The commit that a model's revision stands for now; None where the hub does not say."""
    try:
        return HfApi().model_info(hub_id, revision=revision).sha
    except (OSError, ValueError, TransportError):
        return None


def cached_model(hub_id: str, revision: str | None) -> Path | None:
    """Where the files of a model's revision lie that were downloaded before, perhaps not all of them."""
    try:
        return Path(snapshot_download(hub_id, revision=revision, allow_patterns=[], local_files_only=True))
    except (OSError, ValueError):
        return None


def tensors_of_model(hub_id: str, commit: str) -> dict[str, tuple[str, tuple[int, ...], str]] | None:
    """File, shape and dtype of every tensor, by name, from the headers alone; None where the hub does not give them."""
    try:
        found = HfApi().get_safetensors_metadata(hub_id, revision=commit)
    except (OSError, ValueError, TransportError, errors.NotASafetensorsRepoError, errors.SafetensorsParsingError):
        return None
    return {
        name: (file, tuple(tensor.shape), tensor.dtype)
        for file, metadata in found.files_metadata.items()
        for name, tensor in metadata.tensors.items()
    }


def cached_commit(hub_id: str, revision: str) -> str | None:
    """The commit that a data set's revision stood for when it was last asked for; None where that is not known."""
    try:
        folder = snapshot_download(
            hub_id, repo_type="dataset", revision=revision, allow_patterns=[], local_files_only=True
        )
    except (OSError, ValueError):
        return None
    return Path(folder).name
