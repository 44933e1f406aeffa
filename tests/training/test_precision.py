"""Precision and measured memory, as on GPUs that are not here."""

import pytest

from core.training.contract.failures import TrainingError

pytestmark = pytest.mark.training
CAPACITY_BYTES, FREE_BYTES = 1000, 900


def set_gpu(monkeypatch: pytest.MonkeyPatch, *, exists: bool, has_bf16: bool) -> None:
    """Make torch find a GPU, or none."""
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: exists)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: has_bf16)


@pytest.mark.parametrize(
    ("gpu", "method", "dtype", "weights", "autocast", "adapters"),
    [
        ("none", "full", "auto", "float32", None, "float32"),
        ("none", "qlora", "auto", "float32", None, "float32"),
        ("with bf16", "full", "auto", "bfloat16", "bfloat16", "bfloat16"),
        ("with bf16", "full", "float32", "float32", "bfloat16", "bfloat16"),
        ("with bf16", "qlora", "auto", "bfloat16", "bfloat16", "bfloat16"),
        ("without bf16", "full", "auto", "float32", "float16", "float32"),
        ("without bf16", "lora", "auto", "float16", "float16", "float32"),
        ("without bf16", "qlora", "auto", "float16", "float16", "float32"),
    ],
)
def test_the_precision_follows_the_device(
    monkeypatch: pytest.MonkeyPatch,
    gpu: str,
    method: str,
    dtype: str,
    weights: str,
    autocast: str | None,
    adapters: str,
) -> None:
    import torch

    from core.training.model.load import choose_precision

    set_gpu(monkeypatch, exists=gpu != "none", has_bf16=gpu == "with bf16")
    found = choose_precision(dtype, method)
    assert found.weights == getattr(torch, weights)
    assert found.autocast == (getattr(torch, autocast) if autocast else None)
    assert found.quantized_base_adapters == getattr(torch, adapters)


@pytest.mark.parametrize("method", ["full", "freeze"])
@pytest.mark.parametrize("has_bf16", [True, False])
def test_weights_that_train_in_float16_are_refused(
    monkeypatch: pytest.MonkeyPatch, method: str, has_bf16: bool
) -> None:
    from core.training.model.load import choose_precision

    set_gpu(monkeypatch, exists=True, has_bf16=has_bf16)
    with pytest.raises(TrainingError, match="float16"):
        choose_precision("float16", method)


@pytest.mark.parametrize("has_bf16", [True, False])
def test_a_frozen_base_may_be_in_float16(monkeypatch: pytest.MonkeyPatch, has_bf16: bool) -> None:
    import torch

    from core.training.model.load import choose_precision

    set_gpu(monkeypatch, exists=True, has_bf16=has_bf16)
    assert choose_precision("float16", "lora").weights == torch.float16


@pytest.mark.filterwarnings("ignore:`(is_)?gradient_checkpointing:FutureWarning")
@pytest.mark.parametrize("is_quantized", [False, True])
def test_gradients_over_a_float16_base_can_be_unscaled(is_quantized: bool) -> None:
    import torch
    from peft import LoraConfig, get_peft_model
    from torch.amp.grad_scaler import GradScaler

    from core.training.model.load import ModelPrecision, cast_adapters
    from tests.builders.tiny_models import model_of

    config = LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["lm_head"])
    model = get_peft_model(model_of("llama").half(), config)
    precision = ModelPrecision(torch.float16, torch.float16, torch.float32)
    dtype = precision.adapters(is_quantized)
    assert dtype is not None
    cast_adapters(model, dtype)
    optimizer = torch.optim.SGD(weight for weight in model.parameters() if weight.requires_grad)
    scaler = GradScaler("cpu")
    ids = torch.ones(1, 4, dtype=torch.long)
    with torch.autocast("cpu", torch.float16):
        loss = model(input_ids=ids, labels=ids).loss
    scaler.scale(loss).backward()
    scaler.unscale_(optimizer)  # raises for gradients in float16


# Memory


class FakeAllocator:
    """Counters of torch.cuda, set by hand."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        import torch

        self.live = self.peak = 0
        for name, function in {
            "get_device_name": lambda: "GPU",
            "mem_get_info": lambda: (FREE_BYTES, CAPACITY_BYTES),
            "memory_allocated": lambda: self.live,
            "memory_reserved": lambda: self.live,
            "max_memory_allocated": lambda: self.peak,
            "max_memory_reserved": lambda: self.peak,
            "empty_cache": lambda: None,
            "reset_peak_memory_stats": self.reset_peak,
        }.items():
            monkeypatch.setattr(torch.cuda, name, function)

    def allocate_up_to(self, live: int) -> None:
        self.live = live
        self.peak = max(live, self.peak)

    def reset_peak(self) -> None:
        self.peak = self.live


@pytest.fixture
def allocator(monkeypatch: pytest.MonkeyPatch) -> FakeAllocator:
    return FakeAllocator(monkeypatch)


def test_each_phase_keeps_its_own_peak(allocator: FakeAllocator) -> None:
    from core.training.loop.meter import CudaGauge, MemoryMeter

    meter = MemoryMeter(CudaGauge(), {"forward": 1, "backward": 1})
    for phase, highest in (("forward", 100), ("backward", 60), ("forward", 80)):
        meter.enter(phase)
        allocator.allocate_up_to(highest)
        allocator.allocate_up_to(40)
    meter.leave()
    assert meter.peaks == {"forward": 100, "backward": 60}
    assert meter.gauge.highest()["peak_allocated_bytes"] == 100


def test_memory_of_the_samples_is_not_counted(allocator: FakeAllocator) -> None:
    from core.training.loop.meter import CudaGauge, MemoryMeter

    meter = MemoryMeter(CudaGauge(), {})
    allocator.allocate_up_to(50)
    with meter.unmeasured():
        allocator.allocate_up_to(500)
        allocator.allocate_up_to(50)
    readings = meter.gauge.readings()
    assert readings["memory_peak_bytes"] == 50
    assert readings["device_used_bytes"] == CAPACITY_BYTES - FREE_BYTES
