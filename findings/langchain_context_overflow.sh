#!/bin/sh
# langchain-openai 1.7.4 beside openai 3.57.0, which is what pip installs for it: a prompt that is too long, as OpenAI
# tells it (status 400, code "context_length_exceeded"), is no ContextOverflowError any more, for which callers wait
# to shorten a conversation. LangChain looks for the code in str(error). openai 2 wrote the whole body there, openai 3
# writes the message alone; the code is in error.code, where nobody looks.
#
# Seen:
#   openai 2.54.0: OpenAIContextOverflowError, a ContextOverflowError: True
#   openai 3.57.0: OpenAIInvalidRequestError, a ContextOverflowError: False
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cat > "$folder/ask.py" <<'PYTHON'
import json
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread

import openai
from langchain_core.exceptions import ContextOverflowError
from langchain_openai import ChatOpenAI

BODY = json.dumps({"error": {
    "message": "This model's maximum context length is 8192 tokens. However, your messages resulted in 9001 "
    "tokens. Please reduce the length of the messages.",
    "type": "invalid_request_error", "param": "messages", "code": "context_length_exceeded",
}}).encode()  # fmt: skip


class Refusing(BaseHTTPRequestHandler):
    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(400)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(BODY)))
        self.end_headers()
        self.wfile.write(BODY)

    def log_message(self, *_):
        pass


server = HTTPServer(("127.0.0.1", 0), Refusing)
Thread(target=server.serve_forever, daemon=True).start()
url = f"http://127.0.0.1:{server.server_address[1]}/v1"
try:
    ChatOpenAI(base_url=url, api_key="none", model="any", max_retries=0).invoke("Hi")
except openai.BadRequestError as error:
    is_overflow = isinstance(error, ContextOverflowError)
    print(f"openai {openai.__version__}: {type(error).__name__}, a ContextOverflowError: {is_overflow}")
    assert error.code == "context_length_exceeded", error.code
    assert is_overflow == (sys.argv[1] == "known"), "it has changed"
else:
    raise AssertionError("it was not refused")
PYTHON
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet langchain-openai==1.7.4 langchain-core==1.8.3 openai==2.54.0
"$folder/venv/bin/python" "$folder/ask.py" known
"$folder/venv/bin/pip" install --quiet openai==3.57.0
"$folder/venv/bin/python" "$folder/ask.py" unknown
