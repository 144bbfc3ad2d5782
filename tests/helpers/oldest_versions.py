"""Print the oldest versions that setup.cfg allows, as constraints for pip.

`python tests/helpers/oldest_versions.py > oldest.txt`
"""

from __future__ import annotations

import re
from configparser import ConfigParser
from pathlib import Path

__all__ = ["oldest_versions"]


def oldest_versions(setup_cfg: str) -> list[str]:
    """Return `name==version` for each package that fatai requires.

    Examples
    --------
    >>> oldest_versions('[options]\\ninstall_requires =\\n    torch>=2.8\\n    tomli>=2.0; python_version < "3.11"')
    ['torch==2.8', 'tomli==2.0; python_version < "3.11"']
    """
    parsed = ConfigParser()
    parsed.read_string(setup_cfg)
    lines = [line for line in parsed["options"]["install_requires"].splitlines() if line]
    for line in lines:
        if not re.fullmatch(r"[\w-]+>=[\d.]+(; .+)?", line):
            raise ValueError(f"{line!r} has no lower bound, or more than one; expected name>=version")
    return [line.replace(">=", "==", 1) for line in lines]


if __name__ == "__main__":
    print("\n".join(oldest_versions((Path(__file__).parents[2] / "setup.cfg").read_text())))
