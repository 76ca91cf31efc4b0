"""The sweep spec as a researcher writes it, before its values are checked against an experiment."""

from __future__ import annotations

from functools import partial
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator
from pydantic_core import ErrorDetails, PydanticCustomError

from creditgrid.core.errors import Fault, SpecError, did_you_mean
from creditgrid.core.spec.faults import Faults, pointer, shown
from creditgrid.core.wire import MAX_INCLUDED, MAX_NAMES

MAX_CELLS = 1_000_000
"""The most cells of one sweep."""
MAX_RULES = 1000
"""The most exclude rules."""
MEASURE = "measure"
"""The name in ``resources`` and ``timeout_s`` of the task kind that measures cells, whichever the experiment."""
SMALLEST_SHARE = 0.0001
"""The smallest share of a CPU or GPU that a cluster can account for."""


class ResourceSpec(BaseModel):
    """CPUs and GPUs for each call of a task kind. Calls may share one GPU; more than one GPU are whole."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)
    cpu: float | None = Field(None, ge=SMALLEST_SHARE, le=1024)
    gpu: float | None = Field(None, ge=0, le=64)

    @field_validator("gpu")
    @classmethod
    def _accountable(cls, gpu: float | None) -> float | None:
        if gpu is not None and (0 < gpu < SMALLEST_SHARE or (gpu > 1 and gpu != int(gpu))):
            raise PydanticCustomError("gpu", f"a call takes 0, a share of {SMALLEST_SHARE:g} to 1, or whole GPUs")
        return gpu


class RetrySpec(BaseModel):
    """How often a call is retried after a lost worker, lack of memory or failed I/O, and the first pause in seconds."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)
    max: int = Field(3, ge=0, le=100)
    backoff_s: float = Field(2.0, ge=0, le=3600)


Parameters = Annotated[dict[str, Any], Field(max_length=MAX_NAMES)]
Group = Annotated[list[str], Field(max_length=MAX_NAMES)]


class SweepSpec(BaseModel):
    """One sweep as it is written, before expansion."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    name: str = Field(min_length=1, max_length=200, description="The name of the sweep; need not be unique.")
    experiment: str = Field(max_length=200, description="The kind of sweep, such as linesearch.")
    code: str | None = Field(
        None,
        pattern="^[0-9a-f]{64}$",
        description="SHA-256 of code that was sent before (`POST /v1/code`): its units may be chosen.",
    )
    fixed: Parameters = Field(default_factory=dict, description="Parameters that are the same in every cell.")
    axes: Parameters = Field(default_factory=dict, description="Parameters that vary: a list, or a generator.")
    zip: list[Group] = Field(
        default_factory=list, max_length=MAX_NAMES, description="Groups of axes that advance together."
    )
    exclude: list[Parameters] = Field(
        default_factory=list, max_length=MAX_RULES, description="Cells with all these values are left out."
    )
    include: list[Parameters] = Field(
        default_factory=list, max_length=MAX_INCLUDED, description="Extra cells, on top of `fixed`."
    )
    resources: dict[str, ResourceSpec] = Field(
        default_factory=dict,
        max_length=MAX_NAMES,
        description="CPUs and GPUs by task kind (data, probe, feedback, train, fit, measure, …).",
    )
    retry: RetrySpec = Field(default_factory=RetrySpec)
    timeout_s: dict[str, Annotated[float, Field(gt=0)]] = Field(
        default_factory=dict,
        max_length=MAX_NAMES,
        description="Seconds that a call of a task kind may take, by kind as in `resources`.",
    )
    max_failed: int | None = Field(None, ge=0, description="Stop the sweep when more cells than this have failed.")
    fail_fast: bool = Field(False, description="Stop the sweep at the first failure.")
    measurements: list[str] = Field(
        default_factory=list, max_length=20, description="Measurements whose columns are added to the rows."
    )
    priority: int = Field(0, ge=-1000, le=1000, description="A sweep with a higher priority runs first.")

    def axis_place(self, name: str, index: int) -> tuple[str | int, ...]:
        """Where value ``index`` of an axis is written. Values of a generator are written only as the generator."""
        return ("axes", name, index) if isinstance(self.axes[name], list) else ("axes", name)

    def fixed_place(self) -> tuple[str, ...]:
        """Where a missing parameter may be given."""
        return ("fixed",) if "fixed" in self.model_fields_set else ()

    def fixed_pointer(self) -> str:
        """The pointer to `fixed_place`."""
        return pointer(*self.fixed_place())


def parse(document: Any) -> SweepSpec:
    """The spec that a JSON document holds.

    Raises:
        SpecError: with a pointer to each fault.
    """
    if not isinstance(document, dict):
        raise SpecError([Fault(f"a sweep spec is an object with name, experiment, axes; got {shown(document)}", "")])
    faults = Faults()
    for name, value in document.items():
        if isinstance(value, dict) and len(value) > MAX_NAMES:
            detail = f"{len(value):,} names are more than the {MAX_NAMES} that one object of a spec may have"
            faults.add((name,), detail)
    faults.refuse()
    known = {key: value for key, value in document.items() if key in SweepSpec.model_fields}
    try:
        spec = SweepSpec.model_validate(known)
    except ValidationError as error:
        for item in error.errors(include_url=False, include_context=False):
            faults.add(item["loc"], partial(_detail, item))
    if len(known) < len(document):
        fields = sorted(SweepSpec.model_fields)
        for key in document:
            if key not in known:
                faults.add((key,), partial(_unknown, key, fields))
    faults.refuse()
    return spec


def _unknown(key: str, fields: list[str]) -> str:
    return f"unknown key {shown(key)}{did_you_mean(key, fields)}; a spec has {', '.join(fields)}"


def _detail(item: ErrorDetails) -> str:
    name = item["loc"][-1]
    if item["type"] == "extra_forbidden":
        return f"unknown key {shown(name)}"
    if item["type"] == "missing":
        return f"{name} is missing"
    return f"{item['msg']}; got {shown(item['input'])}"
