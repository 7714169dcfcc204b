"""Adapters to other libraries, each loaded only where it is used."""
