"""The machines that decide: no sockets, clocks, threads, randomness or pickling in here. PURE."""
