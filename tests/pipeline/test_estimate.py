"""Estimates of time and cost against closed forms."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from web import WebServer

from pipeline.estimate import Estimate, Part, estimate
from tests.pipeline.compiled_pipelines import compiled

# Not to be seen from here, so 86 samples to train on and 14 to validate on, of 240 s each.
HIDDEN = {"data": "/mnt/music"}
START = 5 / 60
# Of one target of the default model on one CPU: two take 17 s for 16 excerpts of 6 s and four targets.
SPEED = 16 * 6 * 4 / 17 / 2


def part(found: Estimate, name: str = "Trainer") -> Part:
    return next(part for part in found.parts if part.name == name)


def estimated(parameters: dict[str, Any] | None = None, **changes: Any) -> Estimate:
    return estimate(compiled(**changes), HIDDEN | (parameters or {}))


def trained_hours(parameters: dict[str, Any] | None = None, **changes: Any) -> float:
    return part(estimated(parameters, **changes)).hours - START


def on(**machine: Any) -> dict[str, Any]:
    return {"machines": {"Trainer": {"cpu": 2, "memory_gb": 10, **machine}}}


def profile(**train: Any) -> dict[str, Any]:
    return {"model": {"targets": ["vocals", "drums"]}, "train": train}


def test_the_measured_step() -> None:
    """As many steps as were measured, on the machine on which they were, take as long; validation comes on top."""
    parameters = {"targets": "vocals,drums,bass,other", "epochs": 1, "batch_size": 16, "excerpt_seconds": 6.0}
    validation = 14 * 240 * 4 / (SPEED * 2) / 3
    assert trained_hours(parameters, **on()) * 3600 == pytest.approx(86 * 64 / 16 * 17 + validation)


def test_training_in_closed_form() -> None:
    parameters = {"epochs": 20, "batch_size": 16, "excerpt_seconds": 3.0}
    seconds = 20 * (86 * 64 * 3 + 14 * 240 / 3) * 2 / (SPEED * 2)
    assert trained_hours(parameters, **on()) * 3600 == pytest.approx(seconds)


@pytest.mark.parametrize(
    ("parameters", "factor"),
    [({"epochs": 200}, 2), ({"targets": "vocals"}, 1 / 2), ({"batch_size": 32}, 1), ({"epochs": 1}, 1 / 100)],
)
def test_what_parameters_change(parameters: dict[str, Any], factor: float) -> None:
    assert trained_hours(parameters) == pytest.approx(factor * trained_hours())


def test_the_last_batch_is_whole() -> None:
    """86 x 64 excerpts make two batches of 5000."""
    alone = {"excerpt_seconds": 6.0, "epochs": 1}
    extra = trained_hours(alone | {"batch_size": 5000}, **on()) - trained_hours(alone | {"batch_size": 16}, **on())
    assert extra * 3600 == pytest.approx((10000 - 86 * 64) * 6 * 2 / (SPEED * 2))


@pytest.mark.parametrize(("machine", "factor"), [({"cpu": 8}, 1 / 4), ({"machine_type": "n1", "machines": 3}, 1 / 3)])
def test_what_machines_change(machine: dict[str, Any], factor: float) -> None:
    assert trained_hours(**on(**machine)) == pytest.approx(factor * trained_hours(**on()))


def test_more_gpus_are_faster_and_all_beat_two_cpus() -> None:
    one, two = (trained_hours(**on(gpu="NVIDIA_TESLA_T4", gpus=count)) for count in (1, 2))
    assert two == pytest.approx(one / 2)
    assert one < trained_hours(**on())


def test_larger_models_take_longer() -> None:
    """Between twice and four times as long for twice the width: some weights grow with its square."""
    small, large = (
        {"model": {"targets": ["vocals", "drums"], "hidden_size": hidden}, "train": {}} for hidden in (512, 1024)
    )
    assert 2 < trained_hours(profile=large) / trained_hours(profile=small) < 4


def test_a_time_limit_bounds_training() -> None:
    found = estimated(profile=profile(max_minutes=90.0))
    assert part(found).hours == pytest.approx(1.5 + START)
    assert "stopped after 90 minutes (train.max_minutes)" in found.training
    assert "stopped" not in estimated({"epochs": 1}, profile=profile(max_minutes=1e6)).training


def test_dollars_in_closed_form() -> None:
    machine = on(gpu="NVIDIA_TESLA_T4", gpus=2)
    prices = {"cpu_hour": 1.0, "memory_gb_hour": 0.1, "gpu_hour": {"NVIDIA_TESLA_T4": 7.0}, "spot_factor": 0.25}
    found = part(estimated(**machine, prices=prices))
    assert found.dollars == pytest.approx(found.hours * (2 * 1 + 10 * 0.1 + 2 * 7))
    machine["machines"]["Trainer"]["spot"] = True
    assert part(estimated(**machine, prices=prices)).dollars == pytest.approx(0.25 * (found.dollars or 0))


def test_several_machines_cost_several_times_as_much_an_hour() -> None:
    found = part(estimated(**on(machines=3, machine_type="n1-standard-2")))
    assert found.dollars == pytest.approx(3 * found.hours * (2 * 0.038 + 10 * 0.0051))


def test_the_whole_is_the_sum_of_the_parts() -> None:
    found = estimated()
    assert found.hours == pytest.approx(sum(part.hours for part in found.parts))
    assert found.dollars == pytest.approx(sum(part.dollars or 0 for part in found.parts))
    assert [part.name for part in found.parts][::3] == ["SampleGen", "ExampleValidator", "Pusher"]


def test_samples_are_counted_where_the_database_can_be_listed(tmp_path: Path) -> None:
    names = [f"{split}/{sample}/vocals.wav" for split, count in (("train", 3), ("valid", 2)) for sample in range(count)]
    (tmp_path / "files.txt").write_text("\n".join(names))
    with WebServer(tmp_path).running() as web:
        found = estimated({"data": web.address, "epochs": 1, "batch_size": 16, "excerpt_seconds": 3.0}, **on())
    assert (part(found).hours - START) * 3600 == pytest.approx((3 * 64 * 3 + 2 * 240 / 3) * 2 / (SPEED * 2))
    assert "3 samples x 64 excerpts" in found.training
    assert not any("MUSDB18" in line for line in found.lines())
    assert any("MUSDB18" in line for line in estimated().lines())


def test_kubeflow_has_no_prices_of_its_own() -> None:
    found = estimated(platform="kubeflow")
    assert found.dollars is None
    assert "$" not in "\n".join(found.lines())
    assert any("no prices for this cluster" in line for line in found.lines())
    assert estimated(platform="kubeflow", prices={"cpu_hour": 0.02}).dollars


def test_a_gpu_that_is_not_known_is_said_to_be_assumed() -> None:
    found = estimated(**on(gpu="NVIDIA_TESLA_P4", gpus=1))
    assert (part(found).dollars, found.dollars) == (None, None)
    text = "\n".join(found.lines())
    assert "as fast as NVIDIA_TESLA_T4, not measured" in text
    assert "no price for NVIDIA_TESLA_P4; `prices.gpu_hour` in the settings gives it" in text


def test_lines_that_can_be_checked() -> None:
    first, training, *rest = estimated(**on(gpu="NVIDIA_TESLA_T4", gpus=1, spot=True)).lines()
    assert first.startswith("At most ")
    assert " h, $" in first
    assert "100 epochs of 86 samples x 64 excerpts of 6 s, 2 targets" in training
    [trainer] = [line for line in rest if line.startswith("  Trainer")]
    assert "2 CPU, 10 GiB, 1 NVIDIA_TESLA_T4, spot" in trainer
    assert any("by a data sheet, not measured" in line for line in rest)
