"""A stand-in for several GPUs: tensors of the CPU that carry the name of a device, and operations that refuse to mix them.

accelerate's own hooks then move a model's inputs and outputs between the names, as they do between GPUs. What mixes two
devices fails in PyTorch's words.
"""

import re

import accelerate
import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map

from lib.activations import models

CPU, FIRST, SECOND = torch.device("cpu"), torch.device("ipu:0"), torch.device("ipu:1")
"""The last two are of a kind that PyTorch can name and nobody has: naming it initialises nothing."""


class Named(torch.Tensor):
    """A tensor of the CPU that says it lies on another device."""

    place = CPU

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        return computed(function, args, kwargs or {})


class Devices(TorchFunctionMode):
    """Within it, tensors can also be made on, and moved to, the named devices."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        return computed(function, args, kwargs or {})


def computed(function, args, kwargs):
    """Compute on the CPU; the result lies where an argument says, else where the tensors do, which must be one place."""
    if function == torch.Tensor.device.__get__:  # a new object at every look
        return place_of(args[0])
    if function is torch._has_compatible_shallow_copy_type:  # a module that moves asks it of every parameter
        return place_of(args[0]) == place_of(args[1])
    with torch._C.DisableTorchFunction():
        if function in (torch.device, torch._C._nn._parse_to):  # what a device is, and where a module is told to go
            return function(*args, **kwargs)
        values = tree_leaves((args, kwargs))
        tensors = [value for value in values if isinstance(value, torch.Tensor)]
        asked = [torch.device(value) for value in values if is_device(value)]
        if function is torch.Tensor.cpu:
            asked = [CPU]
        if function is torch.Tensor.to and len(tensors) == 2:
            asked, args = [place_of(tensors[1])], (args[0], tensors[1].dtype, *args[2:])
        # A number without axes goes with every device.
        places = {place_of(tensor) for tensor in tensors if tensor.ndim} or {place_of(tensor) for tensor in tensors}
        if len(places) > 1 and not asked and function is not torch.Tensor.copy_:
            found = " and ".join(sorted(map(str, places)))
            raise RuntimeError(
                f"Expected all tensors to be on the same device, but found at least two devices, {found}!"
            )
        args, kwargs = tree_map(lambda value: CPU if is_device(value) else value, (args, kwargs))
        result, place = function(*args, **kwargs), next(iter([*asked, *places]), CPU)
        return tree_map(lambda value: named(value, place), result)


def is_device(value):
    return isinstance(value, torch.device) or (isinstance(value, str) and re.fullmatch(r"(cpu|ipu)(:\d)?", value))


def place_of(tensor):
    return tensor.place if isinstance(tensor, Named) else CPU


def named(value, place):
    if not isinstance(value, torch.Tensor) or place_of(value) == place:
        return value
    value = value.detach().as_subclass(torch.Tensor if place == CPU else Named)
    if place != CPU:
        value.place = place
    return value


def places_of(module, blocks):
    """Name the device of every part: the first block and what stands before it on the first, the rest on the second."""
    outer = blocks.rpartition(".")[0]
    places = {blocks + ".0": FIRST, blocks + ".1": SECOND, blocks + ".2": SECOND}
    for path in (outer, ""):
        children = module.get_submodule(path).named_children()
        for name in (f"{path}.{child}".removeprefix(".") for child, _ in children):
            if not any(known == name or known.startswith(f"{name}.") for known in places):
                places[name] = FIRST if "emb" in name or "wte" in name or "wpe" in name or "rotary" in name else SECOND
    return {name: str(place) for name, place in places.items()}


def spread(module, blocks):
    """Put a model on the two devices, by accelerate."""
    return accelerate.dispatch_model(module, places_of(module, blocks), force_hooks=True)


def open_on_two(source, **options):
    """Open a Qwen3 of three blocks as on a machine of two GPUs, by the project's own way: only the division is given."""
    module = models.open_model(source)._module
    with pytest.MonkeyPatch.context() as patch, Devices():
        patch.setenv("HF_DEACTIVATE_ASYNC_LOAD", "1")  # a mode of PyTorch holds in its own thread
        places = places_of(module, "model.layers")
        divided = {"device_map": "auto" if "untrained" in options else places}
        patch.setattr(models, "_placement", lambda device, dtype: divided)
        patch.setattr(accelerate, "infer_auto_device_map", lambda module, **rest: places)
        return models.open_model(source, **options)
