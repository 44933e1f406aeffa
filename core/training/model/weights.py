"""Weights of a base model: loaded so that every tensor of the model came from its files.

transformers fills what the files lack with random numbers and only logs it; here that is an error.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    AutoConfig,
    BitsAndBytesConfig,
    modeling_utils,
)
from transformers.utils.hub import cached_file

from ..contract.failures import TrainingError
from ..contract.weights.files import (
    INDEX,
    NUM_SHOWN,
    UNUSED_TENSORS,
    NoWeights,
    UnusableWeights,
    listed,
    read_index,
    sizes,
    stored_tensors,
    tensors_counted,
)
from ..contract.weights.forms import Published, published_form
from ..data.tokenizer import source_of

QUANTIZATION = "quantization_config"
OTHER_HEAD = "lm_head."
"""Beginning of the names of a head that a score head replaces."""
CHUNK_ELEMENTS = 2**26
"""Numbers that are looked at together, so that a check takes little memory."""


@dataclass(frozen=True)
class BaseRequest:
    """Base model to load, and the form in which it is needed."""

    model: str
    """Hub id or folder."""
    revision: str
    dtype: torch.dtype
    has_score_head: bool = False
    """True for a model that scores texts instead of writing them."""
    quantization: BitsAndBytesConfig | None = None
    """Quantization while loading; None keeps what is not quantized in `dtype`."""
    method: str | None = None
    """Training method, if one will train it."""
    attention: str | None = None
    stays_in_main_memory: bool = False
    """True if the model will be divided among GPUs: no single one may hold it."""
    compute_dtype: torch.dtype | None = None
    """Precision of products with a base that is published in 4 bits."""


def load_base(request: BaseRequest) -> tuple[Any, frozenset[str]]:
    """Return (model, names of the tensors that its files did not hold).

    Only a score head may be absent. Raises TrainingError if anything else is absent or left over,
    has another size or is not finite, and what the libraries raise for a model that is not there.
    """
    require_sound_files(request.model, request.revision)
    config = read_config(request)
    published = published_form(config.to_dict())
    if published:
        _require_usable(request, published)
    is_dequantized = published is not None and published.form.use == "dequantized"
    quantization = None if published else request.quantization
    if is_dequantized:
        _settings_of(config)["dequantize"] = True
    elif published and request.compute_dtype:
        _settings_of(config)["bnb_4bit_compute_dtype"] = str(request.compute_dtype).split(".")[1]
    needs_second_pass = is_dequantized and request.quantization is not None
    device = None
    if torch.cuda.is_available() and not needs_second_pass:
        device = _place_of(request)
    model, info = _load(request, config, device, quantization)
    absent = require_complete(model, info, request.model, request.has_score_head)
    require_finite(model, request.model)
    if published:
        _cast_parameters(model, request.dtype)
    if needs_second_pass:
        model = _quantize(model, request)
    return model, absent


def empty_model(request: BaseRequest) -> Any:
    """Return the model of a request on the meta device: all names and sizes, and no numbers."""
    config = read_config(request)
    model_class = _class_for(config, request)
    with torch.device("meta"):
        return model_class(_config_for(model_class, config))


def read_config(request: BaseRequest) -> Any:
    """Return the configuration of the model to load."""
    config = AutoConfig.from_pretrained(
        **source_of(request.model, request.revision), trust_remote_code=False
    )
    if request.has_score_head:
        config.num_labels = 1
    return config


def require_sound_files(model: str, revision: str) -> None:
    """Raise TrainingError unless weights are plain safetensors files that belong to the model."""
    try:
        if Path(model).is_dir():
            stored_tensors(Path(model))
            return
        # What a Hub model lacks is downloaded; its index must not lead elsewhere.
        index = cached_file(
            model, INDEX, revision=revision, _raise_exceptions_for_missing_entries=False
        )
        if index is not None:
            read_index(Path(index))
    except NoWeights:
        raise TrainingError(
            f"{model} has no weights in the safetensors format.", cause="no_weights"
        ) from None
    except UnusableWeights as error:
        raise TrainingError(
            f"{model}: {error.problem}; {error.fix}.", cause="bad_weights"
        ) from None


def require_complete(
    model: Any, info: Mapping[str, Any], name: str, has_score_head: bool
) -> frozenset[str]:
    """Raise TrainingError unless all tensors came from the files, and all in the files were used.

    Return the tensors of a fresh score head.
    """
    wrong = sorted(info["mismatched_keys"])
    if wrong:
        key, stored, wanted = wrong[0]
        raise _bad_weights(
            name,
            f"{tensors_counted(len(wrong))} of another size: {key} is {sizes(stored)} in the files "
            f"and {sizes(wanted)} by config.json",
        )
    absent = frozenset(info["missing_keys"])
    fresh = frozenset(key for key in absent if has_score_head and key.startswith("score."))
    missing = absent - fresh
    if missing:
        shapes = {key: tuple(tensor.shape) for key, tensor in model.state_dict().items()}
        in_order = [key for key in shapes if key in missing] or sorted(missing)
        shown = listed([(key, shapes.get(key, ())) for key in in_order])
        problem = f"{tensors_counted(len(missing))} of the model are not in its files: {shown}"
        raise _bad_weights(name, problem)
    unused = sorted(key for key in info["unexpected_keys"] if not _is_known(key, has_score_head))
    if unused:
        problem = f"{tensors_counted(len(unused))} in its files have no place in the model"
        raise _bad_weights(name, f"{problem}: {', '.join(unused[:NUM_SHOWN])}")
    return fresh


def require_finite(model: torch.nn.Module, name: str) -> None:
    """Raise TrainingError if a weight is infinite or not a number."""
    bad = [key for key, tensor in _numbers(model) if not _is_finite(tensor)]
    if bad:
        shown = ", ".join(bad[:NUM_SHOWN])
        verb = "holds" if len(bad) == 1 else "hold"
        problem = f"{tensors_counted(len(bad))} {verb} numbers that are infinite or not a number"
        raise _bad_weights(name, f"{problem}: {shown}")


def _require_usable(request: BaseRequest, published: Published) -> None:
    found = published.problem_with(request.method)
    if found:
        raise TrainingError(f"{request.model} {found[0]}: {found[1]}.", cause="bad_weights")


def _load(
    request: BaseRequest,
    config: Any,
    device: Mapping[str, Any] | None,
    quantization: BitsAndBytesConfig | None,
) -> tuple[Any, Mapping[str, Any]]:
    model_class = _class_for(config, request)
    settings: dict[str, Any] = {}
    if request.attention is not None:
        settings["attn_implementation"] = request.attention
    if quantization is not None:
        settings[QUANTIZATION] = quantization
    with _without_adapters():
        model, info = model_class.from_pretrained(
            **source_of(request.model, request.revision),
            config=_config_for(model_class, config),
            dtype=request.dtype,
            device_map=device,
            use_safetensors=True,
            ignore_mismatched_sizes=True,  # they are refused in words afterwards
            output_loading_info=True,
            trust_remote_code=False,
            **settings,
        )
    return model, info


def _class_for(config: Any, request: BaseRequest) -> Any:
    mapping: Any = MODEL_FOR_CAUSAL_LM_MAPPING
    if request.has_score_head:
        mapping = MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING
    model_class = mapping.get(type(config), None)
    if model_class is None:
        kind = "score texts" if request.has_score_head else "write texts"
        raise TrainingError(
            f"transformers has no class of the type {config.model_type} that could {kind}: choose "
            "another model.",
            cause="bad_model",
        )
    return model_class[0] if isinstance(model_class, tuple) else model_class


def _config_for(model_class: Any, config: Any) -> Any:
    """Return the configuration, or of a larger model that of the text decoder alone."""
    text_config = config.get_text_config()
    if text_config is config or model_class.config_class is not type(text_config):
        return config
    settings = getattr(config, QUANTIZATION, None)
    if settings is not None:
        setattr(text_config, QUANTIZATION, settings)
    return text_config


def _place_of(request: BaseRequest) -> dict[str, Any]:
    """Return the device map of a model: the GPU of this rank, or main memory."""
    if request.stays_in_main_memory:
        return {"": "cpu"}
    return {"": torch.cuda.current_device()}


def _quantize(model: Any, request: BaseRequest) -> Any:
    """Return a model that was loaded dequantized, quantized as the job asks.

    transformers does not change one quantization into another while loading.
    """
    device = _place_of(request) if torch.cuda.is_available() else None
    quantized, info = type(model).from_pretrained(
        None,
        config=model.config,
        state_dict=model.state_dict(),
        quantization_config=request.quantization,
        dtype=request.dtype,
        attn_implementation=request.attention,
        device_map=device,
        ignore_mismatched_sizes=True,
        output_loading_info=True,
        trust_remote_code=False,
    )
    quantized.config.name_or_path = request.model
    quantized.name_or_path = request.model
    if getattr(model, "generation_config", None) is not None:
        quantized.generation_config = model.generation_config
    require_complete(quantized, info, request.model, has_score_head=False)
    return quantized


def _cast_parameters(model: Any, dtype: torch.dtype) -> None:
    """Cast what transformers keeps as it is stored beside quantized tensors.

    Those that stay quantized have a class of their own. Buffers stay: rotary tables are computed
    in float32.
    """
    kept = {*(model._keep_in_fp32_modules or ()), *(model._keep_in_fp32_modules_strict or ())}
    for name, parameter in model.named_parameters():
        is_plain = type(parameter) is torch.nn.Parameter and parameter.is_floating_point()
        if is_plain and not kept & set(name.split(".")):
            parameter.data = parameter.data.to(dtype)


@contextmanager
def _without_adapters() -> Iterator[None]:
    """Keep transformers from adding an adapter whose files were left in the folder of a model."""
    name = "maybe_load_adapters"
    original = getattr(modeling_utils, name)

    def ignore(model: Any, _download: Any, **settings: Any) -> tuple[None, Any, Any]:
        return None, model, settings

    setattr(modeling_utils, name, ignore)
    try:
        yield
    finally:
        setattr(modeling_utils, name, original)


def _settings_of(config: Any) -> dict[str, Any]:
    """Return the quantization settings of a configuration, as a mapping that it keeps."""
    for part in (config, config.get_text_config()):
        settings = getattr(part, QUANTIZATION, None)
        if settings is not None:
            settings = dict(settings)
            setattr(part, QUANTIZATION, settings)
            return settings
    return {}


def _is_known(key: str, has_score_head: bool) -> bool:
    return bool(UNUSED_TENSORS.search(key)) or (has_score_head and key.startswith(OTHER_HEAD))


def _numbers(model: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the floating-point tensors of a model; of quantized weights, their scales."""
    for key, tensor in (*model.named_parameters(), *model.named_buffers()):
        state = getattr(tensor, "quant_state", None)
        # Packed 4-bit weights that will be divided among devices only look like numbers.
        if tensor.is_floating_point() and state is None:
            yield key, tensor.detach()
        for scales in (getattr(state, "absmax", None), getattr(state, "offset", None)):
            if scales is not None and scales.is_floating_point():
                yield key, scales
        rows = getattr(tensor, "SCB", None)
        if rows is not None:
            yield key, rows


def _is_finite(tensor: torch.Tensor) -> bool:
    if tensor.element_size() == 1:  # FP8 has no infinity that could be asked for
        return True
    return all(bool(part.isfinite().all()) for part in tensor.flatten().split(CHUNK_ELEMENTS))


def _bad_weights(name: str, problem: str) -> TrainingError:
    fix = "download the model again, or choose another"
    return TrainingError(f"{name}: {problem}: {fix}.", cause="bad_weights")
