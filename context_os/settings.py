"""Settings: defaults < ``context-os.toml`` < environment < arguments. The only file that reads the environment.

``load`` collects every problem of every layer before it complains, and remembers for each value which layer
it came from.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Iterator, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    FilePath,
    SecretStr,
    ValidationError,
    field_validator,
    model_validator,
)

from context_os import embedding, inventory, plugins, takeover, telemetry
from context_os.chat import Chat
from context_os.connectors import Connector
from context_os.embedding import Embedding
from context_os.errors import ConfigurationError
from context_os.ledger import Ledger
from context_os.model import Confidentiality
from context_os.playbook import ALIKE, Policy
from context_os.stores import KnowledgeStore

FILE_NAME: Final = "context-os.toml"
PREFIX: Final = "CONTEXT_OS_"
_UNITS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}


def parse_duration(value: object) -> object:
    """``"30d"``, ``"12h"``, ``"never"`` as written in the settings file; anything else is left to pydantic."""
    if isinstance(value, str):
        if value.strip().lower() in {"never", "none", ""}:
            return None
        found = re.fullmatch(r"\s*(\d+)\s*([smhdw])\s*", value)
        if found:
            return timedelta(seconds=int(found[1]) * _UNITS[found[2]])
    return value


Duration = Annotated[timedelta | None, BeforeValidator(parse_duration)]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class StoreSettings(_Section):
    """``kind`` is chosen from ``url`` when it is not given: a URL means that server, none means ``lab``."""

    kind: str | None = None
    url: str | None = None
    grpc_port: int = Field(default=50051, ge=1, le=65535)
    api_key: SecretStr | None = None
    collection: str = Field(default="KnowledgeItem", pattern=r"^[A-Z][A-Za-z0-9_]*$")

    @field_validator("kind")
    @classmethod
    def _known(cls, value: str | None) -> str | None:
        if value is not None and value not in plugins.names("stores"):
            raise ValueError(f"no store is called {value!r}; there are: {', '.join(plugins.names('stores'))}")
        return value

    @field_validator("url")
    @classmethod
    def _http(cls, value: str | None) -> str | None:
        if value is not None and not re.fullmatch(r"https?://[^/\s]+/?", value):
            raise ValueError("write it as http://host:port or https://host")
        return value.rstrip("/") if value else None


class EmbeddingSettings(_Section):
    """``model`` is a folder or a name that the provider knows, "" its default. ``url`` and ``api_key`` are for
    providers that are reached over a network; the key belongs into the environment."""

    provider: str = embedding.AUTO
    model: str = ""
    url: str | None = None
    api_key: SecretStr | None = None

    @field_validator("provider")
    @classmethod
    def _known(cls, value: str) -> str:
        value = value.replace("-", "_")
        if value not in embedding.providers():
            raise ValueError(f"no provider is called {value!r}; there are: {', '.join(embedding.providers())}")
        return value


class RepositorySettings(_Section):
    """``location`` is a working tree or a bare git directory; ``revision`` None follows it."""

    location: Path
    revision: str | None = None


class GateSettings(_Section):
    """``max_refused_share``: a batch of which more is refused is refused whole."""

    max_refused_share: float = Field(default=0.5, ge=0.0, le=1.0)


class TelemetrySettings(_Section):
    """``otlp_endpoint``: where an OpenTelemetry collector takes OTLP over HTTP; None sends nothing. ``textfile``: where
    every process leaves its home's metrics when it ends, for node_exporter."""

    otlp_endpoint: str | None = None
    textfile: Path | None = None

    @field_validator("otlp_endpoint")
    @classmethod
    def _http(cls, value: str | None) -> str | None:
        if value is not None and not re.fullmatch(r"https?://[^\s?#]+", value):
            raise ValueError("write it as http://host:4318, without /v1/traces")
        return value.rstrip("/") if value else None


class ObjectiveSettings(_Section):
    """What is normal; beyond it is an alert, and ``never`` asks for none. ``run`` is how long a run may take, ``jobs``
    the same for one job by its name; ``freshness`` how long ago a source may have been looked at; ``daemon`` how late
    Dagster's daemon may be; ``clock`` how far clocks may differ; ``patience`` how long a store may misbehave before
    anybody is told; ``quarantine_growth`` how many records may join a quarantine untold; ``reconcile`` how often every
    scope is compared with the store item by item."""

    run: Duration = timedelta(hours=1)
    jobs: dict[str, Duration] = Field(default_factory=dict)
    freshness: Duration = timedelta(hours=36)
    daemon: Duration = timedelta(minutes=10)
    clock: Duration = timedelta(minutes=5)
    patience: Annotated[timedelta, BeforeValidator(parse_duration)] = timedelta(seconds=90)
    quarantine_growth: int = Field(default=0, ge=0)
    reconcile: Duration = timedelta(days=1)

    def of_job(self, name: str) -> timedelta | None:
        return self.jobs.get(name, self.run)


class RetentionSettings(_Section):
    """How long Dagster's runs and alerts that are over are kept; ``never`` is for ever."""

    runs: Duration = timedelta(days=90)
    alerts: Duration = timedelta(days=90)


class Webhook(_Section):
    """``webhook`` gets our own JSON, ``slack`` what Slack's incoming webhooks take. The address of such a webhook is a
    secret in itself and belongs into the environment, as does ``token``, sent as a bearer's."""

    kind: Literal["webhook", "slack"]
    url: SecretStr
    token: SecretStr | None = None

    @field_validator("url")
    @classmethod
    def _http(cls, value: SecretStr) -> SecretStr:
        if not re.fullmatch(r"https?://[!-~]+", value.get_secret_value()):
            raise ValueError("write it as https://host/path")
        return value


class Email(_Section):
    """A mail for each notice. ``starttls`` false is for a relay on this machine alone."""

    kind: Literal["email"]
    host: str
    port: int = Field(default=587, ge=1, le=65535)
    starttls: bool = True
    username: str | None = None
    password: SecretStr | None = None
    sender: str = Field(pattern=r"^[^@\s]+@[^@\s]+$")
    to: tuple[Annotated[str, Field(pattern=r"^[^@\s]+@[^@\s]+$")], ...] = Field(min_length=1)


class Command(_Section):
    """A program, started without a shell, that reads a notice as JSON from its standard input."""

    kind: Literal["command"]
    command: tuple[str, ...] = Field(min_length=1)


Receiver = Annotated[Webhook | Email | Command, Field(discriminator="kind")]


class AlertSettings(_Section):
    """``receivers`` by a name of one's own: without any, alerts are still recorded. ``ui`` is where Dagster's pages
    are, for the links in notices."""

    ui: str = Field(default="http://127.0.0.1:3000", pattern=r"^https?://[^\s]+$")
    receivers: dict[Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,31}$")], Receiver] = Field(
        default_factory=dict
    )


class BackupSettings(_Section):
    """``folder`` relative is below the home; ``keep_daily`` and ``keep_weekly`` are how many days and weeks keep their
    last backup. ``passphrase`` or ``recipients`` (public keys of age) encrypt, and ``identity`` is the file with the
    private key of age that a restore needs; secrets belong into the environment."""

    folder: Path = Path("backups")
    keep_daily: int = Field(default=7, ge=0)
    keep_weekly: int = Field(default=5, ge=0)
    passphrase: SecretStr | None = None
    recipients: tuple[str, ...] = ()
    identity: FilePath | None = None

    @field_validator("recipients", mode="before")
    @classmethod
    def _several(cls, value: object) -> object:
        return tuple(value.replace(",", " ").split()) if isinstance(value, str) else value


class AuditSettings(_Section):
    """``keep_packs``: how long the packs that were handed out are kept; ``0d`` keeps none, ``never`` all (of
    20,000)."""

    keep_packs: Duration = timedelta(days=90)


class FeedbackSettings(_Section):
    """``tune``: whether a repository's votes give it weights of its own, where these prove themselves."""

    tune: bool = True


class PlaybookSettings(_Section):
    """``approve``: lessons that nobody added by hand wait for approval. ``max_bullets`` and ``max_tokens`` bound a
    playbook's active bullets, ``alike`` is the cosine from which two lessons are one. ``url`` and ``model`` name an
    endpoint of chat completions that helps to learn, ``model_budget`` its tokens for each time; the key belongs into
    the environment."""

    approve: bool = False
    max_bullets: int = Field(default=200, ge=1)
    max_tokens: int = Field(default=20_000, ge=100)
    alike: float = Field(default=ALIKE, gt=0, le=1)
    url: str | None = None
    model: str = ""
    api_key: SecretStr | None = None
    model_budget: int = Field(default=100_000, ge=1_000)

    @model_validator(mode="after")
    def _both(self) -> Self:
        if bool(self.url) != bool(self.model):
            raise ValueError("url and model belong together: give both, or neither to learn by rule alone")
        return self

    @property
    def policy(self) -> Policy:
        return Policy(approve=self.approve, max_bullets=self.max_bullets, max_tokens=self.max_tokens, alike=self.alike)

    def open_chat(self) -> Chat | None:
        """The configured model, None for none. Raises ConfigurationError."""
        return Chat(self.url, self.model, self.api_key, self.model_budget) if self.url else None


class GoldsetSettings(_Section):
    """``folder`` holds the goldsets; relative is to the settings file's folder, without one to where it was looked for.
    ``repositories`` maps a name to where it is here, a path (relative to what ``folder`` stands in) or a URL to clone,
    instead of what a goldset says. ``schedule`` is when ``nightly_goldsets`` runs them, as cron writes it."""

    folder: Path = Path("goldsets")
    repositories: dict[str, str] = Field(default_factory=dict)
    schedule: str = Field(default="0 3 * * *", pattern=r"^\S+( \S+){4}$")


class ServerSettings(_Section):
    """``webhook_secret`` is what GitHub signs webhooks with (it belongs into the environment); without one they are
    refused. ``requests_per_minute`` is how often one key may ask."""

    webhook_secret: SecretStr | None = Field(default=None, min_length=16)
    requests_per_minute: int = Field(default=600, ge=1)


class Settings(_Section):
    """Everything configurable. ``home`` is the one folder of state, ``weights`` a file to be used instead of
    ``context_os/data/weights.toml``; ``sources`` says where each value came from, by dotted name."""

    home: Path
    tenant: str = Field(default="default", pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$")
    principal: str = Field(default="local", min_length=1)
    clearance: Confidentiality = Confidentiality.INTERNAL
    store: StoreSettings = StoreSettings()
    embedding: EmbeddingSettings = EmbeddingSettings()
    gate: GateSettings = GateSettings()
    telemetry: TelemetrySettings = TelemetrySettings()
    objectives: ObjectiveSettings = ObjectiveSettings()
    retention: RetentionSettings = RetentionSettings()
    alerts: AlertSettings = AlertSettings()
    backup: BackupSettings = BackupSettings()
    audit: AuditSettings = AuditSettings()
    goldsets: GoldsetSettings = GoldsetSettings()
    server: ServerSettings = ServerSettings()
    feedback: FeedbackSettings = FeedbackSettings()
    playbook: PlaybookSettings = PlaybookSettings()
    weights: FilePath | None = None
    repositories: dict[str, RepositorySettings] = Field(default_factory=dict)
    connectors: dict[str, dict[str, Any]] = Field(default_factory=dict)
    sources: dict[str, str] = Field(default_factory=dict, exclude=True)
    file: Path | None = Field(default=None, exclude=True)

    @property
    def store_kind(self) -> str:
        return self.store.kind or ("weaviate" if self.store.url else "lab")

    @property
    def store_is_default(self) -> bool:
        """Nobody chose a store: commands then say that they use the laboratory's."""
        return self.store.kind is None and self.store.url is None

    def open_store(self) -> KnowledgeStore:
        """The configured store, measured. Never falls back to another one. What a restore into it left that died is
        finished or undone first, and a home that was moved takes its ledger along. Raises ConfigurationError,
        StoreUnavailable."""
        self.start_telemetry()
        opened = self.make_store()
        ledger = self.home / "ledger.db"
        if self.store_kind == "lab":
            self.make_home()
        if self.store_kind == "lab" and ledger.exists():
            Ledger(ledger).follow(opened.identity)
        takeover.recover(self.home, opened, lambda: Ledger(ledger))
        return opened

    def make_store(self) -> KnowledgeStore:
        """The configured store as an object that has touched nothing yet. Raises ConfigurationError, ServerError."""
        store: type[KnowledgeStore] = plugins.load("stores", self.store_kind)
        options: dict[str, Any] = {"path": self.home / "lab.db"}
        if self.store_kind != "lab":
            options = {"collection": self.store.collection, **self._server()}
        return store(**options)

    @property
    def backup_folder(self) -> Path:
        return self.home / self.backup.folder.expanduser()

    def _server(self) -> dict[str, Any]:
        if self.store.url:
            return {"url": self.store.url, "grpc_port": self.store.grpc_port, "api_key": self.store.api_key}
        from context_os.weaviate_server import WeaviateServer

        connection = WeaviateServer(self.home).connection()
        return {"url": connection.url, "grpc_port": connection.grpc_port, "api_key": connection.api_key}

    def open_embedding(self) -> Embedding | None:
        """The configured embedding, nothing of it loaded yet; None for none. Raises ConfigurationError."""
        given = self.embedding.model_dump(exclude={"provider"}, exclude_defaults=True)
        try:
            return embedding.load(self.embedding.provider, given, _model_places())
        except ValidationError as error:
            raise ConfigurationError("\n".join(_complaints(error, "embedding"))) from None

    def start_telemetry(self) -> None:
        """Count what this process does towards this home, send it where the settings say. Raises ConfigurationError."""
        chosen = self.telemetry
        ledger = self.home / "ledger.db"
        telemetry.configure(self.home, lambda: inventory.samples(ledger), chosen.otlp_endpoint, chosen.textfile)

    def connector(self, name: str) -> Connector:
        """A connector with its options. Raises ConfigurationError listing every wrong one."""
        kind = plugins.load("connectors", name)
        try:
            options = _connector_options(self.connectors.get(name, {}))
            if "home" in kind.model_fields:  # one whose source is kept here
                options.setdefault("home", self.home)
            built: Connector = kind(**options)
        except ValidationError as error:
            raise ConfigurationError("\n".join(_complaints(error, f"connectors.{name}"))) from None
        return built

    def make_home(self) -> Path:
        """The state folder, made for its owner alone."""
        self.home.mkdir(parents=True, exist_ok=True, mode=0o700)
        return self.home


def _model_places() -> dict[str, Any]:
    """Where models are: our cache, that of the Hugging Face hub's own client, and the hub. The last two are found by
    the variables that the hub's own client reads."""
    caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    client = Path(os.environ.get("HF_HOME") or caches / "huggingface")
    return {
        "cache": caches / "context-os" / "models",
        "hub_cache": Path(os.environ.get("HF_HUB_CACHE") or client / "hub"),
        "hub": os.environ.get("HF_ENDPOINT") or "https://huggingface.co",
    }


def _connector_options(options: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: parse_duration(value) if key in {"ttl", "retention"} or key.endswith("_ttl") else value
        for key, value in options.items()
    }


def load(arguments: Mapping[str, Any] | None = None, start: Path | None = None) -> Settings:
    """Settings as seen from the folder ``start`` (default: the current one).

    ``arguments`` is nested like the file; None values are "not given". Raises ConfigurationError whose message
    lists every problem, one per line, each with the place it came from.
    """
    folder = (start or Path.cwd()).resolve()
    problems: list[str] = []
    file = _find_file(folder, problems)
    layers = {
        f"file {file}": _read_file(file, problems) if file else {},
        "environment": _from_environment(os.environ),
        "argument": _given(arguments or {}),
    }
    merged: dict[str, Any] = {"home": (file.parent if file else _root_of(folder)) / ".context-os"}
    sources: dict[str, str] = {}
    for layer, values in layers.items():
        _merge(merged, values, sources, layer)
    merged["home"] = Path(merged["home"]).expanduser()
    if not merged["home"].is_absolute():
        merged["home"] = (file.parent if file and sources.get("home", "").startswith("file") else folder) / merged[
            "home"
        ]
    settings = _validate(merged, sources, problems)
    if settings is not None and f"{PREFIX}CONFIG" not in os.environ:
        problems.extend(_found_commands(settings, sources))
    if problems or settings is None:
        raise ConfigurationError("the settings have problems:\n" + "\n".join(f"  {line}" for line in problems))
    place = (file.parent if file else _root_of(folder)) / settings.goldsets.folder.expanduser()
    goldsets = settings.goldsets.model_copy(update={"folder": place})
    return settings.model_copy(update={"goldsets": goldsets, "sources": sources, "file": file})


def _validate(merged: dict[str, Any], sources: dict[str, str], problems: list[str]) -> Settings | None:
    settings = None
    try:
        settings = Settings.model_validate(merged)
    except ValidationError as error:
        problems.extend(_complaints(error, "", sources))
    connectors = merged.get("connectors")
    for name, options in connectors.items() if isinstance(connectors, dict) else ():
        if name not in plugins.names("connectors"):
            problems.append(
                f"connectors.{name}: no such connector; there are: {', '.join(plugins.names('connectors'))}"
            )
        elif isinstance(options, dict):
            try:
                plugins.load("connectors", name)(**_connector_options(options))
            except ValidationError as error:
                problems.extend(_complaints(error, f"connectors.{name}", sources))
    return settings


def _found_commands(settings: Settings, sources: Mapping[str, str]) -> Iterator[str]:
    """A file that merely lies in the folder may be anybody's: it may not say what is to be started."""
    for name, receiver in settings.alerts.receivers.items():
        origin = sources.get(f"alerts.receivers.{name}.command", "")
        if isinstance(receiver, Command) and origin.startswith("file"):
            yield (
                f"alerts.receivers.{name}.command: a program is started only from a file that {PREFIX}CONFIG names,"
                f" not from one that was found (from {origin})"
            )


def _complaints(error: ValidationError, prefix: str, sources: Mapping[str, str] | None = None) -> Iterator[str]:
    for detail in error.errors(include_input=False, include_url=False):
        name = ".".join(str(part) for part in ((prefix,) if prefix else ()) + detail["loc"])
        origin = (sources or {}).get(name)
        message = (
            "no such setting" if detail["type"] == "extra_forbidden" else detail["msg"].removeprefix("Value error, ")
        )
        yield f"{name}: {message}" + (f" (from {origin})" if origin else "")


def _root_of(folder: Path) -> Path:
    """Where the state folder goes without a settings file: beside the nearest existing one, else here."""
    return next((each for each in (folder, *folder.parents) if (each / ".context-os").is_dir()), folder)


def _find_file(folder: Path, problems: list[str]) -> Path | None:
    named = os.environ.get(f"{PREFIX}CONFIG")
    if named:
        path = Path(named).expanduser().resolve()
        if not path.is_file():
            problems.append(f"{PREFIX}CONFIG: {path} is not a file")
            return None
        return path
    return next((each / FILE_NAME for each in (folder, *folder.parents) if (each / FILE_NAME).is_file()), None)


def _read_file(path: Path, problems: list[str]) -> dict[str, Any]:
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        problems.append(f"{path}: {error}")
        return {}
    for repository in values.get("repositories", {}).values() if isinstance(values.get("repositories"), dict) else ():
        if isinstance(repository, dict) and isinstance(repository.get("location"), str):
            repository["location"] = str((path.parent / Path(repository["location"]).expanduser()).resolve())
    return values


def _from_environment(environment: Mapping[str, str]) -> dict[str, Any]:
    """``CONTEXT_OS_STORE__URL`` is ``store.url``. Variables for other programs of ours are not settings."""
    values: dict[str, Any] = {}
    for variable, text in environment.items():
        if variable.startswith(PREFIX) and variable not in _NOT_SETTINGS:
            *parents, leaf = variable.removeprefix(PREFIX).lower().split("__")
            target = values
            for parent in parents:
                target = target.setdefault(parent, {})
            target[leaf] = text
    return values


_NOT_SETTINGS: Final = frozenset({f"{PREFIX}CONFIG", f"{PREFIX}SHARED", f"{PREFIX}DEMO_IMAGES"})


def _given(arguments: Mapping[str, Any]) -> dict[str, Any]:
    kept = {key: _given(value) if isinstance(value, Mapping) else value for key, value in arguments.items()}
    return {key: value for key, value in kept.items() if value is not None and value != {}}


def _merge(
    into: dict[str, Any], values: Mapping[str, Any], sources: dict[str, str], layer: str, prefix: str = ""
) -> None:
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            nested = into.setdefault(key, {})
            if isinstance(nested, dict):
                _merge(nested, value, sources, layer, f"{name}.")
                continue
        into[key] = value
        sources[name] = layer


def explain(settings: Settings) -> list[dict[str, Any]]:
    """Every value with where it came from: ``{"name", "value", "source"}``, secrets masked, sorted by name."""
    values = settings.model_dump(mode="json")
    values["store"]["kind"] = settings.store_kind
    for name in plugins.names("connectors"):
        values["connectors"][name] = settings.connector(name).model_dump(mode="json")
    rows = [
        {"name": name, "value": value, "source": settings.sources.get(name, "default")}
        for name, value in _flatten(values, "")
    ]
    return sorted(rows, key=lambda row: str(row["name"]))


def _flatten(values: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
