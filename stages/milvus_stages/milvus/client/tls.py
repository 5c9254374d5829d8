"""TLS to a Milvus server: whom to trust, and who we are, as files."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Annotated, Any, Final, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from milvus_pipeline import StageError

_PEM: Final = "-----BEGIN"

_MEANINGS: Final = {
    "certificate has expired": "the server's certificate has expired; renew it there",
    "Hostname Verification Check failed": (
        "the server's certificate is for another name; put that name into `uri`, or into `tls.server_name`"
    ),
    "CERTIFICATE_VERIFY_FAILED": (
        "the server's certificate is not trusted; put the file of the CA that signed it into `tls.ca`"
    ),
    "WRONG_VERSION_NUMBER": "the server does not speak TLS at this port; write http:// in `uri`, or name its TLS port",
}
"""By what gRPC says of a handshake that failed, the first that is found."""


def _path(value: Any) -> Any:
    """The name of a file as text. The content of one, which may be a private key, is told apart and not repeated."""
    if isinstance(value, Path):
        value = str(value)
    if isinstance(value, str) and (_PEM in value or "\n" in value):
        raise ValueError("must be the path of a PEM file, not what is in it")
    return value


PemFile = Annotated[str, BeforeValidator(_path), Field(min_length=1)]


class TLS(BaseModel):
    """How a server of ``https://`` is trusted, and how it may trust us. Without it, the public CAs are trusted."""

    model_config = ConfigDict(title="TLS", frozen=True, extra="forbid", hide_input_in_errors=True)

    ca: Annotated[
        PemFile | None, Field(description="PEM file of the CA that the server's certificate is checked against.")
    ] = None
    client_cert: Annotated[
        PemFile | None, Field(description="PEM file of our certificate (and what signed it), for mutual TLS.")
    ] = None
    client_key: Annotated[PemFile | None, Field(description="PEM file of its private key, not encrypted.")] = None
    server_name: Annotated[
        str | None,
        Field(min_length=1, description="Name in the server's certificate; the host in `uri` by default."),
    ] = None

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if (self.client_cert is None) != (self.client_key is None):
            lacks = "client_key" if self.client_key is None else "client_cert"
            raise ValueError(f"{lacks} is missing: a client certificate and its key go together")
        if self.client_cert is not None and self.ca is None:
            raise ValueError("ca is missing: with a client certificate, name the CA of the server's certificate, too")
        if self.ca is None and self.server_name is None:
            raise ValueError("says nothing; leave it out, or name the `ca` that signed the server's certificate")
        return self

    def check_files(self) -> None:
        """Look at the files, of which gRPC would not say what is wrong.

        Raises:
            StageError: one is missing, cannot be read, or is not what it should be.
        """
        if self.ca is not None:
            _readable("ca", self.ca)
            try:
                ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(_expanded(self.ca))
            except (OSError, ValueError):
                raise StageError(f"tls.ca: {self.ca} holds no certificate in PEM form", "name the CA's file") from None
        if self.client_cert is not None and self.client_key is not None:
            _readable("client_cert", self.client_cert)
            _readable("client_key", self.client_key)
            _check_pair(self.client_cert, self.client_key)

    def options(self) -> dict[str, str]:
        """The arguments of pymilvus's clients that say the same."""
        # pymilvus takes the CA by another name where it comes with a client's certificate.
        files = {
            "ca_pem_path" if self.client_cert is not None else "server_pem_path": self.ca,
            "client_pem_path": self.client_cert,
            "client_key_path": self.client_key,
        }
        options = {name: str(_expanded(file)) for name, file in files.items() if file is not None}
        return options if self.server_name is None else {**options, "server_name": self.server_name}


def secure_channel(grpc: Any, address: str, tls: TLS | None) -> Any:
    """A channel as pymilvus makes it for ``https://``; ``grpc`` is the module."""
    tls = tls or TLS.model_construct()
    names = (tls.ca, tls.client_key, tls.client_cert)
    files = [None if name is None else _expanded(name).read_bytes() for name in names]
    options = [] if tls.server_name is None else [("grpc.ssl_target_name_override", tls.server_name)]
    return grpc.secure_channel(address, grpc.ssl_channel_credentials(*files), options=options)


def meaning(error: BaseException) -> str | None:
    """What went wrong where client and server could not agree on TLS, with the next step; None for other errors."""
    said = _details(error)
    return next((means for words, means in _MEANINGS.items() if words in said), None)


def hint(error: BaseException) -> str:
    """What else to check where the server ended a connection at once; empty for other errors."""
    closed = error.__cause__ is not None and "Socket closed" in _details(error)
    return ", and whether the server wants https:// or a client certificate (`tls`)" if closed else ""


def _details(error: BaseException) -> str:
    """What gRPC says of the error or of its cause, which is where pymilvus has it when it connects."""
    for each in (error.__cause__, error):
        details = getattr(each, "details", None)
        if callable(details) and isinstance(said := details(), str):
            return said
    return ""


def _expanded(name: str) -> Path:
    return Path(name).expanduser()


def _readable(field: str, name: str) -> None:
    try:
        with _expanded(name).open("rb"):
            return
    except FileNotFoundError:
        problem = f"there is no file {name} (relative paths are taken from {Path.cwd()}); check the path"
    except (OSError, RuntimeError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "it is no path"
        problem = f"{name} cannot be read: {reason}; check the path, and who may read it"
    raise StageError(str(problem), place=f"tls.{field}")


def _check_pair(certificate: str, key: str) -> None:
    encrypted = False

    def password() -> str:
        nonlocal encrypted  # OpenSSL asks for one only then, and would ask at the terminal
        encrypted = True
        return ""

    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_cert_chain(_expanded(certificate), _expanded(key), password)
    except (OSError, ValueError) as error:
        if encrypted:
            problem = f"{key} is encrypted, and gRPC asks for no password; name a file that only we may read instead"
        elif getattr(error, "reason", None) == "KEY_VALUES_MISMATCH":
            problem = f"{key} is the key of another certificate than {certificate}; name the two that go together"
        else:
            problem = f"{certificate} and {key} are no certificate and private key in PEM form; check both files"
        raise StageError(f"tls.client_key: {problem}") from None
