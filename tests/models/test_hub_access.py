"""Without a connection the hub's cache is read at once, and no request is repeated."""

from typing import Any

import pytest
from huggingface_hub import constants
from huggingface_hub.errors import LocalEntryNotFoundError

from lambdanets.models import WeightsError
from lambdanets.models.hub_access import NoConnectionError, hub_access
from lambdanets.models.weight_files import find_weights


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A hub whose address refuses connections."""
    endpoint = "http://127.0.0.1:9"
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", f"{endpoint}/{{repo_id}}/{{filename}}")
    return endpoint


def test_a_block_reads_the_cache_alone(offline: str) -> None:
    with hub_access():
        assert constants.HF_HUB_OFFLINE
    assert not constants.HF_HUB_OFFLINE
    with (
        pytest.raises(NoConnectionError, match=f"^there is no connection to {offline}, and it was not"),
        hub_access(),
    ):
        raise LocalEntryNotFoundError("not cached")
    assert not constants.HF_HUB_OFFLINE


def test_a_set_variable_is_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(NoConnectionError, match=r"^HF_HUB_OFFLINE is set, and it was not"), hub_access():
        raise LocalEntryNotFoundError("not cached")
    assert constants.HF_HUB_OFFLINE


@pytest.mark.usefixtures("offline")
def test_weights_of_the_hub_are_one_sentence() -> None:
    with pytest.raises(WeightsError, match=r"^hf-hub:nobody/nothing cannot be downloaded: there is no conn"):
        find_weights("hf-hub:nobody/nothing")
