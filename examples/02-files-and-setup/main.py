"""Use what the Environment prepared, bring files along, and take results home."""

import tempfile
from pathlib import Path

import cloister

task = cloister.File("/workspace/task.txt", b"add the numbers\n", mode=0o600)

with (
    cloister.Client() as client,
    client.create_session("files-and-setup", env={"WHO": "agent"}, files=[task]) as session,
):
    print(session.bash('/opt/bin/greet "$WHO"').text)
    print(session.bash("cat task.txt; paste -sd+ sorted.csv").text)
    print(session.bash("echo >> /opt/bin/greet").is_error)
    session.bash("mkdir report && awk '{s += $1} END {print s}' sorted.csv > report/sum")
    with tempfile.TemporaryDirectory() as home:
        session.download("/workspace/report", home)
        print((Path(home) / "report" / "sum").read_text(), end="")
