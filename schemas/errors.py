"""Every error that softlabel raises on purpose, and the exit code of each.

SoftlabelError
├── CheckFailed         1   a check said no: export parity, a teacher no better than chance
├── ParameterError      2   a flag or params.yaml is wrong, a given path does not exist
├── DataError           3   what a file holds is wrong: no ONNX file, duplicate keys, corrupt shard
│   └── IdentityError       the folder holds labels, or a run, that something else decided
└── EnvironmentFault    4   the machine: provider, memory, disk, permission, missing extra
    └── LeaseHeld           another process writes this folder
"""

from __future__ import annotations


class SoftlabelError(Exception):
    """A fault that its user can mend; the message is one line: what, where, what to do."""

    exit_code = 70


class CheckFailed(SoftlabelError):
    """A check ran and said no."""

    exit_code = 1


class ParameterError(SoftlabelError):
    """A parameter is missing, unknown, of the wrong type, or names a path that does not exist."""

    exit_code = 2


class DataError(SoftlabelError):
    """A file exists and its content is wrong."""

    exit_code = 3


class IdentityError(DataError):
    """A folder holds labels of another identity, or another run's checkpoint, than asked for."""


class EnvironmentFault(SoftlabelError):
    """The machine lacks something: a provider, memory, disk, a permission, an extra."""

    exit_code = 4


class LeaseHeld(EnvironmentFault):
    """Another living process holds the lease on a folder."""
