"""Tests of the Triton kernels, where triton is installed."""

from importlib.util import find_spec

collect_ignore_glob = [] if find_spec("triton") else ["*"]
