"""Multi-step targets on sequences of decisions: several rewards before a value is bootstrapped.

What a search finds ten decisions later reaches its first decision one update after the other. With n steps the target
of decision t is r_t + gamma r_{t+1} + ... + gamma^n V(s_{t+n}, b_{t+n}) (Sutton and Barto 2018, section 7.1). It is not
corrected for being off-policy, nor has it the entropies between, as is usual (Hessel et al. 2018, Rainbow, arXiv
1710.02298; Kapturowski et al. 2019, R2D2).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from peach_trl.modules.execution import TracedKinds


def multi_step(
    reward: Tensor, steps: Tensor, terminated: Tensor, mask: Tensor, part: Tensor, *, n: int, gamma: float, across: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """What the next ``n`` decisions bring, and which is the last of them.

    Args:
        reward: of each decision, [B, L, 1].
        steps: environment steps of each decision, int64 [B, L, 1].
        terminated: bool [B, L, 1]; nothing is added up beyond such a decision.
        mask: bool [B, L], which decisions there are; they come first.
        part: int64 [B, L], the episode of a sequence that each belongs to.
        n: decisions to add up at most, >= 1; fewer where the sequence ends.
        gamma: discount of an environment step.
        across: whether it goes on from an episode's last decision to the first of the next part.

    Returns:
        ``(reward, steps, last)``: the discounted sum [B, L, 1], the environment steps that it spans [B, L, 1], after
        which a value is to be bootstrapped, and the index int64 [B, L] of the last decision in it.

    Examples:
        >>> column = lambda *values: torch.tensor(values).view(1, -1, 1)
        >>> no, there = column(False, False, False, False), torch.tensor([[True, True, True, False]])
        >>> columns = column(1.0, 2.0, 4.0, 9.0), column(1, 1, 1, 1), no, there, torch.zeros(1, 4)
        >>> reward, steps, last = multi_step(*columns, n=2, gamma=0.5, across=True)
        >>> reward.flatten().tolist()[:3], steps.flatten().tolist()[:3], last.tolist()[0][:3]
        ([2.0, 4.0, 4.0], [2, 2, 1], [1, 2, 2])
    """
    reward, steps, over = reward.squeeze(-1), steps.squeeze(-1), terminated.squeeze(-1)
    total, taken = reward, steps
    last = torch.arange(mask.shape[1], device=mask.device).expand_as(mask)
    goes_on = mask & ~over
    for j in range(1, min(n, mask.shape[1])):
        there = mask[:, j:] if across else mask[:, j:] & (part[:, j:] == part[:, :-j])
        goes_on = goes_on & pad(there, (0, j))
        total = total + torch.where(goes_on, gamma**taken * pad(reward[:, j:], (0, j)), 0.0)
        taken = taken + goes_on * pad(steps[:, j:], (0, j))
        last = last + goes_on
        goes_on = goes_on & ~pad(over[:, j:], (0, j))
    return total.unsqueeze(-1), taken.unsqueeze(-1), last


def link(state: Tensor, state_after: Tensor, terminated: Tensor, mask: Tensor, part: Tensor) -> tuple[Tensor, Tensor]:
    """Lets the value of a trajectory's last decision go on from the first state of the next one, if there is one.

    Args:
        state: s of each decision, [B, L, D].
        state_after: s' of each, likewise.
        terminated: bool [B, L, 1].
        mask: bool [B, L], which decisions there are; they come first.
        part: int64 [B, L], the episode of a sequence that each belongs to.

    Returns:
        ``(state_after, terminated)``, the same but for the last decisions of trajectories that have a next one.

    Examples:
        >>> s, no = torch.tensor([[[1.0], [2.0], [3.0]]]), torch.zeros(1, 3, 1, dtype=torch.bool)
        >>> link(s, s + 0.5, no, torch.ones(1, 3, dtype=torch.bool), torch.tensor([[0, 0, 1]]))[0].flatten().tolist()
        [1.5, 3.0, 3.5]
    """
    traced = _KINDS.get((state.shape, terminated.shape), lambda: _linked)
    after, over = traced(state, state_after, terminated, mask, part)
    return after, over


def _linked(s: Tensor, s_after: Tensor, terminated: Tensor, mask: Tensor, part: Tensor) -> tuple[Tensor, Tensor]:
    goes_on = pad(mask[:, 1:] & (part[:, 1:] != part[:, :-1]), (0, 1)).unsqueeze(-1)
    return torch.where(goes_on, s.roll(-1, 1), s_after), terminated & ~goes_on


_KINDS = TracedKinds()
