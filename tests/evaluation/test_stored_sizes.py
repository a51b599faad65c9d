"""Sizes of number formats are the bytes that are stored, whatever a container says of itself."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from number_formats import stored_bytes


class Container(Tensor):
    """Integers and scales that pretend to be a float32 matrix, as quantised weights do."""

    @staticmethod
    def __new__(cls, integers: Tensor, scales: Tensor):
        return Tensor._make_wrapper_subclass(cls, integers.shape, dtype=torch.float32)

    def __init__(self, integers: Tensor, scales: Tensor) -> None:
        self.integers, self.scales = integers, scales

    def __tensor_flatten__(self):
        return ["integers", "scales"], None

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        if function is torch.ops.aten.detach.default:
            return cls(args[0].integers, args[0].scales)
        raise NotImplementedError(function)


def test_plain_and_shared_weights_are_counted_once():
    first, second = nn.Linear(8, 4), nn.Linear(8, 4, bias=False)
    second.weight = first.weight
    model = nn.ModuleList([first, second])
    model.register_buffer("table", torch.zeros(10, dtype=torch.float64))
    assert stored_bytes(model) == 4 * (32 + 4) + 80
    assert stored_bytes(model.half()) == 2 * (32 + 4) + 20
    assert stored_bytes(nn.Linear(8, 4, bias=False).to(torch.float8_e4m3fn)) == 32


def test_a_container_is_what_it_holds():
    layer = nn.Linear(8, 4, bias=False)
    weight = Container(torch.zeros(4, 8, dtype=torch.int8), torch.ones(4, 1))
    layer.weight = nn.Parameter(weight, requires_grad=False)
    assert layer.weight.nbytes == 4 * 32
    assert stored_bytes(layer) == 32 + 4 * 4


@pytest.mark.parametrize("package", ["torchao", "optimum.quanto"])
def test_containers_of_the_libraries(package):
    library = pytest.importorskip("torchao.quantization" if package == "torchao" else package)
    layer = nn.Sequential(nn.Linear(64, 32, bias=False))
    if package == "torchao":
        library.quantize_(layer, library.Int8WeightOnlyConfig())
    else:
        library.quantize(layer, weights=library.qint8)
        library.freeze(layer)
    assert 64 * 32 < stored_bytes(layer) < 64 * 32 + 64 * 10
