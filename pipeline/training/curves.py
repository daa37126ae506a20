"""Training curves in the format of DVC's plots and experiments, through dvclive."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from softlabel.schemas.errors import EnvironmentFault
from softlabel.schemas.reports import EpochRecord

DVCLIVE_FOLDER = "dvclive"


@contextlib.contextmanager
def dvclive_curves(folder: Path) -> Iterator[Callable[[EpochRecord], None]]:
    """A function that adds one epoch to the curves below `folder/dvclive`.

    Raises EnvironmentFault where dvclive is not installed or refuses this folder's repository.
    """
    try:
        from dvclive import Live
        from dvclive.error import DvcLiveError
    except ImportError as error:
        raise EnvironmentFault(
            "logger 'dvclive' is not installed; pip install 'softlabel[dvc]' or pass --logger none"
        ) from error
    try:
        live: Any = Live(
            dir=str(folder / DVCLIVE_FOLDER),
            report=None,
            dvcyaml=None,
            save_dvc_exp=False,
            monitor_system=False,
        )
    except (DvcLiveError, ValueError, OSError) as error:
        raise EnvironmentFault(
            f"{folder}: dvclive cannot start: {error}; commit once to this git repository, or "
            "pass --logger none"
        ) from error
    with live:
        yield lambda record: _log(live, record)


def _log(live: Any, record: EpochRecord) -> None:
    for name, value in record.model_dump(exclude={"epoch"}, exclude_none=True).items():
        live.log_metric(name, value)
    live.next_step()
