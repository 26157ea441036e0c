"""Claim a sandbox, run a few tools in it, leave."""

import cloister

with cloister.session("first-session") as session:
    print(session.bash("python3 -c 'print(6*7)'").text)
    session.bash("cd /tmp && export TOPIC=cloisters")
    print(session.bash("echo $PWD $TOPIC").text)
    print(session.read("/workspace/README").text, end="")
    failed = session.bash("ls /nowhere")
    print("exit code", failed.exit_code)
