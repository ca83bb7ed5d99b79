"""The twin of any module: the module itself, run on every task's examples."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._pytree import tree_leaves, tree_map

from metalearn.errors import UsageError
from metalearn.nn.functions import TaskFunctions
from metalearn.nn.structure import class_vectors, globally_hooked, has_recurrence, is_hooked
from metalearn.tree import Tree


class EachTask(nn.Module):
    """A module run on each task's (n, ...), by `torch.func.vmap` over its parameters and input.

    A loop over the tasks, slower and right, takes its place in three cases:

    - `vmap` has no rule for what the module does.
    - The module has hooks, which then see plain tensors.
    - The module has recurrent layers.

    Buffers are constants. What `forward` writes on the module is undone after the call.

    Attention takes torch's math kernel, since its other kernels have no second derivative. For the
    same reason recurrent layers do without cuDNN.
    """

    statistics_from: int | None = None

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self._module = (module,)  # a tuple keeps its names out of this module's
        self._parameters, self._buffers = module._parameters, module._buffers
        self._modules = module._modules
        self._vectors = frozenset(class_vectors(module))

    def forward(self, x: Tree) -> Tree:
        """Map a pytree of (n, T, ...) to one of (n, T, ...), by this module's present tensors."""
        params: dict[str, Tensor] = dict(self.named_parameters())
        params.update((name, b) for name, b in self.named_buffers() if name in self._vectors)
        return tree_map(swapped, self.run(params, tree_map(swapped, x)))

    def run(self, params: Mapping[str, Tensor], x: Tree) -> Tree:
        """Map a pytree of (T, n, ...) to one of (T, ...), by params of (T, ...) or (1, ...)."""
        module = self._module[0]
        inputs = tree_leaves(x)[0]
        tasks, examples = inputs.shape[:2] if inputs.dim() > 1 else (len(inputs), 0)
        params = {name: p.expand(tasks, *p.shape[1:]) for name, p in params.items()}
        constants = {
            name: buffer.clone()
            for name, buffer in module.named_buffers(remove_duplicate=False)
            if name not in params
        }

        def one_task(params: dict[str, Tensor], x: Tree) -> Tree:
            tensors = {**params, **constants}
            y = torch.func.functional_call(module, tensors, (x,), tie_weights=False)
            for name, buffer in constants.items():
                if tensors[name] is not buffer or _written(buffer):
                    raise UsageError(
                        f"{type(module).__name__}.{name}: expected a buffer that forward does not "
                        "change, since the tasks would share it. Keep no state there, or call "
                        "eval() if the module then leaves it as it is."
                    )
            return y

        math = sdpa_kernel(SDPBackend.MATH)
        functions = TaskFunctions(examples, self.statistics_from)
        with _without_checkpoints(), _as_found(module), math, functions:
            if tasks > 1 and not self._loops():
                random = _random_state(inputs)
                try:
                    return _mapped(one_task)(params, x)
                except torch.OutOfMemoryError:
                    raise
                except (RuntimeError, ValueError):  # no rule; other errors come again below
                    _set_random_state(inputs, random)
            with _twice_differentiable(module):
                each = [one_task(_of_task(params, t), _of_task(x, t)) for t in range(tasks)]
            return tree_map(_stacked, *each)

    def _loops(self) -> bool:
        module = self._module[0]
        return (
            has_recurrence(module)
            or globally_hooked()
            or any(is_hooked(child) for child in module.modules())
        )


def swapped(leaf: Tensor) -> Tensor:
    """Return (a, b, ...) as (b, a, ...); a leaf of one axis as it is."""
    return leaf.transpose(0, 1) if leaf.dim() > 1 else leaf


def _of_task(tree: Tree, task: int) -> Tree:
    return tree_map(lambda leaf: leaf[task], tree)


def _stacked(*leaves: Any) -> Any:
    """Return the tensors of all tasks as one; of anything else, the first."""
    return torch.stack(leaves) if isinstance(leaves[0], Tensor) else leaves[0]


def _mapped(one_task: Callable[..., Tree]) -> Callable[..., Tree]:
    """Return `vmap` of the function, without torch's warning where it loops over one operation."""

    def quiet(*args: Any) -> Tree:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="There is a performance drop")
            return torch.func.vmap(one_task, randomness="different")(*args)

    return quiet


@contextmanager
def _as_found(module: nn.Module) -> Iterator[None]:
    """Undo what the block writes to the attributes of the module and of its children."""
    found = [(child, dict(vars(child))) for child in module.modules()]
    try:
        yield
    finally:
        for child, attributes in found:
            vars(child).clear()
            vars(child).update(attributes)


def _twice_differentiable(module: nn.Module) -> AbstractContextManager[None]:
    """Return the context in which recurrent layers have a second derivative."""
    if has_recurrence(module):
        return torch.backends.cudnn.flags(enabled=False)
    return nullcontext()


@contextmanager
def _without_checkpoints() -> Iterator[None]:
    """Refuse `torch.utils.checkpoint` in the block.

    It would run the module again in the backward pass, on the module's own parameters. The check
    is left out where the caller has put the block into such a context itself.

    Raises:
        UsageError: the block uses `torch.utils.checkpoint`, or other hooks on saved tensors.
    """
    if torch._C._autograd._top_saved_tensors_default_hooks(True) is not None:
        yield
        return
    try:
        with torch.autograd.graph.disable_saved_tensors_hooks(_CHECKPOINT):
            yield
    except RuntimeError as error:
        if str(error) == _CHECKPOINT:
            raise UsageError(_CHECKPOINT) from None
        raise


_CHECKPOINT = (
    "torch.utils.checkpoint in a task-batched module: expected none, since it would run again with "
    "other parameters. Take it out, or set Unrolled(checkpoint=...), which saves the same memory."
)


def _written(buffer: Tensor) -> bool:
    """Return True if a new tensor has been written to."""
    return not buffer.is_inference() and buffer._version > 0


def _random_state(like: Tensor) -> tuple[Tensor, Tensor | None]:
    on_gpu = torch.cuda.get_rng_state(like.device) if like.is_cuda else None
    return torch.get_rng_state(), on_gpu


def _set_random_state(like: Tensor, state: tuple[Tensor, Tensor | None]) -> None:
    torch.set_rng_state(state[0])
    if state[1] is not None:
        torch.cuda.set_rng_state(state[1], like.device)
