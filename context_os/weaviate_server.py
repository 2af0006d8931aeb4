"""A real Weaviate server on this machine, without Docker: found or installed, started, watched and stopped.

The server's gRPC and cluster ports listen on every interface whatever it is told, so one that is started here
never has anonymous access: its key is generated before the first start and lives in a file that only its owner
can read. All state is in ``<home>/weaviate``::

    api-key      the key of the root user "context-os", mode 0600
    ports.json   the six ports, so that the URL survives a restart
    process.json the server's pid and that process's start time: a recycled pid is never taken for the server
    server.log   what the server says, warnings and worse; server.log.1 is that of the start before
    data/ backups/
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import mmap
import os
import platform
import re
import secrets
import shutil
import signal
import socket
import subprocess
import tarfile
import tempfile
import time
import urllib.error
import urllib.request
import zipfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from http.client import HTTPException
from pathlib import Path
from typing import IO, Final, TypeVar

from pydantic import Field, SecretStr, ValidationError

from context_os.errors import ServerError
from context_os.model import Value

__all__ = ["USER", "VERSION", "Connection", "Status", "WeaviateServer"]

VERSION: Final = "1.39.0"
USER: Final = "context-os"
"""The root user of every server started here; its key is the generated one."""

_RELEASES: Final = "https://github.com/weaviate/weaviate/releases/download"
_GO_MODULE: Final = f"github.com/weaviate/weaviate/cmd/weaviate-server@v{VERSION}"
_SPECIFICATION: Final = re.compile(rb'"title": "Weaviate REST API",\s+"version": "([^"]{1,40})"')
_PREFERRED: Final = (8089, 50089)
_STOP_PATIENCE: Final = 20.0
"""Seconds that a server has to write everything down after SIGTERM."""
_PATIENCE: Final = 15.0
"""Seconds without a byte after which a download has failed."""
_INTERNAL_PORTS: Final = range(20_000, 32_000)
"""Below the range from which kernels take the ports of outgoing connections."""

_EXECUTABLES: Final = ("weaviate", "weaviate-server")
_DIRECT: Final = urllib.request.build_opener(urllib.request.ProxyHandler({}))
"""Never through a proxy: the server is on this machine."""
_NETWORK: Final = urllib.request.build_opener()
_CHILDREN: Final[dict[int, subprocess.Popen[bytes]]] = {}
"""Servers that this process started, kept so that one that ends is reaped and not left a zombie."""

Progress = Callable[[str], None]


class Status(Value):
    """What is known of the server. ``url`` is "" before the first start; ``version`` is what the running server
    reports; ``key_file`` is where the key is, never the key. ``detail`` is for people."""

    running: bool
    ready: bool
    url: str
    grpc_port: int
    version: str
    pid: int | None
    data: Path
    key_file: Path
    log_file: Path
    detail: str


class Connection(Value):
    """What a client needs."""

    url: str
    grpc_port: int
    api_key: SecretStr


class _Ports(Value):
    http: int = Field(ge=1, le=65535)
    grpc: int = Field(ge=1, le=65535)
    gossip: int = Field(ge=1, le=65535)
    data: int = Field(ge=1, le=65535)
    raft: int = Field(ge=1, le=65535)
    raft_rpc: int = Field(ge=1, le=65535)


class _Process(Value):
    """A process of which the pid alone would not be proof: pids are used again."""

    pid: int
    started: str

    def is_alive(self) -> bool:
        alive = _start_time(self.pid) == self.started
        child = _CHILDREN.get(self.pid)
        if child is not None and child.poll() is not None:
            del _CHILDREN[self.pid]
            return False
        return alive

    def end(self) -> None:
        """SIGTERM, time to write everything down, then SIGKILL."""
        for number, patience in ((signal.SIGTERM, _STOP_PATIENCE), (signal.SIGKILL, 5.0)):
            if self.is_alive():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(self.pid, number)
            until = time.monotonic() + patience
            while self.is_alive() and time.monotonic() < until:
                time.sleep(0.05)
        if self.is_alive():
            raise ServerError(f"the Weaviate server, process {self.pid}, cannot be stopped; it ignores SIGKILL")


_State = TypeVar("_State", bound=Value)


class WeaviateServer:
    """The server of one home folder.

    ``port`` and ``grpc_port`` None mean: those of the last start, else 8089 and 50089, else free ones.
    ``releases`` is where ``v<version>/<archive>`` and ``<archive>.sha256`` are, for those who keep a mirror.
    ``deadline`` is how many seconds a start may take once the binary is there.
    """

    def __init__(
        self,
        home: Path,
        port: int | None = None,
        grpc_port: int | None = None,
        *,
        releases: str = _RELEASES,
        deadline: float = 60.0,
    ) -> None:
        self.folder = Path(home).absolute() / "weaviate"
        self.port = port
        self.grpc_port = grpc_port
        self.releases = releases
        self.deadline = deadline

    def start(self, progress: Progress = lambda message: None) -> Status:
        """Start the server and wait until it is ready; harmless when it already runs.

        Installs the binary first where there is none, telling ``progress`` line by line. The server outlives the
        caller. Raises ServerError: no binary to be had, a port in use, or the last lines of the log.
        """
        _make_folder(self.folder, 0o700)
        with _locked(self.folder / "lock"):
            process = self._process()
            if process is None:
                self._start_anew(progress)
            else:
                self._refuse_other_ports()
                self._wait_until_ready(process)
        return self.status()

    def stop(self) -> Status:
        """Stop the server: SIGTERM, and SIGKILL if it has not left after 20 seconds. Harmless when it does not run."""
        if self.folder.is_dir():
            with _locked(self.folder / "lock"):
                process = self._process()
                if process is not None:
                    process.end()
                (self.folder / "process.json").unlink(missing_ok=True)
        return self.status()

    def status(self) -> Status:
        """What is known now, without changing anything. Never raises for a server that is down."""
        ports, process = self._read(_Ports, "ports.json"), self._process()
        url = f"http://127.0.0.1:{ports.http}" if ports else ""
        ready = process is not None and _answers(f"{url}/v1/.well-known/ready")
        return Status(
            running=process is not None,
            ready=ready,
            url=url,
            grpc_port=ports.grpc if ports else 0,
            version=self._reported_version(url) if ready else "",
            pid=process.pid if process else None,
            data=self.folder / "data",
            key_file=self._key_file,
            log_file=self._log_file,
            detail=_describe(running=process is not None, ready=ready, started_before=ports is not None),
        )

    def connection(self) -> Connection:
        """URL, gRPC port and key of the server, running or not. Raises ServerError before the first start."""
        ports = self._read(_Ports, "ports.json")
        if ports is None or not self._key_file.is_file():
            raise ServerError(f"no Weaviate server was ever started in {self.folder.parent}; start one first")
        key = SecretStr(self._key_file.read_text("ascii").strip())
        return Connection(url=f"http://127.0.0.1:{ports.http}", grpc_port=ports.grpc, api_key=key)

    @property
    def _key_file(self) -> Path:
        return self.folder / "api-key"

    @property
    def _log_file(self) -> Path:
        return self.folder / "server.log"

    def _read(self, kind: type[_State], name: str) -> _State | None:
        try:
            return kind.model_validate_json((self.folder / name).read_bytes())
        except (OSError, ValidationError):
            return None

    def _process(self) -> _Process | None:
        process = self._read(_Process, "process.json")
        return process if process is not None and process.is_alive() else None

    def _choose_ports(self) -> _Ports:
        known = self._read(_Ports, "ports.json")
        http = _public_port(self.port or (known.http if known else None), _PREFERRED[0], "HTTP")
        grpc = _public_port(self.grpc_port or (known.grpc if known else None), _PREFERRED[1], "gRPC")
        if http == grpc:
            raise ServerError(f"port {http} was given for both HTTP and gRPC; give two different ones")
        taken = {http, grpc}
        internal = [known.gossip, known.data, known.raft, known.raft_rpc] if known else [0, 0, 0, 0]
        for index, port in enumerate(internal):
            internal[index] = port if port and port not in taken and _is_free(port) else _free_port(taken)
            taken.add(internal[index])
        ports = _Ports.model_validate(dict(zip(_Ports.model_fields, (http, grpc, *internal), strict=True)))
        _write(self.folder / "ports.json", ports.model_dump_json())
        return ports

    def _start_anew(self, progress: Progress) -> None:
        installation = _Installation(self.releases, progress)
        _make_folder(installation.cache, 0o755)
        # Until it listens, nothing else keeps the server of another home from choosing the same ports.
        with _locked(installation.cache / "lock"):
            ports = self._choose_ports()
            binary = installation.binary()
            progress(f"starting Weaviate {VERSION} on http://127.0.0.1:{ports.http}, gRPC {ports.grpc}")
            self._wait_until_ready(self._launch(binary, ports))

    def _refuse_other_ports(self) -> None:
        ports = self._read(_Ports, "ports.json")
        for wanted, actual in ((self.port, ports and ports.http), (self.grpc_port, ports and ports.grpc)):
            if wanted and actual and wanted != actual:
                raise ServerError(
                    f"the server in {self.folder.parent} already runs on port {actual}, not on {wanted}; "
                    "stop it first to move it"
                )

    def _key(self) -> str:
        if not self._key_file.is_file():
            _write(self._key_file, secrets.token_urlsafe(32))
        return self._key_file.read_text("ascii").strip()

    def _launch(self, binary: Path, ports: _Ports) -> _Process:
        command = [str(binary), "--host", "127.0.0.1", "--port", str(ports.http), "--scheme", "http"]
        if self._log_file.exists():  # it may say why the last one ended
            self._log_file.replace(self.folder / "server.log.1")
        self._log_file.touch(0o600)
        with self._log_file.open("wb") as log:
            try:
                child = subprocess.Popen(
                    command,
                    cwd=self.folder,
                    env=_environment(self.folder, ports, self._key()),
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
            except OSError as error:
                raise ServerError(f"{binary} cannot be run: {error.strerror}; remove it to install it anew") from None
        _CHILDREN[child.pid] = child
        process = _Process(pid=child.pid, started=_start_time(child.pid) or "")
        _write(self.folder / "process.json", process.model_dump_json())
        return process

    def _wait_until_ready(self, process: _Process) -> None:
        url = self.connection().url
        until = time.monotonic() + self.deadline
        while not _answers(f"{url}/v1/.well-known/ready"):
            if not process.is_alive():
                raise ServerError(f"the Weaviate server ended while it started; {self._last_words()}")
            if time.monotonic() > until:
                process.end()
                raise ServerError(
                    f"the Weaviate server was not ready after {self.deadline:.0f} s and was stopped; "
                    f"{self._last_words()}"
                )
            time.sleep(0.1)

    def _last_words(self) -> str:
        lines = self._log_file.read_text("utf-8", "replace").splitlines()[-12:]
        if not lines:
            return f"{self._log_file} is empty"
        return "\n  ".join([f"the last lines of {self._log_file}:", *(line[:500] for line in lines)])

    def _reported_version(self, url: str) -> str:
        try:
            bearer = {"Authorization": f"Bearer {self.connection().api_key.get_secret_value()}"}
            request = urllib.request.Request(f"{url}/v1/meta", headers=bearer)  # noqa: S310 - our own http://127.0.0.1
            with _DIRECT.open(request, timeout=2) as answer:
                return str(json.load(answer)["version"])
        except (ServerError, OSError, HTTPException, ValueError, KeyError):
            return ""


class _Installation:
    """Where the server's binary comes from: PATH, the cache, the release archive, or the Go tool chain."""

    def __init__(self, releases: str, progress: Progress) -> None:
        self.releases = releases
        self.progress = progress
        base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        self.cache = Path(base) / "context-os" / "weaviate" / VERSION

    def binary(self) -> Path:
        """An executable of the pinned version. Raises ServerError saying what was tried. The caller holds the
        cache's lock."""
        found = self._on_path()
        if found is not None:
            return found
        target = self.cache / "weaviate-server"
        if not os.access(target, os.X_OK):
            self._install(target)
        return target

    def _on_path(self) -> Path | None:
        for name in ("weaviate-server", "weaviate"):
            place = shutil.which(name)
            if place is None:
                continue
            version = _binary_version(Path(place))
            if version == VERSION:
                return Path(place)
            self.progress(f"{place} is {version or 'not a Weaviate server'}, not {VERSION}; leaving it alone")
        return None

    def _install(self, target: Path) -> None:
        reasons = []
        for install in (self._download, self._build):
            with tempfile.TemporaryDirectory(dir=self.cache, prefix="install-") as folder:
                try:
                    made = install(Path(folder))
                except _NotThisWayError as reason:
                    reasons.append(str(reason))
                    self.progress(str(reason))
                else:
                    made.chmod(0o755)
                    made.replace(target)
                    return
        raise ServerError(
            f"Weaviate {VERSION} cannot be installed: {'; '.join(reasons)}. Put an executable weaviate-server of that "
            f"version on PATH or at {target}"
        )

    def _download(self, folder: Path) -> Path:
        name = _archive_name()
        url = f"{self.releases}/v{VERSION}/{name}"
        self.progress(f"downloading {url}")
        try:
            with _NETWORK.open(f"{url}.sha256", timeout=_PATIENCE) as answer:
                published = answer.read(1000).decode("ascii", "replace").split()
            archive = folder / name
            with _NETWORK.open(url, timeout=_PATIENCE) as answer, archive.open("wb") as file:
                shutil.copyfileobj(answer, file, 1 << 20)
        except (OSError, HTTPException) as error:
            raise _NotThisWayError(f"the release cannot be downloaded from {url} ({error})") from None
        with archive.open("rb") as file:
            actual = hashlib.file_digest(file, "sha256").hexdigest()
        if not published or published[0].lower() != actual:
            raise ServerError(
                f"{url} has SHA-256 {actual}, but {published[0] if published else 'nothing'} is published for it; "
                "it was not installed. Somebody may have tampered with it: try again later or build from source"
            )
        return _unpack(archive, folder)

    def _build(self, folder: Path) -> Path:
        go = shutil.which("go")
        if go is None:
            raise _NotThisWayError("there is no go command to build it with (https://go.dev/dl)")
        self.progress(f"building Weaviate {VERSION} with {go}; this takes some minutes once")
        # -trimpath and no cgo: one static binary that holds no path of this machine.
        environment = {**os.environ, "CGO_ENABLED": "0", "GOBIN": str(folder)}
        with subprocess.Popen(
            [go, "install", "-v", "-trimpath", _GO_MODULE],
            cwd=folder, env=environment, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace",
        ) as build:  # fmt: skip
            lines = self._relay(build.stdout or ())
        if build.returncode != 0:
            raise _NotThisWayError(f"go install failed: {' / '.join(lines) or f'exit {build.returncode}'}")
        return folder / "weaviate-server"

    def _relay(self, output: Iterable[str]) -> list[str]:
        """Tell a line every two seconds (a build names a thousand packages); returns the last few."""
        last: deque[str] = deque(maxlen=5)
        told = time.monotonic()
        for line in output:
            last.append(line.strip())
            if time.monotonic() - told >= 2:
                self.progress(f"building: {line.strip()}")
                told = time.monotonic()
        return list(last)


class _NotThisWayError(Exception):
    """One way to get the binary does not work here; the next may."""


def _archive_name() -> str:
    if platform.system() == "Darwin":
        return f"weaviate-v{VERSION}-darwin-all.zip"
    machine = {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())
    if platform.system() != "Linux" or machine not in {"amd64", "arm64"}:
        raise _NotThisWayError(f"there is no release archive for {platform.system()} on {machine}")
    return f"weaviate-v{VERSION}-linux-{machine}.tar.gz"


def _unpack(archive: Path, folder: Path) -> Path:
    """Copy the one executable out of an archive; no path in the archive is ever used as a path here."""
    target = folder / "weaviate-server"
    try:
        with contextlib.ExitStack() as stack:
            if archive.suffix == ".zip":
                zipped = stack.enter_context(zipfile.ZipFile(archive))
                name = next(name for name in zipped.namelist() if Path(name).name in _EXECUTABLES)
                source: IO[bytes] | None = stack.enter_context(zipped.open(name))
            else:
                tarred = stack.enter_context(tarfile.open(archive))
                source = tarred.extractfile(next(m for m in tarred if m.isfile() and Path(m.name).name in _EXECUTABLES))
            assert source is not None
            with target.open("wb") as file:
                shutil.copyfileobj(source, file, 1 << 20)
    except (StopIteration, tarfile.TarError, zipfile.BadZipFile, OSError, EOFError) as error:
        raise _NotThisWayError(
            f"{archive.name} holds no server that can be unpacked ({error or 'not in it'})"
        ) from None
    return target


def _binary_version(path: Path) -> str:
    """The version in the API specification that every server binary embeds: it has no option to ask for it."""
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            found = _SPECIFICATION.search(content)
            return found[1].decode() if found else ""
    except (OSError, ValueError):
        return ""


def _environment(folder: Path, ports: _Ports, key: str) -> dict[str, str]:
    """The server's whole environment. Nothing else of the caller's is passed on: it may hold secrets."""
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "TMPDIR", "LANG", "TZ") if name in os.environ}
    return kept | {
        "PERSISTENCE_DATA_PATH": str(folder / "data"),
        "ENABLE_MODULES": "backup-filesystem",
        "BACKUP_FILESYSTEM_PATH": str(folder / "backups"),
        "DEFAULT_VECTORIZER_MODULE": "none",
        "AUTOSCHEMA_ENABLED": "false",
        "OBJECTS_TTL_DELETE_SCHEDULE": "@every 5s",
        "AUTHENTICATION_ANONYMOUS_ACCESS_ENABLED": "false",
        "AUTHENTICATION_APIKEY_ENABLED": "true",
        "AUTHENTICATION_APIKEY_ALLOWED_KEYS": key,
        "AUTHENTICATION_APIKEY_USERS": USER,
        "AUTHENTICATION_DB_USERS_ENABLED": "true",
        "AUTHORIZATION_RBAC_ENABLED": "true",
        "AUTHORIZATION_RBAC_ROOT_USERS": USER,
        "GRPC_PORT": str(ports.grpc),
        "CLUSTER_HOSTNAME": "context-os",
        "CLUSTER_ADVERTISE_ADDR": "127.0.0.1",
        "CLUSTER_BIND_ADDR": "127.0.0.1",
        "CLUSTER_GOSSIP_BIND_PORT": str(ports.gossip),
        "CLUSTER_DATA_BIND_PORT": str(ports.data),
        # The data port listens on every interface and would else answer anybody.
        "CLUSTER_BASIC_AUTH_USERNAME": USER,
        "CLUSTER_BASIC_AUTH_PASSWORD": key,
        "RAFT_PORT": str(ports.raft),
        "RAFT_INTERNAL_RPC_PORT": str(ports.raft_rpc),
        "RAFT_BOOTSTRAP_EXPECT": "1",
        # A single node elects itself: seconds of waiting for other voters serve nobody.
        "RAFT_HEARTBEAT_TIMEOUT": "1",
        "RAFT_ELECTION_TIMEOUT": "1",
        "RAFT_TIMEOUTS_MULTIPLIER": "1",
        "RAFT_ENABLE_ONE_NODE_RECOVERY": "true",
        "GOMEMLIMIT": f"{_memory() // 2}B",
        "GO_PROFILING_DISABLE": "true",
        "DISABLE_TELEMETRY": "true",
        "LOG_LEVEL": "warning",
    }


def _memory() -> int:
    """Physical memory in bytes."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _start_time(pid: int) -> str | None:
    """When the process started, in words that no later process of the same pid can share; None if it is gone."""
    with contextlib.suppress(OSError):
        # proc(5): the command's name stands in parentheses and may hold anything; after it, state is field 3, the
        # number of threads 20 and the start time in clock ticks since boot 22. A server that is ending is shown as a
        # zombie while some of its threads still run and hold its ports.
        fields = Path(f"/proc/{pid}/stat").read_text("utf-8", "replace").rpartition(")")[2].split()
        boot = Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
        gone = fields[0] in "ZX" and int(fields[17]) <= 1
        return None if gone else f"{boot}:{fields[19]}"
    if Path("/proc/self/stat").exists():
        return None
    done = subprocess.run(["ps", "-o", "lstart=", "-p", str(pid)], capture_output=True, text=True, check=False)
    return done.stdout.strip() or None


def _public_port(wanted: int | None, preferred: int, what: str) -> int:
    if wanted is None:
        return preferred if _is_free(preferred) else _free_port(set())
    if not _is_free(wanted):
        raise ServerError(f"{what} port {wanted} is held by another process; end that one or give another port")
    return wanted


def _is_free(port: int) -> bool:
    """Whether nothing listens there. SO_REUSEADDR as the server sets it, or a port in TIME_WAIT would look taken."""
    with socket.socket() as knock:
        knock.settimeout(0.5)
        if knock.connect_ex(("127.0.0.1", port)) == 0:
            return False
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(("", port))
        except OSError:
            return False
    return True


def _free_port(taken: set[int]) -> int:
    for port in secrets.SystemRandom().sample(_INTERNAL_PORTS, 200):
        if port not in taken and _is_free(port):
            return port
    raise ServerError(f"no free port found between {_INTERNAL_PORTS[0]} and {_INTERNAL_PORTS[-1]}")


def _answers(url: str) -> bool:
    try:
        with _DIRECT.open(url, timeout=2) as answer:
            return bool(answer.status == 200)
    except (OSError, HTTPException):
        return False


def _make_folder(path: Path, mode: int) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
        path.chmod(mode)
    except OSError as error:
        raise ServerError(f"cannot use the folder {path}: {error.strerror}") from None


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold an exclusive lock between processes. The kernel lets go of it however the holder ends."""
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _write(path: Path, text: str) -> None:
    """Write a file that only its owner may read, whole or not at all."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        file.write(text)
    Path(name).replace(path)


def _describe(*, running: bool, ready: bool, started_before: bool) -> str:
    if ready:
        return "running and ready"
    if running:
        return "running, but not ready to answer"
    return "stopped" if started_before else "never started"
