"""The contract of networks: those that ship pass, and each check catches a network that breaks it."""

from __future__ import annotations

import re
from typing import Any, ClassVar, Literal

import pytest
import torch
from pydantic import Field
from torch import Tensor, nn

from creditgrid.core.contract.networks import CHECKS
from creditgrid.core.contract.suite import check_unit
from creditgrid.core.science.modular_network import ModularNetwork, initialise
from creditgrid.core.units.known import installed
from creditgrid.core.units.network import Network, Size
from creditgrid.core.units.shape import Shape


class Small(Network):
    """Blocks of one linear layer."""

    name: ClassVar = "small"

    def hidden_shape(self, d_hidden: int) -> tuple[int, ...]:
        return (2, d_hidden)

    def block(self, d: int) -> nn.Module:
        return nn.Linear(d, d)

    def modules(self, size: Size) -> tuple[nn.Module, list[nn.Module], nn.Module]:
        d = size.d_hidden
        pixels = size.image_shape[0] * size.image_shape[1] * size.image_shape[2]
        embed = nn.Sequential(nn.Flatten(), nn.Linear(pixels, 2 * d), nn.Unflatten(1, (2, d)))
        blocks = [nn.Sequential(nn.LayerNorm(d), self.block(d)) for _ in range(size.num_blocks)]
        return embed, blocks, nn.Sequential(nn.Flatten(), nn.Linear(2 * d, size.num_classes))

    def build(self, size: Size, generator: torch.Generator | None) -> Any:
        with torch.device("meta"):
            parts = self.modules(size)
        network = ModularNetwork(size, self.hidden_shape(size.d_hidden), *parts)
        initialise(network, generator)
        return network


class Plain(Small):
    """A plain module."""

    name: ClassVar = "plain"

    def build(self, size: Size, generator: torch.Generator | None) -> Any:
        return nn.Linear(2, 2)


class Fewer(Small):
    """A block less."""

    name: ClassVar = "fewer"

    def build(self, size: Size, generator: torch.Generator | None) -> Any:
        return super().build(size._replace(num_blocks=size.num_blocks - 1), generator)


class Refusing(Small):
    """Takes no images."""

    name: ClassVar = "refusing"

    def conflicts(self, image_shape: Any) -> Any:
        yield "d_hidden", "no"


class Misshapen(Small):
    """Declares another shape."""

    name: ClassVar = "misshapen"

    def build(self, size: Size, generator: torch.Generator | None) -> Any:
        built = super().build(size, generator)
        built.hidden_shape = (size.d_hidden, 2)
        return built


class Unseeded(Small):
    """Draws from the global state."""

    name: ClassVar = "unseeded"

    def build(self, size: Size, generator: torch.Generator | None) -> Any:
        built = super().build(size, generator)
        if generator is not None:
            nn.init.normal_(built.readout[1].weight)
        return built


class BatchNorm(nn.Module):
    """Subtracts the mean over the batch."""

    def forward(self, h: Tensor) -> Tensor:
        return h - h.mean(0)


class Mixing(Small):
    """Mixes samples."""

    name: ClassVar = "mixing"

    def block(self, d: int) -> nn.Module:
        return nn.Sequential(nn.Linear(d, d), BatchNorm())


class Whole(ModularNetwork):
    """A network whose forward pass is another one than its parts."""

    def forward(self, x: Tensor, return_hidden: bool = False) -> Any:
        found: Any = super().forward(x, return_hidden)
        return (found[0] * 2, found[1]) if return_hidden else found * 2


class Apart(Small):
    """Its parts are not the whole."""

    name: ClassVar = "apart"

    def build(self, size: Size, generator: torch.Generator | None) -> Any:
        built = super().build(size, generator)
        built.__class__ = Whole
        return built


class Shared(Small):
    """All blocks have the first one's layer."""

    name: ClassVar = "shared"

    def modules(self, size: Size) -> Any:
        embed, blocks, readout = super().modules(size)
        return embed, [blocks[0]] * len(blocks), readout


class Rounded(nn.Module):
    """Rounds in single precision."""

    def forward(self, h: Tensor) -> Tensor:
        return h if h.dtype == torch.float64 else h.half().to(h)


class Rounding(Small):
    """Rounds."""

    name: ClassVar = "rounding"

    def block(self, d: int) -> nn.Module:
        return nn.Sequential(nn.Linear(d, d), Rounded())


class Item(nn.Module):
    """Looks at single numbers, which torch.func cannot."""

    def forward(self, h: Tensor) -> Tensor:
        return h if h.sum() > -1e9 else -h


class Looking(Small):
    """Looks at single numbers of a parameter."""

    name: ClassVar = "looking"

    def block(self, d: int) -> nn.Module:
        return nn.Sequential(nn.Linear(d, d), Item())


class Forgetful(Small):
    """Keeps a part beside its tensors."""

    name: ClassVar = "forgetful"

    def build(self, size: Size, generator: torch.Generator | None) -> Any:
        built = super().build(size, generator)
        if generator is not None:
            built.readout.append(nn.LeakyReLU(0.5))
        return built


class Choosy(Small):
    """Works with one of two values."""

    name: ClassVar = "choosy"
    mode: Literal["good", "bad"] = Field("good", description="Mode.")

    def build(self, size: Size, generator: torch.Generator | None) -> Any:
        if self.mode == "bad":
            raise ValueError("bad")
        return super().build(size, generator)


class Miscounted(Small):
    """Says wrong counts."""

    name: ClassVar = "miscounted"

    def shape(self, size: Size) -> Shape:
        return Shape(64, 16, 3, 3, 1.0, 1.0, 1.0, 1, 1, 1)


BROKEN = [
    (Plain, "it builds a network", "gave a Linear"),
    (Fewer, "it builds a network", "its num_blocks is 2, and must be 3"),
    (Refusing, "it builds a network", "refuses images of every size"),
    (Misshapen, "hidden states have the declared shape", r"is \(2, 8\), and its network's is \(8, 2\)"),
    (Unseeded, "every draw comes from the generator", "differ in readout.1.weight"),
    (Unseeded, "every draw comes from the generator", "global state of torch"),
    (Mixing, "no sample depends on another", "batch norm"),
    (Apart, "the parts make the whole", "forward_from_layer"),
    (Shared, "parameters are named by their part", "block 1 has no parameters"),
    (Rounding, "double precision agrees", "single and in double"),
    (Looking, "batched equals one by one", "raised RuntimeError"),
    (Forgetful, "it is built again from its tensors", "has other logits"),
    (Choosy, "every value of a choice works", "raised ValueError: bad"),
    (Miscounted, "its counts are right", "says block_parameters 1, and the network has"),
]


@pytest.mark.parametrize("unit", [Small, *installed().of("networks").values()])
def test_a_sound_network_passes(unit: type[Network]) -> None:
    assert [finding for result in check_unit(unit, quick=False) for finding in result.findings] == []


@pytest.mark.parametrize(("unit", "check", "problem"), BROKEN)
def test_a_broken_network_fails_its_check(unit: type[Network], check: str, problem: str) -> None:
    findings = [f for result in check_unit(unit, quick=False) for f in result.findings if f.check == check]
    assert any(re.search(problem, finding.problem) for finding in findings), findings
    assert findings[0].file == __file__


def test_every_check_of_networks_can_fail() -> None:
    assert {check.name for check in CHECKS} - {"a GPU agrees with the CPU"} == {check for _, check, _ in BROKEN}
