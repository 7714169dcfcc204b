"""Configuration: one documented schema, and where each value came from. Loads pydantic: import it when needed."""

from zdist.config.load import Settings, load
from zdist.config.schema import BrokerConfig, ClientConfig, Config, LoggingConfig, NodeConfig

__all__ = ["BrokerConfig", "ClientConfig", "Config", "LoggingConfig", "NodeConfig", "Settings", "load"]
