"""Whether the Hugging Face hub can give us a model, asked once and quickly."""

from __future__ import annotations

from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url, try_to_load_from_cache
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

PROBE_TIMEOUT_S = 5.0


def hub_is_reachable(name: str) -> bool:
    """Whether the hub has this model for us.

    Asks for the size of one small file. Without an answer, transformers itself would retry for half a minute.

    Returns:
        False if the hub cannot be reached, but the model is in the local cache.

    Raises:
        ModelNotFound: there is no such model, it may not be read, or the hub cannot be reached and nothing is cached.
    """
    try:
        get_hf_file_metadata(hf_hub_url(name, "config.json"), timeout=PROBE_TIMEOUT_S)
    except GatedRepoError as error:
        raise ModelNotFound(
            f"The model {name!r} is gated: accept its conditions on the hub and log in (hf auth login).", model=name
        ) from error
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise ModelNotFound(
            f"There is no model {name!r}: no such file or directory here, and none on the hub that you may read "
            "(a private one needs a login: hf auth login).",
            model=name,
        ) from error
    except EntryNotFoundError as error:
        raise ModelNotFound(
            f"The hub's {name!r} is not a transformers model: it has no config.json.", model=name
        ) from error
    except Exception as error:  # the HTTP library's own errors are not part of huggingface_hub's interface
        if isinstance(try_to_load_from_cache(name, "config.json"), str):
            return False
        raise _unreachable(name, error) from error
    return True


def _unreachable(name: str, error: Exception) -> ModelNotFound:
    if isinstance(error, OfflineModeIsEnabled):
        reason = "HF_HUB_OFFLINE forbids asking the hub"
    elif isinstance(error, HfHubHTTPError):
        reason = f"the hub {constants.ENDPOINT} refused ({failure_line(error)})"
    else:
        reason = f"the hub {constants.ENDPOINT} cannot be reached ({failure_line(error)})"
    return ModelNotFound(
        f"The model {name!r} is neither a local path nor in the local cache, and {reason}.", model=name
    )
