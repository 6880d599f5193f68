"""Write the lock files from an environment in which pip has resolved `.[train,rehearse,test]`.

    python requirements/lock.py          write requirements/*.txt
    python requirements/lock.py --check  exit 1 if a lock file does not hold the closure

Each file holds what its extra adds to the one before it, so that an image takes `light` and
`train` only. Everything is installed with `--no-deps`: a download, not a search.
"""

from __future__ import annotations

import importlib.metadata as metadata
import sys
import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

HERE = Path(__file__).parent
GROUPS = ("light", "train", "rehearse", "test")


def wanted(group: str) -> list[str]:
    """The direct requirements of a group, as pyproject.toml writes them."""
    project = tomllib.loads((HERE.parent / "pyproject.toml").read_text())["project"]
    if group == "light":
        return list(project["dependencies"])
    return list(project["optional-dependencies"][group])


def closure(requirements: list[str], found: dict[str, str]) -> None:
    """Add every installed package that `requirements` need, directly or not, to `found`."""
    queue = [Requirement(text) for text in requirements]
    while queue:
        requirement = queue.pop()
        name = canonicalize_name(requirement.name)
        try:
            distribution = metadata.distribution(name)
        except metadata.PackageNotFoundError as error:
            raise SystemExit(f"{name} is required but not installed here") from error
        version = distribution.version.split("+")[0]
        if not requirement.specifier.contains(version, prereleases=True):
            raise SystemExit(f"{name} {version} does not fit {requirement}")
        marks = requirement.extras or {""}
        seen = f"{name}[{','.join(sorted(marks))}]"
        if seen in found:
            continue
        found[seen] = version
        for text in distribution.requires or ():
            child = Requirement(text)
            if child.marker is None or any(child.marker.evaluate({"extra": e}) for e in marks):
                queue.append(child)


def lock_files() -> dict[str, str]:
    """The text of each lock file."""
    texts: dict[str, str] = {}
    before: dict[str, str] = {}
    for group in GROUPS:
        found: dict[str, str] = {}
        closure(wanted(group), found)
        flat = {key.split("[")[0]: version for key, version in found.items()}
        new = {name: version for name, version in flat.items() if name not in before}
        before.update(flat)
        head = f"# {group}: written by requirements/lock.py; install with --no-deps\n"
        texts[group] = head + "".join(f"{name}=={new[name]}\n" for name in sorted(new))
    return texts


def main() -> int:
    """Write or check; return the exit code."""
    stale = []
    for group, text in lock_files().items():
        path = HERE / f"{group}.txt"
        if "--check" in sys.argv[1:]:
            if not path.exists() or path.read_text() != text:
                stale.append(path.name)
        else:
            path.write_text(text)
    if stale:
        sys.stderr.write(f"stale lock files: {', '.join(stale)}; run requirements/lock.py\n")
    return 1 if stale else 0


if __name__ == "__main__":
    raise SystemExit(main())
