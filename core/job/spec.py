"""JobSpec: the one description of a job. Form, command line, job file, estimate and training share
its field names. Owns validation and its messages; never touches the disk or the network.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, Literal, Self

from pydantic import ValidationError, ValidationInfo, field_validator, model_validator
from pydantic_core import ErrorDetails, PydanticKnownError

from core.job.best_checkpoint import evaluates
from core.job.errors import Problem, SpecError
from core.job.fields import JobFields
from core.job.rules import refusals
from core.job.several_devices import SHARDED_OPTIMIZER, UNSHARDED_OPTIMIZERS
from core.training.contract.methods import METHODS
from core.training.contract.stages import STAGES, defaults_of
from core.training.contract.typed_json import KeyTwice, with_each_key_once

CHOICES: Mapping[str, tuple[str, ...]] = {"stage": tuple(STAGES), "method": tuple(METHODS)}
"""Fields whose choices are the rows of a table."""
NUMBER_ERRORS: Mapping[object, Literal["int_type", "float_type"]] = {
    int: "int_type",
    float: "float_type",
}
"""Type of a number -> Pydantic's error for a value of another type."""


class JobSpec(JobFields):
    """Complete, valid description of a training job. Build one with `JobSpec.parse`."""

    @model_validator(mode="before")
    @classmethod
    def _apply_defaults(cls, fields: Any) -> Any:
        """Add the defaults of the stage and the method beneath the given values."""
        stage = fields.get("stage", cls.model_fields["stage"].default)
        method = fields.get("method", cls.model_fields["method"].default)
        if stage in CHOICES["stage"] and method in CHOICES["method"]:
            defaults = dict(defaults_of(stage, method))
            is_divided = fields.get("parallelism") == "fsdp" and _is_several(fields)
            if is_divided and defaults.get("optim") in UNSHARDED_OPTIMIZERS:
                defaults["optim"] = SHARDED_OPTIMIZER
            return {**defaults, **fields}
        return fields  # `parse` reports the unknown stage or method

    @field_validator("target_modules", mode="before")
    @classmethod
    def _join_names(cls, value: Any) -> Any:
        """Join a list, as PEFT writes it, to one string that a text box and a flag can hold."""
        if isinstance(value, list | tuple):
            return ",".join(map(str, value))
        return value

    @field_validator("*", mode="before")
    @classmethod
    def _refuse_flags_as_numbers(cls, value: Any, info: ValidationInfo) -> Any:
        """Refuse true and false for a number: Pydantic would read them as 1 and 0."""
        if isinstance(value, bool) and info.field_name:
            error = NUMBER_ERRORS.get(cls.model_fields[info.field_name].annotation)
            if error:
                raise PydanticKnownError(error)
        return value

    @classmethod
    def parse(cls, fields: Mapping[str, object]) -> Self:
        """Build a job from field values of a form, of flags or of a file.

        Raises SpecError with every problem at once.
        """
        unknown_choices = _unknown_choices(fields)
        try:
            job = cls.model_validate(dict(fields))
        except ValidationError as error:
            bad_values = (_problem(details) for details in error.errors())
            raise SpecError(*bad_values, *unknown_choices) from None
        if unknown_choices:
            raise SpecError(*unknown_choices)
        if problems := tuple(refusals(job)):
            raise SpecError(*problems)
        return job

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Build a job from the text of a job file. Raises SpecError."""
        return cls.parse(cls.fields_of(text))

    @property
    def evaluation_rows(self) -> int:
        """Rows that an evaluation takes at once; those of a micro-batch if there is none."""
        batch_size = self.per_device_train_batch_size
        if not evaluates(self):
            return batch_size
        return STAGES[self.stage].evaluation_rows(batch_size, self.num_generations)

    @staticmethod
    def fields_of(text: str, name: str = "") -> dict[str, object]:
        """Return the fields in the text of a job file, which has a name if it is not on the page.

        Raises SpecError.
        """
        fix = "give a JSON object of job fields"
        begin = f"{name} " if name else ""
        try:
            fields = json.loads(text.removeprefix("\ufeff"), object_pairs_hook=with_each_key_once)
        except KeyTwice as error:
            problem = f"{begin}has the field {error.key!r} twice"
            raise SpecError(Problem("job file", problem, "remove one of them")) from None
        except (ValueError, RecursionError) as error:
            raise SpecError(Problem("job file", f"{begin}is not JSON: {error}", fix)) from None
        if not isinstance(fields, dict):
            problem = f"{begin}is not a JSON object"
            raise SpecError(Problem("job file", problem, fix))
        return fields

    def to_json(self) -> str:
        """Return the text of a job file that `from_json` reads back to an equal job."""
        return self.model_dump_json(indent=2) + "\n"


def _is_several(fields: Mapping[str, object]) -> bool:
    """Return True unless one device is asked for, by a number or a flag."""
    return str(fields.get("num_devices", 1)).strip() != "1"


def _unknown_choices(fields: Mapping[str, object]) -> list[Problem]:
    return [
        Problem(
            name,
            f"{_shown(fields[name])} is not one of {', '.join(choices)}",
            "choose one of these",
        )
        for name, choices in CHOICES.items()
        if name in fields and fields[name] not in choices
    ]


def _problem(error: ErrorDetails) -> Problem:
    """Return one of Pydantic's errors in plain words. Types: pydantic_core.ErrorType."""
    name = ".".join(map(str, error["loc"])) or "job"
    if error["input"] is None:
        return Problem(name, "is empty", "give a value")
    value = _shown(error["input"])
    limits = {key: _plain(limit) for key, limit in error.get("ctx", {}).items()}
    not_whole = (f"{value} is not a whole number", "give a whole number")
    not_number = (f"{value} is not a number", "give a number")
    not_flag = (f"{value} is not true or false", "give true or false")
    messages = {
        "extra_forbidden": ("unknown field", "see `python app.py train --help` for the fields"),
        "greater_than": (f"{value} is too small", f"give more than {limits.get('gt')}"),
        "greater_than_equal": (f"{value} is too small", f"give {limits.get('ge')} or more"),
        "less_than": (f"{value} is too large", f"give less than {limits.get('lt')}"),
        "less_than_equal": (f"{value} is too large", f"give {limits.get('le')} or less"),
        "literal_error": (f"{value} is not a choice", f"choose {limits.get('expected')}"),
        "int_parsing": not_whole,
        "int_type": not_whole,
        "int_from_float": not_whole,
        "float_parsing": not_number,
        "float_type": not_number,
        "bool_parsing": not_flag,
        "bool_type": not_flag,
        "string_too_short": ("is empty", "give a value"),
        "string_pattern_mismatch": (f"{value} contains forbidden characters", "use plain names"),
    }
    if error["type"] == "finite_number":
        return Problem(name, f"{value} is not a finite number", f"give {_range_of(name)}")
    if error["type"] == "float_type" and type(error["input"]) is int:  # more than a float holds
        return Problem(name, f"{value} is out of range", f"give {_range_of(name)}")
    message = messages.get(error["type"], (f"{value}: {error['msg'].lower()}", "correct it"))
    return Problem(name, *message)


def _range_of(name: str) -> str:
    """Return which numbers a field takes: each has a least and a greatest."""
    field = JobFields.model_fields[name]
    limits = {key: value for limit in field.metadata for key, value in asdict(limit).items()}
    kind = "a whole number" if field.annotation is int else "a number"
    least = f"above {_plain(limits['gt'])}" if "gt" in limits else f"from {_plain(limits['ge'])}"
    most = (
        f"to {_plain(limits['le'])}" if "le" in limits else f"to less than {_plain(limits['lt'])}"
    )
    return f"{kind} {least} {most}"


def _plain(limit: object) -> object:
    """Return a limit as people write it: without a fraction if it has none."""
    return int(limit) if isinstance(limit, float) and limit.is_integer() else limit


def _shown(value: object) -> str:
    text = str(value).lower() if isinstance(value, bool) else repr(value)  # as JSON writes it
    if len(text) > 60:
        return text[:57] + "..."
    return text
