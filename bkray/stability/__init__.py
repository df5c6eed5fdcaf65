"""Is a trial healthy? The judge of a running one, and the guides' counters."""

from bkray.stability.counters import GradientNormTracker as GradientNormTracker
from bkray.stability.counters import LossSpikeDetector as LossSpikeDetector
from bkray.stability.counters import Norms as Norms
from bkray.stability.health import SPIKE_RATIO as SPIKE_RATIO
from bkray.stability.health import Health as Health
from bkray.stability.judge import COLLAPSED_NATS as COLLAPSED_NATS
from bkray.stability.judge import Verdict as Verdict
from bkray.stability.judge import judge as judge
