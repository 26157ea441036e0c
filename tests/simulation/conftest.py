"""The seed to be run again."""

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--seed", type=int, help="run the simulation of this seed only")


@pytest.fixture
def chosen_seed(request: pytest.FixtureRequest) -> int | None:
    """The seed that was asked for, if one was."""
    # The option is there only when this folder is named on the command line.
    seed: int | None = request.config.getoption("--seed", None)
    return seed


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--seed", None) is None:
        return
    wanted = [each for each in items if each.name.startswith("test_schedules_")][:1]
    config.hook.pytest_deselected(items=[each for each in items if each not in wanted])
    items[:] = wanted
