"""Adapters on experts: which parameters of a mixture the names of a job mean, with which ranks."""

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field

from core.models.shapes.families import Experts
from core.models.shapes.parameter import Parameter

EXPERTS = "experts"


@dataclass(frozen=True)
class ExpertTargets:
    """What names of target_modules mean in a mixture of experts."""

    ranks: Mapping[str, int] = field(default_factory=dict)
    """Parameter, as a layer names it -> rank of each expert, as a multiple of the job's."""
    known: frozenset[str] = frozenset()
    """Names that could be given."""
    half: tuple[str, str] | None = None
    """(name that was given, name that has to be given with it), if one is missing."""


def targets_of(layout: Experts, layer: Sequence[Parameter], names: Set[str]) -> ExpertTargets:
    """Return what names mean in a layer with experts.

    Layers of older versions that one parameter holds share it, with their ranks one after the
    other; a parameter by its own name has the rank of the job. Source: _convert_peft_config_moe in
    peft/utils/transformers_weight_conversion.py (0.21).
    """
    ranks: dict[str, int] = {}
    known: set[str] = set()
    half = None
    for parameter in layer:
        if parameter.role != "expert" or len(parameter.shape) != 3:
            continue
        name = parameter.name.rpartition(".")[2]
        older = [each for each, holder in layout.older_names if holder == name]
        given = [each for each in older if {each, f"{EXPERTS}.{each}"} & names]
        known.update((name, *older))
        if given and len(given) < len(older):
            half = (given[0], next(each for each in older if each not in given))
        elif given:
            ranks[parameter.name] = len(older)
        elif {name, f"{EXPERTS}.{name}"} & names:
            ranks[parameter.name] = 1
    known |= {f"{EXPERTS}.{name}" for name in known}
    if layout.older_names:  # PEFT knows the family, and its router
        known.add(layout.router)
        if layout.router in names:
            ranks[f"mlp.{layout.router}.weight"] = 1
    return ExpertTargets(ranks, frozenset(known), half)
