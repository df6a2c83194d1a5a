"""Rate and time left."""

import pytest

from ghn_jax.training import progress


@pytest.fixture
def passed(monkeypatch: pytest.MonkeyPatch):
    """A function that lets seconds pass."""
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])

    def wait(seconds: float) -> None:
        now[0] += seconds

    return wait


def step(clock: progress.Clock, passed, number: int, waited: float, ran: float, compiled: bool) -> None:
    passed(waited)
    clock.begin()
    passed(ran)
    clock.tick(number, compiled)


def test_what_is_compiled_in_the_first_steps_does_not_count(passed):
    clock = progress.Clock(0, 102)
    assert clock.eta == "?"
    step(clock, passed, 1, 60, 30, True)
    assert clock.eta == "?"
    step(clock, passed, 2, 20, 3, True)
    assert clock.eta == "0:05:00"
    step(clock, passed, 3, 0, 2, False)
    step(clock, passed, 4, 40, 2, True)
    assert clock.eta == "0:03:16"
    assert clock.seconds == 157


def test_waiting_counts_where_nothing_is_compiled(passed):
    clock = progress.Clock(0, 103)
    for number in (1, 2, 3):
        step(clock, passed, number, 1, 2, False)
    assert (clock.eta, clock.rate) == ("0:05:00", pytest.approx(1 / 3))


def test_what_is_compiled_is_named(passed):
    clock = progress.Clock(0, 2)
    assert clock.describe("blocks, 3 of 9 left") == "step 1/2: compiling its blocks, 3 of 9 left, ETA ?"
    passed(1)
    clock.begin()
    assert clock.describe("") == "step 1/2: compiling the GHN, ETA ?"
    clock.tick(1)
    assert clock.describe("") == "step 2/2, ETA 0:00:01"
    passed(1)
    clock.begin()
    assert (
        clock.describe("blocks, 1 of 9 left") == "step 2/2, ETA 0:00:01; compiling ahead: blocks, 1 of 9 left"
    )
