"""Which place a process has in a multi-process run, and at which addresses it listens: those it needs, no others.

The coordinator listens at the address that JAX_COORDINATOR_ADDRESS names, a loopback stays a loopback. What gloo
opens between CPUs lies at the address from which a process reaches the coordinator.
"""

from __future__ import annotations

import socket
from collections.abc import Mapping
from dataclasses import dataclass

from jaxscale.errors import MisuseError

__all__ = ["Seating", "bind_address", "find_seating", "is_one_of_many", "own_address"]

ADDRESS, COUNT, PLACE = "JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"
BIND, AUTO = "JAX_COORDINATOR_BIND_ADDRESS", "JAXSCALE_DISTRIBUTED"
STEP_COUNT, STEP_PLACE = "SLURM_STEP_NUM_TASKS", "SLURM_PROCID"
"""What srun tells each task of a step; a batch script outside of srun has no STEP_COUNT."""
DETECT_S = 60


@dataclass(frozen=True)
class Seating:
    """Process `process` of `processes`, and where process 0 is: "host:port"."""

    coordinator: str
    processes: int
    process: int

    @property
    def host_port(self) -> tuple[str, int]:
        """The coordinator's host, without brackets, and port."""
        host, _, port = self.coordinator.rpartition(":")
        return host.strip("[]"), int(port)


def find_seating(environment: Mapping[str, str]) -> Seating | None:
    """The place that the environment gives this process; None where it is alone. MisuseError where it makes no sense.

    >>> find_seating({"JAX_COORDINATOR_ADDRESS": "n1:4711", "JAX_NUM_PROCESSES": "4", "JAX_PROCESS_ID": "3"})
    Seating(coordinator='n1:4711', processes=4, process=3)
    """
    auto = environment.get(AUTO, "")
    if auto not in ("", "auto"):
        raise MisuseError(f"{AUTO}: {auto!r} is not known; use auto, or leave it out")
    address = environment.get(ADDRESS, "")
    if not address:
        return _detect() if auto else None
    count, place = (_read_number(environment, own, step) for own, step in ((COUNT, STEP_COUNT), (PLACE, STEP_PLACE)))
    if count < 1:
        raise MisuseError(f"{COUNT}: {count} processes; use 1 or more")
    if not 0 <= place < count:
        raise MisuseError(f"{PLACE}: {place} is not one of {count} processes; use 0 to {count - 1}")
    _check_address(address)
    return Seating(address, count, place) if count > 1 else None


def is_one_of_many(environment: Mapping[str, str]) -> bool:
    """Whether this process is meant to train with others; asks no platform, and refuses nothing yet."""
    if environment.get(AUTO):
        return True
    count = environment.get(COUNT) or environment.get(STEP_COUNT) or "1"
    return bool(environment.get(ADDRESS)) and count != "1"


def _read_number(environment: Mapping[str, str], name: str, step_name: str) -> int:
    given = environment.get(name) or environment.get(step_name)
    if given is None:
        raise MisuseError(f"{name}: not set beside {ADDRESS}; set it, or start the processes with srun, which tells "
                          f"{step_name}")  # fmt: skip
    try:
        return int(given)
    except ValueError:
        raise MisuseError(f"{name}: {given!r} is not a whole number") from None


def _check_address(address: str) -> None:
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise MisuseError(f"{ADDRESS}: {address!r} is not HOST:PORT; use the host of process 0 and a free port of it, "
                          f"as in node1:45678")  # fmt: skip


def _detect() -> Seating | None:
    """What the platform tells, by JAX's own detectors."""
    from jax._src.clusters import ClusterEnv

    try:
        address, count, place, _ = ClusterEnv.auto_detect_unset_distributed_params(
            None, None, None, None, None, DETECT_S
        )
    except (RuntimeError, ValueError, OSError) as error:
        raise MisuseError(f"{AUTO}: the platform does not tell who takes part ({error}); set {ADDRESS}, {COUNT} and "
                          f"{PLACE}") from error  # fmt: skip
    if address is None or count is None or place is None:
        raise MisuseError(f"{AUTO}: no platform that JAX knows tells who takes part here; set {ADDRESS}, {COUNT} and "
                          f"{PLACE}")  # fmt: skip
    return Seating(str(address), int(count), int(place)) if count > 1 else None


def bind_address(seating: Seating, environment: Mapping[str, str]) -> str:
    """Where process 0's coordinator listens: at the one address that its name means here, or as told."""
    if environment.get(BIND):
        return environment[BIND]
    host, port = seating.host_port
    address = _resolve(host, port)[1]
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def own_address(seating: Seating) -> str:
    """This host's address on the way to the coordinator; nothing is sent."""
    family, address = _resolve(*seating.host_port)
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((address, seating.host_port[1]))
        except OSError as error:
            raise MisuseError(f"{ADDRESS}: no way from here to {seating.coordinator} ({error.strerror}); use an "
                              f"address of process 0 that every host reaches") from error  # fmt: skip
        return str(probe.getsockname()[0])


def _resolve(host: str, port: int) -> tuple[socket.AddressFamily, str]:
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError as error:
        raise MisuseError(f"{ADDRESS}: host {host!r} is not known here ({error.strerror}); use a name that every host "
                          f"knows, or the address as a number") from error  # fmt: skip
    family, *_, where = min(found, key=lambda one: one[0] != socket.AF_INET)  # IPv4 first, on every host the same
    return family, str(where[0])
