"""Task `supervised`: a whole network, trained with the sites' labels."""

from __future__ import annotations

from common.settings.tasks import TASK_FACTS
from server.tasks.network import NetworkTask
from server.tasks.registry import SERVER_TASKS

_FACTS = TASK_FACTS["supervised"]


@SERVER_TASKS.register(_FACTS.name, summary=_FACTS.summary, facts=_FACTS)
class SupervisedTask(NetworkTask):
    """Nothing beside what whole networks have in common."""
