"""Options of the benchmark suites."""

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--tiles", type=int, default=1, help="image tiles a call; the papers have 5")


@pytest.fixture
def tiles(request: pytest.FixtureRequest) -> int:
    return request.config.getoption("--tiles")
