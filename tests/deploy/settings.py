"""The services' own word on settings: `--check-settings` and `--help` of the real binaries."""

import subprocess
from functools import lru_cache

# Settings that files may name before this build's binaries have them.
COMING = ["WEFT_INSECURE_NETWORK", "WEFT_TLS_CERT_FILE", "WEFT_TLS_KEY_FILE", "WEFT_TLS_CA_FILE"]


@lru_cache
def help_of(binary):
    return subprocess.run([binary, "--help"], text=True, capture_output=True, check=True).stdout


def unknown(binary):
    return [name for name in COMING if f"[env: {name}]" not in help_of(binary)]


def drop_unknown(text, binary):
    """The lines of a file that set nothing the binary does not know yet."""
    names = unknown(binary)
    return "".join(line for line in text.splitlines(keepends=True) if not any(line.strip().startswith(f"{n}:") for n in names))


def check(binary, arguments, variables):
    """What the binary says of these settings: none if they hold, else its words."""
    known = {name: value for name, value in variables.items() if name not in unknown(binary)}
    done = subprocess.run([binary, *arguments, "--check-settings"], env=known, text=True, capture_output=True)
    assert done.returncode in (0, 2), f"{binary}: {done.returncode} {done.stderr}"
    return None if done.returncode == 0 else done.stderr
