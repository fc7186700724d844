"""python dev/every_second.py OPTIONS: python -m pyllmc.train, but only every second step sums gradients.

The steps between meet as all do, so that they show what a step takes without its communication, in the same minute and on the same
cores. bench_network.py measures with it. The ranks' weights part in such a run, so it is good for nothing else.
"""

from __future__ import annotations

import sys
from typing import Any

from pyllmc import train
from pyllmc.distributed import team


class EverySecond(team.Team):
    """Sums the gradients of steps 2, 4, ..."""

    steps = 0

    def _begin_sum(self, x: Any, n: int) -> None:
        if self.steps % 2:
            super()._begin_sum(x, n)

    def _end_sums(self) -> None:
        if self.steps % 2:
            super()._end_sums()
        self.steps += 1


if __name__ == "__main__":
    team.Team = EverySecond  # type: ignore[misc]
    sys.exit(train.main())
