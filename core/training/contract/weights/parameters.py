"""Parameters that an adapter changes directly, as PEFT's target_parameters names them: all experts
of a layer in one tensor, or a router. Standard library only."""

from collections.abc import Mapping
from dataclasses import dataclass

from .adapters import COPY_AGAIN, SETTINGS, WEIGHTS, WRAPPED, AdapterFiles, setting_of
from .files import UnusableWeights, sizes

EXPERT_INITIALIZATIONS = frozenset({"default", "gaussian", "loftq"})
"""init_lora_weights of a job that read no weight of a layer: a parameter has no layer."""


@dataclass(frozen=True)
class AdaptedParameter:
    """Parameter of a model, and the two matrices in an adapter that change it."""

    name: str
    """Name in the model, such as model.layers.0.mlp.experts.down_proj."""
    place: str
    """Beginning of the names of its matrices in the adapter."""
    shape: tuple[int, ...]
    """[out, in], or for each expert [experts, out, in] or [experts, in, out]."""
    rank: int
    """Rank of each expert."""

    @property
    def num_experts(self) -> int:
        """Experts in the tensor, each with a rank of its own; 1 for a matrix."""
        return experts_in(self.shape)


def experts_in(shape: tuple[int, ...]) -> int:
    """Return the experts that a parameter holds."""
    return shape[0] if len(shape) == 3 else 1


def targeted(targets: object, parameters: Mapping[str, tuple[int, ...]]) -> Mapping[str, str]:
    """Return parameter -> place of its matrices, of those that target_parameters means.

    PEFT wraps a module once for each such parameter in the order of the module, so that the last
    one has the plain name (_inject_parameters in peft/tuners/tuners_utils.py).
    """
    assert isinstance(targets, list)
    names = tuple(f".{target}" for target in targets)
    modules: dict[str, list[str]] = {}
    for parameter in parameters:
        if names and f".{parameter}".endswith(names):
            modules.setdefault(parameter.rpartition(".")[0], []).append(parameter)
    return {
        parameter: module + WRAPPED * (len(wrapped) - index - 1)
        for module, wrapped in modules.items()
        for index, parameter in enumerate(wrapped)
    }


def adapted_parameters(
    adapter: AdapterFiles, parameters: Mapping[str, tuple[int, ...]]
) -> tuple[AdaptedParameter, ...]:
    """Return what an adapter changes of the parameters of a model, given in the model's order.

    Raises UnusableWeights if one of its matrices has no parameter, or another size.
    """
    places = targeted(adapter.settings.get("target_parameters") or [], parameters)
    lost = sorted(adapter.parameters.keys() - places.values())
    if lost:
        problem = f"{WEIGHTS} has matrices for {lost[0]}, which the model does not have"
        raise UnusableWeights(problem, _choose(adapter))
    found = []
    for name, place in places.items():
        rank = setting_of(adapter.settings, "rank_pattern", "r", name)
        assert isinstance(rank, int)
        shape = parameters[name]
        if place not in adapter.parameters:
            problem = f"{SETTINGS} names {name}, but {WEIGHTS} has no matrices for it"
            raise UnusableWeights(problem, COPY_AGAIN)
        ranks, num_in, num_out = adapter.parameters[place]
        fits = ranks == rank * experts_in(shape) and _may_be(shape, num_in, num_out)
        if not fits:
            problem = f"{WEIGHTS} changes {name} by {num_out} × {ranks} and {ranks} × {num_in}, "
            problem += f"but it is {sizes(shape)} in the model, with rank {rank}"
            raise UnusableWeights(problem, _choose(adapter))
        found.append(AdaptedParameter(name, place, shape, rank))
    return tuple(found)


def _may_be(shape: tuple[int, ...], num_in: int, num_out: int) -> bool:
    """Return True if a parameter may have these inputs and outputs; experts, either way round."""
    if len(shape) == 3:
        return shape[1:] in ((num_out, num_in), (num_in, num_out))
    return shape == (num_out, num_in)


def _choose(adapter: AdapterFiles) -> str:
    return f"choose {adapter.base or 'the model that it was trained over'} as model"
