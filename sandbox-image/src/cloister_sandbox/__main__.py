"""Starts the exec server: `python -I -m cloister_sandbox`."""

import gc
import os
import sys
from types import ModuleType

# Modules stay: to look for garbage among them, again and again, is a tenth of the start. The server
# goes on collecting when it has started.
gc.disable()
# gRPC brings its own TLS. Without OpenSSL, which asyncio and hashlib load where they find it, the
# server starts sooner and takes 5 MB less. It obeys a file besides, /etc/ssl/openssl.cnf, which an
# Environment may bring, and which names libraries to load: nothing here is to read that, whatever
# loads OpenSSL after all.
os.environ["OPENSSL_CONF"] = os.devnull
sys.modules.update(dict.fromkeys(("ssl", "_hashlib")))  # type: ignore[arg-type]
# protobuf's own implementation in Python, another tenth: the compiled one only imports it.
_UNUSED = "google.protobuf.internal.python_message"
sys.modules[_UNUSED] = ModuleType(_UNUSED)
# The server never forks: tools start by vfork, and gRPC's fork handlers would only cost.
os.environ["GRPC_ENABLE_FORK_SUPPORT"] = "0"
# It tells of each handshake that fails otherwise, and tools can have thousands fail in a second.
os.environ.setdefault("GRPC_VERBOSITY", "ERROR")

from .main import main  # noqa: E402 - after what decides how modules load

if __name__ == "__main__":
    sys.exit(main())
