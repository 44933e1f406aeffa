"""Test how models are divided, in a group whose other ranks do not exist."""

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate.utils import FullyShardedDataParallelPlugin
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from transformers import LlamaConfig, LlamaForCausalLM
from trl.trainer import dpo_trainer
from trl.trainer.utils import add_fused_lm_head

from core.training.contract.job import Job
from core.training.model.load import choose_precision, quantization_config
from core.training.model.weights import BaseRequest, load_base
from core.training.trainers.sharding import divide_reference, references_divided_by_layer
from core.workers.trace.ranks import group_of
from tests.builders.model_folders import DEMO_MODEL

pytestmark = pytest.mark.training
DIVIDED = {"num_devices": 2, "parallelism": "fsdp"}
NUM_LAYERS = 3
NUM_OTHER_GROUPS = 4
"""Embedding, last norm, head, and the root."""


@pytest.fixture(scope="module")
def reference() -> Iterator[Any]:
    """A tiny model, divided between two ranks and asked once."""
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=NUM_LAYERS,
        num_attention_heads=2,
    )
    model = LlamaForCausalLM(config).requires_grad_(False)
    add_fused_lm_head(model)
    names = ["LlamaDecoderLayer"]
    plugin = FullyShardedDataParallelPlugin(
        fsdp_version=2,
        transformer_cls_names_to_wrap=names,
        auto_wrap_policy="transformer_based_wrap",
    )
    accelerator = SimpleNamespace(
        state=SimpleNamespace(fsdp_plugin=plugin),
        torch_device_mesh=None,
        mixed_precision="no",
        is_main_process=True,
    )
    with group_of(2):
        divided = divide_reference(model, accelerator)
        ids = torch.zeros(2, 8, dtype=torch.long)
        with torch.no_grad():
            divided(input_ids=ids, labels=ids, fused_lm_head=True)
        yield divided


def test_each_layer_of_a_reference_is_gathered_alone(reference: Any) -> None:
    divided = [module for module in reference.modules() if isinstance(module, FSDPModule)]
    assert len(divided) == NUM_LAYERS + NUM_OTHER_GROUPS


def test_nothing_of_a_reference_stays_whole(reference: Any) -> None:
    whole = [name for name, each in reference.named_parameters() if not isinstance(each, DTensor)]
    assert whole == []


def test_the_trainers_are_as_before_afterwards() -> None:
    before = dpo_trainer.prepare_fsdp
    with references_divided_by_layer():
        assert dpo_trainer.prepare_fsdp is divide_reference
    assert dpo_trainer.prepare_fsdp is before


def test_a_base_that_will_be_divided_never_is_whole_on_a_gpu(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    job = Job.from_json({"model": str(DEMO_MODEL), "dataset": "", "method": "qlora", **DIVIDED})
    precision = choose_precision("auto", job.method)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)  # it is not: any use would fail
    request = BaseRequest(
        job.model,
        job.revision,
        precision.weights,
        quantization=quantization_config(job, precision),
        method=job.method,
        stays_in_main_memory=True,
    )
    model, _absent = load_base(request)
    assert {parameter.device.type for parameter in model.parameters()} == {"cpu"}
    assert any(hasattr(parameter, "quant_state") for parameter in model.parameters())
