"""Every network that ships: what it builds, that it can be built again, its counts, and networks side by side."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from creditgrid.core.errors import TaskError
from creditgrid.core.networks.conv import Conv
from creditgrid.core.networks.residual_mlp import ResidualMLP
from creditgrid.core.networks.transformer import Transformer
from creditgrid.core.science import functional
from creditgrid.core.science.from_artifacts import checkpoint_network
from creditgrid.core.science.functional import FunctionalNetwork
from creditgrid.core.science.network import ResidualNetwork
from creditgrid.core.science.random_streams import generator
from creditgrid.core.units.known import installed
from creditgrid.core.units.network import Network, Size, network_of

SIZE = Size((3, 8, 8), 5, 3, 6, True, 0.3)
B, S = 4, 3
NETWORKS: dict[str, Network] = {
    "residual_mlp": ResidualMLP(),
    "relu without biases": ResidualMLP(activation="relu", bias=False),
    "post-norm": ResidualMLP(activation="tanh", norm="post", expansion=2),
    "no norm": ResidualMLP(activation="silu", norm="none", expansion=3, bias=False),
    "conv": Conv(grid=4),
    "pointwise conv": Conv(grid=2, kernel=1),
    "transformer": Transformer(grid=4, heads=2, head_width=5),
}
ALL = pytest.mark.parametrize("unit", NETWORKS.values(), ids=NETWORKS.keys())


def built(unit: Network, index: int = 0, *, residual_add: bool = True) -> ResidualNetwork:
    """A network in double precision, whose parameters all differ from their first values."""
    network = unit.build(SIZE._replace(residual_add=residual_add), generator(index, "test")).double()
    draws = generator(index, "perturbed")
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=draws, dtype=torch.float64), alpha=0.3)
    return network.requires_grad_(False)


def drawn(*shape: int, index: int = 2) -> Tensor:
    return torch.randn(shape, generator=generator(index, "test"), dtype=torch.float64)


def general(network: ResidualNetwork, parameter: Any) -> FunctionalNetwork:
    """The function that serves any network, also of one that has a faster one."""
    found = ResidualNetwork.with_parameters(network, parameter)
    assert isinstance(found, FunctionalNetwork)
    return found


def test_all_that_ship_are_here() -> None:
    assert {unit.name for unit in NETWORKS.values()} == set(installed().of("networks"))
    assert not [name for group, name in installed().broken if group == "networks"]


@ALL
def test_shapes(unit: Network) -> None:
    network = built(unit)
    assert network.hidden_shape == unit.hidden_shape(SIZE.d_hidden)
    assert network.hidden_size == math.prod(network.hidden_shape)
    logits, hiddens = network(drawn(2, B, 192), return_hidden=True)
    assert [h.shape for h in hiddens] == [(2, B, network.hidden_size)] * 4
    assert logits.shape == (2, B, 5)
    assert (network.dtype, network.input_dim, network.num_classes) == (torch.float64, 192, 5)
    for layer, h in enumerate(hiddens):
        torch.testing.assert_close(network.forward_from_layer(h, layer), logits)
    with pytest.raises(ValueError, match="outside 0…3"):
        network.forward_from_layer(hiddens[0], 4)


@ALL
@pytest.mark.parametrize("residual_add", [True, False])
def test_no_sample_depends_on_another(unit: Network, residual_add: bool) -> None:
    network, x = built(unit, residual_add=residual_add), drawn(B, 192)
    logits, hiddens = network(x, return_hidden=True)
    for i in range(B):
        alone, own = network(x[i : i + 1], return_hidden=True)
        torch.testing.assert_close(alone[0], logits[i])
        for layer in range(4):
            torch.testing.assert_close(own[layer][0], hiddens[layer][i])
        step = network.branch(1, hiddens[1][i : i + 1])[0]
        torch.testing.assert_close(hiddens[1][i] + step if residual_add else step, hiddens[2][i])


@ALL
def test_draws_come_from_the_generator_alone(unit: Network) -> None:
    before = torch.get_rng_state()
    one, same, other = (unit.build(SIZE, generator(index, "init")) for index in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), before)
    for name, parameter in one.named_parameters():
        assert parameter.dtype == torch.float32
        assert torch.equal(parameter, same.get_parameter(name))
        # Norms start at ones and zeros, and the last layers' biases at zero.
        constant = len(parameter.unique()) == 1
        assert torch.equal(parameter, other.get_parameter(name)) == constant


@ALL
def test_a_branch_starts_as_small_as_its_last_layer(unit: Network) -> None:
    if getattr(unit, "norm", None) == "post":
        pytest.skip("skipped: a norm comes last")
    network = unit.build(SIZE._replace(w2_std=0.0), generator(0, "init"))
    _, hiddens = network(drawn(B, 192).float(), return_hidden=True)
    assert all(torch.equal(h, hiddens[0]) for h in hiddens)
    weight = unit.build(SIZE._replace(w2_std=0.02, d_hidden=32), generator(0, "init")).get_parameter(
        "blocks.1.w2.weight"
    )
    assert weight.std().item() == pytest.approx(0.02, rel=0.1)


@ALL
@pytest.mark.parametrize("residual_add", [True, False])
def test_a_checkpoint_is_built_again(unit: Network, residual_add: bool) -> None:
    network = unit.build(SIZE._replace(residual_add=residual_add), generator(0, "init"))
    arrays = {name: tensor.numpy() for name, tensor in network.state_dict().items()}
    before = torch.get_rng_state()
    again = checkpoint_network(arrays, torch.device("cpu"), residual_add=residual_add, network=unit)
    assert torch.equal(torch.get_rng_state(), before)
    x = drawn(B, 192).float()
    assert torch.equal(again(x), network(x))
    assert not any(tensor.requires_grad or tensor.is_meta for tensor in again.state_dict(keep_vars=True).values())
    del arrays["blocks.1.w2.weight"]
    with pytest.raises(TaskError, match=r"(?s)do not fit the network .*blocks\.1\.w2\.weight"):
        checkpoint_network(arrays, torch.device("cpu"), residual_add=residual_add, network=unit)


def test_a_checkpoint_of_another_network_is_refused() -> None:
    network = ResidualMLP().build(SIZE, generator(0, "init"))
    arrays = {name: tensor.numpy() for name, tensor in network.state_dict().items()}
    with pytest.raises(TaskError, match="not one of the network conv"):
        checkpoint_network(arrays, torch.device("cpu"), residual_add=True, network=Conv())


@ALL
def test_parameters_belong_to_the_embedding_a_block_or_the_head(unit: Network) -> None:
    network = built(unit)
    names = [name for name, _ in network.named_parameters()]
    parts = [network.parameter_names([block]) for block in range(3)] + [network.parameter_names(head=True)]
    assert all(parts)
    assert [name for name in names if not name.startswith("embed")] == [name for part in parts for name in part]
    assert network.parameter_names([2, 0], head=True) == [*parts[0], *parts[2], *parts[3]]
    assert network.parameter_names() == []


@ALL
def test_counts(unit: Network) -> None:
    network, shape = built(unit), unit.shape(SIZE)
    assert shape is not None
    assert (shape.input_dim, shape.hidden, shape.blocks, shape.classes) == (192, network.hidden_size, 3, 5)
    assert shape.parameters == sum(parameter.numel() for parameter in network.parameters())
    of_block = sum(network.get_parameter(name).numel() for name in network.parameter_names([0]))
    assert shape.block_parameters == of_block
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        network(drawn(1, 192))
    assert counter.get_total_flops() == shape.embed_flops + 3 * shape.branch_flops + shape.head_flops


@ALL
@pytest.mark.parametrize("residual_add", [True, False])
@pytest.mark.parametrize(("shared", "at_a_time"), [(True, None), (False, None), (False, 1)])
def test_side_by_side_is_one_by_one(
    unit: Network, residual_add: bool, shared: bool, at_a_time: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Values and gradients; both of the general function, as on a GPU too, and of the network's own."""
    monkeypatch.setattr(functional, "ON_CPU", at_a_time)
    networks = [built(unit, index, residual_add=residual_add) for index in range(S)]
    n = networks[0].hidden_size
    h, y = drawn(B, n) if shared else drawn(S, B, n), drawn(S, B, 5, index=3)
    states = [dict(network.named_parameters()) for network in networks]
    stacked = {name: torch.stack([state[name] for state in states]).requires_grad_() for name in states[0]}
    for together in (general(networks[0], stacked.__getitem__), networks[0].with_parameters(stacked.__getitem__)):
        hiddens = together.hiddens(h)
        logits = together.head(hiddens[-1])
        names = networks[0].parameter_names(range(3), head=True)
        gradients = torch.autograd.grad((logits * y).sum(), [stacked[name] for name in names])
        part = together.part(slice(1, 3))
        torch.testing.assert_close(part.branch(1, hiddens[1][1:]), together.branch(1, hiddens[1])[1:])
        for i, network in enumerate(networks):
            own = h if shared else h[i]
            network.requires_grad_(True)
            expected = network.forward_from_layer(own, 0)
            torch.testing.assert_close(logits[i], expected, rtol=1e-10, atol=1e-12)
            leaves = [network.get_parameter(name) for name in names]
            wanted = torch.autograd.grad((expected * y[i]).sum(), leaves)
            for found, gradient in zip(gradients, wanted, strict=True):
                torch.testing.assert_close(found[i], gradient, rtol=1e-9, atol=1e-11)
            network.requires_grad_(False)


@ALL
def test_one_network_as_a_function_is_the_network(unit: Network) -> None:
    network, other = built(unit), built(unit, 1)
    x = drawn(B, 192)
    logits, hiddens = network(x, return_hidden=True)
    for function in (general(other, network.get_parameter), other.with_parameters(network.get_parameter)):
        for found, expected in zip(function.hiddens(hiddens[0]), hiddens, strict=True):
            assert torch.equal(found, expected)
        assert torch.equal(function.head(hiddens[-1]), logits)


@ALL
def test_gradients_are_deterministic_operations(unit: Network) -> None:
    """Calls run in torch's deterministic mode, which refuses the others on a GPU; here at least nothing warns."""
    network = unit.build(SIZE, generator(0, "init"))
    torch.use_deterministic_algorithms(True)
    try:
        found = []
        for _ in range(2):
            network.zero_grad()
            network(drawn(B, 192).float()).square().sum().backward()
            found.append([parameter.grad for parameter in network.parameters()])
        assert all(torch.equal(a, b) for a, b in zip(*found, strict=True) if a is not None and b is not None)
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize(
    ("unit", "blamed"), [(Conv(grid=3), "grid"), (Transformer(grid=5), "grid"), (Conv(kernel=2), "kernel")]
)
def test_what_does_not_fit_the_images(unit: Network, blamed: str) -> None:
    assert [name for name, _ in unit.conflicts((3, 8, 8))] == [blamed]
    with pytest.raises(TaskError):
        unit.build(SIZE, generator(0, "init"))


@pytest.mark.parametrize(
    ("params", "expected"),
    [
        ({}, ResidualMLP()),
        (
            {"network": "residual_mlp", "activation": "relu", "grid": None, "d_hidden": 6},
            ResidualMLP(activation="relu"),
        ),
        ({"network": {"name": "conv", "grid": 4}}, Conv(grid=4)),
        ({"network": "transformer", "heads": 2, "norm": None}, Transformer(heads=2)),
    ],
)
def test_a_task_names_its_network(params: dict[str, Any], expected: Network) -> None:
    assert network_of(params, installed()) == expected


def test_a_training_planned_with_another_version_of_a_network_is_refused() -> None:
    params = {"network": {"name": "conv", "version": 3}}
    with pytest.raises(TaskError, match="planned with version 3 of the network conv, which is 1 here"):
        network_of(params, installed())
