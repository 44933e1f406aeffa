"""Exceptions of a training, and one plain sentence for any other exception. Catches nothing."""

import re
from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Failure:
    """Reason why a run failed, as in status.json."""

    cause: str
    """Stable name: the id of a row in CAUSES, or the one given to a TrainingError."""
    sentence: str
    needed_bytes: int | None = None
    """Memory or disk that was missing, if known."""
    free_bytes: int | None = None


class UnusableJob(Exception):
    """Raised for a job file that cannot be read, or lacks a field."""


class TrainingError(Exception):
    """Raised with a message that is already a plain sentence."""

    def __init__(
        self,
        sentence: str,
        cause: str = "bad_job",
        *,
        needed_bytes: int | None = None,
        free_bytes: int | None = None,
    ):
        super().__init__(sentence)
        self.failure = Failure(cause, sentence, needed_bytes, free_bytes)


class Stopped(BaseException):
    """Raised when the user has asked for an end.

    Like KeyboardInterrupt it is no Exception, so that no library catches it.
    """


@dataclass(frozen=True)
class Cause:
    """Kind of failure: how it is recognized, and what to say about it."""

    id: str
    pattern: str
    """Regular expression, searched in `TypeName: message` of the error and its causes."""
    sentence: str
    """Sentence that may name {model}, {activity} and the pattern's groups."""


UNKNOWN = "unknown"
"""Cause of an error that no row of CAUSES knows."""
GPU_FAILED = "gpu_failed"
"""Cause after which the card may be lost for every program."""
# fmt: off
CAUSES = (
    Cause("out_of_gpu_memory",
          r"OutOfMemoryError: .*?Tried to allocate (?P<needed>[\d.]+ \w+)"
          r".*?total capacity of (?P<total>[\d.]+ \w+) of which (?P<free>[\d.]+ \w+) is free",
          "Out of GPU memory {activity}: {needed} more was needed, {free} of {total} was free."),
    Cause("out_of_gpu_memory",
          r"OutOfMemoryError|(CUDA|HIP) (driver )?error: out of memory|out of memory at line"
          r"|(CUBLAS|CUDNN)_STATUS_ALLOC_FAILED",
          "Out of GPU memory {activity}."),
    Cause("out_of_memory",
          r"^MemoryError|can't allocate memory|Cannot allocate memory",
          "Out of main memory {activity}."),
    Cause("disk_full",
          r"No space left on device|Disk quota exceeded|File too large|StorageFull|QuotaExceeded"
          r"|FileTooLarge|PytorchStreamWriter failed|inline_container\.cc.*unexpected pos",
          "The disk is full: nothing more could be written {activity}."),
    Cause("gated_model",
          r"^GatedRepoError",
          "{model} is gated: accept its licence at https://huggingface.co/{model}, then log in "
          "with `hf auth login`."),
    Cause("model_not_found",
          r"^RevisionNotFoundError",
          "{model} has no such revision on the Hugging Face Hub."),
    Cause("model_not_found",
          r"^RepositoryNotFoundError",
          "There is no model {model} on the Hugging Face Hub, or it is private and you are not "
          "logged in."),
    Cause("offline",
          r"^(OfflineModeIsEnabled|LocalEntryNotFoundError|ConnectError|ConnectionError)"
          r"|couldn't connect to 'http",
          "{model} is not on this machine, and the Hugging Face Hub cannot be reached."),
    Cause("no_weights",
          r"does not appear to have a file named .*(safetensors|pytorch_model)"
          r"|no file named model\.safetensors",
          "{model} has no weights in the safetensors format."),
    Cause("model_not_found",
          r"^OSError: .*is not a local folder and is not a valid model",
          "There is no model {model}, here or on the Hub."),
    Cause("bad_target_modules",
          r"Target modules (?P<names>.+?) not found in the base model",
          "target_modules: {model} has no layers {names}; choose all-linear, or the names of its "
          "layers."),
    Cause("bad_target_modules",
          r"Module '(?P<names>[\w.]+)' is incompatible with Mamba-based models",
          "target_modules: an adapter cannot train {names} of {model}; name other layers."),
    Cause("attention_unavailable",
          r"FlashAttention\d? has been toggled on",
          "attn_implementation: FlashAttention is not usable here; install flash-attn, or choose "
          "sdpa."),
    Cause("attention_unavailable",
          r"FlexAttention does not support backward on CPU|through torch's flex_attention",
          "attn_implementation: FlexAttention trains on a GPU only, and not every model; choose "
          "sdpa."),
    Cause("cannot_compile",
          r"TritonMissing|TooOldForTriton|Failed to find C compiler|InvalidCxxCompiler"
          r"|CppCompileError|CalledProcessError: Command '\['[^']*(gcc|clang|cc)'",
          "torch.compile cannot build kernels here: Triton, a C compiler or Python's headers are "
          "missing."),
    Cause("import_error",
          r"^ModuleNotFoundError: No module named '(?P<package>[\w-]+)",
          "A package is missing where the training runs: pip install {package}."),
    Cause("import_error",
          r"^(ImportError|OSError): "
          r"(?P<what>lib\S+: cannot open shared object file|.*undefined symbol: \S+)",
          "A library that a package needs is missing or of another version: {what}."),
    Cause("gpu_unusable",
          r"no kernel image is available|CUDA driver version is insufficient"
          r"|The NVIDIA driver on your system is too old|Torch not compiled with CUDA enabled",
          "The installed PyTorch cannot use this GPU: install the build that fits its driver (see "
          "`doctor`)."),
    Cause(GPU_FAILED,
          r"(?P<what>[^\n]*(GPU is lost|fallen off the bus|[Uu]ncorrectable ECC|ECC error"
          r"|(CUDA|HIP|cuDNN|NCCL)( driver)? error|(CUDNN|CUBLAS|CUSOLVER)_STATUS_\w+)[^\n]*)",
          "The GPU or its driver failed {activity}: {what}"),
)
# fmt: on
"""Known failures. The first match wins."""
ACTIVITIES = {
    "import": "while starting",
    "data": "while preparing the data",
    "load": "while loading the model",
    "generation": "while generating answers",
    "forward": "in the forward pass",
    "backward": "in the backward pass",
    "optimizer_step": "in the optimizer step",
    "eval": "in the evaluation",
    "save": "while saving",
}
UNITS = {"bytes": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}


def diagnose(error: BaseException, model: str, activity: str) -> Failure:
    """Return the failure that an error means. `activity` is a phase, or an activity in a step."""
    if isinstance(error, TrainingError):
        return error.failure
    words = {"model": model, "activity": ACTIVITIES.get(activity, "while training")}
    for link in _chain(error):
        text = f"{type(link).__name__}: {link}"
        for cause in CAUSES:
            match = re.search(cause.pattern, text, re.DOTALL)
            if match:
                groups = match.groupdict()
                sentence = cause.sentence.format(**words, **groups)
                needed, free = _num_bytes(groups.get("needed")), _num_bytes(groups.get("free"))
                return Failure(cause.id, sentence, needed, free)
    lines = str(error).strip().splitlines() or ["no message"]
    return Failure(UNKNOWN, f"{type(error).__name__}: {lines[0]}")


def gib(num_bytes: float) -> str:
    """Return a size for a sentence, such as 12.3 GiB."""
    if num_bytes < 2**30 / 20:
        return f"{num_bytes / 2**20:,.1f} MiB"
    return f"{num_bytes / 2**30:,.1f} GiB"


def _num_bytes(size: str | None) -> int | None:
    """Return the bytes of a size as PyTorch writes it, such as `2.00 GiB`."""
    number, _, unit = (size or "").partition(" ")
    return int(float(number) * UNITS[unit]) if unit in UNITS else None


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """Yield the error, then what it was raised from, or during."""
    while error is not None:
        yield error
        if error.__cause__ or error.__suppress_context__:
            error = error.__cause__
        else:
            error = error.__context__
