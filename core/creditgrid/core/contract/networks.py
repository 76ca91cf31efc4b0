"""Checks of networks."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import cached_property

import torch
from torch import Tensor

from creditgrid.core.contract import tiny
from creditgrid.core.contract.checks import Checks, Inapplicable, Violation
from creditgrid.core.contract.random_state import seeded, watched
from creditgrid.core.contract.settings import choices, small
from creditgrid.core.contract.tensors import described, difference, same_bits
from creditgrid.core.science.functional import FunctionalNetwork
from creditgrid.core.science.network import ResidualNetwork
from creditgrid.core.science.random_streams import generator
from creditgrid.core.units.network import Network, Size

CLOSE = 1e-4
WIDTH = 8
IMAGE_SHAPES = ((1, 8, 8), (3, 16, 16), (3, 32, 32))
"""Those that a network is tried on; the first that it can take is used for all checks."""


class BuiltNetwork:
    """A network unit, and small networks that it builds."""

    group = "networks"

    def __init__(self, written: type[Network], device: torch.device | str = "cpu") -> None:
        self.written, self.name, self.device = written, written.name, torch.device(device)

    @cached_property
    def setting(self) -> Network:
        return small(self.written)

    def size(self, setting: Network | None = None, *, residual_add: bool = True) -> Size:
        """A small size that the network can have.

        Raises:
            Violation: it takes none of the images that are tried.
        """
        setting = setting or self.setting
        refused = []
        for shape in IMAGE_SHAPES:
            faults = list(setting.conflicts(shape))
            if not faults:
                return Size(shape, tiny.CLASSES, tiny.BLOCKS, WIDTH, residual_add, tiny.W2_STD)
            refused += [f"{shape}: {detail}" for _, detail in faults]
        raise Violation(f"conflicts() refuses images of every size that is tried: {'; '.join(refused)}")

    def build(self, setting: Network | None = None, *, seed: int = 1, residual_add: bool = True) -> ResidualNetwork:
        """A frozen network in eval mode.

        Raises:
            Violation: it is no ResidualNetwork.
        """
        setting = setting or self.setting
        draws = generator(seed, "contract/network")
        built = setting.build(self.size(setting, residual_add=residual_add), draws)
        if not isinstance(built, ResidualNetwork):
            raise Violation(f"build() gave a {type(built).__name__}, and must give a ResidualNetwork")
        return built.to(self.device).eval().requires_grad_(False)

    @cached_property
    def network(self) -> ResidualNetwork:
        return self.build()

    def hiddens(self, network: ResidualNetwork, size: int = 6) -> tuple[Tensor, list[Tensor], Tensor]:
        """Logits, hidden states and labels of a batch."""
        x, y = tiny.batch(network, size)
        with torch.no_grad():
            logits, hiddens = network(x, return_hidden=True)
        return logits, list(hiddens), y


CHECKS: Checks[BuiltNetwork] = Checks()


@CHECKS.add("it builds a network", why="Trainings start from it.", of="build", basic=True)
def builds(subject: BuiltNetwork) -> Iterator[str]:
    network, size = subject.network, subject.size()
    for name, has, wants in (
        ("num_blocks", network.num_blocks, size.num_blocks),
        ("num_classes", network.num_classes, size.num_classes),
        ("input_dim", network.input_dim, math.prod(size.image_shape)),
        ("residual_add", network.residual_add, True),
        ("len(blocks)", len(network.blocks), size.num_blocks),
    ):
        if has != wants:
            yield f"its {name} is {has}, and must be {wants} for this size"
    for name, parameter in network.named_parameters():
        if parameter.device.type != subject.device.type or parameter.dtype != torch.float32:
            yield f"the parameter {name} is {parameter.dtype} on {parameter.device}"
        elif not parameter.isfinite().all():
            yield f"the parameter {name} is not finite: draw or fill every parameter"


@CHECKS.add("hidden states have the declared shape", why="Credits, costs and feedback matrices have it.", basic=True)
def shapes(subject: BuiltNetwork) -> Iterator[str]:
    network = subject.network
    declared = tuple(subject.setting.hidden_shape(WIDTH))
    if tuple(network.hidden_shape) != declared:
        yield f"hidden_shape({WIDTH}) is {declared}, and its network's is {tuple(network.hidden_shape)}"
        return
    for batch in (6, 1):
        logits, hiddens, _ = subject.hiddens(network, batch)
        if logits.shape != (batch, tiny.CLASSES):
            yield f"its logits are {described(logits)}, and must be {(batch, tiny.CLASSES)}"
        for layer, h in enumerate(hiddens):
            if h.shape != (batch, math.prod(declared)):
                yield f"h_{layer} is {described(h)}, and must be {(batch, math.prod(declared))}"
        if not logits.isfinite().all():
            yield "its logits are not finite for ordinary images"


@CHECKS.add(
    "every draw comes from the generator",
    why="Equal seeds must give equal networks, and no other number may change.",
    of="build",
    quick=True,
)
def deterministic(subject: BuiltNetwork) -> Iterator[str]:
    built, changed = [], list[str]()
    for seed in (1, 2):
        with seeded(seed):
            built.append(dict(subject.build().named_parameters()))
    with watched(changed):
        subject.build()
    for name, parameter in built[0].items():
        if not same_bits(parameter, built[1][name]):
            yield f"two networks of one seed differ in {name}"
    yield from (f"build() changes the global state of {library}" for library in changed)
    other = dict(subject.build(seed=2).named_parameters())
    if all(same_bits(parameter, other[name]) for name, parameter in built[0].items()):
        yield "networks of two seeds are equal"


@CHECKS.add("no sample depends on another", why="Credits, gamma and rho are of each sample by itself.", quick=True)
def independent(subject: BuiltNetwork) -> Iterator[str]:
    network = subject.network
    x, _ = tiny.batch(network)
    with torch.no_grad():
        together, alone = network(x), torch.cat([network(x[i : i + 1]) for i in range(len(x))])
    if (apart := difference(together, alone)) > CLOSE:
        yield f"logits of a batch differ by {apart:.2g} of the largest from those of its samples (a batch norm?)"


@CHECKS.add("the parts make the whole", why="Local steps compute branches and the head by themselves.", of="build")
def parts(subject: BuiltNetwork) -> Iterator[str]:
    for residual_add in (True, False):
        network = subject.build(residual_add=residual_add)
        logits, hiddens, _ = subject.hiddens(network)
        with torch.no_grad():
            for layer, h in enumerate(hiddens):
                found = network.forward_from_layer(h, layer)
                if (apart := difference(found, logits)) > CLOSE:
                    yield f"forward_from_layer(h_{layer}) differs by {apart:.2g} of the largest from the logits"
            for layer in range(network.num_blocks):
                branch = network.branch(layer, hiddens[layer])
                after = hiddens[layer] + branch if residual_add else branch
                if (apart := difference(after, hiddens[layer + 1])) > CLOSE:
                    yield f"h_{layer + 1} is not F_{layer}(h_{layer}){' + h' if residual_add else ''}"


@CHECKS.add("parameters are named by their part", why="A step moves a block, or the head, by these names.", of="build")
def names(subject: BuiltNetwork) -> Iterator[str]:
    network = subject.network
    _, hiddens, _ = subject.hiddens(network)
    own = dict(network.named_parameters())
    for part in (*range(network.num_blocks), None):
        named = network.parameter_names(head=True) if part is None else network.parameter_names([part])
        where = "the head" if part is None else f"block {part}"
        if not named:
            yield f"{where} has no parameters: those of block N are named blocks.N.…, and the embedding's embed…"
            continue
        leaves = {name: tensor.detach().clone().requires_grad_() for name, tensor in own.items()}
        function = network.with_parameters(leaves.__getitem__)
        with torch.enable_grad():
            out = function.head(hiddens[-1]) if part is None else function.branch(part, hiddens[part])
            found = torch.autograd.grad(out.square().sum(), list(leaves.values()), allow_unused=True)
        used = {name for name, gradient in zip(leaves, found, strict=True) if gradient is not None}
        if used - set(named):
            yield f"{where} uses {', '.join(sorted(used - set(named)))}, which is named as another part's"
        for name, gradient in zip(leaves, found, strict=True):
            if gradient is not None and not gradient.isfinite().all():
                yield f"the gradient of {name} is not finite"


@CHECKS.add("batched equals one by one", why="Candidates of a line search are computed side by side.")
def one_by_one(subject: BuiltNetwork) -> Iterator[str]:
    networks = [subject.build(seed=seed) for seed in (1, 2, 3)]
    _, hiddens, _ = subject.hiddens(networks[0])
    own = [dict(network.named_parameters()) for network in networks]
    stacked = {name: torch.stack([of[name] for of in own]) for name in own[0]}
    first = networks[0]
    part_names = [
        *(first.parameter_names([layer]) for layer in range(first.num_blocks)),
        first.parameter_names(head=True),
    ]
    general = FunctionalNetwork(first, stacked.__getitem__, part_names, first.residual_add)
    for what, function in (("with_parameters()", first.with_parameters(stacked.__getitem__)), ("torch.func", general)):
        for layer in range(first.num_blocks + 1):
            h = hiddens[layer]
            last = layer == first.num_blocks
            with torch.no_grad():
                together = function.head(h) if last else function.branch(layer, h)
                alone = torch.stack([n.head(h) if last else n.branch(layer, h) for n in networks])
            if (apart := difference(together, alone)) > CLOSE:
                yield f"{what}: 3 networks side by side differ by {apart:.2g} of the largest from each by itself"


@CHECKS.add("double precision agrees", why="gamma, rho, nudge and dynamics are measured in double precision.")
def double(subject: BuiltNetwork) -> Iterator[str]:
    logits, *_ = subject.hiddens(subject.network)
    precise, *_ = subject.hiddens(subject.build().double())
    if precise.dtype != torch.float64:
        yield f"in double precision its logits are {precise.dtype}"
    elif (apart := difference(logits.double(), precise)) > CLOSE:
        yield f"its logits in single and in double precision differ by {apart:.2g} of the largest"


@CHECKS.add("it is built again from its tensors", why="A checkpoint is a file of tensors.", of="size_of")
def stored(subject: BuiltNetwork) -> Iterator[str]:
    network, size = subject.network, subject.size()
    state = network.state_dict()
    arrays = {name: tensor.cpu().numpy() for name, tensor in state.items()}
    again = subject.setting.size_of(arrays, residual_add=True)
    kept = ("num_classes", "num_blocks", "d_hidden", "residual_add")
    if any(getattr(again, name) != getattr(size, name) for name in kept):
        yield f"size_of() gives {again}, and the network was built with {size}"
        return
    with torch.device("meta"):
        empty = subject.setting.build(again, None)
    empty.load_state_dict(state, assign=True)
    here, *_ = subject.hiddens(network)
    there, *_ = subject.hiddens(empty.eval().requires_grad_(False))
    if not same_bits(here, there):
        yield "a network that is built on the meta device and gets its tensors has other logits"


@CHECKS.add("every value of a choice works", why="Each may be on an axis.", of="build")
def other_settings(subject: BuiltNetwork) -> Iterator[str]:
    for setting in choices(subject.written):
        logits, *_ = subject.hiddens(subject.build(setting))
        if not logits.isfinite().all():
            yield f"its logits are not finite with {setting!r}"


@CHECKS.add("its counts are right", why="Plans predict time, memory and disk from them.", of="shape")
def counts(subject: BuiltNetwork) -> Iterator[str]:
    shape = subject.setting.shape(subject.size())
    if shape is None:
        raise Inapplicable("it says nothing of its costs, so plans do not know its time")
    network = subject.network
    own = {name: p.numel() for name, p in network.named_parameters()}
    blocks = [sum(own[name] for name in network.parameter_names([layer])) for layer in range(network.num_blocks)]
    head = sum(own[name] for name in network.parameter_names(head=True))
    for name, said, true in (
        ("hidden", shape.hidden, network.hidden_size),
        ("input_dim", shape.input_dim, network.input_dim),
        ("block_parameters", shape.block_parameters, max(blocks)),
        ("head_parameters", shape.head_parameters, head),
        ("embed_parameters", shape.embed_parameters, sum(own.values()) - sum(blocks) - head),
    ):
        if said != true:
            yield f"shape() says {name} {said:,}, and the network has {true:,}"


@CHECKS.add("a GPU agrees with the CPU", why="A cluster may have GPUs.")
def on_gpu(subject: BuiltNetwork) -> Iterator[str]:
    if not torch.cuda.is_available():
        raise Inapplicable("there is no GPU here")
    here, *_ = subject.hiddens(subject.network)
    there, *_ = subject.hiddens(BuiltNetwork(subject.written, "cuda").network)
    if (apart := difference(here, there.cpu())) > 1e-2:
        yield f"its logits on the GPU differ from those on the CPU by {apart:.2g} of the largest"
