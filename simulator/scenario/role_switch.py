"""The section of a scenario that lets engines go from one pool to the other; see simulator.serving.role_switch."""

from typing import TYPE_CHECKING

from simulator.serving.role_policies import SWITCHES
from simulator.strict import Duration, OneOf, PositiveDuration, Strict, one_of

if TYPE_CHECKING:
    SwitchPolicy = OneOf
else:
    SwitchPolicy = one_of("SwitchPolicy", {name: kind.parameters for name, kind in SWITCHES.items()})


class RoleSwitch(Strict):
    """When engines change roles, and how long that takes."""

    policy: SwitchPolicy = SwitchPolicy.model_validate("thresholds")
    """Which pool gives an engine to the other, if any."""
    interval: PositiveDuration = 10_000_000_000
    """Time from one look to the next; none is taken while an engine is on its way."""
    delay: Duration = 5_000_000_000
    """Time to make an engine ready for its other role, once it has nothing left to do."""
    cooldown: Duration = 0
    """Time that is added before the next look when an engine has arrived."""
