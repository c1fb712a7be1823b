"""The ranks of an expert-parallel group as a placement of experts sees them."""

from typing import NamedTuple


class Group(NamedTuple):
    """Ranks of an expert-parallel group on their nodes, equally many on each, and the slots that each rank has."""

    ranks: int
    slots: int
    """Experts that a rank holds, copies included."""
    nodes: int = 1

    @property
    def ranks_per_node(self) -> int:
        """Ranks on one node."""
        return self.ranks // self.nodes
