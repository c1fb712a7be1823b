"""A pool: replicas of one engine with one role, and the router that spreads requests over them."""

from collections.abc import Callable

from simulator.serving.instance import Instance
from simulator.serving.request import Request
from simulator.serving.routing import Router


class Pool:
    """Instances in order; `outstanding` counts what each has been sent and has not finished or handed on."""

    def __init__(self, role: str, router: Router) -> None:
        self.role = role
        self.instances: list[Instance] = []
        self.outstanding: list[int] = []
        self._router = router
        self._index: dict[str, int] = {}
        self._leaving: dict[str, tuple[int, Callable[[Instance], None]]] = {}

    def add(self, instance: Instance) -> None:
        """Take in an instance, at the end of the order."""
        self._index[instance.name] = len(self.instances)
        self.instances.append(instance)
        self.outstanding.append(0)

    def choose(self, request: Request) -> Instance:
        """Return the instance that takes `request`, and count the request as outstanding there."""
        index = self._router(request, self)
        self.outstanding[index] += 1
        return self.instances[index]

    def left(self, instance: Instance) -> None:
        """Count one request less as outstanding at `instance`."""
        index = self._index.get(instance.name)
        if index is not None:
            self.outstanding[index] -= 1
            return
        count, drained = self._leaving[instance.name]
        self._leaving[instance.name] = count - 1, drained
        if count == 1:
            del self._leaving[instance.name]
            drained(instance)

    def drain(self, instance: Instance, drained: Callable[[Instance], None]) -> None:
        """Send nothing more to an instance, and call `drained` when all that it was sent has left it."""
        index = self._index.pop(instance.name)
        count = self.outstanding.pop(index)
        del self.instances[index]
        self._index = {each.name: at for at, each in enumerate(self.instances)}
        if count:
            self._leaving[instance.name] = count, drained
        else:
            drained(instance)
