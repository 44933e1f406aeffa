"""Errors of a trace in words: an unknown architecture may raise anything."""

import pytest

from core.job import Problem
from core.training.contract.failures import TrainingError
from core.workers.trace.__main__ import explain

UNKNOWN_ERRORS: list[Exception] = [
    RuntimeError("The size of tensor a (16) must match the size of tensor b (3)"),
    NotImplementedError("aten::_linalg_eigvals: attempted to run this operator on meta tensors"),
    KeyError("layer_types"),
    AttributeError("'NoneType' object has no attribute 'shape'"),
    TypeError("unhashable type: 'list'"),
]


def explained(error: Exception, num_devices: int = 1) -> Problem:
    request = {"config": {"model_type": "odd_lm"}, "job": {"num_devices": num_devices}}
    return explain(error, request)


@pytest.mark.parametrize("error", UNKNOWN_ERRORS, ids=lambda error: type(error).__name__)
def test_an_error_of_a_library_is_said_in_words(error: Exception) -> None:
    said = "models of the type odd_lm cannot take a step without their weights"
    assert explained(error).problem == said


def test_a_rank_that_cannot_be_traced_is_named() -> None:
    said = "cannot take a step without their weights, as one of 4 devices"
    assert said in explained(UNKNOWN_ERRORS[0], num_devices=4).problem


@pytest.mark.parametrize(
    "message",
    [
        "Target modules {'q_proj'} not found in the base model.",
        "[PEFT:PeftType.LORA] Module 'out_proj' is incompatible with Mamba-based models",
    ],
)
def test_layers_that_take_no_adapter_are_a_fault_of_target_modules(message: str) -> None:
    assert explained(ValueError(message)).field == "target_modules"


def test_a_known_failure_keeps_its_sentence() -> None:
    known = explained(TrainingError("modules_to_save: the model has no layers odd."))
    assert known.problem == "modules_to_save: the model has no layers odd"
