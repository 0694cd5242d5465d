"""Connections without sockets: this process as a guest of specedge-stack, the host's network stack.

After NetKernel (arXiv:1903.07119); csrc/stack/element.h shows what goes between guest and daemon.
"""
