"""A Docker daemon for the tests, and images that need no registry.

If one answers already (DOCKER_HOST, or the usual socket) it is used; else one is started, with its data under .cache/docker, so
that a second run finds its images. It needs root. Whatever is missing raises, and says what to install.
"""

import hashlib
import os
import shutil
import subprocess
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CACHE = ROOT / ".cache" / "deploy"
BASE = "weft-test-base"
PARTS = "weft-test-parts"
WEFT = "weft-test"
BINARIES = ["weft", "weft-gateway", "weft-adapter-registry", "weft-cache-daemon", "weft-worker", "weft-embedded-s3"]
DEBIAN_MIRROR = "http://deb.debian.org/debian"


def need(program, package):
    """The path of a program; without it the test fails, and says how to get it."""
    path = shutil.which(program, path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")
    assert path, f"{program} is missing: apt-get install {package} (scripts/setup.sh compose does)"
    return path


def run(*command, **options):
    """Runs a command; what it printed becomes part of the error if it fails."""
    done = subprocess.run(command, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **options)
    assert done.returncode == 0, f"{' '.join(map(str, command))}: status {done.returncode}\n{done.stdout[-8000:]}"
    return done.stdout


def docker(*arguments):
    return run(CLIENT, *arguments)


# Debian's package; another `docker` in the PATH may be any other version.
CLIENT = "/usr/bin/docker" if Path("/usr/bin/docker").exists() else need("docker", "docker.io")


def answers():
    return subprocess.run([CLIENT, "version"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode == 0


@contextmanager
def daemon():
    """A daemon that answers, with DOCKER_HOST set to it."""
    if answers():
        yield
        return
    program = need("dockerd", "docker.io")
    assert os.geteuid() == 0, "no Docker daemon answers, and only root can start one: run this as root, or start Docker"
    CACHE.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="weft-docker-") as state:
        socket, log = f"unix://{state}/socket", CACHE / "dockerd.log"
        command = [program, "--data-root", CACHE / "docker", "--exec-root", f"{state}/exec", "--pidfile", f"{state}/pid", "-H", socket]
        os.environ["DOCKER_HOST"] = socket
        with log.open("w") as output:
            process = subprocess.Popen(list(map(str, command)), stdout=output, stderr=output)
        try:
            until = time.monotonic() + 120
            while not answers():
                tail = "\n".join(log.read_text().splitlines()[-20:])
                assert process.poll() is None, f"dockerd ended:\n{tail}"
                assert time.monotonic() < until, f"dockerd does not answer:\n{tail}"
                time.sleep(0.2)
            yield
        finally:
            process.terminate()
            process.wait(timeout=120)
            del os.environ["DOCKER_HOST"]
            # It leaves the network namespace of its host mounted, and the folder could not be removed.
            for line in Path("/proc/self/mounts").read_text().splitlines():
                mounted = line.split()[1]
                if mounted.startswith(f"{state}/"):
                    run("umount", mounted)


def has_image(name):
    return subprocess.run([CLIENT, "image", "inspect", name], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode == 0


def build_base():
    """Debian's base system by debootstrap, packed once into .cache/deploy."""
    packed = CACHE / "base.tar"
    if not packed.exists():
        program = need("debootstrap", "debootstrap")
        assert os.geteuid() == 0, "debootstrap needs root"
        with tempfile.TemporaryDirectory(prefix="weft-base-", dir=CACHE) as folder:
            tree = Path(folder) / "tree"
            run(program, "--variant=minbase", "--include=ca-certificates", "bookworm", str(tree), DEBIAN_MIRROR)
            excluded = ["./var/cache/apt/archives/*.deb", "./var/lib/apt/lists/*", "./dev/*"]
            run("tar", "-C", str(tree), *[f"--exclude={name}" for name in excluded], "-cf", f"{folder}/base.tar", ".")
            Path(folder, "base.tar").rename(packed)
    docker("import", str(packed), BASE)


def build_images(binaries):
    """The images of compose.yaml: Weft's from these binaries by the Dockerfile that users build with, the others from Debian."""
    CACHE.mkdir(parents=True, exist_ok=True)
    recipe = ROOT / "tests/deploy/parts.Dockerfile"
    parts = f"{PARTS}:{hashlib.sha256(recipe.read_bytes()).hexdigest()[:12]}"
    if not has_image(BASE):
        build_base()
    if not has_image(parts):
        # The daemon's own network may have no way out.
        arguments = ["--network", "host", "--build-arg", f"BASE={BASE}", "-f", str(recipe), "-t", parts]
        docker("build", *arguments, str(recipe.parent))
    staged = ROOT / "target/image"
    shutil.rmtree(staged, ignore_errors=True)
    staged.mkdir(parents=True)
    for name in BINARIES:
        source = Path(binaries) / name
        assert source.exists(), f"{source} is missing: cargo build --release --bins"
        shutil.copy2(source, staged / name)
    try:
        docker("build", "--target", "prebuilt", "--build-arg", f"BASE={BASE}", "-t", WEFT, str(ROOT))
    finally:
        shutil.rmtree(staged)
    return {"WEFT_IMAGE": WEFT, "NATS_IMAGE": parts, "REDIS_IMAGE": parts, "PROMETHEUS_IMAGE": parts}
