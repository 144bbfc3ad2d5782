"""axe-core on a page: the rules of WCAG that a program can check. Its package brings it; no network is needed."""

import pytest


def faults(page, impacts=("serious", "critical")):
    """Return a line for each element of a page that breaks a rule of these impacts; skip if axe-core is missing."""
    axe = pytest.importorskip(
        "axe_playwright_python.sync_playwright", reason="axe-core is missing: pip install axe-playwright-python"
    )
    # Style sheets are those that the page has loaded; a page in a file may fetch none.
    violations = axe.Axe().run(page, options={"preload": False}).response["violations"]
    return [
        f"{violation['impact']} {violation['id']}: {node['html'][:120]}"
        for violation in violations if violation["impact"] in impacts
        for node in violation["nodes"]
    ]
