"""Several processes that train one run: how they find each other, agree, and end together.

    JAX_COORDINATOR_ADDRESS   HOST:PORT of process 0; without it a process is alone
    JAX_NUM_PROCESSES, JAX_PROCESS_ID    how many, and which from 0; under srun the step's own numbers
    JAX_COORDINATOR_BIND_ADDRESS         where process 0 listens, if not at HOST:PORT
    JAXSCALE_DISTRIBUTED=auto            ask the platform (Cloud TPU, GKE, Open MPI, Slurm) for all of these

What only one may find out (files, clocks, signals) goes through `gather`: every process calls it at the same point of
the program, and all get the values of all. It uses the coordinator's key-value store, not the devices, so it waits
for no dispatch. A process that dies takes the others with it: within milliseconds where they compute together, within
HEARTBEAT_S where they wait.
"""

from __future__ import annotations

import itertools
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn, TypeVar

import jax

from jaxscale.errors import JaxscaleError, MisuseError, VerdictError
from jaxscale.train.address import bind_address, find_seating, own_address

__all__ = ["agree", "barrier", "broadcast", "connect", "from_first", "gather", "is_alone_with", "is_first", "is_many",
           "leave_together", "together"]  # fmt: skip

T = TypeVar("T")

HEARTBEAT_S = 10
"""Seconds without a sign of life after which a process counts as dead and the others end."""
CONNECT_S = 120
"""Seconds in which all processes have to come."""
SHUTDOWN_S = 60
"""Seconds that an ended process waits for the others to end."""
PATIENCE_S, SLICE_MS = 3600.0, 1000
"""Seconds to wait for living processes at one point, as while one reads a large text; between looks for a farewell."""
LEFT = "jaxscale/left"
PEER_LOST = 134
"""Exit code of a process that ends because of another; JAX's C++ aborts with the same."""

_rounds = itertools.count()


def connect() -> bool:
    """Join the run that the environment names; False, and nothing done, for a process alone.

    Call it before anything touches a device. MisuseError for an environment that makes no sense, VerdictError where
    the processes do not find each other in CONNECT_S.
    """
    seating = find_seating(os.environ)
    if seating is None:
        return False
    jax.config.update("jax_enable_preemption_service", False)  # it would take SIGTERM from our handlers
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    try:
        jax.distributed.initialize(
            seating.coordinator, seating.processes, seating.process, cluster_detection_method="deactivate",
            coordinator_bind_address=bind_address(seating, os.environ), initialization_timeout=CONNECT_S,
            heartbeat_timeout_seconds=HEARTBEAT_S, shutdown_timeout_seconds=SHUTDOWN_S,
        )  # fmt: skip
    except jax.errors.JaxRuntimeError as error:
        raise VerdictError(f"process {seating.process} of {seating.processes} does not reach the coordinator at "
                           f"{seating.coordinator} ({_first_line(error)}); check that all processes run, that the port "
                           f"is free, and that the name means the same address on every host") from error  # fmt: skip
    _listen_at(own_address(seating))
    return True


def _listen_at(address: str) -> None:
    """Gloo between CPUs at this address only: by default it takes what the host's own name means."""
    from jax._src import distributed, xla_bridge
    from jax._src.lib import _jax

    def make_client() -> Any:
        client = distributed.global_state.client
        return xla_bridge.make_cpu_client(_jax.make_gloo_tcp_collectives(distributed_client=client, hostname=address))

    xla_bridge.register_backend_factory("cpu", make_client, priority=0, fail_quietly=False)


def is_many() -> bool:
    """Whether several processes train together; asking touches no device."""
    from jax._src import distributed

    state = distributed.global_state
    return state.client is not None and state.num_processes > 1


def is_first() -> bool:
    """Whether this is the process that writes."""
    return not is_many() or jax.process_index() == 0


def gather(value: Any, at: str = "") -> list[Any]:
    """The JSON-able values of all processes, in their order; all call it at the same point, which `at` names.

    Process 0 collects and publishes. The keys of a round go when all have come to the next, so the store stays small.
    """
    if not is_many():
        return [value]
    client, me, others = _client(), jax.process_index(), range(1, jax.process_count())
    number = next(_rounds)
    room = f"jaxscale/{number}"
    told = json.dumps({"at": at, "value": value})
    if me:
        client.key_value_set(f"{room}/{me}", told)
        said = json.loads(_wait_for(f"{room}/all", at))
    else:
        said = [json.loads(told), *(json.loads(_wait_for(f"{room}/{i}", at)) for i in others)]
        if number:
            client.key_value_delete(f"jaxscale/{number - 1}/")
        client.key_value_set(f"{room}/all", json.dumps(said))
    places = [one["at"] for one in said]
    if set(places) != {at}:
        raise RuntimeError(f"the processes are out of step: they came to {places}")
    return [one["value"] for one in said]


def broadcast(value: Any, at: str = "broadcast") -> Any:
    """Process 0's JSON-able value, in all processes."""
    return gather(value if is_first() else None, at)[0]


def barrier(at: str) -> None:
    """Wait until all processes are here."""
    gather(None, at)


def agree(flags: Sequence[bool], at: str = "agree") -> tuple[bool, ...]:
    """For each flag whether any process raised it."""
    return tuple(map(any, zip(*gather([bool(flag) for flag in flags], at), strict=True)))


def from_first(action: Callable[[], Any], at: str) -> Any:
    """Process 0's JSON-able result of `action`, or its refusal, in all processes; the others do not run it."""
    value, refusal = _attempt(action) if is_first() else (None, None)
    value, said = gather([None, refusal] if refusal else [value, None], at)[0] if is_many() else (value, refusal)
    if said is not None:
        _refuse(said, "" if is_first() else "process 0: ")
    return value


def together(action: Callable[[], T], at: str) -> T:
    """Run `action` in every process; where one refuses, all do. `action` must not speak to the other processes."""
    if not is_many():
        return action()
    value, refusal = _attempt(action)
    said = gather(refusal, at)
    if any(said):
        first = next(i for i, one in enumerate(said) if one)
        _refuse(refusal or said[first], "" if refusal else f"process {first}: ")
    return value  # type: ignore[return-value]


def _attempt(action: Callable[[], T]) -> tuple[T | None, dict[str, Any] | None]:
    """The result, or the refusal as plain data. Alone, an error is raised where it comes up."""
    if not is_many():
        return action(), None
    try:
        return action(), None
    except Exception as error:
        words = str(error) if isinstance(error, JaxscaleError) else f"{type(error).__name__}: {_first_line(error)}"
        return None, {"words": words, "misuse": isinstance(error, MisuseError), "kind": type(error).__name__}


def _refuse(refusal: Mapping[str, Any], who: str) -> NoReturn:
    error = (MisuseError if refusal["misuse"] else VerdictError)(who + refusal["words"])
    error.agreed, error.kind = True, refusal["kind"]
    raise error


def is_alone_with(error: BaseException) -> bool:
    """Whether other processes go on and know nothing of this error."""
    return is_many() and not getattr(error, "agreed", False)


@contextmanager
def leave_together() -> Iterator[None]:
    """Around a multi-process program: an error that not all processes have ends this one at once, and so the others.

    Ending as usual would wait for the others at the door, and they wait inside. The exit code is that of a misuse, or
    PEER_LOST: starting all again may help.
    """
    try:
        yield
    except Exception as error:
        if not is_alone_with(error):
            raise
        told = isinstance(error, JaxscaleError)
        words = str(error) if told else f"{type(error).__name__}: {_first_line(error)}"
        code = error.exit_code if isinstance(error, MisuseError) else PEER_LOST
        _say_farewell(words)
        print(f"jaxscale: process {jax.process_index()} of {jax.process_count()} ends ({words}); start all processes "
              f"again, the cell goes on from its last checkpoint", file=sys.stderr)  # fmt: skip
        leave(code)


def leave(code: int) -> NoReturn:
    """End this process now, without waiting for the others."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _say_farewell(words: str) -> None:
    """For processes that wait at `gather`; those in a collective notice by themselves."""
    try:
        _client().key_value_set(LEFT, f"process {jax.process_index()}: {words}", allow_overwrite=True)
    except Exception:
        return  # the coordinator is gone, and with it whoever would read this


def _wait_for(key: str, at: str) -> str:
    deadline = time.monotonic() + PATIENCE_S
    while True:
        try:
            return str(_client().blocking_key_value_get(key, SLICE_MS))
        except jax.errors.JaxRuntimeError as error:
            if "DEADLINE_EXCEEDED" not in str(error):
                raise
        left = _read_farewell()
        if left:
            raise VerdictError(left)
        if time.monotonic() > deadline:
            raise VerdictError(f"the other processes did not come to {at!r} within {PATIENCE_S / 60:.0f} minutes")


def _read_farewell() -> str:
    try:
        return str(_client().key_value_try_get(LEFT))
    except jax.errors.JaxRuntimeError:
        return ""


def _client() -> Any:
    from jax._src import distributed

    return distributed.global_state.client


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [""])[0][:200]
