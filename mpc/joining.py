"""How processes find one another and become linked pairwise; who may join, and when a link must be encrypted."""

from __future__ import annotations

import ipaddress
import secrets
import socket
import ssl
import struct
import time
from dataclasses import dataclass
from pathlib import Path

from mpc.network import NetworkProfile
from mpc.transport import Link, TransportError

_HELLO = struct.Struct("<8sHH32s")  # protocol, version, process number, token of the process that is joined
_PROTOCOL = b"mpcdirct"
_VERSION = 1
_TOKEN_BYTES = 32
HELLO_BYTES = _HELLO.size
_JOIN_S = 120.0  # start-up of the slowest process
_HELLO_S = 5.0  # a connection that says nothing for so long is a stranger's
_SOCKET_BUFFER_BYTES = 8 << 20
_SO_SNDBUFFORCE, _SO_RCVBUFFORCE = 32, 33  # Linux, include/uapi/asm-generic/socket.h; Python does not name them


@dataclass(frozen=True, slots=True)
class Tls:
    """Files of one process for TLS 1.3 with mutual authentication, all PEM.

    The certificate is signed by `authority` and names its process number in its subject alternative names: the DNS name
    `party-0` for party 0, and so on. Another party's certificate does not open that party's place.
    """

    certificate: Path
    key: Path
    authority: Path

    def context(self, of_server: bool) -> ssl.SSLContext:
        """The settings of one side of a connection."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if of_server else ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.load_cert_chain(self.certificate, self.key)
        context.load_verify_locations(self.authority)
        context.verify_mode = ssl.CERT_REQUIRED
        return context


def demand_tls(host: str, tls: Tls | None, same_machine: bool = False) -> None:
    """ValueError for a plain link off loopback: with both shares on the wire, who reads it has every secret.

    `host` is an IP address. `same_machine` says that it belongs to a network namespace of a test bench: its other end
    is a process of the same user on this machine, joined by virtual interfaces only. Nothing leaves the machine then,
    and plain is as safe as on loopback.
    """
    if tls is None and not same_machine and not ipaddress.ip_address(host).is_loopback:
        raise ValueError(f"{host} is not a loopback address: give TLS certificates, or use 127.0.0.1")


def connect_all(
    number: int,
    count: int,
    hosts: tuple[str, ...],
    folder: Path,
    tls: Tls | None = None,
    deadline_s: float = 3600.0,
    same_machine: bool = False,
    emulated: NetworkProfile | None = None,
) -> dict[int, Link]:
    """Join process `number` with the others of `count`: its links by their numbers, `emulated` ones if so asked.

    Every process listens on its own entry of `hosts` and leaves its port in `folder`, with a token that only readers of
    the folder know; a process connects to all lower numbers. Raises TransportError where a process does not come.
    """
    for host in hosts[:count]:
        demand_tls(host, tls, same_machine)
    until_s = time.monotonic() + min(deadline_s, _JOIN_S)
    connected: dict[int, socket.socket] = {}
    token = secrets.token_bytes(_TOKEN_BYTES)
    try:
        with _listen(hosts[number], count) as listener:
            _publish(folder, number, listener.getsockname()[1], token)
            for peer in range(number):
                connected[peer] = _connect(number, peer, hosts[peer], folder, tls, until_s)
            _accept(listener, number, count, token, tls, until_s, connected)
    except BaseException:
        for link in connected.values():
            link.close()
        raise
    return {peer: Link(connected[peer], peer, deadline_s, emulated) for peer in sorted(connected)}


def _new_socket(host: str) -> socket.socket:
    created = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    # A plain request for large buffers is cut to the system's limit, and then ends the kernel's own growth of them:
    # without the privilege to pass the limit, growth does better on a long link.
    for option in (_SO_SNDBUFFORCE, _SO_RCVBUFFORCE):
        try:
            created.setsockopt(socket.SOL_SOCKET, option, _SOCKET_BUFFER_BYTES)
        except PermissionError:
            break
    created.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return created


def _listen(host: str, backlog: int) -> socket.socket:
    listener = _new_socket(host)
    try:
        listener.bind((host, 0))
        listener.listen(backlog + 8)
    except OSError as error:
        listener.close()
        raise TransportError(f"cannot listen on {host}: {error}") from error
    return listener


def _publish(folder: Path, number: int, port: int, token: bytes) -> None:
    written = folder / f"port-{number}.part"
    written.write_text(f"{port} {token.hex()}\n")
    written.rename(folder / f"port-{number}")


def _left_s(until_s: float, peer: object) -> float:
    left_s = until_s - time.monotonic()
    if left_s <= 0:
        raise TransportError(f"party {peer} did not join in time")
    return left_s


def _connect(number: int, peer: int, host: str, folder: Path, tls: Tls | None, until_s: float) -> socket.socket:
    announced = folder / f"port-{peer}"
    while not announced.exists():
        time.sleep(min(0.005, _left_s(until_s, peer)))
    port, token = announced.read_text().split()
    connecting = _new_socket(host)
    try:
        connecting.settimeout(_left_s(until_s, peer))
        connecting.connect((host, int(port)))
        if tls is not None:
            connecting = tls.context(of_server=False).wrap_socket(connecting, server_hostname=f"party-{peer}")
        connecting.sendall(_HELLO.pack(_PROTOCOL, _VERSION, number, bytes.fromhex(token)))
        answering = _read_hello(connecting, bytes.fromhex(token))
        if answering != peer:
            raise TransportError(f"the process at {host}:{port} is party {answering}, not party {peer}")
    except OSError as error:
        connecting.close()
        raise TransportError(f"party {peer} at {host}:{port} cannot be joined: {error}") from error
    except BaseException:
        connecting.close()
        raise
    return connecting


def _accept(
    listener: socket.socket,
    number: int,
    count: int,
    token: bytes,
    tls: Tls | None,
    until_s: float,
    connected: dict[int, socket.socket],
) -> None:
    """Wait for all higher numbers; whoever is none of them is refused and the wait goes on."""
    missing = set(range(number + 1, count))
    context = tls.context(of_server=True) if tls is not None else None
    refused = ""
    while missing:
        try:
            listener.settimeout(_left_s(until_s, min(missing)))
            incoming, _ = listener.accept()
        except (TransportError, TimeoutError):
            raise TransportError(f"party {min(missing)} did not join in time{refused}") from None
        try:
            incoming.settimeout(min(_HELLO_S, max(0.001, until_s - time.monotonic())))
            if context is not None:
                incoming = context.wrap_socket(incoming, server_side=True)
            peer = _read_hello(incoming, token)
            if peer not in missing:
                raise TransportError(f"a second or unknown party {peer} asked to join")
            _demand_name(incoming, peer)
            incoming.sendall(_HELLO.pack(_PROTOCOL, _VERSION, number, token))
        except (OSError, TransportError) as error:
            incoming.close()
            refused = f"; a connection was refused: {error}"
            continue
        connected[peer] = incoming
        missing.remove(peer)


def _read_hello(stream: socket.socket, token: bytes) -> int:
    """The number of the process at the other end; TransportError for one that does not belong here."""
    received = b""
    while len(received) < HELLO_BYTES:
        piece = stream.recv(HELLO_BYTES - len(received))
        if not piece:
            raise TransportError("a stranger hung up, or this process was refused")
        received += piece
    protocol, version, number, shown = _HELLO.unpack(received)
    if protocol != _PROTOCOL or not secrets.compare_digest(shown, token):
        raise TransportError("a stranger does not know the token of this run")
    if version != _VERSION:
        raise TransportError(f"party {number} speaks version {version} of the transport, this process {_VERSION}")
    return int(number)


def _demand_name(incoming: socket.socket, peer: int) -> None:
    """The certificate of a process that connects names the number it gives."""
    if isinstance(incoming, ssl.SSLSocket):
        names = (incoming.getpeercert() or {}).get("subjectAltName", ())
        if ("DNS", f"party-{peer}") not in names:
            raise TransportError(f"the certificate shown by party {peer} does not name party-{peer}")
