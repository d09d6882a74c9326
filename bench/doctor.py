"""Whether this machine can do what the other verbs need, and what to do where it cannot."""

from __future__ import annotations

import multiprocessing
import os
import platform
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from datetime import timedelta
from importlib import import_module, metadata
from pathlib import Path
from typing import Any

from bench.machine import usable_cores
from bench.shaped_link import why_not
from mpc.awake import can_keep_awake

_RENDEZVOUS_LIMIT_S = 60.0
_REINSTALL = "pip install -c constraints.txt -e ."


@dataclass(frozen=True, slots=True)
class Check:
    """One finding: what was looked at and found, whether the verbs need it, and the `fix`, empty where all is well."""

    name: str
    ok: bool
    found: str
    fix: str = ""
    needed: bool = True

    def __post_init__(self) -> None:
        if self.ok:
            object.__setattr__(self, "fix", "")

    def to_json(self) -> dict[str, Any]:
        """Plain values for a record."""
        return asdict(self)


def examine(out: Path) -> Iterator[Check]:
    """Every check in turn, as it is done; `out` is the folder that runs would be written to."""
    yield _python()
    yield from _versions()
    yield _imports("torch, torchvision, timm", lambda: [import_module(n) for n in ("torch", "torchvision", "timm")])
    yield _imports("crypten", _import_crypten)
    yield _imports("the tuned scheme", lambda: import_module("mpc.tuned.forward"))
    yield _rendezvous()
    yield _shaped_link()
    yield _cores_awake()
    yield _threads()
    yield _gpu()
    yield _write_access(out)


def _python() -> Check:
    found = platform.python_version()
    return Check("python", sys.version_info >= (3, 11), found, "make .venv anew: make setup PYTHON=python3.11")


def _versions() -> Iterator[Check]:
    """Installed versions against the requirements of this distribution, without its extras."""
    from packaging.requirements import Requirement

    try:
        requirements = [Requirement(text) for text in metadata.requires("mpc-pareto") or ()]
    except metadata.PackageNotFoundError:
        yield Check("mpc-pareto", False, "not installed", _REINSTALL)
        return
    for requirement in requirements:
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            found = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            yield Check(requirement.name, False, "not installed", _REINSTALL)
            continue
        ok = requirement.specifier.contains(found, prereleases=True)
        yield Check(requirement.name, ok, found, f"needs {requirement.specifier or 'any version'}: {_REINSTALL}")


def _imports(name: str, load: Callable[[], object]) -> Check:
    try:
        load()
    except Exception as error:  # whatever a broken installation raises is the finding
        first_line = str(error).partition("\n")[0]
        fix = f"versions that do not fit each other? {_REINSTALL}"
        return Check(f"import {name}", False, f"{type(error).__name__}: {first_line}", fix)
    return Check(f"import {name}", True, "imports")


def _import_crypten() -> object:
    from mpc.crypten_import import import_crypten

    return import_crypten()


def _rendezvous() -> Check:
    """Two processes meet over loopback TCP and add two numbers, as parties do."""
    fix = "parties talk over 127.0.0.1: allow it in the firewall or sandbox, and try GLOO_SOCKET_IFNAME=lo"
    try:
        exits = _meet_on_loopback()
    except Exception as error:  # whatever a broken network raises is the finding
        return Check("loopback rendezvous", False, f"{type(error).__name__}: {error}", fix)
    if exits == [0, 0]:
        return Check("loopback rendezvous", True, "2 processes met over 127.0.0.1")
    return Check("loopback rendezvous", False, f"exit codes {exits} within {_RENDEZVOUS_LIMIT_S:.0f} s", fix)


def _meet_on_loopback() -> list[int | None]:
    from torch.distributed import TCPStore  # type: ignore[attr-defined]

    limit = timedelta(seconds=_RENDEZVOUS_LIMIT_S)
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False, timeout=limit)
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=_meet, args=(rank, store.port), daemon=True) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(_RENDEZVOUS_LIMIT_S)
    exits = [process.exitcode for process in processes]
    for process in processes:
        process.kill()
    return exits


def _meet(rank: int, port: int) -> None:
    """Exits with 0 where an all_reduce between two processes gives the right sum."""
    import torch
    import torch.distributed as dist
    from torch.distributed import TCPStore  # type: ignore[attr-defined]

    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo0" if sys.platform == "darwin" else "lo")
    limit = timedelta(seconds=_RENDEZVOUS_LIMIT_S / 2)
    store = TCPStore("127.0.0.1", port, is_master=False, timeout=limit)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=2, timeout=limit)
    total = torch.tensor([rank + 1])
    dist.all_reduce(total)
    dist.destroy_process_group()
    sys.exit(0 if total.item() == 3 else 1)


def _shaped_link() -> Check:
    """Whether `bench --emulate link` can run here; everything else can do without."""
    reason = why_not()
    return Check(
        "shaped link", reason is None, "can be made" if reason is None else "cannot be made", reason or "", False
    )


def _cores_awake() -> Check:
    """Whether seconds are safe from what waking a core costs."""
    fix = "seconds may scatter, in virtual machines above all: run as root, or get write access to /dev/cpu_dma_latency"
    ok = can_keep_awake()
    return Check("cores kept awake", ok, "while parties run" if ok else "cannot be", fix, needed=False)


def _threads() -> Check:
    import torch

    threads, cores = torch.get_num_threads(), usable_cores()
    fix = f"more threads than cores slow everything down: set OMP_NUM_THREADS={cores} or less"
    return Check("cpu threads", threads <= cores, f"torch uses {threads} of {cores} cores", fix, needed=False)


def _gpu() -> Check:
    import torch

    found = torch.cuda.get_device_name() if torch.cuda.is_available() else "none; training runs on the CPU"
    return Check("gpu", True, found, needed=False)


def _write_access(out: Path) -> Check:
    folder = next(parent for parent in (out.absolute(), *out.absolute().parents) if parent.exists())
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        return Check("write access", False, f"{folder}: {error.strerror}", "choose another folder: --out DIR")
    return Check("write access", True, str(folder))
