"""Access to the Hugging Face hub that does not wait for a connection that is not there."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.error import URLError

from lambdanets.utils.text import first_line

TIMEOUT = 5.0  # seconds


class NoConnectionError(ValueError):
    """Files are not in the cache, and cannot be downloaded."""


@contextmanager
def hub_access() -> Iterator[None]:
    """Run a block that reads from the hub; without a connection it reads the cache alone.

    The libraries repeat a failed request for each file for half a minute; here one request goes before.

    Raises:
        NoConnectionError: A file is not in the cache, and there is no connection.
    """
    from huggingface_hub import constants
    from huggingface_hub.errors import LocalEntryNotFoundError, OfflineModeIsEnabled
    from huggingface_hub.utils import get_session

    settings: Any = constants
    is_set = constants.HF_HUB_OFFLINE
    reason = "HF_HUB_OFFLINE is set" if is_set else _unreachable(get_session(), constants.ENDPOINT)
    settings.HF_HUB_OFFLINE = bool(reason)
    try:
        yield
    except (LocalEntryNotFoundError, OfflineModeIsEnabled, URLError) as error:
        if not reason:
            raise NoConnectionError(first_line(error)) from error
        raise NoConnectionError(f"{reason}, and it was not downloaded before") from error
    finally:
        settings.HF_HUB_OFFLINE = is_set


def _unreachable(session: Any, endpoint: str) -> str:
    """Return a clause if no server answers at an address, else ""."""
    try:
        session.head(endpoint, timeout=TIMEOUT)
    except Exception:  # those of requests or of httpx, by the version of huggingface_hub
        return f"there is no connection to {endpoint}"
    return ""
