"""What a method of one's own may return, and what is said if it returns something else."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from creditgrid.core.errors import TaskError
from creditgrid.core.science.credit_sources import CreditSource
from creditgrid.core.science.forward import Forward
from creditgrid.core.science.functional import Functional
from creditgrid.core.science.network import ResidualMLP
from creditgrid.core.science.random_streams import generator
from creditgrid.core.units.method import Method

L, WIDTH, B = 3, 6, 4
Y = torch.tensor([0, 4, 2, 2])


class Towards(Method):
    """The hidden state's own gradient of a tanh, in the shape that a test asks for."""

    name: ClassVar = "towards"
    shape: ClassVar[Any] = None
    calls: ClassVar[list[int]] = []

    def credit(self, forward: Forward, fitted: Any) -> Tensor:
        assert not fitted
        self.calls.append(forward.states.dim())
        h = forward.states.requires_grad_()
        assert forward.network.branch(0, forward.hiddens[0]).shape == forward.hiddens[0].shape
        (gradient,) = torch.autograd.grad(h.tanh().sum(), h)
        return gradient if self.shape is None else type(self).shape(gradient)


def network() -> ResidualMLP:
    return ResidualMLP(12, WIDTH, 5, L, w2_std=0.3, generator=generator(0, "test")).double().requires_grad_(False)


def credits(method: Method, first: int = 0) -> Tensor:
    x = torch.randn(B, 12, generator=generator(1, "test"), dtype=torch.float64)
    with torch.no_grad():
        logits, hiddens = network()(x, return_hidden=True)
        return CreditSource(method).credits(network(), hiddens, logits, Y, first)


def shaped(shape: Any) -> Method:
    return type("Shaped", (Towards,), {"shape": staticmethod(shape), "__doc__": "Another shape."})()


@pytest.mark.parametrize("first", [0, 1, 2])
def test_the_shape_of_hidden_states_and_all_layers_are_accepted(first: int) -> None:
    wanted = credits(Towards(), first)
    assert wanted.shape == (L - first, B, WIDTH)
    assert not wanted.requires_grad
    assert torch.equal(credits(shaped(lambda a: a.view(-1, B, 2, 3)), first), wanted)
    padded = shaped(lambda a: torch.cat((torch.full((L - len(a), B, WIDTH), 9.0, dtype=a.dtype), a)))
    assert torch.equal(credits(padded, first), wanted)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        (lambda a: a[0], r"has the shape \(4, 6\): return a tensor \(3, 4, 6\)"),
        (lambda a: a.mean(-1), r"has the shape \(3, 4\)"),
        (lambda a: a[:, :, :5], r"has the shape \(3, 4, 5\)"),
        (lambda a: a[1:], r"has the shape \(2, 4, 6\)"),
        (lambda a: a.tolist(), "is a list"),
    ],
)
def test_another_shape_is_an_error_that_names_the_method(shape: Any, message: str) -> None:
    with pytest.raises(TaskError, match=f"the credit of towards {message}"):
        credits(shaped(shape))


def test_a_method_for_one_network_is_called_once_for_each_of_several() -> None:
    networks = [network() for _ in range(3)]
    for index, each in enumerate(networks):
        with torch.no_grad():
            for name, parameter in each.named_parameters():
                if not name.startswith("embed"):
                    parameter.add_(torch.randn(parameter.shape, generator=generator(index, "apart")), alpha=0.2)
    stacked = {name: torch.stack([n.state_dict()[name] for n in networks]) for name in networks[0].state_dict()}
    together: Functional = networks[0].with_parameters(stacked.__getitem__)
    x = torch.randn(B, 12, generator=generator(1, "test"), dtype=torch.float64)
    with torch.no_grad():
        hiddens = together.hiddens(networks[0].embedding(x).expand(3, B, WIDTH))
        logits = together.head(hiddens[-1])
        Towards.calls.clear()
        found = CreditSource(Towards()).credits(together, hiddens, logits, Y, 1)
        assert Towards.calls == [3, 3, 3]
        for index, each in enumerate(networks):
            own_logits, own = each(x, return_hidden=True)
            alone = CreditSource(Towards()).credits(each, own, own_logits, Y, 1)
            torch.testing.assert_close(found[:, index], alone)
