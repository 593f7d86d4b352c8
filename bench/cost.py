"""What work costs: wall-clock seconds and CPU seconds, measured by turns so that the machine treats both sides alike."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

#: How often each side of a comparison is measured.
ROUNDS = 2
#: The same for work of less than a second.
SHORT_ROUNDS = 10
#: The same where both sides take milliseconds and are almost equal: after ten rounds the best of each still changed the
#: ratio by a third.
MANY_ROUNDS = 30


@dataclass(frozen=True)
class Cost:
    """Seconds: by the clock, and of CPU in the database server and in the client's process with its children."""

    seconds: float
    server: float = 0.0
    client: float = 0.0

    @property
    def cpu(self) -> float:
        """CPU seconds of both sides."""
        return self.server + self.client

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.seconds + other.seconds, self.server + other.server, self.client + other.client)

    def __sub__(self, other: Cost) -> Cost:
        return Cost(self.seconds - other.seconds, self.server - other.server, self.client - other.client)

    def __truediv__(self, parts: float) -> Cost:
        return Cost(self.seconds / parts, self.server / parts, self.client / parts)


def of_rounds(costs: Sequence[Cost]) -> Cost:
    """Returns the best wall-clock time of several rounds, with the mean of their CPU seconds.

    Other work on the machine only ever adds to wall-clock time, so the least is nearest the truth. CPU seconds hardly
    depend on it, but are counted in hundredths, which the mean evens out.
    """
    count = len(costs)
    return Cost(
        min(cost.seconds for cost in costs),
        sum(cost.server for cost in costs) / count,
        sum(cost.client for cost in costs) / count,
    )


def by_turns(*ways: Callable[[], Cost], rounds: int = ROUNDS) -> list[Cost]:
    """Runs the ways by turns (A B A B), so that a busy minute of the machine hits all of them; returns each one's cost."""
    measured = [[way() for way in ways] for _ in range(rounds)]
    return [of_rounds(costs) for costs in zip(*measured, strict=True)]
