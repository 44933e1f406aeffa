"""Hold the tensors in a model's files against the parameters that its config.json asks for.

Reads headers only. Families that are not known are checked by the training, after loading.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from math import prod

from core.models.shapes import ModelShape, Parameter
from core.training.contract.weights.adapters import COPY_AGAIN, SETTINGS, AdapterFiles
from core.training.contract.weights.files import (
    FLOAT_TYPES,
    NUM_SHOWN,
    UNUSED_TENSORS,
    StoredTensor,
    Tensors,
    UnusableWeights,
    listed,
    sizes,
    tensors_counted,
)
from core.training.contract.weights.forms import Published
from core.training.contract.weights.parameters import adapted_parameters

CORRECT_CONFIG = "download the model again, or correct its config.json"
MOVED_PREFIXES = (
    ("language_model.model.", "model."),
    ("model.language_model.", "model."),
    ("language_model.lm_head.", "lm_head."),
)
"""Beginnings of names under which the text decoder of a model with vision is published."""
OLDER_NAMES = ((".block_sparse_moe.gate.", ".mlp.gate."), (".block_sparse_moe.", ".mlp."))
"""Names of Mixtral as published -> names of the class in transformers."""
EXPERT_PARTS: Mapping[str, tuple[tuple[str, ...], ...]] = {
    "gate_up_proj": (("gate_proj", "up_proj"), ("w1", "w3")),
    "down_proj": (("down_proj",), ("w2",)),
}
"""Tensor of all experts -> names of the matrices of one expert, as models are published."""
EXPERT = re.compile(r"\.experts\.(\d+)\.")


def require_all_parameters(
    tensors: Tensors, shape: ModelShape, published: Published | None, has_score_head: bool
) -> None:
    """Raise UnusableWeights unless the files hold every parameter of the model, and nothing else.

    `has_score_head` is True for a stage that replaces the output head.
    """
    found = {name_in_model(name, tensors): tensor for name, tensor in tensors.items()}
    if published is None:
        _require_plain_types(found)
        missing, wrong = _held_against(found, shape)
    else:
        missing, wrong = _held_by_modules(found, shape), []
    missing = [each for each in missing if not _may_be_absent(each, found, shape, has_score_head)]
    if missing:
        raise UnusableWeights(_sentence_of_missing(missing), CORRECT_CONFIG)
    if wrong:
        raise UnusableWeights(_sentence_of_wrong(wrong), CORRECT_CONFIG)
    unused = list(_unused(found, shape, published is not None))
    if unused:
        shown = listed([(name, found[name].shape) for name in unused])
        problem = f"{tensors_counted(len(unused))} in its weights have no place in config.json"
        raise UnusableWeights(f"{problem}: {shown}", CORRECT_CONFIG)


def require_adapter_fits(adapter: AdapterFiles, shape: ModelShape, reference: str) -> None:
    """Raise UnusableWeights unless the model has every tensor that an adapter was trained beside.

    And unless the adapter has matrices for every layer that its settings name. `reference` is how
    the person names the model.
    """
    found = {parameter.name: parameter.shape for parameter in shape.parameters()}
    if shape.tie_word_embeddings:
        found["lm_head.weight"] = (shape.vocab_size, shape.hidden_size)
    asked: dict[str, tuple[int, ...]] = dict(adapter.saved)
    for module, (_rank, num_in, num_out) in adapter.modules.items():
        asked[f"{module}.weight"] = (num_out, num_in)
    wrong = [
        (name.removesuffix(".weight"), wanted)
        for name, wanted in asked.items()
        if found.get(name_in_model(name, {})) != wanted
    ]
    if wrong:
        base = adapter.base or "a model that it does not name"
        problem = f"it was trained over {base}, and these of its layers do not fit the model: "
        raise UnusableWeights(problem + listed(wrong), _other_base(adapter.base, reference))
    _require_no_layer_left_out(adapter, shape)
    adapted_parameters(adapter, {each.name: each.shape for each in shape.parameters()})


def _other_base(base: str, reference: str) -> str:
    """Return which model to choose for an adapter that does not fit the one that was named."""
    if base == reference:
        return f"{COPY_AGAIN}, or those of {base}"
    if base:
        return f"choose {base} as model"
    return "choose the model that it was trained over"


def _require_no_layer_left_out(adapter: AdapterFiles, shape: ModelShape) -> None:
    adapted = {name_in_model(module, {}) for module in adapter.modules}
    names = adapter.settings["target_modules"]
    assert isinstance(names, list)
    for parameter in shape.parameters():
        module = parameter.name.removesuffix(".weight")
        is_named = any(f".{module}".endswith(f".{name_in_model(name, {})}") for name in names)
        if parameter.is_linear and is_named and module not in adapted:
            problem = f"{SETTINGS} names {parameter.module}, but its weights have no matrices for "
            raise UnusableWeights(problem + module, COPY_AGAIN)


def name_in_model(name: str, tensors: Tensors) -> str:
    """Return the name of a tensor in files as the class in transformers calls it.

    `tensors` are all tensors of the files, by which files without a head are known.
    """
    for published, moved in MOVED_PREFIXES:
        if name.startswith(published):
            name = moved + name.removeprefix(published)
    for older, newer in OLDER_NAMES:
        name = name.replace(older, newer)
    if "embed_tokens.weight" in tensors and not name.startswith(("lm_head.", "score.")):
        return f"model.{name}"  # files of the decoder without its head
    return name


def holds_experts(name: str, tensors: Tensors) -> bool:
    """Return True for the name of a parameter that holds layers of experts of these files."""
    parts = EXPERT_PARTS.get(name.removeprefix("experts."), ())
    endings = tuple(f".{part}.weight" for names in parts for part in names)
    return bool(endings) and any(EXPERT.search(each) and each.endswith(endings) for each in tensors)


def _require_plain_types(found: Tensors) -> None:
    for name, tensor in found.items():
        if tensor.dtype not in FLOAT_TYPES and not UNUSED_TENSORS.search(name):
            problem = f"{name} is stored as {tensor.dtype}, and config.json does not say how it is"
            fix = "choose the 16-bit model that it was made from"
            raise UnusableWeights(f"{problem} quantized", fix)


def _held_against(
    found: Tensors, shape: ModelShape
) -> tuple[list[Parameter], list[tuple[Parameter, StoredTensor]]]:
    """Return (parameters that are missing, those of another size) of a model of plain numbers."""
    missing, wrong = [], []
    for parameter in shape.parameters():
        tensor = found.get(parameter.name)
        parts = _expert_parts(parameter, found) if tensor is None else None
        if tensor is not None:
            if tensor.shape != parameter.shape:
                wrong.append((parameter, tensor))
        elif parts is None:
            missing.append(parameter)
        elif sum(prod(part.shape) for part in parts) != parameter.numel:
            wrong.append((parameter, parts[0]))
    return missing, wrong


def _expert_parts(parameter: Parameter, found: Tensors) -> Sequence[StoredTensor] | None:
    """Return the matrices of single experts that make up a tensor; None if one is missing."""
    prefix, _, name = parameter.name.rpartition(".")
    if parameter.role != "expert":
        return None
    for names in EXPERT_PARTS.get(name, ()):
        wanted = [
            f"{prefix}.{expert}.{part}.weight"
            for expert in range(parameter.shape[0])
            for part in names
        ]
        if all(each in found for each in wanted):
            return [found[each] for each in wanted]
    return None


def _held_by_modules(found: Tensors, shape: ModelShape) -> list[Parameter]:
    """Return the parameters of a quantized model of whose module the files hold nothing."""
    modules = {ancestor for name in found for ancestor in _ancestors(name)}
    missing = []
    for parameter in shape.parameters():
        if parameter.name in found:
            continue
        module = parameter.name.rpartition(".")[0]
        is_there = parameter.role in ("linear", "head") and module in modules
        if parameter.role == "expert":
            is_there = any(name.startswith(parameter.name) for name in found)
            is_there = is_there or f"{module}.0" in modules
        if not is_there:
            missing.append(parameter)
    return missing


def _may_be_absent(
    parameter: Parameter, found: Tensors, shape: ModelShape, has_score_head: bool
) -> bool:
    """Return True for a head that another replaces, and an embedding that its tied head gives."""
    if parameter.role == "head":
        return has_score_head
    is_tied = parameter.role == "embedding" and shape.tie_word_embeddings
    return is_tied and "lm_head.weight" in found


def _unused(found: Tensors, shape: ModelShape, is_quantized: bool) -> Iterator[str]:
    """Yield the names of tensors that no parameter of the model is made of."""
    parameters = {parameter.name for parameter in shape.parameters()} | {"lm_head.weight"}
    modules = {name.rpartition(".")[0] for name in parameters}
    for name in found:
        if name in parameters or UNUSED_TENSORS.search(name):
            continue
        expert = EXPERT.search(name)
        if expert and name[: expert.start(1) - 1] in modules:
            if int(expert.group(1)) >= shape.num_experts:
                yield name
        elif not is_quantized or not modules.intersection(_ancestors(name)):
            yield name


def _ancestors(name: str) -> Iterator[str]:
    parts = name.split(".")
    for end in range(1, len(parts)):
        yield ".".join(parts[:end])


def _sentence_of_missing(missing: Sequence[Parameter]) -> str:
    verb = "is" if len(missing) == 1 else "are"
    said = f"{tensors_counted(len(missing))} that config.json asks for {verb} not in its weights: "
    return said + listed([(each.name, each.shape) for each in missing])


def _sentence_of_wrong(wrong: Sequence[tuple[Parameter, StoredTensor]]) -> str:
    shown = ", ".join(
        f"{parameter.name} is {sizes(tensor.shape)} in the weights and "
        f"{sizes(parameter.shape)} by config.json"
        for parameter, tensor in wrong[:NUM_SHOWN]
    )
    return f"{tensors_counted(len(wrong))} of another size: {shown}"
