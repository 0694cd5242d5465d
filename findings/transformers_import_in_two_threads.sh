#!/usr/bin/env bash
# transformers 5.24.0: while one thread imports transformers, `from transformers import LlamaConfig` in
# another one raises ImportError instead of waiting for it, although the import system's own locks make
# imports of ordinary modules safe: at the end of its import the package puts another module object in
# its own place in sys.modules, and the thread that had begun to wait goes on with the first one, which
# has none of the public names. The same line works as soon as the import is over.
# Seen:
#   while it is imported elsewhere: ImportError: cannot import name 'LlamaConfig' from 'transformers'
#   afterwards: LlamaConfig
#   an ordinary package (json) in the same situation: JSONDecoder
# Exits non-zero where this no longer holds.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q transformers==5.24.0
cd "$folder"
HF_HUB_OFFLINE=1 "$folder/venv/bin/python" - <<'PYTHON'
import importlib
import sys
import threading
import time


def name_while_imported(package: str, name: str) -> str:
    """What a second thread gets that asks for a name once the import of its package has begun."""
    for module in [m for m in sys.modules if m == package or m.startswith(package + ".")]:
        del sys.modules[module]
    thread = threading.Thread(target=importlib.import_module, args=(package,))
    thread.start()
    while package not in sys.modules:
        time.sleep(0.0001)
    try:
        scope: dict[str, object] = {}
        exec(f"from {package} import {name}", scope)
        return scope[name].__name__
    except ImportError as error:
        return f"ImportError: {str(error).partition(' (')[0]}"
    finally:
        thread.join()


seen = name_while_imported("transformers", "LlamaConfig")
print("while it is imported elsewhere:", seen)
import transformers
from transformers import LlamaConfig

print("afterwards:", LlamaConfig.__name__)
ordinary = name_while_imported("json", "JSONDecoder")
print("an ordinary package (json) in the same situation:", ordinary)
print("transformers", transformers.__version__, "Python", sys.version.split()[0])
assert seen == "ImportError: cannot import name 'LlamaConfig' from 'transformers'"
assert ordinary == "JSONDecoder"
PYTHON
