"""Embeddings: what each provider promises. Those with weights skip where the weights are not on this machine."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from models import write_safetensors, write_tokenizer

from context_os import plugins, settings
from context_os.embedding import Embedding, load, onnx
from context_os.embedding._bert import build
from context_os.embedding._weights import TOKENIZER, WEIGHTS, Model, Places, digest, tensors
from context_os.embedding.hashed import Hashed
from context_os.embedding.onnx import MINILM, OnnxEmbedding, session_options
from context_os.embedding.openai import OpenAIEmbedding
from context_os.errors import ConfigurationError, EmbeddingError, EmbeddingUnavailable

TEXTS = (
    "def close_session(pool):\n    '''Give the socket back.'''\n    return pool.release()",
    "shop/pool.py\nPool.release\ndef release(self, session)\nputs a connection into the pool again",
    "Rotate the encryption keys every ninety days",
    "x",
    "",
    "日本語のテキスト \ud800 😀 " + "word " * 500,
)


# --- hashed -----------------------------------------------------------------------------------------------------


@given(st.lists(st.text(max_size=60), max_size=8))
def test_every_text_has_a_direction_of_its_own_whatever_stands_beside_it(texts: list[str]) -> None:
    together = Hashed().embed(texts)
    assert together.shape == (len(texts), 256)
    assert together.dtype == np.float32
    assert np.allclose(np.linalg.norm(together, axis=1), 1.0, atol=1e-5)
    for row, text in zip(together, texts, strict=True):
        assert np.array_equal(row, Hashed().embed([text])[0])


def test_near_spellings_are_nearer_than_strangers() -> None:
    close, closed, other = Hashed().embed(["close_session", "closedSessions", "rotate encryption keys"])
    assert close @ closed > 0.5 > close @ other


def test_vectors_are_the_same_in_every_process() -> None:
    vector = Hashed().embed(["parse_http_response"])[0]
    assert [int(index) for index in np.argsort(-np.abs(vector), kind="stable")[:3]] == [82, 36, 72]


# --- choosing ---------------------------------------------------------------------------------------------------


def places(folder: Path) -> dict[str, Any]:
    return {"cache": folder / "cache", "hub_cache": folder / "hub", "hub": "http://127.0.0.1:9"}


def test_providers_by_name(tmp_path: Path) -> None:
    assert load("none", {}, {}) is None
    hashed = load("hashed", {}, places(tmp_path))
    assert hashed is not None
    assert not hashed.semantic
    with pytest.raises(ConfigurationError, match="hashed, model2vec, onnx"):
        load("crystal ball", {}, {})


def test_auto_downloads_nothing(tmp_path: Path) -> None:
    assert load("auto", {}, places(tmp_path)) is None
    assert list(tmp_path.iterdir()) == []


def test_settings_that_a_provider_does_not_take_or_lacks_are_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="embedding.url"):
        load("hashed", {"url": "http://h"}, places(tmp_path))
    with pytest.raises(ConfigurationError, match="embedding.url"):
        load("openai", {"model": "m"}, places(tmp_path))
    with pytest.raises(ConfigurationError, match="https://host/v1"):
        settings.load(
            {"home": str(tmp_path), "embedding": {"provider": "openai", "url": "h", "model": "m"}}
        ).open_embedding()


def test_a_key_comes_from_the_environment_and_is_never_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONTEXT_OS_EMBEDDING__API_KEY", "sk-very-secret")
    chosen = settings.load(
        {"home": str(tmp_path), "embedding": {"provider": "openai", "url": "http://h/v1", "model": "m"}}
    )
    made = chosen.open_embedding()
    assert isinstance(made, OpenAIEmbedding)
    assert made.api_key is not None
    assert made.api_key.get_secret_value() == "sk-very-secret"
    assert "very-secret" not in repr(made) + repr(chosen) + json.dumps(settings.explain(chosen))


def test_every_provider_keeps_the_contract() -> None:
    for name in plugins.names("embedding"):
        provider = plugins.load("embedding", name)
        assert issubclass(provider, Embedding)
        assert provider.name == name
        assert provider.embed is not Embedding.embed
        assert provider.version is not Embedding.version


def test_nothing_heavy_is_imported_before_a_text_comes(tmp_path: Path) -> None:
    code = (
        "from context_os import plugins, settings\n"
        "import sys; [plugins.load('embedding', name) for name in plugins.names('embedding')]\n"
        f"settings.load({{'home': {str(tmp_path)!r}}}).open_embedding()\n"
        "print([name for name in ('onnx', 'onnxruntime', 'tokenizers', 'torch') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert done.stdout.strip() == "[]"


def test_a_missing_library_or_weights_say_what_to_do(tmp_path: Path) -> None:
    onnx = load("onnx", {}, places(tmp_path))
    assert onnx is not None
    assert not onnx.is_here()
    with pytest.raises(ConfigurationError, match="context-os embedding fetch|pip install"):
        onnx.embed(["x"])
    with pytest.raises(ConfigurationError, match="must hold model.safetensors"):
        load("onnx", {"model": str(tmp_path)}, places(tmp_path)).embed(["x"])  # type: ignore[union-attr]
    try:
        import sentence_transformers  # noqa: F401
    except ImportError:
        with pytest.raises(ConfigurationError, match="pip install sentence-transformers"):
            load("sentence_transformers", {}, {}).embed(["x"])  # type: ignore[union-attr]


# --- a small encoder with random weights ------------------------------------------------------------------------


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    """A BERT encoder of two layers, 48 dimensions, 4 heads and random weights, beside its tokenizer."""
    pytest.importorskip("tokenizers")
    folder = tmp_path / "tiny"
    folder.mkdir()
    rng, size = np.random.default_rng(5), 48
    words = len(write_tokenizer(folder / TOKENIZER))

    def random(*shape: int) -> np.ndarray[Any, Any]:
        return rng.normal(0, 0.3, shape).astype(np.float32)

    arrays = {
        "embeddings.word_embeddings.weight": random(words, size),
        "embeddings.position_embeddings.weight": random(512, size),
        "embeddings.token_type_embeddings.weight": random(2, size),
    }
    norms, layers = ["embeddings"], []
    for n in range(2):
        name = f"encoder.layer.{n}"
        layers += [(f"{name}.attention.self.{part}", size, size) for part in ("query", "key", "value")]
        layers += [(f"{name}.attention.output.dense", size, size), (f"{name}.intermediate.dense", 4 * size, size)]
        layers += [(f"{name}.output.dense", size, 4 * size)]
        norms += [f"{name}.attention.output", f"{name}.output"]
    for name, outputs, inputs in layers:
        arrays |= {f"{name}.weight": random(outputs, inputs), f"{name}.bias": random(outputs)}
    for name in norms:
        arrays |= {f"{name}.LayerNorm.weight": 1 + random(size), f"{name}.LayerNorm.bias": random(size)}
    write_safetensors(folder / WEIGHTS, arrays)
    (folder / "config.json").write_text(json.dumps({"num_attention_heads": 4}))
    return folder


def reference(folder: Path, tokens: list[int], heads: int = 4) -> np.ndarray[Any, Any]:
    """The encoder written out in numpy, in double precision, for one text."""
    from math import erf

    w = {name: each.astype(np.float64) for name, each in tensors(folder / WEIGHTS).items()}

    def norm(name: str, x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        x = (x - x.mean(1, keepdims=True)) / np.sqrt(x.var(1, keepdims=True) + 1e-12)
        return x * w[f"{name}.LayerNorm.weight"] + w[f"{name}.LayerNorm.bias"]

    def dense(name: str, x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    x = w["embeddings.word_embeddings.weight"][tokens] + w["embeddings.position_embeddings.weight"][: len(tokens)]
    x = norm("embeddings", x + w["embeddings.token_type_embeddings.weight"][0])
    for n in range(2):
        name = f"encoder.layer.{n}"
        parts = [np.split(dense(f"{name}.attention.self.{p}", x), heads, axis=1) for p in ("query", "key", "value")]
        seen = []
        for query, key, value in zip(*parts, strict=True):
            scores = np.exp(query @ key.T / np.sqrt(key.shape[1]))
            seen.append(scores / scores.sum(1, keepdims=True) @ value)
        x = norm(f"{name}.attention.output", x + dense(f"{name}.attention.output.dense", np.concatenate(seen, axis=1)))
        wide = dense(f"{name}.intermediate.dense", x)
        wide = wide * (1 + np.vectorize(erf)(wide / np.sqrt(2))) / 2
        x = norm(f"{name}.output", x + dense(f"{name}.output.dense", wide))
    mean = x.mean(0)
    return mean / np.linalg.norm(mean)


def test_the_graph_computes_what_bert_computes(tiny: Path, tmp_path: Path) -> None:
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnx")
    for quantised, least in ((False, 0.999999), (True, 0.99)):
        build(tensors(tiny / WEIGHTS), 4, tmp_path / "graph.onnx", quantised=quantised)
        graph = tmp_path / "graph.onnx"
        session = runtime.InferenceSession(graph, session_options(), providers=["CPUExecutionProvider"])
        for tokens in ([5, 9, 30, 31], [7, 8], [11]):
            (vectors,) = session.run(None, {"input_ids": np.array([tokens])})
            assert np.linalg.norm(vectors[0]) == pytest.approx(1, abs=1e-5)
            assert vectors[0] @ reference(tiny, tokens) > least


def test_products_are_exact_where_they_would_overflow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnxruntime")
    exact = "session.x64quantprecision"
    told = tmp_path / "cpuinfo"

    def is_set(machine: str) -> bool:
        monkeypatch.setattr(onnx.platform, "machine", lambda: machine)
        try:
            entry: str = session_options(told).get_session_config_entry(exact)
        except RuntimeError:  # not set
            return False
        return entry == "1"

    assert is_set("x86_64"), "an x86 that does not tell"
    assert not is_set("aarch64")
    told.write_text("flags : fpu avx avx2 bmi2")
    assert is_set("x86_64")
    assert not is_set("aarch64")
    for flag in ("avx_vnni", "avx512_vnni"):
        told.write_text(f"flags : fpu avx2 {flag} rdpid")
        assert not is_set("x86_64"), "there they would only cost time"


def test_a_folder_of_weights_is_enough(tiny: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnx")
    made = load("onnx", {"model": str(tiny)}, places(tmp_path))
    assert made is not None
    assert made.semantic
    assert made.version == f"tiny-{digest(tiny / WEIGHTS)[:8]}-int8-128t-48-3"
    texts = ["close session", "a b c d e f", "", "key", "zebra " * 300]
    together = made.embed(texts)
    assert together.shape == (5, 48)
    assert np.isfinite(together).all()
    for row, text in zip(together, texts, strict=True):
        assert np.array_equal(row, made.embed([text])[0])
    assert made.embed([]).shape == (0, 48)


def test_weights_that_are_none_are_refused(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    (tmp_path / TOKENIZER).write_text("{}")
    (tmp_path / WEIGHTS).write_bytes(b"<html>not found</html>")
    with pytest.raises(EmbeddingError, match="no safetensors file"):
        OnnxEmbedding(model=str(tmp_path), **places(tmp_path)).embed(["x"])
    write_safetensors(tmp_path / WEIGHTS, {"embeddings": np.zeros((3, 4), np.float32)})
    with pytest.raises(EmbeddingError, match="not those of a BERT encoder"):
        OnnxEmbedding(model=str(tmp_path), **places(tmp_path)).embed(["x"])
    assert not list(tmp_path.rglob("*.onnx"))


# --- the real weights -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def minilm() -> OnnxEmbedding:
    made = settings.load({"embedding": {"provider": "onnx"}}).open_embedding()
    assert isinstance(made, OnnxEmbedding)
    if not made.is_here():
        pytest.skip("the weights are not on this machine; `context-os embedding fetch` gets them")
    return made


def test_minilm_int8_says_what_its_full_precision_says(minilm: OnnxEmbedding, tmp_path: Path) -> None:
    import onnxruntime
    from tokenizers import Tokenizer

    folder = minilm._places.find(MINILM)
    if folder is None:
        pytest.skip("only the graph is on this machine, not the weights that it was made of")
    build(tensors(folder / WEIGHTS), 12, tmp_path / "full.onnx", quantised=False)
    full = onnxruntime.InferenceSession(tmp_path / "full.onnx", providers=["CPUExecutionProvider"])
    tokenizer = Tokenizer.from_file(str(folder / TOKENIZER))
    tokenizer.no_padding()
    tokenizer.enable_truncation(128)
    files = sorted(Path(plugins.__file__).parent.glob("*.py"))
    texts = [text for file in files for text in (file.read_text()[:600], f"{file.name}\n{file.read_text()[900:4000]}")]
    for text, vector in zip(texts, minilm.embed(texts), strict=True):
        ids = np.array([tokenizer.encode(text).ids])
        assert full.run(None, {"input_ids": ids})[0][0] @ vector >= 0.99


def test_minilm_knows_meaning_and_a_text_has_the_same_vector_in_any_company(minilm: OnnxEmbedding) -> None:
    vectors = minilm.embed(TEXTS)
    assert vectors.shape == (6, 384)
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    (asked,) = minilm.embed(["where is a connection returned to the pool"])
    assert asked @ vectors[1] > asked @ vectors[0] > asked @ vectors[2]
    for row, text in zip(vectors, TEXTS, strict=True):
        assert np.array_equal(row, minilm.embed([text])[0])
    assert minilm.version == "all-MiniLM-L6-v2-int8-128t-384-3"


def test_the_runtime_reports_to_nobody(minilm: OnnxEmbedding, tmp_path: Path) -> None:
    """Left alone, onnxruntime's wheels keep a device's id and a queue of events in the user's cache folder."""
    minilm.embed(["x"])
    code = (
        "import sys; from pathlib import Path; from context_os.embedding.onnx import _Runner\n"
        "_Runner(Path(sys.argv[1]), Path(sys.argv[2])).embed(['x'])"
    )
    folder = minilm._folder
    arguments = [str(next(folder.glob("*.onnx"))), str(folder / TOKENIZER)]
    environment = {"XDG_CACHE_HOME": str(tmp_path / "cache"), "HOME": str(tmp_path)}
    subprocess.run([sys.executable, "-c", code, *arguments], check=True, env=environment)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


# --- getting weights --------------------------------------------------------------------------------------------


class _Served(ThreadingHTTPServer):
    """Answers from ``replies`` by path, each ``(status, headers, body)``; the last one again and again."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.replies: dict[str, list[tuple[int, dict[str, str], bytes]]] = {}
        self.asked: list[tuple[str, dict[str, str], bytes]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    server: _Served

    def _answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.server.asked.append((self.path, dict(self.headers), body))
        replies = self.server.replies.get(self.path, [(404, {}, b"no such model")])
        status, headers, content = replies.pop(0) if len(replies) > 1 else replies[0]
        if content == b"echo":
            texts = json.loads(body)["input"]
            vectors = [{"index": n, "embedding": [float(len(text)), 1.0, 0.0]} for n, text in enumerate(texts)]
            content = json.dumps({"data": vectors[::-1]}).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_POST = _answer

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def server() -> Iterator[_Served]:
    with _Served() as served:
        thread = threading.Thread(target=served.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield served
        served.shutdown()
        thread.join()


def test_the_hub_is_asked_and_what_it_gives_is_checked(server: _Served, tmp_path: Path) -> None:
    weights, tokenizer = b"weights" * 9, b"{}"
    server.replies = {
        "/team/model/resolve/main/model.safetensors": [(200, {}, weights)],
        "/team/model/resolve/main/tokenizer.json": [(200, {}, tokenizer)],
    }
    here = Places(cache=tmp_path / "cache", hub_cache=tmp_path / "hub", hub=server.url)
    model = Model(id="team/model")
    assert here.find(model) is None
    told: list[str] = []
    assert here.fetch(model, told.append).startswith(server.url)
    folder = here.find(model)
    assert folder is not None
    assert (folder / WEIGHTS).read_bytes() == weights
    assert sorted(each.name for each in folder.iterdir()) == [WEIGHTS, TOKENIZER]
    assert any("downloading" in line for line in told)
    pinned = Model(id="team/model", pins={WEIGHTS: "0" * 64})
    with pytest.raises(EmbeddingError, match="SHA-256"):
        here.fetch(pinned, told.append)
    assert here.find(pinned) is None
    with pytest.raises(EmbeddingError, match="404"):
        here.fetch(Model(id="team/other"), told.append)


def test_a_download_that_breaks_off_leaves_nothing(server: _Served, tmp_path: Path) -> None:
    server.replies = {
        "/team/model/resolve/main/model.safetensors": [
            (200, {"Content-Length": "1000", "Connection": "close"}, b"few")
        ],
        "/team/model/resolve/main/tokenizer.json": [(200, {}, b"{}")],
    }
    here = Places(cache=tmp_path / "cache", hub_cache=tmp_path / "hub", hub=server.url)
    with pytest.raises(EmbeddingError, match="3 of 1,000"):
        here.fetch(Model(id="team/model"), lambda _: None)
    assert here.find(Model(id="team/model")) is None


def test_the_hub_clients_own_cache_is_used_if_its_files_are_right(tmp_path: Path) -> None:
    snapshot = tmp_path / "hub/models--team--model/snapshots/abc"
    snapshot.mkdir(parents=True)
    (snapshot / WEIGHTS).write_bytes(b"w")
    here = Places(cache=tmp_path / "cache", hub_cache=tmp_path / "hub", hub="")
    assert here.find(Model(id="team/model")) is None
    (snapshot / TOKENIZER).write_bytes(b"t")
    assert here.find(Model(id="team/model")) == snapshot
    assert here.find(Model(id="team/model", pins={WEIGHTS: digest(snapshot / WEIGHTS)})) == snapshot
    assert here.find(Model(id="team/model", pins={WEIGHTS: digest(snapshot / TOKENIZER)})) is None


# --- model2vec --------------------------------------------------------------------------------------------------


def test_static_vectors_are_the_mean_of_their_tokens(tmp_path: Path) -> None:
    pytest.importorskip("tokenizers")
    vocabulary = write_tokenizer(tmp_path / TOKENIZER)
    table = np.random.default_rng(3).normal(size=(len(vocabulary), 8)).astype(np.float16)
    write_safetensors(tmp_path / WEIGHTS, {"embeddings": table})
    made = load("model2vec", {"model": str(tmp_path)}, places(tmp_path))
    assert made is not None
    assert made.version.endswith("-float16-8")
    vectors = made.embed(["close session", "session zebra close", "zebra", ""])
    rows = table[[vocabulary.index("close"), vocabulary.index("session")]].astype(np.float32)
    expected = rows.sum(0) / np.linalg.norm(rows.sum(0))
    assert np.allclose(vectors[:2], expected, atol=1e-5)
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    assert made.embed([]).shape == (0, 8)


def test_static_vectors_may_be_shared_and_weighted(tmp_path: Path) -> None:
    pytest.importorskip("tokenizers")
    vocabulary = write_tokenizer(tmp_path / TOKENIZER)
    table = np.eye(4, dtype=np.float32)
    mapping = np.arange(len(vocabulary)) % 4
    weights = np.linspace(1, 2, len(vocabulary)).astype(np.float32)
    write_safetensors(tmp_path / WEIGHTS, {"embeddings": table, "mapping": mapping, "weights": weights})
    (vector,) = load("model2vec", {"model": str(tmp_path)}, places(tmp_path)).embed(["key a"])  # type: ignore[union-attr]
    key, a = vocabulary.index("key"), vocabulary.index("a")
    total = table[mapping[key]] * weights[key] + table[mapping[a]] * weights[a]
    assert np.allclose(vector, total / np.linalg.norm(total), atol=1e-6)


# --- an endpoint ------------------------------------------------------------------------------------------------


def endpoint(server: _Served, *replies: tuple[int, dict[str, str], bytes]) -> OpenAIEmbedding:
    server.replies = {"/v1/embeddings": list(replies)}
    return OpenAIEmbedding(url=f"{server.url}/v1/", model="small", api_key="sk-secret", pause=0.01)


ECHO = (200, {}, b"echo")


def test_an_endpoint_gets_batches_and_its_answers_are_put_in_order(server: _Served) -> None:
    made = endpoint(server, ECHO)
    texts = ["x" * (n % 40) for n in range(150)]
    vectors = made.embed(texts)
    assert vectors.shape == (150, 3)
    lengths = np.array([max(1, len(text)) for text in texts], dtype=np.float32)
    assert np.allclose(vectors[:, 0] / vectors[:, 1], lengths, atol=1e-3)
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    sent = [json.loads(body) for _, _, body in server.asked]
    assert [len(each["input"]) for each in sent] == [64, 64, 22]
    assert {each["model"] for each in sent} == {"small"}
    assert server.asked[0][1]["Authorization"] == "Bearer sk-secret"
    assert made.version == "small-3"


def test_an_endpoint_that_is_busy_is_asked_again(server: _Served) -> None:
    made = endpoint(server, (429, {"Retry-After": "0"}, b"slow down"), (503, {}, b""), ECHO)
    assert made.embed(["text"]).shape == (1, 3)
    assert len(server.asked) == 3


def test_an_endpoint_that_fails_says_how(server: _Served) -> None:
    with pytest.raises(EmbeddingUnavailable, match="HTTP 500"):
        endpoint(server, (500, {}, b"oops")).embed(["x"])
    asked = len(server.asked)
    with pytest.raises(EmbeddingError, match="HTTP 401.*the key") as refused:
        endpoint(server, (401, {}, b"bad key")).embed(["x"])
    assert len(server.asked) == asked + 1
    assert "sk-secret" not in str(refused.value)
    with pytest.raises(EmbeddingError, match="HTTP 307"):
        endpoint(server, (307, {"Location": "http://127.0.0.1:9/"}, b"")).embed(["x"])
    for nonsense in (b"<html>", b'{"data": []}', b'{"data": [{"index": 0, "embedding": [NaN]}]}'):
        with pytest.raises(EmbeddingError, match="one vector for each"):
            endpoint(server, (200, {}, nonsense)).embed(["x"])
    with pytest.raises(EmbeddingUnavailable, match="cannot be reached"):
        OpenAIEmbedding(url="http://127.0.0.1:9/v1", model="m", pause=0).embed(["x"])
