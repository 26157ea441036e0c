"""A worker on the node, from where every pod is reached by its address; test_gvisor.py runs it.

python worker_on_node.py tools|suspension ENVIRONMENT
"""

import sys

import cloister


def tools(client: cloister.Client, environment: str) -> None:
    """A session's tools do what they do under any runtime, on gVisor's own kernel."""
    with client.create_session(environment) as made:
        assert "Starting gVisor" in made.bash("dmesg").text
        assert made.bash("cd /tmp && export KEPT=1; id -u").text == "1000"
        assert made.bash("pwd; echo $KEPT").text == "/tmp\n1"
        made.write("/workspace/a.txt", "one\n")
        made.edit("/workspace/a.txt", "one", "two")
        assert "two" in made.read("/workspace/a.txt").text
        assert "/workspace/a.txt" in made.glob("*.txt", "/workspace").text
        assert "a.txt" in made.grep("^two", "/workspace").text


def suspension(client: cloister.Client, environment: str) -> None:
    """What the workspace holds is there again after Suspend and Resume."""
    made = client.create_session(environment)
    made.bash("printf kept > a.txt; chmod 600 a.txt; ln -s a.txt link")
    client.suspend_session(made.name)
    with client.resume_session(made.name) as again:
        assert again.bash("cat link; stat -c ' %a' a.txt").text == "kept 600"


if __name__ == "__main__":
    what, environment = sys.argv[1:]
    with cloister.Client(direct=True) as client:
        {"tools": tools, "suspension": suspension}[what](client, environment)
