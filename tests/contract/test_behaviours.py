"""The table of behaviours says what is tested, and everything in it is."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
TESTS = ROOT / "tests" / "unit" / "sandbox" / "behaviours"
ROW = re.compile(r"\| (\d+) \| `([=~!])` \| (.+) \| (.+) \|")


def test_each_behaviour_has_a_row_and_its_tests() -> None:
    rows = ROW.findall((ROOT / "docs" / "behaviours.md").read_text())
    assert [int(number) for number, *_ in rows] == list(range(1, 70))
    listed = {
        f"test_row_{int(number):02}_{name}"
        for number, *_, names in rows
        for name in re.findall(r"`(\w+)`", names)
    }
    written = {
        name
        for path in TESTS.glob("test_*.py")
        for name in re.findall(r"def (test_row_\w+)\(", path.read_text())
    }
    assert listed == written


def test_rows_that_are_the_same_run_the_reference() -> None:
    rows = ROW.findall((ROOT / "docs" / "behaviours.md").read_text())
    same = {f"test_row_{int(number):02}" for number, tag, *_ in rows if tag == "="}
    compared = set()
    for path in TESTS.glob("test_*.py"):
        for name, body in re.findall(
            r"def (test_row_\d\d)\w*\((.*?)(?=\n\n\n|\Z)", path.read_text(), re.DOTALL
        ):
            if re.search(r"both\.(same|says|fails|theirs|reference)\b", body):
                compared.add(name)
    # A call that goes on without its caller, and one context's close, are the server's own.
    assert same - compared <= {"test_row_08", "test_row_69"}
