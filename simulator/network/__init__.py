"""The live network: max-min fair sharing of the links of a topology among flows."""

from simulator.network.bundle import Send
from simulator.network.fabric import DeadLinkError, Fabric
from simulator.network.maxmin import maxmin_rates
from simulator.network.routing import ROUTINGS
from simulator.network.transport import Transport

__all__ = ["ROUTINGS", "DeadLinkError", "Fabric", "Send", "Transport", "maxmin_rates"]
