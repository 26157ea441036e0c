"""TLS's first message with whatever name in it, as no library would write it."""

import ssl
import struct


def hello(*names: tuple[int, str], again: tuple[int, str] | None = None) -> bytes:
    """A ClientHello with these entries of (type, name), and with the extension twice if asked."""

    def extension(entries: tuple[tuple[int, str], ...]) -> bytes:
        listed = b"".join(
            struct.pack("!BH", kind, len(each)) + each.encode("latin-1") for kind, each in entries
        )
        body = struct.pack("!H", len(listed)) + listed
        return struct.pack("!HH", 0, len(body)) + body

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    coming, going = ssl.MemoryBIO(), ssl.MemoryBIO()
    held = context.wrap_bio(coming, going)
    try:
        held.do_handshake()
    except ssl.SSLWantReadError:
        record = going.read()
    body = record[9:]
    at = 34 + 1 + body[34]
    at += 2 + int.from_bytes(body[at : at + 2], "big")
    at += 1 + body[at]
    extensions = extension(names) + (extension((again,)) if again else b"") + body[at + 2 :]
    body = body[:at] + struct.pack("!H", len(extensions)) + extensions
    message = b"\x01" + len(body).to_bytes(3, "big") + body
    return record[:3] + struct.pack("!H", len(message)) + message
