"""The seed to be run again."""

import gc
from collections.abc import Iterator

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--seed", type=int, help="run the simulation of this seed only")


@pytest.fixture(scope="session", autouse=True)
def collected_seldom() -> Iterator[None]:
    """Garbage collections that look at every imported module again and again cost a fifth."""
    before = gc.get_threshold()
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)
    yield
    gc.set_threshold(*before)
    gc.unfreeze()


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
