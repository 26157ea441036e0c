"""Where the image's package managers get their packages: asked of the tools, since only they know.

Nothing here names a registry: what a tool has built in is read out of the tool.
"""

import asyncio
from collections.abc import Mapping
from pathlib import Path

from .processes import Reaper
from .shell import Shell

ASK_SECONDS = 60.0
"""For all of them: some take seconds to start."""
MAX_SOURCES = 256
_SCRIPT = r"""
say() { sed -nE "s#^[[:space:]]*(https?://[^[:space:]'\"|,]+).*#$1 \\1#p"; }
has() { command -v "$1" > /dev/null 2>&1; }
exec 2> /dev/null < /dev/null
if has python3; then
  { python3 -m pip config get global.index-url || python3 -c '
from pip._internal.models.index import PyPI
print(PyPI.simple_url)
print("https://" + PyPI.file_storage_domain + "/")'; } | say pip
  python3 -m pip config get global.extra-index-url | tr -s " " "\n" | say pip
fi
if has npm; then npm config get registry | say npm; fi
if has go; then
  go env GOPROXY | tr ",|" "\n\n" | say go
  go env GOSUMDB | awk 'NF && $1 != "off" { print "https://" $1 "/" }' | say go-checksums
fi
if has gem; then gem sources --list | say gem; fi
if has apt-get; then apt-get indextargets --format '$(REPO_URI)' | say apt; fi
if has cargo; then
  { grep -hoE 'https://[^"]+' "${CARGO_HOME:-$HOME/.cargo}"/config.toml ||
    grep -hoE 'https://[^"]+' /usr/local/cargo/config.toml ||
    grep -aoE 'sparse[+]https://[a-z0-9.-]+/' "$(readlink -f "$(command -v cargo)")" |
      sed 's/^sparse[+]//'; } | say cargo
fi
true
"""


async def package_sources(
    workspace: Path, state_dir: Path, env: Mapping[str, str], reaper: Reaper
) -> list[tuple[str, str]]:
    """Managers and URLs, each pair once; of a manager that is not there or says nothing, none.

    Raises ShellError when no shell can be started.
    """
    shell = Shell("packages", state_dir, reaper)
    try:
        await shell.open(str(workspace), env)
        finished = await shell.run(_SCRIPT, ASK_SECONDS, asyncio.get_running_loop().create_future())
    finally:
        await shell.retire()
    return parse(finished.output)


def parse(output: str) -> list[tuple[str, str]]:
    """The pairs out of lines of a manager, a space and a URL."""
    pairs = (line.split(" ") for line in output.splitlines())
    found = {(each[0], each[1]) for each in pairs if len(each) == 2}
    return sorted(found)[:MAX_SOURCES]
