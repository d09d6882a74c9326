"""A run's directory: manifest.json, *.jsonl records, steps that are done, checkpoints and front/*.json specs.

A run that was killed resumes with the same command: whatever a step has returned is on disk and is not computed again.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import tempfile
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from bench.machine import this_machine
from bench.records import SCHEMA, Record, append, plain, read

_PACKAGES = ("mpc-pareto", "torch", "torchvision", "crypten", "timm", "numpy", "scipy", "scikit-learn", "pymoo")
_STEP_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


class RunDirectory:
    """The directory of one run, made or resumed by `start`, opened for reading by `existing`."""

    def __init__(self, path: Path, manifest: Record) -> None:
        self.path = path
        self.manifest = manifest

    @classmethod
    def start(
        cls, path: str | os.PathLike[str], verb: str, arguments: Mapping[str, Any], seeds: Sequence[int] = ()
    ) -> RunDirectory:
        """The run at `path`: new, or resumed where it was begun with the same verb, arguments and seeds.

        Raises ValueError naming what differs otherwise. A resume on another machine or with other versions is added to
        the manifest's "resumed" and warned about.
        """
        path = Path(path)
        asked = plain({"verb": verb, "arguments": dict(arguments), "seeds": list(seeds)})
        environment = _environment()
        if (path / "manifest.json").exists():
            run = cls.existing(path)
            _refuse_other(path, run.manifest, asked)
            run._note_resume(environment)
            return run
        run = cls(path, {"schema": SCHEMA, "record": "manifest", **asked, **environment, "resumed": []})
        run.write_json("manifest.json", run.manifest)
        return run

    @classmethod
    def existing(cls, path: str | os.PathLike[str]) -> RunDirectory:
        """The run at `path`; FileNotFoundError where there is none, ValueError for an unknown schema."""
        path = Path(path)
        if not (path / "manifest.json").is_file():
            raise FileNotFoundError(f"{path} is not a run: it has no manifest.json; give an earlier --out")
        manifest = json.loads((path / "manifest.json").read_bytes())
        if manifest.get("schema") != SCHEMA:
            found = manifest.get("schema")
            raise ValueError(f"{path} has schema {found}; this program reads schema {SCHEMA}")
        return cls(path, manifest)

    @property
    def front(self) -> Path:
        """The folder of the specs that the run found."""
        folder = self.path / "front"
        folder.mkdir(exist_ok=True)
        return folder

    def write_json(self, name: str, value: Any) -> Path:
        """Stores `value` under `name` whole or not at all; returns the path."""
        return write_json(self.path / name, value)

    def append(self, name: str, record: Mapping[str, Any]) -> None:
        """Adds a record to NAME.jsonl."""
        append(self.path / f"{name}.jsonl", record)

    def write_records(self, name: str, records: Iterable[Mapping[str, Any]]) -> Path:
        """NAME.jsonl holds exactly these records, whole or not at all: a repeated step leaves no doubles."""
        return write_rows(self.path / f"{name}.jsonl", records)

    def records(self, name: str, kind: str | None = None) -> list[Record]:
        """The records of NAME.jsonl, in order; none where the file does not exist yet."""
        path = self.path / f"{name}.jsonl"
        return read(path, kind) if path.exists() else []

    def done(self, step: str) -> bool:
        """Whether the result of `step` is stored."""
        return self._step_path(step).exists()

    def step(self, name: str, compute: Callable[[], Any]) -> Any:
        """The result of the step, computed once in the life of the run and returned as JSON holds it each time."""
        path = self._step_path(name)
        if not path.exists():
            write_json(path, {"schema": SCHEMA, "record": "step", "name": name, "result": compute()})
        try:
            return json.loads(path.read_bytes())["result"]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path} is damaged; remove it and the step {name!r} is done again") from error

    def _step_path(self, name: str) -> Path:
        if not _STEP_NAME.fullmatch(name):
            raise ValueError(f"a step's name is a file name of letters, digits, '.', '_' and '-', not {name!r}")
        return self.path / "steps" / f"{name}.json"

    def _note_resume(self, environment: Record) -> None:
        """Adds `environment` to the manifest where it differs from the one that the run last had."""
        last = (self.manifest["resumed"] or [self.manifest])[-1]
        differing = [key for key in environment if key in last and environment[key] != last[key]]
        if not differing:
            return
        warnings.warn(f"{self.path} is resumed under a different {' and '.join(differing)}", stacklevel=3)
        self.manifest["resumed"].append(environment)
        self.write_json("manifest.json", self.manifest)


def write_json(path: str | os.PathLike[str], value: Any, indent: int | None = 2) -> Path:
    """Stores `value` at `path` whole or not at all, creating its folder; refuses NaN and infinity (ValueError)."""
    value = plain(value, Path(path).stem)
    return write_whole(path, json.dumps(value, indent=indent, allow_nan=False, ensure_ascii=False) + "\n")


def write_rows(path: str | os.PathLike[str], records: Iterable[Mapping[str, Any]]) -> Path:
    """`path` holds exactly these records as JSON Lines, whole or not at all."""
    rows = [plain({"schema": SCHEMA, **record}, Path(path).stem) for record in records]
    return write_whole(path, "".join(json.dumps(row, separators=(",", ":"), allow_nan=False) + "\n" for row in rows))


def write_whole(path: str | os.PathLike[str], text: str) -> Path:
    """Stores `text` at `path` whole or not at all, creating its folder."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).chmod(0o644)  # mkstemp's files are private
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    return path


def versions() -> dict[str, str | None]:
    """Installed versions of the packages that change a result; None for those that are absent."""
    found: dict[str, str | None] = {}
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = None
    return found


def commit() -> str | None:
    """The git commit of this source tree, with "+changes" where tracked files differ; None outside a checkout."""
    root = Path(__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return None
    try:
        head = _git(root, "rev-parse", "HEAD")
        changes = _git(root, "status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.SubprocessError):
        return None
    return head + "+changes" if changes else head


def _git(root: Path, *arguments: str) -> str:
    command = ["git", "-C", str(root), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout.strip()


def _environment() -> Record:
    return {"versions": versions(), "commit": commit(), "machine": this_machine().to_json(), "device": device()}


def device() -> Record:
    """Where a training of this process computes: cpu or cuda, the names of the GPUs, CUDA's version and cuDNN's."""
    import torch

    if not torch.cuda.is_available():
        return {"type": "cpu", "gpus": [], "cuda": None, "cudnn": None}
    gpus = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
    cudnn = torch.backends.cudnn.version()  # type: ignore[no-untyped-call]
    return {"type": "cuda", "gpus": gpus, "cuda": torch.version.cuda, "cudnn": cudnn}


def _refuse_other(path: Path, manifest: Record, asked: Record) -> None:
    """Raises ValueError where the run was begun with something else than `asked`."""
    before = {"verb": manifest["verb"], "seeds": manifest["seeds"], **manifest["arguments"]}
    now = {"verb": asked["verb"], "seeds": asked["seeds"], **asked["arguments"]}
    differing = [key for key in {**before, **now} if before.get(key) != now.get(key)]
    if differing:
        what = "; ".join(f"{key} was {before.get(key)!r}, is {now.get(key)!r}" for key in differing)
        raise ValueError(f"{path} holds another run ({what}); repeat its arguments, or choose another --out")
