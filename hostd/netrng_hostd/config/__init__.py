# SPDX-License-Identifier: Apache-2.0
"""The configuration, /etc/netrng/hostd.toml: strict, complete, and one line for each mistake."""

from netrng_hostd.config.file import control_of, load
from netrng_hostd.config.model import (
    DEFAULT_FILE,
    SYSTEM_CONTROL,
    AdmissionConfig,
    ChannelConfig,
    Config,
    LibvirtConfig,
    ReservoirConfig,
    ServeConfig,
    SourceConfig,
    default_control,
)
from netrng_hostd.config.table import ConfigError

__all__ = [
    "DEFAULT_FILE",
    "SYSTEM_CONTROL",
    "AdmissionConfig",
    "ChannelConfig",
    "Config",
    "ConfigError",
    "LibvirtConfig",
    "ReservoirConfig",
    "ServeConfig",
    "SourceConfig",
    "control_of",
    "default_control",
    "load",
]
