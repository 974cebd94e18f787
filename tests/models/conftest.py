"""Warnings that every test of the models ignores."""

from __future__ import annotations

import pytest

IGNORED_WARNINGS = (
    # diffusers and transformers deprecate their own parts, which their pipelines still use.
    "ignore::FutureWarning",
    # PEFT, about several LoRAs in one network, which the oracle and the server both intend.
    "ignore:Already found a `peft_config`",
)


def pytest_itemcollected(item: pytest.Item) -> None:
    """Ignores the libraries' own warnings in the tests of this folder."""
    for warning in IGNORED_WARNINGS:
        item.add_marker(pytest.mark.filterwarnings(warning))
