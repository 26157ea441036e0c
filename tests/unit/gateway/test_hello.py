"""Names in TLS that are more than a name: squid hands what it finds there to a helper, in lines."""

import pytest

from support.client_hello import hello
from support.gateway_world import World

POD = "10.90.0.11"
OK = "ok.test"
FORGED = "".join(f"{channel} 10.90.0.11 1 {OK} {OK} 443 same\n" for channel in range(4))


@pytest.mark.parametrize(
    "name",
    [
        *(f" {OK}", f"{OK} ", f"\t{OK}", f"{OK} {OK}", f"{OK} {OK} 443", f"evil.test {OK}"),
        *(f"{OK}%20", f"%6fk.test{OK}", f'"{OK}"', f"{OK}\r", f"{OK}\\", f"{OK}\x7f", f"{OK}\xe9"),
        *(f"x\n{FORGED}z", f"-\n0 OK\n0 {OK}", f"x\r\n{FORGED}", f"{OK}\n"),
    ],
)
def test_a_name_that_is_more_than_one_is_closed(here: World, name: str) -> None:
    made, head = here.client.tunnel(POD, f"{OK}:443")
    assert " 200 " in head
    with made:
        made.sendall(hello((0, name)))
        heard = b""
        try:
            while more := made.recv(4096):
                heard += more
        except ConnectionResetError:
            pass
    assert heard == b""
    assert here.internet.seen == []
    # A line too many ends squid, and with it the connections of everybody.
    assert here.client.fetch(POD, OK).endswith(b"hello\n")
