"""Several processes, started by torchrun, that train one model: torch.distributed behind the engine's llmc_team.

Nothing here imports torch before `join` is called."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pyllmc.distributed.place import Place, is_one_of_several, settle_machine

if TYPE_CHECKING:
    from pyllmc.distributed.team import Team

__all__ = ["Place", "is_one_of_several", "join"]


def join(options: Any) -> Team:
    """Meets the processes that torchrun has started beside this one; `options` are those of pyllmc.trainer.

    Raises MissingDependency without torch, SystemFailure if a process does not come within --timeout."""
    from pyllmc.distributed.team import Team

    settle_machine()
    return Team(options, Place.read())
