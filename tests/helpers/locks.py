"""An output that another process is writing."""

import subprocess
import sys
from contextlib import contextmanager

HOLDER = """
import sys, time
from fatai.io.lock import lock_output
with lock_output(sys.argv[1]):
    print("locked", flush=True)
    time.sleep(60)
"""


@contextmanager
def locked_elsewhere(path):
    """Lock a path in another process, which is killed at the end; yield the process."""
    process = subprocess.Popen([sys.executable, "-c", HOLDER, str(path)], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout.readline() == "locked\n"
        yield process
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
