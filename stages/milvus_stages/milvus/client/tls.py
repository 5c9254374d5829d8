"""TLS to a Milvus server: trusted CAs and client certificates, as files."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Annotated, Any, Final, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from milvus_pipeline import ConfigError, StageError

_PEM: Final = "-----BEGIN"

_MEANINGS: Final = {
    "certificate has expired": ("the server's certificate has expired", "renew it on the server"),
    "Hostname Verification Check failed": (
        "the server's certificate is for another name",
        "put that name into `uri`, or into `tls.server_name`",
    ),
    "CERTIFICATE_VERIFY_FAILED": (
        "the server's certificate is not trusted",
        "put the file of the CA that signed it into `tls.ca`",
    ),
    "WRONG_VERSION_NUMBER": (
        "the server does not speak TLS at this port",
        "write http:// in `uri`, or name its TLS port",
    ),
}
"""What went wrong and the next step, by a part of gRPC's message about a failed handshake; the first match counts."""


def _path(value: Any) -> Any:
    """The path as a string. The content of a file, which may be a private key, is refused and not repeated."""
    if isinstance(value, Path):
        value = str(value)
    if isinstance(value, str) and (_PEM in value or "\n" in value):
        raise ValueError("must be the path of a PEM file, not its content")
    return value


PemFile = Annotated[str, BeforeValidator(_path), Field(min_length=1)]


class TLS(BaseModel):
    """TLS settings for an ``https://`` server. Without them, the public CAs are trusted."""

    model_config = ConfigDict(title="TLS", frozen=True, extra="forbid", hide_input_in_errors=True)

    ca: Annotated[
        PemFile | None, Field(description="PEM file of the CA that the server's certificate is verified with.")
    ] = None
    client_cert: Annotated[
        PemFile | None, Field(description="PEM file of the client certificate and its chain, for mutual TLS.")
    ] = None
    client_key: Annotated[PemFile | None, Field(description="PEM file of its private key, unencrypted.")] = None
    server_name: Annotated[
        str | None,
        Field(min_length=1, description="Name in the server's certificate; by default the host in `uri`."),
    ] = None

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if (self.client_cert is None) != (self.client_key is None):
            missing = "client_key" if self.client_key is None else "client_cert"
            raise ConfigError("is missing", "a client certificate and its key go together", place=missing)
        if self.client_cert is not None and self.ca is None:
            raise ConfigError("is missing", "a client certificate also needs the server's CA", place="ca")
        if self.ca is None and self.server_name is None:
            raise ConfigError("is empty", "remove it, or name the `ca` that signed the server's certificate")
        return self

    def check_files(self) -> None:
        """Check the files: gRPC would not say what is wrong with them.

        Raises:
            StageError: one is missing, cannot be read, or has the wrong content.
        """
        for field in ("ca", "client_cert", "client_key"):
            if (name := getattr(self, field)) is not None:
                _check_readable(field, name)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        if self.ca is not None:
            try:
                context.load_verify_locations(_expanded(self.ca))
            except (OSError, ValueError):
                raise StageError(f"{self.ca} holds no PEM certificate", "name the CA's file", place="tls.ca") from None
        if self.client_cert is not None and self.client_key is not None:
            try:
                # Without a password, OpenSSL would ask for that of an encrypted key at the terminal.
                context.load_cert_chain(_expanded(self.client_cert), _expanded(self.client_key), lambda: "")
            except (OSError, ValueError):
                what = f"{self.client_cert} and {self.client_key} are not a PEM certificate and its unencrypted key"
                raise StageError(what, "check both files", place="tls.client_key") from None

    def options(self) -> dict[str, str]:
        """Return the corresponding arguments of pymilvus's clients."""
        # pymilvus expects the CA under another name if there is a client certificate.
        files = {
            "ca_pem_path" if self.client_cert is not None else "server_pem_path": self.ca,
            "client_pem_path": self.client_cert,
            "client_key_path": self.client_key,
        }
        options = {name: str(_expanded(file)) for name, file in files.items() if file is not None}
        return options if self.server_name is None else {**options, "server_name": self.server_name}


def secure_channel(grpc: Any, address: str, tls: TLS | None) -> Any:
    """Return a channel as pymilvus makes it for ``https://``; ``grpc`` is the module."""
    tls = tls or TLS.model_construct()
    names = (tls.ca, tls.client_key, tls.client_cert)
    files = [None if name is None else _expanded(name).read_bytes() for name in names]
    options = [] if tls.server_name is None else [("grpc.ssl_target_name_override", tls.server_name)]
    return grpc.secure_channel(address, grpc.ssl_channel_credentials(*files), options=options)


def meaning(error: BaseException) -> tuple[str, str] | None:
    """Return why client and server could not agree on TLS, with the next step; None for other errors."""
    details = _details(error)
    return next((means for words, means in _MEANINGS.items() if words in details), None)


def hint(error: BaseException) -> str:
    """Return what else to check if the server ended a connection at once; empty for other errors."""
    closed = error.__cause__ is not None and "Socket closed" in _details(error)
    return ", and whether the server requires https:// or a client certificate (`tls`)" if closed else ""


def _details(error: BaseException) -> str:
    """The gRPC details of the error, or of its cause, where pymilvus keeps them when it connects."""
    for each in (error.__cause__, error):
        details = getattr(each, "details", None)
        if callable(details) and isinstance(text := details(), str):
            return text
    return ""


def _expanded(name: str) -> Path:
    return Path(name).expanduser()


def _check_readable(field: str, name: str) -> None:
    try:
        _expanded(name).open("rb").close()
    except (OSError, RuntimeError, ValueError) as error:
        what = f"{name} cannot be read: {getattr(error, 'strerror', None) or 'it is not a valid path'}"
        step = f"check the path and its permissions; relative paths start at {Path.cwd()}"
        raise StageError(what, step, place=f"tls.{field}") from None
