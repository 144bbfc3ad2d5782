"""The oldest versions that setup.cfg admits, as constraints for pip: `python tests/helpers/oldest_versions.py > floors.txt`."""

from __future__ import annotations

import re
from configparser import ConfigParser
from pathlib import Path

__all__ = ["floors"]


def floors(setup_cfg: str) -> list[str]:
    """`name==version` for each package that fatai needs.

    Examples
    --------
    >>> floors('[options]\\ninstall_requires =\\n    torch>=2.8\\n    tomli>=2.0; python_version < "3.11"')
    ['torch==2.8', 'tomli==2.0; python_version < "3.11"']
    """
    parsed = ConfigParser()
    parsed.read_string(setup_cfg)
    lines = [line for line in parsed["options"]["install_requires"].splitlines() if line]
    for line in lines:
        if not re.fullmatch(r"[\w-]+>=[\d.]+(; .+)?", line):
            raise ValueError(f"{line!r} has no floor, or more than one; expected name>=version")
    return [line.replace(">=", "==", 1) for line in lines]


if __name__ == "__main__":
    print("\n".join(floors((Path(__file__).parents[2] / "setup.cfg").read_text())))
