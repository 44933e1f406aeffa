"""Placement: where a run trains, as a user chooses it. Checks every text; asks no cluster."""

import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, fields
from urllib.parse import urlsplit

from pydantic import TypeAdapter, ValidationError

from core.job import Problem, SpecError

HERE = "here"
"""Engine of runs that train on this machine, from the queue of the home."""
TITLES: Mapping[str, str] = {"slurm": "Slurm", "ray": "Ray", "torchrun": "torchrun by hand"}
"""Id of an engine -> how users know it."""
MAX_NODES = 512
WHOLE = TypeAdapter(int)
MAX_DIGITS = 9
"""Python reads no endless number."""
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.@+-]{0,63}")
NAMES = re.compile(rf"{NAME.pattern}(,{NAME.pattern}){{0,9}}")
TIME = re.compile(r"(\d{1,3}-\d{1,2}(:\d{1,2}){0,2}|\d{1,6}(:\d{1,2}){0,2})")
"""Minutes, MINUTES:SECONDS, HOURS:MINUTES:SECONDS, DAYS-HOURS and so on, as sbatch takes them."""
GRES = re.compile(r"[A-Za-z][\w/.-]{0,31}(:[\w.-]{1,32}){0,2}(,[A-Za-z][\w/.:-]{0,63}){0,5}")
GPUS = re.compile(r"(?:^|,)gpu(?::[A-Za-z][\w.-]*)?(?::(?P<number>\d{1,3}))?(?=,|$)")
"""Part of a gres that asks for GPUs of any or of one type; without a number for one."""
HOST = re.compile(r"[A-Za-z0-9][A-Za-z0-9.-]{0,252}(:\d{1,5})?")
URL_SCHEMES = ("http", "https")


@dataclass(frozen=True)
class Placement:
    """Engine of a run, and what it is asked for. An empty text leaves it to the cluster."""

    engine: str = HERE
    nodes: int = 1
    partition: str = ""
    account: str = ""
    time: str = ""
    """Limit, in the form of sbatch: 90 (minutes), 12:00:00 or 2-00."""
    gres: str = ""
    """Devices of each node, such as gpu:2 or gpu:a100:2."""
    address: str = ""
    """Address of the cluster's dashboard (Ray), or of the first machine (torchrun)."""

    @property
    def is_here(self) -> bool:
        return self.engine == HERE

    @property
    def title(self) -> str:
        return TITLES.get(self.engine, self.engine)

    @classmethod
    def parse(cls, values: Mapping[str, object]) -> "Placement":
        """Return a placement from texts, as flags or boxes give them. Raises SpecError."""
        texts = {name: str(value).strip() for name, value in values.items() if value is not None}
        nodes = texts.pop("nodes", "") or "1"
        is_number = nodes.isascii() and nodes.isdecimal() and len(nodes) <= MAX_DIGITS
        if not is_number or not 0 < int(nodes) <= MAX_NODES:
            problem = f"{nodes[:40]!r} is not a number from 1 to {MAX_NODES}"
            raise SpecError(Problem("nodes", problem, "give the number of machines"))
        placement = cls(**{"engine": HERE, **texts}, nodes=int(nodes))
        placement.require_sound()
        return placement

    def require_sound(self) -> None:
        """Raise SpecError with every text that a cluster would not take as it is meant."""
        if problems := tuple(filter(None, map(self._problem, RULES))):
            raise SpecError(*problems)

    def given(self) -> tuple[str, ...]:
        """Return the names of the fields that the user has set, beside the engine."""
        default = Placement()
        names = [each.name for each in fields(self) if each.name != "engine"]
        return tuple(name for name in names if getattr(self, name) != getattr(default, name))

    @property
    def flags(self) -> str:
        """Flags of the terminal that say the same, such as `--on slurm --partition gpu`."""
        words = ["--on", self.engine]
        for name in self.given():
            words += [f"--{name}", str(getattr(self, name))]
        return shlex.join(words)

    def require_devices(self, asked: object) -> None:
        """Raise SpecError if the devices of a job, such as 2 or "2", are not those of each node. A
        value that is no number is left to the job."""
        try:
            number = WHOLE.validate_python(asked)  # as the job reads it: "+0" is 0, too
        except ValidationError:
            return
        if self.is_here:
            return
        if number == 0:
            problem = "0 takes the GPUs of this machine, and the run trains on another"
            raise SpecError(Problem("num_devices", problem, "give the number of each node"))
        found = GPUS.search(self.gres)
        num_gpus = int(found["number"] or 1) if found else 0
        if found and num_gpus < number:
            problem = f"{self.gres} has too few GPUs for num_devices {number}"
            raise SpecError(Problem("gres", problem, f"ask for {number}, or leave it out"))

    def _problem(self, name: str) -> Problem | None:
        value = str(getattr(self, name))
        pattern, fix = RULES[name]
        if not value or pattern.fullmatch(value):
            return None
        return Problem(name, f"{value[:60]!r} is not what a cluster calls one", fix)


RULES: Mapping[str, tuple[re.Pattern[str], str]] = {
    "partition": (NAMES, "give a name as sinfo lists it, such as gpu"),
    "account": (NAME, "give the name of your account on the cluster"),
    "time": (TIME, "write minutes, HOURS:MINUTES:SECONDS or DAYS-HOURS, such as 12:00:00"),
    "gres": (GRES, "write it like gpu:2 or gpu:a100:2"),
    "address": (
        re.compile(r"[\w.:/\[\]-]{1,253}", re.ASCII),
        "give host:port, or http://host:port",
    ),
}
"""Field -> what it may be, and what to do about another value. No value can end a line of a script
or mean anything to a shell."""


def host_and_port(address: str, usual_port: int) -> tuple[str, int]:
    """Return the parts of HOST or HOST:PORT. Raises SpecError."""
    host, _colon, port = address.partition(":")
    if not HOST.fullmatch(address) or int(port or usual_port) > 65535:
        problem = f"{address!r} is not HOST or HOST:PORT"
        raise SpecError(Problem("address", problem, "give the name of the first machine"))
    return host, int(port or usual_port)


def web_address(address: str) -> str:
    """Return an http address without a path. Raises SpecError for anything else."""
    problem = Problem(
        "address",
        f"{address!r} is no web address",
        "give that of the cluster's dashboard, such as http://127.0.0.1:8265",
    )
    try:
        found = urlsplit(address if "://" in address else f"http://{address}")
        found.port  # noqa: B018 - raises for a number that is no port
    except ValueError:
        raise SpecError(problem) from None
    if found.scheme not in URL_SCHEMES or not found.hostname or found.username is not None:
        raise SpecError(problem)
    return f"{found.scheme}://{found.netloc}"
