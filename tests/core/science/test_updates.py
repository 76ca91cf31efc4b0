from __future__ import annotations

from typing import Any, ClassVar

import pytest
import slow_reference as slow
import torch
from credit_kit import COSINE, INNER, RULES, SHIFT, kappa_of
from torch import Tensor

from creditgrid.core.errors import TaskError
from creditgrid.core.science.network import ResidualMLP
from creditgrid.core.science.per_sample import normalise_credit
from creditgrid.core.science.random_streams import generator
from creditgrid.core.science.updates import (
    local_direction,
    noise,
    output_gradient,
    update_blocks,
)
from creditgrid.core.units.known import installed
from creditgrid.core.units.rule import Rule

SMALL_SHIFT = installed().rule("target_shift").of({"kappa": 1e-3})
L, D, WIDTH, C, B = 3, 12, 6, 5, 4
Y = torch.tensor([0, 4, 2, 2])


def _draw(*shape: int, index: int = 2) -> Tensor:
    return torch.randn(shape, generator=generator(index, "test"), dtype=torch.float64)


def _network(residual_add: bool = True) -> ResidualMLP:
    network = ResidualMLP(D, WIDTH, C, L, residual_add, 0.3, generator=generator(0, "test")).double()
    draws = generator(1, "test")
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=draws, dtype=torch.float64), alpha=0.3)
    return network


@pytest.mark.parametrize(
    ("update_range", "num_blocks", "blocks"),
    [
        ("last1", 4, [3]),
        ("last2", 4, [2, 3]),
        ("all", 4, [0, 1, 2, 3]),
        ("last1", 1, [0]),
        ("last2", 1, [0]),
        ("last2", 2, [0, 1]),
    ],
)
def test_update_blocks(update_range: Any, num_blocks: int, blocks: list[int]) -> None:
    assert list(update_blocks(update_range, num_blocks)) == blocks


def test_normalised_credits_have_rms_one_unless_they_vanish() -> None:
    credit = _draw(2, 3, 8) * torch.tensor([1e-3, 1.0, 1e4], dtype=torch.float64)[:, None]
    credit[1, 2] = 0
    normalised = normalise_credit(credit)
    for layer in range(2):
        for i in range(3):
            torch.testing.assert_close(normalised[layer, i], credit[layer, i] / slow.rms(credit[layer, i]))
    assert torch.equal(normalised[1, 2], torch.zeros(8, dtype=torch.float64))


@pytest.mark.parametrize("residual_add", [True, False])
@pytest.mark.parametrize(
    ("blocks", "update_head"),
    [([2], False), ([2], True), ([1, 2], False), ([1, 2], True), ([0, 1, 2], False), ([0, 1, 2], True), ([], True)],
)
def test_directions_against_one_sample_at_a_time(residual_add: bool, blocks: list[int], update_head: bool) -> None:
    network, x, credits = _network(residual_add), _draw(B, D), _draw(L, B, WIDTH, index=3)
    _, hiddens = network(x, return_hidden=True)

    found = local_direction(network, hiddens, credits, Y, blocks, update_head=update_head, rule=INNER)

    reference = slow.SlowNetwork(slow.parameters_of(network), residual_add)
    expected = slow.local_gradients(reference, x, Y.tolist(), credits, blocks, update_head=update_head)
    assert found.keys() == expected.keys()
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("frozen", [True, False])
def test_the_network_is_left_as_it_was(frozen: bool) -> None:
    network = _network().requires_grad_(not frozen)
    before = {name: parameter.detach().clone() for name, parameter in network.named_parameters()}
    with torch.no_grad():  # directions are wanted by callers that run everything else without a graph
        _, hiddens = network(_draw(B, D), return_hidden=True)
        direction = local_direction(
            network, hiddens, _draw(L, B, WIDTH, index=3), Y, [1, 2], update_head=True, rule=INNER
        )
    assert not any(gradient.requires_grad for gradient in direction.values())
    for name, parameter in network.named_parameters():
        assert torch.equal(parameter, before[name])
        assert parameter.grad is None
        assert parameter.requires_grad is not frozen


# -- rules ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("residual_add", [True, False])
@pytest.mark.parametrize("rule", RULES)
def test_each_rule_s_directions_against_autograd_of_its_loss(residual_add: bool, rule: Rule) -> None:
    network, x, credits = _network(residual_add), _draw(B, D), _draw(L, B, WIDTH, index=3)
    credits[1, 2] *= 1e-3
    _, hiddens = network(x, return_hidden=True)
    found = local_direction(network, hiddens, credits, Y, range(L), update_head=True, rule=rule)
    reference = slow.SlowNetwork(slow.parameters_of(network), residual_add)
    expected = slow.local_gradients(
        reference, x, Y.tolist(), credits, range(L), update_head=True, rule=rule.name, kappa=kappa_of(rule)
    )
    assert found.keys() == expected.keys()
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("residual_add", [True, False])
@pytest.mark.parametrize("rule", RULES)
def test_output_gradient_against_autograd_of_the_literal_loss(residual_add: bool, rule: Rule) -> None:
    h, branch, credit = _draw(B, WIDTH, index=5), _draw(B, WIDTH), 0.1 * _draw(B, WIDTH, index=3)
    credit[0] *= 1e-6
    # What the network computed is what is predicted, before any step.
    following = h + branch if residual_add else branch
    leaf = branch.clone().requires_grad_()
    if rule == INNER:
        loss = (leaf * credit).sum(-1).mean()
    elif rule == COSINE:
        loss = torch.nn.functional.cosine_similarity(leaf, credit, dim=-1, eps=1e-12).mean()
    else:
        unit = credit / (credit.square().mean(-1, keepdim=True).sqrt() + 1e-6)
        prediction = h + leaf if residual_add else leaf
        loss = 0.5 * (prediction - (following - kappa_of(rule) * unit).detach()).square().sum(-1).mean()
    (expected,) = torch.autograd.grad(loss, leaf)
    torch.testing.assert_close(output_gradient(rule, branch, credit), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("rule", RULES)
def test_output_gradients_of_networks_side_by_side_are_each_one_s_own(rule: Rule) -> None:
    branch, credit = _draw(3, B, WIDTH), _draw(3, B, WIDTH, index=3)
    together = output_gradient(rule, branch, credit)
    for i in range(3):
        torch.testing.assert_close(together[i], output_gradient(rule, branch[i], credit[i]))


@pytest.mark.parametrize("zero", ["branch", "credit", "both"])
def test_the_cosine_of_a_zero_vector_is_that_of_floored_lengths(zero: str) -> None:
    branch, credit = _draw(2, WIDTH), _draw(2, WIDTH, index=3)
    if zero in ("branch", "both"):
        branch[0] = 0
    if zero in ("credit", "both"):
        credit[0] = 0
    leaf = branch.clone().requires_grad_()
    lengths = [v.norm(dim=-1, keepdim=True).clamp_min(1e-12) for v in (leaf, credit)]
    (expected,) = torch.autograd.grad(((leaf / lengths[0]) * (credit / lengths[1])).sum(-1).mean(), leaf)
    found = output_gradient(COSINE, branch, credit)
    assert found.isfinite().all()
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)
    assert found[1].abs().sum() > 0
    if zero == "branch":  # uncapped, as the formula says: a caller may clamp it
        assert found[0].norm().item() == pytest.approx(1e12 / 2)
    else:
        assert found[0].abs().sum() == 0


def test_a_fresh_network_s_cosine_direction_is_finite_in_single_precision() -> None:
    # With w2_std 0 the branch is exactly 0 everywhere.
    network = ResidualMLP(D, WIDTH, C, L, w2_std=0.0, generator=generator(0, "test"))
    _, hiddens = network(_draw(B, D).float(), return_hidden=True)
    found = local_direction(
        network, hiddens, _draw(L, B, WIDTH, index=3).float(), Y, range(L), update_head=True, rule=COSINE
    )
    assert all(gradient.isfinite().all() for gradient in found.values())


def test_target_shift_keeps_its_digits_in_single_precision() -> None:
    network, x, credits = _network(), _draw(B, D), _draw(L, B, WIDTH, index=3)
    directions = []
    for dtype in (torch.float64, torch.float32):
        typed = network.to(dtype)
        _, hiddens = typed(x.to(dtype), return_hidden=True)
        directions.append(
            local_direction(typed, hiddens, credits.to(dtype), Y, range(L), update_head=False, rule=SMALL_SHIFT)
        )
    for name, exact in directions[0].items():
        torch.testing.assert_close(directions[1][name].double(), exact, rtol=1e-4, atol=1e-8)


def test_target_shift_is_kappa_times_the_normalised_inner_product() -> None:
    network, x, credits = _network(False), _draw(B, D), _draw(L, B, WIDTH, index=3)
    _, hiddens = network(x, return_hidden=True)
    shifted = local_direction(network, hiddens, credits, Y, [0, 2], update_head=False, rule=SHIFT)
    inner = local_direction(network, hiddens, normalise_credit(credits), Y, [0, 2], update_head=False, rule=INNER)
    for name, gradient in shifted.items():
        torch.testing.assert_close(gradient, 0.3 * inner[name])


@pytest.mark.parametrize("blocks", [[2], [1, 2]])
def test_credits_of_the_last_layers_are_enough_for_directions_there(blocks: list[int]) -> None:
    network, x, credits = _network(), _draw(B, D), _draw(L, B, WIDTH, index=3)
    _, hiddens = network(x, return_hidden=True)
    every = local_direction(network, hiddens, credits, Y, blocks, update_head=True, rule=INNER)
    some = local_direction(network, hiddens, credits[blocks[0] :], Y, blocks, update_head=True, rule=INNER)
    assert every.keys() == some.keys()
    assert all(torch.equal(gradient, every[name]) for name, gradient in some.items())


def test_a_rule_that_returns_another_shape_is_named() -> None:
    class Flat(Rule):
        name: ClassVar = "flat"

        def output_gradient(self, branch: Tensor, credit: Tensor) -> Tensor:
            return credit.flatten()

    with pytest.raises(TaskError, match=r"the output gradient of flat is \(24,\): return a tensor \(4, 6\)"):
        output_gradient(Flat(), _draw(B, WIDTH), _draw(B, WIDTH))


# -- noise ---------------------------------------------------------------------------------------------------------

ORDER = [
    *(f"blocks.{n}.{part}.{kind}" for n in range(L) for part in ("ln", "w1", "w2") for kind in ("weight", "bias")),
    "out_ln.weight",
    "out_ln.bias",
    "out_head.weight",
    "out_head.bias",
]


def test_noise_is_one_draw_for_each_parameter_in_state_dict_order() -> None:
    network = _network()
    for step in (0, 3):
        draws = generator(11, "step/noise", step)
        expected = {name: torch.randn(network.state_dict()[name].shape, generator=draws) for name in ORDER}
        found = dict(noise(network, 11, step))
        assert list(found) == ORDER
        assert [name for name in network.state_dict() if not name.startswith("embed.")] == ORDER
        for name, xi in found.items():
            assert xi.dtype == torch.float64  # the network's, of what was drawn in single precision
            assert torch.equal(xi, expected[name].double())
    assert not torch.equal(dict(noise(network, 11, 1))["out_head.bias"], dict(noise(network, 11, 0))["out_head.bias"])
    assert not torch.equal(dict(noise(network, 12, 0))["out_head.bias"], dict(noise(network, 11, 0))["out_head.bias"])


def test_noise_depends_on_no_parameter_s_value_type_or_global_state() -> None:
    first = dict(noise(_network(), 11, 0))
    state = torch.get_rng_state()
    again = dict(noise(_network(False).float().requires_grad_(False), 11, 0))
    assert torch.equal(torch.get_rng_state(), state)
    for name, xi in again.items():
        assert xi.dtype == torch.float32
        assert torch.equal(xi.double(), first[name])


def test_noise_is_drawn_on_the_cpu_wherever_the_network_is() -> None:
    # No accelerator is needed to see where the generator lives: the meta device has none.
    drawn = dict(noise(_network().to("meta"), 11, 0))
    assert {xi.device.type for xi in drawn.values()} == {"meta"}


@pytest.mark.parametrize(("blocks", "update_head"), [([2], False), ([1, 2], True), ([], True), ([0, 1, 2], True)])
def test_updated_parameters_are_in_state_dict_order(blocks: list[int], update_head: bool) -> None:
    wanted = [
        name
        for name in ORDER
        if (name.startswith("out_") and update_head) or any(name.startswith(f"blocks.{n}.") for n in blocks)
    ]
    assert _network().parameter_names(blocks, head=update_head) == wanted
