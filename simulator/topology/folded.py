"""Folded Clos networks of one to three tiers: their integers from the switch radix, their wiring, their bisection.

Source: Clos 1953; Al-Fares, Loukissas, Vahdat, SIGCOMM 2008; split leaf ports as in MegaScale, NSDI 2024.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

from simulator.topology.wiring import Wire, Wiring


@dataclass(frozen=True, slots=True)
class Demand:
    """What a Clos must hold and of what: `split` NIC cables share one leaf port, as fast as a cable between switches.

    A group of nodes hangs below `leaves_per_group` leaves, with `nics_per_leaf` NICs of each node on each of them.
    `taper` bounds the down:up capacity of a leaf, `spine_taper` that of a spine below cores. `across` ports of each
    topmost switch, of two tiers at most, are kept free; the Clos is one of `zones`, each of so many `nodes`.
    """

    nodes: int
    leaves_per_group: int
    nics_per_leaf: int
    radix: int
    tiers: int = 2
    split: int = 1
    taper: Fraction = Fraction(1)
    spine_taper: Fraction = Fraction(1)
    across: int = 0
    zones: int = 1


@dataclass(frozen=True, slots=True)
class ClosShape:
    """The integers of a folded Clos: `down` counts the NICs under a full leaf, `uplinks` the cables up from any leaf.

    `spines` stand above each pod of `groups_per_pod` groups; spine i of every pod has `spine_uplinks` cables up, spread
    over the `cores` of column i. Without cores there is one pod, without spines one leaf.
    """

    nodes_per_group: int
    leaves_per_group: int
    groups: int
    down: int
    uplinks: int
    spines: int
    groups_per_pod: int
    spine_uplinks: int = 0
    cores: int = 0

    @property
    def leaves(self) -> int:
        """Leaves of all groups."""
        return self.groups * self.leaves_per_group

    @property
    def pods(self) -> int:
        """Pods, the last of which may have fewer groups than the others."""
        return -(-self.groups // self.groups_per_pod)

    @property
    def switches(self) -> int:
        """Switches of all tiers."""
        return self.leaves + self.spines * (self.pods + self.cores)

    @property
    def inter_switch_links(self) -> int:
        """Cables between switches."""
        return self.leaves * self.uplinks + self.pods * self.spines * self.spine_uplinks


def most_down(radix: int, taper: Fraction) -> int:
    """Return the most ports of a switch that can face down while the down:up ratio keeps to `taper`."""
    up = max(1, int(radix / (1 + taper)))
    return min(radix - up, int(up * taper))


def largest(demand: Demand) -> int:
    """Return the largest number of nodes that a Clos of this kind holds."""
    held = 0
    if demand.leaves_per_group == 1:
        held = max(0, demand.radix - demand.across) * demand.split // demand.nics_per_leaf
    nodes_per_group = most_down(demand.radix, demand.taper) * demand.split // demand.nics_per_leaf
    if demand.tiers >= 2:
        held = max(held, nodes_per_group * (max(0, demand.radix - demand.across) // demand.leaves_per_group))
    if demand.tiers >= 3:
        groups_per_pod = most_down(demand.radix, demand.spine_taper) // demand.leaves_per_group
        held = max(held, nodes_per_group * groups_per_pod * demand.radix)
    return held


def clos_of(demand: Demand) -> ClosShape:
    """Return the Clos with the fewest tiers, then the fewest groups, evenly filled, then the fewest spines and cores.

    Raises ValueError that names the largest number of nodes that fits.
    """
    nodes, nics, radix = demand.nodes, demand.nics_per_leaf, demand.radix
    most = largest(demand)
    if nodes > most:
        tiers = {1: "one tier", 2: "two tiers", 3: "three tiers"}[demand.tiers]
        whole = f"{nodes * demand.zones} nodes do not fit {'two zones of ' * (demand.zones > 1)}{tiers}"
        what = f"{whole} of {radix}-port switches at taper {float(demand.taper):g}"
        kept = f", {demand.across} ports of each topmost switch kept to cross" if demand.across else ""
        raise ValueError(f"{what} with {{}} attachment{kept}; the largest that fits is {most * demand.zones} nodes")
    if demand.leaves_per_group == 1 and nodes * nics <= (radix - demand.across) * demand.split:
        return ClosShape(nodes, 1, 1, nodes * nics, 0, 0, 1)
    nodes_per_group = most_down(radix, demand.taper) * demand.split // nics
    groups = -(-nodes // nodes_per_group)
    nodes_per_group = -(-nodes // groups)
    down = nodes_per_group * nics
    uplinks = -int(-Fraction(down, demand.split) // demand.taper)
    flat = radix // demand.leaves_per_group
    groups_per_pod, pods, spine_taper = groups, 1, None
    if groups > flat:
        groups_per_pod = most_down(radix, demand.spine_taper) // demand.leaves_per_group
        pods = -(-groups // groups_per_pod)
        groups_per_pod, spine_taper = -(-groups // pods), demand.spine_taper
    spines, spine_uplinks = _spines(
        groups_per_pod * demand.leaves_per_group, uplinks, radix - demand.across, spine_taper
    )
    cores = _fewest(spine_uplinks, pods, radix) if spine_uplinks else 0
    return ClosShape(
        nodes_per_group, demand.leaves_per_group, groups, down, uplinks, spines, groups_per_pod, spine_uplinks, cores
    )


def _spines(leaves: int, uplinks: int, radix: int, taper: Fraction | None) -> tuple[int, int]:
    """Return the fewest spines above `leaves` and the cables up from each (none without a taper)."""
    for spines in range(1, uplinks + 1):
        down = leaves * (uplinks // spines)
        up = -int(-down // taper) if taper is not None else 0
        if uplinks % spines == 0 and down + up <= radix:
            return spines, up
    raise AssertionError("a shape that fits has spines")


def _fewest(uplinks: int, below: int, radix: int) -> int:
    """Return the fewest switches over which `below` switches spread `uplinks` cables each, evenly."""
    return next(n for n in range(1, uplinks + 1) if uplinks % n == 0 and below * (uplinks // n) <= radix)


def add_leaves(wiring: Wiring, shape: ClosShape, prefix: str = "", plane: str | None = None) -> list[str]:
    """Add the leaves of a Clos and return their names, group by group."""
    several = shape.leaves_per_group > 1
    return [
        wiring.vertex(
            f"{prefix}leaf{group}.{leaf}" if several else f"{prefix}leaf{group}",
            *("switch", "leaf"),
            slot=leaf,
            group=group,
            plane=plane,
        )
        for group in range(shape.groups)
        for leaf in range(shape.leaves_per_group)
    ]


def add_spines(
    wiring: Wiring,
    shape: ClosShape,
    leaves: Sequence[str],
    wire: Wire,
    switch_ns: int,
    prefix: str = "",
    plane: str | None = None,
) -> None:
    """Add what stands above the leaves of a Clos: spines, and cores where there are several pods."""
    per_pod = shape.groups_per_pod * shape.leaves_per_group
    columns: list[list[str]] = [[] for _ in range(shape.spines)]
    for pod in range(shape.pods if shape.spines else 0):
        spines = [
            wiring.vertex(
                f"{prefix}spine{pod}.{index}" if shape.cores else f"{prefix}spine{index}",
                *("switch", "spine"),
                slot=index,
                group=pod if shape.cores else None,
                plane=plane,
            )
            for index in range(shape.spines)
        ]
        for leaf in leaves[pod * per_pod : (pod + 1) * per_pod]:
            for spine in spines:
                for _ in range(shape.uplinks // shape.spines):
                    wiring.climb(leaf, spine, wire, switch_ns, "leaf-spine")
        for column, spine in zip(columns, spines, strict=True):
            column.append(spine)
    for index, column in enumerate(columns if shape.cores else []):
        cores = [
            wiring.vertex(f"{prefix}core{index}.{i}", "switch", "core", slot=index * shape.cores + i, plane=plane)
            for i in range(shape.cores)
        ]
        for spine in column:
            for core in cores:
                for _ in range(shape.spine_uplinks // shape.cores):
                    wiring.climb(spine, core, wire, switch_ns, "spine-core")


def bisection(shape: ClosShape, halves: Sequence[tuple[int, int]], nic: int, cable: int) -> int:
    """Return the least cut, one way, between two parts of the NICs; leaf i has `halves[i]` of them below it.

    `nic` and `cable` are the bytes per second of one NIC and of one cable between switches. All spines of a pod are
    alike, and so are all cores, so each kind may be merged into one switch; what is left is a tree, whose least cut is
    found from the leaves up: for each switch, the cost of standing on either side.
    """
    per_pod = shape.groups_per_pod * shape.leaves_per_group
    up, pod_up = shape.uplinks * cable, shape.spines * shape.spine_uplinks * cable
    cost = [0, 0]
    for pod in range(shape.pods):
        inside = [0, 0]
        for first, second in halves[pod * per_pod : (pod + 1) * per_pod]:
            sending, receiving = second * nic, first * nic
            inside[0] += min(sending, receiving + up)
            inside[1] += min(receiving, sending + up)
        if not shape.spines:  # the leaf itself stands on the cheaper side
            return min((second * nic, first * nic)[side] for side in (0, 1))
        cost[0] += min(inside[0], inside[1] + pod_up) if shape.cores else inside[0]
        cost[1] += min(inside[1], inside[0] + pod_up) if shape.cores else inside[1]
    return min(cost)
