"""Reach a host that is allowed, be told of one that is not, and read what was decided."""

import time

import cloister

with cloister.Client() as client, client.create_session("hosts-by-name") as session:
    print(session.bash("curl -sS -o /dev/null -w '%{http_code}' http://example.com/").text)
    print(session.bash("curl -sS http://example.org/").text)

    # Gateways tell within moments.
    deadline = time.monotonic() + 30
    while len(decisions := client.session_egress(session.name)) < 2:
        if time.monotonic() > deadline:
            break
        time.sleep(0.1)
    for each in sorted(decisions, key=lambda each: each.host):
        print(f"{each.host}:{each.port} {'allowed' if each.allowed else 'denied'} {each.reason}")
