"""Noticing that a far end, or its node, is gone: neither says so."""


def signs_of_life(every: float, within: float) -> tuple[tuple[str, int], ...]:
    """Options of a server or channel, from seconds: a far end that says nothing is asked for a sign
    of life after `every`, and its connection ends where none comes `within` that time.
    """
    milliseconds = int(1000 * within)
    return (
        ("grpc.keepalive_time_ms", int(1000 * every)),
        ("grpc.keepalive_timeout_ms", milliseconds),
        # Without this gRPC waits for a minute all the same.
        ("grpc.http2.ping_timeout_ms", milliseconds),
    )
