"""Adam for small networks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from peach_trl.levels.errors import NotFiniteGradients, all_finite


class FusedAdam(torch.optim.Adam):
    """torch's Adam (Kingma and Ba 2015, arXiv 1412.6980) with one call a group and little around it.

    Its steps and its state are those of ``torch.optim.Adam(fused=True)``, bit by bit; with a few thousand weights, the
    bookkeeping there takes longer than the arithmetic. Parameters that have taken the same number of steps share the
    tensor that counts them.

    Args:
        params: as ``torch.optim.Adam`` takes them; no weight decay.
        lr: learning rate.

    Examples:
        >>> weight = torch.nn.Parameter(torch.tensor([1.0]))
        >>> adam = FusedAdam([weight], lr=0.1)
        >>> weight.square().sum().backward()
        >>> adam.step()
        >>> weight.detach()
        tensor([0.9000])
    """

    def __init__(self, params: Any, lr: float = 1e-3) -> None:
        super().__init__(params, lr=lr, fused=True)
        self._lists: list[list[list[Tensor]]] | None = None  # of each group: parameters, both moments, steps

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One step; parameters without a gradient stay as they are.

        Raises:
            NotFiniteGradients: if a gradient is not finite, before anything is changed.
        """
        if closure is not None:
            raise ValueError("closure: FusedAdam takes none; compute the gradient first")
        lists = self._lists
        if lists is None:
            lists = self._lists = [self._group(group["params"]) for group in self.param_groups]
        every = [grad for columns in lists for param in columns[0] if (grad := param.grad) is not None]
        if every and not all_finite(every):
            raise NotFiniteGradients("gradients are not finite; the step is not taken")
        for group, columns in zip(self.param_groups, lists, strict=True):
            grads: list[Any] = [param.grad for param in columns[0]]
            if any(grad is None for grad in grads):
                columns = self._with_gradient(columns)
                grads = [grad for grad in grads if grad is not None]
            if not grads:
                continue
            params, means, squares, steps = columns
            for counter in {id(step): step for step in steps}.values():
                counter.add_(1)
            beta1, beta2 = group["betas"]
            options = {"lr": group["lr"], "beta1": beta1, "beta2": beta2, "eps": group["eps"]}
            options |= {"weight_decay": 0.0, "amsgrad": False, "maximize": False}
            torch._fused_adam_(params, grads, means, squares, [], steps, **options)  # type: ignore[attr-defined]

    def _with_gradient(self, columns: list[list[Tensor]]) -> list[list[Tensor]]:
        """The columns of the parameters that have a gradient; from now on these count their steps by themselves."""
        some = [i for i, param in enumerate(columns[0]) if param.grad is not None]
        counters: dict[int, Tensor] = {}
        for i in some:
            step = columns[3][i]
            columns[3][i] = self.state[columns[0][i]]["step"] = counters.setdefault(id(step), step.clone())
        return [[column[i] for i in some] for column in columns]

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Drops the gradients."""
        if not set_to_none:
            return super().zero_grad(set_to_none=False)
        for group in self.param_groups:
            for param in group["params"]:
                param.grad = None

    def _group(self, params: list[Tensor]) -> list[list[Tensor]]:
        counters: dict[tuple[float, torch.device], Tensor] = {}
        for param in params:
            state = self.state[param]
            if not state:
                state["step"] = torch.zeros((), dtype=torch.float32, device=param.device)
                state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(param), torch.zeros_like(param)
            step = state["step"]
            state["step"] = counters.setdefault((step.item(), step.device), step)
        names = ("exp_avg", "exp_avg_sq", "step")
        return [params, *([self.state[param][name] for param in params] for name in names)]

    def forget(self) -> None:
        """To be called when the tensors have become others, as on another device; what is known of them goes there."""
        self._lists = None
        for param, state in self.state.items():
            state.update({name: value.to(param.device) for name, value in state.items()})

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As ``torch.optim.Adam`` has it.

        Raises:
            ValueError: if moments are of other shapes than the parameters.
        """
        params = [param for group in self.param_groups for param in group["params"]]
        for number, state in state_dict["state"].items():
            shapes = {tuple(state[name].shape) for name in ("exp_avg", "exp_avg_sq")}
            if shapes != {tuple(params[number].shape)}:
                wanted = list(params[number].shape)
                raise ValueError(f"other networks: moments of shape {shapes} for parameter {number} of shape {wanted}")
        super().load_state_dict(state_dict)
        self.forget()

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_lists": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._lists = None
