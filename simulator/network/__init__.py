"""The live network: max-min fair sharing of the links of a topology among flows."""

from simulator.network.fabric import Fabric
from simulator.network.maxmin import maxmin_rates
from simulator.network.routing import ROUTINGS

__all__ = ["ROUTINGS", "Fabric", "maxmin_rates"]
