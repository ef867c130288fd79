"""Whether the Hugging Face hub can give us a model, asked once and quickly."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import (
    constants,
    get_hf_file_metadata,
    hf_hub_url,
    snapshot_download,
    try_to_load_from_cache,
)
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)

from samplerpool.errors import ModelNotFound
from samplerpool.model.failures import failure_line
from samplerpool.model.source import ADAPTER_FILE, CONFIG_FILE

PROBE_TIMEOUT_S = 5.0
KINDS = {"model": "a transformers model", "adapter": "a PEFT adapter"}


def adapter_folder(name: str) -> Path:
    """The folder with an adapter of the hub's, which is downloaded if need be.

    Raises:
        ModelNotFound: as ``hub_is_reachable``.
    """
    reachable = hub_is_reachable(name, "adapter", ADAPTER_FILE)
    return Path(snapshot_download(name, allow_patterns=["adapter_*"], local_files_only=not reachable))


def hub_is_reachable(name: str, what: str = "model", file: str = CONFIG_FILE) -> bool:
    """Whether the hub has this model (or adapter) for us.

    Asks for the size of one small file. Without an answer, transformers itself would retry for half a minute.

    Args:
        what: for messages.
        file: that each has.

    Returns:
        False if the hub cannot be reached, but the model is in the local cache.

    Raises:
        ModelNotFound: there is no such model, it may not be read, or the hub cannot be reached and nothing is cached.
    """
    try:
        get_hf_file_metadata(hf_hub_url(name, file), timeout=PROBE_TIMEOUT_S)
    except GatedRepoError as error:
        raise ModelNotFound(
            f"The {what} {name!r} is gated: accept its conditions on the hub and log in (hf auth login).", model=name
        ) from error
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise ModelNotFound(
            f"There is no {what} {name!r}: no such file or directory here, and none on the hub that you may read "
            "(a private one needs a login: hf auth login).",
            model=name,
        ) from error
    except EntryNotFoundError as error:
        raise ModelNotFound(f"The hub's {name!r} is not {KINDS[what]}: it has no {file}.", model=name) from error
    except Exception as error:  # the HTTP library's own errors are not part of huggingface_hub's interface
        if isinstance(try_to_load_from_cache(name, file), str):
            return False
        raise _unreachable(name, what, error) from error
    return True


def _unreachable(name: str, what: str, error: Exception) -> ModelNotFound:
    if isinstance(error, OfflineModeIsEnabled):
        reason = "HF_HUB_OFFLINE forbids asking the hub"
    elif isinstance(error, HfHubHTTPError):
        reason = f"the hub {constants.ENDPOINT} refused ({failure_line(error)})"
    else:
        reason = f"the hub {constants.ENDPOINT} cannot be reached ({failure_line(error)})"
    return ModelNotFound(
        f"The {what} {name!r} is neither a local path nor in the local cache, and {reason}.", model=name
    )
