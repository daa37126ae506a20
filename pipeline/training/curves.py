"""Training curves for other tools: DVC's plots and experiments, TensorBoard, MLflow.

A run that goes on tells its earlier epochs again, so each of these begins afresh.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from softlabel.schemas.errors import EnvironmentFault
from softlabel.schemas.params import TrainParams
from softlabel.schemas.reports.training import EpochRecord

DVCLIVE_FOLDER = "dvclive"
TENSORBOARD_FOLDER = "tensorboard"

Log = Callable[[EpochRecord], None]


def curves(params: TrainParams, folder: Path) -> contextlib.AbstractContextManager[Log]:
    """A function that adds one epoch to the curves of the logger that `params` name.

    Raises EnvironmentFault where that is not installed or cannot write.
    """
    match params.logger:
        case "dvclive":
            return _dvclive(folder)
        case "tensorboard":
            return _tensorboard(folder)
        case "mlflow":
            return _mlflow(params, folder)
        case "none":
            return no_curves()


def no_curves() -> contextlib.AbstractContextManager[Log]:
    """A function that takes an epoch and does nothing with it."""
    return contextlib.nullcontext(lambda record: None)


@contextlib.contextmanager
def _dvclive(folder: Path) -> Iterator[Log]:
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
        yield lambda record: _to_dvclive(live, record)


def _to_dvclive(live: Any, record: EpochRecord) -> None:
    for name, value in _figures(record).items():
        live.log_metric(name, value)
    live.next_step()


@contextlib.contextmanager
def _tensorboard(folder: Path) -> Iterator[Log]:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise EnvironmentFault(
            "logger 'tensorboard' is not installed; pip install 'softlabel[tensorboard]' or pass "
            "--logger none"
        ) from error
    place = folder / TENSORBOARD_FOLDER
    shutil.rmtree(place, ignore_errors=True)
    with SummaryWriter(str(place)) as writer:

        def log(record: EpochRecord) -> None:
            for name, value in _figures(record).items():
                writer.add_scalar(name, value, record.epoch)
            writer.flush()

        yield log


@contextlib.contextmanager
def _mlflow(params: TrainParams, folder: Path) -> Iterator[Log]:
    """Into a run of its own, at the tracking server that MLFLOW_TRACKING_URI names."""
    try:
        import mlflow
    except ImportError as error:
        raise EnvironmentFault(
            "logger 'mlflow' is not installed; pip install 'softlabel[mlflow]' or pass "
            "--logger none"
        ) from error
    try:
        with mlflow.start_run(run_name=folder.name):
            mlflow.log_params(params.model_dump(mode="json", exclude={"runs"}, exclude_none=True))
            yield lambda record: mlflow.log_metrics(_figures(record), step=record.epoch)
    except mlflow.exceptions.MlflowException as error:
        raise EnvironmentFault(
            f"mlflow cannot write: {error}; check MLFLOW_TRACKING_URI, or pass --logger none"
        ) from error


def _figures(record: EpochRecord) -> dict[str, float]:
    return record.model_dump(exclude={"epoch"}, exclude_none=True)
