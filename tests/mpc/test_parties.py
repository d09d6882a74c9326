from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from shutil import which

import pytest
import torch

from bench.secure_run import run_module, structure_of
from mpc.joining import Tls
from mpc.network import Wire
from mpc.parties import Parties, PartyError
from mpc.scheme import Roles, Scheme
from tests.mpc.certificates import Authority
from tests.mpc.link_tasks import exchange_or_fail, out_of_step, peers, sent_in_all, surroundings, wait_for_ever
from tests.mpc.tasks import environment, fail, sleep
from tests.mpc.workloads import Apply, Convolution, FailsAtParty

pytestmark = pytest.mark.parties


def _alive(process_id: int) -> bool:
    stat = Path(f"/proc/{process_id}/stat")
    return stat.exists() and stat.read_text().rpartition(")")[2].split()[0] != "Z"


def test_results_come_in_party_order_with_pinned_threads() -> None:
    with Parties(Scheme(), threads=1) as parties:
        assert parties.run(environment, [()] * 2) == [(0, 1), (1, 1)]
        processes = parties.process_ids
    assert not any(_alive(process) for process in processes)


@pytest.mark.skipif(not hasattr(os, "SCHED_BATCH"), reason="policies of scheduling are Linux's")
@pytest.mark.parametrize(
    ("scheme", "policy"),
    [(Scheme(), "SCHED_BATCH"), (Scheme(transport="direct"), "SCHED_OTHER")],
    ids=["gloo", "direct"],
)
def test_no_thread_of_gloo_takes_the_place_of_another(scheme: Scheme, policy: str) -> None:
    with Parties(scheme) as parties:
        for process in parties.process_ids:
            threads = Path(f"/proc/{process}/task").iterdir()
            gloo = {int(thread.name) for thread in threads if "gloo" in (thread / "comm").read_text()}
            assert gloo  # over direct links CrypTen still has some, which say nothing there
            assert {os.sched_getscheduler(thread) for thread in {process, *gloo}} == {getattr(os, policy)}


def test_a_failing_party_is_named_with_its_own_traceback_and_all_end() -> None:
    with Parties(Scheme()) as parties:
        processes = parties.process_ids
        started_s = time.monotonic()
        with pytest.raises(PartyError, match="ArithmeticError: this party gives up") as failure:
            parties.run(fail, [(1,), (1,)])
        assert failure.value.party == 1
        assert time.monotonic() - started_s < 10
        assert not any(_alive(process) for process in processes)


def test_a_failure_inside_a_module_reaches_the_caller() -> None:
    with Parties(Scheme()) as parties, pytest.raises(PartyError, match="this party gives up") as failure:
        run_module(parties, FailsAtParty(party=0).eval(), torch.ones(2, 2))
    assert failure.value.party == 0


def test_a_killed_party_is_reported_within_10_s_and_none_is_left() -> None:
    with Parties(Scheme()) as parties:
        processes = parties.process_ids
        threading.Timer(1.0, os.kill, (processes[1], signal.SIGKILL)).start()
        started_s = time.monotonic()
        with pytest.raises(PartyError, match="SIGKILL") as failure:
            parties.run(sleep, [(60,), (60,)])
        assert failure.value.party == 1
        assert time.monotonic() - started_s < 10
        assert not any(_alive(process) for process in processes)


def test_a_silent_party_meets_the_deadline() -> None:
    with Parties(Scheme()) as parties:
        processes = parties.process_ids
        with pytest.raises(PartyError, match="no answer from party 1 within 1 s"):
            parties.run(sleep, [(0,), (60,)], deadline_s=1)
        assert not any(_alive(process) for process in processes)


def test_parties_leave_when_their_parent_is_killed(tmp_path: Path) -> None:
    script = tmp_path / "starts_parties.py"
    script.write_text(
        "import time\n"
        "from mpc.parties import Parties\n"
        "from mpc.scheme import Scheme\n"
        'if __name__ == "__main__":\n'
        "    with Parties(Scheme()) as parties:\n"
        "        print(*parties.process_ids, flush=True)\n"
        "        time.sleep(60)\n"
    )
    parent = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    processes = [int(number) for number in parent.stdout.readline().split()]
    assert len(processes) == 2 and all(_alive(process) for process in processes)
    parent.kill()
    parent.wait()
    parent.stdout.close()
    until_s = time.monotonic() + 10
    while any(_alive(process) for process in processes) and time.monotonic() < until_s:
        time.sleep(0.1)
    assert not any(_alive(process) for process in processes)


def test_a_third_party_dealer_gives_the_same_result_and_traffic() -> None:
    scheme = Scheme(dealer="ttp")
    x = torch.rand(2, 3, 7)
    with Parties(scheme) as parties:
        run = run_module(parties, Apply("relu").eval(), x - 0.5)
        assert len(parties.process_ids) == 3
    assert (run.output - torch.relu(x - 0.5)).abs().max() < 1e-3
    assert run.traffic == run.trace.traffic(scheme)
    assert run.traffic.offline.bytes[0] > 0


def test_only_the_model_owner_holds_weights_and_only_the_input_owner_the_input() -> None:
    module = Convolution().eval()
    skeleton = structure_of(module)
    assert all(parameter.is_meta for parameter in skeleton.parameters())
    assert not any(parameter.is_meta for parameter in module.parameters())


@pytest.mark.parametrize("reveal_to", [None, 0, 1, 2])
def test_who_learns_the_result_is_an_option(three_parties: Parties, reveal_to: int | None) -> None:
    x = torch.rand(2, 3, 7)
    roles = Roles(input_owner=2, model_owner=0, reveal_to=reveal_to)
    run = run_module(three_parties, Apply("negate").eval(), x, roles=roles)
    assert (run.output + x).abs().max() < 1e-4
    receivers = (0, 1, 2) if reveal_to is None else (reveal_to,)
    assert tuple(p for p, rounds in enumerate(run.reveal_log.traffic.online.rounds) if rounds) == receivers


def test_parties_of_another_scheme_are_refused(two_parties: Parties) -> None:
    with pytest.raises(ValueError, match="start others for"):
        run_module(two_parties, Apply("relu").eval(), torch.ones(2, 7), Scheme(parties=3))
    with pytest.raises(ValueError, match="model_owner is party 2"):
        run_module(two_parties, Apply("relu").eval(), torch.ones(2, 7), roles=Roles(model_owner=2))


DIRECT = Scheme(transport="direct")
TUNED = Scheme(name="tuned", transport="direct")


@pytest.fixture
def namespace() -> Iterator[str]:
    """A network namespace with nothing but its own loopback interface and an address that is not loopback."""
    name = f"mpc-pareto-test-{os.getpid()}"
    made = subprocess.run(["ip", "netns", "add", name], capture_output=True, check=False) if which("ip") else None
    if made is None or made.returncode:
        pytest.skip("network namespaces take iproute2 and the right to make them")
    try:
        for command in ("link set lo up", "addr add 10.98.0.1/32 dev lo"):
            subprocess.run(["ip", "-n", name, *command.split()], check=True)
        yield name
    finally:
        subprocess.run(["ip", "netns", "delete", name], check=True)


def test_tuned_parties_are_linked_and_start_without_crypten() -> None:
    with Parties(TUNED) as parties:
        here = str(Path("/proc/self/ns/net").readlink())
        assert parties.run(surroundings, [()] * 2) == [(here, False)] * 2
        assert parties.run(sent_in_all, [()] * 2) == [(1000 + 24 + 44,) * 2, (2000 + 24 + 44,) * 2]


@pytest.mark.parametrize("scheme", [DIRECT, TUNED], ids=["crypten", "tuned"])
def test_a_failing_party_is_named_and_not_those_who_lost_it(scheme: Scheme) -> None:
    with Parties(scheme) as parties:
        processes = parties.process_ids
        with pytest.raises(PartyError, match="ArithmeticError: this party gives up") as failure:
            parties.run(exchange_or_fail, [(1,), (1,)])
        assert failure.value.party == 1
        assert not any(_alive(process) for process in processes)


def test_a_killed_party_of_a_direct_link_is_reported_and_none_is_left() -> None:
    with Parties(TUNED) as parties:
        processes = parties.process_ids
        threading.Timer(0.5, os.kill, (processes[0], signal.SIGKILL)).start()
        with pytest.raises(PartyError, match="SIGKILL") as failure:
            parties.run(wait_for_ever, [()] * 2)
        assert failure.value.party == 0
        assert not any(_alive(process) for process in processes)


def test_parties_out_of_step_stop_at_once() -> None:
    with Parties(TUNED) as parties, pytest.raises(PartyError, match=r"party [01] is out of step: expected message 0"):
        parties.run(out_of_step, [()] * 2)


def test_a_silent_link_meets_the_deadline_of_the_parties() -> None:
    with Parties(TUNED, deadline_s=2) as parties, pytest.raises(PartyError, match=r"was silent for 2 s|no answer"):
        parties.run(wait_for_ever, [()] * 2)


def test_parties_joined_by_tls_compute_the_same(tmp_path: Path) -> None:
    authority = Authority(tmp_path / "authority")
    files = tuple(authority.tls(f"party-{number}") for number in range(2))
    x = torch.rand(2, 3, 7)
    with Parties(DIRECT, tls=files) as parties:
        run = run_module(parties, Apply("relu").eval(), x - 0.5)
    assert (run.output - torch.relu(x - 0.5)).abs().max() < 1e-3
    with pytest.raises(PartyError, match=r"did not join in time|cannot be joined"), Parties(TUNED, tls=files[::-1]):
        pass


@pytest.mark.parametrize("scheme", [Scheme(), DIRECT], ids=["gloo", "direct"])
def test_parties_enter_the_namespaces_of_their_wire(namespace: str, scheme: Scheme) -> None:
    wire = Wire(("10.98.0.1",) * 2, "lo", (namespace,) * 2)
    x = torch.rand(2, 7)
    with Parties(scheme, wire=wire) as parties:
        (inside, _), (other, _) = parties.run(surroundings, [()] * 2)
        run = run_module(parties, Apply("multiply").eval(), x)
    assert inside == other != str(Path("/proc/self/ns/net").readlink())
    assert (run.output - Apply("multiply")(x)).abs().max() < 1e-2


def test_places_that_do_not_do_are_refused_before_anything_starts() -> None:
    with pytest.raises(ValueError, match="not a loopback address: give TLS"):
        Parties(TUNED, wire=Wire(hosts=("127.0.0.1", "192.0.2.1")))
    with pytest.raises(ValueError, match="hosts for 1 processes"):
        Parties(TUNED, wire=Wire(hosts=("127.0.0.1",)))
    with pytest.raises(ValueError, match="namespaces for 1 processes"):
        Parties(TUNED, wire=Wire(namespaces=("one",)))
    with pytest.raises(ValueError, match="gloo has no TLS"):
        Parties(Scheme(), tls=(Tls(Path("c"), Path("k"), Path("a")),) * 2)


def test_a_namespace_that_does_not_exist_is_named() -> None:
    wire = Wire(namespaces=("no-such-namespace",) * 2)
    with pytest.raises(PartyError, match="no-such-namespace"), Parties(TUNED, wire=wire):
        pass


def test_a_dealer_of_its_own_is_linked_to_both_parties_and_leaves_with_them() -> None:
    with Parties(Scheme(name="tuned", transport="direct", dealer="ttp")) as parties:
        processes = parties.process_ids
        assert parties.run(peers, [()] * 2) == [[1, 2], [0, 2]]
        started_s = time.monotonic()
    assert len(processes) == 3 and not any(_alive(process) for process in processes)
    assert time.monotonic() - started_s < 4  # the dealer left by itself: it is killed after 5 s


def test_a_dealer_that_dies_is_named() -> None:
    with Parties(Scheme(name="tuned", transport="direct", dealer="ttp")) as parties:
        threading.Timer(0.5, os.kill, (parties.process_ids[2], signal.SIGKILL)).start()
        with pytest.raises(PartyError, match="SIGKILL") as failure:
            parties.run(wait_for_ever, [()] * 2)
        assert failure.value.party == 2
