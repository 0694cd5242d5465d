from collections.abc import Iterator

import pytest

from tests.stack.daemon import MODULES, SHAPE, Daemon, daemon


@pytest.fixture(params=MODULES)
def by_each_module(request: pytest.FixtureRequest) -> Iterator[Daemon]:
    with daemon("--module", request.param, *SHAPE) as running:
        yield running
