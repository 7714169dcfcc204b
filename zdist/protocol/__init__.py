"""The wire protocol: message types and their encoding. PURE."""
