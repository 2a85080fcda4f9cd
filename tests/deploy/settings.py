"""The services' own word on settings."""

import subprocess


def check(binary, arguments, variables):
    """What the binary says of these settings: none if they hold, else its words."""
    done = subprocess.run([binary, *arguments, "--check-settings"], env=variables, text=True, capture_output=True)
    assert done.returncode in (0, 2), f"{binary}: {done.returncode} {done.stderr}"
    return None if done.returncode == 0 else done.stderr
