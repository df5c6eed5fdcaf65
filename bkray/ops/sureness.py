"""How sure an answer is. Letters: V vocabulary; what comes before it is any shape."""

from typing import Literal

import torch
from torch import Tensor

Rule = Literal["confidence", "entropy"]


def sureness(logits_V: Tensor, rule: Rule) -> Tensor:
    """Return one number per answer, the more the surer; NaN where a logit is.

    ``confidence`` is its largest probability; ``entropy`` its negative entropy in nats.
    """
    precise_V = logits_V.to(torch.promote_types(logits_V.dtype, torch.float32))
    if rule == "confidence":
        return precise_V.softmax(-1).amax(-1)
    return (precise_V.softmax(-1) * precise_V.log_softmax(-1)).sum(-1)
