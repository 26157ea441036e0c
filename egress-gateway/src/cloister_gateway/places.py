"""Where the containers of a gateway pod meet: files, sockets and ports."""

from pathlib import Path

STATE = Path("/run/cloister/state")
"""Written by the agent alone; the squids read it."""
FRONT = Path("/run/cloister/front")
"""haproxy's; the agent uses the socket in it."""
OWN = Path("/run/cloister/own")
"""Each container's own: its rendered configuration."""
IDENTITY = Path("/run/cloister/identity")
"""The agent's certificate; no other container has it."""
STATE_FILE = "state.json"
REPORTS_SOCKET = "reports.sock"
RUNTIME_SOCKET = "haproxy.sock"

FRONT_PORT = 3128
DIRECT_PORT = 443
"""Where clients that know of no proxy are led to: haproxy's, too."""
NAMES_PORT = 3129
BY_NAME_PORT = 3130
SNI_PORT = 3141
GRPC_PORT = 7444
HTTP_PORT = 8081
LOG_PORT = 5140
"""haproxy tells the agent there which connection has ended."""
DNS_PORT = 53
"""squid asks no other."""
LOOPBACK = "127.0.0.1"
PROGRAM = ("/usr/bin/env", "/opt/gateway/bin/python", "-I", "-m")
"""How a module of this package is run in the image. squid starts programs under a name in brackets,
and Python finds its packages by the name that it is started under: `env` gives it its own again."""
ERRORS = Path("/opt/gateway/errors")
"""Our error page."""
