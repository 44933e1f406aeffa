"""One card: form, estimate, queue and launch mean the same GPU by the field `device`."""

from dataclasses import replace

import pytest

from core.device import card_of, local_gpu
from core.device.machine import device_of_places, places_together
from core.job import SpecError
from core.resolve import resolve
from core.runs import Home, Run, launch
from tests.builders.fake_runs import NewRun
from tests.builders.nvml import (
    A100,
    DIVIDED,
    MIB,
    RTX_4090,
    SLICES,
    machine_with,
    show_machine,
)
from ui.form import gpu_choices

T4 = RTX_4090 | {"name": "Tesla T4", "mib": 15360, "capability": (7, 5)}
CARDS = (T4, RTX_4090, A100, DIVIDED)
SLICE_NAMES = tuple(each["uuid"] for each in SLICES)


def _mib_of(name: str) -> int:
    """Return the memory of what a name in CUDA_VISIBLE_DEVICES selects."""
    parts = {each["uuid"]: each for each in SLICES}
    card = parts[name] if name in parts else CARDS[int(name)]
    return int(card["mib"])


@pytest.mark.parametrize(
    ("visible", "names"),
    [
        (None, ("0", "1", "2", *SLICE_NAMES)),
        ("1,0", ("1", "0")),
        ("2,1", ("2", "1")),
        ("GPU-2,GPU-0abc", ("2", "0")),
        ("3", (SLICE_NAMES[0],)),
        ("MIG-5def,1", (SLICE_NAMES[1], "1")),
        ("MIG-5", (SLICE_NAMES[1],)),
        ("MIG-GPU-3abc/5/0", (SLICE_NAMES[1],)),
    ],
)
def test_the_card_that_is_planned_for_is_the_one_that_trains(
    home: Home,
    new_run: NewRun,
    monkeypatch: pytest.MonkeyPatch,
    visible: str | None,
    names: tuple[str, ...],
) -> None:
    run = new_run()
    show_machine(monkeypatch, machine_with(*CARDS, visible=visible))
    for device, name in enumerate(names):
        planned = resolve({"device": device}).gpu
        assert launch.devices_of(_on(run, device)) == (name,)
        assert planned.capacity_bytes == _mib_of(name) * MIB
    with pytest.raises(SpecError, match=f"no GPU {len(names)}"):
        resolve({"device": len(names)})


def _on(run: Run, device: int) -> Run:
    return replace(run, job=run.job.model_copy(update={"device": device}))


def test_a_program_sees_its_slice_alone(new_run: NewRun, monkeypatch: pytest.MonkeyPatch) -> None:
    run = new_run()
    show_machine(monkeypatch, machine_with(DIVIDED))
    environment = launch.environment(*launch.devices_of(_on(run, 1)))
    assert environment["CUDA_VISIBLE_DEVICES"] == SLICE_NAMES[1]


def test_a_slice_is_planned_as_what_it_is_and_not_as_a_processor(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    machine = machine_with(DIVIDED, visible="MIG-1")
    gpu = local_gpu(machine)
    assert gpu.name == "A100-SXM4-80GB MIG 3g.40gb"
    assert gpu.compute_capability == (8, 0)
    whole = local_gpu(machine_with(A100 | {"name": "NVIDIA A100 X"}))
    assert gpu.flops == pytest.approx(whole.flops * 3 / 7)


def test_a_slice_that_is_not_there_is_no_card() -> None:
    machine = machine_with(DIVIDED, visible="MIG-9")
    assert machine.gpus == ()
    assert "hides it" in machine.no_gpu_reason


def test_a_card_for_slices_that_has_none_is_no_card_for_cuda() -> None:
    machine = machine_with(DIVIDED | {"slices": ()}, T4)
    assert [gpu.index for gpu in machine.gpus] == [1]


def test_a_machine_without_gpus_has_no_card() -> None:
    assert card_of(0, machine_with()) is None


def test_a_card_that_is_not_there_is_refused_with_those_that_are() -> None:
    with pytest.raises(SpecError, match=r"choose 0 \(T4\), 1 \(RTX 4090\)"):
        card_of(2, machine_with(*CARDS, visible="0,1"))


def test_the_form_names_the_card_that_a_run_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = machine_with(*CARDS, visible="1,0")
    show_machine(monkeypatch, machine)
    (label, _value), *_presets = gpu_choices()
    assert "RTX 4090" in label


def test_facts_name_each_card_by_its_place() -> None:
    facts = dict(machine_with(*CARDS, visible="1,0").facts())
    assert facts["GPU 0"].startswith("RTX 4090")
    assert facts["GPU 0"].endswith("1 in CUDA_VISIBLE_DEVICES")


FOUR_ALIKE = machine_with(RTX_4090, RTX_4090, RTX_4090, RTX_4090)
TWO_KINDS = machine_with(RTX_4090, A100, RTX_4090)


@pytest.mark.parametrize(
    ("device", "num_devices", "places"),
    [(0, 2, (0, 1)), (2, 2, (2, 3)), (3, 2, (3, 0)), (1, 0, (1, 2, 3, 0))],
)
def test_cards_follow_each_other_from_the_device_on(
    device: int, num_devices: int, places: tuple[int, ...]
) -> None:
    assert places_together(device, num_devices, FOUR_ALIKE) == places


def test_cards_of_another_kind_are_left_out() -> None:
    assert places_together(0, 0, TWO_KINDS) == (0, 2)


@pytest.mark.parametrize("places", [{1}, {0, 1}, {2, 3}, {0, 3}, {0, 2, 3}, {0, 1, 2, 3}])
def test_a_device_names_the_cards_that_are_chosen(places: set[int]) -> None:
    device = device_of_places(places, FOUR_ALIKE)
    assert set(places_together(device, len(places), FOUR_ALIKE)) == places


def test_cards_with_others_in_between_are_refused() -> None:
    with pytest.raises(SpecError, match="0, 2 do not"):
        device_of_places({0, 2}, FOUR_ALIKE)


def test_cards_of_several_kinds_are_refused_together() -> None:
    with pytest.raises(SpecError, match="several kinds"):
        device_of_places({0, 1}, TWO_KINDS)
