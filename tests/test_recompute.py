"""The recomputation itself, compared with facts that need no computation."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from recompute import agrees, expected_rows
from recompute_credit import NUDGES, cosine, credit, pearson, rms, slopes
from recompute_network import (
    cross_entropy,
    doubles,
    estimator_output,
    head,
    hiddens,
    images_in_file_order,
    loss_gradient,
    losses_from,
    output_error,
)
from recompute_step import local_gradients, step_noise, take_step

D, L, C, B, PIXELS = 6, 3, 4, 5, 12

PARAMS: dict[str, Any] = {
    "seed": 3,
    "probe_seed": None,
    "batch_size": B,
    "residual_add": True,
    "method": "oracle_bp",
    "oracle_reduction": "mean",
    "cb_source": "e_T",
    "update_range": "all",
    "update_head": "auto",
    "norm_mode": "raw",
    "eta": 1e-3,
    "extra_batches": 4,
    "rule": "inner_product",
    "kappa": None,
    "k": 1,
    "clamp": None,
    "eval": "same",
    "step_weight_decay": 0.0,
    "step_noise": 0.0,
    "train_epochs": 5,
    "train_rule": "bp",
    "logs_every": 2,
}


def drawn(rng: np.random.Generator, *shape: int, scale: float = 1.0) -> np.ndarray[Any, Any]:
    return (scale * rng.normal(size=shape)).astype(np.float32)


def checkpoint(seed: int = 0) -> dict[str, np.ndarray[Any, Any]]:
    rng = np.random.default_rng(seed)
    shapes: dict[str, tuple[int, ...]] = {"embed.weight": (D, PIXELS), "embed.bias": (D,)}
    for block in range(L):
        shapes |= {f"blocks.{block}.ln.{name}": (D,) for name in ("weight", "bias")}
        for w in ("w1", "w2"):
            shapes |= {f"blocks.{block}.{w}.weight": (D, D), f"blocks.{block}.{w}.bias": (D,)}
    shapes |= {"out_ln.weight": (D,), "out_ln.bias": (D,), "out_head.weight": (C, D), "out_head.bias": (C,)}
    return {name: drawn(rng, *shape, scale=0.5) for name, shape in shapes.items()}


def artifacts(method: str = "oracle_bp", cb_source: str = "e_T") -> dict[str, dict[str, np.ndarray[Any, Any]]]:
    rng = np.random.default_rng(1)
    probe: dict[str, np.ndarray[Any, Any]] = {}
    for name, count in {"same": (), "held": (), "test": (), "extra": (8,), "steps": (5,)}.items():
        probe[f"x_{name}"] = drawn(rng, *count, B, PIXELS)
        probe[f"y_{name}"] = rng.integers(C, size=(*count, B))
    data: dict[str, np.ndarray[Any, Any]] = {
        "x_test": rng.integers(256, size=(13, 3, 2, 2)).astype(np.uint8),
        "y_test": rng.integers(C, size=13),
        "mean": np.array([0.4, 0.5, 0.6], np.float32),
        "std": np.array([0.2, 0.3, 0.25], np.float32),
    }
    s_dim, out = (D if cb_source == "delta_L" else C), (1 if method == "scalar_cb" else D)
    width = D + 32 + s_dim
    estimator = {"ln.weight": drawn(rng, D), "ln.bias": drawn(rng, D)}
    for index, fan_out in ((0, 7), (2, 7), (4, 7), (6, out)):
        estimator[f"net.{index}.weight"] = drawn(rng, fan_out, width if index == 0 else 7, scale=0.4)
        estimator[f"net.{index}.bias"] = drawn(rng, fan_out)
    feedback = {f"B.{block}": drawn(rng, D, C) for block in range(L)}
    made: dict[str, dict[str, np.ndarray[Any, Any]]] = {
        "checkpoint": checkpoint(),
        "probe": probe,
        "data": data,
        "feedback": feedback,
    }
    if method in ("vec", "scalar_cb", "state_bridge"):
        made["estimator"] = estimator
    return made


def rows(experiment: str, given: Mapping[str, Any] | None = None, **changes: Any) -> list[dict[str, Any]]:
    params = PARAMS | changes
    return expected_rows(experiment, params, given or artifacts(params["method"], params["cb_source"]))


def same_batch() -> tuple[dict[str, torch.Tensor], torch.Tensor, torch.Tensor]:
    probe = doubles(artifacts()["probe"])
    return doubles(checkpoint()), probe["x_same"], probe["y_same"]


# -- the network and the credits -----------------------------------------------------------------------------------


def test_the_network_is_torchs_own_layers() -> None:
    p, x, y = same_batch()
    f = torch.nn.functional
    h = f.linear(x, p["embed.weight"], p["embed.bias"])
    for block in range(L):
        q = {name.split(".", 2)[2]: value for name, value in p.items() if name.startswith(f"blocks.{block}.")}
        inner = f.linear(f.layer_norm(h, (D,), q["ln.weight"], q["ln.bias"]), q["w1.weight"], q["w1.bias"])
        h = h + f.linear(f.gelu(inner), q["w2.weight"], q["w2.bias"])
    logits = f.linear(f.layer_norm(h, (D,), p["out_ln.weight"], p["out_ln.bias"]), p["out_head.weight"])
    logits = logits + p["out_head.bias"]
    torch.testing.assert_close(hiddens(p, x)[-1], h)
    torch.testing.assert_close(head(p, h), logits)
    torch.testing.assert_close(cross_entropy(logits, y), f.cross_entropy(logits, y, reduction="none"))


@pytest.mark.parametrize("layer", range(L + 1))
@pytest.mark.parametrize("add", [True, False])
def test_finite_differences_agree_with_autograd(layer: int, add: bool) -> None:
    p, x, y = same_batch()
    h = hiddens(p, x, add)[layer]
    v = torch.randn(h.shape, generator=torch.Generator().manual_seed(0)).double()
    true = (loss_gradient(p, layer, h, y, add) * v).sum(-1)
    torch.testing.assert_close(slopes(p, layer, h, y, v, add), true, rtol=1e-4, atol=1e-5)


def test_the_oracles_mean_is_a_share_of_its_sum() -> None:
    p, x, y = same_batch()
    mean, total = (credit(PARAMS | {"oracle_reduction": r}, p, 1, x, y, {}) for r in ("mean", "sum"))
    torch.testing.assert_close(mean * B, total)
    leaf = hiddens(p, x)[1].requires_grad_()
    (by_hand,) = torch.autograd.grad(losses_from(p, 1, leaf, y, True).mean(), leaf)
    torch.testing.assert_close(mean, by_hand)


def test_feedback_of_an_undecided_head() -> None:
    p, x, y = same_batch()
    p |= {"out_head.weight": torch.zeros(C, D).double(), "out_head.bias": torch.zeros(C).double()}
    matrices = {f"B.{block}": torch.ones(D, C).double() * torch.arange(C) for block in range(L)}
    a = credit(PARAMS | {"method": "dfa"}, p, 2, x, y, matrices)
    torch.testing.assert_close(a, ((C - 1) / 2 - y.double()).unsqueeze(-1).expand(B, D))


def test_time_is_sines_then_cosines() -> None:
    e = {name: torch.zeros_like(value) for name, value in doubles(artifacts("vec")["estimator"]).items()}
    e["net.0.weight"][0, D], e["net.0.weight"][1, D + 16 + 1] = 1, 1
    e |= {f"net.{index}.weight": torch.eye(7).double() for index in (2, 4)} | {"net.6.weight": torch.eye(D, 7).double()}
    out = estimator_output(e, torch.ones(2, D).double(), 0.75, torch.ones(2, C).double())

    def through(z: float) -> float:
        for _ in range(3):
            z = z * (1 + math.erf(z / math.sqrt(2))) / 2
        return z

    slowest = math.exp(-math.log(10000) / 16)
    wanted = [through(math.sin(0.75)), through(math.cos(0.75 * slowest)), 0, 0, 0, 0]
    torch.testing.assert_close(out, torch.tensor([wanted, wanted]).double())


@pytest.mark.parametrize(
    ("method", "source"), [("scalar_cb", "e_T"), ("scalar_cb", "delta_L"), ("state_bridge", "e_T")]
)
def test_gradients_of_estimators_are_slopes_of_what_they_estimate(method: str, source: str) -> None:
    p, x, y = same_batch()
    e = doubles(artifacts(method, source)["estimator"])
    levels = hiddens(p, x)
    s = output_error(p, levels[-1], y) if source == "e_T" else loss_gradient(p, L, levels[-1], y, True)

    def value(h: torch.Tensor) -> torch.Tensor:
        out = estimator_output(e, h, 1 / L, s)
        return out.squeeze(-1) if method == "scalar_cb" else cross_entropy(head(p, out), y)

    a = credit(PARAMS | {"method": method, "cb_source": source}, p, 1, x, y, e)
    for axis in range(D):
        v = torch.eye(D).double()[axis]
        slope = (value(levels[1] + 1e-5 * v) - value(levels[1] - 1e-5 * v)) / 2e-5
        torch.testing.assert_close(a[:, axis], slope, rtol=1e-6, atol=1e-9)


# -- steps ---------------------------------------------------------------------------------------------------------


def gradients(**changes: Any) -> dict[str, torch.Tensor]:
    p, x, y = same_batch()
    how = {"update_head": True, "normalised": False} | {
        name: changes.pop(name) for name in ("update_head", "normalised", "rule", "kappa") if name in changes
    }
    return local_gradients(PARAMS | changes, p, x, y, {}, range(L), **how)


@pytest.mark.parametrize("add", [True, False])
def test_a_shifted_target_is_the_inner_product_with_the_normalised_credit_times_kappa(add: bool) -> None:
    shifted = gradients(rule="target_shift", kappa=0.3, residual_add=add)
    plain = gradients(normalised=True, residual_add=add)
    for name, gradient in shifted.items():
        torch.testing.assert_close(gradient, plain[name] * (1 if name.startswith("out_") else 0.3))


def test_the_cosine_rule_does_not_see_the_credits_size() -> None:
    mean, total = (gradients(rule="cosine", oracle_reduction=reduction) for reduction in ("mean", "sum"))
    for name, gradient in mean.items():
        torch.testing.assert_close(gradient, total[name])


def test_the_last_layers_local_gradient_by_hand() -> None:
    p, x, y = same_batch()
    levels = hiddens(p, x)
    a = credit(PARAMS, p, 1, x, y, {})
    torch.testing.assert_close(gradients()["blocks.1.w2.bias"], a.mean(0))
    torch.testing.assert_close(gradients(normalised=True)["blocks.1.w2.bias"], (a / rms(a)).mean(0))
    torch.testing.assert_close(gradients()["out_head.bias"], output_error(p, levels[-1], y).mean(0))


def test_a_tight_clamp_leaves_the_signs_and_decay_is_not_clamped() -> None:
    p, _, _ = same_batch()
    found = gradients()
    stepped = take_step(PARAMS | {"step_weight_decay": 0.5}, p, found, 0.1, clamp=1e-15)
    assert stepped.keys() == p.keys()
    for name, value in p.items():
        wanted = value * (1 - 0.05) if name in found else value
        torch.testing.assert_close(stepped[name], wanted)
    torch.testing.assert_close(
        take_step(PARAMS, p, found, 1.0, clamp=1e-9)["out_head.bias"],
        p["out_head.bias"] - 1e-9 * found["out_head.bias"].sign(),
        rtol=0,
        atol=1e-15,
    )


def test_noise_is_one_draw_a_step_whatever_steps() -> None:
    p, _, _ = same_batch()
    xi, other = step_noise(p, 3, 0), step_noise(p, 3, 1)
    assert set(xi) == {name for name in p if not name.startswith("embed.")}
    assert list(xi) == [name for name in p if not name.startswith("embed.")]  # the order of the state dict
    assert not torch.equal(xi["out_head.bias"], other["out_head.bias"])
    assert torch.cat([value.flatten() for value in xi.values()]).std().item() == pytest.approx(1, abs=0.15)
    head_alone = {"out_head.bias": torch.zeros(C).double()}
    stepped = take_step(PARAMS | {"step_noise": 2.0}, p, head_alone, 0.1)
    torch.testing.assert_close(stepped["out_head.bias"], p["out_head.bias"] - 0.2 * xi["out_head.bias"])
    torch.testing.assert_close(stepped["out_ln.bias"], p["out_ln.bias"], rtol=0, atol=0)


# -- rows ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["oracle_bp", "dfa", "vec", "scalar_cb", "state_bridge"])
@pytest.mark.parametrize("regularised", [{}, {"step_noise": 0.01, "step_weight_decay": 0.1}], ids=["plain", "noisy"])
def test_one_step_of_exploitability_on_its_own_batch_is_a_line_searchs(method: str, regularised: Any) -> None:
    given: Any = artifacts(method)
    given["probe"]["x_steps"][0], given["probe"]["y_steps"][0] = given["probe"]["x_same"], given["probe"]["y_same"]
    (stepped,) = rows("exploitability", given, method=method, norm_mode="norm", **regularised)
    (searched,) = rows("linesearch", given, method=method, norm_mode="norm", **regularised)
    assert stepped["loss_before"] == searched["loss_before_same"]
    assert stepped["loss_after"] == pytest.approx(searched["loss_after_same"], rel=1e-14)
    assert stepped["delta_loss"] == pytest.approx(searched["delta_loss_same"], rel=1e-9)
    assert searched["delta_loss_same"] != 0


def test_more_steps_go_on_from_where_the_first_ended() -> None:
    given: Any = artifacts()
    losses = [rows("exploitability", given, k=k, eval="held", eta=0.01)[0]["loss_after"] for k in (1, 2, 5)]
    assert len(set(losses)) == 3
    (held,) = rows("exploitability", given, eval="held")
    given["probe"] |= {"x_same": given["probe"]["x_test"], "y_same": given["probe"]["y_test"]}
    assert rows("exploitability", given)[0] == held


def test_a_clamp_of_next_to_nothing_leaves_next_to_nothing() -> None:
    free, tight, wide, none = (rows("exploitability", clamp=c, k=3)[0] for c in (None, 1e-9, 1e9, "none"))
    assert 0 < abs(tight["delta_loss"]) < 1e-9 < abs(free["delta_loss"])
    assert free == wide == none


def test_the_oracle_is_perfect_and_descends() -> None:
    found = rows("credit_recovery")
    assert [row["layer"] for row in found] == [0, 1, 2]
    for row in found:
        assert row["gamma"] == row["gamma_mean"] == pytest.approx(1, abs=1e-12)
        assert 0.99999 < row["rho"] <= 1
        changes = [row[name] / eta for name, eta in NUDGES.items()]
        assert all(change < 0 for change in changes)
        assert changes[0] == pytest.approx(changes[1], rel=0.02)  # linear in η
        assert row["pred_error"] is row["pred_error_mean"] is None
    assert found[0]["nudge_0_01_mean"] == pytest.approx(sum(row["nudge_0_01"] for row in found) / 3)


def test_a_nudge_by_the_oracle_is_the_gradients_length() -> None:
    p, given = doubles(checkpoint()), artifacts()
    probe = doubles(given["probe"])
    h = hiddens(p, probe["x_test"])[1]
    length = loss_gradient(p, 1, h, probe["y_test"], True).norm(dim=-1).mean().item()
    assert rows("credit_recovery", given)[1]["nudge_0_001"] == pytest.approx(-1e-3 * length, rel=5e-3)


def test_gamma_of_the_opposite_is_the_opposite_and_takes_every_batch_alike() -> None:
    given: Any = artifacts("dfa")
    ahead = [row["gamma"] for row in rows("credit_recovery", given, method="dfa")]
    each = []
    p, data, matrices = (doubles(given[name]) for name in ("checkpoint", "data", "feedback"))
    for first, end in ((0, 5), (5, 10), (10, 13)):
        x, y = images_in_file_order(data, first, B)
        assert len(y) == end - first
        a, true = (
            credit(PARAMS | {"method": "dfa"}, p, 1, x, y, matrices),
            loss_gradient(p, 1, hiddens(p, x)[1], y, True),
        )
        each.append(torch.nn.functional.cosine_similarity(a, true).mean().item())
    assert ahead[1] == pytest.approx(sum(each) / 3)
    given["feedback"] = {name: -matrix for name, matrix in given["feedback"].items()}
    assert [-row["gamma"] for row in rows("credit_recovery", given, method="dfa")] == pytest.approx(ahead)


def test_a_bridge_that_always_says_the_same_has_no_credit_and_a_known_error() -> None:
    given: Any = artifacts("state_bridge")
    given["estimator"] |= {"net.6.weight": np.zeros((D, 7), np.float32), "net.6.bias": np.full(D, 2.0, np.float32)}
    found = rows("credit_recovery", given, method="state_bridge")
    p, data = doubles(given["checkpoint"]), doubles(given["data"])
    last = hiddens(p, images_in_file_order(data, 0, 13)[0])[-1]
    for row in found:
        assert row["pred_error"] == row["pred_error_mean"] == pytest.approx((last - 2).square().sum(-1).mean().item())
        assert (row["gamma"], row["nudge_0_01"], row["rho"]) == (0, 0, None)


def test_snapshots_first_step_is_the_line_searchs_best() -> None:
    given: Any = artifacts()
    etas = [1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2]
    searched = {eta: rows("linesearch", given, update_range="last1", update_head="always", eta=eta)[0] for eta in etas}
    best = min(etas, key=lambda eta: searched[eta]["delta_loss_same"])
    (row,) = rows("snapshot_time", given, update_range="last1", eta=None)
    assert row["best_eta"] == best
    assert row["dl_same_1"] == searched[best]["delta_loss_same"] < 0
    assert row["dl_held_1"] == searched[best]["delta_loss_held"]
    assert row["pur_1"] == pytest.approx(row["dl_held_1"] / row["dl_same_1"], rel=1e-6)
    (fixed,) = rows("snapshot_time", given, update_range="last1", eta=1e-3)
    assert (fixed["best_eta"], fixed["dl_same_1"]) == (1e-3, searched[1e-3]["delta_loss_same"])
    assert (row["pur_5"] is None) == (row["dl_same_5"] >= 0)


def test_snapshots_five_steps_are_five_steps_of_exploitability() -> None:
    given: Any = artifacts("vec")
    (row,) = rows("snapshot_time", given, method="vec", eta=0.01)
    (stepped,) = rows("exploitability", given, method="vec", eta=0.01, k=5)
    assert row["dl_same_5"] == pytest.approx(stepped["delta_loss"], rel=1e-9)


def test_equal_batches_have_equal_updates() -> None:
    given: Any = artifacts()
    for name in ("x_extra", "y_extra"):
        given["probe"][name][:4] = given["probe"][name][0]
    (row,) = rows("snapshot_time", given, eta=1e-3)
    assert row["update_cos"] == pytest.approx(1)
    assert row["update_var"] == pytest.approx(0, abs=1e-20)
    (alone,) = rows("snapshot_time", given, eta=1e-3, extra_batches=1)
    assert alone["update_cos"] is None
    (varied,) = rows("snapshot_time", given, eta=1e-3, extra_batches=8)
    assert varied["update_cos"] < 0.999
    assert varied["update_var"] > 1e-6


def test_dynamics_logs_every_so_often_and_at_the_end() -> None:
    given: Any = artifacts()
    given |= {f"epoch_{epoch}": checkpoint(epoch) for epoch in (0, 2, 4, 5)}
    found = rows("dynamics", given)
    assert [(row["epoch"], row["layer"]) for row in found] == [
        (e, layer) for e in (0, 2, 4, 5) for layer in range(L + 1)
    ]
    p, data = doubles(checkpoint(4)), doubles(given["data"])
    x, y = images_in_file_order(data, 0, 1024)
    leaf = hiddens(p, x)[2].detach().requires_grad_()
    mean_loss = losses_from(p, 2, leaf, y, True).mean()
    (gradient,) = torch.autograd.grad(mean_loss, leaf)
    row = found[8 + 2]
    assert row["h_norm"] == pytest.approx(torch.quantile(leaf.norm(dim=-1), 0.5).item())
    assert row["grad_norm"] == pytest.approx(torch.quantile(gradient.norm(dim=-1), 0.5).item())
    assert row["grad_frobenius"] == pytest.approx(math.sqrt((gradient**2).sum().item()))
    assert row["loss"] == pytest.approx(mean_loss.item())
    assert {row["gamma_dfa"] for row in found} == {None}
    assert len({row["loss"] for row in found}) == 4
    aligned = rows("dynamics", given, train_rule="dfa")
    shared = expected_rows("credit_recovery", PARAMS | {"method": "dfa", "batch_size": 13}, given)
    assert aligned[0]["gamma_dfa"] == pytest.approx(shared[0]["gamma_mean"])


@pytest.mark.parametrize(
    ("a", "b", "wanted"),
    [([1, 2, 3], [5, 7, 9], 1), ([1, 2, 3], [1, -1, 1], 0), ([1, 2], [3, -1], -1), ([0, 1, 1], [0, 0, 1], 0.5)],
)
def test_pearson_by_hand(a: list[float], b: list[float], wanted: float) -> None:
    assert pearson(torch.tensor(a).double(), torch.tensor(b).double()) == pytest.approx(wanted)


def test_what_does_not_vary_has_no_correlation_and_what_is_zero_no_direction() -> None:
    assert pearson(torch.ones(2), torch.tensor([3.0, -1.0])) is None
    assert cosine(torch.zeros(1, 2), torch.ones(1, 2)).item() == 0


# -- the comparison ------------------------------------------------------------------------------------------------

ROWS = [
    {"layer": 0, "loss": 2.0, "gamma": 1e-9, "rho": 1e-9, "nudge_0_001": -1e-3, "pred_error": None},
    {"layer": 1, "loss": 2.0, "gamma": 0.5, "rho": 0.5, "nudge_0_001": 0.0, "pred_error": None},
]


@pytest.mark.parametrize(
    ("layer", "change", "ratio"),
    [
        (0, {}, 0),
        (0, {"loss": 2.0 + 4e-5}, 2),
        (1, {"gamma": 0.5 + 1e-5}, 2),
        (0, {"gamma": 5e-7}, 0.5),
        (0, {"rho": 5e-7}, 0.5),
        (1, {"rho": 0.501}, 2),
        (1, {"nudge_0_001": 5e-9}, 0.5),
        (0, {"nudge_0_001": -1.002e-3}, 2),
        (1, {"loss": None}, math.inf),
        (1, {"loss": math.nan}, math.inf),
        (1, {"pred_error": 0.0}, math.inf),
        (1, {"pred_error": math.nan}, 0),
        (1, {"not looked at": 3.0}, 0),
    ],
    ids=str,
)
def test_the_worst_column_is_named(layer: int, change: dict[str, Any], ratio: float) -> None:
    actual = [row | change if row["layer"] == layer else row for row in ROWS]
    worst = agrees(ROWS, actual[::-1])
    assert worst.ratio == pytest.approx(ratio, rel=1e-2)
    assert worst.column == (f"{next(iter(change))} at layer {layer}" if ratio else "")


def test_missing_rows_and_columns_are_no_agreement() -> None:
    assert agrees(ROWS, ROWS[:1]).ratio == math.inf
    lost = agrees(ROWS, [{name: row[name] for name in row if name != "rho"} for row in ROWS])
    assert (lost.ratio, lost.column) == (math.inf, "no column rho")


def test_a_quotient_may_be_off_by_what_its_parts_may_be() -> None:
    row = {"dl_same_1": -1e-3, "dl_held_1": 2e-3, "pur_1": -2.0}
    assert agrees([row], [row | {"pur_1": -2.003}]).ratio == pytest.approx(1)  # (1e-6 + 2 * 1e-6) / 1e-3
