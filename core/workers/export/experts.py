"""Experts in the files of a base: what an adapter adds to each tensor there. Writes nothing.

transformers keeps all experts of a layer in one parameter, files often a tensor for each. Its own
mapping says how one becomes the other. It is undone here for the two factors of what is added, so
that no parameter has to be in memory as a whole.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    Chunk,
    Interleave,
    SplitModulelist,
    Transpose,
    WeightConverter,
    WeightRenaming,
    dot_natural_key,
    rename_source_key,
)

from core.models.weights import name_in_model
from core.training.contract.weights.adapters import PREFIX, AdapterFiles, scale_of
from core.training.contract.weights.files import StoredTensor, UnusableWeights, sizes
from core.training.contract.weights.parameters import AdaptedParameter, adapted_parameters
from core.training.model.experts import is_transposed, shapes_of

Factors = tuple[torch.Tensor, torch.Tensor]
"""[rows, rank] and [rank, columns]; of several experts, with those as the first dimension."""
Named = dict[str, torch.Tensor]
ROWS, COLUMNS = (1, -2), (2, -1)
"""Dimensions of a parameter that holds experts."""
USE_TOGETHER = "use base and adapter together"


@dataclass(frozen=True)
class ExpertParameter:
    """Parameter with an adapter, and the tensors of the files that it is made of."""

    parameter: AdaptedParameter
    scale: float
    is_transposed: bool
    """True if each expert is [in, out] in the model."""
    stored: Mapping[str, str]
    """Tensor of the files -> its name in the mapping of transformers."""
    converter: WeightConverter | None
    """How transformers makes the parameter of these tensors; None if it is one of them."""
    differs: bool
    """True if the files hold it in one tensor of another shape."""

    @property
    def down(self) -> str:
        """Name of the first matrix in the adapter: [ranks of all experts, in]."""
        return f"{PREFIX}{self.parameter.place}.lora_A.weight"

    @property
    def up(self) -> str:
        """Name of the second matrix in the adapter: [out, ranks of all experts]."""
        return f"{PREFIX}{self.parameter.place}.lora_B.weight"

    def factors(self, down: torch.Tensor, up: torch.Tensor) -> Mapping[str, Factors]:
        """Return tensor of the files -> factors of what the two matrices add to it.

        Source: ParamWrapper.get_delta_factors in peft/tuners/lora/layer.py (0.21).
        """
        rows, columns = up, down
        if len(self.parameter.shape) == 3:
            number = self.parameter.num_experts
            columns = down.reshape(number, -1, down.shape[-1])
            rows = up.reshape(up.shape[0], -1, number).permute(2, 0, 1)
            if self.is_transposed:
                rows, columns = columns.transpose(1, 2), rows.transpose(1, 2)
        if self.converter is None:
            return dict.fromkeys(self.stored, (rows, columns))
        found = _undone(self.converter, rows, columns, self.differs)
        if found[0].keys() != set(self.stored.values()):
            problem = f"the base has other parts of {self.parameter.name} than transformers reads"
            raise UnusableWeights(problem)
        return {name: (found[0][key], found[1][key]) for name, key in self.stored.items()}


def find_experts(
    adapter: AdapterFiles, base: Mapping[str, StoredTensor], model: Any
) -> tuple[Mapping[str, ExpertParameter], Mapping[str, str]]:
    """Return tensor of the files -> parameter that it is a part of, if an adapter changes it, and
    tensor of the model -> the one of the files that it is.

    Raises UnusableWeights if one has no place in the files, or is made of them in another way.
    """
    transforms = get_model_conversion_mapping(model)
    renamings = [each for each in transforms if isinstance(each, WeightRenaming)]
    converters = [each for each in transforms if isinstance(each, WeightConverter)]
    by_pattern = {pattern: each for each in converters for pattern in each.source_patterns}
    made_of: dict[str, list[tuple[str, str | None]]] = {}
    known = model.state_dict()
    for name in sorted(base, key=dot_natural_key):
        moved, pattern = rename_source_key(name, renamings, converters)
        if moved not in known:  # such as the text decoder of a larger model
            moved, pattern = rename_source_key(name_in_model(name, base), renamings, converters)
        made_of.setdefault(moved, []).append((name, pattern))
    changed: dict[str, ExpertParameter] = {}
    for parameter in adapted_parameters(adapter, shapes_of(model)):
        parts = made_of.get(parameter.name, [])
        if not parts:
            problem = f"the base has no place for {parameter.name}"
            raise UnusableWeights(problem, f"give {adapter.base or 'its base'} as base")
        first, pattern = parts[0]
        found = ExpertParameter(
            parameter,
            scale_of(adapter.settings, parameter.name, parameter.rank),
            is_transposed(model, parameter.name),
            _numbered(parts),
            by_pattern[pattern] if pattern else None,
            len(parts) == 1 and base[first].shape != parameter.shape,
        )
        _require_sizes(found, adapter, base)
        changed |= dict.fromkeys(found.stored, found)
    return changed, {moved: parts[0][0] for moved, parts in made_of.items() if not parts[0][1]}


def _numbered(parts: Sequence[tuple[str, str | None]]) -> Mapping[str, str]:
    """Return the parts of a parameter with the names that transformers gives them when it splits it
    again: the pattern that each one matches, with its place among the others."""
    counts: dict[str, int] = {}
    stored = {}
    for name, pattern in parts:
        number = counts.get(pattern or "", 0)
        counts[pattern or ""] = number + 1
        stored[name] = (pattern or name).replace("*", str(number))
    return stored


def _require_sizes(
    found: ExpertParameter, adapter: AdapterFiles, base: Mapping[str, StoredTensor]
) -> None:
    """Raise UnusableWeights unless each part of a parameter is as large as what is added to it."""
    with torch.device("meta"):
        matrices = [torch.empty(adapter.tensors[name].shape) for name in (found.down, found.up)]
    for name, (rows, columns) in found.factors(matrices[0], matrices[1]).items():
        wanted = (*rows.shape[:-1], columns.shape[-1])
        if base[name].shape != wanted:
            problem = f"the adapter changes {name} as {sizes(wanted)}, but the base has "
            problem += sizes(base[name].shape)
            raise UnusableWeights(problem, f"give {adapter.base or 'its base'} as base")


def _undone(
    converter: WeightConverter, rows: torch.Tensor, columns: torch.Tensor, differs: bool
) -> tuple[Named, Named]:
    """Return the factors of a parameter for each tensor that transformers would make it of."""
    patterns = converter.source_patterns
    left, right = {"": rows}, {"": columns}
    for operation in (each.reverse_op for each in reversed(converter.operations)):
        if isinstance(operation, Transpose) and {operation.dim0, operation.dim1} == {1, 2}:
            if differs or not operation.check_dims:
                turned = {key: value.transpose(1, 2) for key, value in right.items()}
                right = {key: value.transpose(1, 2) for key, value in left.items()}
                left = turned
            if len(patterns) == 1:
                left, right = _renamed(left, patterns[0]), _renamed(right, patterns[0])
            continue
        is_known = isinstance(operation, Chunk | Interleave | SplitModulelist)
        dim = getattr(operation, "dim", None)
        has_dim = dim == 0 if isinstance(operation, SplitModulelist) else dim in ROWS + COLUMNS
        if not (is_known and has_dim):
            problem = f"transformers makes experts of this base by {operation!r}"
            raise UnusableWeights(f"{problem}, which is not known here", USE_TOGETHER)
        changes_left = dim not in COLUMNS
        changes_right = dim not in ROWS
        new_left = _applied(operation, left, patterns) if changes_left else left
        new_right = _applied(operation, right, patterns) if changes_right else right
        left = new_left if changes_left else _like(new_right, left)
        right = new_right if changes_right else _like(new_left, right)
    return left, right


def _applied(operation: Any, named: Named, patterns: Sequence[str]) -> Named:
    found: Named = operation.convert(
        dict(named), source_patterns=list(named), target_patterns=list(patterns)
    )
    return found


def _like(names: Named, one: Named) -> Named:
    """Return the only tensor of a side for each name of the other, which was divided."""
    return dict.fromkeys(names, next(iter(one.values()))) if len(one) == 1 else one


def _renamed(named: Named, name: str) -> Named:
    return {name: next(iter(named.values()))}
