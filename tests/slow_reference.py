"""Slow, obvious versions of the science, to compare the fast ones with: float64, one sample and one step at a time.

Nothing here imports what it checks. Networks and estimators are dicts of parameters by state-dict name; a sample is a
vector. Autograd differentiates the formula of one sample.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TypeAlias

import torch
from torch import Tensor, nn

Parameters: TypeAlias = dict[str, Tensor]


def parameters_of(module: nn.Module) -> Parameters:
    """A float64 copy of a module's parameters, to differentiate by."""
    return {name: tensor.detach().double().clone().requires_grad_() for name, tensor in module.state_dict().items()}


def linear(p: Parameters, name: str, v: Tensor) -> Tensor:
    return p[f"{name}.weight"] @ v + p[f"{name}.bias"]


def layer_norm(p: Parameters, name: str, v: Tensor) -> Tensor:
    centred = v - v.mean()
    return centred / torch.sqrt((centred**2).mean() + 1e-5) * p[f"{name}.weight"] + p[f"{name}.bias"]


def gelu(v: Tensor) -> Tensor:
    return v * 0.5 * (1 + torch.erf(v / math.sqrt(2)))


def rms(v: Tensor) -> Tensor:
    return torch.sqrt((v**2).mean()) + 1e-6


def cross_entropy(logits: Tensor, label: int) -> Tensor:
    return torch.log(torch.exp(logits).sum()) - logits[label]


def gradient(of: Callable[[Tensor], Tensor], at: Tensor) -> Tensor:
    leaf = at.detach().clone().requires_grad_()
    return torch.autograd.grad(of(leaf), leaf)[0]


class SlowNetwork:
    """The residual MLP on one flattened image x (D,)."""

    def __init__(self, p: Parameters, residual_add: bool = True) -> None:
        self.p = p
        self.residual_add = residual_add
        self.depth = 1 + max(int(name.split(".")[1]) for name in p if name.startswith("blocks."))

    def branch(self, h: Tensor, layer: int) -> Tensor:
        block = f"blocks.{layer}"
        return linear(self.p, f"{block}.w2", gelu(linear(self.p, f"{block}.w1", layer_norm(self.p, f"{block}.ln", h))))

    def hiddens(self, x: Tensor) -> list[Tensor]:
        found = [linear(self.p, "embed", x.double())]
        for layer in range(self.depth):
            branch = self.branch(found[-1], layer)
            found.append(found[-1] + branch if self.residual_add else branch)
        return found

    def head(self, h: Tensor) -> Tensor:
        return linear(self.p, "out_head", layer_norm(self.p, "out_ln", h))

    def from_layer(self, h: Tensor, layer: int) -> Tensor:
        for index in range(layer, self.depth):
            branch = self.branch(h, index)
            h = h + branch if self.residual_add else branch
        return self.head(h)

    def logits(self, x: Tensor) -> Tensor:
        return self.head(self.hiddens(x)[-1])

    def error(self, x: Tensor, label: int) -> Tensor:
        """e_T = softmax(logits) - onehot(y)."""
        powers = torch.exp(self.logits(x))
        error = powers / powers.sum()
        return torch.stack([error[c] - (1 if c == label else 0) for c in range(len(error))]).detach()

    def loss_gradient(self, x: Tensor, label: int, layer: int) -> Tensor:
        """∂CE/∂h_layer of this sample; layer L is δ_L."""
        return gradient(lambda h: cross_entropy(self.from_layer(h, layer), label), self.hiddens(x)[layer])


def estimate(p: Parameters, h: Tensor, t: float, s: Tensor) -> Tensor:
    """The estimator's output (out_dim,) for one sample: concatenate, then three times Linear and GELU, then Linear."""
    frequencies = [math.exp(-math.log(10000) * i / 16) for i in range(16)]
    time = [math.sin(t * f) for f in frequencies] + [math.cos(t * f) for f in frequencies]
    v = torch.cat([layer_norm(p, "ln", h), torch.tensor(time, dtype=torch.float64), s])
    for layer in (0, 2, 4):
        v = gelu(linear(p, f"net.{layer}", v))
    return linear(p, "net.6", v)


def credit(
    method: str,
    network: SlowNetwork,
    x: Tensor,
    label: int,
    layer: int,
    *,
    feedback: Tensor | None = None,
    estimator: Parameters | None = None,
    s_source: str = "e_T",
) -> Tensor:
    """a_layer (d,) of one sample; for oracle_bp at the scale of one sample's own gradient."""
    error, h, t = network.error(x, label), network.hiddens(x)[layer].detach(), layer / network.depth
    if method == "oracle_bp":
        return network.loss_gradient(x, label, layer)
    if method == "dfa":
        assert feedback is not None
        return feedback[layer].double() @ error
    assert estimator is not None
    if method == "vec":
        return estimate(estimator, h, t, error).detach()
    if method == "state_bridge":
        return gradient(lambda state: cross_entropy(network.head(estimate(estimator, state, t, error)), label), h)
    s = error if s_source == "e_T" else network.loss_gradient(x, label, network.depth)
    return gradient(lambda state: estimate(estimator, state, t, s)[0], h)


def local_gradients(
    network: SlowNetwork,
    xs: Tensor,
    labels: Sequence[int],
    credits: Tensor,
    blocks: Sequence[int],
    *,
    update_head: bool,
    normalise: bool = False,
    rule: str = "inner_product",
    kappa: float | None = None,
) -> Parameters:
    """The gradients of the local losses, one loss at a time; ``credits`` are (L, b, d)."""
    samples = [[h.detach() for h in network.hiddens(x)] for x in xs]
    losses: list[Tensor] = []
    for layer in blocks:
        of_samples = []
        for hiddens, a in zip(samples, credits[layer].double(), strict=True):
            own = a / rms(a) if normalise and rule != "target_shift" else a  # whose loss normalises by itself
            of_samples.append(rule_loss(rule, network, hiddens, layer, own, kappa))
        losses.append(torch.stack(of_samples).sum() / len(samples))
    if update_head:
        heads = [
            cross_entropy(network.head(hiddens[-1]), label) for hiddens, label in zip(samples, labels, strict=True)
        ]
        losses.append(torch.stack(heads).sum() / len(samples))
    found: Parameters = {}
    for loss in losses:
        gradients = torch.autograd.grad(loss, list(network.p.values()), allow_unused=True)
        found |= {name: g for name, g in zip(network.p, gradients, strict=True) if g is not None}
    return found


def step(network: SlowNetwork, gradients: Parameters, eta: float, radius: float | None = None) -> SlowNetwork:
    """A copy of the network after p <- p - η ∇, which is shortened if it is longer than the radius."""
    if radius is not None:
        length = eta * math.sqrt(sum((g**2).sum().item() for g in gradients.values()))
        eta *= min(1.0, radius / length) if length > 0 else 1.0
    stepped = {name: p.detach() - eta * gradients[name] if name in gradients else p for name, p in network.p.items()}
    return SlowNetwork(stepped, network.residual_add)


def loss_and_accuracy(network: SlowNetwork, xs: Tensor, labels: Sequence[int]) -> tuple[float, float]:
    losses, hits = [], []
    for x, label in zip(xs, labels, strict=True):
        logits = network.logits(x).detach()
        losses.append(cross_entropy(logits, label).item())
        hits.append(int(logits.argmax()) == label)
    return sum(losses) / len(losses), sum(hits) / len(hits)


def unit(gaussian: Tensor) -> Tensor:
    """A direction of unit length (d,): a Gaussian vector divided by its Euclidean norm + 1e-8."""
    return gaussian / (math.sqrt(sum(number**2 for number in gaussian.tolist())) + 1e-8)


def slope_along(network: SlowNetwork, x: Tensor, label: int, layer: int, v: Tensor, eps: float) -> float:
    """The central difference of one sample's loss along v, run forward from h_layer."""
    h = network.hiddens(x)[layer].detach()
    ahead = cross_entropy(network.from_layer(h + eps * v, layer), label)
    behind = cross_entropy(network.from_layer(h - eps * v, layer), label)
    return (ahead.item() - behind.item()) / (2 * eps)


def vec_loss(
    a: Parameters,
    network: SlowNetwork,
    xs: Tensor,
    labels: Sequence[int],
    *,
    layer: int,
    gaussians: Tensor,
    eps: float,
) -> Tensor:
    """mean_b ‖A(h_L, 1, e_T) - δ_L‖² + (1/M) Σ_j mean_b (⟨A(h_l, t_l, e_T), v_j⟩ - g_j)²; gaussians (M, b, d)."""
    at_end, along = [], []
    for n, (x, label) in enumerate(zip(xs, labels, strict=True)):
        states, error = [state.detach() for state in network.hiddens(x)], network.error(x, label)
        delta = network.loss_gradient(x, label, network.depth)
        at_end.append(((estimate(a, states[-1], 1.0, error) - delta) ** 2).sum())
        field = estimate(a, states[layer], layer / network.depth, error)
        for gaussian in gaussians:
            v = unit(gaussian[n])
            along.append((torch.dot(field, v) - slope_along(network, x, label, layer, v, eps)) ** 2)
    return torch.stack(at_end).mean() + torch.stack(along).mean()


def scalar_cb_loss(
    v_and_average: tuple[Parameters, Parameters],
    network: SlowNetwork,
    xs: Tensor,
    labels: Sequence[int],
    noise: Tensor,
    *,
    sigma: float,
    temperature: float,
    term_grad_weight: float,
    s_source: str,
) -> Tensor:
    """Noise (L, K, b, d); one sample, then one layer, then one draw at a time."""
    v, average = v_and_average
    depth = network.depth
    total = torch.zeros((), dtype=torch.float64)
    for i, (x, label) in enumerate(zip(xs, labels, strict=True)):
        hiddens = [h.detach() for h in network.hiddens(x)]
        delta = network.loss_gradient(x, label, depth)
        s = network.error(x, label) if s_source == "e_T" else delta
        last = hiddens[-1].clone().requires_grad_()
        value = estimate(v, last, 1.0, s)[0]
        total = total + (value - cross_entropy(network.logits(x), label).detach()) ** 2
        for layer in range(depth):
            weights = []
            for xi in noise[layer, :, i]:
                near = estimate(average, hiddens[layer + 1] + sigma * xi, (layer + 1) / depth, s)[0].detach()
                weights.append(math.exp(-near.item() / temperature))
            target = -temperature * math.log(sum(weights) / len(weights))
            total = total + (estimate(v, hiddens[layer], layer / depth, s)[0] - target) ** 2 / depth
        (slope,) = torch.autograd.grad(value, last, create_graph=True)
        total = total + term_grad_weight * ((slope - delta) ** 2).sum()
    return total / len(xs)


def state_bridge_loss(p: Parameters, network: SlowNetwork, xs: Tensor, labels: Sequence[int]) -> Tensor:
    """One sample, then one layer at a time."""
    total = torch.zeros((), dtype=torch.float64)
    for x, label in zip(xs, labels, strict=True):
        hiddens, error = [h.detach() for h in network.hiddens(x)], network.error(x, label)
        length = math.sqrt(float((hiddens[-1] ** 2).sum()))
        for layer in range(network.depth):
            miss = (estimate(p, hiddens[layer], layer / network.depth, error) - hiddens[-1]) / max(length, 1.0)
            total = total + (miss**2).sum() / network.depth
    return total / len(xs)


def rule_loss(
    rule: str, network: SlowNetwork, hiddens: Sequence[Tensor], layer: int, a: Tensor, kappa: float | None
) -> Tensor:
    """The local loss of one sample at one block: h_0 … h_L and its credit a (d,)."""
    out = network.branch(hiddens[layer], layer)
    if rule == "inner_product":
        return (out * a).sum()
    if rule == "cosine":
        lengths = [max(math.sqrt(float((v.detach() ** 2).sum())), 1e-12) for v in (out, a)]
        if lengths[0] > 1e-12:  # the length is differentiated, but where it is held by its floor
            return (out * a).sum() / (torch.sqrt((out**2).sum()) * lengths[1])
        return (out * a).sum() / (lengths[0] * lengths[1])
    assert rule == "target_shift"
    assert kappa is not None
    prediction = hiddens[layer] + out if network.residual_add else out
    target = (hiddens[layer + 1] - kappa * a / rms(a)).detach()
    return ((prediction - target) ** 2).sum() / 2


def norm_of(gradients: Parameters) -> float:
    return math.sqrt(sum(float((g**2).sum()) for g in gradients.values()))


def clipped(gradients: Parameters) -> Parameters:
    """Scaled down to norm 1 if longer, as by torch's clipping, which adds 1e-6."""
    norm = norm_of(gradients)
    return {name: g / (norm + 1e-6) for name, g in gradients.items()} if norm > 1 else gradients


class AdamW:
    """AdamW of some parameters, with a cosine schedule of its own that is stepped once an epoch."""

    def __init__(self, p: Parameters, names: Sequence[str], lr: float, weight_decay: float, epochs: int) -> None:
        self.p, self.names, self.lr, self.weight_decay, self.epochs = p, list(names), lr, weight_decay, epochs
        self.count, self.epoch = 0, 0
        self.first = {name: torch.zeros_like(p[name]) for name in self.names}
        self.second = {name: torch.zeros_like(p[name]) for name in self.names}

    def step(self, gradients: Parameters) -> None:
        """One step in place; there is a gradient for every parameter."""
        assert set(gradients) == set(self.names)
        eta = self.lr * (1 + math.cos(math.pi * self.epoch / self.epochs)) / 2
        self.count += 1
        with torch.no_grad():
            for name, g in gradients.items():
                self.first[name] = 0.9 * self.first[name] + 0.1 * g
                self.second[name] = 0.999 * self.second[name] + 0.001 * g**2
                mean = self.first[name] / (1 - 0.9**self.count)
                spread = torch.sqrt(self.second[name] / (1 - 0.999**self.count))
                self.p[name] -= eta * self.weight_decay * self.p[name] + eta * mean / (spread + 1e-8)


class Adam:
    """Adam with the whole gradient scaled down to norm 1 where it is longer, unless ``clip`` is false."""

    def __init__(self, p: Parameters, lr: float, *, clip: bool = True) -> None:
        self.p, self.lr, self.count, self.clip = p, lr, 0, clip
        self.first = {name: torch.zeros_like(tensor) for name, tensor in p.items()}
        self.second = {name: torch.zeros_like(tensor) for name, tensor in p.items()}

    def step(self, loss: Tensor) -> float:
        """One step in place; the gradient's norm before clipping."""
        gradients = dict(zip(self.p, torch.autograd.grad(loss, list(self.p.values())), strict=True))
        norm = norm_of(gradients)
        self.count += 1
        with torch.no_grad():
            for name, g in (clipped(gradients) if self.clip else gradients).items():
                self.first[name] = 0.9 * self.first[name] + 0.1 * g
                self.second[name] = 0.999 * self.second[name] + 0.001 * g**2
                mean = self.first[name] / (1 - 0.9**self.count)
                spread = torch.sqrt(self.second[name] / (1 - 0.999**self.count))
                self.p[name] -= self.lr * mean / (spread + 1e-8)
        return norm
