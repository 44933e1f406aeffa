"""Weights of the merged model: what each tensor of the base becomes. Writes nothing.

Equal to PEFT's merge value for value: the delta in float32, added to the base in float32, rounded
once.
"""

from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from bitsandbytes import functional as bnb

from core.models.weights import name_in_model
from core.training.contract.weights.adapters import (
    MAGNITUDE,
    MATRIX,
    PREFIX,
    AdapterFiles,
    read_adapter,
    scale_of,
)
from core.training.contract.weights.adapters import WEIGHTS as ADAPTER_WEIGHTS
from core.training.contract.weights.files import NUM_SHOWN, StoredTensor, UnusableWeights
from core.training.model.weights import BaseRequest, empty_model
from core.workers.export.experts import ExpertParameter, Factors, find_experts
from core.workers.export.shards import Tensors

Move = Callable[[torch.Tensor], torch.Tensor]
HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"
SCORE = "score.weight"
"""Head of a reward model, in the place of the one that writes."""
BLOCK_SIZE = 64
"""Numbers that bitsandbytes scales together."""
NUM_KEPT_FACTORS = 4
"""Parameters of experts of which the factors are kept: files hold those of a layer mixed."""


@dataclass(frozen=True)
class BaseRounding:
    """Rounding of the base during training."""

    quant_type: str
    is_double: bool
    layers: frozenset[str]
    """Linear layers that bitsandbytes replaced, by their names in the model."""
    in_float32: bool
    """True if the base was loaded in float32, as on a CPU."""

    def round_trip(self, weight: torch.Tensor) -> torch.Tensor:
        """Return a weight as the training saw it: quantized, and back."""
        if self.in_float32:
            weight = weight.float()
        numbers, state = bnb.quantize_4bit(
            weight.contiguous(),
            blocksize=BLOCK_SIZE,
            compress_statistics=self.is_double,
            quant_type=self.quant_type,
        )
        return bnb.dequantize_4bit(numbers, state)


@dataclass(frozen=True)
class LowRank:
    """Adapter of one layer: names of its tensors, and its scale."""

    down: str
    up: str
    magnitude: str | None
    """DoRA's length of each row; None for plain LoRA."""
    scale: float


@dataclass(frozen=True)
class Changes:
    """Changes that an adapter makes to a base, by names in the files of the base."""

    low_rank: Mapping[str, LowRank] = field(default_factory=dict)
    whole: Mapping[str, str] = field(default_factory=dict)
    """Tensor of the base -> tensor of the adapter that replaces it."""
    new_head: str = ""
    """Name of an output head that the base shares with its embeddings, and the result does not."""
    embedding: str = ""
    """Tensor of the embeddings, of which a new head is made."""
    experts: Mapping[str, ExpertParameter] = field(default_factory=dict)
    """Tensor of the base -> parameter of the model with an adapter that it is a part of."""


def unmoved(tensor: torch.Tensor) -> torch.Tensor:
    """Return a tensor where it is."""
    return tensor


def to_free_device() -> Move:
    """Return what moves a tensor to where it is computed: the GPU if this process has one."""
    if torch.cuda.is_available():
        return torch.Tensor.cuda
    return unmoved


class MergedWeights:
    """Tensors of the merged model, made one at a time, on a GPU where they fit."""

    def __init__(
        self,
        base: Tensors,
        adapter_file: Path,
        changes: Changes,
        quantization: BaseRounding | None,
        move: Move = unmoved,
    ) -> None:
        self._move = move
        self._base = base
        self._adapter = Tensors.of_file(adapter_file)
        self._changes = changes
        self._quantization = quantization
        self._factors: dict[str, Mapping[str, Factors]] = {}
        """Parameter of experts -> factors of its parts, of the few that were needed last."""

    def tensor(self, name: str, name_of_module: str) -> torch.Tensor:
        """Return a tensor of the result on the CPU, in the precision in which it was computed."""
        changes = self._changes
        if name in changes.whole:
            return self._adapter.read(changes.whole[name])
        source = changes.embedding if name == changes.new_head else name
        weight = self._base.read(source)
        if name in changes.experts:
            return self._with_experts(name, weight)
        rounding = self._quantization
        if rounding and (name_of_module not in rounding.layers or weight.dim() != 2):
            rounding = None
        adapter = changes.low_rank.get(name)
        if rounding is None and adapter is None:
            return weight
        try:
            return self._computed(weight, rounding, adapter, self._move).cpu()
        except torch.OutOfMemoryError:  # the GPU has no room for this one
            return self._computed(weight, rounding, adapter, unmoved)

    def _with_experts(self, name: str, weight: torch.Tensor) -> torch.Tensor:
        """Return a part of experts with what the adapter adds, in the precision of the base."""
        rows, columns = self._factors_of(name)
        scale = self._changes.experts[name].scale
        added = torch.empty_like(weight)
        parts = [(weight, rows, columns, added)]
        if weight.dim() == 3:
            parts = list(zip(weight, rows, columns, added, strict=True))
        for part, left, right, target in parts:
            try:
                target.copy_(_added(part, left, right, scale, self._move))
            except torch.OutOfMemoryError:  # the GPU has no room for this one
                target.copy_(_added(part, left, right, scale, unmoved))
        return added

    def _factors_of(self, name: str) -> Factors:
        found = self._changes.experts[name]
        key = found.parameter.name
        if key not in self._factors:
            if len(self._factors) >= NUM_KEPT_FACTORS:
                del self._factors[next(iter(self._factors))]
            down, up = self._adapter.read(found.down), self._adapter.read(found.up)
            self._factors[key] = found.factors(down.float(), up.float())
        return self._factors[key][name]

    def _computed(
        self,
        weight: torch.Tensor,
        rounding: BaseRounding | None,
        adapter: LowRank | None,
        move: Move,
    ) -> torch.Tensor:
        weight = move(weight)
        if rounding:
            weight = rounding.round_trip(weight)
        if adapter:
            weight = self._add(weight, adapter, move)
        return weight

    def _add(self, weight: torch.Tensor, adapter: LowRank, move: Move) -> torch.Tensor:
        """Return the sum of a weight and its adapter; with DoRA, its rows in their own lengths."""
        down = move(self._adapter.read(adapter.down)).float()
        up = move(self._adapter.read(adapter.up)).float()
        # The order of PEFT: another would round otherwise.
        merged = weight.float() + (up @ down) * adapter.scale
        if adapter.magnitude is None:
            return merged
        lengths = torch.linalg.norm(merged, dim=1)
        magnitude = move(self._adapter.read(adapter.magnitude)).float()
        return (magnitude / lengths).view(-1, 1) * merged


def _added(
    weight: torch.Tensor, rows: torch.Tensor, columns: torch.Tensor, scale: float, move: Move
) -> torch.Tensor:
    """Return the sum of a matrix and the product of its factors, in float32."""
    return move(weight).float() + (move(rows) @ move(columns)) * scale


def find_changes(
    base: Mapping[str, StoredTensor],
    adapter_folder: Path,
    is_tied: bool,
    has_score_head: bool = False,
    base_folder: Path | None = None,
) -> tuple[AdapterFiles, Changes]:
    """Return an adapter and what it changes in a base of these tensors, whose folder says how it
    stores experts.

    Raises UnusableWeights if a tensor of the adapter has no place in the base.
    """
    adapter = read_adapter(adapter_folder)
    is_tied = is_tied and not has_score_head  # no head of the result shares the embeddings
    # The same renaming for both sides, so that names of published files meet those of the class.
    stored = {name_in_model(name, base): name for name in base}
    low_rank, unused = {}, set(adapter.tensors)
    experts: Mapping[str, ExpertParameter] = {}
    if adapter.parameters and base_folder is not None:
        model = empty_model(BaseRequest(str(base_folder), "main", torch.bfloat16, has_score_head))
        experts, renamed = find_experts(adapter, base, model)
        stored |= renamed
        unused -= {name for each in experts.values() for name in (each.down, each.up)}
    for module, change in _low_rank(adapter).items():
        name = stored.get(f"{name_in_model(module, {})}.weight", "")
        if name or _is_shared_head(module, stored, is_tied):
            low_rank[name or HEAD] = change
            unused -= {change.down, change.up, change.magnitude or ""}
    # PEFT saves the frozen head beside its adapter.
    unused -= {f"{PREFIX}{module}.base_layer.weight" for module in adapter.modules}
    whole = _whole(unused, stored, is_tied, has_score_head)
    unused -= set(whole.values())
    if unused:
        shown = ", ".join(sorted(unused)[:NUM_SHOWN])
        problem = f"the adapter was trained over another model: the base has no place for {shown}"
        raise UnusableWeights(problem, f"give {adapter.base or 'its base'} as base")
    embedding = stored.get(EMBEDDING, "")
    _require_shapes(adapter, base, low_rank, embedding)
    found = Changes(low_rank, whole, "", embedding, experts)
    return adapter, _untied(found, adapter, stored, is_tied)


def _whole(
    names: Set[str], stored: Mapping[str, str], is_tied: bool, has_score_head: bool
) -> dict[str, str]:
    """Return tensor of the base -> tensor of the adapter that replaces it."""
    whole = {}
    for name in sorted(names):
        module = name_in_model(name.removeprefix(PREFIX), {})
        if MATRIX.fullmatch(name) or MAGNITUDE.fullmatch(name):
            continue
        if module in stored or (has_score_head and module == SCORE):
            whole[stored.get(module, SCORE)] = name
        elif _is_shared_head(module.removesuffix(".weight"), stored, is_tied):
            whole[HEAD] = name
    return whole


def _low_rank(adapter: AdapterFiles) -> Mapping[str, LowRank]:
    """Return layer -> its adapter."""
    names: dict[str, dict[str, str]] = {module: {} for module in adapter.modules}
    for name in adapter.tensors:
        match = MATRIX.fullmatch(name) or MAGNITUDE.fullmatch(name)
        if match and match["module"] in names:
            part = match.groupdict().get("side") or "magnitude"
            names[match["module"]][part] = name
    return {
        module: LowRank(
            parts["A"],
            parts["B"],
            parts.get("magnitude"),
            scale_of(adapter.settings, module, adapter.modules[module][0]),
        )
        for module, parts in names.items()
    }


def _is_shared_head(module: str, stored: Mapping[str, str], is_tied: bool) -> bool:
    return is_tied and module == "lm_head" and HEAD not in stored


def _require_shapes(
    adapter: AdapterFiles,
    base: Mapping[str, StoredTensor],
    low_rank: Mapping[str, LowRank],
    embedding: str,
) -> None:
    """Raise UnusableWeights for matrices of another size than their layer."""
    for name, change in low_rank.items():
        weight = base[embedding if name not in base else name]
        wanted = (adapter.tensors[change.up].shape[0], adapter.tensors[change.down].shape[1])
        if weight.shape != wanted:
            problem = f"the adapter changes {name} as {wanted[0]} × {wanted[1]}"
            sizes = " × ".join(map(str, weight.shape))
            raise UnusableWeights(
                f"{problem}, but the base has {sizes}", f"give {adapter.base} as base"
            )


def _untied(
    changes: Changes, adapter: AdapterFiles, stored: Mapping[str, str], is_tied: bool
) -> Changes:
    """Return the changes with a separate head where the result no longer shares one."""
    if not is_tied or HEAD in stored:
        return changes
    whole = dict(changes.whole)
    has_head = HEAD in whole or HEAD in changes.low_rank
    has_embedding = changes.embedding in whole
    if HEAD in whole and has_embedding:
        file = Tensors.of_file(adapter.folder / ADAPTER_WEIGHTS)
        if torch.equal(file.read(whole[HEAD]), file.read(whole[changes.embedding])):
            del whole[HEAD]
            return replace(changes, whole=whole)
    stays_tied = has_embedding and not has_head and adapter.settings.get("ensure_weight_tying")
    if not (has_head or has_embedding) or stays_tied:
        return changes
    return replace(changes, whole=whole, new_head=HEAD)
