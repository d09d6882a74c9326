"""The secure reading: an unmodified module runs on CrypTen shares, inside one party process."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mpc import rows  # noqa: F401 - importing registers the table
from mpc.arguments import mapped
from mpc.crypten_import import import_crypten
from mpc.fixed_point import encode
from mpc.ledger import Ledger, MessageLog
from mpc.reading import weight_tensors
from mpc.scheme import Roles, Scheme
from mpc.table import Row, form_of
from mpc.tensor import JOINS, Reading, SecureTensor, module_sites
from mpc.trace import Operation, Trace

Shares = Any


@dataclass(frozen=True, slots=True)
class ForwardResult:
    """What one party knows after its runs: the result where revealed to it, logs, its trace and its peak memory.

    `setup_log` is there where fixed weights were opened once, ahead of all runs; `outside`, where the result was
    revealed and the scheme checks ranges, counts the values of the last run that lay outside theirs.
    """

    output: Tensor | None
    output_shape: tuple[int, ...]
    logs: tuple[MessageLog, ...]
    reveal_log: MessageLog
    trace: Trace
    peak_bytes: int
    setup_log: MessageLog | None = None
    outside: int | None = None


class SecureReading(Reading):
    """Runs rows on shares and tells the ledger what is running."""

    def __init__(self, scheme: Scheme, ledger: Ledger) -> None:
        super().__init__()
        self.scheme = scheme
        self.ledger = ledger

    def run_row(self, entry: Row, operation: Operation, args: Any, kwargs: Any) -> Shares:
        """Execute the row; a result of another shape than described is an error of the table."""
        with self.ledger.operation(operation.op, operation.site):
            result = form_of(entry, self.scheme).secure(self.scheme, *_shares_of(args), **_shares_of(kwargs))
        if tuple(result.share.shape) != operation.output:
            raise RuntimeError(
                f"row {entry.name} gave shape {tuple(result.share.shape)}, described as {operation.output}"
            )
        return result

    def move(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Move the shares as the operation moves data; a public float joins as the first party's share."""
        raw = partial(self._raw, joins=func in JOINS)
        return func(*mapped(raw, args), **mapped(raw, kwargs))

    def hold(self, moved: Tensor) -> Shares:
        """What was moved as CrypTen's shares."""
        from crypten.mpc import MPCTensor

        return MPCTensor.from_shares(moved)

    def _raw(self, leaf: Any, joins: bool) -> Any:
        if isinstance(leaf, SecureTensor):
            return leaf.shares.share
        if isinstance(leaf, Tensor) and (joins or leaf.is_floating_point()):
            encoded = encode(leaf.float(), self.scheme, "a public tensor")
            return encoded if self.ledger.party == 0 else torch.zeros_like(encoded)
        return leaf


def _shares_of(tree: Any) -> Any:
    return mapped(lambda leaf: leaf.shares if isinstance(leaf, SecureTensor) else leaf, tree)


def share(values: Tensor | None, shape: tuple[int, ...], owner: int, scheme: Scheme, what: str) -> Shares:
    """Shares of the owner's values: a pseudo-random zero sharing plus the encoded values at the owner; nothing is sent.

    Parties other than the owner pass None.
    """
    import_crypten()
    from crypten.mpc import MPCTensor
    from crypten.mpc.primitives import ArithmeticSharedTensor

    zero = ArithmeticSharedTensor.PRZS(tuple(shape))
    if values is not None and zero.rank == owner:
        zero.share = zero.share + encode(values, scheme, what)
    return MPCTensor.from_shares(zero.share)


def secure_forward(
    module: nn.Module,
    inputs: Tensor | None,
    input_shape: tuple[int, ...],
    scheme: Scheme,
    roles: Roles,
    ledger: Ledger,
    repeats: int = 1,
) -> ForwardResult:
    """Run `module` on shares `repeats` times and reveal the last result as `roles` says; called by every party alike.

    `inputs` is None at parties that do not own the input; the module of a party that does not own the weights holds
    them as meta tensors (private weights), and is left as it is where weights are public.
    """
    forget_peak()
    with module_sites(module, reading := SecureReading(scheme, ledger)), _settings(scheme):
        secret = share(inputs, input_shape, roles.input_owner, scheme, "the input")
        shared = (
            _share_weights(module, reading, roles) if scheme.weights == "private" else check_weights(module, scheme)
        )
        logs = []
        for _ in range(repeats):
            reading.operations.clear()
            x = reading.wrap(input_shape, secret, "secret")  # anew: a module may write into its input
            _barrier()
            ledger.start()
            output = torch.func.functional_call(module, shared, (x,))
            logs.append(ledger.stop())
        if not isinstance(output, SecureTensor):
            raise ValueError(f"the module returned {type(output).__name__}, not one tensor that depends on its input")
        _barrier()
        ledger.start()
        with ledger.operation("reveal", ""):
            revealed = reveal(output.shares, roles.reveal_to)
        reveal_log = ledger.stop()
    result = None if revealed is None else revealed.clone()
    return ForwardResult(
        result, tuple(output.shape), tuple(logs), reveal_log, Trace(tuple(reading.operations)), peak_bytes()
    )


def reveal(shares: Shares, to: int | None) -> Tensor | None:
    """Open shares to all parties, or to one; None at a party that learns nothing.

    Opening to one party gathers the shares there. Unlike CrypTen's `reveal(dst)`, which calls gloo's reduce: its ring
    adds up half of the tensor at the other party, who so learns that half of the result.
    """
    import crypten.communicator as comm

    if to is None:
        opened: Tensor = comm.get().all_reduce(shares.share)
    else:
        gathered = comm.get().gather(shares.share.contiguous(), to)
        if gathered[0] is None:
            return None
        opened = torch.stack(gathered).sum(0)
    scale: int = shares.encoder.scale
    return (opened.double() / scale).float()


def _share_weights(module: nn.Module, reading: SecureReading, roles: Roles) -> dict[str, Tensor]:
    shared: dict[str, Tensor] = {}
    for name, tensor in weight_tensors(module).items():
        values = None if tensor.is_meta else tensor.detach()
        shares = share(values, tuple(tensor.shape), roles.model_owner, reading.scheme, f"weight {name}")
        shared[name] = reading.wrap(tensor.shape, shares, "weight")
    return shared


def check_weights(module: nn.Module, scheme: Scheme) -> dict[str, Tensor]:
    """Refuse public weights that fixed-point numbers cannot hold; nothing is shared."""
    for name, tensor in weight_tensors(module).items():
        encode(tensor.detach(), scheme, f"weight {name}")
    return {}


def forget_peak() -> None:
    """Start the kernel's count of this process's peak memory anew, where it lets us (Linux)."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_bytes() -> int:
    """Peak resident memory since `forget_peak`; since the start of the process where the kernel does not tell."""
    with suppress(OSError, StopIteration):
        lines = Path("/proc/self/status").read_text().splitlines()
        return 1024 * int(next(line for line in lines if line.startswith("VmHWM:")).split()[1])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _barrier() -> None:
    import crypten.communicator as comm

    comm.get().barrier()


@contextmanager
def _settings(scheme: Scheme) -> Iterator[None]:
    """CrypTen's configuration for this scheme; gradients off."""
    crypten = import_crypten()
    from crypten.config import cfg

    with crypten.no_grad(), cfg.temp_override({"encoder.precision_bits": scheme.precision_bits}):
        yield
