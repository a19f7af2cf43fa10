"""What lives of a group of processes, from Linux's /proc."""

from pathlib import Path


def living(leader: int) -> set[int]:
    """Every living process of a group, zombies apart."""
    found = set()
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            state, _, group = folder.joinpath("stat").read_text().rpartition(")")[2].split()[:3]
        except OSError:
            continue
        if int(group) == leader and state != "Z":
            found.add(int(folder.name))
    return found
