"""The weights that a network starts with: frozen parts, and weights from a file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from metalearn.errors import UsageError, nearest
from metalearn.nn.head import SymmetricHead
from metalearn.training import checkpoint
from metalearn.tree import named_leaves

_WRAPPERS = ("state_dict", "model_state_dict", "model")
"""The keys under which training scripts store a state_dict beside other things."""


def freeze(model: nn.Module, names: Any) -> None:
    """Set `requires_grad=False` for parameters, given by their names or those of their layers.

    Args:
        names: a list of texts, or whole numbers for the layers of an `nn.Sequential`.

    Raises:
        UsageError: `names` is no such list, or a name is of no layer and no parameter.
    """
    listed = isinstance(names, Sequence) and not isinstance(names, str)
    if not listed or not all(type(name) in (str, int) for name in names):
        raise UsageError(
            f"frozen={'null' if names is None else names}: expected a list of the model's layers "
            "or parameters. Give such as [conv1,layer1], and quotes around a name like '0.1'"
        )
    for name in names:
        own = [p for n, p in model.named_parameters() if f"{n}.".startswith(f"{name}.")]
        if not own:
            layers = [n for n, layer in model.named_modules() if n and [*layer.parameters()]]
            known = layers + [n for n, _ in model.named_parameters()]
            raise UsageError(
                f"frozen={name}: expected the name of a layer or parameter of the model"
                f"{nearest(str(name), known)}"
            )
        for parameter in own:
            parameter.requires_grad_(False)


def read_constants(model: nn.Module) -> dict[str, Tensor]:
    """Return what training leaves as it is, by name: frozen parameters and persistent buffers."""
    learned = {name for name, p in model.named_parameters() if p.requires_grad}
    return {name: x for name, x in _tensors_of(model).items() if name not in learned}


def _tensors_of(model: nn.Module) -> dict[str, Tensor]:
    """Return the model's parameters and persistent buffers by name, themselves and no copies."""
    return {name: x for name, x in model.state_dict().items() if isinstance(x, Tensor)}


def load_constants(model: nn.Module, constants: Mapping[str, Tensor]) -> None:
    """Copy the constants of a checkpoint into a model; an early checkpoint has none.

    Raises:
        UsageError: they are another model's.
    """
    own = read_constants(model)
    if constants and {n: x.shape for n, x in own.items()} != {
        n: x.shape for n, x in constants.items()
    }:
        raise UsageError(
            "the checkpoint's frozen parameters and buffers do not fit the model of its config; "
            "train it again"
        )
    with torch.no_grad():
        for name, value in constants.items():
            own[name].copy_(value)


def start_from(model: nn.Module, word: str) -> list[str]:
    """Copy weights from a file into a model.

    The last layer may be absent from the file or of another shape, and keeps its own start then.
    So do buffers that the file lacks. Tensors of the file that the model lacks are left out.

    Args:
        word: a checkpoint, as `checkpoint.find` takes it, or a file of
            `torch.save(network.state_dict(), PATH)`.

    Returns:
        A sentence for each kind of tensors that are kept or left out.

    Raises:
        UsageError: there is no such file, or it is of another network.
    """
    given = _read(word)
    own, parameters = _tensors_of(model), dict(model.named_parameters())
    odd = [n for n, x in own.items() if n not in given or given[n].shape != x.shape]
    last = _last_layer(model)
    missing = [n for n in odd if n in parameters and not (last and n.startswith(last))]
    if len(odd) == len(own) or any(n in parameters for n in missing):
        first = (missing or odd)[0]
        has = tuple(given[first].shape) if first in given else "missing"
        more = f", as {len(missing) - 1} others do not fit" if len(missing) > 1 else ""
        raise UsageError(
            f"init_from={word}: expected a network whose {first} has the shape "
            f"{tuple(own[first].shape)}; there it is {has}{more}. Give model= the same options."
        )
    for name in own.keys() - odd:
        if not given[name].isfinite().all():
            raise UsageError(
                f"init_from={word}: expected finite weights, and those of {name} are not. Give "
                "another file."
            )
    with torch.no_grad():
        for name in own.keys() - odd:
            own[name].copy_(given[name])
    left = [name for name in given if name not in own]
    return [
        f"init_from={word}: {what}: {', '.join(names[:4])}"
        + (f" and {len(names) - 4} more" if len(names) > 4 else "")
        for what, names in (("the model keeps its own", odd), ("not in the model", left))
        if names
    ]


def _last_layer(model: nn.Module) -> str:
    """Return the prefix of the names of the parameters of the last layer, such as "fc."."""
    heads = [name for name, layer in model.named_modules() if isinstance(layer, SymmetricHead)]
    layer = heads[0] if heads else [name for name, _ in model.named_parameters()][-1]
    layer = layer if heads else layer.rpartition(".")[0]
    return f"{layer}." if layer else ""


def _read(word: str) -> dict[str, Tensor]:
    """Return the weights in a file by name."""
    path = checkpoint.find(word)
    try:
        state = checkpoint.load(path)
    except checkpoint.DamagedCheckpoint as error:
        return _read_state_dict(path, word, error)
    found = {
        keys.rpartition("['")[2].removesuffix("']"): x
        for keys, x in named_leaves(checkpoint.select_meta(state)).items()
    }
    return found | state.get("constants", {})


def _read_state_dict(path: Path, word: str, error: UsageError) -> dict[str, Tensor]:
    try:
        found: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception:  # torch names no narrower class
        found = None
    for key in _WRAPPERS:
        if isinstance(found, dict) and isinstance(found.get(key), dict):
            found = found[key]
    if not isinstance(found, dict) or not found:
        raise error
    if not all(isinstance(k, str) and isinstance(x, Tensor) for k, x in found.items()):
        raise UsageError(
            f"init_from={word}: expected a checkpoint of metalearn, or the weights of a network by "
            "name. Save such a file by torch.save(network.state_dict(), PATH)"
        ) from error
    whole = all(name.startswith("module.") for name in found)  # of DataParallel
    return {name.removeprefix("module.") if whole else name: x for name, x in found.items()}
