"""Compute precision and float32 master weights.

The optimizer always works on float32. Under bfloat16 compute the model holds one bfloat16 copy,
refreshed once a step, so no operation casts weights (autocast casts them in every forward).
Gradients are added into float32 buffers as soon as autograd has them.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from stillhouse.divergence.accumulate import add_converted
from stillhouse.training.distributed import World


def resolve_dtype(precision: str, device: torch.device) -> torch.dtype:
    """Return the compute dtype for ``auto``, ``bfloat16`` or ``float32``."""
    if precision == "auto":
        return torch.bfloat16 if has_bfloat16(device) else torch.float32
    return torch.bfloat16 if precision == "bfloat16" else torch.float32


def has_bfloat16(device: torch.device) -> bool:
    """True where matrix products in bfloat16 are faster than in float32."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported())
    capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16") or capabilities.get("bf16"))


class MasterWeights:
    """Float32 masters of a module's trainable parameters, with float32 gradient buffers.

    The constructor takes the masters from the parameters as they are, then rounds every parameter
    to ``dtype``. A parameter that stays float32 is its own master. For the others a hook moves
    each gradient into the master's buffer at once, so micro-batches add up in float32.
    """

    def __init__(self, module: nn.Module, dtype: torch.dtype) -> None:
        self._named: dict[str, Tensor] = {}
        self._copies: list[tuple[nn.Parameter, Tensor]] = []
        self._by_parameter: dict[int, Tensor] = {}
        for name, parameter in module.named_parameters():
            if parameter.requires_grad:
                self._add(name, parameter, dtype)
            else:
                parameter.data = parameter.data.to(dtype)

    def _add(self, name: str, parameter: nn.Parameter, dtype: torch.dtype) -> None:
        exact = parameter.data.to(torch.float32)
        parameter.data = exact.to(dtype)
        if dtype == torch.float32:
            master: Tensor = parameter
        else:
            master = exact.requires_grad_(False)
            self._copies.append((parameter, master))
            parameter.register_post_accumulate_grad_hook(_weakly(self))  # type: ignore[no-untyped-call]
        master.grad = torch.zeros_like(exact)
        self._by_parameter[id(parameter)] = master
        self._named[name] = master

    def fold(self, parameter: Tensor) -> None:
        """Move a parameter's gradient into its master's buffer."""
        master = self._by_parameter[id(parameter)]
        assert master.grad is not None
        assert parameter.grad is not None
        add_converted(master.grad, parameter.grad)
        parameter.grad = None

    def named(self) -> dict[str, Tensor]:
        """The tensors that the optimizer steps on, by parameter name."""
        return self._named

    def gradient_of(self, parameter: Tensor) -> Tensor | None:
        """The float32 gradient buffer of a parameter, or None if it is not trained."""
        master = self._by_parameter.get(id(parameter))
        return None if master is None else master.grad

    def zero_gradients(self) -> None:
        for gradient in self._gradients():
            gradient.zero_()

    def reduce_gradients(self, world: World) -> None:
        """Add the gradients of all processes: once a step, in float32."""
        for gradient in self._gradients():
            world.sum_(gradient)

    def scale_loss(self, loss: Tensor, world: World) -> Tensor:
        """Gradients are summed over processes, so the loss needs no factor."""
        del world
        return loss

    @torch.no_grad()
    def refresh(self) -> None:
        """Round the masters into the compute copies, after an optimizer step or a load."""
        for parameter, master in self._copies:
            parameter.copy_(master)

    def exact_state(self) -> dict[str, Tensor]:
        """Whole float32 tensors by parameter name, on CPU."""
        return {name: master.detach().cpu() for name, master in self._named.items()}

    def _gradients(self) -> Iterator[Tensor]:
        for master in self._named.values():
            assert master.grad is not None
            yield master.grad


def _weakly(weights: MasterWeights) -> Callable[[Tensor], None]:
    """The hook that folds a gradient. It does not hold ``weights``: the collector does not see through
    a tensor's hooks, so a cycle through them would keep every run's weights for the life of the process.
    """
    reference = weakref.ref(weights)

    def fold(parameter: Tensor) -> None:
        found = reference()
        assert found is not None, "whoever trains holds the weights"
        found.fold(parameter)

    return fold


class ShardedWeights:
    """The same duties for a module under FSDP2, which keeps float32 shards and casts by itself."""

    def __init__(self, module: nn.Module) -> None:
        self._named: dict[str, Tensor] = {n: p for n, p in module.named_parameters() if p.requires_grad}

    def named(self) -> dict[str, Tensor]:
        """The sharded float32 parameters (DTensor), by parameter name."""
        return self._named

    def gradient_of(self, parameter: Tensor) -> Tensor | None:
        """FSDP2 reduces the gradients that autograd returns, so there is no buffer to add into."""
        del parameter
        return None

    def zero_gradients(self) -> None:
        for parameter in self._named.values():
            parameter.grad = None

    def reduce_gradients(self, world: World) -> None:
        """FSDP2 has reduced them in the backward pass."""
        del world

    def scale_loss(self, loss: Tensor, world: World) -> Tensor:
        """FSDP2 averages gradients over processes; undo the division."""
        return loss * world.size

    def refresh(self) -> None:
        """FSDP2 casts the shards when it gathers them."""

    def exact_state(self) -> dict[str, Tensor]:
        """Whole float32 tensors by parameter name, on CPU; every process takes part."""
        whole: dict[str, Tensor] = {}
        for name, parameter in self._named.items():
            assert isinstance(parameter, DTensor)
            whole[name] = parameter.full_tensor().detach().cpu()
        return whole


Weights = MasterWeights | ShardedWeights
