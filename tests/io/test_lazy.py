"""Imports are quick: heavy modules on first use, and without passes of the garbage collector."""

import gc
import subprocess
import sys

import pytest

from fatai.io.lazy import collection_paused


@pytest.mark.parametrize("enabled", [True, False])
def test_the_collector_is_paused_in_the_block_and_then_as_it_was(enabled):
    was_enabled = gc.isenabled()
    try:
        gc.enable() if enabled else gc.disable()
        with pytest.raises(KeyError), collection_paused():
            assert not gc.isenabled()
            raise KeyError
        assert gc.isenabled() is enabled
    finally:
        gc.enable() if was_enabled else gc.disable()


def test_importing_everything_leaves_the_collector_on_and_the_templates_and_requirements_of_others_out():
    code = (
        "import gc, sys, fatai.all; assert gc.isenabled(); "
        "print([m for m in ('jinja2', 'packaging.requirements') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
