"""Copies of a run's metrics, settings and scores in TensorBoard, MLflow or Weights & Biases (`--track`)."""

import logging
import os
import re
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, Protocol

from core.errors import UserError
from core.files import naming_file, write_json
from core.settings import Affects
from core.subjects import pseudonyms
from core.text import read_json
from encoders.names import HUB
from engine.config import RunSettings, affects

log = logging.getLogger("fewslice")

PROJECT = "fewslice"
"""Experiment of MLflow and project of Weights & Biases, unless their own variables name another."""
NOTE = "tracking.json"
"""File of the run folder with the tracked run's identity and the last step that it has, for a resumed run."""


class Tracker:
    """Receives what a run logs; this one keeps nothing (`--track none`)."""

    def start(self, rows: Sequence[Mapping[str, float]], first_step: int) -> None:
        """Begin training.

        Args:
            rows: the rows of `metrics.csv` up to `first_step`.
            first_step: number of optimiser steps that an earlier process has taken.
        """

    def log(self, row: Mapping[str, float]) -> None:
        """Add a row of metrics; `row["step"]` is the number of optimiser steps taken."""

    def summarise(self, result: Mapping[str, Any]) -> None:
        """Add the content of `result.json`."""

    def close(self) -> None:
        """Flush and release what is held."""


class TensorBoard(Tracker):
    """Event files in the run folder. That they cannot be written ends the run, as it does for its other files."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder / "tensorboard"
        self._board: Any = None

    def start(self, rows: Sequence[Mapping[str, float]], first_step: int) -> None:
        """Open an event file; TensorBoard hides what earlier files hold of later steps than `first_step`."""
        from torch.utils.tensorboard.writer import SummaryWriter  # slow to import

        with naming_file(self._folder), _neutral_host():
            self._board = SummaryWriter(str(self._folder), purge_step=first_step + 1)

    def log(self, row: Mapping[str, float]) -> None:
        """Add each metric as a scalar."""
        with naming_file(self._folder):
            for name, value in row.items():
                if name != "step":
                    self._board.add_scalar(name, value, int(row["step"]))

    def close(self) -> None:
        """Flush the event file."""
        if self._board is not None:
            self._board.close()


class Service(Protocol):
    """One run in other software."""

    id: str
    """Identity by which a later process finds the run."""

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Add metrics of a step."""

    def summarise(self, scores: Mapping[str, float]) -> None:
        """Set the scores of the finished run; the same ones twice do no harm."""

    def close(self, finished: bool) -> None:
        """End the run, or leave it as one that was stopped."""


class Tracked(Tracker):
    """A run of a service: one that fails costs a warning, never the run; each step is sent once.

    What a service has missed is sent by the next `--resume`, from `metrics.csv`.

    Args:
        config: the run's configuration.
        folder: the run folder, whose name is that of the tracked run.
        connect: opens the run that an earlier process noted (None: a new one) and sends a new one's settings.

    Raises:
        UserError: if the service cannot be reached.
    """

    def __init__(
        self, config: RunSettings, folder: Path, connect: Callable[[Path, str | None, Mapping[str, Any]], Service]
    ) -> None:
        self._name, self._note, self._finished = config.track, folder / NOTE, False
        noted = _read_note(self._note, config.track)
        try:
            self._service: Service | None = connect(folder.resolve(), noted.get("run"), parameters(config))
        except Exception as error:  # of any library
            raise UserError(
                f"--track {self._name}: no run could be opened there ({_short(error)}); check its address and access, "
                "then pass --resume, or --track none"
            ) from error
        self._run = self._service.id
        self._last = int(noted.get("step", 0)) if noted.get("run") == self._run else 0
        write_json(self._note, {"track": self._name, "run": self._run, "step": self._last})

    def start(self, rows: Sequence[Mapping[str, float]], first_step: int) -> None:
        """Send the rows of earlier processes that the service has not received."""
        for row in rows:
            self.log(row)

    def log(self, row: Mapping[str, float]) -> None:
        """Send a row, unless an earlier process has: a resumed run repeats the steps after its checkpoint."""
        step = int(row["step"])
        if step > self._last and self._try(
            lambda service: service.log({name: value for name, value in row.items() if name != "step"}, step)
        ):
            self._last = step
            write_json(self._note, {"track": self._name, "run": self._run, "step": step})

    def summarise(self, result: Mapping[str, Any]) -> None:
        """Send the numbers of the result, and how many warnings it has: their text may name subjects."""
        numbers = _numbers({**result, "warnings": len(result.get("warnings", ()))}, "result/")
        self._finished = self._try(lambda service: service.summarise(numbers))

    def close(self) -> None:
        """End the tracked run."""
        self._try(lambda service: service.close(self._finished))
        self._service = None

    def _try(self, send: Callable[[Service], None]) -> bool:
        """Whether the service took it; after its first failure, which is said, it gets nothing more."""
        if self._service is None:
            return False
        try:
            send(self._service)
        except Exception as error:  # of any library
            self._service = None
            log.warning(
                f"--track {self._name} failed ({_short(error)}) and gets nothing more from this process; the run goes "
                "on, its files are complete, and --resume sends what is missing"
            )
            return False
        return True


class MLflow:
    """A run of an MLflow server (MLFLOW_TRACKING_URI), or of a database in the run folder."""

    def __init__(self, folder: Path, run: str | None, settings: Mapping[str, Any]) -> None:
        _import_mlflow()
        from mlflow import MlflowClient
        from mlflow.entities import Param
        from mlflow.exceptions import MlflowException

        address = os.environ.get("MLFLOW_TRACKING_URI")
        self._client = MlflowClient(tracking_uri=address or f"sqlite:///{folder / 'mlflow.db'}")
        self.id = run or ""
        if run is not None:
            try:
                self._client.update_run(run, status="RUNNING")
                return
            except MlflowException as error:
                if error.error_code != "RESOURCE_DOES_NOT_EXIST":  # it was of another server: this one gets a new run
                    raise
        experiment = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        with suppress(MlflowException):  # it exists
            self._client.create_experiment(experiment, None if address else (folder / "mlartifacts").as_uri())
        found = self._client.get_experiment_by_name(experiment)
        self.id = self._client.create_run(found.experiment_id, run_name=folder.name).info.run_id
        params = [Param(name, str(value)[:6000]) for name, value in settings.items()]
        for first in range(0, len(params), 100):  # the most of one request
            self._client.log_batch(self.id, params=params[first : first + 100])

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Add metrics of a step."""
        from mlflow.entities import Metric

        now = int(1000 * time.time())
        self._client.log_batch(self.id, [Metric(_mlflow_name(k), float(v), now, step) for k, v in metrics.items()])

    def summarise(self, scores: Mapping[str, float]) -> None:
        """Add the scores as metrics of their last value, those that the run does not have yet."""
        known = self._client.get_run(self.id).data.metrics
        self.log({k: v for k, v in scores.items() if known.get(_mlflow_name(k)) != v}, 0)

    def close(self, finished: bool) -> None:
        """Set the run's status."""
        self._client.set_terminated(self.id, "FINISHED" if finished else "KILLED")


class WandB:
    """A run of Weights & Biases, kept in the run folder for `wandb sync` unless WANDB_MODE=online is set."""

    def __init__(self, folder: Path, run: str | None, settings: Mapping[str, Any]) -> None:
        wandb = _import_wandb()
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=folder.name,
            id=run,
            dir=str(folder),
            mode=os.environ.get("WANDB_MODE", "offline"),
            config=dict(settings),
            resume="allow",
            reinit="create_new",  # a run within a run, such as the first stage of a hierarchical one
            # Metrics, settings and scores alone: no printed lines, which may name subjects, no command line, code, host
            # or load of the machine.
            settings=wandb.Settings(
                console="off",
                disable_code=True,
                disable_git=True,
                finish_timeout=300,  # seconds; what is not sent by then stays for `wandb sync`
                silent=True,
                x_disable_machine_info=True,
                x_disable_meta=True,
                x_disable_stats=True,
            ),
        )
        self.id = self._run.id

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Add metrics of a step."""
        self._run.log(dict(metrics), step=step)

    def summarise(self, scores: Mapping[str, float]) -> None:
        """Set the run's summary."""
        self._run.summary.update(dict(scores))

    def close(self, finished: bool) -> None:
        """End the run."""
        self._run.finish(exit_code=0 if finished else 1)


def require_tracker(config: RunSettings, folder: Path) -> None:
    """Raise a UserError unless the package of `--track` can be imported, and MLflow take the folder's name."""
    load = {"mlflow": _import_mlflow, "wandb": _import_wandb}.get(config.track)
    try:
        if load:
            load()
    except ImportError as error:
        raise UserError(
            f"--track {config.track} needs the package {config.track} ({error}): install the extra with `uv sync "
            f"--extra {config.track}`, or `pip install 'fewslice[{config.track}]'`"
        ) from None
    if config.track == "mlflow" and "?" in str(folder.resolve()) and not os.environ.get("MLFLOW_TRACKING_URI"):
        raise UserError(
            f"--track mlflow: {folder.resolve()} holds a ?, at which its address would end; choose another --out"
        )


def open_tracker(config: RunSettings, folder: Path) -> Tracker:
    """The tracker of `--track`; a UserError if its service cannot be reached."""
    if config.track == "tensorboard":
        return TensorBoard(folder)
    connect: Any = {"mlflow": MLflow, "wandb": WandB}.get(config.track)
    return Tracked(config, folder, connect) if connect else Tracker()


def parameters(config: Any, prefix: str = "", *, anonymous: bool | None = None) -> dict[str, Any]:
    """The settings that are saved with a run by their names in `config.json`, with dots between groups.

    Values are numbers, truth values, None or text. With `--anonymous` (or `anonymous`) the names of files and folders
    are replaced by codes.
    """
    anonymous = getattr(config, "anonymous", False) if anonymous is None else anonymous
    flat: dict[str, Any] = {}
    for field in fields(config):
        name, value = prefix + field.name, getattr(config, field.name)
        if is_dataclass(value):
            flat |= parameters(value, f"{name}.", anonymous=anonymous)
        elif affects(type(config), field.name) != Affects.INVOCATION:
            value = pseudonyms()(str(value)) if anonymous and _names_file(value) else value
            flat[name] = value if value is None or isinstance(value, bool | int | float) else str(value)
    return flat


def _names_file(value: object) -> bool:
    if isinstance(value, tuple):
        return any(map(_names_file, value))
    if isinstance(value, str):
        return not value.startswith(HUB) and ("/" in value or "\\" in value or os.path.exists(value))
    return isinstance(value, Path)


def _numbers(values: Mapping[str, Any], prefix: str) -> dict[str, float]:
    """The numbers of nested mappings by their path, such as result/dice.mean; 0 and 1 for false and true."""
    flat: dict[str, float] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            flat |= _numbers(value, f"{prefix}{name}.")
        elif isinstance(value, bool | int | float):
            flat[f"{prefix}{name}"] = float(value)
    return flat


def _mlflow_name(name: str) -> str:
    """A metric's name, which may hold that of a class, of the characters that MLflow takes."""
    return re.sub(r"[^\w/.\- ]", "_", name)


def _read_note(file: Path, track: str) -> dict[str, Any]:
    """What an earlier process noted about its run of the same tracker; empty if nothing, or nothing readable."""
    try:
        note = read_json(file)
    except (OSError, ValueError):
        return {}
    return note if isinstance(note, dict) and note.get("track") == track else {}


def _short(error: Exception) -> str:
    """The first line of an error."""
    return f"{type(error).__name__}: {str(error).strip()}".partition("\n")[0][:300]


def _import_mlflow() -> None:
    """Import MLflow: without usage statistics and notes about its database, and without minutes of waiting for a server
    that is gone. Variables that are set hold."""
    quiet = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_LOGGING_LEVEL": "WARNING"}
    patience = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2", "MLFLOW_HTTP_REQUEST_TIMEOUT": "20"}
    for name, value in (quiet | patience).items():
        os.environ.setdefault(name, value)
    from mlflow import MlflowClient  # noqa: F401, slow: seconds


def _import_wandb() -> Any:
    """The module wandb, without reports of its errors unless WANDB_ERROR_REPORTING is set."""
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    import wandb
    from wandb import Settings  # noqa: F401, a folder named wandb is a module, too

    return wandb


@contextmanager
def _neutral_host() -> Iterator[None]:
    """Let TensorBoard, which puts the host's name into the names of its files, see "host" for it."""
    gethostname = socket.gethostname
    socket.gethostname = lambda: "host"
    try:
        yield
    finally:
        socket.gethostname = gethostname
