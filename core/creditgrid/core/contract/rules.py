"""Checks of update rules."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from creditgrid.core.contract.checks import Checks, Inapplicable, Violation
from creditgrid.core.contract.random_state import seeded, watched
from creditgrid.core.contract.settings import choices, small
from creditgrid.core.contract.tensors import described, difference, same_bits
from creditgrid.core.science.random_streams import generator
from creditgrid.core.units.rule import Rule

CLOSE = 1e-5
SAMPLES, WIDTH, NETWORKS = 5, 7, 3


class AppliedRule:
    """A rule, and what it makes of branches and credits."""

    group = "rules"

    def __init__(self, written: type[Rule], device: torch.device | str = "cpu") -> None:
        self.written, self.name, self.device = written, written.name, torch.device(device)
        draws = generator(3, "contract/rule")
        shape = (2, NETWORKS, SAMPLES, WIDTH)
        self.branches, self.credits = torch.randn(shape, generator=draws).to(self.device)

    def gradient(self, branch: Tensor, credit: Tensor, setting: Rule | None = None) -> Tensor:
        """What the rule gives.

        Raises:
            Violation: it has another shape, type or device than the branch.
        """
        setting = small(self.written) if setting is None else setting
        found = setting.output_gradient(branch, credit)
        if not isinstance(found, Tensor):
            raise Violation(f"it gave a {type(found).__name__}, and must give a tensor")
        if found.shape != branch.shape or found.dtype != branch.dtype or found.device != branch.device:
            raise Violation(
                f"it gave {described(found)} on {found.device} for a branch {described(branch)} on {branch.device}"
            )
        return found


CHECKS: Checks[AppliedRule] = Checks()
OF = "output_gradient"


@CHECKS.add(
    "the gradient has the branch's shape and type", why="It goes backwards through the branch.", of=OF, basic=True
)
def shapes(subject: AppliedRule) -> Iterator[str]:
    for setting in (small(subject.written), *choices(subject.written)):
        subject.gradient(subject.branches, subject.credits, setting)
        subject.gradient(subject.branches[0], subject.credits[0], setting)
        subject.gradient(subject.branches[0, :1], subject.credits[0, :1], setting)
    yield from ()


@CHECKS.add("the gradient is finite", why="A step by it destroys the network.", of=OF, basic=True)
def finite(subject: AppliedRule) -> Iterator[str]:
    branch, credit = subject.branches[0], subject.credits[0]
    zero = torch.zeros_like(branch)
    for what, gradient in (
        ("ordinary numbers", subject.gradient(branch, credit)),
        ("a credit of 0", subject.gradient(branch, zero)),
        ("a branch of 0", subject.gradient(zero, credit)),
    ):
        if not gradient.isfinite().all():
            yield f"it is not finite for {what}"


@CHECKS.add("equal inputs give equal bits", why="A task that runs again must give the same rows.", of=OF, quick=True)
def deterministic(subject: AppliedRule) -> Iterator[str]:
    found = []
    for seed in (1, 2):
        with seeded(seed):
            found.append(subject.gradient(subject.branches, subject.credits))
    if not same_bits(*found):
        yield f"two calls differ by up to {difference(*found):.2g} of the largest"


@CHECKS.add(
    "the global random state is left alone", why="Every random number has a stream of its own.", of=OF, quick=True
)
def global_state(subject: AppliedRule) -> Iterator[str]:
    changed: list[str] = []
    with watched(changed):
        subject.gradient(subject.branches, subject.credits)
    yield from (f"it changes the global state of {library}" for library in changed)


@CHECKS.add("the inputs do not change", why="The other rules of a sweep see the same tensors.", of=OF, quick=True)
def unchanged(subject: AppliedRule) -> Iterator[str]:
    branch, credit = subject.branches.clone(), subject.credits.clone()
    subject.gradient(branch, credit)
    for name, now, before in (("branch", branch, subject.branches), ("credit", credit, subject.credits)):
        if not same_bits(now, before):
            yield f"it changes its argument {name} in place"


@CHECKS.add("batched equals one by one", why="Networks side by side are leading dimensions.", of=OF)
def one_by_one(subject: AppliedRule) -> Iterator[str]:
    together = subject.gradient(subject.branches, subject.credits)
    for number in range(NETWORKS):
        alone = subject.gradient(subject.branches[number], subject.credits[number])
        if (apart := difference(together[number], alone)) > CLOSE:
            yield (
                f"of {NETWORKS} networks side by side, number {number} gets a gradient that differs by {apart:.2g} of "
                "the largest from its own: mix the last two dimensions only"
            )


@CHECKS.add("the gradient is that of a mean", why="The step size must not depend on the batch size.", of=OF)
def mean(subject: AppliedRule) -> Iterator[str]:
    branch, credit = subject.branches[0], subject.credits[0]
    once = subject.gradient(branch, credit)
    twice = subject.gradient(torch.cat((branch, branch)), torch.cat((credit, credit)))
    if (apart := difference(2 * twice, torch.cat((once, once)))) > CLOSE:
        yield (
            f"a batch with every sample twice must give half the gradient to each, and is off by {apart:.2g} of the "
            "largest: divide by branch.shape[-2]"
        )


@CHECKS.add("double precision agrees", why="Rounding must not decide a step.", of=OF)
def double(subject: AppliedRule) -> Iterator[str]:
    single = subject.gradient(subject.branches, subject.credits).double()
    precise = subject.gradient(subject.branches.double(), subject.credits.double())
    if (apart := difference(single, precise)) > CLOSE * 10:
        yield f"single and double precision differ by {apart:.2g} of the largest"


@CHECKS.add(
    "a rule that normalises ignores the credit's length", why="normalises says so, and norm_mode relies on it.", of=OF
)
def normalised(subject: AppliedRule) -> Iterator[str]:
    if not subject.written.normalises:
        raise Inapplicable("it does not say that it normalises")
    once = subject.gradient(subject.branches, subject.credits)
    if (apart := difference(subject.gradient(subject.branches, 3 * subject.credits), once)) > 1e-3:
        yield f"three times the credit changes the gradient by {apart:.2g} of the largest"


@CHECKS.add("a GPU agrees with the CPU", why="A cluster may have GPUs.", of=OF)
def on_gpu(subject: AppliedRule) -> Iterator[str]:
    if not torch.cuda.is_available():
        raise Inapplicable("there is no GPU here")
    here = subject.gradient(subject.branches, subject.credits)
    there = subject.gradient(subject.branches.to("cuda"), subject.credits.to("cuda")).cpu()
    if (apart := difference(here, there)) > CLOSE * 10:
        yield f"the GPU and the CPU differ by {apart:.2g} of the largest"
