"""A loss of one's own for the top level: critics that are kept low where nothing was tried, as in CQL.

    from own_loss import ConservativeLoss
    agent = make_agent(config, library, loss=ConservativeLoss)

Whatever reads the losses by name goes on as it did: coefficients, logs, the three learning rates.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from tensordict import TensorDictBase
from torch import Tensor

from peach_trl.objectives import ContextSACLoss


class ConservativeLoss(ContextSACLoss):
    """``loss_qvalue`` plus ``weight`` times (log-mean-exp of Q at uniform proposals - Q at the recorded one).

    Source: Kumar et al. 2020, Conservative Q-Learning, arXiv 2006.04779, equation 4. The context keeps its gradient.
    """

    weight, proposals = 0.1, 8

    def is_plain(self, tensordict: TensorDictBase) -> bool:
        """No: TorchRL's own way is taken, in which this loss can be added to."""
        return False

    def qvalue_v2_loss(self, tensordict: TensorDictBase) -> tuple[Tensor, dict[str, Any]]:
        """TorchRL's L_critic, which ``forward`` calls, and what is added to it."""
        loss, found = super().qvalue_v2_loss(tensordict)
        key, others = self.tensor_keys.action, []
        for _ in range(self.proposals):
            proposal = 2 * torch.rand_like(tensordict.get(key)) - 1
            others.append(self.values(tensordict.copy().set(key, proposal)))
        others = torch.stack(others).logsumexp(0) - math.log(self.proposals)
        return loss + self.weight * (others - self.values(tensordict)).mean(), found
