"""The sweep spec as a researcher writes it, before its values are checked against an experiment."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator
from pydantic_core import ErrorDetails, PydanticCustomError

from creditgrid.core.errors import Fault, SpecError, did_you_mean
from creditgrid.core.spec.faults import bounded, pointer, shown

MAX_CELLS = 1_000_000
"""The most cells of one sweep."""
MAX_RULES = 1000
"""The most exclude rules: every cell is compared with each."""
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


class SweepSpec(BaseModel):
    """One sweep as it is written, before expansion."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    name: str = Field(min_length=1, max_length=200, description="The name of the sweep; need not be unique.")
    experiment: str = Field(description="The kind of sweep, such as linesearch.")
    fixed: dict[str, Any] = Field(default_factory=dict, description="Parameters that are the same in every cell.")
    axes: dict[str, Any] = Field(default_factory=dict, description="Parameters that vary: a list, or a generator.")
    zip: list[list[str]] = Field(default_factory=list, description="Groups of axes that advance together.")
    exclude: list[dict[str, Any]] = Field(
        default_factory=list, max_length=MAX_RULES, description="Cells with all these values are left out."
    )
    include: list[dict[str, Any]] = Field(default_factory=list, description="Extra cells, on top of `fixed`.")
    resources: dict[str, ResourceSpec] = Field(
        default_factory=dict, description="CPUs and GPUs by task kind (data, probe, feedback, train, fit, measure, …)."
    )
    retry: RetrySpec = Field(default_factory=RetrySpec)
    timeout_s: dict[str, Annotated[float, Field(gt=0)]] = Field(
        default_factory=dict, description="Seconds that a call of a task kind may take, by kind as in `resources`."
    )
    max_failed: int | None = Field(None, ge=0, description="Stop the sweep when more cells than this have failed.")
    fail_fast: bool = Field(False, description="Stop the sweep at the first failure.")
    priority: int = Field(0, ge=-1000, le=1000, description="A sweep with a higher priority runs first.")

    def axis_pointer(self, name: str, index: int) -> str:
        """Where value ``index`` of an axis is written. Values of a generator are written only as the generator."""
        return pointer("axes", name, index) if isinstance(self.axes[name], list) else pointer("axes", name)

    def fixed_pointer(self) -> str:
        """Where a missing parameter may be given."""
        return "/fixed" if "fixed" in self.model_fields_set else ""


def parse(document: Any) -> SweepSpec:
    """The spec that a JSON document holds.

    Raises:
        SpecError: with a pointer to each fault.
    """
    if not isinstance(document, dict):
        raise SpecError([Fault(f"a sweep spec is an object with name, experiment, axes; got {shown(document)}", "")])
    try:
        return SweepSpec.model_validate(document)
    except ValidationError as error:
        raise SpecError(bounded([_fault(item) for item in error.errors(include_url=False)])) from error


def _fault(item: ErrorDetails) -> Fault:
    where = pointer(*item["loc"])
    if item["type"] == "extra_forbidden":
        known, key = sorted(SweepSpec.model_fields), str(item["loc"][-1])
        hint = f"{did_you_mean(key, known)}; a spec has {', '.join(known)}" if len(item["loc"]) == 1 else ""
        return Fault(f"unknown key {key!r}{hint}", where)
    if item["type"] == "missing":
        return Fault(f"{item['loc'][-1]} is missing", where)
    return Fault(f"{item['msg']}; got {shown(item['input'])}", where)
