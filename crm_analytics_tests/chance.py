"""Chance in tests: the same cases every time in `make test`, new and more of them in `make fuzz`.

Every random test takes its generator or its settings from here and is marked: Hypothesis marks its own, others say
`@pytest.mark.random`.
"""

from __future__ import annotations

import os
from random import Random

from hypothesis import HealthCheck, Phase, settings

#: Set by `make fuzz`, which prints it.
SEED = os.environ.get("FUZZ_SEED", "")
#: How many times as many cases as in `make test`.
TIMES = int(os.environ.get("FUZZ_TIMES", "1"))

#: These judge the speed of the machine or the luck of the draw.
_BY_CHANCE = (
    HealthCheck.too_slow,
    HealthCheck.data_too_large,
    HealthCheck.filter_too_much,
    HealthCheck.large_base_example,
)


def generator(name: object) -> Random:
    """Returns the generator of the test or case of this name: the same one in every run from the same seed."""
    return Random(f"{SEED}{name}")


def examples(count: int, *, shrink: bool = True) -> settings:
    """Returns Hypothesis settings for so many examples.

    `make fuzz` tries more of them, from its seed, and always shrinks what fails. For long histories shrinking takes
    minutes, which a suite that has just failed should not spend.
    """
    return settings(
        max_examples=count * TIMES,
        derandomize=not SEED,
        deadline=None,
        database=None,
        phases=(Phase.explicit, Phase.generate, *((Phase.shrink,) if shrink or SEED else ())),
        suppress_health_check=_BY_CHANCE,
    )
