"""How programs in a sandbox learn of the egress gateways: variables, and a file for apt."""

APT_PATH = "/etc/apt/apt.conf.d/95cloister-proxy"
APT_KEY = "apt-proxy"
"""Of the recipe's payload."""
_HERE = "localhost,127.0.0.1,::1"


def of_all(gateway: str) -> dict[str, str]:
    """The variables that nearly all programs read, some in capitals and some not.

    Args:
        gateway: host:port of the gateways; an address, since sandboxes resolve no names.
    """
    url = f"http://{gateway}"
    found = {}
    for name, value in (("http_proxy", url), ("https_proxy", url), ("no_proxy", _HERE)):
        found[name] = found[name.upper()] = value
    return found


def of_tools(gateway: str) -> dict[str, str]:
    """Settings of programs that read those variables only when told to, or not at all."""
    host, _, port = gateway.rpartition(":")
    java = [
        f"-D{scheme}.proxy{key}={value}"
        for scheme in ("http", "https")
        for key, value in (("Host", host.strip("[]")), ("Port", port))
    ]
    return {
        "NODE_USE_ENV_PROXY": "1",
        "JAVA_TOOL_OPTIONS": " ".join([*java, "-Dhttp.nonProxyHosts=localhost|127.*|[::1]"]),
    }


def of_apt(gateway: str) -> bytes:
    """A file for apt, which programs run without the variables as well."""
    lines = [f'Acquire::{scheme}::Proxy "http://{gateway}";' for scheme in ("http", "https")]
    return ("\n".join(lines) + "\n").encode()
