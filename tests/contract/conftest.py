from __future__ import annotations

import pytest

from tests.support.live import serving


@pytest.fixture(scope="session")
def live(tmp_path_factory):
    """The product on the embedded model, started once per session."""
    with serving(tmp_path_factory.mktemp("live")) as live:
        yield live
