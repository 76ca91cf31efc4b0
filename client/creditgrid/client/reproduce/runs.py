"""The published runs, at full size or scaled down.

The specs are the shipped examples. Fewer training epochs reduce the epochs of fitting and of the checkpoints in
proportion. Each fitted method then has its own number, so the axis ``fit_epochs`` advances with ``method``; for other
methods it stays null, so that their cells do not depend on the fitting.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from creditgrid.client.errors import BadSetting
from creditgrid.client.reproduce.published import DATASET, EXPERIMENTS, FIT_EPOCHS, SEED, TRAIN_EPOCHS

MAX_SEEDS = 1000
"""More seeds than a sweep can have are refused before they are listed."""


@dataclass(frozen=True, slots=True)
class Settings:
    """The settings of the runs; the defaults are the published ones.

    Raises:
        BadSetting: for a number below 1 or too large, or an experiment without published figures.
    """

    epochs: int = TRAIN_EPOCHS
    fit_epochs: int | None = None
    """Epochs of every fit; default: in proportion to ``epochs``."""
    seeds: int = 1
    dataset: str = DATASET
    only: Sequence[str] = ()

    def __post_init__(self) -> None:
        for flag, value in (("--epochs", self.epochs), ("--fit-epochs", self.fit_epochs), ("--seeds", self.seeds)):
            if value is not None and value < 1:
                raise BadSetting(f"{flag} is a whole number of at least 1; got {value}")
        if self.seeds > MAX_SEEDS:
            raise BadSetting(f"--seeds is at most {MAX_SEEDS:,}; got {self.seeds:,}")
        for name in self.only:
            if name not in EXPERIMENTS:
                raise BadSetting(
                    f"--only takes an experiment with published figures, one of {', '.join(EXPERIMENTS)}; got {name!r}"
                )
        if not self.dataset:
            raise BadSetting("--dataset is empty: give a name such as cifar10, or a folder of Parquet files")

    @property
    def experiments(self) -> list[str]:
        """The experiments to run, in the order in which they are shown."""
        return [name for name in EXPERIMENTS if not self.only or name in self.only]

    @property
    def seed_list(self) -> list[int]:
        return list(range(SEED, SEED + self.seeds))

    @property
    def scaled_fit_epochs(self) -> dict[str, int]:
        """Epochs of fitting by fitted method."""
        if self.fit_epochs is not None:
            return dict.fromkeys(FIT_EPOCHS, self.fit_epochs)
        return {method: _scaled(epochs, self.epochs) for method, epochs in FIT_EPOCHS.items()}

    @property
    def scaled_down(self) -> bool:
        """Whether anything is trained or fitted for fewer epochs than published."""
        return self.epochs < TRAIN_EPOCHS or any(n < FIT_EPOCHS[m] for m, n in self.scaled_fit_epochs.items())

    @property
    def command(self) -> str:
        """The command line with these settings."""
        words = ["creditgrid", "reproduce"]
        words += ["--epochs", str(self.epochs)] if self.epochs != TRAIN_EPOCHS else []
        words += ["--fit-epochs", str(self.fit_epochs)] if self.fit_epochs is not None else []
        words += ["--seeds", str(self.seeds)] if self.seeds != 1 else []
        words += ["--dataset", self.dataset] if self.dataset != DATASET else []
        for name in self.only:
            words += ["--only", name]
        return shlex.join(words)


@dataclass(frozen=True, slots=True)
class Choice:
    """Which rows of existing sweeps are compared; None: those with the published value, or with the only one."""

    epochs: int | None = None
    fit_epochs: int | None = None
    seeds: Sequence[int] | None = None
    dataset: str | None = None


def specs(settings: Settings) -> dict[str, dict[str, Any]]:
    """The spec to submit for each experiment of ``settings``."""
    return {name: _rescaled(example(name), settings) for name in settings.experiments}


def example(experiment: str) -> dict[str, Any]:
    """The shipped spec of an experiment's published run."""
    from creditgrid.core.spec.text import parse_text

    file = resources.files("creditgrid.client").joinpath("examples", f"reproduce-{experiment}.yaml")
    spec: dict[str, Any] = parse_text(file.read_bytes())
    return spec


def _rescaled(spec: dict[str, Any], settings: Settings) -> dict[str, Any]:
    fixed, axes, groups = dict(spec["fixed"]), dict(spec["axes"]), list(spec.get("zip", []))
    fixed |= {"dataset": absolute(settings.dataset), "train_epochs": settings.epochs}
    if settings.seeds > 1:
        del fixed["seed"]
        axes = {"seed": settings.seed_list, **axes}
    if "checkpoint_epoch" in axes:
        axes["checkpoint_epoch"] = sorted({_scaled(epoch, settings.epochs) for epoch in axes["checkpoint_epoch"]})
    fits = settings.scaled_fit_epochs
    if fits != FIT_EPOCHS:  # otherwise the cells are those of the shipped spec
        axes["fit_epochs"] = [fits.get(method) for method in axes["method"]]
        groups.append(["method", "fit_epochs"])
    return {**spec, "fixed": fixed, "axes": axes, "zip": groups}


def _scaled(published: int, epochs: int) -> int:
    return max(1, round(published * epochs / TRAIN_EPOCHS))


def absolute(name: str) -> str:
    """A folder becomes absolute, because the service has another current folder."""
    path = name.startswith((".", "~")) or "/" in name
    return str(Path(name).expanduser().resolve()) if path and not name.startswith("parquet:") else name
