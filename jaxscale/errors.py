"""The two ways a request can end badly, and what a person reads then.

An expected failure inside a computation (a diverged run, an edge minimum, a refused row) is a value
with a reason, never an exception. What is left is misuse, and a verdict that stops a verb.
Every message is one sentence: field, value, limit, next step.
"""

__all__ = ["JaxscaleError", "MisuseError", "VerdictError"]


class JaxscaleError(Exception):
    """Base of everything `jaxscale` prints as one sentence instead of a traceback."""

    exit_code = 1
    agreed = False
    """Whether every process of a multi-process run raised it, at the same point: then they can go on together."""
    kind = ""
    """Of an error that another process told: the name of its class there."""


class MisuseError(JaxscaleError, ValueError):
    """The request itself is wrong: unknown field, missing file, impossible value. Exit code 2."""

    exit_code = 2


class VerdictError(JaxscaleError, RuntimeError):
    """The request was sound and the answer is no: no usable budget, no disk space. Exit code 1."""

    exit_code = 1
