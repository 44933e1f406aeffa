"""Sentences and causes of failures."""

from subprocess import CalledProcessError

import pytest

from core.training.contract.failures import CAUSES, TrainingError, diagnose

MODEL = "owner/name"


class OutOfMemoryError(RuntimeError):
    """Error with the name of torch's."""


class GatedRepoError(OSError):
    """Error with the name of huggingface_hub's."""


OUT_OF_MEMORY = OutOfMemoryError(
    "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 14.56 GiB of "
    "which 1.20 GiB is free.\nIncluding non-PyTorch memory, this process has 13.36 GiB memory in "
    "use."
)


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (
            OUT_OF_MEMORY,
            "Out of GPU memory in the backward pass: 2.00 GiB more was needed, 1.20 GiB of "
            "14.56 GiB was free.",
        ),
        (TrainingError("dataset line 3: is empty."), "dataset line 3: is empty."),
        (
            OSError(28, "No space left on device"),
            "The disk is full: nothing more could be written in the backward pass.",
        ),
        (
            ModuleNotFoundError("No module named 'nope.sub'"),
            "A package is missing where the training runs: pip install nope.",
        ),
        (ValueError("first\nsecond"), "ValueError: first"),
    ],
)
def test_a_failure_is_one_sentence(error: Exception, sentence: str) -> None:
    assert diagnose(error, MODEL, "backward").sentence == sentence


def test_sizes_in_a_message_become_bytes() -> None:
    failure = diagnose(OUT_OF_MEMORY, MODEL, "backward")
    assert (failure.needed_bytes, failure.free_bytes) == (2 * 2**30, int(1.2 * 2**30))


def test_a_failure_is_recognized_by_what_it_was_raised_from() -> None:
    outer = OSError("You are trying to access a gated repo.")
    outer.__cause__ = GatedRepoError("403")
    sentence = diagnose(outer, MODEL, "load").sentence
    assert sentence.startswith("owner/name is gated: accept its licence at")


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        (MemoryError(), "out_of_memory"),
        (RuntimeError("CUDA error: out of memory"), "out_of_gpu_memory"),
        (
            RuntimeError("[enforce fail at inline_container.cc:664] . unexpected pos 576 vs 470"),
            "disk_full",
        ),
        (OSError(122, "Disk quota exceeded"), "disk_full"),
        (
            OSError("libcudart.so.13: cannot open shared object file: No such file or directory"),
            "import_error",
        ),
        (
            RuntimeError("Failed to find C compiler. Please specify via CC environment variable"),
            "cannot_compile",
        ),
        (
            NotImplementedError("FlexAttention does not support backward on CPU."),
            "attention_unavailable",
        ),
        (CalledProcessError(1, ["/usr/bin/gcc", "/tmp/x/main.c", "-O3"]), "cannot_compile"),
        (
            RuntimeError("CUDA error: no kernel image is available for execution on the device"),
            "gpu_unusable",
        ),
        (RuntimeError("CUDA error: unspecified launch failure"), "gpu_failed"),
        (RuntimeError("CUDA error: uncorrectable ECC error encountered"), "gpu_failed"),
        (RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"), "gpu_failed"),
        (RuntimeError("NVMLError_GpuIsLost: GPU is lost"), "gpu_failed"),
        (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), "out_of_gpu_memory"),
        (TrainingError("dataset line 3: is empty.", cause="bad_row"), "bad_row"),
        (KeyError("x"), "unknown"),
    ],
)
def test_a_failure_has_a_stable_cause(error: Exception, cause: str) -> None:
    assert diagnose(error, MODEL, "load").cause == cause


@pytest.mark.parametrize("cause", CAUSES, ids=lambda cause: cause.id)
def test_a_cause_is_a_plain_name(cause: object) -> None:
    name = getattr(cause, "id", "")
    assert name.replace("_", "").isalpha()
    assert name.islower()
