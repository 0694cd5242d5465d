"""Names of models: folders that hold GGUF files, and hub ids, with a hub of our own."""

import json
import os
import shutil
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from runtime.model import weights
from runtime.model.config import ModelError
from runtime.model.locate import locate
from runtime.model.tokenizer import Tokenizer
from tests.fuzz.targets import CORPUS

GGUF = CORPUS / "gguf/tiny.gguf"
COMMIT = "b" * 40


def refusal(name):
    with pytest.raises(ModelError) as caught:
        locate(name)
    return str(caught.value)


def put(folder, *names):
    for name in names:
        shutil.copy(GGUF, folder / name)


@pytest.mark.parametrize("beside", [[], ["config.json"], ["config.json", "pytorch_model.bin"]])
def test_a_folder_with_one_gguf_file_is_that_file(tmp_path, beside):
    put(tmp_path, "model-Q4_K_M.gguf")
    for name in beside:
        (tmp_path / name).write_text("{}")
    assert locate(tmp_path) == tmp_path / "model-Q4_K_M.gguf"
    assert weights.load(tmp_path).config == weights.load(GGUF).config


def test_a_model_in_parts_is_one_model(tmp_path):
    put(tmp_path, "m-00002-of-00003.gguf", "m-00001-of-00003.gguf", "m-00003-of-00003.gguf")
    assert locate(tmp_path) == tmp_path / "m-00001-of-00003.gguf"
    put(tmp_path, "m.gguf", "m-00001-of-00002.gguf")
    assert refusal(tmp_path) == (
        f"{tmp_path} holds 3 models, m-00001-of-00002.gguf, m-00001-of-00003.gguf, m.gguf; give "
        "the path of one"
    )


def test_safetensors_beside_gguf_files_are_the_model(pairs, tmp_path):
    folder = shutil.copytree(pairs("llama").folder, tmp_path / "model")
    put(folder, "a.gguf", "b.gguf")
    assert locate(folder) == folder


def test_what_is_neither_file_nor_folder_is_called_by_its_kind(tmp_path, monkeypatch):
    expected = "; expected a model's folder, a .gguf file or a hub id"
    assert refusal("/dev/null") == f"/dev/null is a device{expected}"
    os.mkfifo(tmp_path / "pipe")
    assert refusal(tmp_path / "pipe").startswith(f"{tmp_path / 'pipe'} is a pipe")
    monkeypatch.chdir(tmp_path)  # a socket's path has 107 bytes at most
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind("bound")
        assert refusal("./bound") == f"bound is a socket{expected}"
    (tmp_path / "link").symlink_to("nowhere")
    assert refusal(tmp_path / "link").endswith("link is a link to nowhere, which does not exist")
    (tmp_path / "loop").symlink_to("loop")
    for name in (tmp_path / "loop", "a" * 5000, "~no such user/model", "a\0b"):
        assert "cannot be looked at: " in refusal(name)
        assert len(refusal(name)) < 300
    assert refusal(tmp_path / "no") == f"{tmp_path / 'no'} does not exist{expected}"
    assert "does not exist" in refusal(str(GGUF / "below a file"))


def test_gguf_files_under_any_name(tmp_path):
    """Some programs keep what they have fetched under its hash."""
    put(tmp_path, "sha256-8daa9615cce3")
    assert locate(tmp_path / "sha256-8daa9615cce3") == tmp_path / "sha256-8daa9615cce3"


def cached(cache, *names):
    """A model in the hub's cache on disk, as its client lays it out."""
    snapshot = cache / f"models--owner--model/snapshots/{COMMIT}"
    snapshot.mkdir(parents=True)
    (cache / "models--owner--model/refs").mkdir()
    (cache / "models--owner--model/refs/main").write_text(COMMIT)
    for name in names:
        shutil.copy(GGUF, snapshot / name)
    return snapshot


@pytest.fixture
def offline(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    return tmp_path


def test_hub_ids_whose_gguf_files_are_in_the_cache(offline):
    snapshot = cached(offline, "model-Q8_0.gguf")
    assert locate("owner/model") == snapshot / "model-Q8_0.gguf"
    put(snapshot, "model-Q4_0.gguf")
    assert "holds 2 models, model-Q4_0.gguf, model-Q8_0.gguf; give" in refusal("owner/model")


def test_hub_ids_of_which_nothing_is_here(offline):
    cached(offline)
    assert refusal("owner/model") == "owner/model has no safetensors to fetch"


class Hub(BaseHTTPRequestHandler):
    """A hub with one repository; each of its files is an empty JSON object."""

    def do_GET(self):
        if "/resolve/" in self.path:
            self.server.fetched.append(self.path.rpartition("/")[2])
            body = b"{}"
        elif "/tree/" in self.path:
            entry = {"type": "file", "size": 2, "oid": "a" * 40}
            body = json.dumps([{**entry, "path": path} for path in self.server.files]).encode()
        else:
            body = json.dumps({"id": "owner/model", "sha": COMMIT, "siblings": []}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.send_header("ETag", f'"{self.path}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    do_HEAD = do_GET

    def log_message(self, *args):
        pass


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A hub on loopback: set its files, read what was fetched."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.files, server.fetched = [], []
    serving = threading.Thread(target=server.serve_forever, args=(0.01,))
    serving.start()
    constants = "huggingface_hub.constants"
    address = f"http://127.0.0.1:{server.server_port}"
    template = f"{address}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr(f"{constants}.ENDPOINT", address)
    monkeypatch.setattr(f"{constants}.HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(f"{constants}.HF_HUB_OFFLINE", False)
    monkeypatch.setattr(f"{constants}.HF_HUB_CACHE", str(tmp_path))
    yield server
    server.shutdown()
    serving.join()
    server.server_close()


def test_code_is_not_even_fetched(hub):
    models = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    wanted = [*models, "config.json", "merges.txt", "tokenizer.model", "chat_template.jinja"]
    hub.files = [*wanted, "modeling_own.py", "pytorch_model.bin", "consolidated.safetensors"]
    folder = locate("owner/model")
    assert set(hub.fetched) == set(wanted)
    assert {path.name for path in folder.iterdir()} == set(wanted)


@pytest.mark.parametrize(
    ("files", "holds"),
    [
        (
            [
                "README.md",
                "m-Q4_0.gguf",
                "m-Q8_0-00001-of-00002.gguf",
                "m-Q8_0-00002-of-00002.gguf",
            ],
            "m-Q4_0.gguf, m-Q8_0-00001-of-00002.gguf: download one of them and give its path",
        ),
        (["pytorch_model.bin"], "pytorch_model.bin: pickled weights, which are never read because"),
        (["tokenizer.py", "README.md"], "README.md, tokenizer.py"),
    ],
)
def test_hub_ids_without_safetensors_say_what_is_there(hub, files, holds):
    hub.files = files
    assert refusal("owner/model").startswith(
        f"owner/model has no safetensors to fetch, but {holds}"
    )


def test_unreadable_names_are_sentences_for_the_tokenizer_too(tmp_path):
    put(tmp_path, "a.gguf", "b.gguf")
    with pytest.raises(ModelError, match=r"holds 2 models, a.gguf, b.gguf; give the path of one"):
        Tokenizer.load(tmp_path)
