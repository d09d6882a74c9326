"""Where the numbers of a training are drawn as curves: TensorBoard always, MLflow for whoever has a server of it."""

from __future__ import annotations

import importlib
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from bench.run_directory import write_json

_BATCH = 1000  # metrics that MLflow takes in one request


class Curves(Protocol):
    """Draws numbers by name over steps."""

    def restart(self) -> None:
        """Makes ready for everything to be drawn from the first number on."""

    def draw(self, numbers: Mapping[str, float], step: int, at_s: float | None) -> None:
        """A point of every curve in `numbers`; `at_s` is when it was made, in seconds of time.time()."""

    def flush(self) -> None:
        """Everything drawn can be seen."""

    def close(self, finished: bool) -> None:
        """Nothing will be drawn any more; not `finished` where the training failed or was stopped."""


class TensorBoard:
    """Event files in `folder`, which holds no others: a restart removes those of earlier processes."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._writer: Any = None

    def restart(self) -> None:
        """As `Curves` says; what was drawn before is gone, so nothing shows twice."""
        from torch.utils.tensorboard.writer import SummaryWriter

        self.close(finished=False)
        for file in self._folder.glob("events.out.tfevents.*"):
            file.unlink()
        self._writer = SummaryWriter(str(self._folder))

    def draw(self, numbers: Mapping[str, float], step: int, at_s: float | None) -> None:
        """As `Curves` says."""
        for name, value in numbers.items():
            self._writer.add_scalar(name, value, step, walltime=at_s)

    def flush(self) -> None:
        """As `Curves` says."""
        self._writer.flush()

    def close(self, finished: bool) -> None:
        """As `Curves` says."""
        if self._writer is not None:
            self._writer.close()


class MLflow:
    """A run of the MLflow server at `uri`, remembered in `folder` so that a resumed training adds to the same one.

    It takes nothing back: of a step that is trained again after a kill, the first number stays. Raises ValueError where
    MLflow is not installed.
    """

    def __init__(self, folder: Path, uri: str, manifest: Mapping[str, Any]) -> None:
        self._mlflow = _mlflow()
        self._client = self._mlflow.tracking.MlflowClient(uri)
        self._run = self._resumed(folder / "mlflow.json", uri) or self._begun(folder / "mlflow.json", uri, manifest)
        self._waiting: list[Any] = []
        self._last_steps: dict[str, int] = {}

    def restart(self) -> None:
        """As `Curves` says; what the server has already is not sent to it again."""
        self.flush()
        for name in self._client.get_run(self._run).data.metrics:
            self._last_steps[name] = max(point.step for point in self._client.get_metric_history(self._run, name))

    def draw(self, numbers: Mapping[str, float], step: int, at_s: float | None) -> None:
        """As `Curves` says."""
        at_ms = int(1000 * (time.time() if at_s is None else at_s))
        for name, value in numbers.items():
            if step > self._last_steps.get(name, -1):
                self._last_steps[name] = step
                self._waiting.append(self._mlflow.entities.Metric(name, value, at_ms, step))

    def flush(self) -> None:
        """As `Curves` says."""
        while self._waiting:
            self._client.log_batch(self._run, metrics=self._waiting[:_BATCH])
            del self._waiting[:_BATCH]

    def close(self, finished: bool) -> None:
        """As `Curves` says."""
        self.flush()
        self._client.set_terminated(self._run, "FINISHED" if finished else "KILLED")

    def _resumed(self, note: Path, uri: str) -> str | None:
        """The run that `note` names, going on; None where there is none on this server."""
        noted = json.loads(note.read_text()) if note.exists() else {}
        if noted.get("uri") != uri:
            return None
        self._client.update_run(noted["run"], status="RUNNING")
        return str(noted["run"])

    def _begun(self, note: Path, uri: str, manifest: Mapping[str, Any]) -> str:
        """A new run that knows what was asked for, named after its folders."""
        experiment = self._client.get_experiment_by_name("mpc-pareto")
        number = experiment.experiment_id if experiment else self._client.create_experiment("mpc-pareto")
        run = self._client.create_run(number, run_name="/".join(note.absolute().parent.parts[-2:])).info.run_id
        for name, value in manifest.get("arguments", {}).items():
            self._client.log_param(run, name, json.dumps(value)[:500])
        for name in ("verb", "commit", "seeds"):
            self._client.set_tag(run, name, str(manifest.get(name)))
        write_json(note, {"schema": 1, "record": "mlflow", "uri": uri, "run": run})
        return str(run)


def _mlflow() -> Any:
    """The package, whose types differ between its distributions; imported only here."""
    try:
        package = importlib.import_module("mlflow")
        importlib.import_module("mlflow.tracking")
        importlib.import_module("mlflow.entities")
    except ModuleNotFoundError:
        message = "tracking on an MLflow server needs MLflow; install it: pip install 'mpc-pareto[mlflow]'"
        raise ValueError(f"{message}, or unset MLFLOW_TRACKING_URI") from None
    return package
