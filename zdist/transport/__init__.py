"""Sockets: the only part of zdist that imports zmq."""
