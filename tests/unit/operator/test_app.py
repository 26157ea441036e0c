"""The process begins anew when it has lost the lead."""

import gc
import weakref

import pytest

from cloister_operator import app
from cloister_operator.cluster.api import HttpApi
from cloister_operator.settings import Settings


class Mirror:
    """Refers to itself, as what listens to a mirror refers to it."""

    def __init__(self) -> None:
        self.me = self


class Enough(Exception):
    """The test is over."""


async def test_what_was_mirrored_before_the_lead_was_lost_is_not_kept(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    mirrors: list[weakref.ref[Mirror]] = []
    kept: list[Mirror | None] = []

    async def serve(*_: object) -> None:
        if mirrors:
            gc.collect()
            kept.append(mirrors[0]())
            raise Enough
        mirrors.append(weakref.ref(Mirror()))
        gc.freeze()
        raise ExceptionGroup("of the tasks", [app.LeadLost()])

    monkeypatch.setattr(app, "_serve", serve)
    try:
        with pytest.raises(Enough):
            # Neither is looked at.
            await app._serve_on(HttpApi.__new__(HttpApi), Settings.model_construct())
    finally:
        gc.unfreeze()
    assert kept == [None]
